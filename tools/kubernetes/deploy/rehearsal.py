"""Trying, before anything changes, what only the end of a deployment does: Jobs, removals, a rollback."""

import re
from itertools import groupby

from tools.kubernetes.deploy.changes import find_obsolete
from tools.kubernetes.deploy.kubectl import Kubectl, KubectlError
from tools.kubernetes.deploy.live import find, in_namespace, namespace_of, resource_of
from tools.kubernetes.deploy.manifests import Manifests, Object, to_yaml
from tools.kubernetes.deploy.rollout import serving

_STAYS = re.compile(r"cannot \w+ resource| is invalid:")
"""A quota may be free until then, and a webhook need not know of a rehearsal."""


def rehearse(kubectl: Kubectl, manifests: Manifests) -> None:
    """Have the cluster refuse now what it would refuse in the middle.

    Raises:
        KubectlError: a Job is invalid, or a right is missing.

    """
    if not find(kubectl, namespace_of(manifests.namespace)):
        return
    jobs = manifests.of_kind("Job")
    _raise([_try_to_create(kubectl, job) for job in jobs])
    rehearse_removal(kubectl, [job for job in jobs if find(kubectl, job)] + find_obsolete(kubectl, manifests))
    for deployment in manifests.of_kind("Deployment"):
        serving(kubectl, find(kubectl, deployment))


def rehearse_removal(kubectl: Kubectl, items: list[Object]) -> None:
    """Have the cluster refuse now that objects are deleted.

    Raises:
        KubectlError: some may not be.

    """
    _raise([_try_to_delete(kubectl, [*group], where) for where, group in groupby(items, in_namespace)])


def _raise(refused: list[str]) -> None:
    if any(refused):
        raise KubectlError("\n".join(filter(None, refused)))


def _try_to_create(kubectl: Kubectl, job: Object) -> str:
    # The one before is there still, and in the way only until it is deleted.
    metadata = {key: value for key, value in job["metadata"].items() if key != "name"}
    named = metadata | {"generateName": f"{job['metadata']['name'][:50]}-"}
    command = ["create", "--dry-run=server", "--filename=-"]
    return _refusal(*kubectl.run(*command, stdin=to_yaml([job | {"metadata": named}])))


def _try_to_delete(kubectl: Kubectl, items: list[Object], where: list[str]) -> str:
    command = ["delete", *map(resource_of, items), *where, "--ignore-not-found", "--dry-run=server"]
    return _refusal(*kubectl.run(*command))


def _refusal(code: int, _: str, error: str) -> str:
    return error if code and _STAYS.search(error) else ""
