"""Runs pytest on the files given, the way that Bazel expects of a test program."""

import os
import sys
from asyncio import AbstractEventLoop
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

OPTIONS = [
    "--import-mode=importlib",
    "--override-ini=asyncio_mode=auto",
    "--override-ini=asyncio_default_fixture_loop_scope=function",
    "--strict-markers",
    "-pno:cacheprovider",
    "-ra",
]


class EveryFileHasATest:
    """A plugin that refuses a file in which pytest finds nothing to run."""

    def __init__(self, files: list[str]) -> None:
        self._files = {Path(file).resolve() for file in files}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Compare before -k removes tests from `items`."""
        empty = self._files - {item.path.resolve() for item in items}
        if empty:
            message = f"no test in {', '.join(sorted(file.name for file in empty))}"
            raise pytest.UsageError(message)


class NoDeadlines:
    """A plugin that lets an example of Hypothesis take its time: its 200 ms are too few on a busy machine."""

    def pytest_configure(self) -> None:
        """Change the default of every test, where Hypothesis is among its dependencies."""
        if find_spec("hypothesis"):
            from hypothesis import settings  # noqa: PLC0415 (most tests don't need it)

            settings.register_profile("no deadlines", deadline=None)
            settings.load_profile("no deadlines")


class EventLoop:
    """A plugin that runs coroutines in an event loop of another class, named as `module:Class`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def pytest_asyncio_loop_factories(self) -> dict[str, Callable[[], AbstractEventLoop]]:
        """Return the class, which is imported only once a test needs it."""
        module, _, attribute = self._name.partition(":")
        return {attribute: getattr(import_module(module), attribute)}


def main(files: list[str]) -> int:
    """Return pytest's exit code for `files` (paths relative to the working directory)."""
    args = [*files, *OPTIONS]
    if junit_xml := os.environ.get("XML_OUTPUT_FILE"):
        args.append(f"--junitxml={junit_xml}")
    if temporary := os.environ.get("TEST_TMPDIR"):
        args.append(f"--basetemp={temporary}/pytest")
    test_filter = os.environ.get("TESTBRIDGE_TEST_ONLY")
    if test_filter:
        args.append(f"-k={test_filter}")
    plugins: list[object] = [EveryFileHasATest(files), NoDeadlines()]
    if event_loop := os.environ.get("PYTEST_EVENT_LOOP"):
        plugins.append(EventLoop(event_loop))
    code = pytest.main(args, plugins=plugins)
    if test_filter and code == pytest.ExitCode.NO_TESTS_COLLECTED:
        return 0  # the filter is meant for another target's tests
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
