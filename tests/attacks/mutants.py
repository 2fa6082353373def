"""Every way we know to be not quite a token. A mutant gets a Forger and returns a text that must be refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import zlib
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from identity_client.tokens.keys import PublicKey, base64url
from tests.attacks.forger import ORDER, Forger, as_bytes, der_signature

Mutant = Callable[[Forger], str]

SHAPE: dict[str, Mutant] = {}
HEADER: dict[str, Mutant] = {}
SIGNATURE: dict[str, Mutant] = {}
CLAIMS: dict[str, Mutant] = {}

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

# -- the text's shape ------------------------------------------------------------------------------------------------


def _at_random(edit: Callable[[str, int, str], str]) -> Mutant:
    def mutate(forger: Forger) -> str:
        good = forger.good()
        while (text := edit(good, forger.chance.randrange(len(good)), forger.chance.choice(ALPHABET))) == good:
            continue
        return text

    return mutate


def _loosened(segment: int) -> Mutant:
    """The same bytes in base64url that is not canonical: an unused bit is set."""

    def mutate(forger: Forger) -> str:
        while True:
            parts = forger.claim("pad", "x" * forger.chance.randrange(9)).split(".")
            if len(parts[segment]) % 4:
                last = ALPHABET.index(parts[segment][-1])
                parts[segment] = parts[segment][:-1] + ALPHABET[last ^ 1]
                return ".".join(parts)

    return mutate


def _json_serialisation(forger: Forger) -> str:
    protected, payload, signature = forger.good().split(".")
    return json.dumps({"protected": protected, "payload": payload, "signature": signature})


SHAPE |= {
    "empty": lambda f: "",
    "no dot": lambda f: "abc",
    "one dot": lambda f: ".".join(f.good().split(".")[:2]),
    "only dots": lambda f: "..",
    "four segments": lambda f: f.good() + ".",
    "five segments": lambda f: f.good() + ".AAAA.AAAA",
    "leading space": lambda f: " " + f.good(),
    "trailing newline": lambda f: f.good() + "\n",
    "trailing carriage return": lambda f: f.good() + "\r",
    "inner space": _at_random(lambda text, at, _: text[:at] + " " + text[at:]),
    "inner newline": _at_random(lambda text, at, _: text[:at] + "\n" + text[at:]),
    "zero byte": _at_random(lambda text, at, _: text[:at] + "\0" + text[at:]),
    "zero-width space": _at_random(lambda text, at, _: text[:at] + "\u200b" + text[at:]),
    "lone surrogate": _at_random(lambda text, at, _: text[:at] + "\ud800" + text[at:]),
    "full-width character": _at_random(lambda text, at, c: text[:at] + chr(ord(c) + 0xFEE0) + text[at + 1 :]),
    "padded signature": lambda f: f.good() + "==",
    "one pad": lambda f: f.good() + "=",
    "padded payload": lambda f: "{}.{}=.{}".format(*f.good().split(".")),
    "padded header": lambda f: "{}=.{}.{}".format(*f.good().split(".")),
    "standard alphabet": _at_random(lambda text, at, _: text[:at] + "+" + text[at + 1 :]),
    "slash": _at_random(lambda text, at, _: text[:at] + "/" + text[at + 1 :]),
    "percent encoded": lambda f: f.good().replace(".", "%2E"),
    "quoted": lambda f: f'"{f.good()}"',
    "with its scheme": lambda f: "Bearer " + f.good(),
    "twice": lambda f: f.good() + "," + f.good(),
    "JSON serialisation": _json_serialisation,
    "upper case": lambda f: f.good().upper(),
    "lower case": lambda f: f.good().lower(),
    "reversed": lambda f: f.good()[::-1],
    "header and payload swapped": lambda f: "{1}.{0}.{2}".format(*f.good().split(".")),
    "no header": lambda f: "." + f.good().split(".", 1)[1],
    "no payload": lambda f: "{0}..{2}".format(*f.good().split(".")),
    "no signature": lambda f: f.good().rpartition(".")[0] + ".",
    "a changed character": _at_random(lambda text, at, c: text[:at] + c + text[at + 1 :]),
    "an added character": _at_random(lambda text, at, c: text[:at] + c + text[at:]),
    "a missing character": _at_random(lambda text, at, _: text[:at] + text[at + 1 :]),
    "cut short": _at_random(lambda text, at, _: text[:at]),
    "two halves of two tokens": lambda f: f.good().rpartition(".")[0] + "." + f.good().rpartition(".")[2],
    "loose bits in the payload": _loosened(1),
    "loose bits in the signature": _loosened(2),
    "too long": lambda f: f.claim("pad", "x" * 4_000),
    "a million dots": lambda f: "." * 1_000_000,
    "a megabyte of header": lambda f: "A" * 1_000_000 + ".AAAA.AAAA",
    "a refresh token": lambda f: "idr_" + "".join(f.chance.choices(ALPHABET[:62], k=76)),
}

# -- the header ------------------------------------------------------------------------------------------------------


def _unsigned(algorithm: object) -> Mutant:
    return lambda f: f.sign(f.header() | {"alg": algorithm}, f.payload()).rpartition(".")[0] + "."


def _member(name: str, value: object) -> Mutant:
    return lambda f: f.member(name, value)


def _keyed(key_of: Callable[[PublicKey], bytes]) -> Mutant:
    """HS256 with the public key as its secret."""

    def mutate(forger: Forger) -> str:
        signing_input = forger.sign(forger.header() | {"alg": "HS256"}, forger.payload()).rpartition(".")[0]
        mac = hmac.digest(key_of(forger.issuer.public_key), signing_input.encode(), hashlib.sha256)
        return f"{signing_input}.{base64url(mac)}"

    return mutate


def _written(text: Callable[[str, str], str]) -> Mutant:
    """A header in other bytes: *text* gets the good header's text and the key's name."""
    return lambda f: f.sign(text(as_bytes(f.header()).decode(), f.issuer.public_key.key_id).encode(), f.payload())


def _jwk(forger: Forger) -> dict[str, str]:
    key = PublicKey.from_key(forger.stranger.public_key())
    return {"kty": "EC", "crv": "P-256", "x": base64url(key.x), "y": base64url(key.y)}


def _strangers(**members: Any) -> Mutant:
    return lambda f: f.sign_with(
        f.stranger,
        f.header() | {name: value(f) if callable(value) else value for name, value in members.items()},
        f.payload(),
    )


_ALGORITHMS = ("HS256", "HS384", "HS512", "RS256", "PS256", "ES384", "ES512", "ES256K", "EdDSA", "es256", "ES256 ", "")

HEADER |= {f"alg {name!r}": _member("alg", name) for name in _ALGORITHMS}
HEADER |= {f"alg {name!r} without signature": _unsigned(name) for name in ("none", "None", "NONE", "nOnE", "")}
HEADER |= {
    "alg none with a signature": lambda f: f.member("alg", "none"),
    "alg null": lambda f: f.member("alg", None),
    "alg a list": lambda f: f.member("alg", ["ES256"]),
    "alg a number": lambda f: f.member("alg", 1),
    "no alg": lambda f: f.sign({key: value for key, value in f.header().items() if key != "alg"}, f.payload()),
    "HS256 keyed with the PEM": _keyed(
        lambda key: key.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    ),
    "HS256 keyed with the DER": _keyed(
        lambda key: key.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ),
    "HS256 keyed with the point": _keyed(lambda key: b"\x04" + key.x + key.y),
    "HS256 keyed with the coordinate": _keyed(lambda key: key.x),
    "HS256 keyed with nothing": _keyed(lambda key: b""),
    "HS256 keyed with the JWK": _keyed(
        lambda key: json.dumps({"kty": "EC", "crv": "P-256", "x": base64url(key.x), "y": base64url(key.y)}).encode()
    ),
    "typ JWT": lambda f: f.member("typ", "JWT"),
    "typ in capitals": lambda f: f.member("typ", "AT+JWT"),
    "typ with its media type": lambda f: f.member("typ", "application/at+jwt"),
    "typ of a refresh token": lambda f: f.member("typ", "rt+jwt"),
    "no typ": lambda f: f.sign({key: value for key, value in f.header().items() if key != "typ"}, f.payload()),
    "no kid": lambda f: f.sign({key: value for key, value in f.header().items() if key != "kid"}, f.payload()),
    "kid empty": lambda f: f.member("kid", ""),
    "kid a path": lambda f: f.member("kid", "../../../../../../../../etc/passwd/AAAAAAAAA"),
    "kid SQL": lambda f: f.member("kid", "x' UNION SELECT 'key' FROM signing_keys; --"),
    "kid a URL": lambda f: f.member("kid", "https://attacker.example/keys/1234567890.pem"),
    "kid long": lambda f: f.member("kid", "A" * 2_000),
    "kid a number": lambda f: f.member("kid", 7),
    "kid a list": lambda f: f.member("kid", [f.issuer.public_key.key_id]),
    "kid unknown": lambda f: f.member("kid", "".join(f.chance.choices(ALPHABET, k=43))),
    "kid with a newline": lambda f: f.member("kid", f.issuer.public_key.key_id[:-1] + "\n"),
    "a stranger's key under our kid": lambda f: f.sign_with(f.stranger, f.header(), f.payload()),
    "a stranger's key under its own kid": _strangers(kid=lambda f: PublicKey.from_key(f.stranger.public_key()).key_id),
    "a stranger's jwk": _strangers(jwk=_jwk),
    "a stranger's jwk and alg none": _strangers(jwk=_jwk, alg="none"),
    "jku": _strangers(jku="https://attacker.example/jwks.json"),
    "jku of a file": _strangers(jku="file:///etc/passwd"),
    "x5u": _strangers(x5u="https://attacker.example/cert.pem"),
    "x5c": _strangers(x5c=["MIIB"]),
    "x5t": lambda f: f.member("x5t#S256", "A" * 43),
    "our own jwk": lambda f: f.member("jwk", {"kty": "EC"}),
    "crit unknown": lambda f: f.member("crit", ["exp-2030"]),
    "crit empty": lambda f: f.member("crit", []),
    "crit b64": lambda f: f.sign(f.header() | {"b64": False, "crit": ["b64"]}, f.payload()),
    "b64 false": lambda f: f.member("b64", False),
    "zip": lambda f: f.member("zip", "DEF"),
    "cty": lambda f: f.member("cty", "JWT"),
    "nonce": lambda f: f.member("nonce", "A"),
    "enc of a JWE": lambda f: f.member("enc", "A256GCM"),
    "header twice alg": _written(lambda text, kid: '{"alg":"none",' + text[1:]),
    "header twice kid": _written(lambda text, kid: text[:-1] + f',"kid":"{kid}"}}'),
    "header with spaces": _written(lambda text, kid: text.replace(",", ", ")),
    "header in another order": _written(lambda text, kid: f'{{"typ":"at+jwt","alg":"ES256","kid":"{kid}"}}'),
    "header with an escape": _written(lambda text, kid: text.replace('"alg"', '"\\u0061lg"')),
    "header a list": _written(lambda text, kid: f"[{text}]"),
    "header a text": _written(lambda text, kid: json.dumps(text)),
    "header with a byte order mark": _written(lambda text, kid: "\ufeff" + text),
    "header with a tail": _written(lambda text, kid: text + "{}"),
    "header with a newline": _written(lambda text, kid: text + "\n"),
    "header in capitals": _written(lambda text, kid: text.replace('"alg"', '"ALG"')),
    "header no JSON": _written(lambda text, kid: "alg=ES256"),
}

# -- the signature ---------------------------------------------------------------------------------------------------


def _numbers(change: Callable[[int, int], tuple[int, int]]) -> Mutant:
    def of_bytes(raw: bytearray) -> bytes:
        r, s = change(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
        return (r % 2**256).to_bytes(32, "big") + (s % 2**256).to_bytes(32, "big")

    return lambda f: f.resigned(of_bytes)


def _der(forger: Forger) -> str:
    signing_input = forger.good().rpartition(".")[0]
    return f"{signing_input}.{base64url(der_signature(forger.issuer.key.private_key, signing_input.encode()))}"


def _flipped(forger: Forger) -> str:
    def flip(raw: bytearray) -> bytearray:
        raw[forger.chance.randrange(64)] ^= 1 << forger.chance.randrange(8)
        return raw

    return forger.resigned(flip)


SIGNATURE |= {
    "high s": _numbers(lambda r, s: (r, ORDER - s)),
    "zeros": _numbers(lambda r, s: (0, 0)),
    "r zero": _numbers(lambda r, s: (0, s)),
    "s zero": _numbers(lambda r, s: (r, 0)),
    "r the order": _numbers(lambda r, s: (ORDER, s)),
    "s the order": _numbers(lambda r, s: (r, ORDER)),
    "r and s the order": _numbers(lambda r, s: (ORDER, ORDER)),
    "r plus the order": _numbers(lambda r, s: (r + ORDER, s)),
    "s plus the order": _numbers(lambda r, s: (r, s + ORDER)),
    "r negated": _numbers(lambda r, s: (ORDER - r, s)),
    "both negated": _numbers(lambda r, s: (ORDER - r, ORDER - s)),
    "ones": _numbers(lambda r, s: (1, 1)),
    "r and s swapped": _numbers(lambda r, s: (s, r)),
    "all bits": _numbers(lambda r, s: (-1, -1)),
    "a byte less": lambda f: f.resigned(lambda raw: raw[:-1]),
    "a byte more": lambda f: f.resigned(lambda raw: raw + b"\0"),
    "a zero in front": lambda f: f.resigned(lambda raw: b"\0" + raw),
    "half": lambda f: f.resigned(lambda raw: raw[:32]),
    "random": lambda f: f.resigned(lambda raw: f.chance.randbytes(64)),
    "DER": _der,
    "a flipped bit": _flipped,
    "another token's": lambda f: f.good().rpartition(".")[0] + "." + f.good().rpartition(".")[2],
    "over the payload alone": lambda f: (
        f.good().rpartition(".")[0] + "." + f.sign_with(f.issuer.key.private_key, b"{}", f.payload()).rpartition(".")[2]
    ),
    "a payload changed after signing": lambda f: ".".join(
        (f.good().split(".")[0], base64url(as_bytes(f.payload() | {"roles": ["admin"]})), f.good().split(".")[2])
    ),
}

# -- the claims, rightly signed --------------------------------------------------------------------------------------

_TIMES = {
    "text": lambda now: str(now),
    "a fraction": lambda now: now + 0.5,
    "a whole fraction": lambda now: float(now),
    "true": lambda now: True,
    "null": lambda now: None,
    "zero": lambda now: 0,
    "negative": lambda now: -now,
    "beyond 2**53": lambda now: 2**53,
    "huge": lambda now: 10**400,
    "a list": lambda now: [now],
    "an object": lambda now: {"time": now},
}
_NAMES = {
    "empty": "",
    "a space": "a b",
    "a newline": "a\nb",
    "a zero byte": "a\0b",
    "not ASCII": "\u00e4",
    "129 characters": "a" * 129,
    "a number": 7,
    "null": None,
    "true": True,
    "a list": ["orders"],
    "an object": {"a": "b"},
}
_IDS = {
    "empty": "",
    "21 characters": "A" * 21,
    "23 characters": "A" * 23,
    "loose bits": "A" * 21 + "B",
    "padded": "A" * 22 + "==",
    "foreign characters": "A" * 20 + "+/",
    "a number": 7,
    "null": None,
    "a list": ["A" * 22],
}
_VERSIONS = {
    "text": "1",
    "zero": 0,
    "negative": -1,
    "a fraction": 1.5,
    "true": True,
    "null": None,
    "beyond 2**53": 2**53,
}
_SCOPES = {
    "empty": "",
    "a list": ["a"],
    "two spaces": "a  b",
    "a leading space": " a",
    "a trailing space": "a ",
    "a quotation mark": 'a"b',
    "a tab": "a\tb",
    "not ASCII": "\u00e4",
    "65 scopes": " ".join(f"s{n}" for n in range(65)),
    "null": None,
}
_ROLES = {
    "a text": "admin",
    "empty": [],
    "capitals": ["Admin"],
    "nested": [["admin"]],
    "a number": [1],
    "null in it": [None],
    "an object": {"admin": True},
    "65 roles": [f"r{n}" for n in range(65)],
    "a space": ["a b"],
    "empty name": [""],
}


def _without(name: str) -> Mutant:
    return lambda f: f.without(name)


def _claims(name: str, values: dict[str, Any]) -> dict[str, Mutant]:
    def one(value: Any) -> Mutant:
        return lambda f: f.claim(name, value(int(f.issuer._clock.now())) if callable(value) else value)

    return {f"{name} {what}": one(value) for what, value in values.items()}


CLAIMS |= _claims("exp", _TIMES) | _claims("iat", _TIMES) | _claims("auth_time", _TIMES)
CLAIMS |= _claims("sub", _NAMES) | _claims("aud", _NAMES) | _claims("client_id", _NAMES) | _claims("iss", _NAMES)
CLAIMS |= _claims("jti", _IDS) | _claims("sid", _IDS)
CLAIMS |= _claims("gen", _VERSIONS) | _claims("pol", _VERSIONS)
CLAIMS |= _claims("scope", _SCOPES) | _claims("roles", _ROLES) | _claims("amr", _ROLES)
CLAIMS |= {
    f"no {name}": _without(name)
    for name in ("iss", "sub", "aud", "exp", "iat", "jti", "client_id", "sid", "gen", "pol")
}
CLAIMS |= {
    "exp past": lambda f: f.sign(f.header(), f.payload() | _life(f, -700, -100)),
    "exp and leeway just past": lambda f: f.sign(f.header(), f.payload() | _life(f, -600, -5)),
    "exp before iat": lambda f: f.sign(f.header(), f.payload() | _life(f, 0, -1)),
    "exp at iat": lambda f: f.sign(f.header(), f.payload() | _life(f, 0, 0)),
    "a life over an hour": lambda f: f.sign(f.header(), f.payload() | _life(f, 0, 3_601)),
    "a life of years": lambda f: f.sign(f.header(), f.payload() | _life(f, 0, 10**9)),
    "iat in the future": lambda f: f.sign(f.header(), f.payload() | _life(f, 6, 600)),
    "nbf": lambda f: f.claim("nbf", 1),
    "nbf in the future": lambda f: f.claim("nbf", 2**40),
    "cnf of another form": lambda f: f.claim("cnf", "A"),
    "cnf as null": lambda f: f.claim("cnf", None),
    "cnf as a list": lambda f: f.claim("cnf", ["A" * 43]),
    "cnf without a member": lambda f: f.claim("cnf", {}),
    "cnf of another kind": lambda f: f.claim("cnf", {"jkt": "A" * 43}),
    "cnf of two kinds": lambda f: f.claim("cnf", {"x5t#S256": "A" * 43, "jkt": "A" * 43}),
    "cnf too short": lambda f: f.claim("cnf", {"x5t#S256": "A" * 42}),
    "cnf not canonical": lambda f: f.claim("cnf", {"x5t#S256": "A" * 42 + "B"}),
    "cnf as a list of texts": lambda f: f.claim("cnf", {"x5t#S256": ["A" * 43]}),
    "cnf nested": lambda f: f.claim("cnf", {"x5t#S256": {"x5t#S256": "A" * 43}}),
    "an object outside cnf": lambda f: f.claim("extra", {"x5t#S256": "A" * 43}),
    "lim as a text": lambda f: f.claim("lim", "true"),
    "lim as a number": lambda f: f.claim("lim", 1),
    "lim as false": lambda f: f.claim("lim", False),
    "lim as null": lambda f: f.claim("lim", None),
    "act as a text": lambda f: f.claim("act", "A" * 22),
    "act as null": lambda f: f.claim("act", None),
    "act as a list": lambda f: f.claim("act", [{"sub": "A" * 22}]),
    "act without a sub": lambda f: f.claim("act", {}),
    "act whose sub is no text": lambda f: f.claim("act", {"sub": 1}),
    "act whose sub has a space": lambda f: f.claim("act", {"sub": "a b"}),
    "act with another member": lambda f: f.claim("act", {"sub": "A" * 22, "iss": "x"}),
    "act without the nearest": lambda f: f.claim("act", {"act": {"sub": "A" * 22}}),
    "act of five": lambda f: f.claim("act", nested(5)),
    "act of a hundred": lambda f: f.claim("act", nested(100)),
    "act that never ends": lambda f: f.claim("act", {"sub": "a", "act": {"sub": "a", "act": None}}),
    "iss part of ours": lambda f: f.claim("iss", f.payload()["iss"][:-1]),
    "iss longer than ours": lambda f: f.claim("iss", f.payload()["iss"] + ".attacker.example"),
    "iss with a slash": lambda f: f.claim("iss", f.payload()["iss"] + "/"),
    "iss in capitals": lambda f: f.claim("iss", f.payload()["iss"].upper()),
    "aud of another service": lambda f: f.claim("aud", "billing"),
    "aud part of ours": lambda f: f.claim("aud", "order"),
    "aud longer than ours": lambda f: f.claim("aud", "orders2"),
    "aud in capitals": lambda f: f.claim("aud", "ORDERS"),
    "aud also ours": lambda f: f.claim("aud", ["billing", "orders"]),
    "an unknown object": lambda f: f.claim("extra", {"a": 1}),
    "an unknown fraction": lambda f: f.claim("extra", 0.5),
    "an unknown list of numbers": lambda f: f.claim("extra", [1]),
    "sub twice": lambda f: f.raw_payload(lambda text: '{"sub":"' + "A" * 22 + '",' + text[1:]),
    "exp twice": lambda f: f.raw_payload(lambda text: text[:-1] + ',"exp":9007199254740990}'),
    "roles twice": lambda f: f.raw_payload(lambda text: text[:-1] + ',"roles":["admin"]}'),
    "the same claim twice": lambda f: f.raw_payload(lambda text: text[:-1] + ',"gen":1}'),
    "white space": lambda f: f.raw_payload(lambda text: text.replace(",", ", ")),
    "a leading space": lambda f: f.raw_payload(lambda text: " " + text),
    "a trailing newline": lambda f: f.raw_payload(lambda text: text + "\n"),
    "an escape": lambda f: f.raw_payload(lambda text: text.replace('"sub"', '"\\u0073ub"')),
    "NaN": lambda f: f.raw_payload(lambda text: text.replace('"gen":1', '"gen":NaN')),
    "Infinity": lambda f: f.raw_payload(lambda text: text.replace('"gen":1', '"gen":Infinity')),
    "an exponent": lambda f: f.raw_payload(lambda text: text.replace('"gen":1', '"gen":1e0')),
    "minus zero": lambda f: f.raw_payload(lambda text: text[:-1] + ',"extra":-0}'),
    "a tail": lambda f: f.raw_payload(lambda text: text + "{}"),
    "a comment": lambda f: f.raw_payload(lambda text: text + "/**/"),
    "single quotes": lambda f: f.raw_payload(lambda text: text.replace('"', "'")),
    "a list of it": lambda f: f.raw_payload(lambda text: f"[{text}]"),
    "a text of it": lambda f: f.raw_payload(json.dumps),
    "pairs": lambda f: f.sign(f.header(), list(map(list, f.payload().items()))),
    "nothing": lambda f: f.sign(f.header(), b""),
    "null": lambda f: f.sign(f.header(), b"null"),
    "an empty object": lambda f: f.sign(f.header(), {}),
    "a byte order mark": lambda f: f.sign(f.header(), b"\xef\xbb\xbf" + as_bytes(f.payload())),
    "UTF-16": lambda f: f.sign(f.header(), as_bytes(f.payload()).decode().encode("utf-16")),
    "not UTF-8": lambda f: f.sign(f.header(), as_bytes(f.payload()).replace(b"clerk", b"cl\xffrk")),
    "deep nesting": lambda f: f.sign(f.header(), b"[" * 1_400),
    "deep objects": lambda f: f.sign(f.header(), b'{"a":' * 500),
    "an endless number": lambda f: f.sign(f.header(), b'{"exp":' + b"9" * 2_700 + b"}"),
    "base64 of base64": lambda f: f.sign(f.header(), base64.urlsafe_b64encode(as_bytes(f.payload()))),
    "compressed": lambda f: f.sign(f.header(), zlib.compress(as_bytes(f.payload()))),
}


def _life(forger: Forger, start: int, end: int) -> dict[str, int]:
    now = int(forger.issuer._clock.now())
    return {"iat": now + start, "exp": now + end}


def nested(depth: int) -> dict[str, Any]:
    """An actor claim of *depth* actors."""
    return {"sub": "a", "act": nested(depth - 1)} if depth > 1 else {"sub": "a"}


ALL: dict[str, Mutant] = {
    f"{group}: {name}": mutant
    for group, mutants in (("shape", SHAPE), ("header", HEADER), ("signature", SIGNATURE), ("claims", CLAIMS))
    for name, mutant in mutants.items()
}
