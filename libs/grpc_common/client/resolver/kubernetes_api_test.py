import asyncio
import base64
import json
import os
import ssl
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kubernetes_asyncio.client import Configuration

from grpc_common.client.resolver.api_error import ConfigurationError
from grpc_common.client.resolver.kubernetes_api import (
    connect,
    list_slices,
    load_configuration,
    own_namespace,
    read_list,
)
from grpc_common.testing.api_server import ApiServer, kubeconfig


async def list_with(load, server):
    """List the slices of a Service; return the request that the API server saw."""
    async with asyncio.timeout(30), connect(load) as api:
        await list_slices(api, "echo", "default")
    return await server.seen.get()


@pytest.mark.parametrize("items", ["[]", "[ ]", "[{}]", "[ {} , 5\n]", "null", '[{"items": [1, 2]}, []]'])
async def test_list_is_read_as_json(items):
    """What is read slice by slice is what is there."""
    listed = await read_list(f'{{"metadata": {{"resourceVersion": "7"}}, "items" : {items}}}')
    assert (listed.version, listed.items) == (7, json.loads(items) or [])


@pytest.mark.parametrize(
    "items", ["[{}-5]", "[{} {}]", "[{},]", "[,{}]", "[,]", "[{},,{}]", "[{}\x1e]", "[{}", "["]
)
async def test_list_that_is_no_json(items):
    """Whoever sends no JSON is no API server, and nothing of it is believed."""
    with pytest.raises(ValueError, match=r"comma|JSON|Expecting"):
        await read_list(f'{{"metadata": {{"resourceVersion": "7"}}, "items": {items}}}')


@pytest.fixture
def authority():
    """A certificate authority."""
    return trustme.CA()


@pytest.fixture
def tls(authority):
    """The TLS context of a server on 127.0.0.1, which verifies client certificates if they come."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    return context


@pytest.fixture
def service_account(tmp_path, monkeypatch, authority):
    """The directory of a service account with the token "first"."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    (tmp_path / "token").write_text("first")
    return tmp_path


async def test_rotated_token_is_used(service_account, monkeypatch, tls):
    """In a pod, every connection has the token that is in the file then."""
    load = partial(load_configuration, service_account)
    async with ApiServer().serve(tls) as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", server.url.rpartition(":")[2])
        assert (await list_with(load, server)).authorization == "Bearer first"
        (service_account / "token").write_text("second")
        assert (await list_with(load, server)).authorization == "Bearer second"


@pytest.mark.parametrize("end", ["\n", "\r\n", "  ", "\n\n"])
async def test_end_of_line_is_no_part_of_a_token(service_account, monkeypatch, tls, write_kubeconfig, end):
    """A token is taken as it is meant, in the service account's file and in both places of a kubeconfig."""
    load = partial(load_configuration, service_account)
    (service_account / "token").write_text(f"secret{end}")
    async with ApiServer().serve(tls) as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", server.url.rpartition(":")[2])
        assert (await list_with(load, server)).authorization == "Bearer secret"
        for user in ({"token": f"secret{end}"}, {"tokenFile": str(service_account / "token")}):
            write_kubeconfig(server.url, user)
            assert (await list_with(load_configuration, server)).authorization == "Bearer secret"


async def test_empty_token_is_told(service_account, monkeypatch):
    """A file with an end of line alone is an error that names the directory."""
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    (service_account / "token").write_text("\n")
    with pytest.raises(ConfigurationError, match=f"{service_account}: the token is empty"):
        await load_configuration(service_account)


async def test_token_that_no_header_can_hold_stays_secret(service_account, monkeypatch, tls):
    """The error does not quote it."""
    load = partial(load_configuration, service_account)
    (service_account / "token").write_text("sec\nret")
    async with ApiServer().serve(tls) as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", server.url.rpartition(":")[2])
        with pytest.raises(ConfigurationError, match="token has a control character") as caught:
            await list_with(load, server)
    assert "ret" not in str(caught.value).replace("return", "")


@pytest.mark.parametrize(("content", "expected"), [("shop", "shop"), ("shop\n", "shop"), ("", "default")])
def test_namespace_of_a_pod(service_account, content, expected):
    """It stands beside the token."""
    (service_account / "namespace").write_text(content)
    assert own_namespace(service_account) == expected


def test_pod_without_a_namespace_file(service_account):
    """As for client-go, it is the namespace default then."""
    assert own_namespace(service_account) == "default"


@pytest.mark.parametrize(("namespace", "expected"), [("shop", "shop"), (None, "default")])
def test_namespace_of_a_kubeconfig(tmp_path, monkeypatch, namespace, expected):
    """It is that of the current context, which counts before a pod's."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    (tmp_path / "config").write_text(kubeconfig("http://localhost", {}, namespace=namespace))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    assert own_namespace(tmp_path / "none") == expected


@pytest.mark.parametrize("missing", ["token", "ca.crt"])
async def test_pod_without_service_account_is_told(service_account, monkeypatch, missing):
    """A file that is not there is an error that names the directory."""
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    (service_account / missing).unlink()
    with pytest.raises(ConfigurationError, match=str(service_account)):
        await load_configuration(service_account)


@pytest.fixture
async def proxy(monkeypatch):
    """A proxy for HTTP and HTTPS that counts whoever comes, and serves nobody."""
    seen = []

    async def refuse(reader, writer):
        seen.append(await reader.readline())
        writer.write(b"HTTP/1.1 502 no\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1") as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield seen


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
async def test_no_proxy_takes_cidrs(proxy, tls, write_kubeconfig, monkeypatch, variable):
    """An API server that is known by its address is reached directly, and else by the proxy."""
    async with ApiServer().serve(tls) as server:
        write_kubeconfig(server.url, {"token": "secret"})
        monkeypatch.setenv(variable, "10.0.0.0/8, 127.0.0.0/8")
        assert (await list_with(load_configuration, server)).verb == "list"
        assert not proxy
        monkeypatch.setenv(variable, "10.0.0.0/8")
        with pytest.raises(OSError, match="502"):
            await list_with(load_configuration, server)
        assert proxy == [f"CONNECT {server.url.removeprefix('https://')} HTTP/1.1\r\n".encode()]


@pytest.fixture
def write_kubeconfig(tmp_path, monkeypatch, authority):
    """Return a function that writes a kubeconfig for a server and a user."""

    def write(url, user):
        path = tmp_path / "config"
        path.write_text(kubeconfig(url, user, authority.cert_pem.bytes()))
        monkeypatch.setenv("KUBECONFIG", str(path))

    return write


def exec_plugin():
    """Return a kubeconfig user whose token comes from a program."""
    version = "client.authentication.k8s.io/v1"
    credential = {"apiVersion": version, "kind": "ExecCredential", "status": {"token": "secret"}}
    code = f"print({json.dumps(json.dumps(credential))})"
    return {"exec": {"apiVersion": version, "command": sys.executable, "args": ["-c", code]}}


@pytest.mark.parametrize("user", [{"token": "secret"}, exec_plugin()], ids=["token", "exec plugin"])
async def test_kubeconfig(write_kubeconfig, tls, user):
    """Out of the cluster KUBECONFIG says where the API server is, whom to trust, and who we are."""
    async with ApiServer().serve(tls) as server:
        write_kubeconfig(server.url, user)
        assert (await list_with(load_configuration, server)).authorization == "Bearer secret"


async def test_kubeconfig_with_client_certificate(write_kubeconfig, tls, authority):
    """A client certificate of a kubeconfig is presented to an API server that asks for one."""
    tls.verify_mode = ssl.CERT_REQUIRED
    certificate = authority.issue_cert("me")
    user = {
        "client-certificate-data": base64.b64encode(certificate.cert_chain_pems[0].bytes()).decode(),
        "client-key-data": base64.b64encode(certificate.private_key_pem.bytes()).decode(),
    }
    async with ApiServer().serve(tls) as server:
        write_kubeconfig(server.url, user)
        assert (await list_with(load_configuration, server)).verb == "list"


async def test_foreign_api_server_is_not_trusted(write_kubeconfig):
    """An API server with a certificate of another authority never hears our token."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with ApiServer().serve(context) as server:
        write_kubeconfig(server.url, {"token": "secret"})
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            await list_with(load_configuration, server)
        assert server.seen.empty()


def bare_certificate(subject, extension, signer=None):
    """Return a certificate with one extension, and its key; self-signed without a signer."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer, issuer_key = signer or (subject, key)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(extension, critical=False)
    )
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), key


async def test_certificates_without_key_identifiers_are_taken(tmp_path, monkeypatch):
    """Those of many clusters lack what Python's strict mode demands, and kubectl takes them."""
    ca, ca_key = bare_certificate("ca", x509.BasicConstraints(ca=True, path_length=None))
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate, key = bare_certificate("server", names, ("ca", ca_key))
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "server.pem").write_bytes(certificate + pem)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.pem")
    async with ApiServer().serve(context) as server:
        (tmp_path / "config").write_text(kubeconfig(server.url, {"token": "secret"}, ca))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        assert (await list_with(load_configuration, server)).verb == "list"


async def test_import_is_late():
    """Clients of other targets don't pay for the client of Kubernetes' API."""
    code = (
        "import sys, grpc_common.client.resolver.kubernetes as _; "
        "sys.exit(any(map(sys.modules.get, sys.argv[1:])))"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "kubernetes_asyncio", "aiohttp"),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert await process.wait() == 0


async def test_unusable_certificate_is_told(tmp_path):
    """A file that holds no certificate is an error that names the API server."""
    (tmp_path / "ca.crt").write_text("nonsense")

    async def load():
        return Configuration(host="https://10.0.0.1", ssl_ca_cert=str(tmp_path / "ca.crt"))

    with pytest.raises(ConfigurationError, match=r"certificates for https://10\.0\.0\.1"):
        async with connect(load):
            pass


@pytest.mark.parametrize("content", ["", "[]", "a: {", "current-context: none", "contexts: 7"])
async def test_bad_kubeconfig_is_told(tmp_path, monkeypatch, content):
    """A kubeconfig that can't be used is an error that names the file."""
    path = tmp_path / "config"
    path.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(ConfigurationError, match=str(path)):
        await load_configuration()


async def test_neither_pod_nor_kubeconfig_is_told(tmp_path, monkeypatch):
    """Without any configuration the error says what was looked for."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"\.kube/config"):
        await load_configuration()
