// node verify.mjs URL ISSUER AUDIENCE: reads the JWK Set, says which keys it has, then judges one token a line.
import { createRemoteJWKSet, jwtVerify } from "jose";
import { createInterface } from "node:readline";

const [url, issuer, audience] = process.argv.slice(2);
const keys = createRemoteJWKSet(new URL(url));
await keys.reload();
console.log(keys.jwks().keys.map((key) => key.kid).sort().join(" "));
for await (const token of createInterface({ input: process.stdin })) {
  try {
    const { payload } = await jwtVerify(token, keys, { issuer, audience, typ: "at+jwt" });
    console.log(`accepted ${payload.sub}`);
  } catch (error) {
    console.log(`refused ${error.code ?? error.name}`);
  }
}
