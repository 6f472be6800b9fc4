"""Images are named so that what runs tomorrow is what was tested today."""

import re
from collections.abc import Iterator

from k8s.checks.manifests import Manifests, Problem

_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_TAG = re.compile(r"^[^@]*:(?P<tag>[\w.-]+)$")


def have_a_version(manifests: Manifests) -> Iterator[Problem]:
    """No image is the latest, neither by its tag nor for want of one."""
    for pod in manifests.pods:
        for field, container in pod.containers:
            image = container.get("image", "")
            tag = _TAG.search(image)
            if not _DIGEST.search(image) and (tag is None or tag["tag"] == "latest"):
                what = f"{image!r} is whatever was pushed last"
                yield Problem(pod.workload, f"{field}.image", what, "name a version or a digest")


def have_a_digest(manifests: Manifests) -> Iterator[Problem]:
    """Each image has a digest, not merely a tag that can be moved: for staging and production.

    A digest of zeros passes: it is of no image, and stands for one that is still to be built.
    """
    for pod in manifests.pods:
        for field, container in pod.containers:
            image = container.get("image", "")
            if not _DIGEST.search(image):
                fix = "write NAME@sha256:DIGEST, as the registry gave it"
                yield Problem(pod.workload, f"{field}.image", f"{image!r} has no digest", fix)
