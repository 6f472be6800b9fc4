"""kubectl with one context, whose errors are exceptions in its own words."""

import json
import subprocess
from dataclasses import dataclass
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

    def run(self, *arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
        """Run a command, and return its exit code and what it printed to stdout and stderr."""
        done = subprocess.run(
            self._command(*arguments), input=stdin, capture_output=True, text=True, check=False
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
