import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import grpc
import pytest
import yaml

from grpc_common import ServerConfig
from grpc_common.config.loading import settings

SERVICE = '''
import grpc_common


class StoreConfig(grpc_common.Section):
    url: grpc_common.CredentialUrl = "postgresql://ada:lovelace@db/users"
    """Where the users are."""


class Config(grpc_common.ServerConfig):
    store: StoreConfig = StoreConfig()


async def serve(config: Config) -> int:
    """Serve what the test needs."""
    if "nowhere" in config.store.url:
        raise grpc_common.StartError("the store is not there; set STORE_URL")
    return await grpc_common.Server(config).run(store="open")


if __name__ == "__main__":
    grpc_common.command(serve, Config)()
'''


class Service:
    """The program of a service, in a folder without anything else."""

    def __init__(self, directory) -> None:
        self.directory = directory
        (directory / "service.py").write_text(SERVICE)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the program to its end."""
        return subprocess.run(
            [sys.executable, "service.py", *arguments],
            cwd=self.directory,
            env=self._environment(variables),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    @contextmanager
    def running(self, *arguments: str, **variables: str):
        """Run the program in the background; yield it and its first line."""
        with subprocess.Popen(
            [sys.executable, "service.py", *arguments],
            cwd=self.directory,
            env=self._environment(variables),
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process, process.stderr.readline()
            finally:
                process.kill()

    def write(self, name: str, text: str) -> str:
        """Write a file beside the program; return its name."""
        (self.directory / name).write_text(text)
        return name

    def _environment(self, variables: dict[str, str]) -> dict[str, str]:
        free = {"GRPC_PORT": "0", "METRICS_PORT": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
        return os.environ | free | {"COLUMNS": "200"} | variables


@pytest.fixture
def service(tmp_path):
    """Return a service's program."""
    return Service(tmp_path)


def lines_of_error(result: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines of an error, which is all that a program with exit code 1 prints."""
    assert result.returncode == 1
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("Error: ")
    return result.stderr.removeprefix("Error: ").splitlines()


def test_help_lists_every_setting(service):
    """--help has the docstring, and of each setting key, variable, meaning and default, without passwords."""
    result = service.run("--help")
    assert result.returncode == 0
    assert "Serve what the test needs." in result.stdout
    assert "CONFIG_FILE" in result.stdout
    words = " ".join(result.stdout.split())
    for setting in settings(ServerConfig):
        assert f" {setting.key} {setting.variable}".rstrip() + " " in words
        assert setting.description in words
    assert " store.url STORE_URL Where the users are. " in words
    assert "[10MiB]" in words
    assert "lovelace" not in words  # a password


def test_print_config_is_a_configuration(service):
    """What --print-config prints is taken by --config, and says the same again."""
    first = service.run(
        "--print-config", MAX_RECV_MSG_SIZE="1MiB", KEEPALIVE_TIME="1500ms", STORE_URL="x://db"
    )
    assert (first.returncode, first.stderr) == (0, "")
    shown = yaml.safe_load(first.stdout)
    assert shown["server"]["max_recv_msg_size"] == "1MiB"
    assert shown["server"]["keepalive"]["time"] == "1500ms"
    assert shown["store"] == {"url": "x://db"}
    service.write("printed.yaml", first.stdout)
    assert service.run("--print-config", "--config", "printed.yaml").stdout == first.stdout


def test_print_config_masks_secrets(service):
    """A password is never printed, not even a default or one from the environment."""
    assert "postgresql://ada:***@db/users" in service.run("--print-config").stdout
    shown = service.run("--print-config", STORE_URL="postgresql://ada:secret@db/users").stdout
    assert "secret" not in shown
    assert "postgresql://ada:***@db/users" in shown


def test_sources_of_configuration(service):
    """--config goes before CONFIG_FILE, and variables go before both."""
    one = service.write("one.yaml", "server: {max_concurrent_calls: 1}")
    two = service.write("two.yaml", "server: {max_concurrent_calls: 2}")

    def calls(*arguments: str, **variables: str) -> int:
        shown = service.run("--print-config", *arguments, **variables).stdout
        return yaml.safe_load(shown)["server"]["max_concurrent_calls"]

    assert calls() == ServerConfig().server.max_concurrent_calls
    assert calls(CONFIG_FILE=one) == 1
    assert calls("--config", two, CONFIG_FILE=one) == 2
    assert calls("--config", two, CONFIG_FILE=one, MAX_CONCURRENT_CALLS="3") == 3


@pytest.mark.parametrize("arguments", [["--prot", "1"], ["--config"], ["serve"]])
def test_mistake_in_the_command_line(service, arguments):
    """An unknown option, a missing value or an argument is explained, with exit code 2."""
    result = service.run(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in result.stderr


def test_all_mistakes_at_once(service):
    """Mistakes of the file and of variables come together, each with its place, and no line more."""
    service.write("wrong.yaml", "server:\n  prot: 1\n  max_recv_msg_size: big\nlogging:\n  level: loud\n")
    result = service.run("--config", "wrong.yaml", GRPC_PORT="70000", KEEPALIVE_TIME="soon")
    lines = lines_of_error(result)
    places = [
        "wrong.yaml:2: server.prot: unknown key; did you mean port?",
        "wrong.yaml:3: server.max_recv_msg_size: 'big': ",
        "wrong.yaml:5: logging.level: 'loud': ",
        "GRPC_PORT='70000': ",
        "KEEPALIVE_TIME='soon': ",
    ]
    assert len(lines) == len(places)
    for place in places:
        assert any(line.startswith(place) for line in lines), place


def test_mistake_does_not_show_a_secret(service):
    """A wrong value of a secret setting is not in the error."""
    service.write("wrong.yaml", "store: {url: [hunter2]}")
    (line,) = lines_of_error(service.run("--config", "wrong.yaml"))
    assert line.startswith("wrong.yaml:1: store.url")
    assert "hunter2" not in line


def test_missing_file(service):
    """A configuration that is not there is one line that names it."""
    (line,) = lines_of_error(service.run("--config", "none.yaml"))
    assert line == "none.yaml: No such file or directory; name a file that can be read"


def test_what_the_service_needs_is_missing(service):
    """A StartError of the service itself is one line."""
    lines = lines_of_error(service.run(STORE_URL="x://nowhere"))
    assert lines == ["the store is not there; set STORE_URL"]


@pytest.mark.parametrize("variable", ["GRPC_PORT", "METRICS_PORT", "HEALTH_PORT"])
def test_occupied_port(service, variable):
    """A port that is in use is one line with the variable to change."""
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        (line,) = lines_of_error(service.run(**{variable: str(port)}))
    assert re.fullmatch(rf"port {port} can't be served \(.*\); set {variable} to another one, .*", line)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_with_exit_code_0(service, signum):
    """A server that was told to end has done what it should, and says so."""
    with service.running() as (process, first_line):
        assert "serving" in first_line
        assert "store=open" in first_line
        port = re.search(r"grpc_port=(\d+)", first_line)[1]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=10)
        process.send_signal(signum)
        log = process.communicate(timeout=20)[1]
        assert process.returncode == 0
    assert signum.name in log
    assert "stopped" in log
    assert "Traceback" not in log


def test_second_signal_ends_at_once(service):
    """Whoever does not want to wait for the drain sends the signal again."""
    with service.running(DRAIN_DELAY="1h") as (process, _):
        process.send_signal(signal.SIGINT)
        while "draining" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == -signal.SIGINT


def test_log_is_as_configured(service):
    """Each line of the log has the form that the configuration asks for."""
    with service.running(LOGGING_FORMAT="json") as (_, first_line):
        line = yaml.safe_load(first_line)  # JSON is YAML
    assert (line["event"], line["level"], line["store"]) == ("serving", "info", "open")
