import asyncio

import grpc
import pytest
from structlog.testing import capture_logs

from grpc_common import StartError
from grpc_common.server import engine
from grpc_common.server.lifecycle import Lifecycle
from grpc_common.server.queue import private
from grpc_common.server.queue.loop import QueueLoop
from grpc_common.server.queue.server import QueueServer
from grpc_common.testing import configure

VERSION = grpc.__version__


def made(setting, loop):
    """Return the server that is made for a setting of server.engine in a loop."""

    async def make():
        section = configure(ENGINE=setting).server
        return engine.new_server(section, Lifecycle(section))

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(make())


@pytest.mark.parametrize(
    ("setting", "loop", "is_queue"),
    [
        ("auto", QueueLoop, True),
        ("completion-queue", QueueLoop, True),
        ("grpc-aio", QueueLoop, False),
        ("auto", None, False),
        ("grpc-aio", None, False),
    ],
)
def test_engine_is_as_set(setting, loop, is_queue):
    """The queue's engine needs its loop; in any other, `auto` is grpc.aio."""
    assert isinstance(made(setting, loop), QueueServer) is is_queue


def test_engine_that_can_not_be_had():
    """Whoever has asked for the queue is told what it needs, and not given something else."""
    with pytest.raises(StartError, match=r"server\.engine: completion-queue needs its event loop; run"):
        made("completion-queue", None)


def test_loop_of_each_setting():
    """The program's loop is the one of its engine."""
    assert engine.loop_factory("auto") is QueueLoop
    assert engine.loop_factory("completion-queue") is QueueLoop
    assert engine.loop_factory("grpc-aio") is None


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("TESTED", ("1.1.",), f"grpcio {VERSION} is not among the tested versions \\(1.1\\.\\)"),
        ("NAMES", ("Server.start", "Server.fly"), f"grpcio {VERSION} has no Server.fly"),
    ],
)
def test_grpcio_that_is_another(monkeypatch, attribute, value, reason):
    """With another version, or without one of the names, it is grpc.aio, and the log says why, once."""
    monkeypatch.setattr(private, attribute, value)
    with capture_logs() as logs:
        assert engine.loop_factory("auto") is None
    (line,) = logs
    assert line["event"] == "calls are driven by grpc.aio"
    with pytest.raises(StartError, match=f"^server.engine: {reason}; set it to auto or grpc-aio$"):
        engine.loop_factory("completion-queue")
