"""Loads a configuration: a YAML file, environment variables over it, and all mistakes at once."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from grpc_common.config.document import ConfigError, Document, Place, dotted, shorten
from grpc_common.config.masking import mask_quoted
from grpc_common.config.sections import ServerConfig
from grpc_common.config.settings import UNSET, Setting, is_optional, section_of, settings
from grpc_common.config.units import WRITE_A_SIZE, WRITTEN

_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://\S+:\d+", re.ASCII)
"""What Kubernetes puts into NAME_PORT for a Service that is called NAME."""


def load[Config: ServerConfig](
    config_class: type[Config], file: Path | None = None, environ: Mapping[str, str] = os.environ
) -> Config:
    """Return the configuration in `file`, if one is given, with `environ` over it.

    Raises:
        ConfigError: the file can't be read, or something in it or in a variable is wrong.

    """
    document = Document() if file is None else _read(file)
    config = load_document(config_class, document, environ, file)
    config._file = file  # noqa: SLF001 (pydantic's way to keep what is no setting)
    return config


def load_document[Config: ServerConfig](
    config_class: type[Config], document: Document, environ: Mapping[str, str], file: Path | None = None
) -> Config:
    """Return the configuration in a document, whose values change, with `environ` over it.

    Raises:
        ConfigError: something in it or in a variable is wrong; the text names `file`.

    """
    known = settings(config_class)
    _empty_to_none(document.values, known)
    _leave_out_sections(config_class, document.values)
    variables = _Variables(known, environ)
    variables.put_into(document.values)
    _fill_sections(config_class, document.values)
    mistakes = document.mistakes + variables.mistakes
    try:
        config = config_class.model_validate(document.values, context=WRITTEN)
    except ValidationError as error:
        explanation = _Explanation(file, document, variables)
        raise ConfigError.of(*mistakes, *explanation.lines(error)) from None
    if mistakes:
        raise ConfigError.of(*mistakes)
    return config


def _read(file: Path) -> Document:
    from grpc_common.config.yaml_file import read_document  # noqa: PLC0415 (as in to_yaml)

    return read_document(file)


def to_yaml(config: BaseModel) -> str:
    """Return a configuration as its file would be, with secrets masked."""
    import yaml  # noqa: PLC0415 (a server without a file starts without it)

    values = config.model_dump(mode="json", exclude_computed_fields=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def changed(old: ServerConfig, new: ServerConfig) -> list[str]:
    """Return the keys whose values differ."""
    return [
        setting.key for setting in settings(type(old)) if _get(old, setting.path) != _get(new, setting.path)
    ]


def _get(config: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        config = getattr(config, name, None)  # None for what is in an optional section that is not there
    return config


class _Variables:
    """The environment variables of settings: what they say, and what is wrong with them."""

    def __init__(self, known: Sequence[Setting], environ: Mapping[str, str]) -> None:
        self.known = known
        self.texts: dict[tuple[str, ...], str] = {}
        """What the variables of settings say, as it is written."""
        self.mistakes: list[str] = []
        self._values: dict[tuple[str, ...], Any] = {}
        for setting in self.known:
            if setting.variable in environ:
                self._take(setting, environ[setting.variable])

    def _take(self, setting: Setting, text: str) -> None:
        if setting.variable.endswith("_PORT") and _SERVICE_LINK.fullmatch(text.strip()):
            service = setting.variable.removesuffix("_PORT").lower().replace("_", "-")
            self.mistakes.append(
                f"{setting.variable}={shorten(text)}: Kubernetes sets it, since a Service {service!r} is "
                "in the namespace; set enableServiceLinks: false in the pod, rename the Service, or have the "
                "program's variables begin with an env_prefix"
            )
            return
        value = setting.from_variable(text)
        if value is not UNSET:
            self.texts[setting.path] = text
            self._values[setting.path] = value

    def put_into(self, values: dict[str, Any]) -> None:
        """Put the variables over `values`, and make the sections for them."""
        for path, value in self._values.items():
            section: Any = values
            for key in path[:-1]:
                if section.get(key) is None:
                    section[key] = {}
                section = section[key]
                if not isinstance(section, dict):  # a mistake of the file, that the validation will find
                    break
            else:
                section[path[-1]] = value


def _empty_to_none(values: dict[str, Any], known: Iterable[Setting]) -> None:
    """Have empty text in the file mean what it means in a variable: none, where that is the default."""
    for setting in known:
        section: Any = values
        for key in setting.path[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        name = setting.path[-1]
        if isinstance(section, dict) and section.get(name) == "" and setting.from_variable("") is None:
            section[name] = None


def _leave_out_sections(model: type[BaseModel], values: dict[str, Any]) -> None:
    """Have `none` in the place of a section that may be left out mean that it is."""
    for name, field in model.model_fields.items():
        if (section := section_of(field)) is None:
            continue
        if values.get(name) == "none" and is_optional(field):
            values[name] = None
        elif isinstance(values.get(name), dict):
            _leave_out_sections(section, values[name])


def _fill_sections(model: type[BaseModel], values: dict[str, Any]) -> None:
    """Have an empty section, and a required one that is missing, be a section in which nothing is set."""
    for name, field in model.model_fields.items():
        if (section := section_of(field)) is None:
            continue
        is_empty = name in values and values[name] is None and not is_optional(field)
        if is_empty or (field.is_required() and name not in values and not is_optional(field)):
            values[name] = {}
        if isinstance(values.get(name), dict):
            _fill_sections(section, values[name])


@dataclass(frozen=True)
class _Explanation:
    """Says in a line what is wrong, where it is, and what would be right."""

    file: Path | None
    document: Document
    variables: _Variables

    def lines(self, error: ValidationError) -> list[str]:
        """Return a line for each value that is wrong, even if it could be right in several ways."""
        reasons: dict[Place, list[str]] = {}
        inputs: dict[Place, Any] = {}
        for mistake in error.errors(include_url=False):
            if mistake["type"] == "default_factory_not_called":  # for want of a value that is named itself
                continue
            place = mistake["loc"] if mistake["type"] == "missing" else self._place(mistake["loc"])
            reasons.setdefault(place, []).append(self._reason(mistake, place))
            inputs[place] = None if mistake["type"] in ("extra_forbidden", "missing") else mistake["input"]
        return [
            f"{self._where(place, inputs[place])}{'; or: '.join(dict.fromkeys(found))}"
            for place, found in reasons.items()
        ]

    def _place(self, loc: Place) -> Place:
        """Return the part of `loc` that is in the input: pydantic adds the alternatives of a union."""
        names = {
            setting.path[:end] for setting in self.variables.known for end in range(len(setting.path) + 1)
        }
        for end in range(len(loc), 0, -1):
            place = loc[:end]
            if place in self.document.lines or place in names:
                return place
            if end == len(loc) and loc[:-1] in names and not self._setting(loc[:-1]):
                return place  # an unknown key that stands nowhere
        return ()

    def _reason(self, mistake: Any, place: Place) -> str:
        kind, setting = mistake["type"], self._setting(place)
        if kind == "extra_forbidden":
            return self._unknown_key(place)
        if kind == "missing":
            return f"is required; {_how_to_set(setting)}" if setting else "is required"
        reason = str(mistake["msg"]).removeprefix("Value error, ").replace("valid tuple", "valid list")
        if kind == "byte_size":
            reason = WRITE_A_SIZE
        if self._is_secret(place):
            given = str(mistake["input"])
            return mask_quoted(reason.replace(given, "***") if given else reason)
        if kind == "string_type" and isinstance(mistake["input"], bool | int | float | date):
            return f"{reason}; write it in quotes"
        return reason

    def _where(self, place: Place, value: Any) -> str:
        setting = self._setting(place)
        if setting and setting.path in self.variables.texts:
            text = self.variables.texts[setting.path]
            return f"{setting.variable}={'***' if setting.secret else shorten(text)}: "
        where = self._in_the_file(place)
        if value is None or isinstance(value, BaseModel | dict):
            return f"{where}: "
        return f"{where}: {'***' if self._is_secret(place) else shorten(value)}: "

    def _in_the_file(self, place: Place) -> str:
        known = (place[:end] for end in range(len(place), 0, -1) if place[:end] in self.document.lines)
        line = next((self.document.lines[each] for each in known), None)
        name = dotted(place) or "the settings"
        return name if line is None else f"{self.file}:{line}: {name}"

    def _setting(self, place: Place) -> Setting | None:
        """Return the setting that `place` is, or is in."""
        return next(
            (setting for setting in self.variables.known if place[: len(setting.path)] == setting.path), None
        )

    def _is_secret(self, place: Place) -> bool:
        """Return whether a value at `place` may hold a secret, be it a setting or a section."""
        return any(
            setting.secret and setting.path[: len(place)] == place[: len(setting.path)]
            for setting in self.variables.known
        )

    def _unknown_key(self, place: Place) -> str:
        end = len(place) - 1
        siblings = sorted(
            {
                setting.path[end]
                for setting in self.variables.known
                if len(setting.path) > end and setting.path[:end] == place[:end]
            }
        )
        near = difflib.get_close_matches(str(place[-1]), siblings, 1)
        if near:
            return f"unknown key; did you mean {near[0]}?"
        return f"unknown key; there are {', '.join(siblings)}" if siblings else "unknown key"


def _how_to_set(setting: Setting) -> str:
    return "set it in the file" + (f", or as {setting.variable}" if setting.variable else "")
