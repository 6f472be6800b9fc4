"""The kinds of values in a configuration: durations, sizes, ports, and what must stay secret."""

import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    GetPydanticSchema,
    PlainSerializer,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from grpc_common.config.durations import WRITE_A_DURATION, format_duration, parse_duration
from grpc_common.config.urls import mask_url

_MAX_INT32 = 2**31 - 1
"""gRPC keeps numbers, sizes and milliseconds in 32 bits."""

_NONE = "none"

# pydantic itself takes 10MiB for the start of a longer text.
_SIZE = re.compile(r"\s*(\d*\.)?\d+\s*[a-z]*\s*", re.ASCII | re.IGNORECASE)
WRITE_A_SIZE = "write a number of bytes, or a size such as 10MiB"

WRITTEN = object()
"""The context of a validation of what stands in a file or a variable, where a duration must have its unit."""

_METADATA_NAME = re.compile(r"(?!grpc-)[0-9a-z_.-]+", re.ASCII)
_OF_THE_CALL_ITSELF = frozenset({"content-type", "host", "te", "user-agent"})
"""What each call has of its own, beside the names that begin with grpc-."""


def format_size(size: int) -> str:
    """Return a size in bytes as YAML would have it: `10MiB`, or the number if it is not round."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def _to_seconds(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        return parse_duration(value)
    if info.context is WRITTEN or isinstance(value, bool):
        raise ValueError(WRITE_A_DURATION)
    return value


def _number_to_seconds(value: Any) -> float:
    try:
        # A variable is a text; of one such as "nan" or "1_0" Python would make a number.
        is_number = isinstance(value, int | float) or re.fullmatch(r"[0-9]*\.?[0-9]+(?:e-?[0-9]+)?", value)
        return float(_no_truth_value(value)) if is_number else parse_duration(value)
    except (TypeError, ValueError):
        raise ValueError('write a number of seconds, or a duration with its unit: 0.1 or "100ms"') from None


def _to_seconds_or_none(value: Any, info: ValidationInfo) -> Any:
    if value == _NONE or (value is None and info.context is not WRITTEN):
        return None
    if isinstance(value, str):
        return parse_duration(value)
    if info.context is WRITTEN or isinstance(value, bool):
        raise ValueError(f'{WRITE_A_DURATION}, or "{_NONE}" for no limit')
    return value


def _to_none(value: Any) -> Any:
    return None if value == _NONE else value


def _format_duration_or_none(seconds: float | None) -> str:
    return _NONE if seconds is None else format_duration(seconds)


def _to_size(value: Any, parse: ValidatorFunctionWrapHandler) -> int:
    if isinstance(value, str) and not _SIZE.fullmatch(value):
        raise ValueError(WRITE_A_SIZE)
    try:
        size: int = parse(_no_truth_value(value))
    except OverflowError:
        raise ValueError(WRITE_A_SIZE) from None
    return size


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        # YAML reads yes, no, on and off as these, and pydantic takes them for 1 and 0.
        raise ValueError("write a number")  # noqa: TRY004 (pydantic expects it)
    return value


def _metadata_name(name: str) -> str:
    if not _METADATA_NAME.fullmatch(name) or name in _OF_THE_CALL_ITSELF:
        raise ValueError(
            "write the name of metadata, such as x-request-id: lower-case letters, digits, _ . and -, "
            "but none that gRPC sets itself"
        )
    return name


class Masked:
    """Marks a setting, by its presence in the type, whose value no error shows."""


Duration = Annotated[
    float, BeforeValidator(_to_seconds), Field(le=_MAX_INT32 / 1000), PlainSerializer(format_duration)
]
"""Seconds, written with a unit: `15s`. In Python it is a number."""

Seconds = Annotated[float, BeforeValidator(_number_to_seconds), Field(gt=0, le=_MAX_INT32 / 1000)]
"""Seconds, written as a number, as Prometheus has them, or with a unit: `0.1`, `100ms`."""

PositiveDuration = Annotated[Duration, Field(gt=0), Field(ge=0.001)]
"""At least a millisecond: gRPC counts in these, and takes 0 for no time at all."""

Deadline = Annotated[
    Annotated[float, Field(gt=0, le=_MAX_INT32 / 1000)] | None,
    BeforeValidator(_to_seconds_or_none),
    PlainSerializer(_format_duration_or_none),
]
"""Seconds, written with a unit, or None, written `none`, for a call that may take any time."""

Size = Annotated[
    int,
    GetPydanticSchema(lambda _int, schema_of: schema_of(ByteSize)),
    Field(gt=0, le=_MAX_INT32),
    WrapValidator(_to_size),
    PlainSerializer(format_size),
]
"""Bytes, written as a number or with a unit: `10MiB`."""

Port = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=0, le=65535)]
"""A TCP port; 0 takes a free one."""

Count = Annotated[int, BeforeValidator(_no_truth_value), Field(gt=0, le=_MAX_INT32)]

Percent = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=0, le=100)]

Factor = Annotated[float, BeforeValidator(_no_truth_value), Field(gt=0)]

Ratio = Annotated[float, BeforeValidator(_no_truth_value), Field(ge=0, le=1)]
"""From 0 (none) to 1 (all)."""

TextOrNone = Annotated[str | None, BeforeValidator(_to_none)]
"""A text, which may be empty, or None, written `none`."""

CredentialUrl = Annotated[str, AfterValidator(str.strip), PlainSerializer(mask_url), Masked()]
"""A URL that may hold a password, which neither a printed configuration nor an error shows."""

MetadataName = Annotated[str, AfterValidator(_metadata_name)]
"""The name of metadata that a service may send."""
