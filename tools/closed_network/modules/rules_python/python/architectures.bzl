"""The architectures that images are made for, and where their files are."""

# Debian's names, and those of Bazel's constraints and of wheels.
CPUS = {"amd64": "x86_64", "arm64": "aarch64"}

# The environment variable in which enter.sh says where the root is.
ROOT = "CLOSED_NETWORK_ROOT"

def native_architecture(ctx):
    """Returns Debian's name of this machine's architecture; `ctx` is an extension's or a repository's."""
    return "arm64" if ctx.os.arch in ["aarch64", "arm64"] else "amd64"

def tree_of(rctx, architecture):
    """Returns the folder with the Debian packages of an architecture.

    Args:
        rctx: of the repository rule.
        architecture: Debian's name of it.

    Returns:
        The folder's path.
    """
    root = rctx.getenv(ROOT)
    if not root:
        fail("%s is not set: start Bazel with tools/bazel" % ROOT)
    return root if architecture == native_architecture(rctx) else root + "/foreign/" + architecture
