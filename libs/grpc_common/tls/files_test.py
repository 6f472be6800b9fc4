import ctypes
import threading
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from grpc_common.testing.certificates import CertificateDirectory
from grpc_common.tls.files import TlsError, fingerprint, load

NOW = datetime.now(UTC)
CA = trustme.CA()


@pytest.fixture
def directory(tmp_path) -> CertificateDirectory:
    """Return a directory with good files."""
    return CertificateDirectory(tmp_path / "tls", CA)


def mistakes(directory, *, key=True, ca=True) -> list[str]:
    """Return the lines of the error, each without the directory."""
    with pytest.raises(TlsError) as caught:
        load(directory, key=key, ca=ca, use="server")
    lines = str(caught.value).splitlines()
    assert all(line.startswith(str(directory)) for line in lines)
    return [line.removeprefix(f"{directory}/") for line in lines]


def pem(key, encryption=None) -> bytes:
    """Return a key as it is in a file."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def encrypted(files) -> bytes:
    """Return the key in `files` with a passphrase."""
    return pem(load_pem_private_key(files["tls.key"], None), BestAvailableEncryption(b"passphrase"))


def test_good_files(directory):
    """What is good is encoded anew, with the end of the first certificate."""
    not_after = (NOW + timedelta(days=90)).replace(microsecond=0)
    files = directory.issue(not_after=not_after)
    directory.replace(files)
    loaded = load(directory.path, key=True, ca=True, use="server")
    assert (loaded.certificate, loaded.ca) == (files["tls.crt"], files["ca.crt"])
    assert loaded.key == pem(load_pem_private_key(files["tls.key"], None))
    assert loaded.not_after == not_after
    assert "PRIVATE KEY" not in repr(loaded)


def test_only_what_is_asked_for(directory):
    """A file that nobody needs may be missing or bad."""
    files = directory.issue()
    directory.replace({"ca.crt": files["ca.crt"], "tls.crt": b"bad"})
    assert load(directory.path, key=False, ca=True, use="server").certificate is None
    directory.replace(files | {"ca.crt": b"bad"})
    assert load(directory.path, key=True, ca=False, use="server").ca is None


def test_no_directory(tmp_path):
    """A directory that is not there, or is none, is named, and what should be there."""
    for path, what in ((tmp_path / "none", "no such directory"), (tmp_path / "file", "is not a directory")):
        (tmp_path / "file").touch()
        with pytest.raises(TlsError, match=rf"^{path}: {what}; mount the Secret that has tls.crt"):
            load(path, key=True, ca=True, use="server")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("tls.crt", b"", "tls.crt: is not a certificate; it must be PEM: -----BEGIN CERTIFICATE-----"),
        (
            "tls.crt",
            b"\x30\x82",
            "tls.crt: is not a certificate; it must be PEM: -----BEGIN CERTIFICATE-----",
        ),
        ("tls.key", b"hunter2", "tls.key: is not a private key; it must be PEM: -----BEGIN PRIVATE KEY-----"),
        ("ca.crt", b"bad", "ca.crt: is not a certificate; it must be PEM: -----BEGIN CERTIFICATE-----"),
        ("ca.crt", b"\n", "ca.crt: is empty; it needs the CA of the other side's certificates"),
        ("tls.key", encrypted, "tls.key: is encrypted; store the key without a passphrase"),
        (
            "tls.key",
            pem(ec.generate_private_key(ec.SECP256R1())),
            "tls.key: is not the key of the certificate in tls.crt; replace both",
        ),
        (
            "tls.key",
            pem(ed25519.Ed25519PrivateKey.generate()),
            "tls.key: is of a kind that gRPC can't use; it must be RSA, ECDSA P-256 or ECDSA P-384",
        ),
        (
            "tls.key",
            pem(ec.generate_private_key(ec.SECP521R1())),
            "tls.key: is of a kind that gRPC can't use; it must be RSA, ECDSA P-256 or ECDSA P-384",
        ),
    ],
)
def test_bad_content(directory, name, content, expected):
    """One bad file is one line: which, what is wrong, and what would be right."""
    files = directory.issue()
    directory.replace(files | {name: content(files) if callable(content) else content})
    (line,) = mistakes(directory.path)
    assert line.startswith(expected)
    assert "hunter2" not in line


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt"])
def test_missing_file(directory, name):
    """A file that is missing, or is a directory, is named."""
    files = directory.issue()
    directory.replace({other: content for other, content in files.items() if other != name})
    assert mistakes(directory.path) == [
        f"{name}: no such file or directory; it must be a PEM file, as in the Secrets of cert-manager"
    ]
    (directory.path / name).mkdir()
    assert mistakes(directory.path) == [
        f"{name}: is a directory; it must be a PEM file, as in the Secrets of cert-manager"
    ]


def test_file_that_may_not_be_read(directory):
    """Missing permission is said, with the user that lacks it and where it is set."""
    (directory.path / "tls.key").chmod(0)
    found: list[str] = []
    thread = threading.Thread(target=lambda: [give_up_capabilities(), found.extend(mistakes(directory.path))])
    thread.start()
    thread.join()
    (line,) = found
    assert line.startswith("tls.key: permission denied; user ")
    assert "fsGroup" in line


def give_up_capabilities() -> None:
    """Make this thread obey file modes even if it is root's: capset(2) is for one thread."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    nothing = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, nothing) == 0


@pytest.mark.parametrize(
    ("dates", "expected"),
    [
        ({"not_after": NOW - timedelta(days=1)}, f"tls.crt: expired at {NOW - timedelta(days=1):%Y-%m-%d}T"),
        (
            {"not_before": NOW + timedelta(days=1)},
            f"tls.crt: is not valid before {NOW + timedelta(days=1):%Y-%m-%d}T",
        ),
    ],
)
def test_bad_dates(directory, dates, expected):
    """A certificate is refused outside of its time."""
    directory.rotate(**dates)
    (line,) = mistakes(directory.path)
    assert line.startswith(expected)


def test_all_mistakes_at_once(directory):
    """Each bad file has its line."""
    directory.replace({"tls.crt": b"bad", "ca.crt": b""})
    names = [line.partition(":")[0] for line in mistakes(directory.path)]
    assert names == ["tls.crt", "tls.key", "ca.crt"]


def authority(**dates) -> bytes:
    """Return a certificate that stands for an authority's in ca.crt."""
    return CA.issue_cert("authority", **dates).cert_chain_pems[0].bytes()


def test_bundle_of_two_authorities(directory):
    """While a CA is replaced, one in ca.crt may have expired or be of the future, but not both."""
    old = authority(not_after=NOW - timedelta(days=1))
    future = authority(not_before=NOW + timedelta(days=1), not_after=NOW + timedelta(days=2))
    files = directory.issue()
    for bundle in (old + files["ca.crt"], files["ca.crt"] + future):
        directory.replace(files | {"ca.crt": bundle})
        assert load(directory.path, key=True, ca=True, use="server").ca == bundle
    directory.replace(files | {"ca.crt": old + future})
    (line,) = mistakes(directory.path)
    assert line.startswith("ca.crt: expired at ")


def test_control_characters_in_a_path(tmp_path):
    """A path can't write to the terminal."""
    with pytest.raises(TlsError, match=r"\\x1b") as caught:
        load(tmp_path / "\x1b[31m", key=True, ca=True, use="server")
    assert "\x1b" not in str(caught.value)


def test_reading_while_files_are_swapped(directory):
    """A swap between the reading of two files is no mistake."""
    sets = [directory.issue() for _ in range(2)]
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            sets.reverse()
            directory.replace(sets[0])

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(300):
            load(directory.path, key=True, ca=True, use="server")
    finally:
        ended.set()
        thread.join()


def test_fingerprint_follows_every_kind_of_change(directory):
    """It is the same until a file is swapped, overwritten, removed or gets another mode."""
    path = directory.path
    key = path / "tls.key"
    seen = [fingerprint(path)]
    assert fingerprint(path) == seen[0]
    for change in (
        directory.rotate,
        lambda: key.write_bytes(key.read_bytes() + b"\n"),
        lambda: key.chmod(0o400),
        key.unlink,
    ):
        change()
        seen.append(fingerprint(path))
    assert len(set(seen)) == len(seen)
