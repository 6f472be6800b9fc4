"""Programs that tell over HTTP when they are ready, and end with the block that they are for."""

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.programs import PATIENCE
from tools.wrappers import DIES_WITH_US

_INTERVAL = 0.05
"""Seconds between two questions."""


@dataclass(frozen=True)
class Program:
    """A program that runs."""

    process: subprocess.Popen[bytes]
    log: Path

    def until(self, url: str, text: str = "") -> None:
        """Wait until a page of the program's has a text.

        Raises:
            RuntimeError: the program ended, or was not as far in time; the message has its last words.

        """
        end, page = time.monotonic() + PATIENCE, ""
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
                page = answer.read().decode()
                if text in page:
                    return
            time.sleep(_INTERVAL)
        raise self.failure(f"{url} has no {text!r}:\n{page}")

    def failure(self, what: str) -> RuntimeError:
        """Return an error whose message has the program's last words."""
        words = self.log.read_text(errors="replace").splitlines()[-20:]
        return RuntimeError("\n".join([what, f"{self.log}:", *words]))


@contextmanager
def running_program(
    command: Sequence[Path | str], folder: Path, environment: Mapping[str, str]
) -> Iterator[Program]:
    """Run a program in `folder`, and kill it at the end with all that it has started; its log is there."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            # Not even a killed test leaves anything behind.
            [*DIES_WITH_US, *command],
            cwd=folder,
            # Nobody's settings but these.
            env={"PATH": os.environ["PATH"], "HOME": str(folder)} | environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield Program(process, log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
