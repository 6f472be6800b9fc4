"""An application that tests deploy, and the cluster that they deploy it to."""

import copy
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tools.cluster import cluster

COMMAND = Path("tools/kubernetes/deploy/cli").absolute()
KUBECTL = Path(os.environ.get("KUBECTL", "kubectl")).absolute()

IMAGE = "registry.example.com/app@sha256:"

type Objects = dict[str, dict[str, Any]]


class App:
    """An overlay as Bazel renders one, in a namespace of its own."""

    def __init__(self, running: cluster.Cluster, folder: Path, namespace: str) -> None:
        self.running = running
        self.folder = folder
        self.kubectl = KUBECTL
        self.environment = {"KUBECONFIG": str(running.kubeconfig)}
        self.namespace = namespace
        self.settings()
        self.push = folder / "push"
        self.push.write_text(f'#!/bin/sh\necho "$@" >>{folder}/pushed\n')
        self.push.chmod(0o755)
        self.objects = _objects(namespace)

    @property
    def template(self) -> dict[str, Any]:
        """The pods of the Deployment."""
        template: dict[str, Any] = self.objects["Deployment"]["spec"]["template"]
        return template

    @property
    def container(self) -> dict[str, Any]:
        """The container of the Deployment that is ours; a test may put others before it."""
        containers: list[dict[str, Any]] = self.template["spec"]["containers"]
        return next(each for each in containers if each["name"] == "app")

    def settings(self, **settings: Any) -> None:
        """Write what deploy.yaml says."""
        (self.folder / "deploy.yaml").write_text(yaml.safe_dump(settings))

    def wrap_kubectl(self, case: str) -> None:
        """Have kubectl do something else where its arguments are as in a case of the shell."""
        self.kubectl = self.folder / "kubectl"
        self.kubectl.write_text(f'#!/bin/sh\ncase "$*" in\n{case}\n*) exec {KUBECTL} "$@" ;;\nesac\n')
        self.kubectl.chmod(0o755)

    def start(self, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """Start a command on what the objects are now."""
        rendered = self.folder / "rendered.yaml"
        rendered.write_text(yaml.safe_dump_all(self.objects.values()))
        digest = self.folder / "digest"
        digest.write_text(self.container["image"].partition("@")[2])
        files = {"manifests": rendered, "settings": self.folder / "deploy.yaml"}
        files |= {"push": self.push, "digest": digest}
        options = [f"--{name}={file}" for name, file in files.items()]
        return subprocess.Popen(
            [COMMAND, "--overlay=trial", f"--kubectl={self.kubectl}", *options, *arguments],
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | self.environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a command to its end, expect its exit code, and return what it printed."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=90)
        assert process.returncode == code, output
        return output

    def start_until(self, line: str, *arguments: str) -> subprocess.Popen[str]:
        """Start to deploy, and return when a line begins so."""
        process = self.start("deploy", "--yes", *arguments)
        assert process.stdout
        assert any(each.startswith(line) for each in process.stdout)
        return process

    def deploy(self, *arguments: str, code: int = 0) -> str:
        """Deploy without questions."""
        return self.run("deploy", "--yes", *arguments, code=code)

    def names(self, kind: str) -> set[str]:
        """Return the names of the namespace's objects of a kind."""
        listed = self.running.kubectl("get", kind, f"--namespace={self.namespace}", "--output=name")
        return {name.rpartition("/")[2] for name in listed.split()}

    def server_pods(self) -> set[str]:
        """Return the names of the Deployment's pods."""
        return {name for name in self.names("pods") if name.startswith("app-")}

    def get(self, name: str, path: str) -> str:
        """Return a field of an object."""
        where = f"--namespace={self.namespace}"
        return self.running.kubectl("get", name, where, f"--output=jsonpath={{{path}}}")

    def image(self) -> str:
        """Return the last part of the image that the Deployment has."""
        return self.get("deployment/app", '.spec.template.spec.containers[?(@.name=="app")].image')[-1]


def _objects(namespace: str) -> Objects:
    pod: dict[str, Any] = {
        "metadata": {"labels": {"app": "app"}, "annotations": {}},
        "spec": {"containers": [{"name": "app", "image": IMAGE + 64 * "1"}]},
    }
    job_pod = copy.deepcopy(pod)
    job_pod["metadata"]["labels"] = {"app": "migrate"}
    job_pod["spec"]["restartPolicy"] = "Never"
    objects = [
        make_object("v1", "Namespace", namespace),
        make_object("v1", "ConfigMap", "config-1", data={"key": "value"}),
        make_object("v1", "Service", "app", spec={"selector": {"app": "app"}, "ports": [{"port": 1}]}),
        make_object("batch/v1", "Job", "migrate", spec={"template": job_pod, "backoffLimit": 0}),
        make_object(
            "apps/v1",
            "Deployment",
            "app",
            spec={"selector": {"matchLabels": {"app": "app"}}, "template": pod},
        ),
    ]
    for item in objects[1:]:
        item["metadata"]["namespace"] = namespace
    return {item["kind"]: item for item in objects}


def make_object(version: str, kind: str, name: str, **more: Any) -> dict[str, Any]:
    """Return an object with a name."""
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **more}
