import asyncio

import pytest

from grpc_common.client.channel import channel
from grpc_common.testing.api_server import ApiServer, endpoint_slice
from grpc_common.testing.pods import Load, pods, until


@pytest.fixture
async def api_server(tmp_path, monkeypatch):
    """A fake API server that KUBECONFIG leads to."""
    async with ApiServer.in_kubeconfig(tmp_path / "kubeconfig", monkeypatch) as server:
        yield server


def piece(pod, **attributes):
    """Return a slice of one pod."""
    host, _, port = pod.address.rpartition(":")
    return endpoint_slice(f"echo-{port}", [host], ports=[("grpc", int(port))], **attributes)


async def test_fifty_pods_added_and_removed_under_load(api_server):
    """Each pod that comes costs one connection, each that goes loses it, and no call fails."""
    async with pods(51) as fleet:
        stays, *others = fleet
        api_server.put(piece(stays))
        async with channel("kubernetes:///echo.default:grpc") as opened, Load(opened).of(8) as load:
            for pod in others:
                api_server.put(piece(pod))
                await asyncio.sleep(0.02)
            await until(lambda: all(pod.calls for pod in others))
            for pod in others:
                api_server.delete(piece(pod)["metadata"]["name"])
                await asyncio.sleep(0.02)
            await until(lambda: not any(pod.open for pod in others))
        assert load.failures == []
    assert [pod.connections for pod in fleet] == [1] * 51


async def test_attributes_that_change(api_server):
    """A pod that only changes its zone, its hints or its conditions keeps its connection."""
    async with pods(3) as fleet:
        for pod in fleet:
            api_server.put(piece(pod))
        async with channel("kubernetes:///echo.default:grpc") as opened, Load(opened).of(2) as load:
            await until(lambda: all(pod.calls for pod in fleet))
            known = opened.balancer.subchannels
            api_server.put(piece(fleet[0], zone="a"))
            await until(lambda: known[fleet[0].address].endpoint.zone == "a")
            api_server.put(piece(fleet[0], zone="a", hints={"forZones": [{"name": "b"}]}))
            await until(lambda: known[fleet[0].address].endpoint.for_zones == ("b",))
        assert load.failures == []
    assert [pod.connections for pod in fleet] == [1] * 3
