"""Durations and sizes in a configuration."""

import math

from pydantic import TypeAdapter, ValidationError

from grpc_common.config.durations import format_duration, parse_duration
from grpc_common.config.units import WRITTEN, Deadline, PositiveDuration, Seconds, Size, format_size
from tools.fuzz.properties import check_shown

_KINDS = [TypeAdapter[object](kind) for kind in (PositiveDuration, Deadline, Seconds)]
_SIZE = TypeAdapter[int](Size)
_MILLISECOND = 0.001


def fuzz(data: bytes) -> None:
    """What is taken is within its bounds, and the same once it is written out."""
    text = data.decode("utf-8", "surrogateescape")
    check_duration(text)
    check_size(text)
    for kind in _KINDS:
        try:
            value = kind.validate_python(text, context=WRITTEN)
        except ValidationError as error:
            check_shown(error.errors(include_input=False)[0]["msg"])
        else:
            assert value is None or (isinstance(value, float | int) and 0 < value <= 2**31)


def check_duration(text: str) -> None:
    """Look at a duration."""
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        check_shown(str(error))
        return
    assert seconds >= 0
    assert set(text) <= set("0123456789.hms")
    if math.isfinite(seconds) and seconds < 2**31:
        assert math.isclose(parse_duration(format_duration(seconds)), seconds, abs_tol=_MILLISECOND)


def check_size(text: str) -> None:
    """Look at a size."""
    try:
        size = _SIZE.validate_python(text, context=WRITTEN)
    except ValidationError as error:
        check_shown(error.errors(include_input=False)[0]["msg"])
    else:
        assert 0 < size < 2**31
        assert _SIZE.validate_python(format_size(size)) == size
