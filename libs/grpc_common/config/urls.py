"""Shows a URL without what may be secret in it."""

import re

_NAME = r"(?:[A-Za-z0-9_.~-]|%2[Ff])+"
"""A host's name, or the path of a Unix socket with its slashes as %2F."""

_HOST = rf"(?:{_NAME}|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?"

# An @, / or # where none belongs may be part of a password, and what is before it the password's beginning.
_URL = re.compile(
    rf"""
    (?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)
    (?:(?P<user>[^@:/?\#]*)(?P<password>:[^@/?\#]*)?(?P<at>@))?
    (?P<hosts>(?:{_HOST}(?:,{_HOST})*)?)
    (?P<path>(?:/(?:[\w.~+-]|%[0-9A-Fa-f]{{2}})*)*)
    (?P<parameters>\?[^@\#]*)?
    """,
    re.VERBOSE,
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_USER = re.compile(r"[A-Za-z0-9_.~-]*")


def mask_url(url: str) -> str:
    """Return a URL with three asterisks in the place of what is a password or may be one.

    Scheme, user, hosts, ports and path are shown where it is certain that they are just that.
    Parameters are not: any may be a password.
    """
    parts = _URL.fullmatch(url)
    if parts is None:
        scheme = _SCHEME.match(url)
        return url and f"{scheme[0] if scheme else ''}***"
    user = parts["user"] or ""
    return "".join(
        [
            parts["scheme"],
            user if _USER.fullmatch(user) else "***",
            ":***" if parts["password"] else "",
            parts["at"] or "",
            parts["hosts"],
            parts["path"],
            "?***" if parts["parameters"] else "",
        ]
    )


def is_plain_url(url: str) -> bool:
    """Return whether it is certain what each part of a URL is."""
    return _URL.fullmatch(url) is not None and url.isprintable() and " " not in url
