"""What differs between objects and the cluster's, as `kubectl diff` tells it."""

import difflib
import re
from collections.abc import Iterator

from tools.kubernetes.deploy.kubectl import Kubectl, KubectlError
from tools.kubernetes.deploy.manifests import MANAGER, Object, to_yaml

SERVER_SIDE = ("--server-side", f"--field-manager={MANAGER}", "--force-conflicts")
"""What is rendered holds over `kubectl edit` and `rollout undo`; fields that it does not have stay theirs."""

_STATUS = re.compile(r"^status:.*\n(?:[ -].*\n)*", re.MULTILINE)


def show_difference(kubectl: Kubectl, objects: list[Object]) -> str:
    """Return what `kubectl diff` prints: nothing where the cluster has the objects as they are.

    Raises:
        KubectlError: the cluster can't tell.

    """
    command = ["diff", *SERVER_SIDE, "--filename=-"]
    code, output, error = kubectl.run(*command, stdin=to_yaml(objects))
    if code > 1:  # 1 says that there is a difference
        raise KubectlError(error)
    files = re.split(r"^(?=diff )", output, flags=re.MULTILINE)[1:]
    return "".join(line for file in files for line in _without_status(file))


def _without_status(file: str) -> Iterator[str]:
    """Yield the lines of a file's difference but for the status.

    kubectl reads an object twice, and controllers may write its status in between.
    """
    command, old_name, new_name, _, *lines = file.splitlines(keepends=True)
    old, new = (
        _STATUS.sub("", "".join(line[1:] for line in lines if line[0] in signs)).splitlines(keepends=True)
        for signs in (" -", " +")
    )
    if shown := list(difflib.unified_diff(old, new, old_name[4:].rstrip(), new_name[4:].rstrip())):
        yield from (command, *shown)
