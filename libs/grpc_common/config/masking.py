"""Keeps what must stay secret out of errors."""

import re
from typing import Any, TypeAliasType, get_args, get_origin

from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic import Secret as SecretOf
from pydantic.fields import FieldInfo

from grpc_common.config.units import Masked

_REPR = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_SYNTAX = re.compile(r"\W|<[a-z ]+>")
_QUOTED = re.compile(r"""(?<!\w)['"`].*['"`](?!\w)""", re.DOTALL)


def is_masked(field: FieldInfo) -> bool:
    """Return whether a setting, or something in it, is Masked or one of pydantic's secrets."""
    return _is_masked_field(field, frozenset())


def _is_masked_field(field: FieldInfo, above: frozenset[type]) -> bool:
    return any(_holds_masked(part, above) for part in (field.annotation, *field.metadata))


def _holds_masked(annotation: Any, above: frozenset[type]) -> bool:
    if isinstance(annotation, Masked):
        return True
    if isinstance(annotation, TypeAliasType):
        return _holds_masked(annotation.__value__, above)
    kind = get_origin(annotation) or annotation
    if isinstance(kind, type) and issubclass(kind, SecretStr | SecretBytes | SecretOf):
        return True
    if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in above:
        return any(_is_masked_field(field, above | {kind}) for field in kind.model_fields.values())
    return any(_holds_masked(part, above) for part in get_args(annotation))


def mask_quoted(text: str) -> str:
    """Return the text of an error without what it quotes: a library's error may quote half of a password."""
    return _QUOTED.sub("***", text)


def mask_reprs(text: str) -> str:
    """Return the text of an error of the YAML parser without names and values; what is syntax stays."""
    return _REPR.sub(lambda found: found[0] if _SYNTAX.fullmatch(found[0][1:-1]) else "***", text)
