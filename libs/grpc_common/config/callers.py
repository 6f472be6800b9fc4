"""What `server.allowed_callers` may say: patterns of methods, and names of callers."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

_PATTERN = re.compile(r"\*|/[A-Za-z_][\w.]*/(\*|[A-Za-z_]\w*)", re.ASCII)
_DNS_NAME = re.compile(
    r"(?=.{1,253}\Z)([a-z0-9_-]{1,63}\.)*(?!\d+\Z)[a-z0-9_-]{1,63}", re.ASCII | re.IGNORECASE
)
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://|urn:)[A-Za-z0-9._~:/?#\[\]@!$&'()+,;=%-]+")
_SUBJECT = re.compile(r"subject:[^\s*](?:[^*]{0,253}[^\s*])?")
_SCOPE = re.compile(r"scope:(?!\*\Z)[!#-\[\]-~]{1,255}")
"""What RFC 6749, section 3.3, lets a scope be."""

_LOCAL_PART = re.compile(r"[A-Za-z0-9.!#$%&'/=?^_`{|}~+-]+")


class SanKind(StrEnum):
    """The kinds of subject alternative names (SANs) that a caller can be known by, in OpenSSL's words."""

    DNS = "DNS"
    URI = "URI"
    IP = "IP"
    EMAIL = "email"


class San(NamedTuple):
    """A subject alternative name in the form in which two are compared: whole, and with their kind."""

    kind: SanKind
    value: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"

    @classmethod
    def of(cls, kind: SanKind, value: str) -> San:
        """Return a name; in domains upper and lower case are the same."""
        if kind is SanKind.DNS:
            return cls(kind, value.lower())
        if kind is SanKind.EMAIL:
            local, at, domain = value.rpartition("@")
            return cls(kind, local + at + domain.lower())
        return cls(kind, value)

    @classmethod
    def parse(cls, text: str) -> San:
        """Return the name that is written as `text`, whose form tells its kind.

        With `://` or `urn:` it is a URI, with `@` an e-mail address, else an IP address or a DNS name.

        Raises:
            ValueError: no certificate that should be trusted has this name.

        """
        if _URI.fullmatch(text):
            return cls.of(SanKind.URI, text)
        local, at, domain = text.rpartition("@")
        if at and _LOCAL_PART.fullmatch(local) and _DNS_NAME.fullmatch(domain):
            return cls.of(SanKind.EMAIL, text)
        if _DNS_NAME.fullmatch(text):
            return cls.of(SanKind.DNS, text)
        if "%" in text:  # a zone of IPv6, which certificates don't have
            raise ValueError(text)
        return cls.of(SanKind.IP, str(ipaddress.ip_address(text)))


def parse_caller(text: str) -> str:
    """Return a caller that may be named, in the form in which two are compared.

    `subject:NAME` and `scope:NAME` are those of a token, and any other text is a SAN.

    Raises:
        ValueError: no token or certificate that should be trusted has it.

    """
    if not text.startswith(("subject:", "scope:")):
        return str(San.parse(text))
    if text.isprintable() and (_SUBJECT.fullmatch(text) or _SCOPE.fullmatch(text)):
        return text
    raise ValueError(text)


def parse_proxy(text: str) -> str:
    """Return the SAN of a proxy as it is written.

    Raises:
        ValueError: no certificate that should be trusted has it.

    """
    try:
        San.parse(text)
    except ValueError:
        raise ValueError(
            "must be one whole SAN of a certificate: a DNS name, a URI, an IP address or an e-mail address"
        ) from None
    return text


def parse_allowed_callers(allowed_callers: Mapping[str, Collection[str]]) -> dict[str, frozenset[str]]:
    """Return {pattern: callers}.

    Raises:
        ValueError: a pattern or caller can't be right; the text names all of them.

    """
    mistakes = [*_mistakes(allowed_callers)]
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return {pattern: frozenset(map(parse_caller, names)) for pattern, names in allowed_callers.items()}


def _mistakes(allowed_callers: Mapping[str, Collection[str]]) -> Iterator[str]:
    for pattern, names in allowed_callers.items():
        if not _PATTERN.fullmatch(pattern):
            yield f'{pattern!r} is not a method; write "/package.Service/Method", "/package.Service/*" or "*"'
        for name in names:
            if not _is_caller(name):
                yield (
                    f"{pattern!r} has the caller {name!r}; write one whole SAN without wildcards or spaces, "
                    "in ASCII (xn--...): a DNS name, a URI, an IP address or an e-mail address; "
                    "or, of a token, subject:NAME or scope:NAME"
                )


def _is_caller(text: str) -> bool:
    try:
        parse_caller(text)
    except ValueError:
        return False
    return True
