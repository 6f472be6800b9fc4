"""The `python` extension: a copy of the Debian root's interpreter, as a toolchain.

A copy, so that the interpreter is in the runfiles of every binary, as it is with the
interpreters that the real rules_python downloads.
"""

_COPY = Label("//python/extensions:copy_interpreter.py")

_INTERPRETER_BUILD = """\
filegroup(
    name = "files",
    srcs = glob(["bin/**", "lib/**"]),
)

py_runtime(
    name = "runtime",
    files = [":files"],
    interpreter = "bin/python{version}",
    python_version = "PY3",
    visibility = ["//visibility:public"],
)
"""

_HUB_BUILD = """\
load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")

py_runtime_pair(
    name = "runtime_pair",
    py3_runtime = "@@{interpreter}//:runtime",
)

toolchain(
    name = "toolchain",
    toolchain = ":runtime_pair",
    toolchain_type = "@bazel_tools//tools/python:toolchain_type",
)
"""

def _interpreter_impl(rctx):
    version = rctx.attr.python_version
    python = rctx.which("python" + version)
    if not python:
        fail("no python{0} on PATH; add it to tools/closed_network/packages.txt".format(version))
    result = rctx.execute([python, "-I", rctx.path(_COPY), str(rctx.path("."))])
    if result.return_code:
        fail("copying {0} failed: {1}".format(python, result.stderr))
    rctx.file("BUILD.bazel", _INTERPRETER_BUILD.format(version = version))

_interpreter = repository_rule(
    implementation = _interpreter_impl,
    attrs = {"python_version": attr.string(mandatory = True)},
    # enter.sh sets it: another root has another interpreter.
    environ = ["CLOSED_NETWORK_ROOT"],
)

def _hub_impl(rctx):
    rctx.file("BUILD.bazel", _HUB_BUILD.format(interpreter = rctx.attr.interpreter.repo_name))

_hub = repository_rule(
    implementation = _hub_impl,
    attrs = {"interpreter": attr.label(mandatory = True)},
)

def _python_impl(mctx):
    # The root module comes first, and as with the real rules its choice holds.
    toolchains = [module.tags.toolchain for module in mctx.modules if module.tags.toolchain][0]
    if len(toolchains) != 1:
        fail("this stand-in has one interpreter; python.toolchain was called {0} times".format(len(toolchains)))
    _interpreter(name = "interpreter", python_version = toolchains[0].python_version)
    _hub(name = "pythons_hub", interpreter = "@interpreter//:BUILD.bazel")

python = module_extension(
    implementation = _python_impl,
    tag_classes = {
        # What it is about is not downloaded here.
        "single_version_platform_override": tag_class(attrs = {
            "platform": attr.string(mandatory = True),
            "python_version": attr.string(mandatory = True),
            "sha256": attr.string(),
            "urls": attr.string_list(),
        }),
        "toolchain": tag_class(attrs = {
            "is_default": attr.bool(),
            "python_version": attr.string(mandatory = True),
        }),
    },
)
