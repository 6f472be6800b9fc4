"""Runs pytest on the files given, the way that Bazel expects of a test program."""

import os
import sys
from asyncio import AbstractEventLoop
from collections.abc import Callable, Generator
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


class NothingIsSkipped:
    """A plugin that fails what would be skipped, and says why it may not be."""

    def __init__(self, why: str) -> None:
        self._why = why

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Change a test's report; one that ran and is expected to fail is no skipped one."""
        report = yield
        # Without its assertion: by xfail(run=False), or by a call of pytest.xfail.
        gave_up = call.excinfo is not None and call.excinfo.errisinstance(pytest.xfail.Exception)
        if gave_up or not hasattr(report, "wasxfail"):
            self._fail_if_skipped(report)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Change the report of a file that skips all its tests."""
        report = yield
        self._fail_if_skipped(report)
        return report

    def _fail_if_skipped(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            reason = report.__dict__.pop("wasxfail", reason)
            report.outcome = "failed"
            report.longrepr = f"skipped, {self._why}: {str(reason).removeprefix('Skipped: ')}"


def skips() -> list[NothingIsSkipped]:
    """Return what keeps tests from being skipped; nothing where they may be."""
    if os.environ.get("REQUIRE_ALL") == "1":
        return [NothingIsSkipped("which REQUIRE_ALL=1 takes for a failure")]
    if os.environ.get("PYTEST_MAY_SKIP") != "1":
        return [NothingIsSkipped('which depends on the machine: its target needs the tag "no-cache"')]
    return []


class Shard:
    """A plugin that runs every `total`-th test, from number `index` on."""

    def __init__(self, index: int, total: int) -> None:
        self._index, self._total = index, total

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave the others' tests out, after -k has left out its own."""
        mine = items[self._index :: self._total]
        config.hook.pytest_deselected(items=[item for item in items if item not in mine])
        items[:] = mine


def shard() -> Shard | None:
    """Return the part of the tests that Bazel wants of this process, and tell it that it gets no more."""
    total = int(os.environ.get("TEST_TOTAL_SHARDS") or 0)
    if not total:
        return None
    if status_file := os.environ.get("TEST_SHARD_STATUS_FILE"):
        Path(status_file).touch()
    return Shard(int(os.environ["TEST_SHARD_INDEX"]), total)


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
    plugins: list[object] = [EveryFileHasATest(files), NoDeadlines(), *skips()]
    if event_loop := os.environ.get("PYTEST_EVENT_LOOP"):
        plugins.append(EventLoop(event_loop))
    if part := shard():
        plugins.append(part)
    code = pytest.main(args, plugins=plugins)
    if (test_filter or part) and code == pytest.ExitCode.NO_TESTS_COLLECTED:
        return 0  # the filter is meant for another target's tests, or all are other shards'
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
