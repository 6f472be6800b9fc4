"""What `server.jwt` may say: where keys come from, and algorithms."""

import ipaddress
from typing import Literal
from urllib.parse import urlsplit

type Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
"""Those with a public key: whoever can verify a token must not be able to make one."""

DEFAULT_ALGORITHMS: tuple[Algorithm, ...] = ("RS256", "ES256")
"""What nearly all issuers sign with."""


def is_url(jwks: str) -> bool:
    """Return whether keys come from a URL, and not from a file."""
    return "://" in jwks


def check_jwks(jwks: str) -> str:
    """Return where keys come from, if they may.

    Raises:
        ValueError: anyone on the way could replace them, or it is none of the known forms.

    """
    if not jwks or not jwks.isprintable():
        raise ValueError("write the path of a file, or a URL with https://")
    if not is_url(jwks):
        return jwks
    url = urlsplit(jwks)
    if url.scheme not in {"https", "http"} or not url.hostname:
        raise ValueError("write the path of a file, or a URL with https://")
    if " " in jwks or not f"{url.path}{url.query}".isascii():
        raise ValueError("write a URL in ASCII, with %20 and the like for what it can't hold")
    if url.port == 0:  # a port that is none at all is a ValueError here
        raise ValueError("write the port that the issuer listens on")
    if "@" in jwks.partition("://")[2].partition("/")[0]:  # behind a ? or # of a password, too
        raise ValueError("a JWKS is public; leave the user and password out of its URL")
    if url.scheme == "http" and not _is_loopback(url.hostname):
        raise ValueError("write https://, or anyone on the way can replace the keys")
    return jwks


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
