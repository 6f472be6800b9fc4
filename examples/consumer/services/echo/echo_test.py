import os
import re
import signal
import subprocess
from pathlib import Path

import grpc
import pytest
from echo import echo_pb2 as pb
from echo.echo_pb2_grpc import EchoStub

SERVER = Path("services/echo/server").absolute()


@pytest.fixture(scope="module")
def stub():
    """Run the server on a free port, call it, and stop it: it must end with exit code 0."""
    environment = os.environ | {"GRPC_PORT": "0", "METRICS_PORT": "0", "DRAIN_DELAY": "0s"}
    with subprocess.Popen([SERVER], env=environment, stderr=subprocess.PIPE, text=True) as process:
        first_line = process.stderr.readline()
        port = re.search(r"grpc_port\D+(\d+)", first_line)
        assert port, first_line + process.communicate()[1]
        with grpc.insecure_channel(f"127.0.0.1:{port[1]}") as channel:
            yield EchoStub(channel)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_echo(stub):
    """What is said comes back."""
    assert stub.Echo(pb.EchoRequest(text="héllo")).text == "héllo"


def test_repeat(stub):
    """It comes back as often as asked for."""
    responses = stub.Repeat(pb.RepeatRequest(text="again", times=3))
    assert [response.text for response in responses] == ["again"] * 3


def test_refusal(stub):
    """A count that is not served is refused with the field's name."""
    with pytest.raises(grpc.RpcError) as refusal:
        list(stub.Repeat(pb.RepeatRequest(text="never", times=0)))
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "times" in refusal.value.details()
