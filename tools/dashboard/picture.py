"""Draws the dashboard through an incident: bazel run //tools/dashboard:picture.

Three real servers over a real PostgreSQL, whose clients go on calling while the database is gone for a
minute, and a real Prometheus that scrapes them as the PodMonitor says. The lines are what the queries of
dashboard.json find; only the drawing is not Grafana's.
"""

import math
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import trustme
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from grpc_common.testing.certificates import CertificateDirectory
from k8s.checks.manifests import Manifests, get
from k8s.checks.monitoring import dashboard, dashboard_queries, groups
from k8s.checks.prometheus import Prometheus, running_prometheus, scrape_config
from k8s.checks.rendered import load
from services.user.testing_postgresql import PostgreSQL, running_postgresql
from tests.programs import SERVER, Server, environment, running_server
from tools.dashboard.panels import Panel, draw

PROD = Manifests(load("prod"))
BEFORE, GONE, AFTER = 60.0, 60.0, 60.0
"""Seconds that the database is there, is gone, and is there again."""

WARM_UP = 20.0
"""Seconds of calls that are not shown: rates over 10 s have not begun yet."""

STEP, PACE = 2.0, 0.03
"""Seconds between two points of a line, and between two calls of a client."""


def main() -> None:
    """Draw it into docs/dashboard.svg."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        database = stack.enter_context(running_postgresql())
        subprocess.run([SERVER, "migrate"], env=environment(database.url), check=True)
        certificates = CertificateDirectory(Path(folder, "certs"), trustme.CA())
        certificates.rotate(not_after=datetime.now(UTC) + timedelta(days=90))
        servers = [
            stack.enter_context(running_server(database.url, TLS_DIRECTORY=str(certificates.path)))
            for _ in "abc"
        ]
        prometheus = stack.enter_context(scraping(Path(folder), servers))
        begin = incident(database, [channel_to(server, certificates.path) for server in servers])
        panels = [*drawn(prometheus, begin)]
    picture = draw(panels, BEFORE + GONE + AFTER, STEP, (BEFORE, BEFORE + GONE))
    file = Path(os.environ["BUILD_WORKSPACE_DIRECTORY"], "docs/dashboard.svg")
    file.write_text(picture)
    print(f"wrote {len(panels)} panels into docs/dashboard.svg")


def scraping(folder: Path, servers: list[Server]) -> AbstractContextManager[Prometheus]:
    """Run a Prometheus that scrapes the servers as it would their pods, with prod's rules."""
    (monitor,) = PROD.of_kind("PodMonitor")
    deployment = PROD.named("Deployment", "user-service", "user-service")
    ports = [server.port("metrics_port") for server in servers]
    scraped = scrape_config(monitor, get(deployment, "spec.template"), ports)
    return running_prometheus(folder, scraped, rules=groups(PROD))


def channel_to(server: Server, certificates: Path) -> grpc.Channel:
    """Return a channel to a server."""
    credentials = grpc.ssl_channel_credentials((certificates / "ca.crt").read_bytes())
    return grpc.secure_channel(f"localhost:{server.port('grpc_port')}", credentials)


def incident(database: PostgreSQL, channels: list[grpc.Channel]) -> float:
    """Have clients call while the database goes and comes back; return when it began."""
    ended = threading.Event()
    with ThreadPoolExecutor() as threads:
        clients = [threads.submit(call, UserServiceStub(channel), ended) for channel in channels]
        begin = time.time() + WARM_UP
        ended.wait(WARM_UP + BEFORE)
        database.kill()
        ended.wait(GONE)
        database.start()
        ended.wait(AFTER)
        ended.set()
        for client in clients:
            client.result()
    return begin


def call(users: UserServiceStub, ended: threading.Event) -> None:
    """Create a user, read it four times, list all, and so on until the end."""
    user = users.CreateUser(
        pb.CreateUserRequest(name="Ada", email=f"{time.time_ns()}@example.com"), timeout=5
    )
    read = pb.GetUserRequest(id=user.id)
    while not ended.is_set():
        create = pb.CreateUserRequest(name="Ada", email=f"{time.time_ns()}@example.com")
        for method, request in [(users.CreateUser, create), *[(users.GetUser, read)] * 4]:
            with suppress(grpc.RpcError):
                method(request, timeout=5)
            ended.wait(PACE)
        with suppress(grpc.RpcError):
            list(users.ListUsers(pb.ListUsersRequest(page_size=50), timeout=5))


def drawn(prometheus: Prometheus, begin: float) -> Iterator[Panel]:
    """Yield the panels with what their queries find from the beginning on."""
    model = dashboard(PROD)
    queries = dashboard_queries(model, rate_interval="10s")
    end = begin + BEFORE + GONE + AFTER
    for panel in model["panels"]:
        lines = {}
        for each in panel["targets"]:
            for labels, points in prometheus.range(
                queries[f"{panel['title']} {each['refId']}"], begin, end, STEP
            ):
                name = re.sub(r"\{\{(\w+)\}\}", lambda found: shown(labels[found[1]]), each["legendFormat"])  # noqa: B023
                lines[name] = [(at - begin, value) for at, value in points if math.isfinite(value)]
        yield Panel(panel["title"], panel["fieldConfig"]["defaults"]["unit"], dict(sorted(lines.items())))


def shown(label: str) -> str:
    """Return a label as a pod would have it, where certificates are mounted."""
    return "/etc/certs" if label.endswith("/certs") else label


if __name__ == "__main__":
    main()
