"""The components that no overlay has, given to a real API server with the real custom kinds."""

from collections.abc import Iterator

import pytest
import yaml

from k8s.checks.kustomize import UNUSED, compose, copy_files
from tools.cluster import cluster
from tools.cluster.testing import running_or_skipped


@pytest.fixture(scope="module")
def running() -> Iterator[cluster.Cluster]:
    """Return a cluster with the custom kinds, and the namespace of production."""
    with running_or_skipped(crds=True) as running:
        running.kubectl("create", "namespace", "user-service")
        yield running


@pytest.mark.parametrize("name", UNUSED)
def test_component_is_accepted(name, running, tmp_path):
    """Production with it is what the API server knows, in each field, also by the restricted standard."""
    objects = compose(copy_files(tmp_path), "overlays/prod", name).objects
    command = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename=-"]
    applied = running.kubectl(*command, stdin=yaml.safe_dump_all(objects)).splitlines()
    assert len(applied) == len(objects)
