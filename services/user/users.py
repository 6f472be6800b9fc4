"""What a user is, and which names and emails one may have."""

import functools
import re
import unicodedata
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from email_validator import EmailNotValidError, validate_email
from email_validator.rfc_constants import CASE_INSENSITIVE_MAILBOX_NAMES

MAX_NAME_LENGTH = 200
"""Characters of a name, after normalization."""

MAX_NAME_BYTES = 1000
"""Bytes of a name in UTF-8, as it is given: 200 characters of four, and room for what normalization removes.

A bound before the normalization, whose time grows with the square of a sequence of combining characters.
"""

MAX_EMAIL_LENGTH = 254
"""Characters of an email: the longest path of RFC 5321, without its angle brackets."""

# Control characters, invisible ones that reorder or hide text (such as U+202E), and line separators.
_FORBIDDEN_CATEGORIES = {"Cc", "Cf", "Zl", "Zp"}

# Zero-width non-joiner and joiner: Persian and the scripts of India are spelled with them.
_JOINERS = {"\u200c", "\u200d"}

# What no rule of an email's local part needs a look at: most have nothing else.
_PLAIN_LOCAL_PART = re.compile(r"(?=.{1,64}$)[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*")
_PLAIN_DOMAIN = re.compile(r"[A-Za-z0-9.-]{1,100}")

# Letters, numbers, symbols and punctuation.
_VISIBLE = {"L", "N", "S", "P"}


@dataclass(frozen=True, slots=True)
class User:
    """A user, valid and normalized."""

    id: uuid.UUID
    name: str
    email: str

    @property
    def email_key(self) -> str:
        """What no two users have the same: the email without regard to case."""
        return self.email.casefold()


class InvalidUserError(ValueError):
    """A user can't be made of what was given; `violations` is {field: what is wrong}."""

    def __init__(self, violations: dict[str, str]) -> None:
        super().__init__(str(violations))
        self.violations = violations


def new_user(name: str, email: str) -> User:
    """Return a user with a new id (UUIDv7: ids made later in this process sort later).

    Raises:
        InvalidUserError: names every field that is not valid.

    """
    violations: dict[str, str] = {}

    def checked(field: str, normalize: Callable[[str], str], text: str) -> str:
        try:
            return normalize(text)
        except ValueError as error:
            violations[field] = str(error)
            return ""

    name = checked("name", normalized_name, name)
    email = checked("email", normalized_email, email)
    if violations:
        raise InvalidUserError(violations)
    return User(id=uuid.uuid7(), name=name, email=email)


def normalized_name(text: str) -> str:
    """Return `text` in NFC, without white space at the ends.

    Raises:
        ValueError: nothing visible in it, too long, or a control character in it.

    """
    if (size := len(text.encode())) > MAX_NAME_BYTES:
        raise ValueError(f"has {size} bytes; at most {MAX_NAME_BYTES} are allowed")
    name = unicodedata.normalize("NFC", text.strip())
    if len(name) > MAX_NAME_LENGTH:
        raise ValueError(f"has {len(name)} characters; at most {MAX_NAME_LENGTH} are allowed")
    for character in name:
        if unicodedata.category(character) in _FORBIDDEN_CATEGORIES and character not in _JOINERS:
            raise ValueError(f"must not hold the control character U+{ord(character):04X}")
    if not any(unicodedata.category(character)[0] in _VISIBLE for character in name):
        raise ValueError("must not be empty")
    return name


def normalized_email(text: str) -> str:
    """Return `text` as an address of one form: NFC, domain in lower case.

    The syntax is checked, not whether mail arrives.

    Raises:
        ValueError: not an email address.

    """
    if len(text) > MAX_EMAIL_LENGTH:
        raise ValueError(f"has {len(text)} characters; at most {MAX_EMAIL_LENGTH} are allowed")
    local, at, domain = text.strip().partition("@")
    if at and _PLAIN_LOCAL_PART.fullmatch(local) and local.lower() not in CASE_INSENSITIVE_MAILBOX_NAMES:
        with suppress(EmailNotValidError):
            return f"{local}@{_plain_domain(domain)}"
    try:
        return validate_email(text.strip(), check_deliverability=False).normalized
    except EmailNotValidError as error:
        raise ValueError(str(error)) from None


@functools.lru_cache(1024)
def _plain_domain(text: str) -> str:
    """Return the normal form of a domain of letters, digits, hyphens and dots.

    Most of what an email costs is its domain, and many have the same.

    Raises:
        EmailNotValidError: not one, or another domain, which is not looked up here.

    """
    if not _PLAIN_DOMAIN.fullmatch(text):
        raise EmailNotValidError
    return validate_email(f"x@{text}", check_deliverability=False).domain
