"""What every part of a configuration is derived from: typed and immutable, with docstrings for --help."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from grpc_common.config.masking import is_masked


class Section(BaseModel):
    """A part of a configuration; a service derives its own sections from it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            field = type(self).model_fields.get(name or "")
            masked = field and not isinstance(value, Section) and is_masked(field)
            yield name, "***" if masked else value
