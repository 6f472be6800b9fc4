"""TLS of an Envoy's listener."""

from pathlib import Path

from tests.edges.objects import Object
from tests.interop.envoy_proxy import type_url

_NAME = "edge"


def discovered(certificate: Path) -> Object:
    """Return what secret discovery (SDS) answers: the pair of a folder with tls.crt and tls.key."""
    pair = {
        "certificate_chain": {"inline_string": certificate.joinpath("tls.crt").read_text()},
        "private_key": {"inline_string": certificate.joinpath("tls.key").read_text()},
    }
    secret = {"@type": type_url("transport_sockets.tls.v3.Secret"), "name": _NAME, "tls_certificate": pair}
    return {"resources": [secret]}


def take_tls(listener: Object, secrets: Path, host: str) -> None:
    """Have a listener take TLS alone, for a host.

    Args:
        listener: to be changed.
        secrets: the file with what is `discovered`, in place of a control plane; Envoy follows it.
        host: whose calls it takes.

    """
    source = {"path_config_source": {"path": str(secrets)}, "resource_api_version": "V3"}
    certificates = [{"name": _NAME, "sds_config": source}]
    tls = {
        "@type": type_url("transport_sockets.tls.v3.DownstreamTlsContext"),
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": certificates,
            "alpn_protocols": ["h2", "http/1.1"],
        },
    }
    [chain] = listener["filter_chains"]
    chain |= {
        "filter_chain_match": {"server_names": [host]},
        "transport_socket": {"name": "tls", "typed_config": tls},
    }
    inspector = {"@type": type_url("filters.listener.tls_inspector.v3.TlsInspector")}
    listener["listener_filters"] = [{"name": "tls_inspector", "typed_config": inspector}]
