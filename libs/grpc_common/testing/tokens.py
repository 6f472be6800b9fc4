"""For tests of bearer tokens: an issuer with real keys."""

import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

ISSUER = "https://issuer.test"
AUDIENCE = "test.Echo"


class TokenIssuer:
    """Signs tokens with keys that rotate; the first key is there once the object is.

    Args:
        algorithm: `ES256` or `RS256`.

    """

    def __init__(self, algorithm: str = "ES256") -> None:
        self.algorithm = algorithm
        self._count = 0
        self.rotate()

    def rotate(self) -> None:
        """Replace the key by another with an id of its own."""
        self._count += 1
        self.key_id = f"key-{self._count}"
        self.key: Any = (
            ec.generate_private_key(ec.SECP256R1())
            if self.algorithm == "ES256"
            else rsa.generate_private_key(65537, 2048)
        )

    def public_key(self, **members: Any) -> dict[str, Any]:
        """Return the public key as a JWK, with other `members` in it."""
        kind = ECAlgorithm if self.algorithm == "ES256" else RSAAlgorithm
        key: dict[str, Any] = kind.to_jwk(self.key.public_key(), as_dict=True)
        return {**key, "kid": self.key_id, "use": "sig", **members}

    def jwks(self) -> bytes:
        """Return what a server reads: the public key alone."""
        return json.dumps({"keys": [self.public_key()]}).encode()

    def token(self, subject: Any = "ada", *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """Return a token that is good for an hour, with other `claims` and `headers`; None leaves one out."""
        now = time.time()
        given = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + 3600} | claims
        payload = json.dumps({name: value for name, value in given.items() if value is not None}).encode()
        names = {"kid": self.key_id} | (headers or {})
        known = {name: value for name, value in names.items() if value is not None}
        return jwt.api_jws.encode(payload, self.key, self.algorithm, headers=known)
