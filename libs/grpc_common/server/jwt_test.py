import asyncio
import base64
import contextlib
import json
import socket
import threading
import time
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import jwt
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

import grpc_common
from grpc_common.core.file_version import file_version
from grpc_common.server import authentication, jwks
from grpc_common.testing import configure, serve_on_loopback
from grpc_common.testing.certificates import CertificateDirectory
from grpc_common.testing.tokens import AUDIENCE, ISSUER, TokenIssuer

ECHO = "/test.Echo/Read"
CODE = grpc.StatusCode
CLOSED = {"*": [], ECHO: ["subject:ada", "scope:echo.read"]}


async def echo(_request: bytes, _context) -> bytes:
    """Answer with what is known of the caller."""
    call = grpc_common.current_call()
    identity = call.identity
    known = {"names": sorted(identity.names), "claims": [*identity.claims]} if identity else {}
    return json.dumps({"caller": call.caller, **known}).encode()


def add(_servicer, server) -> None:
    """Register test.Echo."""
    handlers = {name: grpc.unary_unary_rpc_method_handler(echo) for name in ("Read", "Open")}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])


def config(jwks, allowed=None, **sections) -> grpc_common.ServerConfig:
    """Return the configuration of a server that takes the tokens of an issuer."""
    settings = {"jwks": str(jwks), "issuer": ISSUER, "audience": AUDIENCE} | sections.pop("jwt", {})
    return configure(server={"jwt": settings, "allowed_callers": allowed or {}} | sections)


def replace(file: Path, content: bytes) -> None:
    """Write a file at once: a server that follows it would read a half."""
    new = file.with_name("new")
    new.write_bytes(content)
    new.rename(file)


@asynccontextmanager
async def serving(settings, authenticators=()):
    """Serve test.Echo in plaintext; yield a channel."""
    async with serve_on_loopback(None, add, config=settings, authenticators=authenticators) as channel:
        yield channel


async def outcome(channel, token=None, method=ECHO, metadata=None):
    """Return code and text of a call."""
    headers = metadata or ([("authorization", f"Bearer {token}")] if token is not None else [])
    call = channel.unary_unary(method)(b"", metadata=headers, timeout=20)
    return await call.code(), await call.details()


@pytest.fixture
def issuer():
    """Return an issuer of tokens."""
    return TokenIssuer()


@pytest.fixture
def keys(issuer, tmp_path):
    """Return the file with the issuer's keys."""
    file = tmp_path / "jwks.json"
    file.write_bytes(issuer.jwks())
    return file


def jws(issuer, header: object, payload: object) -> str:
    """Return a token with any header, signed as if it were one of the issuer's algorithm."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, payload)]
    signature = jwt.api_jws.encode(parts[1], issuer.key, issuer.algorithm).rpartition(".")[2]
    return ".".join([part.decode() for part in parts] + [signature])


@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
async def test_token_of_an_allowed_caller(tmp_path, algorithm):
    """A subject or a scope that is on the list may call; the handler and the access line know the caller."""
    issuer, file = TokenIssuer(algorithm), tmp_path / "jwks.json"
    file.write_bytes(issuer.jwks())
    with capture_logs() as logs:
        async with serving(config(file, CLOSED)) as channel:
            for token, caller in (
                (issuer.token("ada"), "subject:ada"),
                (issuer.token("bob", scope="a echo.read"), "subject:bob"),
                (issuer.token("bob", scope=["echo.read"]), "subject:bob"),
                (issuer.token("bob", scp="echo.read a"), "subject:bob"),
                (issuer.token("bob", scp=["echo.read", "a"]), "subject:bob"),
                (issuer.token("ada", aud=["other", AUDIENCE]), "subject:ada"),
                (issuer.token("ada", headers={"typ": "at+jwt"}), "subject:ada"),
                (issuer.token("ada", headers={"kid": None}), "subject:ada"),
                (issuer.token("ada", exp=time.time() - 10), "subject:ada"),  # within the leeway
                (issuer.token("ada", nbf=time.time() + 10), "subject:ada"),
            ):
                for scheme in ("Bearer", "bearer"):
                    metadata = [("authorization", f"{scheme} {token}")]
                    answer = json.loads(await channel.unary_unary(ECHO)(b"", metadata=metadata))
                    assert answer["caller"] == caller
                    assert {"iss", "sub", "exp"} <= {*answer["claims"]}
                assert logs[-1]["caller"] == caller
                assert token not in str(logs)


async def test_no_credential_and_a_wrong_one(keys, issuer):
    """Without a token it is UNAUTHENTICATED, with one that is not on the list PERMISSION_DENIED."""
    async with serving(config(keys, CLOSED)) as channel:
        assert (await outcome(channel))[0] is CODE.UNAUTHENTICATED
        assert (await outcome(channel, metadata=[("authorization", "Basic YTpi")]))[0] is CODE.UNAUTHENTICATED
        code, text = await outcome(channel, issuer.token("bob", scope="echo.reader"))
        assert (code, text) == (CODE.PERMISSION_DENIED, f"{ECHO} is not allowed for subject:bob")
        code, _ = await outcome(channel, issuer.token("ADA"))
        assert code is CODE.PERMISSION_DENIED


def wrong_tokens(issuer: TokenIssuer):
    """Yield tokens that are wrong, and what the caller is told of each."""
    other = TokenIssuer()
    now = time.time()
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": now + 3600}
    good = issuer.token()
    public = issuer.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    yield "expired", issuer.token(exp=now - 60), "has expired"
    yield "not yet valid", issuer.token(nbf=now + 60), "is not valid yet"
    yield "issued in the future", issuer.token(iat=now + 60), "is not valid yet"
    yield "other issuer", issuer.token(iss="https://evil.test"), "is of another issuer"
    yield "issuers", issuer.token(iss=[ISSUER]), "is of another issuer"
    yield "other audience", issuer.token(aud="test.Other"), "is for another audience"
    yield "audience in part", issuer.token(aud="test.EchoX"), "is for another audience"
    yield "no expiry", issuer.token(exp=None), "lacks one of exp"
    yield "no audience", issuer.token(aud=None), "lacks one of"
    yield "no issuer", issuer.token(iss=None), "lacks one of"
    yield "no subject", issuer.token(None), "lacks one of"
    yield "number as subject", issuer.token(7), "can't be read"
    yield "list as subject", issuer.token(["ada"]), "can't be read"
    yield "infinite expiry", issuer.token(exp=float("inf")), "can't be read"
    yield "expiry as nonsense", issuer.token(exp="never"), "can't be read"
    yield "numbers as scopes", issuer.token(scope=[1]), "has scopes that are neither"
    yield "mapping as scopes", issuer.token(scope={"echo.read": 1}), "has scopes that are neither"
    yield "own key", other.token(headers={"kid": issuer.key_id}), "has a wrong signature"
    yield "changed", good[:-6] + ("AAAAAA" if good[-6:] != "AAAAAA" else "BBBBBB"), "has a wrong signature"
    yield (
        "own key inside",
        other.token(headers={"kid": issuer.key_id, "jwk": other.public_key()}),
        "wrong sig",
    )
    yield "none", jwt.encode(claims, "", "none", headers={"kid": issuer.key_id}), "is not signed with"
    yield "public key as secret", hs256(claims, public, issuer.key_id), "is not signed with"
    yield "other algorithm", jws(issuer, {"alg": "RS256", "kid": issuer.key_id}, claims), "an unknown key"
    yield "algorithm as number", jws(issuer, {"alg": 7, "kid": issuer.key_id}, claims), "is not signed with"
    yield "algorithm as list", jws(issuer, {"alg": ["ES256"], "kid": issuer.key_id}, claims), "is not signed"
    yield "list as id", jws(issuer, {"alg": "ES256", "kid": [1]}, claims), "can't be read"
    yield "critical", issuer.token(headers={"crit": ["exp"], "exp": 1}), "can't be read"
    yield "logout", issuer.token(headers={"typ": "logout+jwt"}), "is of another type"
    yield "proof", issuer.token(headers={"typ": "dpop+jwt"}), "is of another type"
    yield "encrypted", "a.b.c.d.e", "can't be read"
    yield "deep", jws(issuer, [[]] * 9 + [json.loads("[" * 500 + "]" * 500)], claims), "can't be read"
    yield "no token", "", "can't be read"
    yield "word", "secret-token", "can't be read"
    yield "dots", "..", "can't be read"
    yield "huge", "a" * 20_000, "has more than 16384 characters"
    yield "spaces", f"{good} {good}", "can't be read"


def hs256(claims, secret: bytes, key_id: str) -> str:
    """Return a token that is signed with a public key as if that were a secret."""
    import hashlib  # noqa: PLC0415
    import hmac  # noqa: PLC0415

    header = {"alg": "HS256", "kid": key_id}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    digest = hmac.new(secret, b".".join(parts), hashlib.sha256).digest()
    return b".".join([*parts, base64.urlsafe_b64encode(digest).rstrip(b"=")]).decode()


async def test_wrong_tokens(keys, issuer):
    """Each is refused with a reason, on open methods too; neither text nor log has anything of the token."""
    with capture_logs() as logs:
        async with serving(config(keys, max_metadata_size="64KiB")) as channel:
            for case, token, reason in wrong_tokens(issuer):
                code, text = await outcome(channel, token)
                assert (code, text.startswith("the bearer token ")) == (CODE.PERMISSION_DENIED, True), case
                assert reason in text, case
                assert len(token) < 3 or token not in text + str(logs), case
                assert "unexpected exception" not in str(logs), case
            good = ("authorization", f"Bearer {issuer.token()}")
            assert (await outcome(channel, metadata=[good]))[0] is CODE.OK
            code, text = await outcome(channel, metadata=[good, good])
            assert (code, text) == (
                CODE.PERMISSION_DENIED,
                "the bearer token is not the only credential in authorization",
            )


async def test_health_for_probes(keys, issuer):
    """Health that has no pattern of its own asks for nothing, and takes no offence at a wrong token."""
    request = health_pb2.HealthCheckRequest()
    async with serving(config(keys, {"*": []})) as channel:
        for metadata in ([], [("authorization", "Bearer wrong")]):
            await health_pb2_grpc.HealthStub(channel).Check(request, metadata=metadata)
    async with serving(config(keys, {"/grpc.health.v1.Health/*": ["scope:probe"]})) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        call = check(request)
        assert await call.code() is CODE.UNAUTHENTICATED
        await check(request, metadata=[("authorization", f"Bearer {issuer.token(scope='probe')}")])


async def test_expiry_of_a_token_that_is_known(keys, issuer):
    """A token that was verified before is refused once it has expired."""
    async with serving(config(keys, jwt={"leeway": "0s"})) as channel:
        for seconds in (1.5, 5, 15):  # on a busy machine a token may expire before it is looked at
            token = issuer.token(exp=time.time() + seconds)
            if (code := (await outcome(channel, token))[0]) is CODE.OK:
                break
        while code is CODE.OK:
            begin = time.time()
            code, _ = await outcome(channel, token)
            expiry = jwt.decode(token, options={"verify_signature": False})["exp"]
            assert code is not CODE.OK or begin < expiry
        assert await outcome(channel, token) == (CODE.PERMISSION_DENIED, "the bearer token has expired")


async def test_rotation_in_the_file(keys, issuer):
    """A new key is known at once to the token that needs it, and one that is gone is no longer trusted."""
    async with serving(config(keys)) as channel:
        old = issuer.token()
        assert (await outcome(channel, old))[0] is CODE.OK
        issuer.rotate()
        replace(keys, issuer.jwks())
        assert (await outcome(channel, issuer.token()))[0] is CODE.OK
        assert await outcome(channel, old) == (
            CODE.PERMISSION_DENIED,
            "the bearer token is signed with an unknown key",
        )
        # Within the next ten seconds strangers cause no other look; the file is followed all the same.
        issuer.rotate()
        replace(keys, issuer.jwks())
        end = time.monotonic() + 10
        while (await outcome(channel, issuer.token()))[0] is not CODE.OK:
            assert time.monotonic() < end


async def test_file_that_is_broken_later(keys, issuer):
    """The last good keys stay in use, and the log says why."""
    with capture_logs() as logs:
        async with serving(config(keys)) as channel:
            replace(keys, b'{"keys": [\x1b')
            assert (await outcome(channel, issuer.token(headers={"kid": "new"})))[0] is CODE.PERMISSION_DENIED
            assert (await outcome(channel, issuer.token()))[0] is CODE.OK
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert line["reason"] == f"{keys}: is no JSON"


async def test_each_bad_version_of_the_file_is_logged_once(monkeypatch, keys, issuer):
    """It is looked at for as long as it is bad, and the log has a line for each version, and for its end."""
    good, away, looks = issuer.jwks(), keys.with_name("away"), []
    issuer.rotate()
    changes = [
        (lambda: replace(keys, b"{"), f"{keys}: is no JSON"),
        (lambda: replace(keys, b"[["), f"{keys}: is no JSON"),
        (lambda: replace(keys, good), "keys of tokens can be read again"),
        (lambda: keys.rename(away), f"{keys}: No such file or directory"),
        (lambda: away.rename(keys), "keys of tokens can be read again"),
        (lambda: replace(keys, issuer.jwks()), "keys of tokens"),
    ]
    monkeypatch.setattr(jwks, "_FILE_PAUSE", 0.01)
    monkeypatch.setattr(jwks, "file_version", lambda status: looks.append(status) or file_version(status))

    async def until(is_so) -> None:
        async with asyncio.timeout(10):
            while not is_so():
                await asyncio.sleep(0.01)

    with capture_logs() as logs:
        source = jwks.Keys(str(keys), ["ES256"])
        await source.start()
        following = asyncio.create_task(source.follow())
        for number, (change, _) in enumerate(changes, 2):
            change()
            await until(lambda number=number: len(logs) >= number)
            looks.clear()
            await until(lambda: len(looks) > 3 or not keys.exists())
        following.cancel()
    assert [line.get("reason", line["event"]) for line in logs[1:]] == [line for _, line in changes]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is no JWKS"),
        ('{"keys": {}}', "is no JWKS"),
        ('{"keys": []}', "has no public key for ES256, RS256"),
        ('{"keys": [1, {}, {"kty": "EC"}, {"kty": "EC", "crv": "P-256", "x": 1}]}', "has no public key"),
        ('{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "a", "alg": "HS256"}]}', "has no public key"),
        ('{"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "a"}]}', "has no public key"),
        (" " * (2**20 + 1), "has more than 1048576 bytes"),
        (None, "No such file or directory"),
    ],
)
async def test_keys_that_are_none(tmp_path, content, reason):
    """A server does not start without a key to trust, and says which file is wrong."""
    file = tmp_path / "jwks.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(grpc_common.StartError, match=reason) as caught:
        async with serving(config(file)):
            pass
    assert str(caught.value).startswith(f"server.jwt.jwks: {file}: ")


@pytest.mark.parametrize("member", [{"use": "enc"}, {"key_ops": ["sign"]}, {"alg": "ES384"}, {"d": "AQ"}])
async def test_keys_for_another_use(tmp_path, issuer, member):
    """A key that is not for signatures, or a private one, is not trusted."""
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [issuer.public_key(**member)]}))
    with pytest.raises(grpc_common.StartError, match="has no public key"):
        async with serving(config(file)):
            pass


@pytest.mark.parametrize("key_id", ["same", None])
@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
async def test_rotation_of_keys_with_one_id(tmp_path, key_id, algorithm):
    """While an issuer that gives its keys no id, or always the same, shows both, tokens of both are good."""
    old, new, other = (TokenIssuer(algorithm) for _ in range(3))
    keys = [issuer.public_key() | {"kid": key_id} for issuer in (old, new)]
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [{name: key[name] for name in key if key[name]} for key in keys]}))
    async with serving(config(file, CLOSED)) as channel:
        for issuer in (old, new):
            assert (await outcome(channel, issuer.token(headers={"kid": key_id}))) == (CODE.OK, "")
            wrong = issuer.token(headers={"kid": key_id}, aud="test.Other")
            assert await outcome(channel, wrong) == (
                CODE.PERMISSION_DENIED,
                "the bearer token is for another audience",
            )
        assert await outcome(channel, other.token(headers={"kid": key_id})) == (
            CODE.PERMISSION_DENIED,
            "the bearer token has a wrong signature",
        )


class JwksServer:
    """Serves keys over HTTP on loopback."""

    def __init__(self) -> None:
        self.status, self.body, self.headers, self.requests = 200, b"", {}, 0
        self.may_answer = threading.Event()
        self.may_answer.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                body = outer.body
                outer.may_answer.wait(30)
                self.send_response(outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            def log_message(self, *_args) -> None:
                """Stay quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"


@pytest.fixture
def jwks_server():
    """Serve keys until the end of the test."""
    server = JwksServer()
    thread = threading.Thread(target=server.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.server.shutdown()
    thread.join()
    server.server.server_close()


async def test_rotation_at_a_url(jwks_server, issuer):
    """A new key is fetched for the first token with it; strangers cause one in ten seconds."""
    jwks_server.body = issuer.jwks()
    async with serving(config(jwks_server.url, CLOSED)) as channel:
        assert (await outcome(channel, issuer.token()))[0] is CODE.OK
        assert jwks_server.requests == 1
        old = issuer.token()
        issuer.rotate()
        jwks_server.body = issuer.jwks()
        assert (await outcome(channel, issuer.token()))[0] is CODE.OK
        assert (await outcome(channel, old))[0] is CODE.PERMISSION_DENIED
        for n in range(20):
            unknown = issuer.token(headers={"kid": f"unknown-{n}"})
            assert (await outcome(channel, unknown))[0] is CODE.PERMISSION_DENIED
        assert jwks_server.requests == 2


async def test_rotation_while_the_old_keys_are_fetched(monkeypatch, jwks_server, issuer):
    """The first token with the new key waits for a fetch that begins after it came."""
    monkeypatch.setattr(jwks, "_URL_PAUSE", 0.01)
    jwks_server.body = issuer.jwks()
    async with serving(config(jwks_server.url)) as channel:
        jwks_server.may_answer.clear()
        before = jwks_server.requests
        async with asyncio.timeout(10):
            while jwks_server.requests == before:
                await asyncio.sleep(0.01)
        issuer.rotate()
        jwks_server.body = issuer.jwks()
        call = asyncio.create_task(outcome(channel, issuer.token()))
        await asyncio.sleep(0.2)  # for it to come to the server, which is what it waits in
        jwks_server.may_answer.set()
        assert (await call)[0] is CODE.OK


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((500, {}, b""), "HTTP status 500"),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), "HTTP status 302"),
        ((200, {}, b"<html>"), "is no JSON"),
        ((200, {}, b" " * (2**20 + 1)), "has more than 1048576 bytes"),
    ],
)
async def test_issuer_that_fails(jwks_server, issuer, answer, reason):
    """The last good keys stay in use while the issuer answers nonsense, and the log says so once."""
    jwks_server.body = issuer.jwks()
    with capture_logs() as logs:
        async with serving(config(jwks_server.url)) as channel:
            jwks_server.status, jwks_server.headers, jwks_server.body = answer
            code, _ = await outcome(channel, issuer.token(headers={"kid": "new"}))
            assert code is CODE.PERMISSION_DENIED
            assert (await outcome(channel, issuer.token()))[0] is CODE.OK
    assert [line["reason"] for line in logs if "reason" in line] == [f"{jwks_server.url}: {reason}"]


async def test_issuer_that_is_away_at_the_start(jwks_server, issuer):
    """The server starts, says UNAVAILABLE to tokens and serves others, until the issuer is back."""
    jwks_server.status = 503
    with capture_logs() as logs:
        async with serving(config(jwks_server.url, {ECHO: ["subject:ada"]})) as channel:
            await served_without_keys(jwks_server, channel, issuer)
    (line,) = {line["event"] for line in logs if "reason" in line}
    assert line == "keys of tokens can't be read, no token can be checked"


async def served_without_keys(jwks_server, channel, issuer):
    """Call a server that has no keys, until it has them."""
    jwks_server.body = b"{}"
    assert (await outcome(channel, method="/test.Echo/Open"))[0] is CODE.OK
    assert await outcome(channel, issuer.token()) == (
        CODE.UNAVAILABLE,
        "the keys of bearer tokens are not known yet",
    )
    jwks_server.status, jwks_server.body = 200, issuer.jwks()
    end = time.monotonic() + 30
    while (await outcome(channel, issuer.token()))[0] is not CODE.OK:
        assert time.monotonic() < end
        await asyncio.sleep(0.1)


class Dripping:
    """Answers one byte of a header after the other, until it may end."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/keys"
        self.body, self.end = b"", threading.Event()
        self.begun = threading.Semaphore(0)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(4096)
            self.begun.release()
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not self.end.wait(0.05):
                connection.sendall(b"x")
            connection.sendall(b"\r\nContent-Length: %d\r\n\r\n" % len(self.body) + self.body)


@pytest.fixture
def dripping():
    """Serve what never comes to its end."""
    server = Dripping()
    yield server
    server.end.set()
    server.listener.close()


async def test_issuer_whose_answer_never_ends(dripping, issuer, monkeypatch):
    """The server starts all the same, and has the keys once the issuer sends them."""
    monkeypatch.setattr(jwks, "_READING", 0.3)
    monkeypatch.setattr(jwks, "_RETRY", 0.1)
    with capture_logs() as logs:
        async with asyncio.timeout(30), serving(config(dripping.url, CLOSED)) as channel:
            assert (await outcome(channel, issuer.token()))[0] is CODE.UNAVAILABLE
            dripping.body = issuer.jwks()
            dripping.end.set()
            while (await outcome(channel, issuer.token()))[0] is not CODE.OK:
                await asyncio.sleep(0.05)
    reasons = {line["reason"] for line in logs if "reason" in line}
    assert reasons == {f"{dripping.url}: took longer than 0.3 s"}


async def test_strangers_while_the_issuer_is_slow(dripping, issuer, monkeypatch):
    """Whoever has a token with an unknown key can't keep those out whose keys are known."""
    dripping.body = issuer.jwks()
    dripping.end.set()
    monkeypatch.setattr(authentication, "_MOST_AT_A_TIME", 20)
    monkeypatch.setattr(jwks, "_WAITING", 10)
    async with serving(config(dripping.url, CLOSED)) as channel:
        dripping.end.clear()
        unknown = issuer.token(headers={"kid": "unknown"})
        strangers = [asyncio.create_task(outcome(channel, unknown)) for _ in range(50)]
        while sum(task.done() for task in strangers) < 40:
            await asyncio.sleep(0.01)
        known = await outcome(channel, issuer.token())
        dripping.end.set()
        codes = [code for code, _ in await asyncio.gather(*strangers)]
    assert known == (CODE.OK, "")
    assert codes.count(CODE.PERMISSION_DENIED) == 10
    assert CODE.OK not in codes


async def test_ids_of_keys_in_the_log(tmp_path, issuer):
    """They are bounded and printable, whatever an issuer names its keys."""
    file = tmp_path / "jwks.json"
    names = ["\x1b\n" + "k" * 5000, *map(str, range(20))]
    file.write_text(json.dumps({"keys": [issuer.public_key(kid=name) for name in names]}))
    with capture_logs() as logs:
        async with serving(config(file)):
            pass
    (ids,) = [line["ids"] for line in logs if "ids" in line]
    assert ids[0] == rf"\x1b\n{'k' * 198}... (5002 characters)"
    assert ids[-1] == "11 more"
    assert len(ids) == 11


@pytest.mark.parametrize(
    "url",
    [
        "https://h:99999/k",
        "https://h:port/k",
        "https://h:0/k",
        "https://h/a b",
        "https://h /k",
        "https://h/ä",
    ],
)
def test_urls_that_can_not_work(url):
    """A mistake in the URL of the keys is one of the configuration, and not an issuer that is away."""
    with pytest.raises(grpc_common.ConfigError, match=r"server\.jwt\.jwks"):
        config(url)


async def test_proxy_of_this_machine(jwks_server, issuer, monkeypatch):
    """Keys that come from this machine in plaintext pass no proxy, however http:// is written."""
    jwks_server.body = issuer.jwks()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_grpc_proxy", "localhost")
    async with serving(config(jwks_server.url.replace("http:", "HTTP:"), CLOSED)) as channel:
        assert (await outcome(channel, issuer.token()))[0] is CODE.OK


async def test_certificate_and_token(tmp_path, keys, issuer):
    """Over mutual TLS a caller has the names of both, and each alone is enough where it is on the list."""
    ca = trustme.CA()
    tls = {
        "directory": CertificateDirectory(tmp_path / "server", ca).path,
        "require_client_certificate": True,
    }
    allowed = {ECHO: ["web.test"], "/test.Echo/Open": ["subject:ada"]}
    server = grpc_common.Server(config(keys, allowed, tls=tls))
    server.add(None, add)
    client = grpc_common.ClientTLS(CertificateDirectory(tmp_path / "web", ca, "web.test").path)
    async with server.serving() as port, grpc_common.channel(f"localhost:{port}", tls=client) as channel:
        assert (await outcome(channel))[0] is CODE.OK
        code, text = await outcome(channel, method="/test.Echo/Open")
        assert (code, text) == (CODE.PERMISSION_DENIED, "/test.Echo/Open is not allowed for DNS:web.test")
        metadata = [("authorization", f"Bearer {issuer.token()}")]
        answer = json.loads(await channel.unary_unary("/test.Echo/Open")(b"", metadata=metadata))
        assert answer["caller"] == "DNS:web.test, subject:ada"
        assert answer["names"] == ["DNS:web.test", "subject:ada"]
        assert (await outcome(channel, "wrong"))[0] is CODE.PERMISSION_DENIED
