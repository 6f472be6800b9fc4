"""TLS of an Envoy, with certificates from folders that have tls.crt, tls.key and ca.crt as a Secret does."""

from pathlib import Path

from tests.edges.objects import Object
from tests.interop.envoy_proxy import type_url


def take_tls(
    listener: Object, certificate: Path, *, host: str | None = None, peers: str | None = None
) -> None:
    """Have a listener take TLS alone.

    Args:
        listener: to be changed.
        certificate: the folder with its own.
        host: whose calls it takes; all if none is given.
        peers: what the URI in each caller's certificate begins with; callers need none if it is not given.

    """
    context = _context(certificate, peers) | {"alpn_protocols": ["h2", "http/1.1"]}
    tls = {
        "@type": type_url("transport_sockets.tls.v3.DownstreamTlsContext"),
        "common_tls_context": context,
        "require_client_certificate": peers is not None,
    }
    [chain] = listener["filter_chains"]
    match = {"server_names": [host]} if host else {"transport_protocol": "tls"}
    chain |= {"filter_chain_match": match, "transport_socket": {"name": "tls", "typed_config": tls}}
    inspector = {"@type": type_url("filters.listener.tls_inspector.v3.TlsInspector")}
    listener["listener_filters"] = [{"name": "tls_inspector", "typed_config": inspector}]


def speak_tls(cluster: Object, certificate: Path, peers: str) -> None:
    """Have a cluster's servers reached by mutual TLS; the URI in their certificates begins with `peers`."""
    context = _context(certificate, peers) | {"alpn_protocols": ["h2"]}
    tls = {
        "@type": type_url("transport_sockets.tls.v3.UpstreamTlsContext"),
        "common_tls_context": context,
    }
    cluster["transport_socket"] = {"name": "tls", "typed_config": tls}


def _context(folder: Path, peers: str | None) -> Object:
    pair = {
        "certificate_chain": {"filename": f"{folder}/tls.crt"},
        "private_key": {"filename": f"{folder}/tls.key"},
    }
    validation = {
        "trusted_ca": {"filename": f"{folder}/ca.crt"},
        "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": peers}}],
    }
    return {"tls_certificates": [pair]} | ({"validation_context": validation} if peers else {})
