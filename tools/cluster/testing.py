"""The cluster of tests, and what its simulated pods do."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tools.cluster import cluster

FAILS = "pod-start.stage.kwok.x-k8s.io/fails"
DELAY = "pod-start.stage.kwok.x-k8s.io/delay"
"""Annotations of pods; see pods.yaml."""


@contextmanager
def running_or_skipped() -> Iterator[cluster.Cluster]:
    """Run a cluster, or skip the test and say what has to be built for it."""
    try:
        cluster.programs()
    except cluster.MissingProgramError as missing:
        pytest.skip(str(missing))
    with cluster.running() as running:
        yield running
