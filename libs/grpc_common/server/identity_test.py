import ipaddress

import pytest
import trustme
from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID, ObjectIdentifier

from grpc_common.config.callers import San
from grpc_common.core.errors import printable
from grpc_common.server.identity import identity
from grpc_common.testing.certificates import issue

CA = trustme.CA()
DIRECTORY_NAME = x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web.test")]))
OTHER_NAME = x509.OtherName(ObjectIdentifier("1.2.3"), b"\x0c\x08web.test")
REGISTERED_ID = x509.RegisteredID(ObjectIdentifier("1.2.3"))


def context(*names: x509.GeneralName) -> dict[str, list[bytes]]:
    """Return what gRPC says of a caller with a certificate for `names`."""
    return {"x509_pem_cert": [issue(CA, *names)["tls.crt"]]}


@pytest.mark.parametrize(
    ("san", "known", "shown"),
    [
        (x509.DNSName("Web.TEST"), "web.test", "DNS:Web.TEST"),
        (x509.UniformResourceIdentifier("spiffe://a/B"), "spiffe://a/B", "URI:spiffe://a/B"),
        (x509.RFC822Name("Ada@Web.test"), "Ada@web.test", "email:Ada@Web.test"),
        (x509.IPAddress(ipaddress.ip_address("10.0.0.7")), "10.0.0.7", "IP:10.0.0.7"),
        (x509.IPAddress(ipaddress.ip_address("::1")), "0:0:0:0:0:0:0:1", "IP:::1"),
    ],
)
def test_name_of_each_kind(san, known, shown):
    """A certificate's name is known by what the configuration calls it, and shown with its kind."""
    caller = identity(context(san))
    assert caller.names == {str(San.parse(known))}
    assert str(caller) == shown


@pytest.mark.parametrize(
    ("san", "shown"),
    [
        (DIRECTORY_NAME, "DirectoryName"),
        (OTHER_NAME, "OtherName"),
        (REGISTERED_ID, "RegisteredID"),
    ],
)
def test_other_kinds_are_no_names(san, shown):
    """A caller is not known by a directory name, an otherName or an OID, whatever they hold."""
    caller = identity(context(san))
    assert (caller.names, str(caller)) == (frozenset(), shown)


def test_caller_without_names():
    """Without a certificate there is no caller; one without a name is called what it lacks."""
    assert identity({}) is None
    assert identity({"x509_pem_cert": []}) is None
    assert str(identity(context())) == "a caller without SANs"
    assert str(identity({"x509_pem_cert": [CA.cert_pem.bytes()]})) == "a caller without SANs"


@pytest.mark.parametrize(
    "pem", [b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\xff"]
)
def test_certificate_that_cannot_be_read(pem):
    """What is no certificate gives no name, and no exception."""
    caller = identity({"x509_pem_cert": [pem]})
    assert (caller.names, str(caller)) == (frozenset(), "a caller whose certificate can't be read")


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"web.test",
        b"\x30\x0a\x82\x08web.tes\xff",  # a DNS name that is not ASCII
        b"\x30\x07\x87\x05\x0a\x00\x00\x07\x00",  # an IP address of five bytes
        b"\x30\x0c\x82\x08web.test\xa3\x00",  # an x400Address
    ],
)
def test_names_that_are_not_what_they_say(der):
    """Broken SANs make the whole certificate unreadable: none of its names counts."""
    san = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, der)
    caller = identity({"x509_pem_cert": [issue(CA, san=san)["tls.crt"]]})
    assert (caller.names, str(caller)) == (frozenset(), "a caller whose certificate can't be read")


@pytest.mark.parametrize(
    "name", ["web.test\0.evil.test", "web.test\0", "web.test\n", "web.test ", "web.\u212a", "web.test\x7f"]
)
def test_name_that_is_almost_another(name):
    """A name with more behind a NUL, a control character or a letter that looks alike is not the other."""
    value = name.encode()
    der = bytes([0x30, len(value) + 2, 0x82, len(value)]) + value
    san = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, der)
    caller = identity({"x509_pem_cert": [issue(CA, san=san)["tls.crt"]]})
    assert caller.names.isdisjoint({"DNS:web.test", "DNS:web.k"})
    assert str(caller) == f"DNS:{printable(name)}"


def test_what_is_shown_is_printable_and_bounded():
    """Neither control characters nor thousands of long names of a certificate reach a log."""
    caller = identity(context(*[x509.DNSName(f"\x1b[31m\n\0{'x' * 5000}{n}") for n in range(10)]))
    assert caller.names == frozenset()
    assert str(caller).isprintable()
    assert len(str(caller)) < 1000
    assert str(caller).startswith(r"DNS:\x1b[31m\n\x00xxx")
    assert str(caller).endswith("... and 5 more")


def test_gRPCs_own_list_of_names_is_not_used():  # noqa: N802 (gRPC's spelling)
    """The names that gRPC reports, cut at a NUL and without their kinds, count for nothing."""
    caller = identity(context(x509.DNSName("a")) | {"x509_subject_alternative_name": [b"web.test"]})
    assert caller.names == {"DNS:a"}
