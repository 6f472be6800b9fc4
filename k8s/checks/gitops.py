"""What Argo CD and Flux make of Jobs, and in which order."""

from collections.abc import Iterator

from k8s.checks.manifests import Manifest, Manifests, Pod, Problem, annotations, get, metadata, title
from k8s.checks.network import selects
from k8s.checks.references import secret_from_store, uses

_HOOK = "argocd.argoproj.io/hook"
_WAVE = "argocd.argoproj.io/sync-wave"
_FORCE = "kustomize.toolkit.fluxcd.io/force"

_PHASES = ("PreSync", "Sync", "PostSync")

_LAST = "list the component that sets it after all others"


def make_every_job_anew(manifests: Manifests) -> Iterator[Problem]:
    """Where one Job says how a GitOps tool makes it anew, each does: else the next version is refused."""
    jobs = manifests.of_kind("Job")
    for key in (_HOOK, _FORCE):
        told = [job for job in jobs if key in annotations(job)]
        for job in jobs if told else ():
            if job not in told:
                what = f"is missing, and a Job can't be changed; {title(told[0])} has it"
                yield Problem(job, f"metadata.annotations[{key}]", what, _LAST)


def come_before_hooks(manifests: Manifests) -> Iterator[Problem]:
    """What a hook of Argo CD needs to start and to reach its database comes before it: it waits for ever."""
    for pod in manifests.pods:
        if _HOOK not in annotations(pod.workload):
            continue
        for each in _needed(manifests, pod):
            if _moment(each) > _moment(pod.workload):
                what = f"comes after {title(pod.workload)}, which needs it"
                yield Problem(each, f"metadata.annotations[{_WAVE}]", what, _LAST)


def _moment(manifest: Manifest) -> tuple[int, int]:
    """Return phase and wave."""
    given = annotations(manifest)
    phase = given.get(_HOOK, "Sync")
    return _PHASES.index(phase) if phase in _PHASES else len(_PHASES), int(given.get(_WAVE, "0"))


def _needed(manifests: Manifests, pod: Pod) -> Iterator[Manifest]:
    """Yield what a pod names, the policies with ways for it, and what is at their other end."""
    namespace = metadata(pod.workload, "namespace")
    named = {(use.kind, use.name) for use in uses(manifests) if use.manifest is pod.workload}
    for each in manifests.objects:
        name = metadata(each, "name")
        if (each.get("kind"), name) in named or _makes(each) in named or _lets(each, pod):
            yield each
    for policy in (each for each in manifests.of_kind("NetworkPolicy") if _lets(each, pod)):
        for rule in get(policy, "spec.egress") or []:
            for peer in rule.get("to") or []:
                if "podSelector" in peer and "namespaceSelector" not in peer:
                    others = manifests.select(peer["podSelector"], namespace)
                    yield from (other.workload for other in others if other.workload["kind"] == "StatefulSet")


def _makes(manifest: Manifest) -> tuple[str, str] | None:
    """Return the Secret that another object has made."""
    return ("Secret", secret_from_store(manifest)) if manifest.get("kind") == "ExternalSecret" else None


def _lets(policy: Manifest, pod: Pod) -> bool:
    """Return whether a policy opens a way for a pod."""
    opens = bool(get(policy, "spec.egress") or get(policy, "spec.ingress"))
    return policy.get("kind") == "NetworkPolicy" and opens and selects(policy, pod)
