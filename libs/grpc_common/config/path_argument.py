"""Files and folders on a command line."""

import os
from pathlib import Path
from typing import Any, override

import click


class PathArgument(click.Path):
    """A path as whoever types it sees it, also under `bazel run`.

    That starts a program in a folder of its own, and says in BUILD_WORKING_DIRECTORY where the user was
    (https://bazel.build/docs/user-manual#running-executables).
    """

    def __init__(self, **checks: bool) -> None:
        super().__init__(path_type=Path, **checks)

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seen_from = Path(os.environ.get("BUILD_WORKING_DIRECTORY", ""))
        return super().convert(seen_from / value, param, ctx)
