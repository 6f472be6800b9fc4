"""The `oci` extension: in place of a small base that the real one pulls, one made of the Debian root."""

load("@rules_python//python:architectures.bzl", "CPUS", "ROOT", "tree_of")

_MAKE_BASE = Label("//oci/private:make_base.py")

_BASE_BUILD = """\
load("@rules_oci//oci:defs.bzl", "oci_image")

oci_image(
    name = "{name}",
    architecture = "{architecture}",
    env = {{
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
    }},
    os = "linux",
    tars = ["base.tar.gz"],
    user = "65532",
    variant = "{variant}",
    visibility = ["//visibility:public"],
    workdir = "/home/nonroot",
)
"""

_CHOICE_BUILD = """\
alias(
    name = "{name}",
    actual = select({choice}),
    visibility = ["//visibility:public"],
)
"""

def _base_impl(rctx):
    tree = tree_of(rctx, rctx.attr.architecture)
    result = rctx.execute([rctx.which("python3"), "-I", rctx.path(_MAKE_BASE), tree, "base.tar.gz"])
    if result.return_code:
        fail("making the base failed: " + result.stderr)
    rctx.file("BUILD.bazel", _BASE_BUILD.format(
        name = rctx.attr.target,
        architecture = rctx.attr.architecture,
        variant = rctx.attr.variant,
    ))

_base = repository_rule(
    implementation = _base_impl,
    attrs = {
        "architecture": attr.string(mandatory = True),
        "target": attr.string(mandatory = True),
        "variant": attr.string(),
    },
    environ = [ROOT],
)

def _choice_impl(rctx):
    choice = {
        "@platforms//cpu:" + CPUS[architecture]: "@" + repository
        for repository, architecture in rctx.attr.bases.items()
    }
    rctx.file("BUILD.bazel", _CHOICE_BUILD.format(name = rctx.attr.target, choice = json.encode_indent(choice)))

_choice = repository_rule(
    implementation = _choice_impl,
    attrs = {
        "bases": attr.string_dict(mandatory = True),
        "target": attr.string(mandatory = True),
    },
)

def _oci_impl(mctx):
    for tag in [tag for module in mctx.modules for tag in module.tags.pull]:
        bases = {}
        for platform in tag.platforms:
            name = tag.name + "_" + platform.replace("/", "_")
            _, bases[name], variant = (platform + "/").split("/")[:3]
            _base(name = name, architecture = bases[name], target = name, variant = variant)
        _choice(name = tag.name, bases = bases, target = tag.name)

oci = module_extension(
    implementation = _oci_impl,
    tag_classes = {"pull": tag_class(attrs = {
        "digest": attr.string(),
        "image": attr.string(),
        "name": attr.string(mandatory = True),
        "platforms": attr.string_list(mandatory = True),
    })},
)
