from __future__ import annotations

import socket
from enum import Enum
from typing import Annotated, Literal

import pytest
from pydantic import Field, SecretStr, computed_field, field_validator

from grpc_common import ConfigError, CredentialUrl, Section, ServerConfig, load
from grpc_common.config.loading import changed, to_yaml
from grpc_common.config.settings import settings


class Color(Enum):
    """A choice."""

    RED = "red"
    BLUE = "blue"


class PoolConfig(Section):
    """A section of a section."""

    size: int


class CacheConfig(Section):
    """A section that need not be there."""

    url: str
    size: int = 5
    pool: PoolConfig


class StoreConfig(Section):
    """A section that must be there."""

    url: CredentialUrl
    """Where the store is."""
    hosts: list[str]
    region: str = Field(..., min_length=2)

    @field_validator("region")
    @classmethod
    def _check(cls, region: str) -> str:
        if region == "mars":
            raise ValueError("is too far away")
        return region


class Item(Section):
    """One of a list."""

    name: str
    password: SecretStr = SecretStr("")


class Config(ServerConfig):
    """A configuration with settings of all kinds."""

    store: StoreConfig
    cache: CacheConfig | None = None
    wrapped: Annotated[CacheConfig, "a note"] | None = None
    made: PoolConfig = Field(default_factory=lambda: PoolConfig(size=3))
    items: list[Item] = Field(default_factory=list)
    tags: list[str] = Field(["a", "b"])
    numbers: set[int] = Field(set())
    pair: tuple[int, str] = (1, "x")
    weights: dict[str, int] = Field({})
    color: Color = Color.RED
    mode: Literal["fast", "safe"] | None = None
    token: SecretStr = SecretStr("hunter2")
    urls: list[CredentialUrl] = Field(["http://ada:hunter2@host"])
    either: int | bool = 5
    host: str = Field(default_factory=socket.gethostname)
    title: str = Field(default_factory=lambda data: data["store"].region)

    @computed_field
    @property
    def region(self) -> str:
        """What is no setting."""
        return self.store.region


REQUIRED = {"STORE_URL": "http://ada:hunter2@host", "STORE_HOSTS": "a, b", "STORE_REGION": "eu"}


def own_settings() -> dict[str, tuple[str, str]]:
    """Return variable and default of each setting of Config that not every server has."""
    common = {setting.key for setting in settings(ServerConfig)}
    return {
        setting.key: (setting.variable, setting.default_text)
        for setting in settings(Config)
        if setting.key not in common
    }


def mistakes(
    content: str = "", config_class: type[ServerConfig] = Config, *, file, **environ: str
) -> list[str]:
    """Load a configuration that is wrong, and return the lines of the error, without the folder."""
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load(config_class, file, environ)
    return str(caught.value).replace(str(file), file.name).splitlines()


@pytest.fixture
def file(tmp_path):
    """Return where a file may be."""
    return tmp_path / "c.yaml"


def test_settings_are_known_without_an_object():
    """A class with required settings and sections tells its settings: key, variable and default."""
    assert own_settings() == {
        "store.url": ("STORE_URL", "required"),
        "store.hosts": ("STORE_HOSTS", "required"),
        "store.region": ("STORE_REGION", "required"),
        "cache.url": ("CACHE_URL", "required with cache"),
        "cache.size": ("CACHE_SIZE", "5"),
        "cache.pool.size": ("CACHE_POOL_SIZE", "required with cache"),
        "wrapped.url": ("WRAPPED_URL", "required with wrapped"),
        "wrapped.size": ("WRAPPED_SIZE", "5"),
        "wrapped.pool.size": ("WRAPPED_POOL_SIZE", "required with wrapped"),
        "made.size": ("MADE_SIZE", "3"),
        "items": ("", "none"),
        "tags": ("TAGS", "a,b"),
        "numbers": ("NUMBERS", "none"),
        "pair": ("PAIR", "1,x"),
        "weights": ("", "none"),
        "color": ("COLOR", "red"),
        "mode": ("MODE", "none"),
        "token": ("TOKEN", "**********"),
        "urls": ("URLS", "http://ada:***@host"),
        "either": ("EITHER", "5"),
        "host": ("HOST", socket.gethostname()),
        "title": ("TITLE", "computed"),
    }


def test_required_settings_are_named(file):
    """What is missing is told with its key and its variable, whether its section is in the file or not."""
    expected = [
        f"store.{name}: is required; set it in the file, or as STORE_{name.upper()}"
        for name in ("url", "hosts", "region")
    ]
    assert mistakes(file=file) == expected
    assert mistakes("store:", file=file) == [f"c.yaml:1: {line}" for line in expected]
    assert mistakes(file=file, STORE_URL="", STORE_HOSTS=" ", STORE_REGION="\n") == expected


def test_required_settings_can_be_set(file):
    """Variables alone are enough, a list separated by commas included; what is printed can be loaded."""
    config = load(Config, environ=REQUIRED)
    assert (config.store.url, config.store.hosts) == ("http://ada:hunter2@host", ["a", "b"])
    assert config.title == "eu"
    file.write_text(to_yaml(config))
    assert "hunter2" not in file.read_text()
    again = load(Config, file, {"TOKEN": "hunter2", "STORE_URL": REQUIRED["STORE_URL"]})
    assert changed(again, config) == ["urls"]  # whose password the file does not have


def test_optional_section(file):
    """It is there once something of it is set, and then its required settings must be; empty it is none."""
    assert load(Config, environ=REQUIRED).cache is None
    for content, place in (("", ""), ("cache: {}", "c.yaml:1: ")):
        variables = {} if content else {"CACHE_SIZE": "7"}
        assert mistakes(content, file=file, **REQUIRED, **variables) == [
            f"{place}cache.url: is required; set it in the file, or as CACHE_URL",
            f"{place}cache.pool.size: is required; set it in the file, or as CACHE_POOL_SIZE",
        ]
    config = load(Config, environ=REQUIRED | {"CACHE_URL": "x", "CACHE_POOL_SIZE": "9"})
    assert (config.cache.url, config.cache.size, config.cache.pool.size) == ("x", 5, 9)
    assert changed(load(Config, environ=REQUIRED), config) == ["cache.url", "cache.size", "cache.pool.size"]
    file.write_text("cache:")
    assert load(Config, file, REQUIRED).cache is None


def test_mistakes_in_settings_of_all_kinds(file):
    """Each has its line and its reason, in lists and mappings too; alternatives are in one line."""
    content = """\
store: {region: mars}
items: [{name: a}, {nam: b, password: [hunter2]}]
numbers: [1, a]
weights: {a: b}
either: [1]
urls: [[hunter2]]
token: [hunter2]
mode: slow
"""
    lines = mistakes(content, file=file, STORE_URL="x", STORE_HOSTS="a", COLOR="green", PAIR="1,2,3")
    integer = "Input should be a valid integer"
    assert set(lines) == {
        "c.yaml:1: store.region: 'mars': is too far away",
        "c.yaml:2: items.1.name: is required; set it in the file",
        "c.yaml:2: items.1.nam: unknown key",
        "c.yaml:2: items.1.password: ***: Input should be a valid string",
        f"c.yaml:3: numbers.1: 'a': {integer}, unable to parse string as an integer",
        f"c.yaml:4: weights.a: 'b': {integer}, unable to parse string as an integer",
        f"c.yaml:5: either: [1]: {integer}; or: Input should be a valid boolean",
        "c.yaml:6: urls.0: ***: Input should be a valid string",
        "c.yaml:7: token: ***: Input should be a valid string",
        "c.yaml:8: mode: 'slow': Input should be 'fast' or 'safe'",
        "COLOR='green': Input should be 'red' or 'blue'",
        "PAIR='1,2,3': Tuple should have at most 2 items after validation, not 3",
    }


def test_section_that_is_a_secret_by_mistake_is_not_shown(file):
    """Whoever writes a URL in the place of its section does not find it in the log."""
    assert mistakes("store: postgresql://ada:hunter2@db", file=file) == [
        "c.yaml:1: store: ***: Input should be a valid dictionary or instance of StoreConfig"
    ]


class Aliased(ServerConfig):
    """A field with another name."""

    size: int = Field(5, alias="Size")


class Clash(ServerConfig):
    """A setting with the variable of another."""

    keepalive_time: int = 5


class ConfigSection(Section):
    """A section called config."""

    file: str = ""


class CalledConfig(ServerConfig):
    """A setting with the variable of --config."""

    config: ConfigSection = ConfigSection()


@pytest.mark.parametrize(
    ("config_class", "message"),
    [
        (Aliased, "Aliased.size has an alias; a setting is called as its field is"),
        (Clash, "KEEPALIVE_TIME would set server.keepalive.time and keepalive_time; rename one of them"),
        (CalledConfig, "CONFIG_FILE would set --config and config.file; rename one of them"),
    ],
)
def test_impossible_classes_are_refused(config_class, message):
    """A setting that could not be set as the help says is a mistake of the program."""
    with pytest.raises(TypeError, match=message):
        settings(config_class)


class Node(Section):
    """A section that holds another one of its kind."""

    size: int = 1
    below: Node | None = None


class Tree(ServerConfig):
    """A configuration without an end."""

    node: Node = Node()


def test_section_that_holds_itself(file):
    """It can be configured as deep as the file is."""
    assert "node.size" in {setting.key for setting in settings(Tree)}
    file.write_text("node: {size: 2, below: {size: 3, below: {size: 4}}}")
    assert load(Tree, file, {}).node.below.below.size == 4
