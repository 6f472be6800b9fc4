import errno
import os
import resource
import signal
import threading

import pytest

from grpc_common.observe.rate_limit import BURST, RateLimit
from grpc_common.observe.writer import MAX_LINES, LineWriter

PATIENCE = 60
"""Seconds that a busy machine may take."""


@pytest.fixture
def file(tmp_path):
    """Return an open file."""
    with (tmp_path / "log").open("wb+") as file:
        yield file


def written(file) -> list[str]:
    """Return the lines of the file."""
    file.seek(0)
    return file.read().decode().splitlines()


def tell(dropped: int) -> list[str]:
    """Return the notice of a test."""
    return [f"dropped {dropped}"] if dropped else []


def test_order_of_lines(file):
    """Lines of a thread are written in their order, however many threads there are."""
    writer = LineWriter(file.fileno())
    threads = [
        threading.Thread(target=lambda n=n: [writer.add(f"{n} {line}") for line in range(1000)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.flush(PATIENCE)
    for n in range(4):
        assert [line for line in written(file) if line[0] == str(n)] == [
            f"{n} {line}" for line in range(1000)
        ]


@pytest.fixture
def file_limit():
    """Return a function that sets how large a file may be."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_line_that_was_written_in_part_is_finished(file, file_limit):
    """When a disk that was full has room again, a torn line gets its rest first, and the loss is told."""
    writer = LineWriter(file.fileno())
    writer.notices = tell
    file_limit(1005)
    writer.add("\n".join(["x" * 99] * 20))  # ten whole lines fit, and 5 bytes of the next
    assert writer.flush(PATIENCE)
    writer.add("lost")
    assert writer.flush(PATIENCE)
    file_limit(resource.RLIM_INFINITY)
    writer.add("after")
    assert writer.flush(PATIENCE)
    assert written(file) == ["x" * 99] * 11 + ["after", "dropped 10"]
    assert writer.dropped == {"full": 0, errno.errorcode[errno.EFBIG]: 10}


def test_bounds_of_the_queue():
    """Lines beyond the number that may wait are counted, and told once the others are written."""
    reader, end = os.pipe()
    writer = LineWriter(end)
    writer.notices = tell
    writer.add("x" * 100_000)  # more than a pipe holds, and so the thread waits
    assert os.read(reader, 1) == b"x"
    for _ in range(MAX_LINES + 50):
        writer.add("")
    assert writer.dropped == {"full": 50}
    with os.fdopen(reader) as pipe:
        lines = [pipe.readline() for _ in range(MAX_LINES + 2)]
    assert "dropped 50\n" in lines
    os.close(end)


def test_characters_of_the_queue():
    """A few lines of megabytes are too many as well, and leave room for short ones."""
    reader, end = os.pipe()
    writer = LineWriter(end)
    writer.add("x" * 100_000)
    assert os.read(reader, 1) == b"x"
    for _ in range(10):
        writer.add("x" * 2**20)
    assert writer.dropped == {"full": 6}
    os.close(reader)  # ends the wait of the thread
    assert writer.flush(PATIENCE)
    os.close(end)


def test_line_of_a_signal_handler(file):
    """A handler that logs in the middle of another line's way into the queue neither waits nor loses one."""
    writer = LineWriter(file.fileno())
    before = signal.signal(signal.SIGALRM, lambda *_: writer.add("signal"))
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
    for _ in range(5000):
        writer.add("line")
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    assert writer.flush(PATIENCE)
    assert written(file).count("line") == 5000
    assert "signal" in written(file)


def test_without_a_descriptor():
    """All lines are dropped and counted where there is no stderr."""
    writer = LineWriter(None)
    writer.add("line")
    assert writer.flush(PATIENCE)
    assert writer.dropped == {"full": 0, "EBADF": 1}


def test_rate_limit():
    """Each kind has its burst; the others are counted by kind, once."""
    limit = RateLimit()
    admitted = [limit.admits(kind) for kind in ("a", "b") for _ in range(BURST + 5)]
    assert admitted == ([True] * BURST + [False] * 5) * 2
    assert limit.take_suppressed() == {}
    assert limit.take_suppressed(at_once=True) == {"a": 5, "b": 5}
    assert limit.take_suppressed(at_once=True) == {}
    assert limit.admits("a")


def test_rate_limit_of_endless_kinds():
    """Kinds that a peer can make up share one burst beyond a number."""
    limit = RateLimit()
    assert sum(limit.admits(str(number)) for number in range(10_000)) < 300
