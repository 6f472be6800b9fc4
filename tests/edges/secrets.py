"""What cert-manager, trust-manager and the issuer of tokens would make for an overlay, as files."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import trustme

from grpc_common.testing.certificates import CertificateDirectory
from grpc_common.testing.tokens import TokenIssuer
from k8s.checks.manifests import Manifests
from k8s.checks.servers import servers
from tests.edges.objects import Object
from tests.edges.servers import settings

SCOPES = {"GetUser": "users.read", "ListUsers": "users.list", "CreateUser": "users.write"}
"""What a token for each method is good for."""

_KEYS = "jwks.json"


def issue_secrets(overlay: Sequence[Object], folder: Path) -> dict[str, CertificateDirectory]:
    """Make the Secrets of an overlay's Certificates and the ConfigMaps of their authorities, each a folder.

    Returns:
        The Secrets by name.

    """
    authorities: defaultdict[str, trustme.CA] = defaultdict(trustme.CA)
    specs = [each["spec"] for each in overlay if each["kind"] == "Certificate"]
    secrets = {
        spec["secretName"]: CertificateDirectory(
            folder / spec["secretName"], authorities[spec["issuerRef"]["name"]], *spec["dnsNames"]
        )
        for spec in specs
    }
    for name, authority in authorities.items():
        # A Bundle is called like the authority, and so is what it makes.
        (folder / name).mkdir()
        authority.cert_pem.write_to_path(str(folder / name / "ca.crt"))
    return secrets


def environment(overlay: Sequence[Object], folder: Path) -> dict[str, str]:
    """Return the environment of an overlay's servers, whose Secrets are in `folder`."""
    variables = settings(overlay, folder / "config.yaml")
    if "TLS_DIRECTORY" in variables:
        variables |= {"TLS_DIRECTORY": str(folder / "user-service-tls"), "HEALTH_PORT": "0"}
    return variables


class Issuer:
    """The issuer whose tokens an overlay's servers take."""

    def __init__(self, overlay: Sequence[Object], folder: Path) -> None:
        [server] = servers(Manifests(overlay))
        jwt = server.config.server.jwt
        assert jwt is not None, "the overlay's servers take no tokens"
        self._expected = {"iss": jwt.issuer, "aud": jwt.audience}
        self._issuer = TokenIssuer()
        self._file = folder / _KEYS
        self._file.write_bytes(self._issuer.jwks())

    @property
    def variables(self) -> dict[str, str]:
        """What tells a server of the keys: here from a file, not from the issuer's URL."""
        return {"JWT_JWKS": str(self._file)}

    def token(self, *methods: str, **claims: object) -> str:
        """Return a token that is good for methods, with other claims."""
        given = self._expected | {"scope": " ".join(SCOPES[method] for method in methods)} | claims
        return self._issuer.token("ada", **given)
