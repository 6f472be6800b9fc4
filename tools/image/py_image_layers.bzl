"""py_image_layers: a py_binary as the layers of an image."""

load("@rules_python//python:py_info.bzl", "PyInfo")

# Where the layers go, and so how an image starts: no shell and no search of PATH, and Python
# without its own environment variables (-I) and without writing bytecode (-B).
_APPLICATION = "opt/application"
_PACKAGES = "opt/packages"
_PYTHON = "opt/python"
PY_ENTRYPOINT = ["/%s/bin/python3" % _PYTHON, "-I", "-B", "/" + _APPLICATION]

# OCI's names of the architectures that images may be for, and those of Bazel's constraints.
CPUS = {
    "amd64": "x86_64",
    "arm64": "aarch64",
}

_TOOLCHAIN = "@bazel_tools//tools/python:toolchain_type"

# What no service imports, so that the base need not hold the libraries that it links to:
# terminals, windows, old databases, pip, CPython's tests, and what is for linking to it.
_NOT_OF_PYTHON = [
    "bin/*",
    "include/*",
    "share/*",
    "lib/itcl*",
    "lib/lib*",
    "lib/pkgconfig/*",
    "lib/tcl*",
    "lib/thread*",
    "lib/tk*",
] + ["lib/python3.*/" + pattern for pattern in [
    "config-*",
    "ensurepip/*",
    "idlelib/*",
    "lib-dynload/*_test*",
    "lib-dynload/_curses*",
    "lib-dynload/_dbm*",
    "lib-dynload/_gdbm*",
    "lib-dynload/_tkinter*",
    "lib-dynload/*xx*",
    "lib-dynload/readline*",
    "site-packages/*",
    "test/*",
    "tkinter/*",
    "turtledemo/*",
]]

def _for_linux_impl(_settings, attr):
    return {"//command_line_option:platforms": str(Label("//tools/image:linux_" + attr.architecture))}

# Else the interpreter and the wheels would be those of the machine that builds, perhaps a Mac.
_for_linux = transition(
    implementation = _for_linux_impl,
    inputs = [],
    outputs = ["//command_line_option:platforms"],
)

def _runfiles_path(path, workspace):
    return path.removeprefix("../") if path.startswith("../") else workspace + "/" + path

def _pair(file):
    # All that is in this repository is below a name of its own, as in runfiles.
    return _runfiles_path(file.short_path, "_main") + "=" + file.path

def _sorted_by_layer(ctx, runtime):
    """Sorts the binary's files into (packages, application); the interpreter's are known."""
    imports = ctx.attr.binary[PyInfo].imports.to_list()
    repositories = {root.split("/")[0]: None for root in imports if root.endswith("/site-packages")}
    interpreter = {file: None for file in runtime.files.to_list()}
    packages, application = [], []
    for file in ctx.attr.binary[DefaultInfo].default_runfiles.files.to_list():
        if _runfiles_path(file.short_path, "_main").split("/")[0] in repositories:
            packages.append(file)
        elif file not in interpreter and (file.is_source or file.owner != ctx.attr.binary.label):
            # What the binary makes itself is its launcher.
            application.append(file)
    return packages, application

def _write(ctx, name, files, roots, arguments, others = []):
    output = ctx.actions.declare_file("%s.%s.tar.gz" % (ctx.label.name, name))
    args = ctx.actions.args()
    args.use_param_file("@%s", use_always = True)
    args.set_param_file_format("multiline")
    args.add(output, format = "--output=%s")
    args.add("--platform=linux/" + ctx.attr.architecture)
    args.add_all(roots, format_each = "--root=%s")
    args.add_all(arguments)
    args.add_all(files, map_each = _pair)
    ctx.actions.run(
        executable = ctx.attr._layer[DefaultInfo].files_to_run,
        arguments = [args],
        inputs = depset(others, transitive = [files]),
        outputs = [output],
        # The order of sets must not be another one each time. Bytecode shares constants with modules
        # that are loaded, differently if those come from bytecode themselves: so none do.
        env = {
            "PYTHONHASHSEED": "0",
            "PYTHONPYCACHEPREFIX": "/dev/null/none",
        },
        mnemonic = "PyImageLayer",
        progress_message = "Writing the layer %s of %%{label}" % name,
    )
    return output

def _impl(ctx):
    runtime = ctx.toolchains[_TOOLCHAIN].py3_runtime
    packages, application = _sorted_by_layer(ctx, runtime)
    imports = ctx.attr.binary[PyInfo].imports.to_list()
    label = ctx.attr.binary.label
    home = _runfiles_path(runtime.interpreter.short_path, "_main").rsplit("/", 2)[0]
    module = ".".join([part for part in [label.package.replace("/", "."), label.name] if part])
    layers = [
        _write(
            ctx,
            "interpreter",
            runtime.files,
            [home],
            ["--prefix=" + _PYTHON, "--executable=python3=" + runtime.interpreter.path] +
            ["--leave-out=" + pattern for pattern in _NOT_OF_PYTHON],
            [runtime.interpreter],
        ),
        _write(
            ctx,
            "packages",
            depset(packages),
            [root for root in imports if root.endswith("/site-packages")],
            # Who unpacked the wheels; not always in their RECORD.
            ["--prefix=" + _PACKAGES, "--leave-out=*.dist-info/INSTALLER"],
        ),
        _write(
            ctx,
            "application",
            depset(application),
            # Every repository is on the path of a py_binary.
            imports + {_pair(file).split("/")[0]: None for file in application}.keys(),
            ["--prefix=" + _APPLICATION, "--packages=/" + _PACKAGES, "--start=" + module],
        ),
    ]
    return [DefaultInfo(files = depset(layers, order = "preorder"))]

py_image_layers = rule(
    implementation = _impl,
    cfg = _for_linux,
    doc = """Makes three layers of a py_binary, those first that change least: interpreter, packages, application.

They are for Linux, on whatever machine they are built; a file for another platform is refused.

The same files make the same bytes. An image with them starts with PY_ENTRYPOINT. Each file is
placed below the folder of the Python path that it is imported from, so the path has two entries.""",
    attrs = {
        "architecture": attr.string(
            doc = "OCI's name of it.",
            mandatory = True,
            values = CPUS.keys(),
        ),
        "binary": attr.label(
            doc = "A py_binary that is called as its main file.",
            mandatory = True,
            providers = [PyInfo],
        ),
        "_allowlist_function_transition": attr.label(
            default = "@bazel_tools//tools/allowlists/function_transition_allowlist",
        ),
        "_layer": attr.label(cfg = "exec", default = "//tools/image:layer", executable = True),
    },
    toolchains = [_TOOLCHAIN],
)
