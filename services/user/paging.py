"""Pages of a list: their size, and the tokens that lead from one to the next."""

import base64
import contextlib
import uuid

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

NEXT_PAGE_TOKEN = "next-page-token"  # noqa: S105 (a key of metadata, not a secret)
"""The trailing metadata of ListUsers that leads to the next page."""

_VERSION = b"\x01"
"""First byte of a token, so that its form can change and old tokens be told apart."""


def page_size(requested: int) -> int:
    """Return how many users a page has when a caller asks for `requested`; 0 is the default.

    Raises:
        ValueError: negative.

    """
    if requested < 0:
        raise ValueError("must not be negative")
    return min(requested or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def token_after(user_id: uuid.UUID) -> str:
    """Return the token of the page that begins after the user with the id."""
    return base64.urlsafe_b64encode(_VERSION + user_id.bytes).rstrip(b"=").decode()


def parse_token(token: str) -> uuid.UUID | None:
    """Return the id after which the page begins; None, for the first page, if it is empty.

    Raises:
        ValueError: not a token of `token_after`.

    """
    if not token:
        return None
    with contextlib.suppress(ValueError):
        decoded = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        user_id = uuid.UUID(bytes=decoded.removeprefix(_VERSION))
        if token_after(user_id) == token:
            return user_id
    raise ValueError("is not the next-page-token of an earlier call")
