"""image_sbom: the bill of materials of an image."""

def _impl(ctx):
    output = ctx.actions.declare_file(ctx.label.name + ".cdx.json")
    ctx.actions.run(
        executable = ctx.attr._sbom[DefaultInfo].files_to_run,
        arguments = [ctx.file.image.path, ctx.file.requirements_lock.path, output.path],
        # The image's folder may link to its layers, which then are runfiles.
        inputs = depset(
            [ctx.file.image, ctx.file.requirements_lock],
            transitive = [ctx.attr.image[DefaultInfo].default_runfiles.files],
        ),
        outputs = [output],
        mnemonic = "ImageSBOM",
        progress_message = "Writing the bill of materials %{label}",
    )
    return [DefaultInfo(
        files = depset([output]),
        runfiles = ctx.runfiles([output]),
    )]

image_sbom = rule(
    implementation = _impl,
    doc = "Writes NAME.cdx.json, in CycloneDX's format, of what is in an image of py_image's.",
    attrs = {
        "image": attr.label(
            allow_single_file = True,
            doc = "The image, a folder with an OCI layout.",
            mandatory = True,
        ),
        "requirements_lock": attr.label(
            allow_single_file = True,
            doc = "pip-compile's file, with the hashes of the packages.",
            mandatory = True,
        ),
        "_sbom": attr.label(cfg = "exec", default = "//tools/image:sbom", executable = True),
    },
)
