import functools
import ipaddress
from contextlib import asynccontextmanager

import grpc
import pytest
import trustme
from cryptography import x509
from cryptography.x509.oid import NameOID, ObjectIdentifier
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

import grpc_common
from grpc_common.core.errors import StatusError
from grpc_common.server.authorization import Authorizer
from grpc_common.server.identity import identity
from grpc_common.testing import configure
from grpc_common.testing.certificates import CertificateDirectory, issue

CA = trustme.CA()
SPIFFE = "spiffe://cluster.local/ns/default/sa/web"
GET = "/user.UserService/GetUser"
CREATE = "/user.UserService/CreateUser"
SERVICES = {
    "user.UserService": ["GetUser", "CreateUser", "ListUsers"],
    "test.Echo": ["Read", "Write"],
    "grpc.health.v1.Health": ["Check", "Watch"],
    "test.Hidden": None,
}


@functools.cache
def certificate(*names: x509.GeneralName) -> dict[str, bytes]:
    """Return the files of a certificate with these names."""
    return issue(CA, *names)


def allows(authorizer: Authorizer, method: str, *dns_names: str) -> bool:
    """Tell whether a caller with these names may call `method`."""
    pem = certificate(*map(x509.DNSName, dns_names))["tls.crt"]
    try:
        authorizer.check(method, identity({"x509_pem_cert": [pem]}))
    except StatusError as error:
        assert error.code == grpc.StatusCode.PERMISSION_DENIED
        return False
    return True


def test_most_specific_pattern_decides():
    """A method's own pattern overrules its service's, and that one `*`; they don't add up."""
    authorizer = Authorizer({"*": ["any"], "/user.UserService/*": ["service"], CREATE: ["create", "other"]})
    callers = ("any", "service", "create", "other")
    assert [allows(authorizer, "/other.Service/Get", san) for san in callers] == [True, False, False, False]
    assert [allows(authorizer, GET, san) for san in callers] == [False, True, False, False]
    assert [allows(authorizer, CREATE, san) for san in callers] == [False, False, True, True]


def test_methods_without_pattern_are_open():
    """Without a pattern for it a method can be called by everyone whom TLS lets in."""
    assert allows(Authorizer({}), GET)
    assert allows(Authorizer({CREATE: ["web"]}), GET)


def test_empty_list_is_nobody():
    """`"*": []` closes all that has no pattern of its own, and so do empty lists of methods and services."""
    authorizer = Authorizer({"*": [], GET: ["web"]})
    assert [allows(authorizer, method, "web") for method in (GET, CREATE, "/a.B/C")] == [True, False, False]
    assert not allows(Authorizer({"/user.UserService/*": []}), GET, "web")
    assert not allows(Authorizer({"*": ["web"], GET: []}), GET, "web")


def test_health_is_open_unless_named():
    """`*` closes reflection, but not health, for the sake of probes; a pattern of its own does."""
    check = "/grpc.health.v1.Health/Check"
    assert allows(Authorizer({"*": []}), check)
    assert not allows(Authorizer({"/grpc.health.v1.Health/*": ["web"]}), check)
    assert not allows(Authorizer({check: []}), check)
    assert not allows(Authorizer({"*": ["web"]}), "/grpc.reflection.v1alpha.ServerReflection/X")


def test_caller_without_tls():
    """Over plaintext a caller has no credential, which is another mistake than a wrong one."""
    with pytest.raises(StatusError, match="GetUser is not open to callers without a cred") as caught:
        Authorizer({"*": ["web"]}).check(GET, None)
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED


def test_patterns_that_are_served():
    """`*`, services and methods that are there are right; methods that can't be known are taken as given."""
    Authorizer(
        {"*": [], "/test.Echo/*": [], GET: [], "/grpc.health.v1.Health/Watch": [], "/test.Hidden/Any": []}
    ).check_patterns(SERVICES)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("/user.UserService/CreatUser", "did you mean /user.UserService/CreateUser?"),
        ("/user.UserService/createUser", "did you mean /user.UserService/CreateUser?"),
        ("/USER.USERSERVICE/LISTUSERS", "did you mean /user.UserService/ListUsers?"),
        ("/user.UserServce/*", "did you mean /user.UserService/*?"),
        ("/userservice.UserService/GetUser", "did you mean /user.UserService/GetUser?"),
        ("/test.Echo/Watch", "did you mean /test.Echo/Write?"),
        ("/test.Hiden/*", "did you mean /test.Hidden/*?"),
        ("/q/*", "there are grpc.health.v1.Health, test.Echo, test.Hidden, user.UserService"),
    ],
)
def test_pattern_that_is_not_served(pattern, hint):
    """A typo would leave a method open: the server does not start, and says what is nearest."""
    with pytest.raises(grpc_common.StartError) as caught:
        Authorizer({"*": [], pattern: ["web"]}).check_patterns(SERVICES)
    assert str(caught.value) == f"server.allowed_callers: {pattern} is not served; {hint}"


def test_all_wrong_patterns_at_once():
    """Each pattern that is not served has its line."""
    with pytest.raises(grpc_common.StartError) as caught:
        Authorizer({"/a.B/*": [], GET: [], "/a.B/C": []}).check_patterns(SERVICES)
    assert len(str(caught.value).splitlines()) == 2


def dns(name: str) -> x509.DNSName:
    """Return a DNS name, which cryptography itself would not check."""
    return x509.DNSName(name)


def ip(text: str) -> x509.IPAddress:
    """Return an IP address."""
    return x509.IPAddress(ipaddress.ip_address(text))


COMMON_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web.test")])
CALLERS = {
    "dns": ([dns("web.test")], {"web.test"}),
    "upper case": ([dns("WEB.Test")], {"web.test"}),
    "one of many": ([*(dns(f"a{n}.test") for n in range(99)), dns("web.test")], {"web.test"}),
    "huge": ([dns("x" * 5000), dns("web.test")], {"web.test"}),
    "uri": ([x509.UniformResourceIdentifier(SPIFFE)], {SPIFFE}),
    "upper case in a uri": ([x509.UniformResourceIdentifier(SPIFFE.replace("web", "WEB"))], set()),
    "more in a uri": ([x509.UniformResourceIdentifier(f"{SPIFFE}/x")], set()),
    "ipv4": ([ip("10.0.0.7")], {"10.0.0.7"}),
    "ipv6": ([ip("::1")], {"0:0:0:0:0:0:0:1"}),
    "ipv4 in ipv6": ([ip("::ffff:10.0.0.7")], set()),
    "email": ([x509.RFC822Name("ada@WEB.test")], {"ada@web.test"}),
    "two names": ([dns("web.test"), ip("10.0.0.7")], {"web.test", "10.0.0.7"}),
    "nul": ([dns("web.test\0.evil.test")], set()),
    "nul at the end": ([dns("web.test\0")], set()),
    "nul in a uri": ([x509.UniformResourceIdentifier(f"{SPIFFE}\0/x")], set()),
    "nul in an email": ([x509.RFC822Name("ada@web.test\0.evil.test")], set()),
    "dns name as email": ([x509.RFC822Name("web.test")], set()),
    "dns name as uri": ([x509.UniformResourceIdentifier("web.test")], set()),
    "uri as dns name": ([dns(SPIFFE)], set()),
    "ip as dns name": ([dns("10.0.0.7")], set()),
    "email as dns name": ([dns("ada@web.test")], set()),
    "wildcard": ([dns("*.test")], set()),
    "trailing dot": ([dns("web.test.")], set()),
    "part": ([dns("a.web.test"), dns("web"), dns("test")], set()),
    "directory name": ([x509.DirectoryName(COMMON_NAME)], set()),
    "other name": ([x509.OtherName(ObjectIdentifier("1.2.3"), b"\x0c\x08web.test")], set()),
    "oid": ([x509.RegisteredID(ObjectIdentifier("1.2.3"))], set()),
    "none": ([], set()),
}
ALLOWED = ["web.test", SPIFFE, "10.0.0.7", "0:0:0:0:0:0:0:1", "ada@web.test"]


async def echo(request: bytes, _context) -> bytes:
    """Answer with the request."""
    return request


def add(_servicer, server) -> None:
    """Register test.Names, with a method for each allowed name."""
    handlers = {f"N{n}": grpc.unary_unary_rpc_method_handler(echo) for n in range(len(ALLOWED))}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Names", handlers)])


@asynccontextmanager
async def serving(folder, allowed_callers):
    """Serve test.Names over mutual TLS; yield the port."""
    tls = {
        "directory": CertificateDirectory(folder / "server", CA).path,
        "require_client_certificate": True,
    }
    server = grpc_common.Server(configure(server={"tls": tls, "allowed_callers": allowed_callers}))
    server.add(None, add)
    async with server.serving() as port:
        yield port


def client(port: int, names: list[x509.GeneralName]) -> grpc.aio.Channel:
    """Return a channel of a client whose certificate has these names."""
    files = certificate(*names)
    credentials = grpc.ssl_channel_credentials(files["ca.crt"], files["tls.key"], files["tls.crt"])
    return grpc.aio.secure_channel(f"localhost:{port}", credentials)


async def test_callers_over_mutual_tls(tmp_path):
    """A real client is known by its certificate's names: whole ones, of the right kind, and by no others."""
    patterns = {f"/test.Names/N{n}": [name] for n, name in enumerate(ALLOWED)}
    async with serving(tmp_path, patterns) as port:
        for case, (names, expected) in CALLERS.items():
            async with client(port, names) as channel:
                assert await allowed_for(channel) == expected, case


async def allowed_for(channel: grpc.aio.Channel) -> set[str]:
    """Return the names that the client of a channel is taken for."""
    found = set()
    for n, name in enumerate(ALLOWED):
        call = channel.unary_unary(f"/test.Names/N{n}")(b"")
        if await call.code() is grpc.StatusCode.OK:
            found.add(name)
            continue
        assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
        details = await call.details()
        assert details.startswith(f"/test.Names/N{n} is not allowed for ")
        assert details.isprintable()
        assert len(details) < 1000
    return found


async def test_refusal_names_the_caller_only(tmp_path):
    """Whom the method is open to is nobody's business; what the caller is taken for is told with its kind."""
    names = [dns("batch\0\x1b"), x509.RFC822Name("ada@a.test")]
    caller = r"DNS:batch\x00\x1b, email:ada@a.test"
    with capture_logs() as logs:
        async with serving(tmp_path, {"*": ["secret-admin"]}) as port, client(port, names) as channel:
            call = channel.unary_unary("/test.Names/N0")(b"")
            assert await call.details() == f"/test.Names/N0 is not allowed for {caller}"
    # Whoever reads the log knows whom to ask.
    assert [line["caller"] for line in logs if line["event"] == "call"] == [caller]


async def test_built_in_services_ask_for_authorization(tmp_path):
    """Health and reflection are closed to those whom their patterns leave out, streams included."""
    closed = {"/grpc.health.v1.Health/*": [], "/grpc.reflection.v1.ServerReflection/*": []}
    async with serving(tmp_path, closed) as port, client(port, [dns("web.test")]) as channel:
        assert await channel.unary_unary("/test.Names/N0")(b"").code() is grpc.StatusCode.OK
        for path in (
            "/grpc.health.v1.Health/Check",
            "/grpc.health.v1.Health/Watch",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ):
            call = channel.stream_stream(path)()  # grpc.aio ends INTERNAL if its message is late
            assert await call.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_default_deny(tmp_path):
    """With `"*": []` a client calls what names it, and may ask for health."""
    allowed = {"*": [], "/test.Names/N0": ["web.test"]}
    async with serving(tmp_path, allowed) as port, client(port, [dns("web.test")]) as channel:
        codes = [await channel.unary_unary(f"/test.Names/N{n}")(b"").code() for n in (0, 1)]
        assert codes == [grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED]
        response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert response.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("/test.Names/n0", "/test.Names/N0"),
        ("/test.Name/*", "/test.Names/*"),
        ("/grpc.health.v1.Health/Chek", "/grpc.health.v1.Health/Check"),
        ("/grpc.reflection.v1.ServerReflections/*", "/grpc.reflection.v1.ServerReflection/*"),
    ],
)
async def test_server_with_a_pattern_for_nothing(tmp_path, pattern, nearest):
    """A server does not start while a pattern is for nothing that it serves, its own services included."""
    with pytest.raises(grpc_common.StartError) as caught:
        async with serving(tmp_path, {pattern: ["web.test"]}):
            pass
    assert str(caught.value) == (f"server.allowed_callers: {pattern} is not served; did you mean {nearest}?")


async def test_patterns_of_the_servers_own_services(tmp_path):
    """Health and reflection, under both of its names, may be named."""
    methods = ("v1.ServerReflection/ServerReflectionInfo", "v1alpha.ServerReflection/*")
    patterns = ["/grpc.health.v1.Health/Check", *(f"/grpc.reflection.{method}" for method in methods)]
    async with serving(tmp_path, {pattern: ["web.test"] for pattern in patterns}):
        pass
