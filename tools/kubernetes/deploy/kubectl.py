"""kubectl with one context, whose errors are exceptions in its own words."""

import json
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click


class KubectlError(click.ClickException):
    """A command that kubectl refused; the text is what it said."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl for one cluster."""

    program: Path

    context: str | None
    """The context of the kubeconfig; None is the current one."""

    def pinned(self) -> Kubectl:
        """Return kubectl for the context that is current now, and stays so when people switch to another."""
        code, current, _ = self.run("config", "current-context")
        # There is none in a pod, where kubectl takes the pod's own cluster.
        return self if self.context or code else replace(self, context=current.strip())

    def run(self, *arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
        """Run a command, and return its exit code and what it printed to stdout and stderr."""
        done = subprocess.run(
            self._command(*arguments),
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # logs may be anything
            # What people have `kubectl diff` call prints something else.
            env=os.environ | {"KUBECTL_EXTERNAL_DIFF": ""},
            check=False,
        )
        return done.returncode, done.stdout, done.stderr.strip()

    def read(self, *arguments: str, stdin: str | None = None) -> str:
        """Run a command and return what it prints.

        Raises:
            KubectlError: it failed.

        """
        code, output, error = self.run(*arguments, stdin=stdin)
        if code:
            raise KubectlError(error or f"kubectl {arguments[0]} ended with exit code {code}")
        return output

    def objects(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the objects that `kubectl get` with these arguments lists.

        Raises:
            KubectlError: it failed.

        """
        items: list[dict[str, Any]] = json.loads(self.read("get", *arguments, "--output=json"))["items"]
        return items

    def show(self, *arguments: str) -> int:
        """Run a command whose output is for the person at the terminal, and return its exit code."""
        return subprocess.run(self._command(*arguments), check=False).returncode

    def _command(self, *arguments: str) -> list[str]:
        context = [f"--context={self.context}"] if self.context else []
        return [str(self.program), *context, *arguments]
