"""The protocol compiler that grpcio-tools carries, with its well-known .proto files."""

import importlib.resources
import sys

from grpc_tools import protoc

if __name__ == "__main__":
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    sys.exit(protoc.main([*sys.argv, f"--proto_path={well_known}"]))
