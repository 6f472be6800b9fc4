from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import pytest
import yaml
from pydantic import AfterValidator, Field, SecretStr

from grpc_common.config.durations import format_duration, parse_duration
from grpc_common.config.loading import ConfigError, changed, load, to_yaml
from grpc_common.config.section import Section
from grpc_common.config.sections import DrainConfig, ServerConfig, ServerSection
from grpc_common.config.settings import settings
from grpc_common.config.units import CredentialUrl, Masked

GUIDE = """
server:
  port: 50051
  max_recv_msg_size: 10485760
  max_send_msg_size: 10485760
  keepalive:
    max_connection_idle: 15s
    max_connection_age: 30s
    max_connection_age_grace: 5s
    time: 5s
    timeout: 1s

logging:
  level: info
  format: json

tracing:
  enabled: true
  sampling_rate: 0.1

metrics:
  enabled: true
  port: 9090
"""
"""The ConfigMap of the guide that this project grew from."""


class DatabaseConfig(ServerConfig):
    """A service's own setting, with a password in it."""

    url: Annotated[CredentialUrl, Field(max_length=40)] = ""


class DatabaseSection(Section):
    """Settings whose variables are also those of a Service called database."""

    url: str
    port: str = ""


@pytest.fixture
def file(tmp_path: Path):
    """Write a configuration file and return its path."""

    def write(content: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(content)
        return path

    return write


def mistakes(config_class=ServerConfig, file: Path | None = None, **environ: str) -> list[str]:
    """Load a configuration that is wrong, and return the lines of the error."""
    with pytest.raises(ConfigError) as caught:
        load(config_class, file, environ)
    return str(caught.value).splitlines()


def test_defaults_are_the_documented_ports():
    """Without a file and variables a server listens where the guide says."""
    config = load(ServerConfig, environ={})
    assert (config.server.port, config.metrics.port) == (50051, 9090)


def test_guides_own_file(file):
    """The ConfigMap of the guide is understood as it is."""
    config = load(ServerConfig, file(GUIDE), {})
    assert config.server.max_recv_msg_size == 10 * 2**20
    assert config.server.keepalive.max_connection_idle == 15
    assert config.server.keepalive.timeout == 1
    assert config.logging.format == "json"
    assert config.tracing.enabled
    assert config.file is not None


def test_empty_file_has_the_defaults(file):
    """A file without keys, or with comments alone, changes nothing."""
    assert changed(load(ServerConfig, file("# nothing yet\n"), {}), load(ServerConfig, environ={})) == []


def test_environment_overrides_the_file(file):
    """A variable wins over the file, and leaves the rest of the section as it is."""
    path = file("server:\n  port: 1\n  health_port: 2\n  keepalive: {time: 5s}\n")
    config = load(
        ServerConfig, path, {"GRPC_PORT": "0", "KEEPALIVE_TIME": "1m30s", "TRACING_ENABLED": "true"}
    )
    assert (config.server.port, config.server.health_port) == (0, 2)
    assert config.server.keepalive.time == 90
    assert config.tracing.enabled


def test_numbers_are_seconds_in_python_alone(file):
    """A program may leave out the unit that a file must have."""
    section = ServerSection(default_deadline=2, default_stream_deadline=None, drain=DrainConfig(delay=0))
    assert (section.default_deadline, section.default_stream_deadline, section.drain.delay) == (2, None, 0)
    with pytest.raises(ValueError, match="with its unit"):
        ServerSection(default_deadline=True)
    with pytest.raises(ValueError, match="with its unit"):
        DrainConfig(delay=False)
    path = file("server: {default_deadline: 2, default_stream_deadline: null, drain: {delay: 0}}")
    assert all("with its unit" in line for line in mistakes(file=path))
    assert len(mistakes(file=path)) == 3


def test_section_can_be_left_out_in_words(file):
    """`none` is no section, where there may be none; a variable of it makes it anyway."""

    class Config(ServerConfig):
        database: DatabaseSection | None = DatabaseSection(url="x")

    path = file("database: none")
    assert load(Config, path, {}).database is None
    assert load(Config, path, {"DATABASE_URL": "y"}).database == DatabaseSection(url="y")
    assert mistakes(file=file("logging: none"))[0].endswith(
        "Input should be a valid dictionary or instance of LoggingConfig"
    )


def test_deadlines_may_be_unlimited(file):
    """`none` in a file or a variable is no limit, and is printed so; an empty value is no way to say it."""
    path = file("server: {default_stream_deadline: none}")
    config = load(ServerConfig, path, {"DEFAULT_DEADLINE": "none"})
    assert (config.server.default_deadline, config.server.default_stream_deadline) == (None, None)
    assert yaml.safe_load(to_yaml(config))["server"]["default_deadline"] == "none"
    assert load(ServerConfig, file(to_yaml(config)), {}).server.default_deadline is None
    for content in ("server: {default_deadline: }", "server: {default_deadline: 5}"):
        (line,) = mistakes(file=file(content))
        assert line.endswith(' or "2h", or "none" for no limit')


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_empty_variables(file, empty):
    """They are none where that is the default, and an empty text; for other settings they say nothing."""
    content = """
server: {port: 1, health_port: 2, default_deadline: 3s, reflection: false, tls: {directory: /certs}}
tracing: {service_name: user}
logging: {level: debug}
"""
    names = ["GRPC_PORT", "HEALTH_PORT", "DEFAULT_DEADLINE", "REFLECTION", "TLS_DIRECTORY", "LOGGING_LEVEL"]
    config = load(ServerConfig, file(content), dict.fromkeys([*names, "TRACING_SERVICE_NAME"], empty))
    assert (config.server.health_port, config.server.tls.directory) == (None, None)
    assert config.tracing.service_name == ""
    assert (config.server.port, config.server.default_deadline, config.server.reflection) == (1, 3, False)
    assert config.logging.level == "debug"


def test_empty_text_in_the_file(file):
    """What a template leaves empty means the same there."""
    config = load(ServerConfig, file("server: {health_port: '', tls: {directory: ''}}"), {})
    assert (config.server.health_port, config.server.tls.directory) == (None, None)


def test_space_around_a_variable_is_ignored():
    """A Secret or a file often ends with a newline."""
    config = load(
        ServerConfig, environ={"GRPC_PORT": "5\n", "LOGGING_LEVEL": " debug ", "DRAIN_GRACE": "1s\n"}
    )
    assert (config.server.port, config.logging.level, config.server.drain.grace) == (5, "debug", 1)


class PrefixedConfig(ServerConfig):
    """A configuration whose variables are its own."""

    env_prefix = "USER_"

    database: DatabaseSection


def test_prefix_of_variables():
    """Variables count with the prefix alone, and errors name them so."""
    environ = {"USER_METRICS_PORT": "5", "METRICS_PORT": "http", "USER_DATABASE_URL": "x"}
    config = load(PrefixedConfig, environ=environ)
    assert (config.metrics.port, config.database.url) == (5, "x")
    assert set(mistakes(PrefixedConfig, USER_GRPC_PORT="http", DATABASE_URL="x")) == {
        "database.url: is required; set it in the file, or as USER_DATABASE_URL",
        "USER_GRPC_PORT='http': Input should be a valid integer, unable to parse string as an integer",
    }


@pytest.mark.parametrize(
    ("variable", "service", "config_class"),
    [
        ("METRICS_PORT", "metrics", ServerConfig),
        ("GRPC_PORT", "grpc", ServerConfig),
        ("HEALTH_PORT", "health", ServerConfig),
        ("USER_METRICS_PORT", "user-metrics", PrefixedConfig),
        ("USER_DATABASE_PORT", "user-database", PrefixedConfig),
    ],
)
@pytest.mark.parametrize("value", ["tcp://10.0.0.1:9090", "tcp://[fd00::1]:9090", "udp://10.0.0.1:53"])
def test_variables_of_services_are_explained(variable, service, config_class, value):
    """What Kubernetes sets for a Service is no mistake of whoever reads the error, who learns what to do."""
    environ = {variable: value} | ({"USER_DATABASE_URL": "x"} if config_class is PrefixedConfig else {})
    (line,) = mistakes(config_class, **environ)
    assert line.startswith(f"{variable}='{value}': Kubernetes sets it, since a Service '{service}' is in ")
    assert "set enableServiceLinks: false" in line
    assert "env_prefix" in line


def test_section_in_the_file_is_not_lost(file):
    """A variable does not hide that its section is none."""
    (line,) = mistakes(file=file("server: 5"), GRPC_PORT="1")
    assert "config.yaml:1: server: 5: " in line


def test_every_mistake_is_named_at_once(file):
    """Each line has the file and line or the variable, the key, the value, and what would be right."""
    path = file("server:\n  port: http\n  keepalive:\n    tme: 5s\n    timeout: 5\nlogging:\n  level: loud\n")
    lines = mistakes(file=path, METRICS_PORT="65536", DRAIN_GRACE="ten")
    duration = 'write a duration with its unit: "500ms", "15s", "1m30s" or "2h"'
    integer = "Input should be a valid integer, unable to parse string as an integer"
    assert set(lines) == {
        f"{path}:2: server.port: 'http': {integer}",
        f"{path}:4: server.keepalive.tme: unknown key; did you mean time?",
        f"{path}:5: server.keepalive.timeout: 5: {duration}",
        f"{path}:7: logging.level: 'loud': Input should be 'debug', 'info', 'warning' or 'error'",
        "METRICS_PORT='65536': Input should be less than or equal to 65535",
        f"DRAIN_GRACE='ten': {duration}",
    }


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("server: {port: yes}", "config.yaml:1: server.port: True: write a number"),
        ("server: {port: -1}", "greater than or equal to 0"),
        ("server: {max_recv_msg_size: 3GiB}", "less than or equal to 2147483647"),
        ("server: {max_recv_msg_size: ten}", "'ten'"),
        ("server: {keepalive: {time: 0s}}", "greater than 0"),
        ("server: {keepalive: {time: 600h}}", "less than or equal to"),
        ("tracing: {sampling_rate: 1.5}", "less than or equal to 1"),
        ("server: 5", "config.yaml:1: server: 5: "),
        ("port: 5", "config.yaml:1: port: unknown key; there are logging, metrics, server, tracing"),
        ("server: {port: 1, port: 2}", "config.yaml:1: server.port: is there twice"),
        ("- a", "must hold keys such as 'server:', not a list"),
        ("server: {port", "config.yaml:1: not YAML: "),
        ("server: {health_port: 5, port: 5}", "both 5; give health a port of its own"),
        ("server: {tls: {require_client_certificate: true}}", "needs directory"),
        ("server: {jwt: {jwks: http://a.test/keys, issuer: i, audience: a}}", "write https://, or anyone"),
        (
            "server: {jwt: {jwks: 'https://u#:p@a.test/k', issuer: i, audience: a}}",
            "leave the user and password",
        ),
        (
            "server: {jwt: {jwks: https://u:p@a.test/k, issuer: i, audience: a}}",
            "leave the user and password",
        ),
        ("server: {jwt: {jwks: file:///keys, issuer: i, audience: a}}", "write the path of a file"),
        ("server: {jwt: {jwks: '', issuer: i, audience: a}}", "write the path of a file"),
        ("server: {jwt: {jwks: k, issuer: '', audience: a}}", "server.jwt.issuer: "),
        ("server: {jwt: {jwks: k, issuer: i}}", "server.jwt.audience: is required"),
        ("server: {jwt: {jwks: k, issuer: i, audience: a, algorithms: [HS256]}}", "server.jwt.algorithms"),
        ("server: {jwt: {jwks: k, issuer: i, audience: a, algorithms: [none]}}", "server.jwt.algorithms"),
        ("server: {jwt: {jwks: k, issuer: i, audience: a, algorithms: []}}", "server.jwt.algorithms"),
    ],
)
def test_impossible_values_are_refused(file, content, complaint):
    """A value that can't work is refused when the server starts, not when it is used."""
    assert complaint in "\n".join(mistakes(file=file(content)))


def test_missing_file_is_named(tmp_path):
    """A file that is not there is an error, not the defaults."""
    assert mistakes(file=tmp_path / "none.yaml") == [
        f"{tmp_path}/none.yaml: No such file or directory; name a file that can be read"
    ]


def test_control_characters_are_escaped(file):
    """A value can't forge a second line of the error."""
    (line,) = mistakes(GRPC_PORT="1\n2\x1b[31m")
    assert line.isprintable()
    (line,) = mistakes(file=file('server: {port: "1\\n2\\e[31m"}'))
    assert line.isprintable()
    (line,) = mistakes(file=file('"a\\nb\\e[31m": 1'))
    assert line.isprintable()


def test_secrets_are_masked():
    """Neither the printed configuration nor an error shows a password."""
    url = "postgresql://user:hunter2@db/users"
    shown = to_yaml(load(DatabaseConfig, environ={"URL": url}))
    assert "url: postgresql://user:***@db/users\n" in shown
    (line,) = mistakes(DatabaseConfig, URL="postgresql://user:hunter2@db/" + "x" * 40)
    assert line.startswith("URL=***: ")


class Replica(Section):
    """A section that can be there many times."""

    name: str = ""
    url: CredentialUrl = ""


def refuse(url: str) -> str:
    """Refuse a URL in the words of the standard library, which quote a part of it."""
    urlsplit(f"//{url}").port.bit_length()
    raise ValueError(f"{url} is wrong")


class SecretsConfig(ServerConfig):
    """Secrets wherever a setting can hold one."""

    urls: Annotated[list[CredentialUrl], Field(max_length=1)] = []  # noqa: RUF012 (pydantic copies it)
    by_name: dict[str, Annotated[CredentialUrl, AfterValidator(refuse)]] = {}  # noqa: RUF012
    maybe: Annotated[CredentialUrl, Field(max_length=5)] | None = None
    replicas: list[Replica] = []  # noqa: RUF012
    replica: Replica = Replica()
    token: SecretStr = SecretStr("")
    own: Annotated[int, Masked()] = 0
    literal: Annotated[CredentialUrl, AfterValidator(refuse)] = ""


@pytest.mark.parametrize(
    "content",
    [
        "urls: [CANARY, CANARY]",
        "urls: CANARY",
        "urls: [[CANARY]]",
        "by_name: {a: 'u:CANARY'}",
        "by_name: {a: {b: CANARY}}",
        "maybe: CANARY",
        "replicas: [{url: [CANARY]}]",
        "replicas: [CANARY]",
        "replicas: CANARY",
        "replica: CANARY",
        "replica: {url: [CANARY]}",
        "replica: {url postgresql://u:CANARY@h}",
        "replica:\n  url:postgresql://u:CANARY@h",
        "replica:\n  url:postgresql://u:CANARY@h\n  name: x",
        'replica: {url: "u:CANARY@h',
        "replica: {url: *CANARY}",
        "replica: {url: !CANARY x}",
        "replica: {url: @CANARY}",
        "replica: {url: 'a', 'u:CANARY@h': 1, 'u:CANARY@h': 2}",
        "token: [CANARY]",
        "own: CANARY",
        "literal: u:CANARY",
        "literal: u:1:CANARY",
    ],
)
def test_no_mistake_shows_a_secret(file, content):
    """No error has a secret: in the place of a section, in a list, as a key, in broken YAML, ..."""
    (line, *_) = lines = mistakes(SecretsConfig, file(content))
    assert "CANARY" not in "".join(lines)
    assert line.startswith(str(file(content)))


def test_no_variable_shows_a_secret():
    """Nor does that of a variable."""
    for variable in ("URLS", "MAYBE", "OWN", "LITERAL"):
        (line,) = mistakes(SecretsConfig, **{variable: "u:CANARY,u:CANARY"})
        assert line.startswith(f"{variable}=***: ")
        assert "CANARY" not in line


def test_repr_of_a_configuration_shows_no_secret():
    """A configuration in a traceback, a log or a debugger has no password."""
    config = SecretsConfig(
        urls=["u:CANARY"], maybe="CANAR", replica=Replica(name="one", url="x://u:CANARY@h"), token="CANARY"
    )
    for text in (repr(config), str(config), repr(config.replica)):
        assert "CANAR" not in text
        assert "name='one', url='***'" in text


def test_secret_that_is_empty():
    """What is wrong with an empty secret is told in plain words."""

    class Config(ServerConfig):
        url: Annotated[CredentialUrl, Field(min_length=1)] = "x"

    assert mistakes(Config, URL="") == ["URL=***: Value should have at least 1 item after validation, not 0"]


def test_mistake_beside_a_secret_is_shown(file):
    """What is wrong in a setting that is no secret is shown, even in a section with one."""
    assert "config.yaml:1: replica.name: 5: " in "".join(mistakes(SecretsConfig, file("replica: {name: 5}")))


def test_broken_yaml_is_explained(file):
    """An error of the YAML has the line, and what the parser expected."""
    (line,) = mistakes(file=file("server:\n  port: [1\n"))
    expected = "while parsing a flow sequence: expected ',' or ']', but got '<stream end>'"
    assert line.endswith(f"config.yaml:3: not YAML: {expected}")


def test_printed_configuration_can_be_loaded(file):
    """What --print-config shows is a file with the same settings."""
    config = load(ServerConfig, environ={"DRAIN_DELAY": "1500ms", "MAX_RECV_MSG_SIZE": "4MiB"})
    shown = to_yaml(config)
    assert yaml.safe_load(shown)["server"]["drain"]["delay"] == "1500ms"
    assert yaml.safe_load(shown)["server"]["max_recv_msg_size"] == "4MiB"
    assert changed(load(ServerConfig, file(shown), {}), config) == []


def test_configuration_is_immutable():
    """Nothing changes a configuration after it was read."""
    with pytest.raises(ValueError, match="frozen"):
        load(ServerConfig, environ={}).server.port = 1


def test_every_setting_is_explained_and_has_a_variable_of_its_own():
    """The help has a sentence for each setting, and no two share a variable."""
    known = settings(ServerConfig)
    assert [setting.key for setting in known if not setting.description] == []
    variables = [setting.variable for setting in known if setting.variable]
    assert len(set(variables)) == len(variables)


def test_changed_keys():
    """The difference of two configurations is named by its keys."""
    before = load(ServerConfig, environ={})
    after = load(ServerConfig, environ={"LOGGING_LEVEL": "debug", "DRAIN_DELAY": "1s"})
    assert changed(before, after) == ["server.drain.delay", "logging.level"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("15s", 15), ("1m30s", 90), ("2h", 7200), ("0s", 0), ("1.5s", 1.5)]
)
def test_durations(text, seconds):
    """Durations are read as Go and Kubernetes write them, and what is written is read as the same."""
    assert parse_duration(text) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1 s", "5sec", "1s ", "\u0661s"])
def test_other_durations_are_refused(text):
    """A duration without a unit, or with a strange one, is no guess."""
    with pytest.raises(ValueError, match="with its unit"):
        parse_duration(text)
