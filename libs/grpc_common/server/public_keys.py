"""What a JWKS (RFC 7517) holds: the public keys that are fit for signatures."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jwt

from grpc_common.core.errors import StartError

LARGEST = 2**20
"""Bytes of a JWKS; a key has less than 1 KB, or some with its certificates."""

_SMALLEST_RSA_KEY = 2048
"""Bits: RFC 7518, section 3.3."""

_SAME_ID = 4
"""Keys with the same id, or without, that are tried: the old and the new one of an issuer that names none."""

_BY_TYPE = {
    ("RSA", None): {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"},
    ("EC", "P-256"): {"ES256"},
    ("EC", "P-384"): {"ES384"},
    ("EC", "P-521"): {"ES512"},
    ("OKP", "Ed25519"): {"EdDSA"},
}
"""{(type, curve): algorithms}; shared secrets (`oct`) are none of them."""

type KeySet = Mapping[tuple[str | None, str], Sequence[jwt.PyJWK]]
"""Keys by their id, and by an algorithm that they may be used with."""


class KeysError(StartError):
    """The keys can't be read; the text says where and why."""


def parse_keys(content: bytes, algorithms: frozenset[str]) -> KeySet:
    """Return the keys of a JWKS that may be used with some algorithms.

    Raises:
        KeysError: there are none.

    """
    if len(content) > LARGEST:
        raise KeysError(f"has more than {LARGEST} bytes")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise KeysError("is no JSON") from None
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise KeysError('is no JWKS: it must be {"keys": [...]}')
    found: dict[tuple[str | None, str], list[jwt.PyJWK]] = {}
    for data in keys:
        for algorithm in _algorithms(data) & algorithms:
            same = found.setdefault((data.get("kid"), algorithm), [])
            if len(same) < _SAME_ID and (key := _key(data, algorithm)) is not None:
                same.append(key)
    found = {name: same for name, same in found.items() if same}
    if not found:
        raise KeysError(f"has no public key for {', '.join(sorted(algorithms))}")
    return found


def _algorithms(data: Any) -> set[str]:
    """Return what a key may be used with: a JWK need not say it, and must not be believed if it does."""
    if not isinstance(data, dict) or not isinstance(data.get("kid"), str | None):
        return set()
    is_private, use, operations = "d" in data, data.get("use", "sig"), data.get("key_ops", ["verify"])
    if is_private or use != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return set()
    known = next(
        (each for kind, each in _BY_TYPE.items() if kind == (data.get("kty"), data.get("crv"))), set()
    )
    return {each for each in known if data.get("alg", each) == each}


def _key(data: dict[str, Any], algorithm: str) -> jwt.PyJWK | None:
    try:
        key = jwt.PyJWK(data, algorithm=algorithm)
    except Exception:  # noqa: BLE001 (whatever is wrong with one, the others are of use)
        return None
    is_weak = data["kty"] == "RSA" and key.key.key_size < _SMALLEST_RSA_KEY
    return None if is_weak else key
