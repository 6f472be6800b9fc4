"""oci_push: an image sent to a registry."""

load("//oci/private:launcher.bzl", "launcher")

def _impl(ctx):
    data = [ctx.file.image] + ctx.files.remote_tags_file + ctx.files.repository_file
    arguments = [ctx.file.image.short_path]
    if ctx.attr.repository:
        arguments.append("--repository=" + ctx.attr.repository)
    arguments += ["--repository-file=" + file.short_path for file in ctx.files.repository_file]
    arguments += ["--tag=" + tag for tag in ctx.attr.remote_tags]
    arguments += ["--tags-file=" + file.short_path for file in ctx.files.remote_tags_file]
    return launcher(ctx, "push_%s.sh" % ctx.label.name, ctx.attr._push, arguments, data)

oci_push_rule = rule(
    implementation = _impl,
    attrs = {
        "image": attr.label(allow_single_file = True, mandatory = True),
        "remote_tags": attr.string_list(),
        "remote_tags_file": attr.label(allow_single_file = True),
        "repository": attr.string(),
        "repository_file": attr.label(allow_single_file = True),
        "_push": attr.label(default = "//oci/private:push"),
    },
    executable = True,
)
