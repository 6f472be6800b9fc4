"""py_grpc_library: Python messages, gRPC stubs and their types from .proto files."""

load("@rules_python//python:py_info.bzl", "PyInfo")

def _import_root(ctx, info):
    """Returns the folder of the Python path: that of the package, less what imports of the .proto files have."""
    root = ctx.label.package
    folder = root
    for source in info.direct_sources:
        folder = _import_path(source, info).rpartition("/")[0]
        if not ("/" + root + "/").endswith("/" + folder + "/"):
            fail("%s is imported as '%s', which is not below the package '%s': see its strip_import_prefix" % (
                source.short_path,
                _import_path(source, info),
                root,
            ))
    return root.removesuffix(folder).removesuffix("/")

def _import_path(source, info):
    return source.path.removeprefix(info.proto_source_root + "/")

def _declare_outputs(ctx, info):
    suffixes = ["_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi"]
    return [
        ctx.actions.declare_file(source.basename.removesuffix(".proto") + suffix)
        for source in info.direct_sources
        for suffix in suffixes
    ]

def _join(*parts):
    return "/".join([part for part in parts if part])

def _generate(ctx, info, import_root, outputs):
    out = _join(ctx.bin_dir.path, ctx.label.workspace_root, import_root)
    plugin = ctx.attr._mypy_grpc_plugin[DefaultInfo].files_to_run
    args = ctx.actions.args()
    args.add_all(info.transitive_proto_path, format_each = "--proto_path=%s")
    args.add(plugin.executable, format = "--plugin=protoc-gen-mypy_grpc=%s")
    args.add(out, format = "--python_out=%s")
    args.add(out, format = "--pyi_out=%s")
    args.add(out, format = "--grpc_python_out=%s")
    args.add(out, format = "--mypy_grpc_out=quiet:%s")
    args.add_all(info.direct_sources)
    ctx.actions.run(
        executable = ctx.attr._protoc[DefaultInfo].files_to_run,
        arguments = [args],
        inputs = info.transitive_sources,
        outputs = outputs,
        tools = [plugin],
        mnemonic = "PyGrpcGenerate",
        progress_message = "Generating Python for %{label}",
    )

def _py_grpc_library_impl(ctx):
    # Up to Bazel 7 it is built in; from 8 on the module protobuf has it.
    info = ctx.attr.proto[ProtoInfo]  # buildifier: disable=native-proto-info
    import_root = _import_root(ctx, info)
    outputs = _declare_outputs(ctx, info)
    _generate(ctx, info, import_root, outputs)

    deps = ctx.attr.deps + ctx.attr._runtime
    runfiles = ctx.runfiles(files = outputs).merge_all(
        [dep[DefaultInfo].default_runfiles for dep in deps],
    )
    import_path = _join(ctx.label.workspace_name or ctx.workspace_name, import_root)
    return [
        DefaultInfo(files = depset(outputs), runfiles = runfiles),
        PyInfo(
            imports = depset([import_path], transitive = [dep[PyInfo].imports for dep in deps]),
            transitive_sources = depset(
                [output for output in outputs if output.extension == "py"],
                transitive = [dep[PyInfo].transitive_sources for dep in deps],
            ),
        ),
    ]

py_grpc_library = rule(
    implementation = _py_grpc_library_impl,
    doc = """Generates Python from a proto_library, at build time and only there.

Both are in the folder of the .proto files, whose path below the proto_library's `strip_import_prefix` is the Python
package, and should be the proto package too: with `/proto`, `//proto/user` holds `package user;` and is used as
`from user import user_service_pb2`. A .proto file imports another by that path, as in
`import "user/user.proto";`.""",
    attrs = {
        "deps": attr.label_list(
            doc = "The py_grpc_library targets of what the .proto files import.",
            providers = [PyInfo],
        ),
        "proto": attr.label(
            doc = "The proto_library, with all .proto files in this package's own folder.",
            mandatory = True,
            providers = [ProtoInfo],  # buildifier: disable=native-proto-info
        ),
        "_mypy_grpc_plugin": attr.label(
            cfg = "exec",
            default = "//tools/proto:protoc_gen_mypy_grpc",
            executable = True,
        ),
        "_protoc": attr.label(
            cfg = "exec",
            default = "//tools/proto:protoc",
            executable = True,
        ),
        "_runtime": attr.label_list(
            default = ["@pip//grpcio", "@pip//protobuf"],
            providers = [PyInfo],
        ),
    },
    provides = [PyInfo],
)
