"""The `multitool` extension: programs of the Debian root, as toolchains.

The lockfile says which; its addresses are those that the real rules download from.
"""

_TOOLCHAINS_BUILD = """\
load("//:toolchain_info.bzl", "toolchain_info")

[
    (
        toolchain_info(
            name = name + "_info",
            executable = "//tools/" + name + ":executable",
        ),
        toolchain(
            name = name,
            toolchain = name + "_info",
            toolchain_type = "//tools/" + name + ":toolchain_type",
        ),
    )
    for name in {names}
]
"""

_TOOLCHAIN_INFO = """\
toolchain_info = rule(
    attrs = {"executable": attr.label(allow_single_file = True)},
    implementation = lambda ctx: [platform_common.ToolchainInfo(executable = ctx.file.executable)],
)
"""

_TOOL_BUILD = """\
load(":tool.bzl", "tool")

exports_files(["executable"])

toolchain_type(
    name = "toolchain_type",
    visibility = ["//:__subpackages__"],
)

tool(
    name = "{name}",
    visibility = ["//visibility:public"],
)
"""

_TOOL = """\
_TOOLCHAIN_TYPE = "//tools/{name}:toolchain_type"

def _tool_impl(ctx):
    output = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.symlink(output = output, target_file = ctx.toolchains[_TOOLCHAIN_TYPE].executable)
    return [DefaultInfo(executable = output)]

tool = rule(
    executable = True,
    implementation = _tool_impl,
    toolchains = [_TOOLCHAIN_TYPE],
)
"""

def _hub_impl(rctx):
    names = [name for lockfile in rctx.attr.lockfiles for name in json.decode(rctx.read(lockfile)) if name != "$schema"]
    for name in names:
        program = rctx.which(name)
        if not program:
            fail("no {0} on PATH; add it to tools/closed_network/packages.txt".format(name))
        folder = "tools/{0}/".format(name)
        rctx.symlink(program, folder + "executable")
        rctx.file(folder + "BUILD.bazel", _TOOL_BUILD.format(name = name))
        rctx.file(folder + "tool.bzl", _TOOL.format(name = name))
    rctx.file("BUILD.bazel")
    rctx.file("toolchain_info.bzl", _TOOLCHAIN_INFO)
    rctx.file("toolchains/BUILD.bazel", _TOOLCHAINS_BUILD.format(names = names))

_hub = repository_rule(
    implementation = _hub_impl,
    attrs = {"lockfiles": attr.label_list()},
)

def _multitool_impl(mctx):
    _hub(
        name = "multitool",
        lockfiles = [hub.lockfile for module in mctx.modules for hub in module.tags.hub],
    )

multitool = module_extension(
    implementation = _multitool_impl,
    tag_classes = {"hub": tag_class(attrs = {"lockfile": attr.label(mandatory = True)})},
)
