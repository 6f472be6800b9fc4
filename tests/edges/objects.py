"""The objects of an overlay, read so strictly that nothing they say is passed over."""

from collections.abc import Sequence
from typing import Any

type Object = dict[str, Any]

_UNTRANSLATED = "this test does not translate it"


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


def named(objects: Sequence[Object], kind: str, name: str) -> Object:
    """Return the object of a kind and a name.

    Raises:
        ValueError: there is none.

    """
    for each in objects:
        if (each["kind"], each["metadata"]["name"]) == (kind, name):
            return each
    raise ValueError(f"the overlay has no {kind} {name}")


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
