import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import grpc
import pytest
import yaml

from grpc_common import ServerConfig
from grpc_common.config.settings import settings

SERVICE = '''
import asyncio
import os
import sys
import time

import grpc

import grpc_common
from grpc_common.config import process_end


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


class StrictConfig(grpc_common.ServerConfig):
    env_prefix = "USER_"

    store: StoreConfig
    name: str
    """What the service is called."""


async def strict(config: StrictConfig) -> int:
    """Serve what has to be named."""
    return await grpc_common.Server(config).run(name=config.name)


async def hold(request, context):
    """Ignore the end of the call, or block the event loop."""
    print("blocked" if request else "held", file=sys.stderr)
    if request:
        time.sleep(3600)
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass


def add(_servicer, server):
    handler = grpc.unary_unary_rpc_method_handler(hold)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Gate", {"Hold": handler})])


async def hang(config: Config) -> int:
    """Serve what does not end."""
    server = grpc_common.Server(config)
    server.add(None, add)
    try:
        return await server.run()
    finally:
        if config.store.url == "thread":
            await asyncio.to_thread(time.sleep, 3600)


async def twice(config: Config) -> int:
    """Serve with two servers, and go on for longer than a process may take to end."""
    await asyncio.gather(grpc_common.Server(config).run(), grpc_common.Server(config).run())
    return 0


async def after(config: Config) -> int:
    """Go on after the end of a server that no signal has ended."""
    async with grpc_common.Server(config).serving():
        pass
    await asyncio.sleep(process_end.BOUND)
    return 0


async def opening(config: Config) -> int:
    """Wait for what does not open, as a database that does not answer."""
    try:
        print("opening", file=sys.stderr)
        await asyncio.Event().wait()
        return await grpc_common.Server(config).run()
    finally:
        await asyncio.sleep(0 if config.store.url == "closes" else 3600)
        print("closed", file=sys.stderr)


PROGRAMS = {
    "serve": grpc_common.command(serve, Config, also=[hang, twice, after, opening]),
    "strict": grpc_common.command(strict, StrictConfig),
}

if __name__ == "__main__":
    PROGRAMS[os.environ.get("PROGRAM", "serve")]()
'''


EARLY_SIGNAL = """
import os, signal

from grpc_common.core.signals import ignore_harmless_signals

ignore_harmless_signals()
for signum in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    os.kill(os.getpid(), signum)
"""


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
        free = {
            "GRPC_PORT": "0",
            "METRICS_PORT": "0",
            "DRAIN_DELAY": "0s",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
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


def test_signal_before_the_server_runs(service):
    """SIGTERM has a handler from the start, as process 1 of a container needs; what is open is closed."""
    with service.running("opening", STORE_URL="closes") as (process, first_line):
        assert first_line == "opening\n"
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=20)[1]
    assert (log, process.returncode) == ("closed\n", 128 + signal.SIGTERM)


def test_what_does_not_close_before_the_server_runs_is_ended(service):
    """A resource that hangs as it closes is named, and the process ends."""
    with service.running("opening", STORE_URL="hangs") as (process, _):
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=20)[1]
    assert "the process did not end in time and is ended" in log
    assert process.returncode == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_at_once(service, signum):
    """Whoever does not want to wait for the drain sends a signal again."""
    with service.running(DRAIN_DELAY="1h") as (process, _):
        process.send_signal(signal.SIGTERM)
        while "draining" not in process.stderr.readline():
            pass
        process.send_signal(signum)
        assert process.wait(timeout=10) == -signum


def test_interrupt_does_not_wait_for_load_balancers(service):
    """Ctrl-C comes from a terminal: the drain begins without its delay."""
    with service.running(DRAIN_DELAY="1h") as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0


@pytest.mark.parametrize("hung", ["handler", "loop", "thread"])
def test_what_does_not_end_is_ended(service, hung):
    """A handler that ignores its cancellation or blocks the loop, or a thread, is logged and ended."""
    with service.running("hang", DRAIN_GRACE="100ms", STORE_URL=hung) as (process, first_line):
        port = re.search(r"grpc_port=(\d+)", first_line)[1]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=10)
            if hung != "thread":
                call = channel.unary_unary("/test.Gate/Hold").future(hung.encode() if hung == "loop" else b"")
                assert process.stderr.readline() == ("blocked\n" if hung == "loop" else "held\n")
            process.send_signal(signal.SIGTERM)
            log = process.communicate(timeout=60)[1]
        if hung != "thread":
            assert call.exception(timeout=10)
    assert "the process did not end in time and is ended" in log
    named = {"handler": "/test.Gate/Hold", "loop": "MainThread in hold", "thread": "asyncio_0"}
    assert named[hung] in log
    assert process.returncode == 1


def test_second_signal_ends_a_server_that_is_blocked(service):
    """Ctrl-C twice ends a server whose event loop a handler blocks."""
    with service.running("hang") as (process, first_line):
        port = re.search(r"grpc_port=(\d+)", first_line)[1]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/test.Gate/Hold").future(b"loop", wait_for_ready=True)
            assert process.stderr.readline() == "blocked\n"
            process.send_signal(signal.SIGTERM)
            end = time.monotonic() + 20
            while process.poll() is None:
                assert time.monotonic() < end
                time.sleep(0.2)
                process.send_signal(signal.SIGTERM)  # again: two of the same signal at a time are one
            assert process.returncode == -signal.SIGTERM
            assert call.exception(timeout=10)


def test_signal_ends_all_servers(service):
    """Two servers that run in one event loop both drain, and the process ends in order."""
    with service.running("twice") as (process, _):
        assert "serving" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=60)[1]
    assert log.count("stopped") == 2
    assert process.returncode == 0


def test_program_goes_on_after_its_server(service):
    """The end of a server is not that of the program, unless a signal has ended it."""
    result = service.run("after", METRICS_ENABLED="false")
    assert result.returncode == 0, result.stderr


def test_signal_before_the_configuration_is_read(service):
    """A harmless signal while it is read ends nothing, and nothing is logged before it is known how."""
    (service.directory / "early.py").write_text(EARLY_SIGNAL)
    environment = {"PYTHONPATH": os.pathsep.join([str(service.directory), *sys.path])}
    result = subprocess.run(
        [sys.executable, "early.py"],
        env=os.environ | environment,
        cwd=service.directory,
        capture_output=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_help_names_required_settings(service):
    """--help of a service whose settings have no default says which, and its variables have their prefix."""
    result = service.run("--help", PROGRAM="strict")
    assert result.returncode == 0
    words = " ".join(result.stdout.split())
    assert " name USER_NAME What the service is called. [required] " in words
    assert " server.port USER_GRPC_PORT " in words
    assert "USER_CONFIG_FILE" in words
    assert "An empty variable means none" in words


def test_required_settings(service):
    """What is missing is one line with key and variable, and with it the program prints and serves."""
    missing = "name: is required; set it in the file, or as USER_NAME"
    assert lines_of_error(service.run("--print-config", PROGRAM="strict")) == [missing]
    assert lines_of_error(service.run(PROGRAM="strict", NAME="ada", CONFIG_FILE="none")) == [missing]
    ports = {"USER_GRPC_PORT": "0", "USER_METRICS_PORT": "0"}
    with service.running(PROGRAM="strict", USER_NAME="ada", **ports) as (_, first_line):
        assert "name=ada" in first_line


def test_prefix_counts_in_all_that_is_said(service):
    """The file is named by a variable with the prefix, and so is the port that is in use."""
    file = service.write("config.yaml", "name: ada")
    with socket.create_server(("", 0)) as other:
        port = str(other.getsockname()[1])
        variables = {"USER_CONFIG_FILE": file, "USER_METRICS_PORT": port, "USER_GRPC_PORT": "0"}
        (line,) = lines_of_error(service.run(PROGRAM="strict", **variables))
    assert "set USER_METRICS_PORT to another one" in line


def test_relative_path_under_bazel_run(service):
    """A path is the one that the user sees, where `bazel run` has changed the folder of the process."""
    user = service.directory / "user"
    user.mkdir()
    (user / "config.yaml").write_text("server: {max_concurrent_calls: 7}")
    elsewhere = service.write("elsewhere.yaml", "server: {max_concurrent_calls: 8}")

    def calls(*arguments: str, **variables: str) -> int:
        result = service.run("--print-config", *arguments, BUILD_WORKING_DIRECTORY=str(user), **variables)
        assert (result.returncode, result.stderr) == (0, "")
        return yaml.safe_load(result.stdout)["server"]["max_concurrent_calls"]

    assert calls("--config", "config.yaml") == 7
    assert calls(CONFIG_FILE="./config.yaml") == 7
    assert calls("--config", str(service.directory / elsewhere)) == 8
    missing = service.run("--config", "elsewhere.yaml", BUILD_WORKING_DIRECTORY=str(user))
    (line,) = lines_of_error(missing)
    assert line.startswith(f"{user}/elsewhere.yaml: No such file")


def test_file_that_is_no_configuration(service):
    """A folder, or bytes of all kinds, is one line; an empty CONFIG_FILE is no file."""
    for name in (".", ""):
        (line,) = lines_of_error(service.run("--config", name))
        assert line == ".: Is a directory; name a file that can be read"
    (service.directory / "bytes.yaml").write_bytes(bytes(range(256)))
    (line,) = lines_of_error(service.run("--config", "bytes.yaml"))
    assert line == "bytes.yaml:2: not YAML: not UTF-8, because of the byte 0x80"
    assert service.run("--print-config", CONFIG_FILE="").returncode == 0


def test_log_is_as_configured(service):
    """Each line of the log has the form that the configuration asks for."""
    with service.running(LOGGING_FORMAT="json") as (_, first_line):
        line = yaml.safe_load(first_line)  # JSON is YAML
    assert (line["event"], line["level"], line["store"]) == ("serving", "info", "open")
