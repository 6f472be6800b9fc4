"""What callers were told, and whether it is true: each user is there once, and no other."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterable

import asyncpg

PATIENCE = 120.0
"""Seconds for what takes few, on a machine that is overloaded."""

KNOWN_LOSS = "Stream removed (sendmsg: Broken pipe"
"""What C-core's client says when it has stood still while a connection ended, and has written to it twice:
"What can be lost all the same" in the README of grpc_common."""

_USERS = "SELECT id::text, name, email FROM users"

_SEED = """
INSERT INTO users (id, name, email, email_key)
SELECT uuidv7(), $2 || n || repeat('€', 190), $2 || n || '@example.com', $2 || n || '@example.com'
FROM generate_series(1, $1) AS n
"""
"""A thousand of them are a page of 600 kB, and the first one: ids are of version 7, as the service's own."""


class Ledger:
    """The calls of all clients, and what became of them."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        """Calls that were answered as they should be, by client."""
        self.failures: list[str] = []
        """The others, each with the client, the kind of call, and what came in place of the answer."""
        self.acknowledged: dict[str, str] = {}
        """The ids of the users that were created, by email."""
        self.calling: set[str] = set()
        """The clients that call now."""
        self.unknown: set[str] = set()
        """Emails of creates that failed: nobody knows whether they happened."""
        self.numbers = itertools.count()
        """Of users: no two have the same."""
        self._excuses = 1
        self._changed = asyncio.Event()

    def answered(self, client: str) -> None:
        """Note that a call went well."""
        self.calls[client] += 1
        self._changed.set()

    def failed(self, client: str, kind: str, what: object) -> None:
        """Note that a call did not."""
        self.failures.append(f"{client}, {kind}: {what}")
        self._changed.set()

    async def more(self, count: int) -> None:
        """Wait until each client that calls has had so many more answers.

        Raises:
            AssertionError: one has not, for too long; it says which, and what has failed.

        """
        goal = {client: self.calls[client] + count for client in self.calling}
        try:
            async with asyncio.timeout(PATIENCE):
                while any(self.calls[client] < calls for client, calls in goal.items()):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            silent = sorted(client for client, calls in goal.items() if self.calls[client] < calls)
            raise AssertionError(f"too few answers for {silent}; failed: {Counter(self.failures)}") from None

    def unexcused(self, lost: Counter[str]) -> Counter[str]:
        """Return what of the failures is not the known loss, which is excused once in a ledger's life."""
        known = [failure for failure in lost.elements() if KNOWN_LOSS in failure]
        excused, self._excuses = known[: self._excuses], max(0, self._excuses - len(known))
        return lost - Counter(excused)

    def take_failures(self) -> Counter[str]:
        """Return how many calls have failed since the last time, by client, kind and reason."""
        failures, self.failures = self.failures, []
        return Counter(failures)

    async def check(self, url: str, seeded: Iterable[str]) -> None:
        """Compare with the database, in which `seeded` are the emails of users that no call has created.

        Raises:
            AssertionError: an acknowledged user is not there, or not as acknowledged; one is there twice, or
                was refused.

        """
        acknowledged = dict(self.acknowledged)
        rows = await users(url)
        there = Counter(email for _, email in rows)
        assert [email for email, count in there.items() if count > 1] == [], "users that are there twice"
        found = {email: user_id for user_id, email in rows}
        lost = {email for email, user_id in acknowledged.items() if found.get(email) != user_id}
        assert lost == set(), "acknowledged users that are not there"
        unexpected = found.keys() - self.acknowledged.keys() - self.unknown - set(seeded)
        assert unexpected == set(), "users that were refused, and are there"


async def users(url: str) -> list[tuple[str, str]]:
    """Return ids and emails of all users in PostgreSQL, as its table has them."""
    connection = await asyncpg.connect(url)
    try:
        return [(row["id"], row["email"]) for row in await connection.fetch(_USERS)]
    finally:
        await connection.close()


async def seed(url: str, count: int, prefix: str = "seed") -> list[str]:
    """Create users behind the service's back; return their emails."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(_SEED, count, prefix)
    finally:
        await connection.close()
    return [f"{prefix}{number}@example.com" for number in range(1, count + 1)]
