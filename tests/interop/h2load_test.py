import asyncio
import re
import shutil
import struct

import prometheus_client
import pytest
import trustme

from grpc_common.testing.certificates import CertificateDirectory
from tests.interop.echo import SERVICE, Echo

H2LOAD = shutil.which("h2load")
pytestmark = pytest.mark.skipif(
    H2LOAD is None, reason="h2load is not on PATH; it is in Debian's package nghttp2-client"
)
REQUESTS = 4000
CONNECTIONS = 10
STREAMS = 20
"""How many calls a connection has at a time."""

MESSAGE = b"hello, world"


async def h2load(folder, url) -> str:
    """Call Echo REQUESTS times over raw HTTP/2; return what h2load reports."""
    body = folder / "body"
    body.write_bytes(struct.pack(">?I", False, len(MESSAGE)) + MESSAGE)  # noqa: FBT003 (not compressed)
    process = await asyncio.create_subprocess_exec(
        H2LOAD,
        *(f"-n{REQUESTS}", f"-c{CONNECTIONS}", f"-m{STREAMS}", f"--data={body}"),
        *("-H", "content-type: application/grpc", "-H", "te: trailers"),
        f"{url}/{SERVICE}/Echo",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, output
    return output.decode()


def counted(metric, **labels) -> int:
    """Return what this process has counted of Echo."""
    labels |= {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": "Echo"}
    return int(prometheus_client.REGISTRY.get_sample_value(metric, labels) or 0)


def handled() -> dict[str, int]:
    """Return how many calls have ended, by code."""
    return {
        code: counted("grpc_server_handled_total", grpc_code=code) for code in ("OK", "ResourceExhausted")
    }


def assert_all_answered(report):
    """Each request of `report` has got a response of HTTP; what gRPC makes of it is in a trailer."""
    assert re.search(rf"{REQUESTS} done, {REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout", report), (
        report
    )
    assert f"status codes: {REQUESTS} 2xx" in report


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_load_of_raw_http2(tmp_path, scheme):
    """Thousands of calls over several connections succeed, and the metrics count each of them once."""
    settings = {}
    if scheme == "https":
        settings["tls"] = {"directory": CertificateDirectory(tmp_path / "tls", trustme.CA()).path}
    async with Echo.serving(metrics=True, **settings) as server:
        before, received = handled(), counted("grpc_server_msg_received_total")
        report = await h2load(tmp_path, f"{scheme}://127.0.0.1:{server.port}")
    assert_all_answered(report)
    assert server.calls == REQUESTS
    assert handled() == before | {"OK": before["OK"] + REQUESTS}
    assert counted("grpc_server_msg_received_total") == received + REQUESTS
    assert counted("grpc_server_in_flight") == 0


async def test_overload_is_counted_too(tmp_path):
    """With more calls at a time than the server takes, each is served or refused, and counted so."""
    async with Echo.serving(metrics=True, max_concurrent_calls=5) as server:
        server.pause = 0.001
        before = handled()
        report = await h2load(tmp_path, f"http://127.0.0.1:{server.port}")
    assert_all_answered(report)
    served = handled()["OK"] - before["OK"]
    refused = handled()["ResourceExhausted"] - before["ResourceExhausted"]
    assert served == server.calls
    assert served + refused == REQUESTS
    assert refused > 0
