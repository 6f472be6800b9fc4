"""The blocks of a PEM file, found however they are laid out.

C-core's reader wants each line to begin and end as RFC 7468 writes it, and leaves out in silence what comes
after a block that it can't read. This one finds blocks that were joined without a newline, with any line
ends, after a byte order mark and between any text, and reports every block that is damaged.
"""

import base64
import binascii
from collections.abc import Collection
from dataclasses import dataclass, field

_BEGIN = b"-----BEGIN "
_DASHES = b"-----"


class PemError(Exception):
    """A block is damaged; the text says which, counted from 1 among those with the same labels, and how."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block with its content decoded."""

    label: str
    """What is between BEGIN and the dashes: CERTIFICATE."""

    der: bytes = field(repr=False)
    """The content; empty if it is encrypted."""

    encrypted: bool = False
    """Whether a passphrase is needed."""


def read_blocks(content: bytes, labels: Collection[str]) -> list[Block]:
    """Return the blocks in `content` that have one of `labels`; other blocks and text are left out.

    Raises:
        PemError: a block is cut off, empty or not base64, or a BEGIN line has no end.

    """
    found: list[Block] = []
    for part in content.split(_BEGIN)[1:]:
        label, dashes, rest = part.partition(_DASHES)
        if not dashes or len(label.splitlines()) != 1:
            raise PemError(f"block {len(found) + 1} has a damaged BEGIN line")
        name = label.decode(errors="replace")
        if name not in labels:
            continue
        body, end, _ = rest.partition(b"-----END " + label + _DASHES)
        if not end:
            raise PemError(f"block {len(found) + 1} has no END line: the file is cut off")
        found.append(_decode(name, body, len(found) + 1))
    return found


def _decode(label: str, body: bytes, number: int) -> Block:
    # PKCS #8 says so in the label, the older forms in a header (RFC 1421).
    if label.startswith("ENCRYPTED") or b"ENCRYPTED" in body:
        return Block(label, b"", encrypted=True)
    text = b"".join(body.split())
    if not text:
        raise PemError(f"block {number} is empty")
    try:
        return Block(label, base64.b64decode(text, validate=True))
    except binascii.Error:
        raise PemError(f"block {number} is not base64") from None
