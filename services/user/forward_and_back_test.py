"""Releases with migrations go forward and back under load, over both databases, and no call fails."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

import grpc_common
from grpc_common.testing.pods import Words, until
from services.user.testing_listing import all_users
from services.user.testing_releases import EXPAND, Pod, Release

# An index that is made beside the writes.
INDEX = """
transactional = False

def upgrade() -> None:
    op.create_index("users_nickname", "users", ["nickname"], postgresql_concurrently=True)
"""
# The release with the one before has not used it any more.
CONTRACT = """
oldest_program = "0004"

def upgrade() -> None:
    op.drop_table("idempotency_keys")
"""
USES_THE_NEW_TABLE = [("idempotency_keys", "keys_of_users")]

CLIENTS = 4
"""Callers at a time: no moment is without a call, and two cores are not full."""

DEADLINE = 30
"""Seconds of a call: that a machine stands still is no failure of a release."""

CALLS = 30
"""How many calls each step is given at least, once it is done."""


class Load:
    """Users that are created and read all the time, by a client that balances over the pods."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = UserServiceStub(channel)
        self.calls = 0
        self.failures: list[str] = []
        self.created: dict[str, pb.User] = {}
        self._numbers = itertools.count()
        self._ends = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Make calls for the block, and wait for the last ones."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._work())
            yield
            self._ends = True

    async def _work(self) -> None:
        while not self._ends:
            key = f"user{next(self._numbers)}"
            request = pb.CreateUserRequest(name=key, email=f"{key}@example.com")
            metadata = [("idempotency-key", key)]
            user = await self._answer(self._stub.CreateUser(request, timeout=DEADLINE, metadata=metadata))
            if user:
                self.created[key] = user
                found = await self._answer(
                    self._stub.GetUser(pb.GetUserRequest(id=user.id), timeout=DEADLINE)
                )
                assert found is None or found == user
            await asyncio.sleep(0.01)

    async def _answer(self, call) -> pb.User | None:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            self.failures.append(f"{error.code().name}: {error.details()}")
            return None
        finally:
            self.calls += 1

    async def all_users(self) -> dict[str, pb.User]:
        """Return all users that there are, by name."""
        return {user.name: user for user in await all_users(self._stub, deadline=DEADLINE)}


class Fleet:
    """The pods of a service, and the Jobs before their rollouts."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self._url = url
        self._stack = stack
        self._pods: list[tuple[Release, Pod]] = []
        self.words = Words()

    async def start(self, release: Release, count: int = 1) -> None:
        """Have more pods of a release, and send them calls once they are ready."""
        starting = [self._stack.enter_async_context(release.pod(self._url)) for _ in range(count)]
        pods = await asyncio.gather(*starting)
        await asyncio.gather(*[pod.until_ready() for pod in pods])
        self._pods += [(release, pod) for pod in pods]
        self._say()

    async def stop(self, release: Release, count: int = 1) -> None:
        """Send some of the oldest pods of a release no calls any more, then end them."""
        leaving = [each for each in self._pods if each[0] is release][:count]
        assert len(leaving) == count
        self._pods = [each for each in self._pods if each not in leaving]
        self._say()
        await self.words.all_taken()
        assert await asyncio.gather(*[pod.end() for _, pod in leaving]) == [0] * count

    async def replace(self, old: Release, new: Release, count: int = 1) -> None:
        """Roll some pods over to another release, or to the same, without fewer of them meanwhile."""
        await self.start(new, count)
        await self.stop(old, count)

    async def migrate(self, release: Release) -> str:
        """Run the Job of a release, and return what it says."""
        code, output, error = await release.run(self._url, "migrate")
        assert code == 0, error
        return output.strip().rpartition("users: ")[2].rpartition("users.db: ")[2]

    def show(self) -> str:
        """Return how many pods of which schema there are."""
        counts = Counter(release.version for release, _ in self._pods)
        return ", ".join(f"{count} x {version}" for version, count in sorted(counts.items()))

    def _say(self) -> None:
        self.words.put([pod.address for _, pod in self._pods])


class Transcript:
    """What was done, and the calls that were made and that failed meanwhile: a table."""

    def __init__(self, title: str, fleet: Fleet, load: Load) -> None:
        self._fleet = fleet
        self._load = load
        self._calls = 0
        print(f"\n{title}\n| step | pods x schema | calls | failed |\n|---|---|---|---|")

    async def step(self, what: str) -> None:
        """Let some calls be made in what there is now, and print the row about it."""
        goal = self._load.calls + CALLS
        await until(lambda: self._load.calls >= goal)
        calls, self._calls = self._load.calls - self._calls, self._load.calls
        print(f"| {what} | {self._fleet.show()} | {calls} | {len(self._load.failures)} |")
        assert self._load.failures == []


async def test_forward_and_back_under_load(database, tmp_path):
    """Rollouts, restarts, rollbacks and the older commit's Job: no call fails, and no user is lost."""
    now = Release(tmp_path / "now")
    expands = Release(tmp_path / "expands", EXPAND, INDEX, replace=USES_THE_NEW_TABLE)
    contracts = Release(tmp_path / "contracts", EXPAND, INDEX, CONTRACT, replace=USES_THE_NEW_TABLE)
    async with AsyncExitStack() as stack:
        fleet = Fleet(database.url, stack)
        first = await fleet.migrate(now)
        await fleet.start(now, 2)
        channel = await stack.enter_async_context(grpc_common.channel("users", endpoints=fleet.words))
        load = Load(channel)
        await stack.enter_async_context(load.running())
        says = Transcript("SQLite" if "sqlite" in database.url else "PostgreSQL", fleet, load)

        await says.step(f"deploy: migrate: {first}")
        await says.step(f"the next release: migrate: {await fleet.migrate(expands)}")
        await fleet.replace(now, expands)
        await says.step("half a rollout")
        await fleet.replace(now, now)
        await says.step("an old pod restarts")
        await fleet.start(now)
        await says.step("the autoscaler adds an old pod")
        await fleet.replace(expands, now)
        await says.step("rollback")
        message = await fleet.migrate(now)
        assert message == "schema 0004 stays: it is newer than this program's 0002, which works with it"
        await fleet.replace(now, now)
        await says.step(f"deploy of the older commit: migrate: {message}")
        await says.step(f"forward again: migrate: {await fleet.migrate(expands)}")
        await fleet.replace(now, expands, 3)
        await says.step("the whole rollout")
        await says.step(f"the release that contracts: migrate: {await fleet.migrate(contracts)}")
        await fleet.replace(expands, contracts)
        await says.step("half its rollout")
        await says.step(f"rollback by the commit before: migrate: {await fleet.migrate(expands)}")
        await fleet.replace(contracts, expands)
        await says.step("its rollout")
        code, _, error = await now.run(database.url)
        assert code == 1
        assert "which works with programs of schema 0004 and later; this one has 0002" in error
        created = dict(load.created)
        users = await load.all_users()
        lost = {name for name, user in created.items() if users.get(name) != user}
        print(f"{len(created)} users created, {len(lost)} lost")
        assert lost == set()
