"""for_a_mac: a target's file, as a Mac would build it."""

def _settings(_settings, _attr):
    return {"//command_line_option:platforms": str(Label("//tests/image:mac"))}

_mac = transition(
    implementation = _settings,
    inputs = [],
    outputs = ["//command_line_option:platforms"],
)

def _impl(ctx):
    output = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.symlink(output = output, target_file = ctx.file.target)
    return [DefaultInfo(files = depset([output]))]

for_a_mac = rule(
    implementation = _impl,
    attrs = {
        "target": attr.label(
            allow_single_file = True,
            cfg = _mac,
            mandatory = True,
        ),
        "_allowlist_function_transition": attr.label(
            default = "@bazel_tools//tools/allowlists/function_transition_allowlist",
        ),
    },
)
