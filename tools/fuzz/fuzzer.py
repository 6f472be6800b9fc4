"""Fuzzes one target: `tools/bazel run //tools/fuzz:NAME -- [flags of libFuzzer] [inputs]`.

Without inputs it goes on until it finds something or is told to end (-max_total_time=SECONDS, Ctrl-C), and
keeps what it learns for the next time. An input is a file or a Python literal (b'...'), which is tried once.
-help=1 names all flags.
"""

import ast
import hashlib
import importlib
import os
import resource
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, ModuleType

import atheris

CORPUS = Path(__file__).with_name("corpus")
"""A folder of seeds for each target: small valid inputs of each kind, and all that was ever found."""

SECONDS = 1.0
"""CPU time that a target may take for an input of at most 4 KiB; most take less than a thousandth of it."""

MEGABYTES = 100
"""Memory that an input may cost, lazy imports included."""


class TooMuchError(BaseException):
    """An input costs too much; no Exception, which a parser may take for bad input."""


class Instrumented(MetaPathFinder):
    """Imports some modules with the counters that lead the fuzzer; atheris' own takes only packages."""

    def __init__(self, modules: Iterable[str]) -> None:
        self._modules = frozenset(modules)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to import a module, if it is one of these."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname in self._modules else None
        if spec and spec.origin:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType | None:
        code = super().get_code(fullname)
        return code and atheris.patch_code(code, trace_dataflow=True)


def bounded(fuzz: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Return a target that also fails at inputs that cost too much, wherever the time goes."""

    def stop(*_: object) -> None:
        raise TooMuchError(f"takes more than {SECONDS:g} s")

    signal.signal(signal.SIGVTALRM, stop)

    def run(data: bytes) -> None:
        before = _peak()
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            fuzz(data)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if (grown := _peak() - before) > MEGABYTES:
            raise TooMuchError(f"takes {grown} MB")

    return run


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def explained(name: str, fuzz: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Return a target that says, when it fails, how to see it again."""

    def run(data: bytes) -> None:
        try:
            fuzz(data)
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                print(how_to_replay(name, data), file=sys.stderr, flush=True)
            raise

    return run


def how_to_replay(name: str, data: bytes) -> str:
    """Return the input as a literal, and the commands that try it again and keep it."""
    literal, seed = repr(data), f"tools/fuzz/corpus/{name}/{hashlib.sha256(data).hexdigest()[:16]}"
    keep = f"import pathlib; pathlib.Path({seed!r}).write_bytes({literal})"
    return (
        f"fails with {literal}\n"
        f"try it again: tools/bazel run //tools/fuzz:{name} -- {shlex.quote(literal)}\n"
        f"keep it:      python3 -c {shlex.quote(keep)}"
    )


def load(target: str, parsers: Iterable[str]) -> Callable[[bytes], None]:
    """Return a target's function, with its parsers instrumented.

    Args:
        target: a module with a function fuzz(data).
        parsers: modules, or functions as `module:function`, whose modules are meant.

    """
    # What startswith and endswith look for leads too. The hook for regular expressions is left out: it puts
    # an object without half of their methods in the place of all patterns, those of json among them.
    atheris.enabled_hooks.add("str")
    sys.meta_path.insert(0, Instrumented(parser.partition(":")[0] for parser in parsers))
    fuzz: Callable[[bytes], None] = importlib.import_module(target).fuzz
    return explained(target.rpartition(".")[2], bounded(fuzz))


def main(target: str, parsers: str, *arguments: str) -> None:
    """Fuzz, or try the inputs among the arguments; end the process with libFuzzer's exit code."""
    fuzz = load(target, parsers.split(","))
    seeds, learnt = CORPUS / target.rpartition(".")[2], _cache() / target.rpartition(".")[2]
    # `bazel run` starts programs in a folder of its own and says where the user was.
    os.chdir(os.environ.get("BUILD_WORKING_DIRECTORY", "."))
    with TemporaryDirectory() as folder:
        inputs = [_file(argument, Path(folder)) for argument in arguments if not argument.startswith("-")]
        flags = [argument for argument in arguments if argument.startswith("-")]
        if not inputs:
            learnt.mkdir(parents=True, exist_ok=True)
            inputs = [str(learnt)]
            # Sorted: in which order a folder has them is up to the file system, and leads elsewhere.
            flags += ["-seed_inputs=" + ",".join(map(str, sorted(seeds.iterdir())))] if seeds.exists() else []
        # libFuzzer's own limit of time counts what other processes take of the CPU.
        atheris.Setup([sys.argv[0], "-timeout=86400", "-max_len=4096", *flags, *inputs], fuzz)
        atheris.Fuzz()


def _file(argument: str, folder: Path) -> str:
    """Return the file of an input."""
    if not argument.startswith(("b'", 'b"')):
        return argument
    file = folder / hashlib.sha256(argument.encode()).hexdigest()
    file.write_bytes(ast.literal_eval(argument))
    return str(file)


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "grpc-on-kubernetes" / "fuzz"


if __name__ == "__main__":
    if len(sys.argv) < 3 or "--help" in sys.argv:  # noqa: PLR2004 (what the BUILD file gives)
        print(__doc__, file=sys.stderr)
        sys.exit(0 if "--help" in sys.argv else 2)
    main(*sys.argv[1:])
