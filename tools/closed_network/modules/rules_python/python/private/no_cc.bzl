"""A C++ toolchain that compiles nothing.

Bazel 7's py_binary asks for one for its platform, whatever is in it, and the root has one for its own only.
"""

def _impl(ctx):
    # buildifier: disable=native-cc-common (built in, in Debian's Bazel 7)
    return cc_common.create_cc_toolchain_config_info(
        ctx = ctx,
        abi_libc_version = "none",
        abi_version = "none",
        compiler = "none",
        host_system_name = "none",
        target_cpu = "none",
        target_libc = "none",
        target_system_name = "none",
        toolchain_identifier = "none",
    )

no_cc_config = rule(
    implementation = _impl,
    provides = [CcToolchainConfigInfo],
)
