"""Planned changes of a fleet, none of which a caller may notice."""

import asyncio
from pathlib import Path

from services.user.testing_releases import EXPAND, Release
from tests.programs import SERVER
from tests.rollout.proof import AGE, PODS, Proof

TAKEN = 1.2 * AGE
"""Seconds until all use new certificates: connections end a tenth after AGE at the latest."""


async def replace_certificates(proof: Proof, _folder: Path) -> None:
    """Replace the certificates of both sides, and their authority; a client must follow its files."""
    for step in proof.certificates.steps():
        async with proof.event(step):
            # Nothing tells when all have taken it.
            await asyncio.sleep(TAKEN)


async def change_configuration(proof: Proof, _folder: Path) -> None:
    """Change the file of all pods, which they follow."""
    async with proof.event("configuration is changed"):
        await proof.change_configuration()


async def replace_every_pod(proof: Proof, _folder: Path) -> None:
    """Replace each pod in turn, as a changed template does."""
    async with proof.event("every pod is replaced"):
        await proof.fleet.roll()


async def restart_postgresql(proof: Proof, _folder: Path) -> None:
    """Restart the database; calls wait for it, also those that it had begun."""
    async with proof.event("PostgreSQL is restarted"):
        await asyncio.to_thread(proof.postgresql.restart)


async def migrate_forward_and_back(proof: Proof, folder: Path) -> None:
    """Have the next release's migration and pods, and the pods before again, which work with its schema."""
    release = Release(folder / "release", EXPAND)
    async with proof.event("migrated, and rolled forward"):
        code, _, error = await release.run(proof.postgresql.url, "migrate")
        assert code == 0, error
        proof.fleet.command = release.command
        await proof.fleet.roll()
    async with proof.event("rolled back"):
        proof.fleet.command = [SERVER]
        await proof.fleet.roll()


async def scale(proof: Proof, _folder: Path) -> None:
    """Let the fleet grow, and shrink below what it was."""
    for count in (PODS + 2, PODS - 1):
        async with proof.event(f"scaled to {count}"):
            await proof.fleet.scale(count)


PLANNED = [change_configuration, replace_every_pod, restart_postgresql, migrate_forward_and_back, scale]
"""Those that any client bears, in the order in which they need each other."""
