"""Selectors find pods: a label that is written differently in two places stops no one from applying it."""

from collections.abc import Iterator

from k8s.checks.manifests import External, Manifest, Manifests, Pod, Problem, find, get, metadata, title
from tools.kubernetes.labels import matches

_SELECTORS = {
    "AuthorizationPolicy": "spec.selector",
    "DestinationRule": "spec.workloadSelector",
    "NetworkPolicy": "spec.podSelector",
    "PeerAuthentication": "spec.selector",
    "PodDisruptionBudget": "spec.selector",
    "PodMonitor": "spec.selector",
}
"""The selectors of pods; those of a NetworkPolicy's peers are left out, as callers live elsewhere."""

_TERMS = [
    f"spec.affinity.{kind}.{when}"
    for kind in ("podAffinity", "podAntiAffinity")
    for when in (
        "preferredDuringSchedulingIgnoredDuringExecution[].podAffinityTerm.labelSelector",
        "requiredDuringSchedulingIgnoredDuringExecution[].labelSelector",
    )
]

_VERSION = "app.kubernetes.io/version"
_CHANGING = {_VERSION, "app.kubernetes.io/managed-by", "helm.sh/chart"}

_SAME_LABELS = "give the pods these labels, or select the ones they have"


def select_pods(manifests: Manifests) -> Iterator[Problem]:
    """Each Service, PodDisruptionBudget, NetworkPolicy, PodMonitor and policy of a mesh selects a pod."""
    for service in manifests.of_kind("Service"):
        labels = get(service, "spec.selector")
        if labels and not manifests.behind(service):
            yield Problem(service, "spec.selector", f"{labels} matches no pod", _SAME_LABELS)
    for manifest in manifests.of_kind(*_SELECTORS):
        for field, selector in find(manifest, _SELECTORS[manifest["kind"]]):
            elsewhere = manifest["kind"] == "NetworkPolicy" and external_pods(manifests, selector)
            if not elsewhere and not manifests.select(selector, metadata(manifest, "namespace")):
                yield Problem(manifest, field, f"{selector} matches no pod", _SAME_LABELS)


def external_pods(manifests: Manifests, selector: Manifest) -> list[External]:
    """Return the pods that others make and that a NetworkPolicy selects by a label."""
    named = selector.get("matchLabels")
    return [each for each in manifests.external if named and each.labels and matches(selector, each.labels)]


def select_services(manifests: Manifests) -> Iterator[Problem]:
    """Each ServiceMonitor selects a Service."""
    for monitor in manifests.of_kind("ServiceMonitor"):
        selector = get(monitor, "spec.selector") or {}
        labels = [get(service, "metadata.labels") or {} for service in manifests.of_kind("Service")]
        if not any(matches(selector, each) for each in labels):
            yield Problem(monitor, "spec.selector", f"{selector} matches no Service", "select one's labels")


def select_own_pods(manifests: Manifests) -> Iterator[Problem]:
    """Each workload selects its pods, and its spread constraints count them."""
    for pod in manifests.pods:
        selector = get(pod.workload, "spec.selector")
        # A Job, a CronJob and a Pod have none.
        if not matches(selector or {}, pod.labels):
            what = f"{selector} does not match the template's labels {dict(pod.labels)}"
            yield Problem(pod.workload, "spec.selector", what, _SAME_LABELS)
        for field, spread in pod.find("spec.topologySpreadConstraints[].labelSelector"):
            if not matches(spread, pod.labels):
                what = f"{spread} does not match the pod itself, so nothing is spread"
                yield Problem(pod.workload, field, what, _SAME_LABELS)


def keep_to_pods(manifests: Manifests) -> Iterator[Problem]:
    """Each affinity is to pods that are there."""
    for pod in manifests.pods:
        for field, selector in _affinities(pod):
            if not manifests.select(selector, metadata(pod.workload, "namespace")):
                yield Problem(pod.workload, field, f"{selector} matches no pod", _SAME_LABELS)


def _affinities(pod: Pod) -> Iterator[tuple[str, dict[str, object]]]:
    for path in _TERMS:
        yield from pod.find(path)


def select_by_what_stays(manifests: Manifests) -> Iterator[Problem]:
    """No selector has a label that changes: a workload's can't follow, and a Service's would lose pods."""
    for manifest in manifests.objects:
        path = _SELECTORS.get(manifest["kind"], "spec.selector")
        selector = get(manifest, path)
        labels = selector.get("matchLabels", selector) if isinstance(selector, dict) else {}
        for label in sorted(_CHANGING & (labels or {}).keys()):
            what = "changes with a version or a tool, and the selector must not"
            yield Problem(manifest, f"{path}[{label}]", what, "select by app.kubernetes.io/name alone")


def tell_the_version_that_runs(manifests: Manifests) -> Iterator[Problem]:
    """The label of a version is the tag, or the beginning of the digest, of an image of the pod."""
    for pod in manifests.pods:
        version = pod.labels.get(_VERSION)
        images = [container.get("image", "") for _, container in pod.containers]
        if version and not any(_is_version(version, image) for image in images):
            what = f"is {version}, and no image of the pod has it for a tag or digest"
            fix = "set it where the image is set, or leave it out"
            yield pod.problem(f"metadata.labels[{_VERSION}]", what, fix)


def _is_version(version: str, image: str) -> bool:
    return image.endswith(f":{version}") or f"@sha256:{version}" in image


def send_no_calls_to_jobs(manifests: Manifests) -> Iterator[Problem]:
    """No Service sends calls to the pods of a Job, such as the migration."""
    for service in manifests.of_kind("Service"):
        for pod in manifests.behind(service):
            if pod.workload["kind"] in ("CronJob", "Job"):
                what = f"matches the pods of {title(pod.workload)}, which serve no calls"
                yield Problem(service, "spec.selector", what, "give those pods another label")
