"""Jobs try again what another try may mend, and nothing else."""

from collections.abc import Iterator

from k8s.checks.manifests import Manifest, Manifests, Problem, find, get
from k8s.checks.servers import programs

_WRONG_USAGE = 2
"""The exit code of our programs for a command line that they don't know."""


def count_no_drained_node(manifests: Manifests) -> Iterator[Problem]:
    """A pod that goes with its node is not one of the few tries that a Job of ours has."""
    for job in _jobs(manifests):
        if not any(
            action == "Ignore" and "DisruptionTarget" in _conditions(rule) for action, rule in _rules(job)
        ):
            what = "no rule ignores pods that went with their node, and each counts for backoffLimit"
            fix = "add {action: Ignore, onPodConditions: [{type: DisruptionTarget}]}"
            yield Problem(job, "spec.podFailurePolicy.rules", what, fix)


def repeat_no_wrong_usage(manifests: Manifests) -> Iterator[Problem]:
    """A Job of ours that tries again ends at once where each try fails in the same way."""
    for job in _jobs(manifests):
        if get(job, "spec.backoffLimit") != 0 and not any(
            action == "FailJob" and _WRONG_USAGE in (get(rule, "onExitCodes.values") or [])
            for action, rule in _rules(job)
        ):
            what = f"no rule ends the Job at exit code {_WRONG_USAGE}, wrong usage, and every try is made"
            fix = f"add {{action: FailJob, onExitCodes: {{operator: In, values: [{_WRONG_USAGE}]}}}}"
            yield Problem(job, "spec.podFailurePolicy.rules", what, fix)


def _jobs(manifests: Manifests) -> Iterator[Manifest]:
    for program in programs(manifests):
        if program.pod.workload["kind"] == "Job":
            yield program.pod.workload


def _rules(job: Manifest) -> Iterator[tuple[str, Manifest]]:
    for _, rule in find(job, "spec.podFailurePolicy.rules[]"):
        yield rule["action"], rule


def _conditions(rule: Manifest) -> set[str]:
    return {condition["type"] for condition in rule.get("onPodConditions") or ()}
