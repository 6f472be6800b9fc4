"""Keys of issuers of tokens."""

from typing import get_args

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from grpc_common.config.jwks import Algorithm, check_jwks
from grpc_common.server.public_keys import KeysError, parse_keys
from tools.fuzz.properties import check_shown

_ALGORITHMS = frozenset(get_args(Algorithm.__value__))
_SMALLEST_RSA_KEY = 2048


def fuzz(data: bytes) -> None:
    """The keys that are taken are public and strong, each under an algorithm that it is for."""
    try:
        found = parse_keys(data, _ALGORITHMS)
    except KeysError as error:
        check_shown(str(error))
    else:
        for (key_id, algorithm), keys in found.items():
            assert key_id is None or isinstance(key_id, str)
            for each in keys:
                assert each.algorithm_name == algorithm
                assert isinstance(each.key, RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey)
                assert not isinstance(each.key, RSAPublicKey) or each.key.key_size >= _SMALLEST_RSA_KEY
    text = data.decode("utf-8", "surrogateescape")
    try:
        assert check_jwks(text) == text
    except ValueError as error:
        check_shown(str(error), 1000 + 10 * len(data))
    else:
        check_shown(text, len(text))
        assert "@" not in text.partition("://")[2].partition("/")[0]
