"""Reads a configuration: a YAML file, environment variables over it, and all mistakes at once."""

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from grpc_common.config.sections import ServerConfig
from grpc_common.config.units import Secret
from grpc_common.core.errors import StartError, printable

type _Path = tuple[str | int, ...]


class ConfigError(StartError):
    """The configuration can't be used; the text names every mistake, one a line."""


@dataclass(frozen=True)
class Setting:
    """One setting of a configuration, for help texts and tables."""

    path: tuple[str, ...]
    field: FieldInfo
    default: Any
    """As it would be written in YAML."""

    @property
    def key(self) -> str:
        """Where it stands in the file: `server.keepalive.time`."""
        return ".".join(self.path)

    @property
    def variable(self) -> str:
        """The environment variable that sets it: the key without `server`, which is understood.

        Empty for a mapping, which only a file can hold.
        """
        if isinstance(self.default, dict):
            return ""
        if self.path == ("server", "port"):
            return "GRPC_PORT"
        return "_".join(self.path[1:] if self.path[0] == "server" else self.path).upper()

    @property
    def description(self) -> str:
        """What it is for."""
        return (self.field.description or "").replace("\n", " ")

    @property
    def secret(self) -> bool:
        """Whether its value is never shown."""
        return any(isinstance(mark, Secret) for mark in self.field.metadata)


def settings(config_class: type[ServerConfig]) -> list[Setting]:
    """Return every setting of a configuration, in the order of the file."""
    return list(_settings(config_class, (), config_class().model_dump(mode="json")))


def _settings(model: type[BaseModel], path: tuple[str, ...], defaults: Any) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _settings(field.annotation, (*path, name), defaults[name])
        else:
            yield Setting((*path, name), field, defaults[name])


def load[Config: ServerConfig](
    config_class: type[Config], file: Path | None = None, environ: Mapping[str, str] = os.environ
) -> Config:
    """Return the configuration in `file`, if one is given, with `environ` over it.

    Raises:
        ConfigError: the file can't be read, or something in it or in a variable is wrong.

    """
    data, lines, mistakes = _read(file) if file else ({}, {}, [])
    known = settings(config_class)
    variables = {
        setting.path: (setting.variable, environ[setting.variable])
        for setting in known
        if setting.variable in environ
    }
    for path, (_, value) in variables.items():
        _put(data, path, value)
    try:
        config = config_class.model_validate(data)
    except ValidationError as error:
        explain = _Explanation(file, lines, variables, known)
        raise _refusal(mistakes + [explain(mistake) for mistake in error.errors()]) from None
    if mistakes:
        raise _refusal(mistakes)
    config._file = file  # noqa: SLF001 (pydantic's way to keep what is no setting)
    return config


def _refusal(mistakes: list[str]) -> ConfigError:
    return ConfigError("\n".join(map(printable, mistakes)))


def to_yaml(config: BaseModel) -> str:
    """Return a configuration as its file would be, with secrets masked."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read(file: Path) -> tuple[dict[str, Any], dict[_Path, int], list[str]]:
    """Return the content of a file, the line of everything in it, and the keys that are there twice."""
    try:
        text = file.read_text("utf-8")
        root = yaml.compose(text, yaml.SafeLoader)
        data = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; name a file that can be read") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}, {}, []
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: must hold keys such as 'server:', not a {type(data).__name__}")
    lines: dict[_Path, int] = {}
    twice = [f"{file}:{line}: {_dotted(path)}: is there twice" for path, line in _locate(root, (), lines)]
    return data, lines, twice


def _locate(node: yaml.Node | None, path: _Path, lines: dict[_Path, int]) -> Iterator[tuple[_Path, int]]:
    """Note the line of every key in `lines`, and yield the keys that a mapping has twice."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        below = (*path, str(key.value))
        line = key.start_mark.line + 1
        if below in lines:
            yield below, line
        lines[below] = line
        yield from _locate(value, below, lines)


def _put(data: dict[str, Any], path: tuple[str, ...], value: str) -> None:
    for key in path[:-1]:
        inner = data.get(key)
        if not isinstance(inner, dict):
            inner = data[key] = {}
        data = inner
    data[path[-1]] = value


def _dotted(path: _Path) -> str:
    return ".".join(map(str, path))


@dataclass(frozen=True)
class _Explanation:
    """Says in a line what is wrong, where it is, and what would be right."""

    file: Path | None
    lines: Mapping[_Path, int]
    variables: Mapping[tuple[str, ...], tuple[str, str]]
    known: list[Setting]

    def __call__(self, mistake: Any) -> str:
        path = tuple(mistake["loc"])
        what = self._unknown_key(path) if mistake["type"] == "extra_forbidden" else mistake["msg"]
        what = what.removeprefix("Value error, ")
        if path in self.variables:
            variable, value = self.variables[path]
            return f"{variable}={self._shown(path, value)}: {what}"
        if mistake["type"] == "extra_forbidden" or isinstance(mistake["input"], BaseModel | dict):
            return f"{self._place(path)}: {what}"
        return f"{self._place(path)}: {self._shown(path, mistake['input'])}: {what}"

    def _place(self, path: _Path) -> str:
        known = next((path[:end] for end in range(len(path), 0, -1) if path[:end] in self.lines), None)
        return f"{self.file}:{self.lines[known]}: {_dotted(path)}" if known else _dotted(path)

    def _shown(self, path: _Path, value: Any) -> str:
        secret = any(setting.secret and setting.path == path for setting in self.known)
        return "***" if secret else repr(value)

    def _unknown_key(self, path: _Path) -> str:
        siblings = sorted(
            {
                setting.path[len(path) - 1]
                for setting in self.known
                if setting.path[: len(path) - 1] == path[:-1]
            }
        )
        near = difflib.get_close_matches(str(path[-1]), siblings, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(siblings)}"
        return f"unknown key; {hint}"


def changed(old: ServerConfig, new: ServerConfig) -> list[str]:
    """Return the keys whose values differ."""
    return [
        setting.key for setting in settings(type(old)) if _get(old, setting.path) != _get(new, setting.path)
    ]


def _get(config: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        config = getattr(config, name)
    return config
