"""TLS of an Envoy's listener."""

from pathlib import Path

from tests.edges.objects import Object
from tests.interop.envoy_proxy import type_url


def take_tls(listener: Object, certificate: Path, host: str) -> None:
    """Have a listener take TLS alone, for a host.

    Args:
        listener: to be changed.
        certificate: the folder with tls.crt and tls.key, as a Secret has them.
        host: whose calls it takes.

    """
    pair = {
        "certificate_chain": {"filename": f"{certificate}/tls.crt"},
        "private_key": {"filename": f"{certificate}/tls.key"},
    }
    tls = {
        "@type": type_url("transport_sockets.tls.v3.DownstreamTlsContext"),
        "common_tls_context": {"tls_certificates": [pair], "alpn_protocols": ["h2", "http/1.1"]},
    }
    [chain] = listener["filter_chains"]
    chain |= {
        "filter_chain_match": {"server_names": [host]},
        "transport_socket": {"name": "tls", "typed_config": tls},
    }
    inspector = {"@type": type_url("filters.listener.tls_inspector.v3.TlsInspector")}
    listener["listener_filters"] = [{"name": "tls_inspector", "typed_config": inspector}]
