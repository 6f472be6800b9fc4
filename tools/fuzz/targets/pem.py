"""Certificate files: tls.crt, tls.key and ca.crt, with a line of ==== between them.

Names such as @tls.key@ stand for files that are made here, so that there is no private key among the seeds.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from grpc_common.tls import files
from tools.fuzz.properties import check_hidden, check_shown

_folder = TemporaryDirectory()
_PATH = Path(_folder.name)
_SECRET = 16
"""Characters of what a key may have; fewer stand in the errors themselves."""

_NAMES = ("tls.crt", "tls.key", "ca.crt")


def _made() -> dict[bytes, bytes]:
    """Return the files that names stand for."""
    ca = trustme.CA()
    leaf = ca.issue_cert("localhost")
    return {
        b"@tls.crt@": leaf.cert_chain_pems[0].bytes(),
        b"@tls.key@": leaf.private_key_pem.bytes(),
        b"@ca.crt@": ca.cert_pem.bytes(),
        b"@weak.key@": _pem(rsa.generate_private_key(65537, 1024)),  # noqa: S505 (to be refused)
        b"@p521.key@": _pem(ec.generate_private_key(ec.SECP521R1())),
    }


def _pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


_MADE = _made()


def fuzz(data: bytes) -> None:
    """Files are refused with their mistakes, none of which quotes a key, or load as they come back."""
    for name, content in _MADE.items():
        data = data.replace(name, content)
    contents = [*data.split(b"\n====\n", 2), b"", b""][:3]
    for file, content in zip(_NAMES, contents, strict=True):
        (_PATH / file).write_bytes(content)
    try:
        loaded = files.load(_PATH, key=True, ca=True, use="server")
    except files.TlsError as error:
        check_shown(str(error))
        check_hidden(
            str(error),
            *(
                word.decode("latin-1")
                for word in contents[1].split()
                if len(word) >= _SECRET and b"-" not in word
            ),
        )
        return
    assert loaded.certificate
    assert loaded.key
    assert loaded.ca
    leaf = x509.load_pem_x509_certificates(loaded.certificate)[0]
    assert leaf.not_valid_after_utc == loaded.not_after
    assert x509.load_pem_x509_certificates(loaded.ca)
    for warning in loaded.warnings:
        check_shown(warning)
