"""Locks requirements.in and tools/bench/peers.in, with hashes, through the machine's pip settings.

What is locked stays as it is while it fits. Arguments go to pip-compile: `--upgrade` takes the
newest version of all, `--upgrade-package NAME` of one.
"""

import os
import sys

from piptools.scripts.compile import cli

OPTIONS = [
    "--allow-unsafe",
    "--generate-hashes",
    "--quiet",
    "--strip-extras",
    # The lock must not name a machine's own index or folders.
    "--no-emit-find-links",
    "--no-emit-index-url",
    "--no-emit-trusted-host",
]

LOCKS = {
    "requirements.in": "requirements_lock.txt",
    "tools/bench/peers.in": "tools/bench/peers_lock.txt",
}

if __name__ == "__main__":
    os.chdir(os.environ["BUILD_WORKSPACE_DIRECTORY"])
    # pip-compile starts pip in a process of its own, which has to find it.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    os.environ["CUSTOM_COMPILE_COMMAND"] = "tools/bazel run //:requirements.update"
    print("Asking the package index; this takes about a minute.", file=sys.stderr, flush=True)
    for asked, lock in LOCKS.items():
        cli([*OPTIONS, *sys.argv[1:], f"--output-file={lock}", asked], standalone_mode=False)
