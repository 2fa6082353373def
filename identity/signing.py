"""Signing keys in use. The one file of the service that holds a private key, and only behind the Signer port."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from identity_client.errors import DependencyDown
from identity_client.tokens import compact
from identity_client.tokens.claims import Claims
from identity_client.tokens.keys import PublicKey, base64url

from .config import ConfigurationError
from .domain.ports import SigningKeyStore
from .domain.values import KeyState, Seconds, SigningKeyRecord
from .lasting import not_opened
from .storage.sealing import MasterKey, SealBroken, signing_key_context

_log = logging.getLogger(__name__)

_ALGORITHM = ec.ECDSA(hashes.SHA256())


class LocalSigner:
    """An ES256 key in this process's memory."""

    def __init__(self, key_id: str, private_key: ec.EllipticCurvePrivateKey) -> None:
        self.key_id = key_id
        self._private_key = private_key

    def sign(self, claims: Claims) -> str:
        """The token's text, its signature with s in the lower half. Raises ValueError: *claims* name another key."""
        if claims.key_id != self.key_id:
            raise ValueError("the claims name another key")
        signing_input = compact.signing_input(claims)
        r, s = decode_dss_signature(self._private_key.sign(signing_input, _ALGORITHM))
        signature = compact.low_s(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
        return f"{signing_input.decode('ascii')}.{base64url(signature)}"


class ActiveSigner:
    """The active key of the service, whichever that is at the moment.

    It changes hands between two signatures: whoever names the key in claims and signs them does both in one step of
    the event loop.
    """

    def __init__(self, active: SigningKeyRecord, master: MasterKey, is_revoked: Callable[[str], bool]) -> None:
        """*is_revoked* tells of keys that are known to be: none of them signs. Raises ConfigurationError."""
        self._signer = open_key(active, master)
        self._master = master
        self._is_revoked = is_revoked

    @property
    def key_id(self) -> str:
        """The name of the key that signs now."""
        return self._signer.key_id

    def sign(self, claims: Claims) -> str:
        """See LocalSigner. Raises DependencyDown: the key is revoked, and its successor not yet known here."""
        if self._is_revoked(self._signer.key_id):
            raise DependencyDown("The signing key was revoked, and the next one is being read: repeat the call.")
        return self._signer.sign(claims)

    def adopt(self, keys: Sequence[SigningKeyRecord]) -> None:
        """Sign with the active one of *keys* from now on. Raises ConfigurationError: it does not open."""
        active = next((key for key in keys if key.state is KeyState.ACTIVE), None)
        if active is not None and active.key_id != self.key_id:
            self._signer = open_key(active, self._master)


class SignerKeys:
    """The service's keys as they are read anew: the active one goes to the signer, the public ones to the peers."""

    def __init__(self, store: SigningKeyStore, signer: ActiveSigner) -> None:
        self._store = store
        self._signer = signer

    async def read(self) -> list[PublicKey]:
        """The published keys, the oldest first. Raises DependencyDown.

        An active key that does not open leaves the signer as it is: its tokens hold while the old key is published.
        """
        keys = await self._store.list_keys()
        try:
            self._signer.adopt(keys)
        except ConfigurationError as error:
            _log.error("the active signing key cannot be used here: %s", error)
        return [PublicKey.from_coordinates(key.public_x, key.public_y) for key in keys if key.is_published]


def generate_key(master: MasterKey, now: Seconds) -> SigningKeyRecord:
    """A new active key on P-256, its private half sealed."""
    private_key = ec.generate_private_key(ec.SECP256R1())
    public_key = PublicKey.from_key(private_key.public_key())
    der = private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return SigningKeyRecord(
        key_id=public_key.key_id,
        state=KeyState.ACTIVE,
        public_x=public_key.x,
        public_y=public_key.y,
        sealed_private_key=master.seal(der, signing_key_context(public_key.key_id)),
        create_time=now,
    )


def open_key(record: SigningKeyRecord, master: MasterKey) -> LocalSigner:
    """The key of *record*, ready to sign. Raises ConfigurationError: sealed under another master key."""
    try:
        private_key = load_der_private_key(
            master.open(record.sealed_private_key, signing_key_context(record.key_id)), None
        )
    except SealBroken as error:
        raise not_opened(f"signing key {record.key_id}", error) from None
    if not isinstance(private_key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(["the database holds a signing key of another kind"])
    return LocalSigner(record.key_id, private_key)
