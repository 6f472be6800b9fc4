"""Makes a status fit into what every peer takes, whatever a servicer puts into it.

A status travels as metadata, with the servicer's own trailers, and a peer that finds it too large reports
RESOURCE_EXHAUSTED instead.
"""

from collections.abc import Iterable, Iterator, MutableMapping, Sequence

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import status_pb2

MAX_STATUS_SIZE = 8192 - 512
"""Bytes of a status and the trailers beside it: gRPC's default limit in C-core and Java is 8 KiB, of which
512 are for HTTP/2's own fields and what proxies add."""

_ENTRY = 32
"""What HTTP/2 counts for each field beside its name and value: RFC 9113, section 10.5.1."""

_NAMES = sum(len(name) + _ENTRY for name in ("grpc-status", "grpc-message", "grpc-status-details-bin"))

_LEAST_TEXT = 256
"""Bytes that the text gets even if the servicer's own trailers take everything."""


def fitted(
    code: int, text: str, details: Sequence[Message], trailers: Iterable[tuple[str, str | bytes]] = ()
) -> status_pb2.Status:
    """Return a status that fits beside `trailers`: its text is cut, its details shortened or left out."""
    room = MAX_STATUS_SIZE - _NAMES - sum(_size_of_trailer(*trailer) for trailer in trailers)
    # The text is sent twice: as it is, and in base64 with the details.
    text = cut_text(text, max(room // 4 if details else room * 2 // 5, _LEAST_TEXT))
    status = status_pb2.Status(code=code, message=text)
    for detail in details:
        _add(status, detail, room - _sent_size_of_text(text))
    return status


def cut_text(text: str, limit: int) -> str:
    """Return `text`, or its beginning and how much is missing, in `limit` bytes as gRPC sends it."""
    text = text.encode(errors="replace").decode()  # half a surrogate pair can't be sent
    end = _end(text, limit)
    if end == len(text):
        return text
    longest_note = f"… ({len(text.encode())} bytes cut)"
    end = _end(text, limit - _sent_size_of_text(longest_note))
    return f"{text[:end]}… ({len(text[end:].encode())} bytes cut)"


def _end(text: str, limit: int) -> int:
    """Return how many characters can be sent in `limit` bytes."""
    if 3 * len(text.encode()) <= limit:
        return len(text)
    size = 0
    for index, character in enumerate(text):
        size += _sent_size_of_text(character)
        if size > limit:
            return index
    return len(text)


def _sent_size_of_text(text: str) -> int:
    """Return the bytes of grpc-message, where `%XX` stands for each byte that is not printable ASCII."""
    return sum(1 if ord(" ") <= byte <= ord("~") and byte != ord("%") else 3 for byte in text.encode())


def _size_of_base64(size: int) -> int:
    return (size + 2) // 3 * 4


def _size_of_trailer(name: str, value: str | bytes) -> int:
    size = len(value)
    return len(name) + _ENTRY + (_size_of_base64(size) if name.endswith("-bin") else size)


def _add(status: status_pb2.Status, detail: Message, room: int) -> None:
    """Add a detail if `status` has no more than `room` bytes with it, else with fewer of its list's items."""
    for shorter in _ever_shorter(detail):
        packed = any_pb2.Any()
        packed.Pack(shorter)
        status.details.append(packed)
        if _size_of_base64(status.ByteSize()) <= room:
            return
        del status.details[-1]


def _ever_shorter(detail: Message) -> Iterator[Message]:
    """Yield a detail, and then, if it is a list like BadRequest, with ever fewer items."""
    yield detail
    lists = [field for field in detail.DESCRIPTOR.fields if field.is_repeated]
    if len(lists) != 1 or isinstance(getattr(detail, lists[0].name), MutableMapping):
        return
    shorter = type(detail)()
    shorter.CopyFrom(detail)
    items = getattr(shorter, lists[0].name)
    while len(items) > 1:
        del items[len(items) * 3 // 4 :]
        yield shorter
