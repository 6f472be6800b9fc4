"""fuzz_test: a parser that is given what nobody would write, led by what of it is executed."""

load("@rules_python//python:py_binary.bzl", "py_binary")
load("//tools/pytest:pytest_test.bzl", "pytest_test")

# Of no other does atheris have wheels.
PLATFORM = [
    "@platforms//cpu:x86_64",
    "@platforms//os:linux",
]

def fuzz_test(name, parsers, deps, runs = 5000):
    """Makes NAME, which fuzzes until it is told to end, and NAME_test, which tries some inputs.

    The target is targets/NAME.py, with a function `fuzz(data: bytes) -> None` that fails at a bug; its seeds are the
    files in corpus/NAME.

    Args:
        name: the target's name.
        parsers: what is fuzzed: modules, which lead the fuzzer. The seeds must execute most of each, or of its one
            function if it is written as module:function.
        deps: what the target imports.
        runs: how many inputs NAME_test tries; about a second's.
    """
    target = "tools.fuzz.targets." + name
    deps = deps + ["@pip//atheris"]
    py_binary(
        name = name,
        testonly = True,
        srcs = [
            "fuzzer.py",
            "targets/%s.py" % name,
        ],
        args = [
            target,
            ",".join(parsers),
        ],
        data = native.glob(["corpus/%s/**" % name]),
        main = "fuzzer.py",
        target_compatible_with = PLATFORM,
        deps = deps,
    )
    pytest_test(
        name = name + "_test",
        size = "medium",
        srcs = ["target_test.py"],
        env = {
            "FUZZ_PARSERS": ",".join(parsers),
            "FUZZ_RUNS": str(runs),
            "FUZZ_TARGET": target,
        },
        target_compatible_with = PLATFORM,
        deps = [":" + name],
    )
