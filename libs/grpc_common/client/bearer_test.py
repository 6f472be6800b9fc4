import asyncio
import os
import time
from contextlib import asynccontextmanager
from functools import partial

import grpc
import pytest

import grpc_common
from grpc_common.client.bearer import refuse_plaintext
from grpc_common.core.calls import Call, CallType, Method, parent_call, running_call
from grpc_common.testing import configure, serve_on_loopback
from grpc_common.testing.tokens import AUDIENCE, ISSUER, TokenIssuer

CODE = grpc.StatusCode
METHOD = Method("test.Echo", "Read", CallType.UNARY)


async def attached(bearer, metadata=()):
    """Return the metadata with which a call would start."""
    call = Call(METHOD, list(metadata))
    async with bearer(call):
        return call.metadata


async def token_of(bearer) -> str:
    """Return the token that a call gets."""
    [(key, value)] = await attached(bearer)
    assert key == "authorization"
    assert value.startswith("Bearer ")
    return value.removeprefix("Bearer ")


async def failure(bearer) -> grpc_common.StatusError:
    """Return the error of a call that gets no token."""
    with pytest.raises(grpc_common.StatusError) as caught:
        await token_of(bearer)
    return caught.value


class Source:
    """Fetches tokens, and counts how often."""

    def __init__(self, *answers) -> None:
        self.answers, self.fetched = list(answers), 0
        self.go = asyncio.Event()
        self.go.set()

    async def fetch(self) -> str:
        """Return the next answer, or raise it; the last one again and again."""
        self.fetched += 1
        await self.go.wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


async def test_file_that_rotates(tmp_path):
    """Each call has what the file holds then, without the end of its line."""
    file = tmp_path / "token"
    file.write_text("one\n")
    bearer = grpc_common.BearerToken.from_file(file)
    assert await token_of(bearer) == "one"
    file.write_text("two\r\n")
    assert await token_of(bearer) == "two"
    (tmp_path / "new").write_text("three")
    (tmp_path / "new").rename(file)
    assert await token_of(bearer) == "three"
    file.unlink()
    error = await failure(bearer)
    assert (error.code, error.message) == (
        CODE.UNAUTHENTICATED,
        f"'{file}': the bearer token can't be read: No such file or directory",
    )
    file.write_text("four")
    assert await token_of(bearer) == "four"


async def test_projected_token(tmp_path):
    """A token is followed through the symlinks with which the kubelet replaces it."""
    for name in ("one", "two"):
        (tmp_path / f"..{name}").mkdir()
        (tmp_path / f"..{name}" / "token").write_text(name)
    (tmp_path / "..data").symlink_to("..one")
    (tmp_path / "token").symlink_to("..data/token")
    bearer = grpc_common.BearerToken.from_file(str(tmp_path / "token"))
    assert await token_of(bearer) == "one"
    (tmp_path / "..tmp").symlink_to("..two")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    assert await token_of(bearer) == "two"


@pytest.mark.parametrize(
    "content", ["", "\n", "a b", "a\nb", "sécret", "a\0b", "secret\x1b", "=", "x" * 70_000]
)
async def test_file_without_a_token(tmp_path, content):
    """What can't be sent fails the call with the file's name, and nothing of the content."""
    file = tmp_path / "token"
    file.write_text(content)
    error = await failure(grpc_common.BearerToken.from_file(file))
    assert error.code is CODE.UNAUTHENTICATED
    assert str(file) in error.message
    assert "secret" not in error.message
    assert error.message.isprintable()


async def test_what_is_no_file(tmp_path):
    """A folder, a FIFO and a name with a NUL fail the call at once."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", "a\0b"):
        error = await failure(grpc_common.BearerToken.from_file(path))
        assert error.code is CODE.UNAUTHENTICATED
        assert error.message.isprintable()


async def test_jwt_is_kept_until_it_expires():
    """A JWT is fetched once, and again shortly before its end."""
    issuer = TokenIssuer()
    second = issuer.token()
    for seconds in (1.5, 5, 15):  # on a busy machine a token may expire before it is asked for again
        first = issuer.token(exp=time.time() + seconds)
        source = Source(first, second)
        bearer = grpc_common.BearerToken(source.fetch)
        if [await token_of(bearer) for _ in range(3)] == [first] * 3:
            break
    assert source.fetched == 1
    while await token_of(bearer) == first:
        await asyncio.sleep(0.01)
    assert [await token_of(bearer) for _ in range(3)] == [second] * 3
    assert source.fetched == 2


@pytest.mark.parametrize("token", ["opaque", "a.b.c", "a.e30.c", "a.W10.c", "a.eyJleHAiOiJ4In0.c"])
async def test_token_without_an_expiry(token):
    """A token that does not say when it expires is fetched for each call."""
    source = Source(token)
    bearer = grpc_common.BearerToken(source.fetch)
    assert [await token_of(bearer) for _ in range(3)] == [token] * 3
    assert source.fetched == 3


async def test_many_calls_fetch_one_token():
    """Calls that wait share one fetch, which goes on when one of them is cancelled."""
    token = TokenIssuer().token()
    source = Source(token)
    source.go.clear()
    bearer = grpc_common.BearerToken(source.fetch)
    calls = [asyncio.create_task(token_of(bearer)) for _ in range(100)]
    while not source.fetched:
        await asyncio.sleep(0)
    calls[0].cancel()
    source.go.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [token] * 99
    assert source.fetched == 1


async def test_function_that_fails():
    """An exception is UNAVAILABLE without its text, a StatusError stays, and the next call asks again."""
    denied = grpc_common.StatusError(CODE.PERMISSION_DENIED, "no")
    bearer = grpc_common.BearerToken(Source(RuntimeError("secret"), denied, 7, "a b", "good").fetch)
    error = await failure(bearer)
    assert (error.code, error.message) == (
        CODE.UNAVAILABLE,
        "the bearer token could not be fetched (RuntimeError)",
    )
    assert await failure(bearer) is denied
    assert [(await failure(bearer)).code for _ in range(2)] == [CODE.UNAUTHENTICATED] * 2
    assert await token_of(bearer) == "good"


async def cancelled_elsewhere() -> str:
    """Await a task that somebody has cancelled."""
    task = asyncio.create_task(asyncio.sleep(60, "x"))
    task.cancel()
    return await task


class Unusual(BaseException):
    """Is no Exception."""


@pytest.mark.parametrize("fetch", [cancelled_elsewhere, Source(Unusual("secret")).fetch])
async def test_function_that_ends_in_an_unusual_way(fetch):
    """The call, which nobody has cancelled, fails UNAVAILABLE as after any other failure."""
    error = await failure(grpc_common.BearerToken(fetch))
    assert error.code is CODE.UNAVAILABLE
    assert "secret" not in error.message


async def test_token_for_all_calls_of_a_handler_that_leaves():
    """What is fetched first for one call of a server is for the others too: it has not that call's end."""
    seen = []

    async def fetch() -> str:
        seen.append(parent_call())
        return "x"

    class Ending:
        has_answered, passed_on = False, ()

    token = running_call.set(Ending())
    try:
        assert await token_of(grpc_common.BearerToken(fetch)) == "x"
    finally:
        running_call.reset(token)
    assert seen == [None]


async def test_failure_while_the_token_is_good(monkeypatch):
    """A token that is about to expire is used on while no other can be had."""
    monkeypatch.setattr("grpc_common.client.bearer._SHARE", 0.9)  # a busy machine may not ask in a second
    token = TokenIssuer().token(exp=time.time() + 20)
    source = Source(token, RuntimeError())
    bearer = grpc_common.BearerToken(source.fetch)
    while source.fetched < 2:
        assert await token_of(bearer) == token
        await asyncio.sleep(0.05)
    assert await token_of(bearer) == token


async def test_call_with_a_credential_of_its_own():
    """A call's own authorization stays the only one."""
    own = [("authorization", "Bearer own")]
    assert await attached(grpc_common.BearerToken(Source("x").fetch), own) == own


def test_plaintext():
    """A token travels over TLS and Unix sockets only, unless it is said to be allowed."""
    bearer = grpc_common.BearerToken.from_file("/token")
    for target in ("unix:/a", "unix-abstract:a"):
        refuse_plaintext([bearer], target, tls=False)
    refuse_plaintext([bearer], "a.test:1", tls=True)
    refuse_plaintext([grpc_common.BearerToken.from_file("/token", allow_plaintext=True)], "a:1", tls=False)
    refuse_plaintext([object()], "a:1", tls=False)
    for target in ("a.test:1", "dns:///a:1", "kubernetes:///a.b:1", "unix.test:1", "localhost:1"):
        with pytest.raises(ValueError, match="without tls would show the bearer token"):
            refuse_plaintext([object(), bearer], target, tls=False)


async def test_plaintext_to_endpoints_of_ones_own():
    """A target that is only a name, since the endpoints come from elsewhere, is no Unix socket."""

    class Endpoints:
        async def watch(self):
            yield ["192.0.2.1:1"]

    bearer = grpc_common.BearerToken.from_file("/token")
    with pytest.raises(ValueError, match="without tls would show the bearer token"):
        async with grpc_common.channel("unix:/a", endpoints=Endpoints(), interceptors=[bearer]):
            pass


async def echo(request: bytes, _context) -> bytes:
    """Answer with the request."""
    return request


def add(_servicer, server) -> None:
    """Register test.Echo."""
    handlers = {"Read": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])


@asynccontextmanager
async def serving(keys, channel=grpc.aio.insecure_channel):
    """Serve test.Echo for one subject; yield a channel."""
    jwt = {"jwks": str(keys), "issuer": ISSUER, "audience": AUDIENCE}
    config = configure(server={"jwt": jwt, "allowed_callers": {"*": ["subject:ada"]}})
    async with serve_on_loopback(None, add, config=config, channel=channel) as opened:
        yield opened


async def test_server_takes_what_the_client_attaches(tmp_path):
    """What a client attaches from a file, as the kubelet writes it, lets its calls in."""
    issuer = TokenIssuer("RS256")
    (tmp_path / "jwks.json").write_bytes(issuer.jwks())
    (tmp_path / "token").write_text(issuer.token() + "\n")
    bearer = grpc_common.BearerToken.from_file(tmp_path / "token")
    async with serving(tmp_path / "jwks.json") as channel:
        metadata = await attached(bearer)
        assert await channel.unary_unary(METHOD.path)(b"a", metadata=metadata) == b"a"


async def test_slow_fetch_takes_no_longer_than_its_call(tmp_path):
    """A call that waits for its token ends at its timeout and says so; the fetch goes on for the next one."""
    issuer = TokenIssuer()
    (tmp_path / "jwks.json").write_bytes(issuer.jwks())
    source = Source(issuer.token())
    source.go.clear()
    bearer = grpc_common.BearerToken(source.fetch, allow_plaintext=True)
    async with serving(
        tmp_path / "jwks.json", partial(grpc_common.channel, interceptors=[bearer])
    ) as channel:
        read = channel.unary_unary(METHOD.path)
        calls = await asyncio.gather(*(read(b"a", timeout=0.2) for _ in range(3)), return_exceptions=True)
        assert [(call.code(), call.details()) for call in calls] == [
            (CODE.DEADLINE_EXCEEDED, "the interceptor BearerToken was not ready within 0.2 s")
        ] * 3
        source.go.set()
        assert await read(b"a") == b"a"
    assert source.fetched == 1
