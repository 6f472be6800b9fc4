"""What a server's process writes to stderr, whatever is there to read it."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
import trustme

from grpc_common.testing.certificates import CertificateDirectory
from grpc_common.testing.server import memory
from tools.ports import held_port

SERVICE = '''
import ctypes, multiprocessing, os, signal, subprocess, sys, threading, warnings

import grpc
import structlog

import grpc_common

log = structlog.get_logger()


class Broken:
    def __repr__(self):
        raise RuntimeError("no text")


async def echo(request, context):
    return request


async def fill(request, context):
    """Log a mebibyte or more."""
    for number in range(int(request)):
        log.info("filling", number=number, text="x" * 1000)
    return request


async def write(request, context):
    """Write to stderr in every way but the log's."""
    print("by print", file=sys.stderr)
    os.write(2, b"by descriptor\\n{\\"event\\": \\"forged\\"}\\n")
    subprocess.run(["/bin/sh", "-c", "echo by subprocess >&2"])
    warnings.warn("by warning")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    log.info("broken %d", "x", value=Broken())
    log.info("broken value", value=Broken())
    log.info("long", value="y" * 10_000_000)
    return request


async def fork(request, context):
    """Log in a forked process."""
    if (pid := os.fork()) == 0:
        log.info("in the child")
        from grpc_common.observe import stderr
        os._exit(0 if stderr.flush() else 1)
    return str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode()


async def crash(request, context):
    ctypes.string_at(0)


def in_a_child():
    log.info("by multiprocessing")


class Last:
    def __del__(self):
        log.info("by a destructor")
        raise RuntimeError("in a destructor")


async def last(request, context):
    """Write what only the end of the process makes a line of."""
    child = multiprocessing.get_context("fork").Process(target=in_a_child)
    child.start()
    child.join()
    globals()["_last"] = Last()
    sys.stderr.write("without an end")
    return request


async def serve(config):
    if os.environ.get("FAIL"):
        log.info("last words")
        raise {"bug": RuntimeError, "start": grpc_common.StartError}[os.environ["FAIL"]]("not today")
    methods = (echo, fill, write, fork, last, crash)
    handlers = {method.__name__: grpc.unary_unary_rpc_method_handler(method) for method in methods}
    server = grpc_common.Server(config)
    server.add(
        None,
        lambda _, server: server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("test.Log", handlers)]
        ),
    )
    return await server.run()


grpc_common.command(serve, grpc_common.ServerConfig)()
'''

PATIENCE = 60
"""Seconds that a busy machine may take for what it does in one."""

# HTTP/2 by hand: RFC 9113, section 6.
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def headers(stream: int, **more: bytes) -> bytes:
    """Return the HEADERS frame of a call of Echo; in the names of `more`, `_` stands for `-`."""
    fields = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": b"/test.Log/echo",
        b":authority": b"server.test",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
    } | {name.replace("_", "-").encode(): value for name, value in more.items()}
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields.items()
    )
    return len(block).to_bytes(3) + bytes([1, 4]) + stream.to_bytes(4) + block


def message(stream: int) -> bytes:
    """Return the DATA frame of an empty message, the last one of its stream."""
    return bytes([0, 0, 5, 0, 1]) + stream.to_bytes(4) + bytes(5)


def listening_ports(pid: int) -> set[int]:
    """Return where a process listens: its log may be unreadable."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            inodes.add(descriptor.stat().st_ino)
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()  # proc_net_tcp: 1 is the local address, 3 the state, 9 the inode
            if fields[3] == "0A" and int(fields[9]) in inodes:
                found.add(int(fields[1].split(":")[1], 16))
    return found


class Process:
    """A server, and what is behind its stderr."""

    def __init__(
        self, folder: Path, stderr: int, metrics_port: int, variables: dict[str, str], **options: object
    ) -> None:
        self.metrics_port = metrics_port
        (folder / "service.py").write_text(SERVICE)
        ours = {
            "GRPC_PORT": "0",
            "DRAIN_DELAY": "0s",
            "METRICS_PORT": str(metrics_port),
            "LOGGING_FORMAT": "json",
            "DRAIN_GRACE": "5s",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        self.popen = subprocess.Popen(
            [sys.executable, "service.py"],
            cwd=folder,
            env=os.environ | ours | variables,
            stderr=stderr,
            **options,
        )

    def wait_for_ports(self) -> None:
        """Wait until it serves."""
        end = time.monotonic() + PATIENCE
        while len(ports := listening_ports(self.popen.pid)) < 2 or self.metrics_port not in ports:
            assert self.popen.poll() is None, "it could not start"
            assert time.monotonic() < end
            time.sleep(0.02)
        (self.port,) = ports - {self.metrics_port}

    def call(self, method: str, request: bytes = b"") -> bytes:
        """Return the answer of a method."""
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            return channel.unary_unary(f"/test.Log/{method}")(request, wait_for_ready=True, timeout=PATIENCE)

    def dropped(self) -> float:
        """Return how many lines the metrics say were dropped."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics") as page:
            lines = page.read().decode().splitlines()
        counts = [
            float(line.split()[1]) for line in lines if line.startswith("grpc_log_lines_dropped_total{")
        ]
        assert counts, "the metric is not there"
        return sum(counts)

    def send(self, data: bytes) -> None:
        """Send this on a connection of its own, and wait until the server has answered something."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(data)
            connection.settimeout(PATIENCE)
            with suppress(ConnectionError):
                while b"grpc-status" not in (received := connection.recv(2**16)) and received:
                    pass

    def end(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.popen.send_signal(signum)
        return self.popen.wait(PATIENCE)


@contextmanager
def running(folder: Path, stderr: int, variables: dict[str, str] | None = None, **options: object):
    """Run a server that serves."""
    with held_port() as metrics_port:
        process = Process(folder, stderr, metrics_port, variables or {}, **options)
        try:
            process.wait_for_ports()
            yield process
        finally:
            process.popen.kill()
            process.popen.wait()


@pytest.fixture
def log(tmp_path):
    """Return the file that is a server's stderr."""
    with (tmp_path / "log").open("wb") as file:
        yield file


def lines_of(log) -> list[dict]:
    """Return the lines, each of which is JSON and fits the buffers of container runtimes."""
    text = Path(log.name).read_text()
    assert text.endswith("\n")
    assert all(len(line) <= 2**14 for line in text.splitlines())
    return [json.loads(line) for line in text.splitlines()]


def events(log) -> list[str]:
    """Return what the lines tell."""
    return [line["event"] for line in lines_of(log)]


def test_reader_that_is_gone(tmp_path):
    """Calls are answered and the drain is orderly when nobody can read the log any more."""
    reader, writer = os.pipe()
    with running(tmp_path, writer) as process:
        os.close(writer)
        os.close(reader)
        for _ in range(10):
            assert process.call("echo", b"hello") == b"hello"
        assert process.call("fill", b"100") == b"100"
        wait_until(lambda: process.dropped() >= 100)
        assert process.end() == 0


@pytest.mark.parametrize("blocking", [True, False])
def test_pipe_that_nobody_reads(tmp_path, blocking):
    """A full pipe holds up neither calls nor the end; once it is read, whole lines come and tell the loss."""
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    with running(tmp_path, writer) as process, os.fdopen(reader, "rb") as log:
        os.close(writer)
        assert process.call("fill", b"15000") == b"15000"
        assert process.call("echo", b"hello") == b"hello"
        flood = b"".join(headers(stream, grpc_timeout=b"soon") for stream in range(1, 20_001, 2))
        process.send(HELLO + flood)
        assert process.call("echo", b"hello") == b"hello"
        dropped = process.dropped()
        assert dropped > 0
        lines = [json.loads(log.readline())]
        while "were dropped" not in lines[-1]["event"]:
            lines.append(json.loads(log.readline()))
        assert lines[-1]["count"] >= dropped
        numbers = [line["number"] for line in lines if line["event"] == "filling"]
        assert numbers == sorted(numbers)
        assert process.call("fill", b"15000") == b"15000"
        assert process.end() == 0


def test_memory_of_a_log_that_is_not_read(tmp_path):
    """What waits to be written is bounded in bytes too."""
    reader, writer = os.pipe()
    with running(tmp_path, writer) as process:
        before = memory(process.popen.pid, "VmHWM")
        assert process.call("fill", b"60000") == b"60000"
        grown = memory(process.popen.pid, "VmHWM") - before
        assert process.end() == 0
    os.close(reader)
    os.close(writer)
    print(f"{grown / 2**20:.0f} MiB for 60 MB of lines")
    assert grown < 30 * 2**20


def test_full_disk(tmp_path):
    """A log that can't be written at all is no reason to fail."""
    with Path("/dev/full").open("wb") as full, running(tmp_path, full) as process:
        assert process.call("fill", b"100") == b"100"
        wait_until(lambda: process.dropped() >= 100)
        assert process.call("write", b"hello") == b"hello"
        assert process.end() == 0


def test_closed_stderr(tmp_path):
    """A server without any stderr serves, and the file that may have its number gets none of the log."""
    with running(tmp_path, None, preexec_fn=lambda: os.close(2)) as process:
        assert process.call("fill", b"100") == b"100"
        wait_until(lambda: process.dropped() >= 100)
        assert process.end() == 0


def wait_until(condition) -> None:
    """Poll, for what nobody announces."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_all_that_is_written_is_a_line(tmp_path, log):
    """Prints, native code, subprocesses, warnings, threads and broken values become JSON; none is forged."""
    with running(tmp_path, log) as process:
        process.call("write")
        assert process.call("fork") == b"0"
        assert process.end() == 0
    lines = {line["event"]: line for line in lines_of(log)}
    for event in ("by print", "by descriptor", "by subprocess", '{"event": "forged"}'):
        assert (lines[event]["logger"], lines[event]["level"]) == ("stderr", "error")
    assert any("by warning" in event for event in lines)
    assert "ZeroDivisionError" in lines["uncaught exception in a thread"]["exception"]
    assert lines["broken %d"]["logging_error"].startswith("TypeError: ")
    assert lines["broken value"]["logging_error"] == "RuntimeError: no text"
    assert "9991808 characters left out" in lines["long"]["value"]
    assert "in the child" in lines
    assert list(lines)[-1] == "stopped"


def test_drain_in_json(tmp_path, log):
    """A server that drains writes its own events, and C-core nothing."""
    with running(tmp_path, log) as process:
        assert process.end() == 0
    assert events(log)[-2:] == ["draining", "stopped"]
    assert [line for line in lines_of(log) if "logger" in line] == []


def test_failed_tls_handshakes(tmp_path, log):
    """A thousand peers that fail at TLS leave a few lines."""
    directory = CertificateDirectory(tmp_path / "certs", trustme.CA(), "localhost").path
    with running(tmp_path, log, {"TLS_DIRECTORY": str(directory)}) as process:
        for _ in range(200):
            address = ("127.0.0.1", process.port)
            with socket.create_connection(address) as connection, suppress(ssl.SSLError, ConnectionError):
                ssl.create_default_context().wrap_socket(connection, server_hostname="localhost")
        assert process.end() == 0
    core = [line for line in lines_of(log) if line.get("logger") == "grpc.core"]
    assert any("handshake" in line["event"].lower() for line in core)
    assert len(core) < 30
    assert "more lines of this kind were suppressed" in events(log)


def test_metadata_that_is_no_text(tmp_path, log):
    """What can't be decoded is told a few times, by its length, without a traceback."""
    calls = b"".join(
        headers(stream, x_name=b"caf\xe9 CANARY" * 10) + message(stream) for stream in range(1, 101, 2)
    )
    with running(tmp_path, log) as process:
        process.send(HELLO + calls)
        process.call("echo")
        assert process.end() == 0
    lines = [line for line in lines_of(log) if line.get("logger") == "grpc._cython.cygrpc"]
    assert 1 <= len(lines) <= 10
    assert "CANARY" not in Path(log.name).read_text()
    assert not any("exception" in line for line in lines)


def test_flood_of_bad_headers(tmp_path, log):
    """Ten thousand bad headers are ten lines, and one that counts the others."""
    with running(tmp_path, log) as process:
        flood = b"".join(headers(stream, grpc_timeout=b"soon") for stream in range(1, 20_001, 2))
        process.send(HELLO + flood)
        process.call("echo")
        assert process.end() == 0
    bad = [line for line in lines_of(log) if str(line.get("source")).startswith("hpack_parser.cc")]
    assert 10 <= len(bad) <= 100  # one interval on most machines
    assert bad[0]["level"] == "error"
    suppressed = [line for line in lines_of(log) if "suppressed" in line["event"]]
    assert sum(line["count"] for line in suppressed) > 0


@pytest.mark.parametrize("output", ["json", "console"])
def test_last_words_of_a_program_that_fails(tmp_path, log, output):
    """Lines before a bug or an error at start are not lost, and the end itself is a line of the same form."""
    for failure, code in (("bug", 1), ("start", 1)):
        process = Process(tmp_path, log.fileno(), 0, {"FAIL": failure, "LOGGING_FORMAT": output})
        assert process.popen.wait(PATIENCE) == code
    if output == "json":
        assert events(log) == ["last words", "uncaught exception", "last words", "Error: not today"]
        assert "RuntimeError: not today" in lines_of(log)[1]["exception"]
    else:
        text = Path(log.name).read_text()
        assert "uncaught exception" in text
        assert text.endswith("\nError: not today\n")


def test_last_words(tmp_path, log):
    """Forked processes, destructors at the end of Python and a line without an end lose nothing."""
    with running(tmp_path, log) as process:
        process.call("last")
        assert process.end() == 0
    lines = {line["event"]: line for line in lines_of(log)}
    assert {"by multiprocessing", "without an end", "by a destructor"} <= lines.keys()
    assert any("in a destructor" in line.get("exception", "") for line in lines.values())


OWN_LOG = """
import asyncio, logging, os, signal, sys

import structlog

import grpc_common

if "structlog" in sys.argv:
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
if "logging" in sys.argv:
    logging.basicConfig(level="INFO", format="own %(message)s")


async def main():
    config = {"GRPC_PORT": "0", "METRICS_ENABLED": "false", "DRAIN_DELAY": "0s"}
    server = grpc_common.Server(grpc_common.load(grpc_common.ServerConfig, environ=config))
    asyncio.get_running_loop().call_later(0.1, use)
    await server.run()


def use():
    for number in range(100):
        logging.getLogger("mine").info(f"logging {number}")
        structlog.get_logger().info(f"structlog {number}")
    os.write(2, b"by descriptor\\n")
    os.kill(os.getpid(), signal.SIGTERM)


asyncio.run(main())
"""


@pytest.mark.parametrize("own", [["structlog"], ["logging"], ["structlog", "logging"]], ids="+".join)
def test_program_with_a_log_of_its_own(tmp_path, own):
    """What a program has set up itself, before it runs a server, still writes each of its lines."""
    (tmp_path / "program.py").write_text(OWN_LOG)
    run = subprocess.run(
        [sys.executable, "program.py", *own],
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert run.returncode == 0
    lines = run.stderr.splitlines()
    for logger in own:
        assert len([line for line in lines if f"{logger} " in line]) == 100
    if "logging" in own:
        assert "own logging 99" in lines
    assert any("by descriptor" in line for line in lines)
    assert run.stdout == ""


def test_crash_tells_where(tmp_path, log):
    """A fatal signal leaves Python's stack, which nobody can make JSON of any more."""
    with running(tmp_path, log) as process:
        with pytest.raises(grpc.RpcError):
            process.call("crash")
        assert process.popen.wait(PATIENCE) == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in Path(log.name).read_text()


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_that_change_nothing(tmp_path, log, signum):
    """A burst of them is a line or two; calls and the drain go on."""
    with running(tmp_path, log, {"DRAIN_DELAY": "1s"}) as process:
        for _ in range(1000):
            process.popen.send_signal(signum)
        assert process.call("echo", b"hello") == b"hello"
        process.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in Path(log.name).read_text())
        process.popen.send_signal(signum)
        assert process.popen.wait(PATIENCE) == 0
    ignored = [line for line in lines_of(log) if line["event"] == "signal ignored"]
    assert 1 <= len(ignored) < 100
    assert ignored[0]["signal"] == signum.name


def test_console_lines(tmp_path, log):
    """For people C-core's lines are like all others, and a print is as it was written."""
    with running(tmp_path, log, {"LOGGING_FORMAT": "console"}) as process:
        process.call("write")
        process.send(HELLO + headers(1, grpc_timeout=b"soon"))
        process.call("echo")
        assert process.end() == 0
    lines = Path(log.name).read_text().splitlines()
    assert "by print" in lines
    (bad,) = [line for line in lines if "grpc.core" in line]
    assert "[error" in bad
    assert "hpack_parser.cc" in bad
