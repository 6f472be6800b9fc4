"""py_grpc_library: Python messages, gRPC stubs and their types from .proto files."""

load("@rules_python//python:py_info.bzl", "PyInfo")

ProtoSourcesInfo = provider(
    "The .proto files of a py_grpc_library and of all that it imports.",
    fields = {
        "proto_paths": "depset of the folders in which imports are looked up",
        "sources": "depset of .proto files",
    },
)

def _join(*parts):
    return "/".join([part for part in parts if part])

def _declare_outputs(ctx):
    suffixes = ["_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi"]
    return [
        ctx.actions.declare_file(source.basename.removesuffix(".proto") + suffix)
        for source in ctx.files.srcs
        for suffix in suffixes
    ]

def _generate(ctx, outputs, sources, proto_paths):
    out = _join(ctx.bin_dir.path, ctx.label.workspace_root, ctx.attr.import_root)
    plugin = ctx.attr._mypy_grpc_plugin[DefaultInfo].files_to_run
    args = ctx.actions.args()
    args.add_all(proto_paths, format_each = "--proto_path=%s")
    args.add(plugin.executable, format = "--plugin=protoc-gen-mypy_grpc=%s")
    args.add(out, format = "--python_out=%s")
    args.add(out, format = "--pyi_out=%s")
    args.add(out, format = "--grpc_python_out=%s")
    args.add(out, format = "--mypy_grpc_out=quiet:%s")
    args.add_all(ctx.files.srcs)
    ctx.actions.run(
        executable = ctx.attr._protoc[DefaultInfo].files_to_run,
        arguments = [args],
        inputs = sources,
        outputs = outputs,
        tools = [plugin],
        mnemonic = "PyGrpcGenerate",
        progress_message = "Generating Python for %{label}",
    )

def _py_grpc_library_impl(ctx):
    if not (ctx.label.package + "/").startswith(ctx.attr.import_root + "/"):
        fail("import_root is '%s', which does not hold the package '%s'" % (
            ctx.attr.import_root,
            ctx.label.package,
        ))
    proto_deps = [dep[ProtoSourcesInfo] for dep in ctx.attr.deps]
    sources = depset(ctx.files.srcs, transitive = [dep.sources for dep in proto_deps])
    proto_paths = depset(
        [_join(ctx.label.workspace_root, ctx.attr.import_root)],
        transitive = [dep.proto_paths for dep in proto_deps],
    )
    outputs = _declare_outputs(ctx)
    _generate(ctx, outputs, sources, proto_paths)

    deps = ctx.attr.deps + ctx.attr._runtime
    runfiles = ctx.runfiles(files = outputs).merge_all(
        [dep[DefaultInfo].default_runfiles for dep in deps],
    )
    import_path = _join(ctx.label.workspace_name or ctx.workspace_name, ctx.attr.import_root)
    return [
        DefaultInfo(files = depset(outputs), runfiles = runfiles),
        PyInfo(
            imports = depset([import_path], transitive = [dep[PyInfo].imports for dep in deps]),
            transitive_sources = depset(
                [output for output in outputs if output.extension == "py"],
                transitive = [dep[PyInfo].transitive_sources for dep in deps],
            ),
        ),
        ProtoSourcesInfo(proto_paths = proto_paths, sources = sources),
    ]

py_grpc_library = rule(
    implementation = _py_grpc_library_impl,
    doc = """Generates Python from .proto files, at build time and only there.

The Python package is the folder below `import_root`, which should be the proto package too:
`//proto/user` holds `package user;` and is used as `from user import user_service_pb2`.
A .proto file imports another by its path below `import_root`, as in `import "user/user.proto";`.""",
    attrs = {
        "deps": attr.label_list(
            doc = "The py_grpc_library targets that the sources import.",
            providers = [PyInfo, ProtoSourcesInfo],
        ),
        "import_root": attr.string(
            default = "proto",
            doc = "The folder, relative to the repository, that goes on the Python path and on protoc's.",
        ),
        "srcs": attr.label_list(
            allow_empty = False,
            allow_files = [".proto"],
            doc = "The .proto files, all in this package's own folder.",
            mandatory = True,
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
    provides = [PyInfo, ProtoSourcesInfo],
)
