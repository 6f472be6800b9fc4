import grpc
import pytest
import trustme
from cryptography import x509

from grpc_common.core.errors import StatusError
from grpc_common.server.authorization import Authorizer
from grpc_common.testing.certificates import CertificateDirectory, issue
from grpc_common.tls.credentials import ClientTLS, server_credentials

WEB = "spiffe://cluster.local/ns/default/sa/web"
GET = "/user.UserService/GetUser"
CREATE = "/user.UserService/CreateUser"


def allows(authorizer: Authorizer, method: str, *sans: str) -> bool:
    """Tell whether a caller with `sans` may call `method`."""
    try:
        authorizer.check(method, {"x509_subject_alternative_name": [san.encode() for san in sans]})
    except StatusError as error:
        assert error.code == grpc.StatusCode.PERMISSION_DENIED
        return False
    return True


def test_most_specific_pattern_decides():
    """A method's own pattern overrules its service's, and that one `*`; they don't add up."""
    authorizer = Authorizer(
        {"*": ["any"], "/user.UserService/*": ["service"], "/user.UserService/CreateUser": ["create", WEB]}
    )
    callers = ("any", "service", "create", WEB)
    assert [allows(authorizer, "/other.Service/Get", san) for san in callers] == [True, False, False, False]
    assert [allows(authorizer, GET, san) for san in callers] == [False, True, False, False]
    assert [allows(authorizer, CREATE, san) for san in callers] == [False, False, True, True]


def test_one_san_of_several_is_enough():
    """A certificate may have other names too."""
    assert allows(Authorizer({"*": ["web.default"]}), GET, "10.0.0.7", "web.default")


@pytest.mark.parametrize("sans", [(), ("web.default.svc",), ("WEB.default",), ("*.default",), ("web",)])
def test_sans_are_compared_exactly(sans):
    """Neither part of a name nor a wildcard in a certificate nor a certificate without names will do."""
    assert not allows(Authorizer({"*": ["web.default"]}), GET, *sans)


def test_caller_without_tls():
    """Over plaintext a caller has no names."""
    with pytest.raises(StatusError, match="a caller without SANs"):
        Authorizer({"*": ["web"]}).check(GET, {})


def test_methods_without_pattern_are_open():
    """Without a pattern for it a method can be called by everyone whom TLS lets in."""
    assert allows(Authorizer({}), GET)
    assert allows(Authorizer({"/user.UserService/CreateUser": ["web"]}), GET)


def test_health_is_open_unless_named():
    """`*` does not close health, for the sake of probes; a pattern of its own does."""
    check = "/grpc.health.v1.Health/Check"
    assert allows(Authorizer({"*": ["web"]}), check)
    assert not allows(Authorizer({"/grpc.health.v1.Health/*": ["web"]}), check)
    assert not allows(Authorizer({"*": ["web"]}), "/grpc.reflection.v1alpha.ServerReflection/X")


def test_error_names_method_and_caller_only():
    """Who would be allowed is nobody's business."""
    with pytest.raises(StatusError) as caught:
        Authorizer({"*": ["secret-admin"]}).check(
            GET, {"x509_subject_alternative_name": [b"batch", b"x\xff"]}
        )
    assert str(caught.value) == f"{GET} is not allowed for batch, x\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    "pattern",
    ["", "user.UserService/GetUser", "/user.UserService", "/user.UserService/", "/*", "/*/Get", "/a/G*"],
)
def test_bad_pattern(pattern):
    """What can't be a method is refused, with the forms that can."""
    with pytest.raises(ValueError, match=r'is not a method; write "/package\.Service/Method"') as caught:
        Authorizer({pattern: ["web"]})
    assert repr(pattern) in str(caught.value)


@pytest.mark.parametrize("san", ["", " web", "web\n", "*.default", "spiffe://cluster.local/*"])
def test_bad_san(san):
    """A name that no caller can have, or a wildcard, is refused."""
    with pytest.raises(ValueError, match="one whole SAN, without wildcards or spaces"):
        Authorizer({"*": [san]})


def test_all_mistakes_at_once():
    """Each mistake has its line; a pattern without callers is one."""
    with pytest.raises(ValueError, match="not a method") as caught:
        Authorizer({"Get": ["web"], GET: [], "*": ["a b ", "*"]})
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize("allowed", [WEB, "web.default"])
async def test_callers_over_mutual_tls(tmp_path, allowed):
    """DNS and URI names of a real client's certificate are what gRPC reports."""
    ca = trustme.CA()
    by_dns = CertificateDirectory(tmp_path / "dns", ca, "web.default")
    by_uri = CertificateDirectory(tmp_path / "uri", ca)
    by_uri.replace(issue(ca, x509.UniformResourceIdentifier(WEB)))
    authorizer = Authorizer({GET: [allowed]})

    async def get_user(request: bytes, context) -> bytes:
        try:
            authorizer.check(GET, context.auth_context())
        except StatusError as error:
            await context.abort(error.code, error.message)
        return request

    server = grpc.aio.server()
    handlers = {"GetUser": grpc.unary_unary_rpc_method_handler(get_user)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("user.UserService", handlers)])
    directory = CertificateDirectory(tmp_path / "server", ca)
    credentials = server_credentials(directory.path, require_client_certificate=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    for client, name in ((by_dns, "web.default"), (by_uri, WEB)):
        async with grpc.aio.secure_channel(
            f"localhost:{port}", ClientTLS(client.path).credentials()
        ) as channel:
            call = channel.unary_unary(GET)(b"hello")
            if name == allowed:
                assert await call == b"hello"
            else:
                assert await call.code() == grpc.StatusCode.PERMISSION_DENIED
                assert await call.details() == f"{GET} is not allowed for {name}"
    await server.stop(None)
