"""Images and indexes of images, each a folder with an OCI layout."""

_LAYERS = [".tar", ".tgz", ".tar.gz", ".tzst", ".tar.zst"]

_LAYOUT_TOOL = {
    "_layout": attr.label(cfg = "exec", default = "//oci/private:layout", executable = True),
}

def _write_layout(ctx, arguments, inputs):
    layout = ctx.actions.declare_directory(ctx.label.name)
    digest = ctx.actions.declare_file(ctx.label.name + ".json.sha256")
    args = ctx.actions.args()
    args.add(layout.path)
    args.add(digest)
    ctx.actions.run(
        executable = ctx.executable._layout,
        arguments = [args, arguments],
        inputs = inputs,
        outputs = [layout, digest],
        mnemonic = "OCILayout",
        progress_message = "Writing OCI layout %{label}",
    )
    return [DefaultInfo(files = depset([layout])), OutputGroupInfo(digest = depset([digest]))]

def _config(attr):
    runtime = {
        "Cmd": attr.cmd,
        "Entrypoint": attr.entrypoint,
        "ExposedPorts": {port: {} for port in attr.exposed_ports},
        "Labels": attr.labels,
        "User": attr.user,
        "Volumes": {path: {} for path in attr.volumes},
        "WorkingDir": attr.workdir,
    }
    platform = {"architecture": attr.architecture, "os": attr.os, "variant": attr.variant}
    given = {key: value for key, value in platform.items() if value}
    return given | {"config": {key: value for key, value in runtime.items() if value}}

def _image_impl(ctx):
    attr = ctx.attr
    if attr.base and (attr.os or attr.architecture or attr.variant):
        fail("%s: 'base' has a platform; leave out 'os', 'architecture' and 'variant'" % ctx.label)
    if not attr.base and not (attr.os and attr.architecture):
        fail("%s: without 'base', 'os' and 'architecture' are needed" % ctx.label)
    settings = ctx.actions.declare_file(ctx.label.name + ".settings.json")
    ctx.actions.write(settings, json.encode({
        "annotations": ctx.attr.annotations,
        "config": _config(ctx.attr),
        "env": ctx.attr.env,
    }))
    inputs = ctx.files.tars + [settings]
    args = ctx.actions.args()
    args.add("image")
    args.add("--settings", settings)
    if ctx.attr.base:
        args.add("--base", ctx.file.base.path)
        inputs.append(ctx.file.base)
    if ctx.attr.created:
        args.add("--created", ctx.file.created)
        inputs.append(ctx.file.created)
    if ctx.attr.labels_file:
        args.add("--labels-file", ctx.file.labels_file)
        inputs.append(ctx.file.labels_file)
    args.add_all(ctx.files.tars)
    return _write_layout(ctx, args, inputs)

oci_image_rule = rule(
    implementation = _image_impl,
    attrs = _LAYOUT_TOOL | {
        "annotations": attr.string_dict(),
        "architecture": attr.string(),
        "base": attr.label(allow_single_file = True),
        "cmd": attr.string_list(),
        "created": attr.label(allow_single_file = True),
        "entrypoint": attr.string_list(),
        "env": attr.string_dict(),
        "exposed_ports": attr.string_list(),
        "labels": attr.string_dict(),
        "labels_file": attr.label(allow_single_file = True),
        "os": attr.string(),
        "tars": attr.label_list(allow_files = _LAYERS),
        "user": attr.string(),
        "variant": attr.string(),
        "volumes": attr.string_list(),
        "workdir": attr.string(),
    },
)

def _index_impl(ctx):
    args = ctx.actions.args()
    args.add("index")
    args.add_all([image.path for image in ctx.files.images])
    return _write_layout(ctx, args, ctx.files.images)

oci_image_index_rule = rule(
    implementation = _index_impl,
    attrs = _LAYOUT_TOOL | {"images": attr.label_list(allow_empty = False, mandatory = True)},
)
