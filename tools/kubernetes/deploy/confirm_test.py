"""Where a deployment goes, and who said so."""

import json
import os
import pty
import signal
import subprocess
from contextlib import suppress

import pytest

from tools.kubernetes.deploy.testing import KUBECTL, App


def test_nobody_answers_for_a_script(app: App) -> None:
    """Without a terminal and --yes nothing is deployed."""
    assert "pass --yes" in app.run("deploy", code=3)
    assert not app.running.kubectl("get", "namespace", app.namespace, "--ignore-not-found")


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        ("\x03", 130, "stopped at the question: nothing was changed"),
        ("\x04", 1, "not confirmed: nothing was changed"),
        ("n\n", 1, "not confirmed: nothing was changed"),
    ],
    ids=["Ctrl-C", "Ctrl-D", "no"],
)
def test_who_does_not_say_yes_is_told_what_was_done(app: App, answer: str, code: int, text: str) -> None:
    """Ctrl-C at the question has the exit code that it has everywhere; whatever is said, it was nothing."""
    terminal, stdin = pty.openpty()
    process = app.start("deploy", stdin=stdin)
    assert process.stdout
    asked = ""
    while "[y/N]" not in asked:
        asked += process.stdout.read(1)
    if answer == "\x03":
        press_ctrl_c(process)
    else:
        os.write(terminal, answer.encode())
    output, _ = process.communicate(timeout=30)
    os.close(terminal)
    os.close(stdin)
    assert (process.returncode, text in output, "Aborted" in output) == (code, True, False), output
    assert not app.running.kubectl("get", "namespace", app.namespace, "--ignore-not-found")


def press_ctrl_c(process: subprocess.Popen[str]) -> None:
    """Do what a terminal does that the process belongs to, until it ends, as a person would.

    Python does not see a signal that comes after the question and before the read of its answer has begun.
    """
    for _ in range(30):
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
            return


def test_the_cluster_is_known_by_its_uid(app: App) -> None:
    """A context may be called what it should be and be another cluster's: both uids are told."""
    uid = app.running.kubectl("get", "namespace", "kube-system", "--output=jsonpath={.metadata.uid}")
    other = "01234567-89ab-cdef-0123-456789abcdef"
    app.settings(contexts=["cluster"], clusters=[other])
    for command in (["deploy", "--yes"], ["diff"], ["delete", "--yes"]):
        refused = app.run(*command, "--context=cluster", code=3)
        assert f"trial is for cluster {other}, and context 'cluster' is cluster {uid}" in refused
        assert "kubectl get namespace kube-system" in refused
    assert not app.running.kubectl("get", "namespace", app.namespace, "--ignore-not-found")
    app.settings(contexts=["cluster"], clusters=[other, uid])
    app.deploy("--context=cluster")


def test_a_release_without_a_cluster_is_not_deployed_unseen(app: App) -> None:
    """Where no uid is pinned, somebody has to look at the one that the question has."""
    uid = app.running.kubectl("get", "namespace", "kube-system", "--output=jsonpath={.metadata.uid}")
    app.settings(release=True)
    arguments = ["deploy", "--context=cluster", "--allow-dirty"]
    refused = app.run(*arguments, "--yes", code=3)
    assert f"Write `clusters: [{uid}]` into it" in refused
    assert f"of context cluster, cluster {uid}?" in app.run(*arguments, code=3)
    assert not app.running.kubectl("get", "namespace", app.namespace, "--ignore-not-found")
    app.settings(release=True, clusters=[uid])
    app.run(*arguments, "--yes")


def test_a_cluster_whose_uid_is_secret_is_refused_where_it_matters(app: App) -> None:
    """Without a pin the trial goes on, with one the right that lacks is told."""
    app.wrap_kubectl('*kube-system*) echo "no right to get namespaces" >&2; false ;;')
    app.deploy()
    app.settings(clusters=["01234567-89ab-cdef-0123-456789abcdef"])
    assert "which this is can't be read: no right to get namespaces" in app.deploy(code=3)


def test_the_context_stays_when_people_switch(app: App) -> None:
    """What was current at the start is deployed to and pruned, to the end."""
    config = app.folder / "kubeconfig"
    text = json.loads(app.running.kubeconfig.read_text())
    text["clusters"] += [{"name": "other", "cluster": {"server": "http://127.0.0.1:1"}}]
    text["contexts"] += [{"name": "other", "context": {"cluster": "other"}}]
    config.write_text(json.dumps(text))
    app.environment["KUBECONFIG"] = str(config)
    app.push.write_text(f"#!/bin/sh\n{KUBECTL} config use-context other\n")
    app.deploy()
    assert app.get("deployment/app", ".status.availableReplicas") == "1"
