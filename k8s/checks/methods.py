"""The service's methods, as its .proto file describes them."""

from google.protobuf.descriptor_pb2 import MethodOptions
from user import user_service_pb2

_SERVICE = user_service_pb2.DESCRIPTOR.services_by_name["UserService"]

METHODS = {f"/{_SERVICE.full_name}/{method.name}": method for method in _SERVICE.methods}
"""All of them, by their path."""

UNSAFE = [
    path
    for path, method in METHODS.items()
    if method.GetOptions().idempotency_level == MethodOptions.IDEMPOTENCY_UNKNOWN
]
"""Paths of those that must not be repeated without being asked to."""

STREAMS = [path for path, method in METHODS.items() if method.server_streaming or method.client_streaming]
