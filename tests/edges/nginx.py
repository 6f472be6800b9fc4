"""nginx, configured as ingress-nginx 1.15.1, its last version, configures it for an Ingress.

The directives are those of the controller's rootfs/etc/nginx/template/nginx.tmpl that bear on calls, with the
defaults of its internal/ingress/controller/config/config.go. nginx itself is this machine's, not the
controller's 1.27.1. Left out are the redirect from HTTP, headers about the client, logs, and Lua, which takes
the ready pods in turn: here nginx does, over all servers.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from grpc_common.testing.certificates import issue

_PREFIX = "nginx.ingress.kubernetes.io/"

_OPEN = "grpc-on-kubernetes/open-methods"
"""For k8s/checks, and nothing to nginx."""

_DEFAULTS = {
    "backend-protocol": "HTTP",
    "limit-burst-multiplier": "5",
    "limit-connections": "0",
    "limit-rps": "0",
    "proxy-body-size": "1m",
    "proxy-connect-timeout": "5",
    "proxy-read-timeout": "60",
    "proxy-send-timeout": "60",
    "ssl-redirect": "true",
}
"""The annotations that are known here, and what holds without them."""

_MAIN = """
# By default its folders are given to nobody, whom a sandbox does not have.
user root;
daemon off;
master_process off;
pid nginx.pid;
error_log error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path temp;
    proxy_temp_path temp;
    fastcgi_temp_path temp;
    uwsgi_temp_path temp;
    scgi_temp_path temp;

    reset_timedout_connection on;
    keepalive_timeout 75s;
    keepalive_requests 1000;
    client_header_timeout 60s;
    client_body_timeout 60s;
    client_body_buffer_size 8k;
    http2_max_concurrent_streams 128;
    limit_req_status 503;
    limit_conn_status 503;
    {zones}

    upstream upstream_balancer {{
        {servers}
        keepalive 320;
        keepalive_time 1h;
        keepalive_timeout 60s;
        keepalive_requests 10000;
    }}
    server {{
        listen 127.0.0.1:{port} ssl;
        http2 on;
        server_name {host};
        # With a variable in their names, nginx reads them anew for each handshake.
        ssl_certificate $server_name.crt;
        ssl_certificate_key $server_name.key;
        ssl_buffer_size 4k;
        {locations}
        location / {{
            return 404;
        }}
    }}
}}
"""

_LOCATION = """
        location "{path}" {{
            client_max_body_size {proxy_body_size};
            {limits}
            grpc_set_header Host $http_host;
            proxy_next_upstream error timeout;
            proxy_next_upstream_timeout 0;
            proxy_next_upstream_tries 3;
            grpc_connect_timeout {proxy_connect_timeout}s;
            grpc_send_timeout {proxy_send_timeout}s;
            grpc_read_timeout {proxy_read_timeout}s;
            {proxy_pass}://upstream_balancer;
        }}
"""

_PROXY_PASS = {"HTTP": "proxy_pass http", "GRPC": "grpc_pass grpc"}


@dataclass
class Edge:
    """An nginx that runs."""

    port: int
    """Where it takes calls, on 127.0.0.1."""

    host: str
    """What the Ingress, and the certificate, call it."""

    authority: trustme.CA
    """That of its certificate."""

    folder: Path
    """With its files."""

    key: ec.EllipticCurvePrivateKey
    """Of its certificates."""

    @property
    def root(self) -> bytes:
        """The authority of its certificate, in PEM."""
        return self.authority.cert_pem.bytes()

    def renew_certificate(self) -> None:
        """Have new connections see another certificate of the authority, as the controller's Lua does.

        The key stays: nginx reads one file after the other, and would once take one of each pair.
        """
        files = issue(self.authority, x509.DNSName(self.host), key=self.key)
        for kind in ("crt", "key"):
            new = self.folder / f"new.{kind}"
            new.write_bytes(files[f"tls.{kind}"])
            new.replace(self.folder / f"{self.host}.{kind}")

    def channel(self) -> grpc.aio.Channel:
        """Return a channel to it, as of a client that resolved `host`; it repeats nothing by itself."""
        options = [
            ("grpc.ssl_target_name_override", self.host),
            ("grpc.enable_retries", 0),
            # Or the client would take a whole page of users before it is read.
            ("grpc.http2.bdp_probe", 0),
        ]
        credentials = grpc.ssl_channel_credentials(self.root)
        return grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options)


def following(name: str, resolver: str) -> str:
    """Return the servers of an upstream: those that a DNS name, HOST:PORT, has at each second.

    As often the controller's Lua looks at the endpoints.
    """
    return f"zone upstream 64k; resolver {resolver} valid=1s ipv6=off; server {name} resolve max_fails=0;"


@contextmanager
def running_nginx(folder: Path, ingress: Mapping[str, Any], upstream: Sequence[int] | str) -> Iterator[Edge]:
    """Run nginx for an Ingress; skip the test if the machine has none.

    Args:
        folder: for its files.
        ingress: the object; its certificate is made here.
        upstream: the ports of the servers on 127.0.0.1, or `following`.

    Raises:
        ValueError: the Ingress has something that is not known here.

    """
    # Debian's is beside the PATH of those who are not root.
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        pytest.skip("needs nginx (Debian: nginx)")
    [rule] = ingress["spec"]["rules"]
    [[host]] = [tls["hosts"] for tls in ingress["spec"]["tls"]]
    # nginx takes over a listening socket that it is told of: no port to guess, and no start to await.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        edge = Edge(port, host, trustme.CA(), folder, ec.generate_private_key(ec.SECP256R1()))
        edge.renew_certificate()
        (folder / "nginx.conf").write_text(_config(ingress, rule, upstream, port))
        process = subprocess.Popen(
            [nginx, "-p", folder, "-c", "nginx.conf", "-e", "stderr"],
            env={"NGINX": f"{listener.fileno()};"},
            pass_fds=[listener.fileno()],
        )
    try:
        yield edge
    finally:
        process.terminate()
        process.wait()


def _config(
    ingress: Mapping[str, Any], rule: Mapping[str, Any], upstream: Sequence[int] | str, port: int
) -> str:
    annotations = _annotations(ingress)
    if not isinstance(upstream, str):
        # Lua leaves no pod out after failures.
        upstream = "".join(f"server 127.0.0.1:{port} max_fails=0;" for port in upstream)
    return _MAIN.format(
        host=rule["host"],
        port=port,
        zones=_zones(annotations),
        servers=upstream,
        locations="".join(_location(path, annotations) for path in rule["http"]["paths"]),
    )


def _location(path: Mapping[str, Any], annotations: Mapping[str, str]) -> str:
    if path["pathType"] != "ImplementationSpecific":
        raise ValueError(f"path {path['path']}: the type {path['pathType']} is not known here; add it")
    values = {name.replace("-", "_"): value for name, value in annotations.items()}
    return _LOCATION.format(
        path=path["path"],
        proxy_pass=_PROXY_PASS[annotations["backend-protocol"]],
        limits=_limits(annotations),
        **values,
    )


def _zones(annotations: Mapping[str, str]) -> str:
    """Return what counts the calls of each address; 0 is no limit."""
    zones = {
        "limit-rps": f"limit_req_zone $binary_remote_addr zone=rps:5m rate={annotations['limit-rps']}r/s;",
        "limit-connections": "limit_conn_zone $binary_remote_addr zone=conn:5m;",
    }
    return "".join(zone for name, zone in zones.items() if annotations[name] != "0")


def _limits(annotations: Mapping[str, str]) -> str:
    rps, connections = annotations["limit-rps"], annotations["limit-connections"]
    burst = int(rps) * int(annotations["limit-burst-multiplier"])
    requests = f"limit_req zone=rps burst={burst} nodelay;" if rps != "0" else ""
    return requests + (f"limit_conn conn {connections};" if connections != "0" else "")


def _annotations(ingress: Mapping[str, Any]) -> dict[str, str]:
    given = ingress["metadata"].get("annotations", {})
    annotations = {name.removeprefix(_PREFIX): value for name, value in given.items() if name != _OPEN}
    if unknown := sorted(annotations.keys() - _DEFAULTS):
        name = ingress["metadata"]["name"]
        raise ValueError(
            f"Ingress {name}: what nginx makes of {', '.join(unknown)} is not known here; add it"
        )
    return _DEFAULTS | annotations
