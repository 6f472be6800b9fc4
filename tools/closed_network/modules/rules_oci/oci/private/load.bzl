"""oci_load: an image brought to the machine's container engine."""

load("//oci/private:launcher.bzl", "launcher")

def _impl(ctx):
    data = [ctx.file.image] + ctx.files.repo_tags_file
    arguments = [ctx.file.image.short_path, "--format=" + ctx.attr.format]
    arguments += ["--tag=" + tag for tag in ctx.attr.repo_tags]
    arguments += ["--tags-file=" + file.short_path for file in ctx.files.repo_tags_file]
    return launcher(ctx, ctx.label.name + ".sh", ctx.attr._load, arguments, data)

oci_load_rule = rule(
    implementation = _impl,
    attrs = {
        "format": attr.string(default = "docker", values = ["docker", "oci"]),
        "image": attr.label(allow_single_file = True, mandatory = True),
        "repo_tags": attr.string_list(),
        "repo_tags_file": attr.label(allow_single_file = True),
        "_load": attr.label(default = "//oci/private:load"),
    },
    executable = True,
)
