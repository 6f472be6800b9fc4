"""The `pip` extension: one repository for each locked package, fetched when it is needed.

The machine's own pip fetches, so its index, proxy and certificates apply, and it accepts
nothing but wheels that have a hash in the lock. A package has one repository more for each
other architecture of `target_platforms`, with the wheel for it.
"""

load("//python:architectures.bzl", "CPUS", "native_architecture")

_METADATA = Label("//python/extensions:wheel_deps.py")

_PACKAGE_BUILD = """\
load("@rules_python//python:py_library.bzl", "py_library")

py_library(
    name = "pkg",
    srcs = glob(["site-packages/**/*.py"], allow_empty = True),
    # Bazel refuses some of the characters that file names may have.
    data = glob(
        [
            "bin/*",
            "site-packages/**/*",
        ],
        allow_empty = True,
        exclude = ["**/*.py", "**/* *"],
    ),
    imports = ["site-packages"],
    visibility = ["//visibility:public"],
    deps = {deps},
)
"""

_LABEL = "@{hub}_{package}{suffix}//:pkg"

_ALIAS_BUILD = """\
alias(
    name = "{package}",
    actual = select({choice}),
    visibility = ["//visibility:public"],
)
"""

def _normalized(name):
    return name.strip().lower().replace("-", "_").replace(".", "_")

def _parse_lock(text):
    """Reads a lock written by pip-compile.

    Args:
        text: the content of the lock.
    Returns:
        {normalized package name: "name==version --hash=... --hash=..."}
    """
    requirements = {}
    for line in text.replace("\\\n", " ").split("\n"):
        line = line.split("#")[0].strip()
        if not line:
            continue
        if line.startswith("-") or "==" not in line or "--hash=" not in line:
            fail("requirements lock: not a pinned requirement with hashes: " + line)
        requirements[_normalized(line.split("==")[0].split("[")[0])] = line
    return requirements

# glibc's of the images' base, and older ones. pip takes these words only one by one.
_GLIBC_MINORS = range(41, 16, -1)

def _platform_flags(cpu):
    return ["--platform=manylinux_2_%d_%s" % (minor, cpu) for minor in _GLIBC_MINORS] + ["--platform=manylinux2014_" + cpu]

def _package_impl(rctx):
    architecture = rctx.attr.architecture
    foreign = architecture != native_architecture(rctx)
    python = rctx.which("python" + rctx.attr.python_version)
    rctx.file("requirement.txt", rctx.attr.requirement + "\n")
    result = rctx.execute(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"] +
        ["--require-hashes", "--only-binary=:all:", "--root-user-action=ignore"] +
        ["--target=site-packages", "--requirement=requirement.txt"] +
        (_platform_flags(CPUS[architecture]) if foreign else []),
        timeout = 1200,
    )
    if result.return_code:
        fail("pip could not fetch {0} for {1}:\n{2}{3}".format(
            rctx.attr.requirement.split(" ")[0],
            architecture,
            result.stdout,
            result.stderr,
        ))

    # Bytecode that holds no time and no folder. A template that is no Python is no fault.
    rctx.execute(
        [python, "-m", "compileall", "-qq", "--invalidation-mode=unchecked-hash"] +
        ["-s", str(rctx.path(".")), "site-packages"],
    )
    result = rctx.execute([python, rctx.path(_METADATA), "requirement.txt", "site-packages", CPUS[architecture]])
    if result.return_code:
        fail("reading the metadata of {0}: {1}".format(rctx.attr.requirement, result.stderr))

    # pip's --target has a wheel's programs inside; with the real rules they are beside.
    if rctx.path("site-packages/bin").exists:
        rctx.execute(["mv", "site-packages/bin", "bin"])

    # A dependency that the lock leaves out is for another platform or Python version.
    deps = [name for name in result.stdout.split("\n") if name in rctx.attr.locked]
    suffix = "_" + architecture if foreign else ""
    labels = [_LABEL.format(hub = rctx.attr.hub_name, package = name, suffix = suffix) for name in deps]
    rctx.file("BUILD.bazel", _PACKAGE_BUILD.format(deps = json.encode_indent(labels)))

_package = repository_rule(
    implementation = _package_impl,
    attrs = {
        "architecture": attr.string(mandatory = True),
        "hub_name": attr.string(mandatory = True),
        "locked": attr.string_list(mandatory = True),
        "python_version": attr.string(mandatory = True),
        "requirement": attr.string(mandatory = True),
    },
)

def _hub_impl(rctx):
    for package in rctx.attr.packages:
        choice = {
            condition: _LABEL.format(hub = rctx.attr.hub_name, package = package, suffix = suffix)
            for condition, suffix in rctx.attr.suffixes.items()
        }
        rctx.file(package + "/BUILD.bazel", _ALIAS_BUILD.format(
            choice = json.encode_indent(choice),
            package = package,
        ))

_hub = repository_rule(
    implementation = _hub_impl,
    attrs = {
        "hub_name": attr.string(mandatory = True),
        "packages": attr.string_list(mandatory = True),
        "suffixes": attr.string_dict(mandatory = True),
    },
)

def _suffixes(mctx, target_platforms):
    """Returns {architecture: suffix of its repositories}, this machine's first, without one."""
    native = native_architecture(mctx)
    others = [each for each in CPUS if each != native and "linux_" + CPUS[each] in target_platforms]
    return {native: ""} | {each: "_" + each for each in others}

def _pip_impl(mctx):
    for tag in [tag for module in mctx.modules for tag in module.tags.parse]:
        requirements = _parse_lock(mctx.read(tag.requirements_lock))
        suffixes = _suffixes(mctx, tag.target_platforms)
        for package, requirement in requirements.items():
            for architecture, suffix in suffixes.items():
                _package(
                    name = "{0}_{1}{2}".format(tag.hub_name, package, suffix),
                    architecture = architecture,
                    hub_name = tag.hub_name,
                    locked = requirements.keys(),
                    python_version = tag.python_version,
                    requirement = requirement,
                )
        _hub(
            name = tag.hub_name,
            hub_name = tag.hub_name,
            packages = requirements.keys(),
            suffixes = {
                "@platforms//cpu:" + CPUS[architecture] if suffix else "//conditions:default": suffix
                for architecture, suffix in suffixes.items()
            },
        )

pip = module_extension(
    implementation = _pip_impl,
    tag_classes = {"parse": tag_class(attrs = {
        "enable_implicit_namespace_pkgs": attr.bool(),  # always so here
        "hub_name": attr.string(mandatory = True),
        "python_version": attr.string(mandatory = True),
        "requirements_lock": attr.label(mandatory = True),
        "target_platforms": attr.string_list(),
    })},
)
