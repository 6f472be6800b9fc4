"""The cluster of tests, and what its simulated pods do."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tools.cluster import cluster

FAILS = "pod-start.stage.kwok.x-k8s.io/fails"
DELAY = "pod-start.stage.kwok.x-k8s.io/delay"
"""Annotations of pods; see pods.yaml."""

_GIVEN = "TEST_KUBECONFIG"
"""The kubeconfig of a cluster to take instead of our own. Not KUBECONFIG: it may be production."""


@contextmanager
def running_or_skipped(*, crds: bool = False) -> Iterator[cluster.Cluster]:
    """Run a cluster, `crds` with those of crds.sh, or skip the test and say what has to be built for it."""
    try:
        cluster.programs()
        folder = cluster.crds() if crds else None
    except cluster.MissingProgramError as missing:
        pytest.skip(str(missing))
    with cluster.running() as running:
        if folder:
            running.add_crds(folder)
        yield running


@contextmanager
def given_or_running() -> Iterator[cluster.Cluster]:
    """Yield the cluster of TEST_KUBECONFIG, where KWOK must have our pods.yaml; without one, run one."""
    if not (kubeconfig := os.environ.get(_GIVEN)):
        with running_or_skipped() as running:
            yield running
        return
    with tempfile.TemporaryDirectory() as folder:
        given = cluster.Cluster(Path(folder))
        # A copy keeps the context that is current now. Of two flags kubectl takes the later.
        view = ["config", "view", "--minify", "--flatten", "--raw", "--output=json"]
        given.kubeconfig.write_text(given.kubectl(*view, f"--kubeconfig={kubeconfig}"))
        yield given
