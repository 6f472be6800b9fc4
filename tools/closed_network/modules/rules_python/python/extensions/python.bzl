"""The `python` extension: a copy of the Debian root's interpreter for each architecture, as toolchains.

A copy, so that the interpreter is in the runfiles of every binary, as it is with the
interpreters that the real rules_python downloads.
"""

load("//python:architectures.bzl", "CPUS", "ROOT", "native_architecture", "tree_of")

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

_HUB_LOAD = 'load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")\n'

_HUB_BUILD = """
py_runtime_pair(
    name = "{architecture}_runtime_pair",
    py3_runtime = "@@{interpreter}//:runtime",
)

toolchain(
    name = "{architecture}",
    target_compatible_with = ["@platforms//cpu:{cpu}"],
    toolchain = ":{architecture}_runtime_pair",
    toolchain_type = "@bazel_tools//tools/python:toolchain_type",
)
"""

# For the platforms that the root has no compiler for: linux on the other architecture, and a Mac, which
# only analyses may be for.
_NO_CC_BUILD = """
toolchain(
    name = "no_cc_{name}",
    target_compatible_with = {constraints},
    toolchain = "@rules_python//python/private:no_cc",
    toolchain_type = "@bazel_tools//tools/cpp:toolchain_type",
)
"""

def _no_cc(rctx):
    others = [cpu for architecture, cpu in CPUS.items() if architecture != native_architecture(rctx)]
    platforms = {cpu: ["@platforms//os:linux", "@platforms//cpu:" + cpu] for cpu in others}
    platforms["mac"] = ["@platforms//os:macos"]
    return [
        _NO_CC_BUILD.format(name = name, constraints = json.encode(constraints))
        for name, constraints in platforms.items()
    ]

def _interpreter_impl(rctx):
    version = rctx.attr.python_version
    python = rctx.which("python" + version)
    if not python:
        fail("no python{0} on PATH; add it to tools/closed_network/packages.txt".format(version))
    tree = tree_of(rctx, rctx.attr.architecture)
    result = rctx.execute([python, "-I", rctx.path(_COPY), tree, str(rctx.path("."))])
    if result.return_code:
        fail("copying Python of {0} failed: {1}".format(tree, result.stderr))
    rctx.file("BUILD.bazel", _INTERPRETER_BUILD.format(version = version))

_interpreter = repository_rule(
    implementation = _interpreter_impl,
    attrs = {
        "architecture": attr.string(mandatory = True),
        "python_version": attr.string(mandatory = True),
    },
    # Another root has another interpreter.
    environ = [ROOT],
)

def _hub_impl(rctx):
    toolchains = [
        _HUB_BUILD.format(architecture = architecture, cpu = CPUS[architecture], interpreter = interpreter.repo_name)
        for interpreter, architecture in rctx.attr.interpreters.items()
    ]
    rctx.file("BUILD.bazel", _HUB_LOAD + "".join(toolchains + _no_cc(rctx)))

_hub = repository_rule(
    implementation = _hub_impl,
    attrs = {"interpreters": attr.label_keyed_string_dict(mandatory = True)},
)

def _python_impl(mctx):
    # The root module comes first, and as with the real rules its choice holds.
    toolchains = [module.tags.toolchain for module in mctx.modules if module.tags.toolchain][0]
    if len(toolchains) != 1:
        fail("this stand-in has one version of Python; python.toolchain was called {0} times".format(len(toolchains)))
    interpreters = {architecture: "interpreter_" + architecture for architecture in CPUS}
    for architecture, name in interpreters.items():
        _interpreter(
            name = name,
            architecture = architecture,
            python_version = toolchains[0].python_version,
        )
    _hub(
        name = "pythons_hub",
        interpreters = {"@%s//:BUILD.bazel" % name: architecture for architecture, name in interpreters.items()},
    )

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
