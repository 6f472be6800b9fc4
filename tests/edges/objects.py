"""The objects of an overlay, read so strictly that nothing they say is passed over."""

from collections.abc import Sequence
from typing import Any

from tests.interop.envoy_proxy import type_url

type Object = dict[str, Any]

_UNTRANSLATED = "this test does not translate it for Envoy"


def of_groups(objects: Sequence[Object], *groups: str, known: Sequence[str]) -> list[Object]:
    """Return the objects of API groups, once it is sure that a translator knows all of their kinds.

    Raises:
        ValueError: one is not of a `known` kind.

    """
    found = [each for each in objects if each["apiVersion"].partition("/")[0] in groups]
    for each in found:
        if each["kind"] not in known:
            raise ValueError(f"{each['kind']} {each['metadata']['name']}: {_UNTRANSLATED}")
    return found


def only(objects: Sequence[Object], kind: str) -> Object:
    """Return the one object of a kind.

    Raises:
        ValueError: there is none, or more than one.

    """
    found = [each for each in objects if each["kind"] == kind]
    if len(found) != 1:
        raise ValueError(f"the overlay has {len(found)} objects of kind {kind}; this test translates one")
    return found[0]


def fields(value: Object, where: str, *known: str) -> Object:
    """Return `value`, once it is sure that a translator knows all of its fields.

    Raises:
        ValueError: it has a field besides the `known` ones.

    """
    if unknown := sorted(set(value) - set(known)):
        raise ValueError(f"{where}, {', '.join(unknown)}: {_UNTRANSLATED}")
    return value


def given(**settings: Any) -> Object:
    """Return the settings that an object makes: those that are not None."""
    return {name: value for name, value in settings.items() if value is not None}


def retry_policy(*, num_retries: int, retry_on: str, per_try_timeout: str | None = None) -> Object:
    """Return the retry policy of a route; both control planes add that each try takes another server."""
    other_servers = {
        "name": "previous_hosts",
        "typed_config": {"@type": type_url("retry.host.previous_hosts.v3.PreviousHostsPredicate")},
    }
    return given(
        num_retries=num_retries,
        retry_on=retry_on,
        per_try_timeout=per_try_timeout,
        retry_host_predicate=[other_servers],
        host_selection_retry_max_attempts=5,
    )
