"""Whether gRPC itself can load a certificate and its key.

gRPC parses with BoringSSL, everything else here with OpenSSL and cryptography, and they differ, in kinds
of keys for one. gRPC has no function that only checks, but a server takes no port with what it can't load.

This runs while a handshake asks for the newest certificate, in a thread that gRPC's other work waits for:
a TCP port, a whole handshake or the end of a server took up to 25 s there. The port of an abstract Unix
socket takes 0.3 ms, and another thread closes it.
"""

import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc


def loads(key: bytes, certificate: bytes, ca: bytes | None) -> bool:
    """Return whether gRPC takes the pair, and `ca` as the authorities of the other side; all are PEM.

    Of several certificates in one argument this tells about the first only: gRPC leaves out the others in
    silence from the first on that it can't parse. Always true on systems other than Linux, which have no
    abstract sockets.
    """
    if sys.platform != "linux":
        return True
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = grpc.ssl_server_credentials([(key, certificate)], ca, ca is not None)
    try:
        # The containers of a pod share these names, and may share process ids.
        server.add_secure_port(f"unix-abstract:grpc_common-{uuid.uuid4()}", credentials)
    except RuntimeError:
        return False
    threading.Thread(target=_close, args=(server,), daemon=True).start()
    return True


def _close(server: grpc.Server) -> None:
    # The socket of a server that was never started stays open.
    server.start()
    server.stop(None).wait()
