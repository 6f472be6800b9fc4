"""pytest_test: a py_test whose sources are run by pytest."""

load("@rules_python//python:py_test.bzl", "py_test")

# A result of these is true on one machine: it depends on programs that Bazel does not see.
_OF_THE_MACHINE = ["external", "no-cache"]

def pytest_test(name, srcs, deps = [], env = {}, tags = [], **kwargs):
    """Runs pytest on `srcs`; each of them must hold a test. Coroutines are tests too.

    `bazel test --test_filter=EXPRESSION` is pytest's `-k EXPRESSION`. A test may be skipped only with the tag "no-cache",
    or "external", since whether it is depends on the machine; with REQUIRE_ALL=1 none may be.

    Args:
        name: the target's name.
        srcs: the test files.
        deps: what they import, besides pytest.
        env: the variables that they get.
        tags: Bazel's tags; "no-cache" keeps shared caches from answering for a machine that has other programs.
        **kwargs: anything else that py_test takes.
    """
    runner = Label("//tools/pytest:pytest_runner.py")
    py_test(
        name = name,
        srcs = srcs + [runner],
        main = runner,
        args = ["$(rootpath %s)" % src for src in srcs],
        env = env | {"PYTEST_MAY_SKIP": "1" if [tag for tag in tags if tag in _OF_THE_MACHINE] else "0"},
        tags = tags,
        deps = deps + [
            Label("@pip//pytest"),
            Label("@pip//pytest_asyncio"),
        ],
        **kwargs
    )
