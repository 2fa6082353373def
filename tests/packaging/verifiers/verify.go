// verify URL ISSUER AUDIENCE: reads the JWK Set, says which keys it has, then judges one token a line.
package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"sort"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

type jwk struct{ Kty, Crv, Kid, X, Y string }

func number(text string) *big.Int {
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		panic(err)
	}
	return new(big.Int).SetBytes(raw)
}

func fetch(url string) map[string]*ecdsa.PublicKey {
	response, err := http.Get(url)
	if err != nil {
		panic(err)
	}
	defer response.Body.Close()
	var set struct{ Keys []jwk }
	if err := json.NewDecoder(response.Body).Decode(&set); err != nil {
		panic(err)
	}
	keys := map[string]*ecdsa.PublicKey{}
	for _, key := range set.Keys {
		if key.Kty != "EC" || key.Crv != "P-256" {
			panic("another kind of key")
		}
		keys[key.Kid] = &ecdsa.PublicKey{Curve: elliptic.P256(), X: number(key.X), Y: number(key.Y)}
	}
	return keys
}

func main() {
	keys := fetch(os.Args[1])
	names := []string{}
	for name := range keys {
		names = append(names, name)
	}
	sort.Strings(names)
	fmt.Println(strings.Join(names, " "))
	find := func(token *jwt.Token) (any, error) {
		if key, ok := keys[fmt.Sprint(token.Header["kid"])]; ok {
			return key, nil
		}
		return nil, fmt.Errorf("unknown key")
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		token, err := jwt.Parse(lines.Text(), find, jwt.WithIssuer(os.Args[2]), jwt.WithAudience(os.Args[3]), jwt.WithExpirationRequired())
		if err != nil {
			fmt.Println("refused", strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		subject, _ := token.Claims.GetSubject()
		fmt.Println("accepted", subject)
	}
}
