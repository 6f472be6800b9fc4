"""Variables of proxies, as gRPC and as clients of the API server read them, and what is to be dialled."""

import os

from grpc_common.client.resolver.no_proxy import bypasses_proxy
from grpc_common.client.resolver.proxy import proxied

_PROXY, _EXCEPTIONS = "grpc_proxy", "no_grpc_proxy"
_VARIABLES = (_PROXY, "no_proxy", _EXCEPTIONS)
_PORT = 443


def fuzz(data: bytes) -> None:
    """There is always an answer, and no proxy for an exception; the lines are variables and a host."""
    *variables, host = [*data.replace(b"\0", b"").split(b"\n", 3), *4 * [b""]][:4]
    for name, value in zip(_VARIABLES, variables, strict=True):
        os.environb[name.encode()] = value
    text = host.decode("utf-8", "surrogateescape")
    bypasses_proxy(f"https://{text}:{_PORT}")
    if proxied(text, _PORT):
        if text.replace(".", "").replace("-", "").isalnum() and not text.startswith("."):
            os.environ[_EXCEPTIONS] = f"a, {text} ,b"
            assert not proxied(text, _PORT)
        os.environ[_PROXY] = ""
        assert not proxied(text, _PORT)
