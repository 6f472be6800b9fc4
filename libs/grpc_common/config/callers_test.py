import pytest

from grpc_common.config.callers import San, SanKind, parse_allowed_callers, parse_caller
from grpc_common.config.loading import ConfigError, load
from grpc_common.config.sections import ServerConfig

GET = "/user.UserService/GetUser"


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("web", SanKind.DNS, "web"),
        ("web_1.Default.SVC", SanKind.DNS, "web_1.default.svc"),
        ("xn--bcher-kva.example", SanKind.DNS, "xn--bcher-kva.example"),
        ("10.example", SanKind.DNS, "10.example"),
        ("spiffe://cluster.local/ns/default/sa/Web", SanKind.URI, "spiffe://cluster.local/ns/default/sa/Web"),
        ("https://web@example.com:1/?a#b", SanKind.URI, "https://web@example.com:1/?a#b"),
        ("urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6", SanKind.URI, None),
        ("10.0.0.7", SanKind.IP, "10.0.0.7"),
        ("0:0:0:0:0:0:0:1", SanKind.IP, "::1"),
        ("2001:DB8::A", SanKind.IP, "2001:db8::a"),
        ("Ada.Lovelace@Example.com", SanKind.EMAIL, "Ada.Lovelace@example.com"),
    ],
)
def test_form_of_a_name_tells_its_kind(text, kind, value):
    """A name in the configuration is of one kind, and in the form in which it is compared."""
    assert San.parse(text) == San(kind, value or text)


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", " web", "web ", "web\n", "we b", "web\0.test", "web\t", "web\x1b[0m"),
        *(
            "*",
            "*.default",
            "spiffe://cluster.local/*",
            "web.",
            ".web",
            "a..b",
            "a" * 64,
            ".".join(["a"] * 128),
        ),
        *("bücher.example", "spiffe://bücher/a", "ada@bücher.example", "\N{KELVIN SIGN}.test", "web\u0661"),
        *("10.0.0", "10.0.0.256", "010.0.0.1", "10.0.0.0/8", "[::1]", "::1%eth0", "::1::", "1"),
        *(
            "web:50051",
            "10.0.0.7:1",
            "://x",
            "spiffe://",
            "urn:",
            "@",
            "a@",
            "@b",
            "a b@c",
            "a@b@c",
            "DNS:web",
        ),
    ],
)
def test_name_that_no_certificate_should_have(name):
    """What can't be a name, or is one only by mistake, is refused with the forms that are right."""
    with pytest.raises(ValueError, match="one whole SAN without wildcards or spaces, in ASCII") as caught:
        parse_allowed_callers({"*": [name]})
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "subject:ada",
        "subject:system:serviceaccount:default:web",
        "subject:auth0|5f7c8ec7",
        "subject:Ada Lovelace",
        "subject:bücher",
        "subject://x",
        "scope:users.read",
        "scope:read:*",
        "scope:https://a.test/write",
    ],
)
def test_names_of_tokens(name):
    """Subjects and scopes are compared as they are written, and never as SANs."""
    assert parse_caller(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("subject:", "subject: a", "subject:a ", "subject:a\n", "subject:a\0b", "subject:*", "subject:a:*"),
        *("scope:", "scope:*", "scope:a b", 'scope:"', "scope:\\", "scope:ü", "scope:a\n"),
        *("SUBJECT:a", "subjects:a", "role:a", "subject:" + "a" * 256, "scope:" + "a" * 256),
    ],
)
def test_names_that_no_token_should_have(name):
    """A wildcard, space around a name and what no issuer writes are refused."""
    with pytest.raises(ValueError, match="subject:NAME or scope:NAME"):
        parse_allowed_callers({"*": [name]})


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "user.UserService/GetUser", "/user.UserService", "/user.UserService/", "/*", "/*/Get", "/a/G*"),
        *("**", " *", "/a/b/c", "//a/b", "/a/b\n", "/ü/Get", "/a/b ", "/user.UserService/Get User"),
    ],
)
def test_bad_pattern(pattern):
    """What can't be a method is refused, with the forms that can."""
    with pytest.raises(ValueError, match=r'is not a method; write "/package\.Service/Method"') as caught:
        parse_allowed_callers({pattern: ["web"]})
    assert repr(pattern) in str(caught.value)


def test_nobody_is_no_mistake():
    """An empty list is how to close a method."""
    assert parse_allowed_callers({"*": [], GET: []}) == {"*": frozenset(), GET: frozenset()}


def test_all_mistakes_are_told_in_one_line(tmp_path):
    """The configuration names each mistake once, with the file's line, and no control character."""
    file = tmp_path / "config.yaml"
    file.write_text('server:\n\n  allowed_callers: {Get: [web], "*": ["a b", "x\\0\\e"]}\n')
    with pytest.raises(ConfigError) as caught:
        load(ServerConfig, file, {})
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{file}:3: server.allowed_callers: 'Get' is not a method; ")
    assert "'*' has the caller 'a b'" in line
    assert line.count("one whole SAN") == 2
    assert line.isprintable()
