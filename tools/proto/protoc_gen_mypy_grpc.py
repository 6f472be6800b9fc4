"""The protoc plugin that writes the types of gRPC stubs and servicers."""

from mypy_protobuf.main import grpc

if __name__ == "__main__":
    grpc()
