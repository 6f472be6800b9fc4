"""The cluster that all tests share, and the application that each deploys."""

import itertools
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.cluster import cluster
from tools.cluster.testing import given_or_running
from tools.kubernetes.deploy.testing import App

_run = secrets.token_hex(3)
_numbers = itertools.count()


@pytest.fixture(scope="session")
def running() -> Iterator[cluster.Cluster]:
    """Return a cluster that all tests share, each in a namespace of its own."""
    with given_or_running() as running:
        yield running


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Let programs that tests start hear Ctrl-C: a shell has what it runs in the background ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def app(running: cluster.Cluster, tmp_path: Path) -> App:
    """Return an overlay that is not deployed yet; a given cluster may still have those of another run."""
    return App(running, tmp_path, f"app-{_run}-{next(_numbers)}")
