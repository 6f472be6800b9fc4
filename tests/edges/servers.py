"""Three servers on one PostgreSQL, for a proxy to stand in front of."""

import re
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from services.user.testing_postgresql import running_postgresql
from tests.programs import SERVER, Server, environment

REPLICAS = 3

# Ids are of version 7, as the service's own are; the names make a page of 1000 users about 600 kB.
_SEED = """
INSERT INTO users (id, name, email, email_key)
SELECT uuidv7(), n || repeat('€', 190), n || '@example.com', n || '@example.com'
FROM generate_series(1, $1) AS n
RETURNING id::text
"""


class Servers:
    """Server processes that share a database, by their number from 0 on."""

    def __init__(self, url: str, variables: dict[str, str]) -> None:
        self._url = url
        self._variables = variables
        self._alive: dict[int, Server] = {}
        self.ports = [0] * REPLICAS
        """Where they take calls on 127.0.0.1, by number; a restarted one is where it was."""

    def start_all(self) -> None:
        """Start them on free ports, and wait until they serve."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.start, range(REPLICAS)))

    def pid(self, number: int) -> int:
        """Return the process id of a server that runs."""
        return self._alive[number].pid

    def kill(self, number: int) -> None:
        """End a server that runs as a power failure would."""
        self._alive.pop(number).kill()

    def kill_all(self) -> None:
        """End those that run."""
        for number in list(self._alive):
            self.kill(number)

    def start(self, number: int) -> None:
        """Start a server, where it was if it was killed, and wait until it serves."""
        server = Server(self._url, **self._variables, GRPC_PORT=str(self.ports[number]))
        self._alive[number] = server
        self.ports[number] = server.port("grpc_port")

    def calls(self, method: str) -> dict[int, int]:
        """Return how many calls of `method` each server that runs has got since its start."""
        return {number: _started(server, method) for number, server in self._alive.items()}

    async def seed(self, count: int) -> list[str]:
        """Create `count` users behind the servers' back, once for a database; return their ids."""
        connection = await asyncpg.connect(self._url)
        try:
            return [row["id"] for row in await connection.fetch(_SEED, count)]
        finally:
            await connection.close()

    @asynccontextmanager
    async def stalled(self) -> AsyncIterator[None]:
        """Keep users from being read and written: calls that come during the block wait for its end.

        That long, at most, as the servers' DATABASE_STATEMENT_TIMEOUT.
        """
        connection = await asyncpg.connect(self._url)
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
                yield
        finally:
            await connection.close()


def settings(overlay: Sequence[Mapping[str, Any]], file: Path) -> dict[str, str]:
    """Return the environment of an overlay's pods, as far as it holds here; `file` gets config.yaml."""
    [deployment] = [found for found in overlay if found["kind"] == "Deployment"]
    name = "user-service-config-"
    [config] = [found for found in overlay if found["metadata"]["name"].startswith(name)]
    file.write_text(config["data"]["config.yaml"])
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    plain = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    # Where the servers run here, what the tests read of their log, and nobody to send traces to.
    ours = {"CONFIG_FILE": str(file), "LOGGING_FORMAT": "console", "OTEL_RESOURCE_ATTRIBUTES": ""}
    return plain | ours | {"TRACING_ENABLED": "false"}


@contextmanager
def running_servers(**variables: str) -> Iterator[Servers]:
    """Run three servers over a database without users; skip the test if there is no PostgreSQL.

    Args:
        **variables: of the servers' environment.

    """
    with running_postgresql() as postgresql:
        migrate = [str(SERVER), "migrate"]
        subprocess.run(migrate, env=environment(postgresql.url), check=True, capture_output=True)
        servers = Servers(postgresql.url, variables)
        try:
            servers.start_all()
            yield servers
        finally:
            servers.kill_all()


def _started(server: Server, method: str) -> int:
    address = f"http://127.0.0.1:{server.port('metrics_port')}/metrics"
    with urllib.request.urlopen(address, timeout=5) as answer:
        metrics = answer.read().decode()
    counter = re.search(rf'^grpc_server_started_total{{.*"{method}".*}} (\d+)', metrics, re.MULTILINE)
    return int(counter[1]) if counter else 0
