"""The settings of a configuration class, for its loader, help texts and tables."""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, is_dataclass
from enum import Enum
from functools import cache
from inspect import isclass
from types import UnionType
from typing import Annotated, Any, TypeAliasType, Union, get_args, get_origin, is_typeddict

from pydantic import BaseModel, RootModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo

from grpc_common.config.masking import is_masked
from grpc_common.config.sections import ServerConfig

UNSET = object()
"""What an empty variable says of a setting that can't be empty."""

_COMPUTED = "computed"
_REQUIRED = object()


@dataclass(frozen=True)
class Setting:
    """One setting of a configuration."""

    path: tuple[str, ...]
    field: FieldInfo
    variable: str
    """The environment variable that sets it; empty for mappings and lists of them: only files hold those."""
    default: Any
    """As it would be written in YAML; None if it is required."""
    required: bool
    """Whether it has no default, and must be set."""
    optional_section: str
    """The section that is left out as a whole if nothing in it is set; empty if there is none."""

    @property
    def key(self) -> str:
        """Where it stands in the file: `server.keepalive.time`."""
        return ".".join(self.path)

    @property
    def description(self) -> str:
        """What it is for."""
        return (self.field.description or "").replace("\n", " ")

    @property
    def default_text(self) -> str:
        """The default as help texts and tables show it."""
        if self.required:
            return f"required with {self.optional_section}" if self.optional_section else "required"
        if isinstance(self.default, bool):
            return str(self.default).lower()
        if isinstance(self.default, list):
            return ",".join(map(str, self.default)) or "none"
        return "none" if self.default in (None, {}) else str(self.default) or "empty"

    @property
    def secret(self) -> bool:
        """Whether its value is never shown."""
        return is_masked(self.field)

    def from_variable(self, text: str) -> Any:
        """Return what `text`, the value of its variable, means; UNSET if that is nothing.

        Space around it is ignored. A list is separated by commas. An empty variable is None where that is the
        default, an empty text or an empty list; for other settings, and required ones, it says nothing.
        """
        text = text.strip()
        annotation = self.field.annotation
        if _is_list(annotation) and (text or not self.required):
            return [part.strip() for part in text.split(",") if part.strip()]
        if text:
            return text
        if self.required:
            return UNSET
        if self.default is None:
            return None
        return "" if _is_text(annotation) else UNSET


@cache
def settings(config_class: type[ServerConfig]) -> tuple[Setting, ...]:
    """Return every setting of a configuration, in the order of the file.

    Raises:
        TypeError: two of them would have the same variable, or one has an alias.

    """
    prefix = config_class.env_prefix
    found = tuple(_settings(config_class, prefix))
    keys = {f"{prefix}CONFIG_FILE": "--config"}
    for setting in found:
        if setting.variable and keys.setdefault(setting.variable, setting.key) != setting.key:
            both = f"{keys[setting.variable]} and {setting.key}"
            raise TypeError(f"the variable {setting.variable} would set {both}; rename one of them")
    return found


def _settings(
    model: type[BaseModel],
    prefix: str,
    instance: BaseModel | None = None,
    *,
    above: tuple[str, ...] = (),
    optional: str = "",
    models: tuple[type[BaseModel], ...] = (),
) -> Iterator[Setting]:
    """Yield the settings of `model`, which has the defaults of `instance`, at the place `above`."""
    values = _values(model, instance)
    defaults = _as_yaml(model, values)
    for name, field in model.model_fields.items():
        path = (*above, name)
        if field.alias or field.validation_alias:
            raise TypeError(f"{model.__name__}.{name} has an alias; a setting is called as its field is")
        section = section_of(field)
        value = values[name]
        if section is not None and section not in models:  # one that holds itself would have no end
            yield from _settings(
                section,
                prefix,
                value if isinstance(value, BaseModel) else None,
                above=path,
                optional=".".join(path) if value is None else optional,
                models=(*models, model),
            )
            continue
        default = _COMPUTED if value is _COMPUTED else defaults.get(name)
        variable = _variable(field, path, prefix)
        required = value is _REQUIRED
        yield Setting(path, field, variable, default, required=required, optional_section=optional)


def _values(model: type[BaseModel], instance: BaseModel | None) -> dict[str, Any]:
    """Return what the fields of `model` are if nobody sets them: a value, _COMPUTED or _REQUIRED."""
    if instance is not None:
        return {name: getattr(instance, name) for name in model.model_fields}
    return {name: _default(field) for name, field in model.model_fields.items()}


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return _REQUIRED
    if field.default_factory_takes_validated_data:
        return _COMPUTED
    return field.get_default(call_default_factory=True)


def _as_yaml(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    known = {
        name
        for name, value in values.items()
        if value is not _REQUIRED and value is not _COMPUTED and section_of(model.model_fields[name]) is None
    }
    filled = {name: values[name] if name in known else None for name in model.model_fields}
    return model.model_construct(**filled).model_dump(mode="json", include=known, warnings=False)


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the class of the section that a field holds, if it holds one."""
    members = [member for member in _members(field.annotation) if member is not type(None)]
    if len(members) == 1 and isclass(members[0]) and issubclass(members[0], BaseModel):
        return None if issubclass(members[0], RootModel) else members[0]
    return None


def is_optional(field: FieldInfo) -> bool:
    """Return whether a field can be None."""
    return type(None) in _members(field.annotation)


def _variable(field: FieldInfo, path: tuple[str, ...], prefix: str) -> str:
    """Return the key with the prefix, and without `server`, which is understood.

    Shells have a variable HOST of their own.
    """
    if not _fits_in_a_variable(field.annotation):
        return ""
    if path in (("server", "port"), ("server", "host")):
        return f"{prefix}GRPC_{path[1].upper()}"
    return prefix + "_".join(path[1:] if path[0] == "server" else path).upper()


def _members(annotation: Any) -> Iterator[Any]:
    """Yield the types of which `annotation` is the union."""
    if isinstance(annotation, TypeAliasType):
        yield from _members(annotation.__value__)
    elif get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in {Union, UnionType}:  # one and the same from Python 3.14 on
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def _classes(annotation: Any) -> Iterator[type]:
    """Yield the classes of which `annotation` is the union, without what they hold."""
    for member in _members(annotation):
        base = get_origin(member) or member
        if isclass(base):
            yield base


def _is_list(annotation: Any) -> bool:
    return any(
        issubclass(base, (Sequence, AbstractSet)) and not issubclass(base, (str, bytes))
        for base in _classes(annotation)
    )


def _is_text(annotation: Any) -> bool:
    texts = (str, bytes, SecretStr, SecretBytes)
    return any(issubclass(base, texts) and not issubclass(base, Enum) for base in _classes(annotation))


def _is_mapping(annotation: Any) -> bool:
    return any(
        (issubclass(base, (Mapping, BaseModel)) and not issubclass(base, RootModel))
        or is_dataclass(base)
        or is_typeddict(base)
        for base in _classes(annotation)
    )


def _fits_in_a_variable(annotation: Any) -> bool:
    if _is_mapping(annotation):
        return False
    held = [part for member in _members(annotation) for part in get_args(member) if _is_list(member)]
    return not any(_is_list(part) or _is_mapping(part) for part in held)
