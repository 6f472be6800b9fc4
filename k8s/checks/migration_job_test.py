import json
import re
from pathlib import Path

import pytest

from k8s.checks.kustomize import build, copy_files
from services.user import server
from tools.cluster import cluster
from tools.cluster.testing import DELAY, running_or_skipped

IMAGE = "jsonpath={.spec.template.spec.containers[0].image}"
README = Path("k8s/README.md").read_text("utf-8")
SAID = re.findall(r"^ {4}kubectl (.* -k k8s/overlays/prod|.*delete job.*)$", README, re.MULTILINE)


@pytest.fixture(scope="module")
def running():
    """Return a cluster."""
    with running_or_skipped() as running:
        yield running


@pytest.fixture
def overlay(tmp_path):
    """Return a folder with an overlay that needs no custom kinds."""
    folder = copy_files(tmp_path) / "overlays/plain"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(
        "namespace: user-service\nresources: [../../base]\ncomponents: [../../components/smoke]\n"
    )
    return folder


def release(overlay, digit):
    """Set the digest of the image, as `kustomize edit set image` does."""
    file = overlay / "../../base/kustomization.yaml"
    file.write_text(re.sub("sha256:.*", f"sha256:{64 * digit}", file.read_text()))


def images(running):
    """Return what the Jobs and the Deployment run."""
    where = "--namespace=user-service"
    return [
        running.kubectl("get", each, where, f"--output={IMAGE}").partition("@sha256:")[2][0]
        for each in ("job/user-service-migrate", "job/user-service-smoke", "deployment/user-service")
    ]


def test_a_new_version_is_applied_as_the_readme_says(running, overlay):
    """A Job can't be changed: the README has each deleted first; forgotten, they alone are refused."""
    for digit in "12":
        release(overlay, digit)
        for command in SAID:
            running.kubectl(*command.replace("k8s/overlays/prod", str(overlay)).split())
        assert images(running) == [digit, digit, digit]
    release(overlay, "3")
    with pytest.raises(cluster.ClusterError) as refused:
        running.kubectl("apply", "-k", overlay)
    immutable = {*re.findall(r'(\S+) "(\S+)" is invalid', str(refused.value))}
    assert immutable == {("Job.batch", "user-service-migrate"), ("Job.batch", "user-service-smoke")}
    assert "field is immutable" in str(refused.value)
    assert images(running) == ["2", "2", "3"]


def test_the_readme_says_how():
    """The test above was given commands: the Jobs' end, and what applies the rest."""
    delete, apply = SAID
    assert "user-service-migrate" in delete
    assert apply.startswith("apply ")


DRAINED = {"type": "DisruptionTarget", "status": "True"}


@pytest.mark.parametrize(
    ("code", "conditions", "counted"),
    [
        (1, [], {"failed": 1}),
        (1, [DRAINED], {}),
        (2, [], {"failed": 1, "reason": "PodFailurePolicy"}),
        (server.NOT_TO_BE_REPEATED, [], {"failed": 1, "reason": "PodFailurePolicy"}),
    ],
)
def test_migration_tries_again_what_may_be_mended(running, overlay, code, conditions, counted):
    """The Job ends at once where no try helps; a drained node is not counted as a try."""
    job = build(overlay.parents[1], "overlays/plain").named("Job", "user-service-migrate", "user-service")
    name, template = f"ends-with-{code}-{len(conditions)}", job["spec"]["template"]
    job["metadata"] = {"name": name}
    template["metadata"]["annotations"] = {DELAY: "1h"}
    del template["spec"]["serviceAccountName"]
    running.kubectl("create", "--filename=-", stdin=json.dumps(job))
    selected = f"--selector=job-name={name}"
    running.kubectl("wait", "--for=create", "pod", selected, "--timeout=30s")
    pod = running.kubectl("get", "pod", selected, "--output=name").strip()
    patch = json.dumps({"status": failed(code, conditions)})
    running.kubectl("patch", pod, "--subresource=status", "--type=merge", f"--patch={patch}")
    # It is gone only once the Job's controller has counted it.
    running.kubectl("delete", pod, "--timeout=60s")
    status = json.loads(running.kubectl("get", "job", name, "--output=json"))["status"]
    reasons = [each["reason"] for each in status.get("conditions", ()) if each["type"] == "FailureTarget"]
    assert status.get("failed") == counted.get("failed")
    assert reasons == [counted[key] for key in counted if key == "reason"]


def failed(code, conditions):
    """Return the status of a pod whose container has ended with an exit code."""
    end = {"exitCode": code, "startedAt": "2030-01-01T00:00:00Z", "finishedAt": "2030-01-01T00:00:01Z"}
    container = {"name": "migrate", "image": "-", "imageID": "", "ready": False, "restartCount": 0}
    ended = container | {"state": {"terminated": end}}
    return {"phase": "Failed", "conditions": conditions, "containerStatuses": [ended]}
