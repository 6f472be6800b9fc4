"""Three servers on one PostgreSQL, for a proxy to stand in front of."""

import asyncio
import re
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from services.user.testing_postgresql import running_postgresql
from tests.programs import PATIENCE, Server, migrate
from tools.ports import held_port

REPLICAS = 3

PAGE = 1000
"""Users of the longest page that there is; about 600 kB."""

# Ids are of version 7, as the service's own are.
_SEED = """
INSERT INTO users (id, name, email, email_key)
SELECT uuidv7(), n || repeat('€', 190), n || '@example.com', n || '@example.com'
FROM generate_series(1, $1) AS n
RETURNING id::text
"""


class Servers:
    """Server processes that share a database, by their number from 0 on."""

    def __init__(self, url: str, variables: dict[str, str], ports: Sequence[int]) -> None:
        self._url = url
        self._variables = variables
        self._alive: dict[int, Server] = {}
        self.ports = ports
        """Where they take calls on 127.0.0.1, by number."""

    def start_all(self) -> None:
        """Start them, and wait until they serve."""
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
        """Start a server, and wait until it serves."""
        self._alive[number] = Server(self._url, **self._variables, GRPC_PORT=str(self.ports[number]))

    def calls(self, method: str) -> dict[int, int]:
        """Return how many calls of `method` each server that runs has got since its start."""
        return {number: _started(server, method) for number, server in self._alive.items()}

    async def called(self, method: str, before: Mapping[int, int]) -> int:
        """Wait until a server has got a call of `method` since `calls` told `before`; return its number."""
        async with asyncio.timeout(PATIENCE):
            while (now := self.calls(method)) == before:  # noqa: ASYNC110 (there is no event to wait for)
                await asyncio.sleep(0.01)
        [number] = [number for number in now if now[number] > before[number]]
        return number

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
    # The database is another one here, and asks for no password.
    for name in ("DATABASE_URL", "DATABASE_PASSWORD_FILE"):
        plain.pop(name, None)
    # Where the servers run here, what the tests read of their log, and nobody to send traces to.
    ours = {"CONFIG_FILE": str(file), "LOGGING_FORMAT": "console", "OTEL_RESOURCE_ATTRIBUTES": ""}
    return plain | ours | {"TRACING_ENABLED": "false"}


@contextmanager
def running_servers(**variables: str) -> Iterator[Servers]:
    """Run three servers over a database without users; skip the test if there is no PostgreSQL.

    Args:
        **variables: of the servers' environment.

    """
    with running_postgresql() as postgresql, ExitStack() as stack:
        migrate(postgresql.url)
        ports = [stack.enter_context(held_port()) for _ in range(REPLICAS)]
        servers = Servers(postgresql.url, variables, ports)
        stack.callback(servers.kill_all)
        servers.start_all()
        yield servers


def _started(server: Server, method: str) -> int:
    address = f"http://127.0.0.1:{server.port('metrics_port')}/metrics"
    with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
        metrics = answer.read().decode()
    counter = re.search(rf'^grpc_server_started_total{{.*"{method}".*}} (\d+)', metrics, re.MULTILINE)
    return int(counter[1]) if counter else 0
