"""Reflection, under the name that clients ask for first and under the one that older clients know."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import grpc
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

SERVICE_NAMES = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)
"""The messages of both are the same on the wire; grpcio-reflection has the second alone."""


def add_reflection(names: Iterable[str], server: grpc.aio.Server) -> None:
    """Let clients of `server` ask about the services `names`, and about reflection itself."""
    servicer = reflection.aio.ReflectionServicer([*names, *SERVICE_NAMES], pool=_Pools())
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        ServerReflectionRequest.FromString,
        ServerReflectionResponse.SerializeToString,
    )
    for service in SERVICE_NAMES:
        methods = grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": handler})
        server.add_generic_rpc_handlers([methods])


class _Pools:
    """What ReflectionServicer asks a pool for, looked up in the process's own and in that of reflection v1.

    The methods are those of protobuf's DescriptorPool, and raise KeyError as they do.
    """

    def FindFileByName(self, file_name: str) -> FileDescriptor:  # noqa: N802 (protobuf's, as the others)
        file: FileDescriptor = self._first(lambda pool: pool.FindFileByName(file_name))
        return file

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802
        file: FileDescriptor = self._first(
            lambda pool: pool.FindFileContainingSymbol(symbol),
            # The search of protobuf leaves methods out.
            lambda pool: pool.FindMethodByName(symbol).containing_service.file,
        )
        return file

    def FindMessageTypeByName(self, full_name: str) -> Descriptor:  # noqa: N802
        message: Descriptor = self._first(lambda pool: pool.FindMessageTypeByName(full_name))
        return message

    def FindExtensionByNumber(self, message: Descriptor, number: int) -> FieldDescriptor:  # noqa: N802
        extension: FieldDescriptor = message.file.pool.FindExtensionByNumber(message, number)
        return extension

    def FindAllExtensions(self, message: Descriptor) -> list[FieldDescriptor]:  # noqa: N802
        extensions: list[FieldDescriptor] = message.file.pool.FindAllExtensions(message)
        return extensions

    def _first(self, *searches: Callable[[Any], Any]) -> Any:
        for search in searches:
            for pool in (descriptor_pool.Default(), _reflection_v1()):  # made for the first who asks
                try:
                    return search(pool)
                except KeyError:
                    continue
        raise KeyError


@cache
def _reflection_v1() -> DescriptorPool:
    """Return a pool with the file of grpc.reflection.v1, whose messages are those of v1alpha.

    It is not the process's pool, which would refuse a program that has compiled the file itself.
    """
    alpha = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    file = text_format.Parse(
        text_format.MessageToString(alpha).replace("v1alpha", "v1"), FileDescriptorProto()
    )
    file.name = "grpc/reflection/v1/reflection.proto"
    file.options.ClearField("deprecated")
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool
