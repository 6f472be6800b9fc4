"""How each kind of fault, and each planned event, is brought about."""

import asyncio
import os
import resource
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import trustme

from grpc_common.testing.certificates import CertificateDirectory
from tests.faults.proxy import Proxy
from tools.bad_day.hostile import attack
from tools.bad_day.plan import Fault
from tools.bad_day.stack import PODS, Stack
from tools.lab.fleet.pod import Pod
from tools.replacing import replace_file

_CONNECTIONS_END = 10.0
"""Seconds in which clients and servers have taken new certificates, and used them."""

_TURN = 0.05
"""Seconds that a slow pod runs at a time; it stands still for three times as long."""

_REFUSALS = 100
"""Answers of an API server that refuses: more than clients ask for in a fault's time."""


async def _pod_killed(stack: Stack, fault: Fault) -> None:
    stack.pod(fault.argument).kill()


async def _pod_stopped(stack: Stack, fault: Fault) -> None:
    pod = stack.pod(fault.argument)
    pod.stop()
    await _lasts(fault)
    pod.cont()


async def _pod_slow(stack: Stack, fault: Fault) -> None:
    """Have it run a quarter of the time, as where a CPU limit is too low."""
    pod = stack.pod(fault.argument)
    loop = asyncio.get_running_loop()
    end = loop.time() + fault.until - fault.at
    while loop.time() < end:
        pod.stop()
        await asyncio.sleep(3 * _TURN)
        pod.cont()
        await asyncio.sleep(_TURN)


async def _pod_without_descriptors(stack: Stack, fault: Fault) -> None:
    """Let it open no file and no connection more than it has."""
    pod = stack.pod(fault.argument)
    await until_ready(pod)
    pid = pod.pid
    _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 (no disk)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, most))
    await _lasts(fault)
    with suppress(ProcessLookupError):  # it may have been killed
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


async def _pod_terminated(stack: Stack, fault: Fault) -> None:
    """Have it drain though no endpoint says so, as when somebody ends the process."""
    stack.pod(fault.argument).signal(signal.SIGTERM)


async def _all_pods_killed(stack: Stack, _fault: Fault) -> None:
    for pod in stack.pods:
        pod.kill()


async def _hostile_peer(stack: Stack, fault: Fault) -> None:
    pod = stack.pods[-1]
    await until_ready(pod)
    certificates = stack.certificates["envoy"].path
    await attack(fault.argument, pod.address, pod.port, certificates, fault.until - fault.at)


async def _log_unread(stack: Stack, fault: Fault) -> None:
    pod = stack.pod(fault.argument)
    pid = pod.pid
    pod.leave_log()
    await _lasts(fault)
    if pod.pid == pid:  # else it was killed, and its log is another
        pod.read_log()


async def _log_reader_gone(stack: Stack, fault: Fault) -> None:
    pod = stack.pod(fault.argument)
    await until_ready(pod)  # its log tells the port of its metrics
    pod.close_log()


async def _network_cut(stack: Stack, fault: Fault) -> None:
    _relay(stack, fault).cut()


async def _network_silent(stack: Stack, fault: Fault) -> None:
    relay = _relay(stack, fault)
    relay.silence()
    await _lasts(fault)
    relay.heal()


async def _network_forgets(stack: Stack, fault: Fault) -> None:
    """Have packets of the connections of this time vanish for ever: each end must find out by itself."""
    relay = _relay(stack, fault)
    relay.silence()
    await _lasts(fault)
    relay.resume()


async def _network_slow(stack: Stack, fault: Fault) -> None:
    await _slow(_relay(stack, fault), fault)


async def _database_restarted(stack: Stack, fault: Fault) -> None:
    await stack.database.restart(fault.argument)


async def _database_failover(stack: Stack, _fault: Fault) -> None:
    await stack.database.fail_over()


async def _database_stands_still(stack: Stack, fault: Fault) -> None:
    with stack.database.primary.paused():
        await _lasts(fault)


async def _standby_stands_still(stack: Stack, fault: Fault) -> None:
    with stack.database.standby.paused():
        await _lasts(fault)


async def _disk_full(stack: Stack, fault: Fault) -> None:
    async with stack.database.full_disk():
        await _lasts(fault)


async def _pooler_restarted(stack: Stack, fault: Fault) -> None:
    await asyncio.to_thread(stack.database.pooler.stop)
    await _lasts(fault)
    await asyncio.to_thread(stack.database.pooler.start)


async def _database_cut(stack: Stack, fault: Fault) -> None:
    _way_to_database(stack, fault).cut()


async def _database_slow(stack: Stack, fault: Fault) -> None:
    await _slow(_way_to_database(stack, fault), fault)


async def _dns_fails(stack: Stack, fault: Fault) -> None:
    dns = stack.fleet.dns
    what = "fails" if fault.argument == "servfail" else "forgets"
    setattr(dns, what, True)
    await _lasts(fault)
    setattr(dns, what, False)


async def _watch_lost(stack: Stack, fault: Fault) -> None:
    if fault.argument == "silent":
        stack.way_to_api.silence()
    elif fault.argument != "cut":
        stack.api.refuse(int(fault.argument), "as the plan wants", _REFUSALS)
    stack.api.drop_watches()
    await _lasts(fault)
    stack.api.answers.clear()
    stack.way_to_api.heal()


async def _server_certificate_bad(stack: Stack, fault: Fault) -> None:
    await _bad_certificate(stack.certificates["server"], fault)


async def _client_certificate_bad(stack: Stack, fault: Fault) -> None:
    await _bad_certificate(stack.certificates["client"], fault)


async def _configuration_broken(stack: Stack, fault: Fault) -> None:
    good = stack.config.read_text("utf-8")
    if fault.argument == "gone":
        stack.config.unlink()
    else:
        wrong = good.replace("max_connections: 500", "max_connections: many")
        replace_file(stack.config, "server: [" if fault.argument == "no-yaml" else wrong)
    await _lasts(fault)
    replace_file(stack.config, good)


FAULTS: dict[str, Callable[[Stack, Fault], Awaitable[None]]] = {
    "pod-killed": _pod_killed,
    "pod-stopped": _pod_stopped,
    "pod-slow": _pod_slow,
    "pod-without-descriptors": _pod_without_descriptors,
    "pod-terminated": _pod_terminated,
    "all-pods-killed": _all_pods_killed,
    "hostile-peer": _hostile_peer,
    "log-unread": _log_unread,
    "log-reader-gone": _log_reader_gone,
    "network-cut": _network_cut,
    "network-silent": _network_silent,
    "network-forgets": _network_forgets,
    "network-slow": _network_slow,
    "database-restarted": _database_restarted,
    "database-failover": _database_failover,
    "database-stands-still": _database_stands_still,
    "standby-stands-still": _standby_stands_still,
    "disk-full": _disk_full,
    "pooler-restarted": _pooler_restarted,
    "database-cut": _database_cut,
    "database-slow": _database_slow,
    "dns-fails": _dns_fails,
    "watch-lost": _watch_lost,
    "server-certificate-bad": _server_certificate_bad,
    "client-certificate-bad": _client_certificate_bad,
    "configuration-broken": _configuration_broken,
}
"""By kind, as in a plan; each returns when the fault is over."""


async def _rolling_restart(stack: Stack) -> None:
    await stack.fleet.roll()


async def _scale_up_and_down(stack: Stack) -> None:
    await stack.fleet.scale(PODS + 2)
    await stack.fleet.scale(PODS)


async def _certificates_rotated(stack: Stack) -> None:
    for name in ("server", "client"):
        stack.certificates[name].rotate()
    await asyncio.sleep(_CONNECTIONS_END)


async def _configuration_changed(stack: Stack) -> None:
    deadline = "30s" if stack.variables.get("DEFAULT_DEADLINE") == "20s" else "20s"
    stack.variables["DEFAULT_DEADLINE"] = deadline
    await stack.fleet.roll(stack.variables)


async def _rollout_of_a_broken_configuration(stack: Stack) -> None:
    """Have the rollout stop at its first pod, which never gets ready."""
    try:
        await stack.fleet.roll(stack.variables | {"MAX_CONNECTIONS": "many"})
    except* RuntimeError:
        pass
    else:
        raise AssertionError("a pod with a broken configuration has become ready")


EVENTS: dict[str, Callable[[Stack], Awaitable[None]]] = {
    "rolling-restart": _rolling_restart,
    "scale-up-and-down": _scale_up_and_down,
    "certificates-rotated": _certificates_rotated,
    "configuration-changed": _configuration_changed,
    "rollout-of-a-broken-configuration": _rollout_of_a_broken_configuration,
}
"""The planned ones, by name as in a plan."""


async def until_ready(pod: Pod) -> None:
    """Wait until a pod that was killed is back."""
    while not pod.ready:  # noqa: ASYNC110 (it comes back within seconds)
        await asyncio.sleep(0.1)


async def _lasts(fault: Fault) -> None:
    await asyncio.sleep(fault.until - fault.at)


async def _slow(way: Proxy, fault: Fault) -> None:
    """Have all wait a tenth of the fault's time: half a second at most."""
    way.delay = (fault.until - fault.at) / 10
    await _lasts(fault)
    way.delay = 0.0


def _relay(stack: Stack, fault: Fault) -> Proxy:
    return stack.network.relays[stack.pod(fault.argument).name]


def _way_to_database(stack: Stack, fault: Fault) -> Proxy:
    way = stack.pod(fault.argument).database
    assert way
    return way


async def _bad_certificate(directory: CertificateDirectory, fault: Fault) -> None:
    directory.replace(_bad_files(directory)[fault.argument])
    await _lasts(fault)
    directory.rotate()


def _bad_files(directory: CertificateDirectory) -> dict[str, Any]:
    files = directory.issue()
    now = datetime.now(UTC)
    return {
        "expired": directory.issue(not_before=now - timedelta(days=2), not_after=now - timedelta(days=1)),
        "of-another-key": files | {"tls.key": directory.issue()["tls.key"]},
        "of-another-authority": _of_another_authority(directory),
        "truncated": files | {"tls.crt": files["tls.crt"][:200]},
        "gone": {"ca.crt": files["ca.crt"]},
    }


def _of_another_authority(directory: CertificateDirectory) -> dict[str, bytes]:
    """Return files that go together, but with nobody else's."""
    right, directory.ca = directory.ca, trustme.CA()
    try:
        return directory.issue()
    finally:
        directory.ca = right
