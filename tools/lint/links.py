"""Checks the documents: a link within the repository leads to a file of it, and an anchor to a heading.

It reads the work tree: the .md files that git knows or would add.
"""

import posixpath
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

_LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_CODE = re.compile(r"`[^`]*`")
_FENCE = re.compile(r"^ {0,3}```.*?^ {0,3}```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} +(.+?)[ #]*$", re.MULTILINE)


def main() -> int:
    """Print what is wrong, a line each, and return 1 if anything is."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.splitlines()
    mistakes = [*broken_links(Path(), [name for name in names if Path(name).exists()])]
    print("\n".join(mistakes), end="\n" if mistakes else "")
    return 1 if mistakes else 0


def broken_links(root: Path, names: Collection[str]) -> Iterator[str]:
    """Yield `FILE:LINE: LINK: what is wrong` for the documents among `names`, the files of the repository.

    Names are relative to `root`, with slashes.
    """
    texts = {name: _without_fences((root / name).read_text()) for name in names if name.endswith(".md")}
    anchors = {name: _anchors(text) for name, text in texts.items()}
    places = {place for name in names for place in (name, *map(str, Path(name).parents))}
    for name, text in texts.items():
        for number, line in enumerate(text.splitlines(), start=1):
            for link in _LINK.findall(_CODE.sub("", line)):
                if reason := _mistake(name, link, places, anchors):
                    yield f"{name}:{number}: {link}: {reason}"


def _mistake(name: str, link: str, places: set[str], anchors: dict[str, set[str]]) -> str:
    if _ELSEWHERE.match(link):
        return ""
    path, _, anchor = link.partition("#")
    place = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
    if place not in places:
        return "there is no such file in the repository"
    if anchor and place in anchors and anchor not in anchors[place]:
        return f"{place} has no such heading"
    return ""


def _anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives headings; the second of a name gets -1, the third -2."""
    found: set[str] = set()
    seen: dict[str, int] = {}
    for heading in _HEADING.findall(text):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if anchor in seen else anchor)
        seen[anchor] = seen.get(anchor, 0) + 1
    return found


def _without_fences(text: str) -> str:
    """Return a document in which fenced code is empty lines: what looks like a link there is none."""
    return _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)


if __name__ == "__main__":
    sys.exit(main())
