"""Fixtures of tests that run containers."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from k8s.checks.rendered import load
from tests.image.podman import Deployment, Podman, missing


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """Return podman without images; skip where containers can't be run, and say what is missing."""
    if lacks := missing():
        pytest.skip(f"containers can't be run: this machine lacks {lacks}")
    # Not tmp_path: sockets with a long path don't work.
    folder = Path(tempfile.mkdtemp(prefix="podman-"))
    podman = Podman(folder)
    try:
        yield podman
    finally:
        podman.close()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def deployment() -> Deployment:
    """Return the Deployment of the overlay dev, with its SQLite file in a volume."""
    return Deployment(load("dev"))


@pytest.fixture
def flags(deployment: Deployment, tmp_path: Path) -> list[str]:
    """Return podman's flags for what the Deployment says, but for the volume with the data."""
    config = tmp_path / "config"
    config.mkdir()
    return deployment.flags(config)


@pytest.fixture
def volume(deployment: Deployment, tmp_path: Path) -> str:
    """Return the flag for a volume that belongs to the user, as fsGroup makes it."""
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.chown(folder, deployment.user(), deployment.user())
    return f"--volume={folder}:/data"
