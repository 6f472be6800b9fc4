"""Imports structlog without rich, whose import takes longer than that of all of gRPC."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _hidden(*libraries: str) -> Iterator[None]:
    """Have optional libraries seem not installed, unless the program has imported them already."""
    names = [name for name in libraries if name not in sys.modules]
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None is Python's mark for it
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


# Our lines have plain tracebacks. A program that has structlog render them by rich imports rich first.
with _hidden("rich", "better_exceptions"):
    import structlog  # noqa: F401 (the import is what this module is for)
