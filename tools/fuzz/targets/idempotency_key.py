"""Idempotency keys, which clients send as metadata."""

from user import user_service_pb2 as pb

from services.user.idempotency import idempotency_key
from tools.fuzz.properties import check_shown

_REQUEST = pb.CreateUserRequest(name="Ada", email="ada@example.com")


def fuzz(data: bytes) -> None:
    """A key is kept as it is, or refused; each line is a value, one that begins with a NUL one of bytes."""
    values = [
        line if line.startswith(b"\0") else line.decode("latin-1") for line in data.split(b"\n") if line
    ]
    try:
        key = idempotency_key(values, _REQUEST)
    except ValueError as error:
        check_shown(str(error))
    else:
        assert [key.key] == values if key else not values
        if key:
            check_shown(key.key, 128)
            assert key == idempotency_key([key.key], _REQUEST)
