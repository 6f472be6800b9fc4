"""What kubectl is asked, and how often."""

from pathlib import Path

import pytest

from tools.kubernetes.deploy.kubectl import Kubectl


@pytest.fixture
def counting(tmp_path: Path) -> Kubectl:
    """Return a program in kubectl's place that answers with how often it was started."""
    program = tmp_path / "kubectl"
    program.write_text(f"#!/bin/sh\necho >>{tmp_path}/started\nwc -l <{tmp_path}/started\n")
    program.chmod(0o755)
    return Kubectl(program, None)


def answers(kubectl: Kubectl, *commands: str) -> list[int]:
    """Return what the commands, of which each has one word and the name `a`, are answered."""
    return [int(kubectl.read(command, "a")) for command in commands]


def test_a_look_asks_nothing_twice(counting: Kubectl) -> None:
    """What was shown is what is rehearsed; whatever is no question is run each time."""
    look = counting.remembering()
    assert answers(look, "get", "get", "diff", "diff", "get") == [1, 1, 2, 3, 1]
    assert look.read("get", "b").strip() == "4"


def test_what_waits_asks_each_time(counting: Kubectl) -> None:
    """Also where it goes on from a look."""
    assert answers(counting, "get", "get") == [1, 2]
    look = counting.remembering()
    assert answers(look, "get") == [3]
    assert answers(look.afresh(), "get", "get") == [4, 5]
