"""What holds for every target; fuzz_test of the BUILD file says by the environment which one is meant."""

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import CodeType

import pytest

TARGET = os.environ["FUZZ_TARGET"]
PARSERS = os.environ["FUZZ_PARSERS"]
NAME = TARGET.rpartition(".")[2]
FUZZER = Path(__file__).with_name("fuzzer.py")
SEEDS = sorted((FUZZER.parent / "corpus" / NAME).iterdir())

RUNS = os.environ["FUZZ_RUNS"]
"""How many inputs are tried: no limit of time, which would try others on another machine."""

REACHED = 0.75
"""The part of a parser's lines that the seeds execute at least; the rest is for what none of them has."""


@pytest.fixture(scope="module")
def fuzz():
    """Return the target as it is, without the fuzzer."""
    return importlib.import_module(TARGET).fuzz


def test_seeds_reach_the_parser(fuzz):
    """The seeds execute most of each parser, so that the fuzzer does not begin in front of a closed door.

    It comes first, as some parsers keep what they have read.
    """
    executed = executed_lines(fuzz)
    for parser in PARSERS.split(","):
        file, lines = lines_of(parser)
        assert lines, f"{parser} is no function"
        missing = lines - {line for name, line in executed if name == file}
        assert len(missing) <= len(lines) * (1 - REACHED), (
            f"{parser}: no seed executes lines {sorted(missing)}"
        )


def executed_lines(fuzz) -> set[tuple[str, int]]:
    """Return the files and lines that the seeds execute."""
    executed = set()
    monitoring = sys.monitoring
    monitoring.use_tool_id(monitoring.COVERAGE_ID, "seeds")
    monitoring.register_callback(
        monitoring.COVERAGE_ID,
        monitoring.events.LINE,
        lambda code, line: executed.add((code.co_filename, line)) or monitoring.DISABLE,
    )
    monitoring.set_events(monitoring.COVERAGE_ID, monitoring.events.LINE)
    try:
        for seed in SEEDS:
            fuzz(seed.read_bytes())
    finally:
        monitoring.set_events(monitoring.COVERAGE_ID, 0)
        monitoring.free_tool_id(monitoring.COVERAGE_ID)
    return executed


def lines_of(parser: str) -> tuple[str, set[int]]:
    """Return the file of a parser, and the lines in its functions: others are executed by an import."""
    module, _, function = parser.partition(":")
    file = find_spec(module).origin
    source = Path(file).read_text()
    ranges = [
        range(node.lineno, node.end_lineno + 1)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and function in ("", node.name)
    ]
    functions = [code for code in codes(compile(source, file, "exec")) if code.co_flags & 2]  # not of classes
    lines = {
        line for code in functions for _, _, line in code.co_lines() if line and line > code.co_firstlineno
    }
    return file, {line for line in lines if any(line in each for each in ranges)}


def codes(code: CodeType) -> Iterator[CodeType]:
    """Yield what is compiled in a module."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from codes(inner)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.name)
def test_seed(fuzz, seed):
    """No seed fails; among them is all that ever did."""
    fuzz(seed.read_bytes())


def test_fuzzed(tmp_path):
    """Some fuzzing finds nothing.

    It tries the same on each machine, however slow, so that no change fails by chance. Reading the corpus
    anew each second would lead elsewhere, and so would another order of sets; only keys are new each time.
    """
    result = subprocess.run(
        [sys.executable, FUZZER, TARGET, PARSERS, "-seed=1", f"-runs={RUNS}", "-reload=0"],
        env=os.environ
        | {
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "XDG_CACHE_HOME": str(tmp_path),
        },
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert f"Done {RUNS} runs" in result.stdout, result.stdout
