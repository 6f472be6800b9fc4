import json

from grpc_common.testing.doctor import addresses, doctor, serving

KEYS = {
    *("target", "policy", "zone", "subset", "tls", "endpoints", "reason", "age_seconds", "calls"),
    *("failed_calls", "last_failure", "connections", "retries", "fairness", "notes", "problems"),
}
ENDPOINT_KEYS = {
    *("address", "zone", "node", "terminating", "weight", "state", "health", "failure", "tls", "seconds"),
    "calls",
}


async def test_well():
    """All fields are there, and say what is."""
    async with serving("SERVING", "SERVING") as port:
        code, out, err = await doctor(addresses(port, 2), "--calls", "100", "--json")
    assert (code, err) == (0, "")
    (line,) = out.splitlines()
    found = json.loads(line)
    assert found.keys() == KEYS
    endpoints = found.pop("endpoints")
    assert found == {
        "target": addresses(port, 2),
        "policy": "least_request",
        "zone": "",
        "subset": None,
        "tls": False,
        "reason": "",
        "age_seconds": None,
        "calls": 100,
        "failed_calls": 0,
        "last_failure": "",
        "connections": 2,
        "retries": {"policy": 0, "transparent": 0},
        "fairness": found["fairness"],
        "notes": [],
        "problems": [],
    }
    assert sum(each["calls"] for each in endpoints) == 100
    for number, each in enumerate(endpoints, 1):
        assert each.keys() == ENDPOINT_KEYS
        assert each["address"] == f"127.0.0.{number}:{port}"
        assert (each["state"], each["health"], each["failure"]) == ("ready", "SERVING", "")
        assert 0 < each["seconds"]["min"] <= each["seconds"]["median"] <= each["seconds"]["p99"] < 5


async def test_the_table_says_the_same():
    """With problems the exit code, the words and the endpoints are those of the table."""
    async with serving("SERVING", "NOT_SERVING") as port:
        arguments = (addresses(port, 3), "--calls", "60", "--policy", "round_robin")
        code, table, _ = await doctor(*arguments)
        json_code, out, _ = await doctor(*arguments, "--json")
    assert code == json_code == 1
    found = json.loads(out)
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line.startswith("127.")}
    assert rows.keys() == {each["address"] for each in found["endpoints"]}
    for each in found["endpoints"]:
        row = rows[each["address"]]
        assert row[1:3] == [each["state"], each["health"]]
        assert row[-1] == str(each["calls"])
    words = [line for line in table.splitlines() if line.startswith("- ")]
    assert len(words) == len(found["problems"]) == 2
    for problem in found["problems"]:
        assert problem[:40] in table
    assert f"{found['fairness']:.3f}" in table
    assert [each["calls"] for each in found["endpoints"]] == [60, 0, 0]
    assert found["endpoints"][2]["seconds"] is None
    assert "Connection refused" in found["endpoints"][2]["failure"]


async def test_errors():
    """Errors are words on standard error, with the exit codes of the table, and no JSON."""
    code, out, err = await doctor("nonsense", "--json")
    assert (code, out) == (2, "")
    assert "Error:" in err
    code, out, err = await doctor("kubernetes:///echo.default:50051", "--json", KUBECONFIG="/none")
    assert (code, out) == (1, "")
    assert "Error:" in err


async def test_failed_calls():
    """Calls that fail are counted, and are no endpoint's."""
    code, out, _ = await doctor("127.0.0.1:1", "--calls", "10", "--json")
    assert code == 1
    found = json.loads(out)
    assert (found["failed_calls"], found["fairness"], found["connections"]) == (10, 0, 0)
    assert found["last_failure"].startswith("UNAVAILABLE: ")
    (endpoint,) = found["endpoints"]
    assert (endpoint["state"], endpoint["health"]) == ("transient_failure", "UNAVAILABLE")
    assert (endpoint["calls"], endpoint["seconds"]) == (0, None)


async def test_pick_first():
    """With pick_first the first endpoint that can be reached has all calls, and the others are idle."""
    async with serving("SERVING", "SERVING", "SERVING", first=2) as port:
        arguments = ("--calls", "50", "--policy", "pick_first", "--json")
        _, out, _ = await doctor(addresses(port, 4), *arguments)
    found = json.loads(out)["endpoints"]
    assert [each["state"] for each in found] == ["idle", "ready", "idle", "idle"]
    assert [each["calls"] for each in found] == [0, 50, 0, 0]


async def test_subset():
    """A client of a subset connects to a part of the endpoints; the others are examined all the same."""
    async with serving("SERVING", "SERVING", "SERVING") as port:
        code, out, _ = await doctor(addresses(port, 3), "--calls", "100", "--subset", "2", "--json")
    assert code == 0
    found = json.loads(out)
    assert sorted(each["state"] for each in found["endpoints"]) == ["ready", "ready", "unused"]
    assert {each["health"] for each in found["endpoints"]} == {"SERVING"}
    assert [each["calls"] for each in found["endpoints"] if each["state"] == "unused"] == [0]
    assert found["connections"] == 2
    assert found["notes"] == ["a subset is in use: this client connects to 2 of 3 endpoints"]
