import asyncio
import inspect
import json
import logging
import warnings
from datetime import UTC, datetime, timedelta

import grpc
import pytest
import structlog

from grpc_common import Server
from grpc_common.core.calls import Call, CallType, Method
from grpc_common.observe import writer
from grpc_common.observe.access_log import AccessLog
from grpc_common.observe.logs import configure_logging, set_level
from grpc_common.testing import configure
from grpc_common.testing.server import serving_handlers

log = structlog.get_logger()
HOSTILE = "a\n2026-11-24T20:00:00Z [info     ] forged\x1b[31m\x7f\x9b\u202e"
GET_USER = Method("user.UserService", "GetUser", CallType.UNARY)
CHECK = Method("grpc.health.v1.Health", "Check", CallType.UNARY)


class Lines:
    """What was logged since the last look."""

    def __init__(self, capfd) -> None:
        self._capfd = capfd

    def text(self) -> list[str]:
        assert writer.lines.flush(60)
        return self._capfd.readouterr().err.splitlines()

    def json(self) -> list[dict]:
        return [json.loads(line) for line in self.text()]


@pytest.fixture
def lines(capfd):
    """Undo configure_logging at the end; the value reads what was logged."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield Lines(capfd)
    structlog.reset_defaults()
    set_level("info")
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_line(lines):
    """A JSON line has the time in UTC, the level, the event and the values with their types."""
    configure_logging(format="json")
    log.info("created", user="Ada", count=3, ratio=0.5, tags=["a"], nothing=None)
    (line,) = lines.json()
    age = datetime.now(UTC) - datetime.fromisoformat(line.pop("timestamp"))
    assert timedelta(0) <= age < timedelta(minutes=1)
    assert line == {
        "event": "created",
        "level": "info",
        "user": "Ada",
        "count": 3,
        "ratio": 0.5,
        "tags": ["a"],
        "nothing": None,
    }


def test_console_line_without_arguments(lines):
    """The default is one line for people from level info on."""
    configure_logging()
    log.debug("unseen")
    log.info("serving", port=50051, database="~/users.db")
    (line,) = lines.text()
    assert line.split()[1:] == ["[info", "]", "serving", "database=~/users.db", "port=50051"]


@pytest.mark.parametrize("output", ["console", "json"])
@pytest.mark.parametrize("value", [HOSTILE, [HOSTILE], ValueError(HOSTILE), {HOSTILE: 1}])
def test_values_cannot_forge_lines(lines, output, value):
    """Newlines, escape sequences and direction marks in a value or an event reach no line as they are."""
    configure_logging(format=output)
    log.info("created", email=value)
    log.info("created %s", value)
    logging.getLogger("library").warning("created %s", value)
    written = lines.text()
    assert len(written) == 3
    assert all(line.isprintable() and r"\n2026" in line for line in written)


class Multiline:
    """Something whose repr has lines, as protobuf messages have."""

    def __repr__(self) -> str:
        return 'name: "Ada"\nemail: "ada@example.com"\n'


def test_object_whose_repr_has_lines_stays_on_its_line(lines):
    """A value is escaped by its repr."""
    configure_logging()
    log.info("created", user=Multiline())
    (line,) = lines.text()
    assert line.endswith(r"""user='name: "Ada"\nemail: "ada@example.com"\n'""")


def fail():
    """Raise what no one expects."""
    raise KeyError(HOSTILE)


@pytest.mark.parametrize("logger", [log, logging.getLogger("library")], ids=["structlog", "logging"])
def test_traceback_is_a_field_of_json(lines, logger):
    """The exception's text is one string of the line."""
    configure_logging(format="json")
    try:
        fail()
    except KeyError:
        logger.exception("unexpected")
    (line,) = lines.json()
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert "KeyError" in line["exception"]


@pytest.mark.parametrize("logger", [log, logging.getLogger("library")], ids=["structlog", "logging"])
def test_traceback_follows_a_console_line(lines, logger):
    """The traceback's lines are indented, so that an exception's text can't pass for an event."""
    configure_logging()
    try:
        raise ValueError(HOSTILE)  # noqa: TRY301
    except ValueError:
        logger.exception("unexpected")
    event, *traceback = lines.text()
    assert "unexpected" in event
    assert traceback[0] == "  Traceback (most recent call last):"
    assert "  ValueError: a" in traceback
    assert all(line.startswith("  ") and line.isprintable() for line in traceback)


async def test_grpc_logs_in_the_same_form(lines):
    """What grpc itself has to say is a JSON line too, with the name of its logger."""
    configure_logging(format="json")
    handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: fail())
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Fail", {"Fail": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/test.Fail/Fail")(b"")
    await server.stop(None)
    (line,) = lines.json()
    assert line["logger"].startswith("grpc")
    assert line["level"] == "error"
    assert "KeyError" in line["exception"]


def test_warnings_of_python_are_logged(lines):
    """A warning is a line like any other."""
    configure_logging(format="json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old option", stacklevel=1)
    (line,) = lines.json()
    assert line["level"] == "warning"
    assert "old option" in line["event"]


def test_level_changes_at_run_time(lines):
    """A new level holds at once, for loggers bound before it and for Python's own logging."""
    configure_logging("warning", "json")
    bound = log.bind(component="store")
    library = logging.getLogger("library")

    def all_log():
        for logger in (log, bound, library):
            logger.info("line")
        return len(lines.text())

    assert all_log() == 0
    set_level("debug")
    assert all_log() == 3
    set_level("error")
    assert all_log() == 0


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_level_is_the_least_that_is_logged(lines, level):
    """Lines of the level and above come out, of both kinds of loggers; critical ones always."""
    levels = ["debug", "info", "warning", "error", "critical"]
    configure_logging(level, "json")
    for name in levels:
        getattr(log, name)("line")
        getattr(logging.getLogger("library"), name)("line")
    expected = [name for name in levels[levels.index(level) :] for _ in range(2)]
    assert [line["level"] for line in lines.json()] == expected


async def test_context_of_a_task_is_logged(lines):
    """What a task binds is on its lines and on no other's."""
    configure_logging(format="json")

    async def work(name):
        structlog.contextvars.bind_contextvars(request=name)
        await asyncio.sleep(0)
        log.info("line")
        logging.getLogger("library").info("line")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(work("a"))
        tasks.create_task(work("b"))
    assert [line["request"] for line in lines.json()] == ["a", "a", "b", "b"]


class Broken:
    """Something that can't be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


def circle() -> list:
    """Return a list that holds itself."""
    values: list = []
    values.append(values)
    return values


@pytest.mark.parametrize("output", ["console", "json"])
@pytest.mark.parametrize(
    "value",
    [
        Broken(),
        {"a": [Broken()]},
        circle(),
        {"\U0001f600" * 100 + str(n): 1 for n in range(100)},
        {(1, 2): 3},
        float("nan"),
        10**5000,
        b"\xff",
        "\ud800",
        "字" * 100_000,
        list(range(20_000)),
        {str(n): "\U0001f600" * 100 for n in range(300)},
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_value_is_a_line(lines, output, value):
    """Whatever a value is, the call returns, and a bounded line with the event and other values comes out."""
    configure_logging(format=output)
    log.info("created", user="Ada", value=value)
    log.error("many", **{f"field{n}": value for n in range(200)})
    logging.getLogger("library").warning("created %s", value)
    first, second, third = lines.text()
    assert max(map(len, [first, second, third])) <= 2**14
    assert "created" in first
    assert "Ada" in first
    assert "many" in second
    assert "created" in third
    if output == "json":
        for line in (first, second, third):
            json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    "call",
    [
        lambda: log.info("created %s %s", "Ada"),  # noqa: PLE1206 (that is the mistake)
        lambda: log.info("created", event="again"),
        lambda: log.ainfo("created %s %s", "Ada"),
        lambda: logging.getLogger("library").warning("created %d", "Ada"),
        lambda: logging.getLogger("grpc.aio").warning("created %d", "Ada"),
    ],
    ids=["too few arguments", "event twice", "asynchronous", "library", "grpc"],
)
async def test_mistaken_call_is_a_line(lines, call):
    """A call of the log that is wrong in itself doesn't fail the code around it."""
    configure_logging(format="json")
    if inspect.isawaitable(called := call()):
        await called
    (line,) = lines.json()
    assert line["event"].startswith("created")
    assert line["logging_error"].startswith("TypeError: ")


def test_message_without_a_text(lines):
    """Nor does one of the loggers whose lines are bounded, if its message can't be a text."""
    configure_logging(format="json")
    logging.getLogger("grpc").warning(Broken())
    (line,) = lines.json()
    assert line["logging_error"] == "RuntimeError: no text"


def test_keys_cannot_forge_lines(lines):
    """A key comes from a peer when a mapping of its is logged: log.info("metadata", **metadata)."""
    configure_logging(format="console")
    log.info("metadata", **{HOSTILE: 1})
    (line,) = lines.text()
    assert line.isprintable()


def test_long_text_keeps_its_begin_and_end(lines):
    """A mark says how much was left out in the middle; the end of a traceback is what matters most."""
    configure_logging(format="json")
    try:
        raise ValueError("begin" + "x" * 100_000 + "end")  # noqa: TRY301
    except ValueError:
        log.exception("unexpected")
    (line,) = lines.json()
    assert line["exception"].startswith("Traceback")
    assert "characters left out" in line["exception"]
    assert line["exception"].endswith("end")


async def test_server_that_is_not_set_up_shows_no_locals(lines):
    """Without configure_logging a bug's traceback has the lines of code, and nothing of the request."""
    structlog.reset_defaults()

    async def fail_with_secret(request: bytes, _context) -> bytes:
        secret = request.decode()
        raise KeyError(len(secret))

    handler = grpc.unary_unary_rpc_method_handler(fail_with_secret)
    handlers = grpc.method_handlers_generic_handler("test.Fail", {"Fail": handler})
    server = Server(configure())
    server.add(None, lambda _, server: server.add_generic_rpc_handlers([handlers]))
    async with server.serving() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/test.Fail/Fail")(b"CANARY")
    text = "\n".join(lines.text())
    assert "KeyError: 6" in text
    assert "CANARY" not in text


def test_configured_again_it_logs_once(lines):
    """A second call replaces the first."""
    configure_logging()
    configure_logging(format="json")
    logging.getLogger("library").warning("line")
    log.warning("line")
    assert len(lines.json()) == 2


def test_tests_can_capture_what_is_logged(lines):
    """The capture_logs of structlog sees lines after configure_logging, and nothing is written."""
    configure_logging()
    log.info("before")
    with structlog.testing.capture_logs() as captured:
        log.info("created", user="Ada")
    assert captured == [{"event": "created", "user": "Ada", "log_level": "info"}]
    assert len(lines.text()) == 1


def access(call, observer=None):
    """Return the lines of an AccessLog about `call`."""
    observer = observer or AccessLog()
    with structlog.testing.capture_logs() as captured:
        observer.started(call)
        observer.ended(call)
    return captured


def test_access_line():
    """A call is one line with method, code, duration, peer, trace and the time that it had."""
    call = Call(
        GET_USER,
        metadata=[("authorization", "Bearer hunter2")],
        peer="ipv4:10.0.0.7:41234",
        deadline=1.99951,
        code=grpc.StatusCode.NOT_FOUND,
        trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
    )
    call.start -= 0.25
    (line,) = access(call)
    assert 0.25 <= line.pop("duration") <= round(call.elapsed, 6)
    assert line == {
        "event": "call",
        "log_level": "info",
        "method": "/user.UserService/GetUser",
        "code": "NOT_FOUND",
        "peer": "ipv4:10.0.0.7:41234",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "deadline_left": 2.0,
    }


def test_access_line_has_only_what_is_known():
    """Without a trace and a deadline their fields are left out."""
    (line,) = access(Call(GET_USER, code=grpc.StatusCode.OK))
    assert set(line) == {"event", "log_level", "method", "code", "duration", "peer"}


@pytest.mark.parametrize(
    ("level", "codes"),
    [
        ("info", "OK CANCELLED INVALID_ARGUMENT NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED UNAUTHENTICATED"),
        ("info", "FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED"),
        ("warning", "UNAVAILABLE DEADLINE_EXCEEDED RESOURCE_EXHAUSTED"),
        ("error", "INTERNAL UNKNOWN DATA_LOSS"),
    ],
)
def test_level_of_an_access_line(level, codes):
    """Mistakes of callers are info, an overloaded or late server warns, and bugs are errors."""
    for code in codes.split():
        (line,) = access(Call(GET_USER, code=grpc.StatusCode[code]))
        assert line["log_level"] == level, code


@pytest.mark.parametrize(
    ("call", "observer"),
    [
        (Call(CHECK, code=grpc.StatusCode.OK), AccessLog()),
        (Call(GET_USER, code=grpc.StatusCode.UNAVAILABLE), AccessLog(client=True)),
    ],
    ids=["health check", "client"],
)
def test_health_checks_and_client_calls_are_for_debugging(lines, call, observer):
    """Probes do not flood the log, and a client's calls are told only on demand: no line is even begun."""
    configure_logging("info", "json")
    assert access(call, observer) == []
    set_level("debug")
    observer.ended(call)
    (line,) = lines.json()
    assert line["level"] == "debug"
    assert line["method"] == call.method.path


def test_client_calls_have_a_name_of_their_own():
    """A process that is both server and client tells its calls apart."""
    set_level("debug")
    (line,) = access(
        Call(GET_USER, peer="dns:///users:50051", code=grpc.StatusCode.OK), AccessLog(client=True)
    )
    set_level("info")
    assert (line["event"], line["peer"]) == ("client call", "dns:///users:50051")


async def test_line_of_a_servicer_says_in_which_call(lines):
    """What a servicer logs has the call's method and peer, by either way of logging, in a thread too."""

    async def coroutine(request, _context):
        log.info("from structlog", method="its own")
        logging.getLogger("service").info("from logging")
        return request

    def function(request, _context):
        log.info("from a thread")
        return request

    handlers = {
        "Coroutine": grpc.unary_unary_rpc_method_handler(coroutine),
        "Function": grpc.unary_unary_rpc_method_handler(function),
    }
    configure_logging(format="json")
    async with serving_handlers(handlers) as channel:
        for name in handlers:
            await channel.unary_unary(f"/test.Methods/{name}")(b"")
    logged = {line["event"]: line for line in lines.json()}
    peer = logged["call"]["peer"]
    assert peer.startswith("ipv4:127.0.0.1:")
    said = {event: (logged[event].get("method"), logged[event].get("peer")) for event in logged}
    assert said["from structlog"] == ("its own", peer)
    assert said["from logging"] == ("/test.Methods/Coroutine", peer)
    assert said["from a thread"] == ("/test.Methods/Function", peer)
    assert said["serving"] == (None, None)


def test_fields_that_structlog_takes_as_texts_may_be_anything(lines):
    """A list called `stack` or `exception` is in the line for people as another value is."""
    configure_logging(format="console")
    log.info("event", stack=["here\n"], exception=None)
    text = "\n".join(lines.text())
    assert "logging_error" not in text
    assert "here" in text
