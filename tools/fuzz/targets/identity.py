"""Certificates of callers, which have any names in them that an authority has signed."""

import base64

from grpc_common.server.identity import identity
from tools.fuzz.properties import check_shown


def fuzz(data: bytes) -> None:
    """A caller's name can be logged, whatever the certificate (DER) has in it."""
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(data) + b"-----END CERTIFICATE-----\n"
    caller = identity({"x509_pem_cert": [pem]})
    assert caller
    check_shown(caller.name, 2000)
    assert "\n" not in caller.name
    for name in caller.names:
        assert name.isascii()
        assert name.isprintable()
        assert name.startswith(("DNS:", "URI:", "IP:", "email:"))
