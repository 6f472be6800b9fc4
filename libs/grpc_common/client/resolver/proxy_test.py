import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest

from grpc_common.client.resolver.proxy import proxied

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")
PROXY = "http://user:secret@{}/path"

# Name, environment, channel arguments, and whether the way is through the proxy.
CASES = [
    ("localhost", {}, {}, False),
    ("localhost", {"grpc_proxy": PROXY}, {}, True),
    ("localhost", {"https_proxy": PROXY}, {}, True),
    ("localhost", {"http_proxy": PROXY}, {}, True),
    ("localhost", {"HTTP_PROXY": PROXY, "HTTPS_PROXY": PROXY}, {}, False),
    ("localhost", {"grpc_proxy": "", "http_proxy": PROXY}, {}, False),
    ("localhost", {"grpc_proxy": "https://{}", "http_proxy": PROXY}, {}, False),
    ("localhost", {"http_proxy": "HTTP://{}"}, {}, True),
    ("localhost", {"http_proxy": " http://{}"}, {}, False),
    ("localhost", {"http_proxy": "http:{}"}, {}, False),
    ("localhost", {"http_proxy": "socks5://{}"}, {}, False),
    ("localhost", {"http_proxy": "http://a b@c@{}?d#e"}, {}, True),
    ("localhost", {"http_proxy": "{}"}, {}, False),
    ("localhost", {"http_proxy": "http://"}, {}, False),
    ("localhost", {"http_proxy": "http://user@"}, {}, False),
    ("localhost", {"http_proxy": PROXY}, {"grpc.enable_http_proxy": 0}, False),
    ("localhost", {"http_proxy": PROXY}, {"grpc.enable_http_proxy": 1}, True),
    ("localhost", {}, {"grpc.http_proxy": PROXY}, True),
    ("localhost", {"http_proxy": PROXY}, {"grpc.http_proxy": ""}, False),
    ("localhost", {"http_proxy": PROXY, "no_proxy": "localhost"}, {}, False),
    ("localhost", {"http_proxy": PROXY, "NO_PROXY": "localhost"}, {}, True),
    ("localhost", {"http_proxy": PROXY, "no_proxy": " LocalHost , a.test"}, {}, False),
    ("localhost", {"http_proxy": PROXY, "no_proxy": "host"}, {}, True),
    ("localhost", {"http_proxy": PROXY, "no_proxy": ".localhost"}, {}, False),
    ("localhost", {"http_proxy": PROXY, "no_proxy": "..localhost,.,*localhost,localhost."}, {}, True),
    ("api.localhost", {"http_proxy": PROXY, "no_proxy": "localhost"}, {}, False),
    ("api.localhost", {"http_proxy": PROXY, "no_proxy": ".localhost"}, {}, False),
    ("api.localhost", {"http_proxy": PROXY, "no_proxy": "i.localhost,*.localhost,calhost"}, {}, True),
    ("localhost", {"http_proxy": PROXY, "no_proxy": "local,*"}, {}, True),
    ("localhost", {"http_proxy": PROXY, "no_proxy": ""}, {}, True),
    ("localhost", {"http_proxy": PROXY, "no_proxy": ",,"}, {}, True),
    ("localhost", {"http_proxy": PROXY, "no_proxy": "a.test, "}, {}, True),
    ("localhost", {"http_proxy": PROXY, "no_proxy": "127.0.0.0/8"}, {}, True),
    ("localhost", {"http_proxy": PROXY, "no_grpc_proxy": "", "no_proxy": "localhost"}, {}, True),
    ("localhost", {"http_proxy": PROXY, "no_grpc_proxy": "localhost", "no_proxy": "a.test"}, {}, False),
    ("localhost", {"http_proxy": PROXY, "no_proxy": "localhost:{port}"}, {}, True),
    ("127.0.0.1", {"http_proxy": PROXY}, {}, True),
    ("127.0.0.1", {"http_proxy": PROXY, "no_proxy": "127.0.0.1"}, {}, False),
    ("127.0.0.1", {"http_proxy": PROXY, "no_proxy": "0.0.1"}, {}, False),
    ("127.0.0.1", {"http_proxy": PROXY, "no_proxy": "10.0.0.0/8, 127.0.0.0/8"}, {}, False),
    ("127.0.0.1", {"http_proxy": PROXY, "no_proxy": "127.9.9.9/8"}, {}, False),
    ("127.0.0.1", {"http_proxy": PROXY, "no_proxy": "127.0.0.2/32"}, {}, True),
    ("127.0.0.1", {"http_proxy": PROXY, "no_proxy": "127.0.0.1/99"}, {}, False),
    ("127.0.0.1", {"http_proxy": PROXY, "no_proxy": "0.0.0.0/0"}, {}, False),
    ("127.0.0.1", {"http_proxy": PROXY, "no_proxy": "::/0"}, {}, True),
    ("127.0.0.1", {"http_proxy": PROXY, "no_proxy": "127.0.0.0/, 127.0.0.0/-1, /8, 127/8"}, {}, True),
    ("127.0.0.1", {"http_proxy": PROXY, "no_proxy": "127.0.0.0/8x,[127.0.0.1],127.1/8"}, {}, True),
    ("[::1]", {"http_proxy": PROXY}, {}, True),
    ("[::1]", {"http_proxy": PROXY, "no_proxy": "[::1]/128"}, {}, False),
    ("[::1]", {"http_proxy": PROXY, "no_proxy": "0:0:0:0:0:0:0:1,:1"}, {}, True),
    ("[::1]", {"http_proxy": PROXY, "no_proxy": "::1"}, {}, False),
    ("[::1]", {"http_proxy": PROXY, "no_proxy": "::/64"}, {}, False),
    ("[::1]", {"http_proxy": PROXY, "no_proxy": "[::1]"}, {}, True),
]


@asynccontextmanager
async def listening(host, port=0):
    """Yield a port of the host, and an event for the first connection to it."""
    connected = asyncio.Event()

    async def take(_reader, writer):
        connected.set()
        writer.close()

    async with await asyncio.start_server(take, host, port) as server:
        yield server.sockets[0].getsockname()[1], connected


@pytest.mark.parametrize(("name", "environment", "args", "expected"), CASES)
async def test_agrees_with_grpc(monkeypatch, name, environment, args, expected):
    """The answer is what gRPC does."""
    for variable in (*VARIABLES, *map(str.upper, VARIABLES)):
        monkeypatch.delenv(variable, raising=False)
    host = "::1" if name == "[::1]" else "127.0.0.1"
    async with listening("127.0.0.1") as (proxy, through_proxy), listening(host) as (port, directly):
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value.format(f"127.0.0.1:{proxy}", port=port))
        args = {
            key: value.format(f"127.0.0.1:{proxy}") if isinstance(value, str) else value
            for key, value in args.items()
        }
        async with grpc.aio.insecure_channel(f"dns:///{name}:{port}", list(args.items())) as channel:
            channel.get_state(try_to_connect=True)
            ways = [asyncio.create_task(event.wait()) for event in (through_proxy, directly)]
            async with asyncio.timeout(20):
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
        assert (through_proxy.is_set(), directly.is_set()) == (expected, not expected)
        assert proxied(name, port, args) is expected
