"""Client certificates: the names in them, in which order, and until when they hold."""

from __future__ import annotations

import base64
import datetime
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from identity.domain.certificates import (
    MAXIMUM_NAMES,
    ClientCertificate,
    dns_name,
    read_certificate,
    spiffe_name,
)
from identity.domain.refusals import Cause, Rejected
from identity_client.errors import InvalidRequest
from tests.rpc.certificates import Authority

CLIENTS = Authority("client ca")
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
SECOND = datetime.timedelta(seconds=1)

pytestmark = pytest.mark.requirement("R31")


class Trust:
    """Authorities that trust, or do not."""

    def __init__(self, is_given: bool = True) -> None:
        self._is_given = is_given
        self.asked_at: list[datetime.datetime] = []

    def is_trusted(self, _: list[x509.Certificate], now: datetime.datetime) -> bool:
        self.asked_at.append(now)
        return self._is_given


def issue(*names: x509.GeneralName) -> bytes:
    return CLIENTS.issue_client(*names)[0]


def names_of(*names: x509.GeneralName) -> tuple[str, ...]:
    return read_certificate(issue(*names), Trust(), NOW).names


def cause_of(chain: bytes | None, now: datetime.datetime = NOW, *, is_trusted: bool = True) -> Cause:
    with pytest.raises(Rejected) as refused:
        read_certificate(chain, Trust(is_trusted), now)
    return refused.value.cause


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def dns(text: str) -> x509.GeneralName:
    return x509.DNSName(text)


def test_spiffe_ids_come_before_dns_names() -> None:
    names = names_of(dns("b.internal"), uri("spiffe://prod/orders"), dns("a.internal"), uri("spiffe://prod/a"))
    assert names == ("spiffe://prod/orders", "spiffe://prod/a", "dns:b.internal", "dns:a.internal")


def test_dns_names_are_compared_in_lower_case_and_spiffe_paths_as_written() -> None:
    names = names_of(dns("Orders.Internal"), uri("spiffe://prod/Orders"))
    assert names == ("spiffe://prod/Orders", "dns:orders.internal")


@pytest.mark.parametrize(
    "text",
    ["https://prod/orders", "spiffe:prod", "spiffe://PROD/orders", "spiffe://prod/../admin?x", "spiffe://prod//orders"],
)
def test_other_uris_are_no_names(text: str) -> None:
    assert names_of(uri(text)) == ()


def test_the_common_name_and_an_address_are_no_names() -> None:
    # issue_client gives the common name "orders" to every certificate
    assert names_of(x509.RFC822Name("orders@internal")) == ()


def test_a_wildcard_in_a_certificate_names_only_itself_and_cannot_be_registered() -> None:
    assert names_of(dns("*.internal")) == ("dns:*.internal",)
    with pytest.raises(InvalidRequest):
        dns_name("*.internal", "dns_name")


def test_a_certificate_without_names_has_none() -> None:
    certificate, _ = CLIENTS.issue_client()
    assert read_certificate(certificate, Trust(), NOW).names == ()


def test_no_more_names_are_looked_up_than_a_few() -> None:
    assert len(names_of(*(dns(f"n{number}.internal") for number in range(MAXIMUM_NAMES + 10)))) == MAXIMUM_NAMES


def test_the_thumbprint_is_that_of_rfc_8705() -> None:
    certificate = issue(dns("orders.internal"))
    der = x509.load_pem_x509_certificate(certificate).public_bytes(Encoding.DER)
    expected = base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()
    assert read_certificate(certificate, Trust(), NOW) == ClientCertificate(("dns:orders.internal",), expected)


def test_the_first_certificate_of_a_chain_is_the_clients() -> None:
    chain = issue(dns("orders.internal")) + CLIENTS.certificate
    assert read_certificate(chain, Trust(), NOW).names == ("dns:orders.internal",)


def test_it_holds_from_its_first_second_until_its_last() -> None:
    pem = issue(dns("orders.internal"))
    certificate = x509.load_pem_x509_certificate(pem)
    first, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    assert read_certificate(pem, Trust(), first)
    assert read_certificate(pem, Trust(), end - SECOND)
    assert cause_of(pem, first - SECOND) is Cause.CERTIFICATE_EXPIRED
    assert cause_of(pem, end) is Cause.CERTIFICATE_EXPIRED


def test_its_authority_is_asked_about_now() -> None:
    trust, now = Trust(), NOW + DAY / 2
    read_certificate(issue(dns("orders.internal")), trust, now)
    assert trust.asked_at == [now]


def test_each_cause_is_told_apart() -> None:
    pem = issue(dns("orders.internal"))
    assert cause_of(None) is Cause.CERTIFICATE_MISSING
    assert cause_of(pem, is_trusted=False) is Cause.CERTIFICATE_UNTRUSTED
    assert cause_of(b"not PEM") is Cause.CERTIFICATE_UNREGISTERED
    assert cause_of(b"") is Cause.CERTIFICATE_UNREGISTERED


def test_names_that_stand_twice_in_a_certificate_are_none() -> None:
    names = x509.SubjectAlternativeName([dns("orders.internal")])
    others = x509.SubjectAlternativeName([dns("admin.internal")])
    assert cause_of(CLIENTS.issue_with_extensions(names, others)) is Cause.CERTIFICATE_UNREGISTERED


@pytest.mark.parametrize("text", ["spiffe://prod", "spiffe://prod/orders", "spiffe://a.b-c_d/Ns/x.y-z_1"])
def test_a_spiffe_id_is_registered_as_it_is_written(text: str) -> None:
    assert spiffe_name(text, "spiffe_id") == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe://prod/",
        "spiffe:///orders",
        "SPIFFE://prod/orders",
        "spiffe://Prod/orders",
        "spiffe://prod/orders ",
        "spiffe://prod/orders\n",
        "spiffe://prod/or%20ders",
        "spiffe://prod/orders?x=1",
        "spiffe://prod/orders#x",
        "spiffe://user@prod/orders",
        "spiffe://prod:8080/orders",
        "spiffe://prod/" + "a" * 256,
        "spiffe://prod" + "/a" * 17,
        "https://prod/orders",
        "dns:orders",
    ],
)
def test_what_is_no_spiffe_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        spiffe_name(text, "spiffe_id")
    assert refused.value.field == "spiffe_id"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("orders", "dns:orders"),
        ("Orders.Internal", "dns:orders.internal"),
        ("orders.internal.", "dns:orders.internal"),
        ("_grpc._tcp.orders", "dns:_grpc._tcp.orders"),
        ("a" * 63 + ".b", "dns:" + "a" * 63 + ".b"),
    ],
)
def test_a_dns_name_is_registered_in_lower_case_without_its_last_dot(text: str, name: str) -> None:
    assert dns_name(text, "dns_name") == name


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "..", "a..b", "-a", "a-", "*", "*.a", "a b", "a\n", "a/b", "spiffe://a/b", "\u00e4.internal"),
        "a" * 64,
        ".".join(["a" * 63] * 4),
    ],
)
def test_what_is_no_dns_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        dns_name(text, "dns_name")
    assert refused.value.field == "dns_name"
