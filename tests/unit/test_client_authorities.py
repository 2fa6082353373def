"""Which client certificates the CA file vouches for, whatever tool made its authorities."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from identity.tls import ClientAuthorityFile

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
KEYS = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("root", "middle", "client")}

AUTHORITY = x509.BasicConstraints(ca=True, path_length=None)
NO_AUTHORITY = x509.BasicConstraints(ca=False, path_length=None)

pytestmark = pytest.mark.requirement("R31")


def usage(*, signs: bool) -> x509.KeyUsage:
    flags = dict.fromkeys(
        (
            *("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"),
            *("encipher_only", "decipher_only"),
        ),
        False,
    )
    return x509.KeyUsage(digital_signature=True, key_cert_sign=signs, **flags)


def make(name: str, issuer: str, *extensions: x509.ExtensionType) -> x509.Certificate:
    subject, signer = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, issuer)]
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(signer).public_key(KEYS[name].public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return builder.sign(KEYS[issuer], hashes.SHA256())


def is_trusted(path: Path, authority: x509.Certificate, *chain: x509.Certificate) -> bool:
    file = path / "clients.pem"
    file.write_bytes(authority.public_bytes(Encoding.PEM))
    return ClientAuthorityFile(str(file)).is_trusted(list(chain), NOW)


@pytest.mark.parametrize(
    "extensions",
    [
        [AUTHORITY],
        [AUTHORITY, usage(signs=True)],
        [AUTHORITY, x509.SubjectKeyIdentifier.from_public_key(KEYS["root"].public_key())],
    ],
)
def test_an_authority_of_any_make_vouches_for_its_clients(tmp_path: Path, extensions: list[x509.ExtensionType]) -> None:
    root = make("root", "root", *extensions)
    assert is_trusted(tmp_path, root, make("client", "root"))
    assert is_trusted(tmp_path, root, make("client", "root", NO_AUTHORITY, usage(signs=False)))


def test_an_authority_between_vouches_too(tmp_path: Path) -> None:
    root, middle = make("root", "root", AUTHORITY), make("middle", "root", AUTHORITY)
    assert is_trusted(tmp_path, root, make("client", "middle"), middle)
    assert not is_trusted(tmp_path, root, make("client", "middle"))


@pytest.mark.parametrize("extensions", [[], [NO_AUTHORITY], [AUTHORITY, usage(signs=False)]])
def test_who_is_no_authority_vouches_for_nobody(tmp_path: Path, extensions: list[x509.ExtensionType]) -> None:
    root = make("root", "root", AUTHORITY)
    assert not is_trusted(tmp_path, root, make("client", "middle"), make("middle", "root", *extensions))
    assert not is_trusted(tmp_path, make("root", "root", *extensions), make("client", "root"))


def test_another_key_under_the_same_name_vouches_for_nobody(tmp_path: Path) -> None:
    client = make("client", "root")
    KEYS["root"], kept = ec.generate_private_key(ec.SECP256R1()), KEYS["root"]
    other = make("root", "root", AUTHORITY)
    KEYS["root"] = kept
    assert not is_trusted(tmp_path, other, client)


def test_without_a_file_nobody_is_trusted(tmp_path: Path) -> None:
    client = make("client", "root")
    assert not ClientAuthorityFile("").is_trusted([client], NOW)
    assert not ClientAuthorityFile(str(tmp_path / "gone.pem")).is_trusted([client], NOW)
    (tmp_path / "empty.pem").touch()
    assert not ClientAuthorityFile(str(tmp_path / "empty.pem")).is_trusted([client], NOW)
