import asyncio
import contextlib
import signal
import time
from dataclasses import replace

import grpc
import pytest
import pytest_asyncio
from dnslib import DNSRecord
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

import grpc_common
from grpc_common.testing.pods import until
from tools.lab.fleet.fleet import Fleet
from tools.lab.fleet.pod import Timing

pytestmark = pytest.mark.asyncio(loop_scope="module")

# A probe of a busy machine is late, which is no event of these tests.
TIMING = Timing(probe_period=0.2, probe_timeout=3, pre_stop=0.3)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory):
    """Run two pods, which each test leaves as two that are ready."""
    file = tmp_path_factory.mktemp("database") / "users.db"
    async with Fleet.running(2, database=f"sqlite:///{file}", timing=TIMING) as fleet:
        yield fleet


def conditions(fleet):
    """Return {address: conditions that are true} as the API server tells them."""
    [piece] = fleet.api.slices.values()
    return {
        each["addresses"][0]: {name for name, value in each["conditions"].items() if value}
        for each in piece["endpoints"]
    }


def resolved(fleet):
    """Ask the DNS server for the addresses of the headless name."""
    host, port = fleet.dns.server.split(":")
    answer = DNSRecord.parse(DNSRecord.question(fleet.dns.name).send(host, int(port), timeout=20))
    return {str(record.rdata) for record in answer.rr}


async def until_ready(fleet, addresses):
    """Wait until these are ready, by the API server, DNS and the ClusterIP alike."""
    async with asyncio.timeout(60):
        while not await are_ready(fleet, addresses):
            await asyncio.sleep(0.01)


async def are_ready(fleet, addresses):
    """Return whether all three say so at a moment."""
    by_api_server = {each for each, true in conditions(fleet).items() if "ready" in true}
    by_cluster_ip = {each.rpartition(":")[0] for each in fleet.cluster_ip.backends}
    if by_api_server != addresses or by_cluster_ip != addresses:
        return False
    return await asyncio.to_thread(resolved, fleet) == addresses


def addresses(fleet):
    """Return those of all pods."""
    return {pod.address for pod in fleet.pods}


async def calling(channel, failures, until_done):
    """List users until a task is done."""
    stub, calls = UserServiceStub(channel), 0
    while not until_done.done() or calls == 0:
        try:
            await stub.GetUser(pb.GetUserRequest(id="x"), timeout=10)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                failures.append(error)
        calls += 1
        await asyncio.sleep(0.005)
    return calls


async def test_pods_scale_and_roll_without_a_failed_call(fleet, monkeypatch):
    """A client that follows the API server loses no call while pods come, are replaced and go."""
    monkeypatch.setenv("KUBECONFIG", str(fleet.api.kubeconfig))
    first = list(fleet.pods)
    changes = []
    fleet.subscribe(lambda pod, change: changes.append((pod.name, change)))

    async def change():
        await fleet.scale(3)
        await until_ready(fleet, addresses(fleet))
        await fleet.roll({"LOGGING_FORMAT": "console"})
        await fleet.scale(2)
        await until_ready(fleet, addresses(fleet))

    failures = []
    async with grpc_common.channel(fleet.target) as channel:
        changing = asyncio.create_task(change())
        calls = await calling(channel, failures, changing)
        await changing
    assert failures == []
    assert calls > 10
    assert len(fleet.pods) == 2
    assert not addresses(fleet) & {pod.address for pod in first}
    assert [pod.exit_code for pod in first] == [0, 0]
    for pod in first:
        assert [change for name, change in changes if name == pod.name][:1] == ["terminating"]
    assert {pod.log[0][:1] for pod in first} == {b"{"}
    assert {pod.log[0][:1] for pod in fleet.pods} == {b"2"}  # of the year: no JSON


async def test_termination(fleet):
    """Endpoints say at once that a pod terminates; SIGTERM comes after preStop, and then it drains."""
    fleet.timing = replace(TIMING, pre_stop=1.5)
    pod = await fleet.add()
    fleet.timing = TIMING
    ending = []
    fleet.read_logs(lambda _pod, line: ending.append(time.monotonic()) if b"SIGTERM" in line else None)
    await until_ready(fleet, addresses(fleet))
    began = time.monotonic()
    end = asyncio.create_task(pod.terminate())
    await until(lambda: conditions(fleet)[pod.address] == {"serving", "terminating"})
    async with grpc.aio.insecure_channel(pod.target) as channel:
        with contextlib.suppress(grpc.aio.AioRpcError):  # an answer, whatever it says
            await UserServiceStub(channel).GetUser(pb.GetUserRequest(id="x"), timeout=10)
    await end
    assert pod.exit_code == 0
    assert [moment - began >= 1.5 for moment in ending] == [True]
    await until_ready(fleet, addresses(fleet))


async def test_killed_pod_comes_back(fleet):
    """A pod that is killed is not ready at once, and its next process has the same address."""
    pod = fleet.pods[0]
    before, process = addresses(fleet), pod.pid
    pod.kill()
    await until_ready(fleet, before - {pod.address})
    await until_ready(fleet, before)
    assert (pod.exit_code, pod.restarts) == (-signal.SIGKILL, 1)
    assert pod.pid != process


async def test_stopped_pod(fleet):
    """A pod that stands still is not ready once probes have failed, and is again when it goes on."""
    pod = fleet.pods[0]
    pod.stop()
    await until_ready(fleet, addresses(fleet) - {pod.address})
    pod.cont()
    await until_ready(fleet, addresses(fleet))


async def test_grace_period_ends(fleet):
    """A pod that does not end by itself is killed at the end of its grace period."""
    fleet.timing = replace(TIMING, termination_grace=1.3)
    pod = await fleet.add()
    fleet.timing = TIMING
    pod.stop()
    began = time.monotonic()
    await pod.terminate()
    assert pod.exit_code == -signal.SIGKILL
    assert time.monotonic() - began >= 1.3


async def test_cluster_ip(fleet):
    """A connection to the ClusterIP stays at its pod; a new one gets a pod of now, or is refused."""
    fleet.cluster_ip.backends, all_of_them = [fleet.pods[0].target], fleet.cluster_ip.backends
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(fleet.cluster_ip.target, options) as channel:
        request = pb.ListUsersRequest(page_size=1)
        assert [user async for user in UserServiceStub(channel).ListUsers(request)] == []
        fleet.cluster_ip.backends = []
        assert [user async for user in UserServiceStub(channel).ListUsers(request)] == []
        async with grpc.aio.insecure_channel(fleet.cluster_ip.target, options) as another:
            with pytest.raises(grpc.aio.AioRpcError):
                await UserServiceStub(another).GetUser(pb.GetUserRequest(id="x"), timeout=10)
    fleet.cluster_ip.backends = all_of_them


async def test_pod_that_cannot_start(fleet):
    """A pod whose configuration is wrong is an error with its log, and is no endpoint."""
    before = addresses(fleet)
    with pytest.raises(ExceptionGroup) as caught:
        await fleet.roll({"LOGGING_LEVEL": "loud"})
    [error] = caught.value.exceptions
    assert "LOGGING_LEVEL" in str(error)
    assert addresses(fleet) == before
