import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from grpc_common import ConfigError, ServerConfig, load
from grpc_common.config.document import MAX_BYTES
from grpc_common.config.loading import changed
from grpc_common.config.yaml_file import read_document

FIRST_LINE = "c.yaml:1: "


def mistake(tmp_path: Path, content: bytes | str) -> str:
    """Load a file with this content, which is wrong, and return the error without the folder."""
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load(ServerConfig, path, {})
    return str(caught.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("content", ["", "# nothing", "---", "null", "~", "{}", "server:", "server: {}"])
def test_nothing_is_the_defaults(tmp_path, content):
    """A file without a setting, and a section without one, changes nothing."""
    (tmp_path / "c.yaml").write_text(content)
    assert changed(load(ServerConfig, tmp_path / "c.yaml", {}), ServerConfig()) == []


def test_empty_sections_at_all_levels(tmp_path):
    """A section with nothing below it has its defaults."""
    (tmp_path / "c.yaml").write_text("server:\n  keepalive:\n  drain:\nlogging:\n")
    assert changed(load(ServerConfig, tmp_path / "c.yaml", {}), ServerConfig()) == []


def test_yaml_that_saves_typing(tmp_path):
    """Anchors, aliases, merge keys and a byte order mark are read as YAML means them."""
    content = """\ufeff
server:
  keepalive: &times {time: 20s, timeout: 7s}
  drain: {<<: [{delay: 1s}, {delay: 2s, grace: 3s}], grace: 4s}
  port: 1_000
"""
    (tmp_path / "c.yaml").write_text(content)
    server = load(ServerConfig, tmp_path / "c.yaml", {}).server
    assert (server.keepalive.time, server.keepalive.timeout) == (20, 7)
    assert (server.drain.delay, server.drain.grace, server.port) == (1, 4, 1000)


QUOTES = "write a decimal number, or quotes around a text"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            "tracing: {service_name: 2026-01-01}",
            "tracing.service_name: 2026-01-01: Input should be a valid string",
        ),
        ("tracing: {service_name: 2026-13-45}", f"this is no timestamp; {QUOTES}"),
        ("server: {port: 2026-01-01 25:61:61}", f"is no timestamp; {QUOTES}"),
        ("server: {port: 1:30}", f"a number of this form is ambiguous; {QUOTES}"),
        ("server: {port: 0123}", f"a number of this form is ambiguous; {QUOTES}"),
        (
            "tracing: {service_name: yes}",
            "tracing.service_name: True: Input should be a valid string; write it in quotes",
        ),
        ("tracing: {service_name: !!binary aGk=}", "a tag is not for configurations"),
        ("server: !!set {port}", "a tag is not for configurations"),
        (
            "server: !!python/object:os.system {}",
            "a tag is not for configurations",
        ),
        ("server: !mine 5", "a tag is not for configurations"),
        ("1: x", "1: unknown key"),
        ("null: x", "null: unknown key"),
        ("on: x", "on: unknown key"),
        ("[a]: x", "a key must be text"),
        ("{a: b}: x", "a key must be text"),
        ("!!binary aGk=: x", "a key must be text"),
        ("server: &a [*a]", "an alias stands for itself"),
        ("&a {server: *a}", "an alias stands for itself"),
        ("server: &a {<<: *a}", "an alias stands for itself"),
        ("server: {<<: 5}", "<< stands before a mapping"),
        ("server: *nothing", "not YAML: found undefined alias ***"),
        ("server: [{a: 1, a: 2}]", "server.0.a: is there twice"),
        ("tracing: {sampling_rate: .nan}", "tracing.sampling_rate: nan: Input should be a finite number"),
        ("tracing: {sampling_rate: .inf}", "tracing.sampling_rate: inf: Input should be a finite number"),
        ("tracing: {sampling_rate: 1" + 400 * "0" + "}", "tracing.sampling_rate: 1000"),
        ("server: {port: 1" + 5000 * "0" + "}", f"is no int; {QUOTES}"),
        ("server: {port: 0x1" + 5000 * "0" + "}", "server.port: a number of thousands of digits"),
        ("server: {max_recv_msg_size: 1" + 400 * "0" + "}", "server.max_recv_msg_size: 1000"),
        ("server: {max_recv_msg_size: '1" + 400 * "0" + "'}", "server.max_recv_msg_size: '1000"),
        ("server: {max_recv_msg_size: .inf}", "server.max_recv_msg_size: inf"),
        ("server: {drain: {delay: -1s}}", "server.drain.delay: '-1s': write a duration"),
        ("server: {drain: {delay: 1" + 400 * "0" + "s}}", "server.drain.delay: inf"),
        (10_000 * "[", "nested more than 32 deep"),
        (10_000 * "{a: ", "nested more than 32 deep"),
        (10_000 * "- ", "nested more than 32 deep"),
        ("server: [" + 20_000 * "a," + "]", "more than 10000 values"),
        ("- a", "must hold keys such as 'server:', not a list"),
        ("text", "must hold keys such as 'server:', not a single value"),
        (b"server: \xff", "not YAML: not UTF-8, because of the byte 0xFF"),
        ("server: 1".encode("utf-16"), "not YAML: not UTF-8, because of the byte 0xFF"),
        (b"\xed\xa0\x80", "not YAML: not UTF-8, because of the byte 0xED"),
        (b"server: \x00", "not YAML: a control character, U+0000"),
        (b"server: \x1b[31m", "not YAML: a control character, U+001B"),
        ("%YAML 3.0\n---\n", "not YAML: found incompatible YAML document"),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_what_is_no_configuration(tmp_path, content, complaint):
    """Whatever is in the file, the error is a line with file and line and the reason."""
    shown = mistake(tmp_path, content).splitlines()[0]
    assert shown.startswith(FIRST_LINE)
    assert complaint in shown
    assert len(shown) < 300


def test_line_of_a_mistake(tmp_path):
    """The line is that of the mistake, for mistakes of every kind."""
    assert mistake(tmp_path, "server:\n  port: 1\n---\na: b").startswith("c.yaml:3: not YAML: ")
    assert mistake(tmp_path, b"server:\n  port: \xff").startswith("c.yaml:2: not YAML: ")
    assert mistake(tmp_path, b"server:\n  port: \x07").startswith("c.yaml:2: not YAML: ")
    assert mistake(tmp_path, "server:\n  port: 0123").startswith("c.yaml:2: a number")


def test_aliases_that_stand_for_billions(tmp_path):
    """A few lines can't fill the memory."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for above, name in zip("abcdefghi", "bcdefghij", strict=True):
        lines.append(f"{name}: &{name} [{', '.join(10 * [f'*{above}'])}]")
    assert "more than 10000 values, with what aliases stand for" in mistake(tmp_path, "\n".join(lines))


def test_errors_are_bounded(tmp_path):
    """A long key, tag or name is cut, and so is a long list of mistakes."""
    for content in (f"? {'k' * 100_000}\n: 1", f"!{'t' * 100_000} x", f"server: *{'a' * 100_000}"):
        assert len(mistake(tmp_path, content)) < 500
    lines = mistake(tmp_path, "".join(f"key{number}: 1\n" for number in range(150))).splitlines()
    assert len(lines) == 101
    assert lines[-1] == "and 50 mistakes more"


def test_large_file_is_refused(tmp_path):
    """A file that no ConfigMap could hold is not read."""
    assert mistake(tmp_path, "#" * (MAX_BYTES + 1)) == f"c.yaml: is larger than {MAX_BYTES} bytes"
    (tmp_path / "c.yaml").write_text("#" * MAX_BYTES)
    assert changed(load(ServerConfig, tmp_path / "c.yaml", {}), ServerConfig()) == []


def test_what_is_no_file(tmp_path):
    """A folder, a pipe, a device, a name that can't be: an error at once, and no line more than one."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    names = ["/dev/zero", "", "a\0b", "x" * 5000, "none\n\x1b[31m", os.fsdecode(b"\xff")]
    for path in [tmp_path, pipe, *map(Path, names)]:
        with pytest.raises(ConfigError) as caught:
            load(ServerConfig, path, {})
        assert str(caught.value).isprintable()
        assert "; name a " in str(caught.value)


@given(st.binary(max_size=200))
@hypothesis_settings(max_examples=200)
def test_any_bytes(tmp_path_factory, content):
    """No bytes end in anything but a configuration or a ConfigError."""
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    is_loaded_or_refused(path)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.datetimes()
    | st.binary(max_size=4)
    | st.text(max_size=8)
    | st.sampled_from(["10s", "-1s", "1e999", "10MiB", "none", "0x" + 5000 * "f"])
)
KEYS = st.sampled_from(
    [
        "server",
        "port",
        "keepalive",
        "drain",
        "delay",
        "tls",
        "directory",
        "allowed_callers",
        "jwt",
        "jwks",
        "metrics",
        "tracing",
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(KEYS | st.text(max_size=4), below),
    max_leaves=20,
)


@given(st.dictionaries(KEYS, VALUES))
@hypothesis_settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
def test_any_structure(tmp_path_factory, content):
    """Nor does any YAML, with values of each kind in the place of each setting."""
    path = tmp_path_factory.getbasetemp() / "structure.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True))
    is_loaded_or_refused(path)


def is_loaded_or_refused(path: Path) -> None:
    """Load a file, and hold that an error of it can be read."""
    try:
        load(ServerConfig, path, {})
    except ConfigError as error:
        assert all(line.isprintable() for line in str(error).split("\n"))


def test_values_are_those_of_yaml(tmp_path):
    """What is read is what PyYAML reads, as far as it can be meant."""
    content = {"a": [1, 2.5, True, None, "x", {"b": "10s"}], "c": {"d": {"e": -5}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    assert read_document(tmp_path / "c.yaml").values == content
