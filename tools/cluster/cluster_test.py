import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trustme
import yaml

from tools.cluster import cluster
from tools.cluster.testing import DELAY, FAILS, running_or_skipped

COMMAND = Path("tools/cluster/cluster").absolute()


@pytest.fixture(scope="module")
def running():
    """Return a cluster that all tests share, each in a namespace of its own."""
    with running_or_skipped() as running:
        yield running


@pytest.fixture
def kubectl(running, request):
    """Return kubectl for a namespace of the test's own."""
    name = re.sub(r"\W|_", " ", request.node.name).strip().replace(" ", "-").lower()
    running.kubectl("create", "namespace", name)
    return partial(running.kubectl, f"--namespace={name}")


def apply(kubectl, manifest: str) -> None:
    """Apply JSON or YAML."""
    kubectl("apply", "--server-side", "--filename=-", stdin=manifest)


def wait(kubectl, what: str, condition: str) -> None:
    """Wait until the condition holds."""
    kubectl("wait", what, f"--for={condition}", "--timeout=30s")


def roll_out(kubectl, timeout: str = "30s") -> None:
    """Wait until the Deployment has rolled out."""
    kubectl("rollout", "status", "deployment/app", f"--timeout={timeout}")


def until(condition: Callable[[], bool]) -> None:
    """Wait for what kubectl cannot wait for."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def pod_template(**annotations: str) -> dict:
    """Return what Deployments and Jobs make pods of."""
    return {
        "metadata": {"labels": {"app": "app"}, "annotations": annotations},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    }


def deployment(replicas: int = 3, **annotations: str) -> str:
    """Return a Deployment as JSON."""
    return json.dumps(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "app"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "app"}},
                "template": pod_template(**annotations),
            },
        }
    )


def job(**annotations: str) -> str:
    """Return a Job that does not try again, as JSON."""
    template = pod_template(**annotations)
    template["spec"]["restartPolicy"] = "Never"
    spec = {"backoffLimit": 0, "template": template}
    return json.dumps({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "app"}, "spec": spec})


def get(kubectl, *what: str) -> dict:
    """Return objects as the API server has them."""
    return json.loads(kubectl("get", *what, "--output=json"))


def test_version(running):
    """Clients are told the version of go.mod."""
    version = json.loads(running.kubectl("version", "--output=json"))["serverVersion"]
    assert f"k8s.io/kubernetes {version['gitVersion']} " in Path("tools/cluster/go.mod").read_text()
    assert version["gitVersion"].startswith(f"v{version['major']}.{version['minor']}.")


def test_deployment(kubectl):
    """A Deployment rolls out over the zones, scales and goes, with the pods that belong to it."""
    apply(kubectl, deployment())
    roll_out(kubectl)
    pods = get(kubectl, "pods")["items"]
    assert {pod["spec"]["nodeName"] for pod in pods} == {"node-a", "node-b", "node-c"}
    kubectl("scale", "deployment/app", "--replicas=1")
    wait(kubectl, "deployment/app", "jsonpath={.status.replicas}=1")
    kubectl("delete", "deployment/app", "--cascade=foreground")
    assert get(kubectl, "pods,replicasets")["items"] == []


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "CrashLoopBackOff", "Unhealthy"])
def test_failing_version(kubectl, reason):
    """A version told to fail never gets ready, says why, and leaves the one before it alone."""
    apply(kubectl, deployment())
    roll_out(kubectl)
    apply(kubectl, deployment(**{FAILS: reason}))
    until(lambda: "simulated" in kubectl("events", "--types=Warning"))
    # On a busy machine kubectl may not even have read in time what it is to wait for.
    with pytest.raises(cluster.ClusterError, match=r"timed out|unable to sync caches"):
        roll_out(kubectl, "1s")
    pods = get(kubectl, "pods")["items"]
    states = [pod["status"]["containerStatuses"][0] for pod in pods]
    assert [state["ready"] for state in states].count(True) == 3
    [failing] = [state for state in states if not state["ready"]]
    assert failing["state"].get("waiting", {"reason": "Unhealthy"})["reason"] == reason
    kubectl("rollout", "undo", "deployment/app")
    roll_out(kubectl)


def test_slow_version(kubectl):
    """A pod that starts late gets ready all the same."""
    apply(kubectl, deployment(1, **{DELAY: "2s"}))
    roll_out(kubectl)
    [pod] = get(kubectl, "pods")["items"]
    times = pod["metadata"]["creationTimestamp"], pod["status"]["startTime"]
    created, started = map(datetime.fromisoformat, times)
    assert started - created >= timedelta(seconds=2)


def test_job(kubectl):
    """A Job completes."""
    apply(kubectl, job())
    wait(kubectl, "job/app", "condition=Complete")


def test_failing_job(kubectl):
    """A Job told to fail does."""
    apply(kubectl, job(**{FAILS: "Error"}))
    wait(kubectl, "job/app", "condition=Failed")


def test_volume(kubectl):
    """A claim without a class is bound."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    apply(kubectl, json.dumps(claim))
    wait(kubectl, "pvc/data", "jsonpath={.status.phase}=Bound")


def test_logs(kubectl):
    """`kubectl logs` says that there is nothing to see, instead of failing."""
    apply(kubectl, deployment(1))
    roll_out(kubectl)
    assert "simulated" in kubectl("logs", "deployment/app")


def test_invalid_object(kubectl):
    """The API server's own validation holds."""
    with pytest.raises(cluster.ClusterError, match=r"\.spec\.replica: field not declared in schema"):
        apply(kubectl, deployment().replace('"replicas"', '"replica"'))


CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: things, singular: thing, kind: Thing}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}]
"""


def processes(text: str) -> list[str]:
    """Return the command lines of all processes that have `text` in it."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_text())
        except OSError:  # ended in between
            continue
    return [line for line in lines if text in line]


@contextmanager
def command(*arguments: str | Path):
    """Run the command; return its process and its cluster."""
    with subprocess.Popen([COMMAND, *arguments], stdout=subprocess.PIPE, text=True) as process:
        try:
            kubeconfig = Path(process.stdout.readline().split()[2])
            yield process, cluster.Cluster(kubeconfig.parent)
        finally:
            process.kill()


def test_command(running, tmp_path):
    """The command adds CRDs, prints how to reach its cluster, and leaves nothing behind on SIGTERM.

    It does not collide with another cluster.
    """
    (tmp_path / "crd.yaml").write_text(CRD)
    with command("--crds", tmp_path) as (process, other):
        assert other.kubectl("get", "things", "--output=name") == ""
        with pytest.raises(cluster.ClusterError, match="doesn't have a resource type"):
            running.kubectl("get", "things")
        assert len(processes(str(other.folder))) >= 5
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert processes(str(other.folder)) == []
        assert not other.folder.exists()


@pytest.mark.usefixtures("running")  # or there is nothing to start
def test_killed():
    """Nothing is left even if nobody could clean up."""
    with command() as (process, other):
        process.kill()
        until(lambda: processes(str(other.folder)) == [])
    shutil.rmtree(other.folder)


def test_missing_programs(tmp_path):
    """Whoever has not built Kubernetes is told how to."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    result = subprocess.run([COMMAND], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: there is no {tmp_path}/")
    assert result.stderr.endswith(": run tools/cluster/build.sh once (it needs Go)\n")


@pytest.fixture
def definitions():
    """Return the CustomResourceDefinitions that crds.sh made, by name."""
    try:
        files = cluster.crds().glob("*.yaml")
    except cluster.MissingProgramError as missing:
        pytest.skip(str(missing))
    objects = [item for file in files for item in yaml.safe_load_all(file.read_text()) if item]
    return {item["metadata"]["name"]: item for item in objects}


def test_the_folder_of_definitions(definitions):
    """The script prints the folder that tests read, which has what k8s/ needs."""
    environment = os.environ | {"HOME": str(Path.home())}  # Bazel's tests have none
    command = ["tools/cluster/crds.sh"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed == f"{cluster.crds()}\n"
    assert {"certificates.cert-manager.io", "externalsecrets.external-secrets.io"} <= definitions.keys()


def test_definitions_are_generated(definitions):
    """Those of applications are made of their API packages by the controller-gen of go.mod."""
    module = Path("tools/cluster/crds/go.mod").read_text()
    version = re.search(r"sigs.k8s.io/controller-tools (v\S+)", module)[1]
    for name, definition in definitions.items():
        if not name.endswith((".istio.io", ".gateway.networking.k8s.io")):
            made_by = definition["metadata"]["annotations"]["controller-gen.kubebuilder.io/version"]
            assert made_by == version, name


def test_program_ends(tmp_path, monkeypatch):
    """A program that ends too early is quoted."""
    for name, script in {"etcd": "echo disk is full; exit 3", "kube-apiserver": "exec sleep 60"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(cluster, "programs", lambda: tmp_path)
    with (
        pytest.raises(cluster.ClusterError, match="etcd ended with code 3; its last words:\ndisk is full"),
        cluster.running(),
    ):
        pass


def test_api_server_that_hangs_up_while_it_starts():
    """One that has taken a connection and gives no answer over it is asked again."""
    authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with (
        ExitStack() as programs,
        socket.create_server(("127.0.0.1", 0)) as listener,
        ThreadPoolExecutor() as threads,
    ):
        listener.settimeout(20)

        def answer_the_second() -> None:
            for answer in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"):
                with context.wrap_socket(listener.accept()[0], server_side=True) as connection:
                    connection.recv(1000)
                    connection.sendall(answer)

        served = threads.submit(answer_the_second)
        starter = cluster._Starter(Path(), Path(), programs)  # noqa: SLF001 (whose programs all run)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/readyz"
        cluster._wait_until_ready(url, authority, starter)  # noqa: SLF001
        served.result()


def test_envoy_gateway_and_its_definitions_have_one_version():
    """The API server has the kinds of the Envoy Gateway that configures the Envoy of tests."""
    modules = [Path(f"tools/cluster/{name}/go.mod").read_text() for name in ("crds", "control-planes")]
    of_definitions, of_program = (re.search(r"envoyproxy/gateway (v\S+)", module) for module in modules)
    assert of_definitions[1] == of_program[1]
