"""The cluster that all tests of a file share, and the application that each deploys."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.cluster import cluster
from tools.cluster.testing import running_or_skipped
from tools.kubernetes.deploy.testing import App

_numbers = itertools.count()


@pytest.fixture(scope="module")
def running() -> Iterator[cluster.Cluster]:
    """Return a cluster that all tests share, each in a namespace of its own."""
    with running_or_skipped() as running:
        yield running


@pytest.fixture
def app(running: cluster.Cluster, tmp_path: Path) -> App:
    """Return an overlay that is not deployed yet."""
    return App(running, tmp_path, f"app-{next(_numbers)}")
