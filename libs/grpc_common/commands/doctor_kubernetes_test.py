import json

import pytest

from grpc_common.testing.api_server import ApiServer, endpoint_slice
from grpc_common.testing.doctor import doctor, serving

TARGET = "kubernetes:///echo.default:grpc"


@pytest.fixture
async def api_server(tmp_path, monkeypatch):
    """A fake API server that KUBECONFIG leads to."""
    async with ApiServer.in_kubeconfig(tmp_path / "kubeconfig", monkeypatch) as server:
        yield server


def put(api_server, port, number, **attributes):
    """Have an endpoint on 127.0.0.`number`, in a slice of its own."""
    name, address = f"echo-{number}", f"127.0.0.{number}"
    api_server.put(endpoint_slice(name, [address], ports=[("grpc", port)], **attributes))


async def test_endpoints(api_server):
    """The endpoints of a Service come from its EndpointSlices, with zone, node and the age of the news."""
    async with serving("SERVING", "SERVING") as port:
        put(api_server, port, 1, zone="zone-a", nodeName="node-1")
        put(api_server, port, 2, zone="zone-b", nodeName="node-2")
        code, out, err = await doctor(TARGET, "--calls", "100")
        json_code, as_json, _ = await doctor(TARGET, "--calls", "100", "--json")
    assert (code, json_code, err) == (0, 0, ""), out
    rows = [line.split() for line in out.splitlines() if line.startswith("127.")]
    assert [row[:5] for row in rows] == [
        [f"127.0.0.1:{port}", "zone-a", "node-1", "ready", "SERVING"],
        [f"127.0.0.2:{port}", "zone-b", "node-2", "ready", "SERVING"],
    ]
    assert "endpoints confirmed 0." in out
    found = json.loads(as_json)
    assert [(each["zone"], each["node"]) for each in found["endpoints"]] == [
        ("zone-a", "node-1"),
        ("zone-b", "node-2"),
    ]
    assert 0 <= found["age_seconds"] < 60


async def test_zone(api_server):
    """A client in a zone calls the endpoints there, which is not uneven."""
    async with serving("SERVING", "SERVING") as port:
        put(api_server, port, 1, zone="zone-a")
        put(api_server, port, 2, zone="zone-b")
        code, out, _ = await doctor(TARGET, "--calls", "50", "--zone", "zone-b", "--json")
    found = json.loads(out)
    assert (code, found["problems"]) == (0, [])
    assert [each["calls"] for each in found["endpoints"]] == [0, 50]


async def test_endpoint_without_zone(api_server):
    """An endpoint in no zone is named if others are in one."""
    async with serving("SERVING", "SERVING") as port:
        put(api_server, port, 1, zone="zone-a")
        put(api_server, port, 2)
        code, out, _ = await doctor(TARGET, "--calls", "50")
    assert code == 1
    assert f"- 127.0.0.2:{port}, one endpoint of 2, is in no zone" in out


TERMINATING = {"ready": False, "serving": True, "terminating": True}


async def test_terminating(api_server):
    """An endpoint on its way out is shown, and gets no calls; that is no problem."""
    async with serving("SERVING", "SERVING") as port:
        put(api_server, port, 1)
        put(api_server, port, 2, conditions=TERMINATING)
        code, out, _ = await doctor(TARGET, "--calls", "50", "--json")
        found = json.loads(out)
        assert (code, found["problems"]) == (0, [])
        shown = [(each["state"], each["terminating"], each["calls"]) for each in found["endpoints"]]
        assert shown == [("ready", False, 50), ("unused", True, 0)]
        assert found["notes"] == ["terminating endpoints get no calls while others serve: 1 of 2"]
        put(api_server, port, 1, conditions=TERMINATING)
        code, out, _ = await doctor(TARGET, "--calls", "50")
    assert code == 1
    assert "all 2 endpoints are terminating" in out
    assert "ready, terminating" in out


async def test_no_endpoints(api_server):
    """An empty Service is told with the likely reason."""
    api_server.put(endpoint_slice("echo-1", ["127.0.0.1"], conditions={"ready": False}))
    code, out, err = await doctor("kubernetes:///echo.default:50051")
    assert (code, out) == (1, "")
    assert "no pod of the Service is ready" in err


async def test_forbidden(api_server):
    """A missing Role is told in the words of RBAC, without a character that could move the cursor."""
    api_server.refuse(403, 'User "me\x1b[2J" cannot list resource "endpointslices"', times=100)
    code, out, err = await doctor("kubernetes:///echo.default:50051")
    assert (code, out) == (1, "")
    assert "cannot list" in err
    assert "verbs [get, list, watch]" in err
    assert "\x1b" not in err


async def test_hostile_names(api_server):
    """What a cluster says can't move the cursor, in a table or in JSON."""
    async with serving("SERVING") as port:
        put(api_server, port, 1, zone="\x1b[2Jzone", nodeName="node\n127.0.0.1:1")
        _, table, _ = await doctor(TARGET, "--calls", "10")
        _, as_json, _ = await doctor(TARGET, "--calls", "10", "--json")
    assert "\x1b" not in table + as_json
    assert not any(line.startswith("127.0.0.1:1 ") for line in table.splitlines())
    assert len(as_json.splitlines()) == 1
