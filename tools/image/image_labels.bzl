"""image_labels: the labels of an image, with the version and the commit where Bazel stamps."""

# Keys of Bazel's workspace status, and the labels of the OCI specification that they fill.
_STAMPS = {
    "BUILD_EMBED_LABEL": "org.opencontainers.image.version",
    "STABLE_GIT_COMMIT": "org.opencontainers.image.revision",
}

def _impl(ctx):
    output = ctx.actions.declare_file(ctx.label.name + ".txt")
    lines = ["%s=%s\n" % label for label in sorted(ctx.attr.labels.items())]
    if not ctx.attr.stamp:
        ctx.actions.write(output, "".join(lines))
        return [DefaultInfo(files = depset([output]))]
    given = ctx.actions.declare_file(ctx.label.name + ".given.txt")
    ctx.actions.write(given, "".join(lines))
    args = ctx.actions.args()
    args.add_all([given, output, ctx.info_file])
    args.add_all(["s/^%s \\(..*\\)/%s=\\1/p" % stamp for stamp in _STAMPS.items()])
    ctx.actions.run_shell(
        command = 'cat "$1" >"$2" && sed -n -e "$4" -e "$5" "$3" >>"$2"',
        arguments = [args],
        inputs = [given, ctx.info_file],
        outputs = [output],
        mnemonic = "ImageLabels",
    )
    return [DefaultInfo(files = depset([output]))]

_image_labels = rule(
    implementation = _impl,
    attrs = {
        "labels": attr.string_dict(mandatory = True),
        "stamp": attr.bool(mandatory = True),
    },
)

def image_labels(name, labels, **kwargs):
    """Writes labels into a file, as oci_image takes them.

    Without --stamp they are what is given, so that a commit alone does not make another image. With
    it, `--embed_label=VERSION` adds the version, and the workspace status the commit.

    Args:
        name: the target's name.
        labels: names and values.
        **kwargs: what every rule takes.
    """
    _image_labels(
        name = name,
        labels = labels,
        stamp = select({
            Label("//tools/image:stamping"): True,
            "//conditions:default": False,
        }),
        **kwargs
    )
