"""proto_breaking_test: a contract against the one that was released."""

load("@rules_python//python:py_binary.bzl", "py_binary")
load("@rules_python//python:py_test.bzl", "py_test")

def proto_breaking_test(name, proto, released):
    """Fails if `proto` breaks who was built with `released`, on the wire or in JSON.

    `bazel run` of NAME.update takes `proto` for the released contract from then on.

    Args:
        name: the target's name.
        proto: the proto_library, of which the .proto files themselves are compared, not what they import.
        released: its descriptors as text, in the repository.
    """
    main = Label("//tools/proto:breaking.py")
    program = {
        "args": ["$(rootpath %s)" % released, "$(rootpath %s)" % proto],
        "data": [released, proto],
        "main": main,
        "srcs": [main],
        "deps": [Label("@pip//protobuf")],
    }
    py_test(name = name, size = "small", **program)
    program["args"] = ["--update"] + program["args"]
    py_binary(name = name + ".update", **program)
