"""Programs in Go that stand beside ours, where there is a Go to build them with."""

import os
import shutil
import subprocess
from pathlib import Path


def built(folder: Path, name: str) -> Path:
    """Build the program of a folder with a go.mod, which takes a second when nothing has changed; return it.

    Args:
        folder: where its sources are.
        name: what the program is called, in the user's cache.

    Raises:
        RuntimeError: there is no Go here, or it can't build the program; the text says why.

    """
    go = shutil.which("go")
    if go is None:
        raise RuntimeError("no Go here: go is not on PATH")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    program = Path(cache, "grpc-on-kubernetes", name)
    settings = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    ended = subprocess.run(
        [go, "build", "-trimpath", f"-o={program}", "."],
        cwd=folder,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise RuntimeError(f"no {name} here: go build: {ended.stderr.strip()[-300:]}")
    return program
