"""Rendering Kustomize overlays."""

StringFlagInfo = provider("What a flag was given.", fields = ["value"])

string_flag = rule(
    doc = "A flag with a text, --//package:name=TEXT; $(NAME) in the args of targets that have it in `toolchains`.",
    implementation = lambda ctx: [
        StringFlagInfo(value = ctx.build_setting_value),
        platform_common.TemplateVariableInfo({ctx.label.name.upper(): ctx.build_setting_value}),
    ],
    build_setting = config.string(flag = True),
)

# Kustomize follows the sandbox's links and would find the files outside its root. In the words
# that POSIX has: a Mac's cp knows no --parents.
_COMMAND = """
set -eu
kustomize=$PWD/$1 overlay=$2 output=$3
shift 3
copy=$(mktemp -d)
trap 'rm -r "$copy"' EXIT
for file; do
    mkdir -p "$copy/${file%/*}"
    cat "$file" >"$copy/$file"
done
edit() { (cd "$copy/$overlay" && "$kustomize" edit set "$@"); }
{edits}
"$kustomize" build "$copy/$overlay" >"$output"
"""

def _kustomize_build_impl(ctx):
    output = ctx.actions.declare_file(ctx.label.name + ".yaml")
    ctx.actions.run_shell(
        inputs = ctx.files.srcs + ctx.files.images,
        outputs = [output],
        tools = [ctx.executable._kustomize],
        arguments = [
            ctx.executable._kustomize.path,
            ctx.label.package + "/" + ctx.attr.overlay,
            output.path,
        ] + [file.path for file in ctx.files.srcs],
        command = _COMMAND.replace("{edits}", "\n".join(_edits(ctx))),
        mnemonic = "Kustomize",
        progress_message = "Rendering %{label}",
    )
    return [DefaultInfo(files = depset([output]))]

def _edits(ctx):
    """Returns `kustomize edit set` commands for what differs from the files."""
    repository = ctx.attr._repository[StringFlagInfo].value or "*"
    namespace = ctx.attr._namespace[StringFlagInfo].value
    edits = [
        "edit image \"{0}={1}@$(cat {2})\"".format(name, repository, digest.files.to_list()[0].path)
        for digest, name in ctx.attr.images.items()
    ]
    return edits + (["edit namespace " + namespace] if namespace else [])

kustomize_build = rule(
    doc = "Renders an overlay into NAME.yaml, as `kubectl kustomize` would.",
    implementation = _kustomize_build_impl,
    attrs = {
        "images": attr.label_keyed_string_dict(
            doc = "Names of images, by the files with the digests that they get.",
            allow_files = True,
        ),
        "overlay": attr.string(
            doc = "The folder of its kustomization.yaml, below the package's.",
            mandatory = True,
        ),
        "srcs": attr.label_list(
            doc = "All files that the overlay is made of.",
            allow_files = True,
            mandatory = True,
        ),
        "_kustomize": attr.label(
            default = "@multitool//tools/kustomize",
            cfg = "exec",
            executable = True,
        ),
        "_namespace": attr.label(default = ":namespace"),
        "_repository": attr.label(default = ":repository"),
    },
)
