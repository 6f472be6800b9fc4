import logging
import re
from datetime import UTC, datetime, timedelta

import grpc
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from grpc_common.core.calls import Call, CallType, Method, running_call
from grpc_common.observe import known_lines, logs, writer
from grpc_common.observe.access_log import AccessLog
from grpc_common.observe.logs import KnownEvent, configure_logging, set_level
from grpc_common.observe.rendering import MAX_LINE, MAX_VALUE, Renderer

log = structlog.get_logger()
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z")
ODD = ["", " ", "a=b", '"', "'", "\\", "\n", "\x1b[31m", "\ud800", "\u202e", "%s", "%(peer)s", "mark:peer:"]
GET = Method("user.UserService", "GetUser", CallType.UNARY)


def adding_to(lines):
    """Return what makes lines, as the log's writer does, and appends them."""
    return lambda line, _size=0: lines.append(line if isinstance(line, str) else line())


@pytest.fixture(autouse=True)
def added(monkeypatch):
    """Collect the lines instead of writing them; undo configure_logging at the end."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    lines = []
    monkeypatch.setattr(writer.lines, "add", adding_to(lines))
    yield lines
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    set_level("info")
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


texts = st.one_of(
    st.text(st.characters(), max_size=20),
    st.from_regex(r"[a-z./:0-9\[\]%-]{1,30}", fullmatch=True),
    st.sampled_from(ODD),
    st.sampled_from([MAX_VALUE - 200, MAX_VALUE + 1, MAX_LINE]).map(lambda length: "x" * length),
)
numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(),
    st.floats(0, 60).map(lambda value: round(value, 6)),
)
fields_of_calls = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["/a.B/C", "/100%/s%s", "/ä/=", '"']),
        "code": st.sampled_from(["OK", "NOT_FOUND"]),
        "duration": numbers,
        "peer": texts,
    },
    optional={"caller": texts, "trace_id": texts, "deadline_left": numbers},
)
levels = st.sampled_from(["info", "warning", "error"])


@pytest.mark.parametrize(
    ("format_", "colors"), [("json", False), ("console", False), ("console", True)], ids=str
)
@given(st.lists(st.tuples(levels, fields_of_calls), max_size=5))
def test_line_is_the_ordinary_one(format_, colors, events):
    """Whatever is in the fields, the line is the renderer's to the last character, or there is none."""
    renderer = Renderer(format_, colors=colors)
    for level, fields in events:
        known = {name: fields.pop(name) for name in ("method", "code")}
        making = known_lines.KnownLine(
            renderer.line, format_, level=level, event="call", known=known, names=list(fields)
        )
        make = making.later(list(fields.values()))
        if make is not None:
            line = make()
            times = [match[0] for match in TIMESTAMP.finditer(line)]
            event = {**known, **fields, "event": "call", "level": level}
            assert any(renderer.line({**event, "timestamp": time}) == line for time in times)


@pytest.mark.parametrize("format_", ["json", "console"])
def test_lines_of_ordinary_calls_need_no_structlog(format_):
    """What calls usually are is known: paths, addresses, names of certificates, numbers that JSON has."""
    names = ("caller", "duration", "peer", "deadline_left")
    known = known_lines.KnownLine(
        Renderer(format_).line, format_, level="info", event="call", known={}, names=names
    )
    for peer in ("ipv4:10.0.0.7:41234", "ipv6:[::1]:41234", "ipv6:%5B::1%5D:41234", "unix:/run/a-b_c.sock"):
        assert known.later(["billing", 1.2e-05, peer, 0.0]) is not None, peer


def ended(**fields):
    """Have an access log tell of a call that has ended."""
    call = Call(GET, **{"peer": "ipv4:10.0.0.7:1", "code": grpc.StatusCode.OK} | fields)
    AccessLog().ended(call)
    return call


@pytest.mark.parametrize("format_", ["json", "console"])
@given(
    peer=texts,
    caller=texts,
    unknown_path=texts,
    deadline=st.none() | st.floats(0, 1e9) | st.integers(),
    trace_id=texts,
)
def test_access_line_is_the_one_that_structlog_writes(format_, **fields):
    """Lines of calls are those of the whole chain, but for the time: fields, order, escapes, level."""
    configure_logging(format=format_)
    lines, adding = [], writer.lines.add
    writer.lines.add = adding_to(lines)
    try:
        for code in (grpc.StatusCode.OK, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE):
            call = Fixed(GET, code=code, **fields)
            AccessLog().ended(call)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(logs, "_is_ordinary", lambda: False)
                AccessLog().ended(call)
    finally:
        writer.lines.add = adding
    without_times = [TIMESTAMP.sub("T", line) for line in lines]
    assert without_times[::2] == without_times[1::2]
    assert len(lines) == 6


class Fixed(Call):
    """A call that takes a time which is known."""

    @property
    def elapsed(self):
        return 0.000123


def test_timestamp_is_now(added):
    """A line has the time at which it was logged, as the lines around it."""
    configure_logging(format="json")
    before = datetime.now(UTC)
    for _ in range(3):
        ended()
    times = [datetime.fromisoformat(TIMESTAMP.search(line)[0]) for line in added]
    assert times == sorted(times)
    assert before - timedelta(milliseconds=1) <= times[0]
    assert times[-1] <= datetime.now(UTC) + timedelta(milliseconds=1)


@pytest.mark.parametrize("now", [0.0, 0.5, 1_700_000_000.0, 1_700_000_000.25, 1_700_000_000.999999])
def test_timestamp_is_as_isoformat_has_it(monkeypatch, now):
    """Also in the microsecond of a full second, which has no fraction."""
    monkeypatch.setattr(known_lines.time, "time", lambda: now)
    known = known_lines.KnownLine(
        Renderer("json").line, "json", level="info", event="call", known={}, names=["peer"]
    )
    isoformat = datetime.fromtimestamp(now, UTC).isoformat().replace("+00:00", "Z")
    assert f'"timestamp": "{isoformat}"}}' in known.later(["x"])()


def test_lines_follow_the_format(added):
    """After configure_logging lines have the new form at once."""
    configure_logging(format="json")
    ended()
    configure_logging(format="console")
    ended()
    assert added[0].startswith('{"method": ')
    assert "[info     ] call" in added[1]


def test_variables_that_are_bound_are_in_the_line(added):
    """What an interceptor has bound by structlog.contextvars is in the access line of its call."""
    configure_logging(format="json")
    with structlog.contextvars.bound_contextvars(tenant="blue"):
        ended()
    ended()
    assert '"tenant": "blue"' in added[0]
    assert "tenant" not in added[1]


def test_processors_of_the_program_see_the_lines(added):
    """Whoever adds a processor, in either way, has it run for access lines too."""

    def stamp(_logger, _method, event):
        return {**event, "region": "north"}

    configure_logging(format="json")
    structlog.get_config()["processors"].insert(0, stamp)
    ended()
    configure_logging(format="json")
    structlog.configure(processors=[stamp, *structlog.get_config()["processors"]])
    ended()
    assert all('"region": "north"' in line for line in added)
    assert len(added) == 2


def test_line_in_another_call_tells_it(added):
    """A call that is told of while another one runs has that one's caller, as every line there."""
    configure_logging(format="json")
    token = running_call.set(Call(GET, caller="spiffe://x/billing"))
    try:
        ended()
    finally:
        running_call.reset(token)
    assert '"caller": "spiffe://x/billing"' in added[0]


def test_known_event_may_be_any_event(added):
    """Not just calls."""
    configure_logging(format="json")
    event = KnownEvent("warning", "odd", {"kind": "x"}, ["value"])
    event.log([2.5])
    assert added[0].startswith(
        '{"kind": "x", "value": 2.5, "event": "odd", "level": "warning", "timestamp": '
    )
