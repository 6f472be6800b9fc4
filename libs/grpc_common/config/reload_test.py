import asyncio
import os
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import structlog
import yaml
from opentelemetry import trace
from pydantic import field_validator

from grpc_common import Server, ServerConfig, configure_logging, load
from grpc_common.config import reload
from grpc_common.observe.logs import set_level


class ConfigMap:
    """A folder as kubelet mounts a ConfigMap: config.yaml -> ..data/config.yaml, and ..data -> ..VERSION."""

    def __init__(self, directory: Path, text: str) -> None:
        self._directory = directory
        self._version = 0
        self.file = directory / "config.yaml"
        self.update(text)
        self.file.symlink_to("..data/config.yaml")

    def update(self, text: str) -> None:
        """Change the content as kubelet does, by one rename."""
        self._version += 1
        version = self._directory / f"..version_{self._version}"
        version.mkdir()
        (version / "config.yaml").write_text(text)
        new = self._directory / "..data_tmp"
        new.symlink_to(version.name)
        new.rename(self._directory / "..data")


def text(**sections) -> str:
    """Return a configuration for tests with these sections."""
    return yaml.safe_dump(
        {"server": {"port": 0, "drain": {"delay": "0s"}}, "metrics": {"enabled": False}} | sections
    )


class Log:
    """The log of this process as it comes out: what the level suppresses is not in it."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[dict] = asyncio.Queue()
        configure_logging("info", "json")
        drop_below_level, *_ = structlog.get_config()["processors"]
        structlog.configure(
            processors=[drop_below_level, self._keep], logger_factory=structlog.ReturnLoggerFactory()
        )

    def _keep(self, _logger, method, event) -> str:
        self._lines.put_nowait({"level": method} | event)
        raise structlog.DropEvent

    async def next(self, event: str) -> dict:
        """Wait for the next line with this event."""
        async with asyncio.timeout(20):
            while (line := await self._lines.get())["event"] != event:
                pass
        return line

    def events(self) -> list[str]:
        """Return the events since the last call."""
        return [self._lines.get_nowait()["event"] for _ in range(self._lines.qsize())]


@pytest.fixture
def log():
    """Keep the log, from level info on."""
    yield Log()
    structlog.reset_defaults()
    set_level("info")


async def is_sampled(_request: bytes, _context) -> bytes:
    """Answer whether the call is traced."""
    return b"yes" if trace.get_current_span().get_span_context().trace_flags.sampled else b"no"


def add(_servicer, server) -> None:
    """Register test.Service."""
    handlers = {"IsSampled": grpc.unary_unary_rpc_method_handler(is_sampled)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", handlers)])


@asynccontextmanager
async def serving(file: Path):
    """Serve as the file says; yield a method that answers whether its call is traced."""
    server = Server(load(ServerConfig, file))
    server.add(None, add)
    async with server.serving() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.unary_unary("/test.Service/IsSampled")


async def test_log_level_follows_the_file(tmp_path, log):
    """A ConfigMap that changes logging.level takes effect while the server runs, down and up."""
    config_map = ConfigMap(tmp_path, text(logging={"level": "info"}))
    async with serving(config_map.file) as call:
        config_map.update(text(logging={"level": "debug"}))
        line = await log.next("configuration reloaded")
        assert (line["changed"], line["need_restart"]) == (["logging.level"], [])
        structlog.get_logger().debug("detail")
        await log.next("detail")
        config_map.update(text(logging={"level": "error"}))
        await log.next("configuration reloaded")
        await call(b"")
        structlog.get_logger().error("failure")
        await log.next("failure")
        structlog.get_logger().warning("suppressed")
        assert not log.events()


async def test_sampling_rate_follows_the_file(tmp_path, log, monkeypatch):
    """A changed tracing.sampling_rate decides about the next call."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    config_map = ConfigMap(tmp_path, text(tracing={"enabled": True, "sampling_rate": 0}))
    async with serving(config_map.file) as call:
        assert await call(b"") == b"no"
        config_map.update(text(tracing={"enabled": True, "sampling_rate": 1}))
        await log.next("configuration reloaded")
        assert await call(b"") == b"yes"
        config_map.update(text(tracing={"enabled": True, "sampling_rate": 0}))
        await log.next("configuration reloaded")
        assert await call(b"") == b"no"


@pytest.mark.parametrize(
    ("broken", "mistakes"),
    [
        ("logging: [", ["{file}:1: not YAML: "]),
        (
            "logging:\n  level: loud\ntracing:\n  sampling_rat: 2\n",
            [
                "{file}:2: logging.level: 'loud': ",
                "{file}:4: tracing.sampling_rat: unknown key; did you mean",
            ],
        ),
    ],
    ids=["no YAML", "two mistakes"],
)
async def test_broken_file_changes_nothing(tmp_path, log, broken, mistakes):
    """A file with mistakes is logged with each of them, and waited for until it is good again."""
    config_map = ConfigMap(tmp_path, text(logging={"level": "warning"}))
    set_level("warning")
    async with serving(config_map.file):
        config_map.update(broken)
        line = await log.next("configuration not reloaded")
        assert line["level"] == "error"
        assert len(line["mistakes"]) == len(mistakes)
        for shown, expected in zip(line["mistakes"], mistakes, strict=True):
            assert shown.startswith(expected.format(file=config_map.file))
        structlog.get_logger().info("suppressed as before")
        assert not log.events()
        config_map.update(text(logging={"level": "debug"}))
        async with asyncio.timeout(20):
            while not log.events():  # "configuration reloaded" itself comes before the level is taken over
                await asyncio.sleep(0.05)
                structlog.get_logger().debug("detail")


async def test_file_that_is_gone_changes_nothing(tmp_path, log):
    """A file that vanishes is an error in the log, not the end of the server."""
    config_map = ConfigMap(tmp_path, text())
    async with serving(config_map.file) as call:
        config_map.file.rename(tmp_path / "elsewhere")
        line = await log.next("configuration not reloaded")
        assert line["mistakes"] == [
            f"{config_map.file}: No such file or directory; name a file that can be read"
        ]
        assert await call(b"") == b"no"
        (tmp_path / "elsewhere").rename(config_map.file)
        config_map.update(text(logging={"level": "debug"}))
        assert (await log.next("configuration reloaded"))["changed"] == ["logging.level"]


async def test_other_settings_need_a_restart(tmp_path, log):
    """What does not take effect is named, each time only what has changed since the last time."""
    config_map = ConfigMap(tmp_path, text())
    async with serving(config_map.file):
        changed = {
            "server": {
                "port": 0,
                "max_concurrent_calls": 7,
                "keepalive": {"time": "20s"},
                "drain": {"delay": "0s"},
            }
        }
        config_map.update(text(**changed, logging={"level": "debug"}))
        line = await log.next("configuration reloaded")
        assert line["changed"] == ["server.max_concurrent_calls", "server.keepalive.time", "logging.level"]
        assert line["need_restart"] == ["server.max_concurrent_calls", "server.keepalive.time"]
        config_map.update(text(**changed, logging={"level": "info"}))
        line = await log.next("configuration reloaded")
        assert (line["changed"], line["need_restart"]) == (["logging.level"], [])


async def test_change_during_the_start_is_seen(tmp_path, log):
    """What changes after the file was loaded and before the server runs is not missed."""
    config_map = ConfigMap(tmp_path, text())
    server = Server(load(ServerConfig, config_map.file))
    config_map.update(text(logging={"level": "warning"}))
    async with server.serving():
        assert (await log.next("configuration reloaded"))["changed"] == ["logging.level"]


class Strict(ServerConfig):
    """A configuration with a bug: its check fails as no check should."""

    name: str = ""

    @field_validator("name")
    @classmethod
    def _check(cls, name: str) -> str:
        return {"": ""}[name]


def remove(file: Path) -> None:
    """Remove a file or a folder."""
    if file.is_dir():
        file.rmdir()
    else:
        file.unlink()


@pytest.mark.parametrize(
    ("break_file", "event"),
    [
        (lambda file: file.write_bytes(bytes(range(256))), "configuration not reloaded"),
        (lambda file: file.write_text("server: &a [*a]"), "configuration not reloaded"),
        (lambda file: file.write_text(10_000 * "["), "configuration not reloaded"),
        (lambda file: file.write_text("tracing: {service_name: 2026-13-45}"), "configuration not reloaded"),
        (
            lambda file: file.write_text("tracing: {sampling_rate: 1" + 400 * "0" + "}"),
            "configuration not reloaded",
        ),
        (lambda file: file.write_text("- 1"), "configuration not reloaded"),
        (lambda file: file.write_text(2**20 * "# "), "configuration not reloaded"),
        (lambda file: (file.unlink(), os.mkfifo(file)), "configuration not reloaded"),
        (lambda file: (file.unlink(), file.mkdir()), "configuration not reloaded"),
        (lambda file: (file.unlink(), file.symlink_to("/dev/zero")), "configuration not reloaded"),
        (lambda file: file.unlink(), "configuration not reloaded"),
        (lambda file: file.write_text("name: a bug"), "background task failed, it starts again"),
    ],
    ids=[
        "bytes",
        "alias",
        "deep",
        "date",
        "huge",
        "list",
        "large",
        "pipe",
        "folder",
        "device",
        "gone",
        "bug",
    ],
)
async def test_next_good_file_is_taken(tmp_path, log, monkeypatch, break_file, event):
    """Whatever becomes of the file, it is told once, and the file counts again when it is good."""
    monkeypatch.setattr(reload, "INTERVAL", 0.01)
    file = tmp_path / "config.yaml"
    file.write_text("")
    taken = asyncio.Queue()
    task = asyncio.create_task(reload.reload_changes(load(Strict, file, {}), taken.put_nowait))
    break_file(file)
    await log.next(event)
    await asyncio.sleep(0.1)
    assert event not in log.events()
    if file.exists():
        remove(file)
    file.write_text("logging: {level: debug}")
    assert (await asyncio.wait_for(taken.get(), 20)).logging.level == "debug"
    task.cancel()
    await asyncio.wait([task])
