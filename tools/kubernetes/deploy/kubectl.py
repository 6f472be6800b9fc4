"""kubectl with one context, whose errors are exceptions in its own words."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from tools.kubernetes.deploy.rights import told_once
from tools.kubernetes.deploy.text import printable
from tools.kubernetes.deploy.transient import Patience

_LOG = re.compile(r"^[EWI]\d{4} .*\n", re.MULTILINE)
"""What kubectl logs beside its error: of a cluster that does not answer, the same five times."""

_REQUEST_TIMEOUT = 60
"""Seconds for an answer, as the API server has them itself; kubectl would wait for ever."""


class KubectlError(click.ClickException):
    """A command that kubectl refused; the text is what it said, with missing rights told once."""

    def __init__(self, message: str) -> None:
        super().__init__(told_once(message))


@dataclass(frozen=True)
class Kubectl:
    """kubectl for one cluster."""

    program: Path

    context: str | None
    """The context of the kubeconfig; None is the current one."""

    patience: float = 0
    """Seconds for which a command is tried again after an error that passes by itself."""

    check: Callable[[], None] = lambda: None
    """Called before each command; it raises what must keep it from being run."""

    answers: dict[tuple[str, ...], tuple[int, str, str]] | None = None
    """What `get` answered to its arguments, where it is not asked twice."""

    def remembering(self) -> Kubectl:
        """Return kubectl that asks nothing twice, for a look at a cluster in which it changes nothing."""
        return replace(self, answers={})

    def afresh(self) -> Kubectl:
        """Return kubectl that asks the cluster each time."""
        return replace(self, answers=None)

    def pinned(self) -> Kubectl:
        """Return kubectl for the context that is current now, and stays so when people switch to another."""
        code, current, _ = self.run("config", "current-context")
        # There is none in a pod, where kubectl takes the pod's own cluster.
        return self if self.context or code else replace(self, context=current.strip())

    def run(self, *arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
        """Run a command, and return its exit code and what it printed to stdout and stderr.

        Where an error passes by itself it is tried again, so that it has to be one that may be repeated.
        """
        if self.answers is None or arguments[0] != "get":
            return self._run_patiently(*arguments, stdin=stdin)
        if arguments not in self.answers:
            self.answers[arguments] = self._run_patiently(*arguments)
        return self.answers[arguments]

    def _run_patiently(self, *arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
        patience = Patience(self.patience)
        while True:
            self.check()
            code, output, error = self._run(*arguments, stdin=stdin)
            if not code or not patience.waits(error):
                return code, output, error

    def _run(self, *arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
        done = subprocess.run(
            self._command(*arguments),
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # logs may be anything
            # What people have `kubectl diff` call prints something else. This one prints whole files.
            env=os.environ | {"KUBECTL_EXTERNAL_DIFF": "diff -N -U99999"},
            check=False,
        )
        return done.returncode, done.stdout, _LOG.sub("", done.stderr).strip()

    def read(self, *arguments: str, stdin: str | None = None) -> str:
        """Run a command and return what it prints.

        Raises:
            KubectlError: it failed.

        """
        code, output, error = self.run(*arguments, stdin=stdin)
        if code:
            raise KubectlError(printable(error) or f"kubectl {arguments[0]} ended with exit code {code}")
        return output

    def objects(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the objects that `kubectl get` with these arguments lists.

        Raises:
            KubectlError: it failed.

        """
        items: list[dict[str, Any]] = json.loads(self.read("get", *arguments, "--output=json"))["items"]
        return items

    def _command(self, *arguments: str) -> list[str]:
        context = [f"--context={self.context}"] if self.context else []
        return [str(self.program), *context, f"--request-timeout={_REQUEST_TIMEOUT}s", *arguments]
