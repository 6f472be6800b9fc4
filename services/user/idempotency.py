"""Keys that make a create safe to repeat: `idempotency-key` in the metadata of CreateUser."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from google.protobuf.message import Message

IDEMPOTENCY_KEY = "idempotency-key"
"""The metadata of CreateUser that holds the key; the name is that of the IETF's HTTP header draft."""

KEY_LIFETIME = timedelta(hours=24)
"""How long a key is remembered, counted from the create that was the first to have it."""

_KEY = re.compile(r"[ -~]{1,128}")


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A key, and the request that it stands for."""

    key: str
    """Chosen by the caller, unique among all callers."""

    request: bytes
    """A digest: another request with the key is a mistake of the caller."""


def idempotency_key(values: Sequence[str | bytes], request: Message) -> IdempotencyKey | None:
    """Return the key in the metadata's `values`, if there is one.

    Raises:
        ValueError: not one key of 1 to 128 printable ASCII characters.

    """
    if not values:
        return None
    if len(values) > 1:
        raise ValueError(f"is there {len(values)} times; once is allowed")
    (key,) = values
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError("must be 1 to 128 printable ASCII characters, such as a UUID")
    return IdempotencyKey(key, hashlib.sha256(request.SerializeToString(deterministic=True)).digest())
