import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).with_name("fuzzer.py")

PLANTED = """
def parse(text):
    if text.startswith("user="):
        if text.endswith(":grpc"):
            if len(text) == 14:
                raise RuntimeError("planted")
"""

TARGET = """
import planted

def fuzz(data):
    planted.parse(data.decode("latin-1"))
"""

HANGING = """
def parse(text):
    while text:
        try:
            while True:
                pass
        except Exception:
            pass
"""

RUNS = 100_000
"""Led it takes some 20 000; by chance ten bytes are right once in 256**10."""


@pytest.fixture
def fuzz(tmp_path: Path):
    """Fuzz a parser; parsers are what leads."""
    (tmp_path / "planted_target.py").write_text(TARGET)

    def fuzz(
        *arguments: str, parser: str = PLANTED, parsers: str = "planted"
    ) -> subprocess.CompletedProcess[str]:
        (tmp_path / "planted.py").write_text(parser)
        return subprocess.run(
            [sys.executable, FUZZER, "planted_target", parsers, "-seed=1", f"-runs={10 * RUNS}", *arguments],
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "XDG_CACHE_HOME": str(tmp_path)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )

    return fuzz


def found(output: str) -> bytes:
    """Return the input that is told."""
    data: bytes = ast.literal_eval(re.search("^fails with (b.*)$", output, re.MULTILINE)[1])
    return data


def test_bug_behind_comparisons_is_found(fuzz):
    """What is executed, and what is compared with what, leads to an input that nobody guesses."""
    result = fuzz()
    assert result.returncode != 0
    assert "RuntimeError: planted" in result.stdout
    assert re.fullmatch(rb"user=.{4}:grpc", found(result.stdout), re.DOTALL)


def test_bug_is_not_found_by_chance(fuzz):
    """Several times the tries that it takes find nothing without counters in the parser."""
    result = fuzz(f"-runs={RUNS}", parsers="elsewhere")
    assert result.returncode == 0, result.stdout
    assert f"Done {RUNS} runs" in result.stdout


def test_what_was_found_can_be_tried_again(fuzz):
    """The command that is told fails at the same place, and no longer once the bug is gone."""
    output = fuzz().stdout
    command = shlex.split(re.search("^try it again: (.*)$", output, re.MULTILINE)[1])
    assert command[:4] == ["tools/bazel", "run", "//tools/fuzz:planted_target", "--"]
    again = fuzz(*command[4:])
    assert again.returncode != 0
    assert found(again.stdout) == found(output)
    assert fuzz(*command[4:], parser="def parse(text): pass").returncode == 0


def test_what_was_found_can_be_kept(fuzz, tmp_path):
    """The other command makes a seed of it."""
    output = fuzz().stdout
    (tmp_path / "tools/fuzz/corpus/planted_target").mkdir(parents=True)
    command = shlex.split(re.search("^keep it: (.*)$", output, re.MULTILINE)[1])
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True)
    [seed] = (tmp_path / "tools/fuzz/corpus/planted_target").iterdir()
    assert seed.read_bytes() == found(output)


@pytest.mark.parametrize(
    ("parser", "what"),
    [
        (HANGING, "takes more than"),
        ("import re\ndef parse(text): re.match('(a|a)*b', 60 * text)", "takes more than"),
        ("kept = []\ndef parse(text): kept.append(bytearray(len(text) * 2**28))", "MB"),
    ],
    ids=["hangs and catches all", "a regular expression", "memory"],
)
def test_input_that_costs_too_much(fuzz, parser, what):
    """An input may neither hang a parser nor fill the memory, wherever it does."""
    result = fuzz("b'a'", parser=parser)
    assert result.returncode != 0
    assert re.search(rf"TooMuchError: .*{what}", result.stdout), result.stdout
    assert found(result.stdout) == b"a"


def test_next_time_begins_where_the_last_ended(fuzz, tmp_path):
    """What leads further is kept for the next run."""
    fuzz(f"-runs={RUNS // 10}")
    assert list((tmp_path / "grpc-on-kubernetes/fuzz/planted_target").iterdir())
    assert re.search("INFO: +[1-9][0-9]* files found in .*planted_target", fuzz().stdout)


@pytest.mark.parametrize(("arguments", "code"), [((), 2), (("--help",), 0)])
def test_usage(arguments, code):
    """Without what the BUILD file gives it says what it is for."""
    result = subprocess.run([sys.executable, FUZZER, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert "tools/bazel run //tools/fuzz:NAME" in result.stderr
