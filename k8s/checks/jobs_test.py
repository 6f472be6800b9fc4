import pytest

from k8s.checks import jobs
from k8s.checks.manifests import find, title
from k8s.checks.rendered import OVERLAYS
from k8s.checks.testing import REMOVED, changed, overlay, texts
from services.user import server

JOB = "Job/user-service-migrate"
RULES = "spec.podFailurePolicy.rules"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.podFailurePolicy", REMOVED),
        (f"{RULES}.0.onPodConditions.0.type", "Ready"),
        (f"{RULES}.0", REMOVED),
    ],
)
def test_drained_node_that_counts_as_a_try(path, value):
    """Six nodes that are drained one after the other would fail the migration."""
    [text] = texts(jobs.count_no_drained_node, changed("prod", (JOB, path, value)))
    assert text.startswith(f"{JOB}: {RULES}: no rule ignores pods that went with their node, ")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.podFailurePolicy", REMOVED),
        (f"{RULES}.1.onExitCodes.values", [3]),
        (f"{RULES}.1.action", "Count"),
    ],
)
def test_wrong_usage_that_is_repeated(path, value):
    """Each of six tries fails in the same way, and takes five minutes with the pauses between them."""
    [text] = texts(jobs.repeat_no_wrong_usage, changed("prod", (JOB, path, value)))
    assert text.startswith(f"{JOB}: {RULES}: no rule ends the Job at exit code 2, wrong usage, ")


def test_job_that_tries_once():
    """What is never repeated needs no word for what not to repeat."""
    change = (JOB, "spec.backoffLimit", 0)
    manifests = changed("prod", change, (JOB, f"{RULES}.1", REMOVED))
    assert texts(jobs.repeat_no_wrong_usage, manifests) == []


@pytest.mark.parametrize("name", [name for name in OVERLAYS if overlay(name).of_kind("Job")])
def test_migration_ends_at_once_where_no_try_can_help(name):
    """The exit codes are those of the program, and of its container alone."""
    job = next(each for each in overlay(name).of_kind("Job") if title(each) == JOB)
    [(_, codes)] = find(job, f"{RULES}[].onExitCodes")
    assert codes["values"] == [2, server.NOT_TO_BE_REPEATED]
    assert codes["containerName"] == job["spec"]["template"]["spec"]["containers"][0]["name"]
