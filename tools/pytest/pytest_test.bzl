"""pytest_test: a py_test whose sources are run by pytest."""

load("@rules_python//python:py_test.bzl", "py_test")

def pytest_test(name, srcs, deps = [], **kwargs):
    """Runs pytest on `srcs`; each of them must hold a test. Coroutines are tests too.

    `bazel test --test_filter=EXPRESSION` is pytest's `-k EXPRESSION`.

    Args:
        name: the target's name.
        srcs: the test files.
        deps: what they import, besides pytest.
        **kwargs: anything else that py_test takes.
    """
    runner = Label("//tools/pytest:pytest_runner.py")
    py_test(
        name = name,
        srcs = srcs + [runner],
        main = runner,
        args = ["$(rootpath %s)" % src for src in srcs],
        deps = deps + [
            Label("@pip//pytest"),
            Label("@pip//pytest_asyncio"),
        ],
        **kwargs
    )
