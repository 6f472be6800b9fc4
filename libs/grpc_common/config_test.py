import pytest

from grpc_common import ConfigError, ServerConfig, load


def test_defaults_are_the_documented_ports(monkeypatch):
    """Without variables a server listens where the guide says."""
    monkeypatch.delenv("GRPC_PORT", raising=False)
    monkeypatch.delenv("METRICS_PORT", raising=False)
    config = load(ServerConfig)
    assert (config.grpc_port, config.metrics_port) == (50051, 9090)


def test_environment_overrides_defaults(monkeypatch):
    """A variable with the field's name in capitals sets it."""
    monkeypatch.setenv("GRPC_PORT", "0")
    monkeypatch.setenv("DRAIN_GRACE", "2.5")
    config = load(ServerConfig)
    assert (config.grpc_port, config.drain_grace) == (0, 2.5)


def test_every_mistake_is_named_at_once(monkeypatch):
    """The error has a line for each variable, with its value and what would be right."""
    monkeypatch.setenv("GRPC_PORT", "fifty")
    monkeypatch.setenv("METRICS_PORT", "65536")
    monkeypatch.setenv("DRAIN_GRACE", "inf")
    with pytest.raises(ConfigError) as caught:
        load(ServerConfig)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("GRPC_PORT='fifty': ")
    assert "less than or equal to 65535" in lines[1]
    assert lines[2].startswith("DRAIN_GRACE='inf': ")


def test_control_characters_are_escaped(monkeypatch):
    """A value can't forge a second line of the error."""
    monkeypatch.setenv("GRPC_PORT", "1\n2\x1b[31m")
    with pytest.raises(ConfigError) as caught:
        load(ServerConfig)
    assert str(caught.value).isprintable()


def test_configuration_is_immutable():
    """Nothing changes a configuration after it was read."""
    with pytest.raises(ValueError, match="frozen"):
        load(ServerConfig).grpc_port = 1
