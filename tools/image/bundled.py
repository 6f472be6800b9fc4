"""What is inside of wheels and the interpreter but is no package of its own: libraries that they bundle.

Three things tell of them: the bills of materials that a wheel has itself (PEP 770), the libraries that
auditwheel puts beside a package, and the texts that some libraries leave in whatever they are linked into.
A library that leaves none, as libffi and upb, can't be known.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from tools.image.machines import platform_of

_OWN_BILL = re.compile(r"opt/packages/[^/]+\.dist-info/sboms/[^/]+\.json")
_GRAFTED = re.compile(
    r"opt/packages/[^/]+\.libs/(?P<name>[^/]+?)(?:-[0-9a-f]{8,})?\.so(?:\.(?P<version>[\d.]+))?"
)


@dataclass(frozen=True)
class Bundled:
    """A library that is a part of something else."""

    name: str
    version: str | None
    """None if it can't be known."""
    license: str | None
    purl: str
    path: str
    """The file that has it, or tells of it."""


@dataclass(frozen=True)
class Trace:
    """What a library leaves in the file that it is linked into."""

    name: str
    license: str
    pattern: re.Pattern[bytes]
    """Its group is the version, if it has one."""
    files: str = "*"
    """A pattern of paths, for texts that others could have, too."""


TRACES = [
    Trace("abseil-cpp", "Apache-2.0", re.compile(rb"absl\d+lts_(\d{8})")),
    Trace("boringssl", "Apache-2.0", re.compile(rb"BoringSSL")),
    Trace("c-ares", "MIT", re.compile(rb"\0(1\.\d+\.\d+)\0"), "*/_cares.*"),
    Trace("expat", "MIT", re.compile(rb"expat_(\d[\d.]+)\0")),
    Trace("libyaml", "MIT", re.compile(rb"\0(0\.\d+\.\d+)\0"), "*/_yaml.*"),
    Trace("openssl", "Apache-2.0", re.compile(rb"OpenSSL (\d+\.\d+\.\d+) +\d+ \w+ \d{4}\0")),
    Trace("re2", "BSD-3-Clause", re.compile(rb"N3re2\d")),
    Trace("sqlite", "blessing", re.compile(rb"SQLite format 3\0")),
    Trace("zlib", "Zlib", re.compile(rb" (?:de|in)flate (\d[\d.]+) Copyright")),
]


def bundled(files: dict[str, bytes]) -> Iterator[Bundled]:
    """Yield the libraries that are bundled in what one component consists of.

    Args:
        files: its files, by their path in the image.

    """
    told = [part for path, content in files.items() for part in _told(path, content)]
    yield from told
    names = {part.name for part in told}
    for path, content in files.items():
        if platform_of(content):
            yield from (part for part in _traced(path, content) if part.name not in names)


def _told(path: str, content: bytes) -> Iterator[Bundled]:
    if _OWN_BILL.fullmatch(path):
        yield from _of_own_bill(path, json.loads(content))
    elif match := _GRAFTED.fullmatch(path):
        yield _bundled(path, match["name"], match["version"], None)


def _of_own_bill(path: str, bill: dict[str, Any]) -> Iterator[Bundled]:
    # Another format, SPDX for one, has no list of this name.
    for part in bill.get("components", []):
        licenses = [_license(choice) for choice in part.get("licenses", [])]
        text = next(filter(None, licenses), None)
        yield Bundled(part["name"], part.get("version"), text, part.get("purl", ""), path)


def _license(choice: dict[str, Any]) -> str | None:
    text = choice.get("expression") or choice.get("license", {}).get("id")
    return str(text) if text else None


def _traced(path: str, content: bytes) -> Iterator[Bundled]:
    for trace in TRACES:
        if fnmatch(path, trace.files) and (match := trace.pattern.search(content)):
            version = match[1].decode() if trace.pattern.groups else None
            yield _bundled(path, trace.name, version, trace.license)


def _bundled(path: str, name: str, version: str | None, text: str | None) -> Bundled:
    suffix = f"@{version}" if version else ""
    return Bundled(name, version, text, f"pkg:generic/{name}{suffix}", path)
