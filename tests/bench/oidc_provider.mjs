// node's oidc-provider as the benches measure it: in memory, one confidential client, one process.
// A token asked for with resource=urn:orders is a JWT signed by ES256, any other one is opaque. Says its port, then serves
// until its standard input ends.
import { generateKeyPairSync } from 'node:crypto'
import { createServer } from 'node:http'
import { Provider } from 'oidc-provider'

const held = new Map()

class MapAdapter {
  constructor(kind) {
    this.kind = kind
  }
  async upsert(id, payload) {
    held.set(`${this.kind}:${id}`, payload)
  }
  async find(id) {
    return held.get(`${this.kind}:${id}`)
  }
  async destroy(id) {
    held.delete(`${this.kind}:${id}`)
  }
  async consume(id) {
    held.get(`${this.kind}:${id}`).consumed = Math.floor(Date.now() / 1000)
  }
  async findByUid() {}
  async findByUserCode() {}
  async revokeByGrantId() {}
}

const key = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ format: 'jwk' })
const server = createServer()

server.listen(0, '127.0.0.1', () => {
  const provider = new Provider(`http://127.0.0.1:${server.address().port}`, {
    adapter: MapAdapter,
    jwks: { keys: [{ ...key, alg: 'ES256', use: 'sig' }] },
    cookies: { keys: ['bench'] },
    scopes: ['orders.read'],
    clients: [
      {
        client_id: 'bench',
        client_secret: process.env.BENCH_CLIENT_SECRET,
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
        id_token_signed_response_alg: 'ES256',
      },
    ],
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      introspection: { enabled: true, allowedPolicy: () => true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => undefined,
        getResourceServerInfo: () => ({
          audience: 'orders',
          scope: 'orders.read',
          accessTokenFormat: 'jwt',
          accessTokenTTL: 600,
          jwt: { sign: { alg: 'ES256' } },
        }),
      },
    },
  })
  server.on('request', provider.callback())
  console.log(JSON.stringify({ port: server.address().port, node: process.version }))
})

process.stdin.on('end', () => process.exit()).resume()
