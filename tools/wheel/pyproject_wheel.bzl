"""pyproject_wheel: the wheel that a pyproject.toml describes, as pip would build it."""

def _pyproject_wheel_impl(ctx):
    # A folder, since the wheel's name has the version, which stands in the pyproject.toml.
    output = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run(
        executable = ctx.attr._build_wheel[DefaultInfo].files_to_run,
        arguments = [ctx.file.pyproject.path, output.path],
        inputs = ctx.files.srcs + [ctx.file.pyproject],
        outputs = [output],
        mnemonic = "PyWheel",
        progress_message = "Building the wheel %{label}",
    )
    return [DefaultInfo(
        files = depset([output]),
        runfiles = ctx.runfiles([output]),
    )]

pyproject_wheel = rule(
    implementation = _pyproject_wheel_impl,
    doc = "Makes a folder of the target's name, with the wheel in it.",
    attrs = {
        "pyproject": attr.label(
            allow_single_file = ["pyproject.toml"],
            doc = "A pyproject.toml whose build backend is hatchling.",
            mandatory = True,
        ),
        "srcs": attr.label_list(
            allow_files = True,
            doc = "What the wheel is made of; the pyproject.toml says what of it goes where.",
            mandatory = True,
        ),
        "_build_wheel": attr.label(
            cfg = "exec",
            default = "//tools/wheel:build_wheel",
            executable = True,
        ),
    },
)
