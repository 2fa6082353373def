"""Throw-away certificates for TLS tests."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

Pair: TypeAlias = tuple[bytes, bytes]

_DAY = datetime.timedelta(days=1)


@dataclass
class Authority:
    """A certificate authority and what it signs."""

    name: str

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(self.name)
        builder = _builder(self._name, self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def issue(self, common_name: str) -> Pair:
        """-> (certificate, private key), PEM, for localhost."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName(
            [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        builder = _builder(_name(common_name), self._name, key.public_key()).add_extension(names, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        return certificate, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def issue_client(self, *names: x509.GeneralName, valid_until: datetime.datetime | None = None) -> Pair:
        """-> (certificate, private key), PEM, for a client with these names, or without the extension for none."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name("orders"), self._name, key.public_key(), valid_until)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        return certificate, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def issue_with_extensions(self, *extensions: x509.ExtensionType) -> bytes:
        """-> certificate, PEM, with extensions that no library would let stand together."""
        builder: Any = _builder(_name("orders"), self._name, ec.generate_private_key(ec.SECP256R1()).public_key())
        builder._extensions = [x509.Extension(each.oid, False, each) for each in extensions]
        return bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))


def write_pair(directory: Path, pair: Pair) -> tuple[str, str]:
    """Write server.pem and server.key (0600); -> their paths."""
    certificate, key = directory / "server.pem", directory / "server.key"
    certificate.write_bytes(pair[0])
    key.touch(0o600)
    key.write_bytes(pair[1])
    return str(certificate), str(key)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    valid_until: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(valid_until or now + _DAY)
    )
