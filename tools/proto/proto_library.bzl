"""proto_library: Bazel's own, by which rules for other languages and checks of a contract know it."""

def proto_library(name, **kwargs):
    """Declares .proto files; builds the set of their descriptors.

    Args:
        name: the target's name, which ends in _proto by custom.
        **kwargs: anything else that Bazel's proto_library takes.
    """

    # Up to Bazel 7 it is built in; from 8 on the module protobuf has it.
    native.proto_library(name = name, **kwargs)  # buildifier: disable=native-proto
