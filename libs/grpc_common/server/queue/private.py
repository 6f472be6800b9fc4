"""All names of grpcio's compiled module that the engine takes, which grpcio does not promise to keep."""

import selectors

import grpc
from grpc._cython import cygrpc  # type: ignore[import-not-found, attr-defined, unused-ignore]  # compiled

TESTED = ("1.85.",)
"""How the versions of grpcio begin that the engine's tests have passed on; the library takes none before."""

NAMES = (
    "CompletionQueue.poll",
    "CompletionQueue.shutdown",
    "CompletionType.queue_shutdown",
    "GRPC_COMPRESSION_REQUEST_ALGORITHM_MD_KEY",
    "ReceiveCloseOnServerOperation",
    "ReceiveMessageOperation",
    "SendInitialMetadataOperation",
    "SendMessageOperation",
    "SendStatusFromServerOperation",
    "Server.add_http2_port",
    "Server.cancel_all_calls",
    "Server.destroy",
    "Server.register_completion_queue",
    "Server.request_call",
    "Server.shutdown",
    "Server.start",
    "WriteFlag.buffer_hint",
    "WriteFlag.no_compress",
    "_COMPRESSION_METADATA_STRING_MAPPING",
    "auth_context",
    "peer_identities",
    "peer_identity_key",
)


def reason_against() -> str | None:
    """Return why the engine can't be had on this system or with this grpcio, or None."""
    if not hasattr(selectors, "EpollSelector"):
        return "it needs Linux"
    if not grpc.__version__.startswith(TESTED):
        return f"grpcio {grpc.__version__} is not among the tested versions ({', '.join(TESTED)})"
    missing = [name for name in NAMES if not _has(name)]
    return f"grpcio {grpc.__version__} has no {', '.join(missing)}" if missing else None


def _has(name: str) -> bool:
    found: object = cygrpc
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not None
