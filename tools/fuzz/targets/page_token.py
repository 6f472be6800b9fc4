"""Tokens of pages, which clients send back."""

import uuid

from services.user.paging import parse_token, token_after

_UUID_BYTES = 16


def fuzz(data: bytes) -> None:
    """A token is taken if token_after makes it, and no other text."""
    text = data.decode("utf-8", "replace")
    try:
        user_id = parse_token(text)
    except ValueError:
        pass
    else:
        assert (token_after(user_id) if user_id else "") == text
    if len(data) >= _UUID_BYTES:
        user_id = uuid.UUID(bytes=data[:_UUID_BYTES])
        assert parse_token(token_after(user_id)) == user_id
