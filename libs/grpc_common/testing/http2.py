"""HTTP/2 by hand, for peers that do not keep to it: RFC 9113, section 6."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0,
    1,
    2,
    3,
    4,
    6,
    7,
    8,
    9,
)
END_STREAM, END_HEADERS = 1, 4
ACK = 1
"""The flag of SETTINGS and PING that answer another one."""


def frame(kind: int, stream: int = 0, payload: bytes = b"", *, flags: int = 0) -> bytes:
    """Return one frame."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def fields(**values: str) -> bytes:
    """Return header fields as HPACK's literals; `_` stands for `-`, and in front for `:`."""
    named = {
        (":" + name[1:] if name[0] == "_" else name.replace("_", "-")): value
        for name, value in values.items()
    }
    return b"".join(literal(name.encode(), value.encode()) for name, value in named.items())


def literal(name: bytes, value: bytes, *, indexed: bool = False) -> bytes:
    """Return one header field, which the peer is to remember if it is `indexed`: RFC 7541, section 6.2."""
    return bytes([0x40 * indexed]) + _length(name) + name + _length(value) + value


def _length(text: bytes) -> bytes:
    """Return a length as HPACK writes it: RFC 7541, section 5.1."""
    if (rest := len(text) - 127) < 0:
        return bytes([len(text)])
    octets = [127]
    while rest >= 2**7:
        octets.append(rest % 2**7 + 2**7)
        rest //= 2**7
    return bytes([*octets, rest])


def message(payload: bytes, *, compressed: bool = False) -> bytes:
    """Return a gRPC message in frames of the default size, on stream 1."""
    whole = bytes([compressed]) + len(payload).to_bytes(4) + payload
    return b"".join(frame(DATA, 1, whole[start : start + 2**14]) for start in range(0, len(whole), 2**14))


def request(path: str = "/test.Methods/Echo", **more: str) -> bytes:
    """Return the header fields of a call."""
    return fields(
        _method="POST",
        _scheme="http",
        _path=path,
        _authority="server.test",
        content_type="application/grpc",
        te="trailers",
        **more,
    )


HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS)
ECHO = request()
CALL = HELLO + frame(HEADERS, 1, ECHO, flags=END_HEADERS)
