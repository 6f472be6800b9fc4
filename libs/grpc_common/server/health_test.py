import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from grpc_common import Server
from grpc_common.testing import configure

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

FOLLOWERS = ["", "readiness", "test.Service"]
"""The names whose health is that of the dependencies."""


def caused(error: Exception, cause: Exception) -> Exception:
    """Return what `raise error from cause` raises."""
    error.__cause__ = cause
    return error


TIMEOUTS = {
    "TimeoutError": TimeoutError(),
    "cause": caused(ConnectionError("took longer than database.statement_timeout"), TimeoutError()),
    "DEADLINE_EXCEEDED": grpc.aio.AioRpcError(
        grpc.StatusCode.DEADLINE_EXCEEDED, grpc.aio.Metadata(), grpc.aio.Metadata()
    ),
}


class Database:
    """A dependency that is as the test wants it, and tells when it was asked."""

    def __init__(self, *, up: bool) -> None:
        self.up = up
        self.takes = 0.0
        self.hangs = False
        self.hangs_once = False
        self.asking = 0
        self.error: Exception | None = None
        self.asked: asyncio.Queue[None] = asyncio.Queue()

    async def ping(self) -> None:
        self.asked.put_nowait(None)
        self.asking += 1
        try:
            await self._answer()
        finally:
            self.asking -= 1

    async def _answer(self) -> None:
        hangs, self.hangs_once = self.hangs or self.hangs_once, False
        if hangs:
            await asyncio.Event().wait()
        await asyncio.sleep(self.takes)
        if self.error:
            raise self.error
        if not self.up:
            raise ConnectionError("database is on fire")

    async def answer(self, times: int) -> None:
        """Wait until it was asked so often that `times` new answers were taken in."""
        while not self.asked.empty():
            self.asked.get_nowait()
        for _ in range(times + 1):
            await self.asked.get()


def add(_servicer, server) -> None:
    """Register test.Service, which has no methods."""
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", {})])


@asynccontextmanager
async def serving(*, reflection: bool = True, **dependencies: Database):
    """Serve with these dependencies, asked every 10 ms; yield a stub of its health."""
    # One channel has all watches.
    server = Server(configure(MAX_CONCURRENT_STREAMS="2000", REFLECTION=str(reflection)))
    server.add(None, add)
    for name, database in dependencies.items():
        server.depend_on(name, database.ping, interval=0.01, timeout=0.05, failures=3)
    async with server.serving() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        stub.port = port
        yield stub


def frame(kind: int, stream: int, payload: bytes, *, flags: int = 0) -> bytes:
    """Return one frame of HTTP/2 (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def watch_without_reading(service: str) -> bytes:
    """Return what a client sends that watches `service` and lets no message come: its window is 0."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Watch",
        ":authority": "server.test",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    headers = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    initial_window_size_0 = b"\x00\x04" + bytes(4)
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(4, 0, initial_window_size_0)
        + frame(1, 1, headers, flags=4)
        + frame(0, 1, b"\x00" + len(request).to_bytes(4) + request, flags=1)
    )


async def answer_pings(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Keep a connection alive and do nothing else."""
    while True:
        header = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(header[:3]))
        if header[3] == 6 and not header[4]:
            writer.write(frame(6, 0, payload, flags=1))


async def statuses(health) -> set[int]:
    """Return the health of all names that follow the dependencies."""
    requests = [health_pb2.HealthCheckRequest(service=name) for name in FOLLOWERS]
    return {(await health.Check(request)).status for request in requests}


async def is_alive(health) -> bool:
    """Return whether the process itself is SERVING."""
    return (await health.Check(health_pb2.HealthCheckRequest(service="liveness"))).status == SERVING


class Watch:
    """What a client that watches the health of a name sees."""

    def __init__(self, health, name: str) -> None:
        self._responses = health.Watch(health_pb2.HealthCheckRequest(service=name), timeout=20)

    async def next(self) -> int:
        return (await self._responses.read()).status

    def cancel(self) -> None:
        self._responses.cancel()


async def test_server_is_not_ready_before_the_first_success():
    """Until a dependency has answered once, the process lives and nothing is SERVING."""
    database = Database(up=False)
    async with serving(database=database) as health:
        await database.answer(1)
        assert await statuses(health) == {NOT_SERVING}
        assert await is_alive(health)
        watch = Watch(health, "readiness")
        assert await watch.next() == NOT_SERVING
        database.up = True
        assert await watch.next() == SERVING
        assert await statuses(health) == {SERVING}


async def test_failures_in_a_row_and_recovery():
    """The third failure in a row makes all but liveness NOT_SERVING; one success is enough to be back."""
    database = Database(up=True)
    async with serving(database=database) as health:
        watches = [Watch(health, name) for name in FOLLOWERS]
        for watch in watches:
            while await watch.next() != SERVING:
                pass
        for _ in range(2):
            database.up = False
            assert {await watch.next() for watch in watches} == {NOT_SERVING}
            assert await statuses(health) == {NOT_SERVING}
            assert await is_alive(health)
            database.up = True
            assert {await watch.next() for watch in watches} == {SERVING}
            assert await statuses(health) == {SERVING}


@pytest.mark.parametrize(("failures", "ready"), [(1, True), (2, True), (3, False)])
async def test_failures_before_a_server_is_not_ready(failures, ready):
    """One failure or two may be chance, and a success in between starts the count anew."""
    left = 0
    idle = asyncio.Event()

    async def ping() -> None:
        nonlocal left
        if left:
            left -= 1
            raise ConnectionError
        idle.set()

    server = Server(configure())
    server.depend_on("database", ping, interval=0.01, timeout=1, failures=3)
    with capture_logs() as logs:
        async with server.serving():
            for _ in range(4):
                idle.clear()
                await idle.wait()
                left = failures
    changes = [line["ready"] for line in logs if line["event"] == "readiness"]
    assert (changes == []) == ready
    assert [line["times"] for line in logs if line["event"] == "dependency failed"][:failures] == list(
        range(1, failures + 1)
    )


def sick(database: Database, *, patience: float = 60, required: bool = True):
    """Return a server that asks `database` every 10 ms, and takes an answer after 50 ms for late."""
    registry = CollectorRegistry()
    server = Server(configure(METRICS_ENABLED="true", METRICS_PORT="0"), registry=registry)
    server.depend_on(
        "database",
        database.ping,
        interval=0.01,
        timeout=0.05,
        failures=3,
        patience=patience,
        required=required,
    )
    return server, registry


@asynccontextmanager
async def watched(server: Server, name: str = "readiness"):
    """Serve; yield a watch of the health of `name`, and the port."""
    async with server.serving() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Watch(health_pb2_grpc.HealthStub(channel), name), port


async def until(condition) -> None:
    """Wait for what only polling tells."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("answer", [0.1, 0.5])
async def test_slow_dependency_keeps_the_server_ready(answer):
    """Answers that are late, each of them, are in the log and the metrics, and nobody leaves the server."""
    database = Database(up=True)
    server, registry = sick(database)
    with capture_logs() as logs:
        async with watched(server) as (watch, port):
            labels = {"port": str(port), "dependency": "database"}

            def slow() -> bool:
                return registry.get_sample_value("grpc_server_dependency_slow", labels) == 1

            assert await watch.next() == SERVING
            await until(lambda: not slow())  # on a busy machine an answer may be late by itself
            database.takes = answer
            await database.answer(4)
            assert slow()
            assert registry.get_sample_value("grpc_server_dependency_up", labels) == 1
            database.takes = 0
            await until(lambda: not slow())
            with pytest.raises(TimeoutError):  # nothing more has come
                await asyncio.wait_for(watch.next(), 0.1)
    assert [line for line in logs if line["event"] == "readiness"] == []
    late = next(line for line in logs if line["event"] == "dependency has not answered")
    assert late == {
        "event": "dependency has not answered",
        "log_level": "warning",
        "dependency": "database",
        "reason": "no answer within 50ms",
        "up": True,
    }
    assert "dependency answered late" in {line["event"] for line in logs}


async def test_dependency_is_slow_before_its_late_answer():
    """The gauge tells as soon as an answer is late, and not only once it has come."""
    answer = asyncio.Event()
    answer.set()
    registry = CollectorRegistry()
    server = Server(configure(METRICS_ENABLED="true", METRICS_PORT="0"), registry=registry)
    server.depend_on("database", answer.wait, interval=0.01, timeout=0.05, patience=60)
    async with server.serving() as port:
        labels = {"port": str(port), "dependency": "database"}

        def slow() -> float | None:
            return registry.get_sample_value("grpc_server_dependency_slow", labels)

        await until(lambda: slow() == 0)  # on a busy machine an answer may be late by itself
        answer.clear()
        await until(slow)
        answer.set()
        await until(lambda: not slow())


@pytest.mark.parametrize("error", TIMEOUTS.values(), ids=TIMEOUTS)
async def test_timeout_of_the_probe_itself_is_no_answer(error):
    """What a probe raises when its own time is over makes nobody leave either."""
    database = Database(up=True)
    server, _ = sick(database)
    async with watched(server) as (watch, _):
        assert await watch.next() == SERVING
        database.error = error
        await database.answer(6)
        database.error = None
        await database.answer(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watch.next(), 0.1)


async def test_dependency_that_never_answers_is_down():
    """When no answer has come for `patience`, again and again, it is down; one is enough to be back."""
    database = Database(up=True)
    server, registry = sick(database, patience=0.2)
    with capture_logs() as logs:
        async with watched(server) as (watch, port):
            labels = {"port": str(port), "dependency": "database"}
            assert await watch.next() == SERVING
            for _ in range(2):
                database.hangs = True
                assert await watch.next() == NOT_SERVING
                assert registry.get_sample_value("grpc_server_dependency_slow", labels) == 0
                database.hangs = False
                assert await watch.next() == SERVING
    reasons = {line["reason"] for line in logs if line["event"] == "dependency has not answered"}
    assert reasons == {"no answer within 50ms", "no answer within 200ms"}


async def test_probe_on_a_lost_connection():
    """One that hangs for ever is replaced; if the next has an answer the server was ready all the time."""
    database = Database(up=True)
    server, _ = sick(database, patience=0.2)
    async with watched(server) as (watch, _):
        assert await watch.next() == SERVING
        for _ in range(3):
            database.hangs_once = True
            await until(lambda: not database.hangs_once)
            await database.answer(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watch.next(), 0.1)


async def test_late_failure_is_a_failure():
    """A dependency that is slow to say that it is down is down."""
    database = Database(up=True)
    server, _ = sick(database)
    async with watched(server) as (watch, _):
        assert await watch.next() == SERVING
        database.takes, database.up = 0.1, False
        assert await watch.next() == NOT_SERVING
        database.up = True
        assert await watch.next() == SERVING


async def test_server_that_starts_on_a_slow_dependency():
    """It serves at once, and is ready with the first answer, however late."""
    answer = asyncio.Event()
    server = Server(configure())
    server.depend_on("database", answer.wait, interval=0.01, timeout=0.05, patience=60)
    async with watched(server) as (watch, _):
        assert await watch.next() == NOT_SERVING
        answer.set()
        assert await watch.next() == SERVING


async def test_dependency_that_is_not_required():
    """Its gauge and the log tell when it is down and back, and the server is ready all the time."""
    database = Database(up=False)
    server, registry = sick(database, required=False)
    with capture_logs() as logs:
        async with watched(server) as (watch, port):
            labels = {"port": str(port), "dependency": "database"}

            def up() -> float | None:
                return registry.get_sample_value("grpc_server_dependency_up", labels)

            assert await watch.next() == SERVING
            assert up() == 0
            database.up = True
            await until(up)
            database.up = False
            await until(lambda: not up())
            assert registry.get_sample_value("grpc_server_ready", {"port": str(port)}) == 1
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(watch.next(), 0.1)
    assert [line["up"] for line in logs if line["event"] == "dependency"] == [True, False]
    assert "readiness" not in {line["event"] for line in logs}
    assert "database is on fire" in {line.get("reason") for line in logs}


async def test_end_while_a_probe_has_no_answer():
    """A server that ends leaves no probe behind, however long that would have waited."""
    database = Database(up=True)
    server, _ = sick(database)
    async with watched(server) as (watch, _):
        assert await watch.next() == SERVING
        database.hangs = True
        await database.answer(0)
        await until(lambda: database.asking)
    await until(lambda: not database.asking)


async def test_all_dependencies_count():
    """One that fails is enough, and its return is not while another one fails."""
    database, cache = Database(up=True), Database(up=False)
    async with serving(database=database, cache=cache) as health:
        await database.answer(3)
        assert await statuses(health) == {NOT_SERVING}
        database.up = False
        await database.answer(3)
        cache.up = True
        await cache.answer(1)
        assert await statuses(health) == {NOT_SERVING}
        watch = Watch(health, "")
        assert await watch.next() == NOT_SERVING
        database.up = True
        assert await watch.next() == SERVING


async def test_log_tells_why():
    """Whoever is called at night reads which dependency failed, and its own words."""
    database = Database(up=True)
    with capture_logs() as logs:
        async with serving(database=database):
            await database.answer(1)
            database.up = False
            await database.answer(4)
    failed = next(line for line in logs if line["event"] == "dependency failed")
    assert failed == {
        "event": "dependency failed",
        "log_level": "warning",
        "dependency": "database",
        "reason": "database is on fire",
        "times": 1,
    }
    changes = [(line["dependency"], line["ready"]) for line in logs if line["event"] == "readiness"]
    assert changes == [("database", False)]


async def test_draining_server_does_not_come_back():
    """A server that drains is NOT_SERVING, even if a dependency recovers meanwhile."""
    database = Database(up=True)
    server = Server(configure(DRAIN_DELAY="2s"))
    server.depend_on("database", database.ping, interval=0.01)
    seen = []

    async def watch(port: int, ready: asyncio.Event) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            responses = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            with pytest.raises(grpc.aio.AioRpcError):  # the end of the server
                async for response in responses:
                    seen.append(response.status)
                    ready.set()
                    if len(seen) == 2:
                        database.up = False
                        await database.answer(3)
                        database.up = True
                        await database.answer(1)

    async with asyncio.TaskGroup() as tasks, server.serving() as port:
        await database.answer(1)
        ready = asyncio.Event()
        tasks.create_task(watch(port, ready))
        await ready.wait()
    assert seen == [SERVING, NOT_SERVING]


async def failure(call) -> tuple[grpc.StatusCode, str]:
    """Return how a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("user.UserServise", '"user.UserServise"'),
        (" ", '" "'),
        ("a\x00b\n\x1b[2J", r'"a\x00b\n\x1b[2J"'),
        ("x" * 10_000, f'"{"x" * 100}... (10000 characters)"'),
    ],
    ids=["typo", "space", "control characters", "10 kB"],
)
async def test_unknown_service_is_named(name, shown):
    """Who asks for a health that does not exist is told for which, and what there is."""
    async with serving() as health:
        code, details = await failure(health.Check(health_pb2.HealthCheckRequest(service=name)))
        assert code is grpc.StatusCode.NOT_FOUND
        assert details.startswith(f"no service {shown} is known here; ask for ")
        assert await Watch(health, name).next() == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def test_list_has_every_name():
    """List tells what Check and Watch would; a server without reflection keeps its services to itself."""
    async with serving() as health:
        listed = await health.List(health_pb2.HealthListRequest())
        names = {*FOLLOWERS, "liveness", "grpc.health.v1.Health"}
        assert {name: answer.status for name, answer in listed.statuses.items()} == dict.fromkeys(
            names, SERVING
        )
    async with serving(reflection=False) as health:
        code, details = await failure(health.List(health_pb2.HealthListRequest()))
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert "server.reflection is off" in details


async def test_watcher_that_does_not_read_stops_nothing():
    """The health goes on for all others, and the server ends, while one client takes no message."""
    database = Database(up=True)
    async with asyncio.timeout(20), serving(database=database) as health:
        await database.answer(1)
        reader, writer = await asyncio.open_connection("127.0.0.1", health.port)
        writer.write(watch_without_reading("readiness"))
        stalled = asyncio.create_task(answer_pings(reader, writer))
        await asyncio.sleep(0.1)  # for the server to begin its answer, which nothing tells
        watch = Watch(health, "readiness")
        assert await watch.next() == SERVING
        database.up = False
        await database.answer(4)
        assert await watch.next() == NOT_SERVING
        assert await statuses(health) == {NOT_SERVING}
    stalled.cancel()
    writer.close()


async def test_thousands_of_watchers_hear_of_a_change():
    """Each gets it once, and one that has gone leaves nothing behind."""
    database = Database(up=True)
    async with asyncio.timeout(60), serving(database=database) as health:
        await database.answer(1)
        watches = [Watch(health, "readiness") for _ in range(1000)]
        assert {await watch.next() for watch in watches} == {SERVING}
        for watch in watches[::2]:
            watch.cancel()
        database.up = False
        assert {await watch.next() for watch in watches[1::2]} == {NOT_SERVING}
        database.up = True
        assert {await watch.next() for watch in watches[1::2]} == {SERVING}
