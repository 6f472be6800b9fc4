import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PIN = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)


def test_lock_holds_what_is_asked_for():
    """Every line of requirements.in has a pin in the lock that satisfies it."""
    locked = {canonicalize_name(n): v for n, v in PIN.findall(Path("requirements_lock.txt").read_text())}
    asked = [
        Requirement(line)
        for line in Path("requirements.in").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert asked
    stale = [str(a) for a in asked if locked.get(canonicalize_name(a.name), "") not in a.specifier]
    assert not stale, "run: tools/bazel run //:requirements.update"


def test_lock_is_hashed():
    """No pin of the lock is without a hash, or pip would take what the index sends."""
    lock = Path("requirements_lock.txt").read_text().replace("\\\n", " ")
    assert [line for line in lock.splitlines() if PIN.match(line) and "--hash=sha256:" not in line] == []
