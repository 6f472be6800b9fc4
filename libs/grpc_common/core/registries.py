"""What there is once for each registry of Prometheus metrics, which several servers may share."""

import functools
import re
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import prometheus_client
from prometheus_client import CollectorRegistry

from grpc_common.core.errors import StartError


def per_registry[T](make: Callable[..., T]) -> Callable[..., T]:
    """Return `make` so that it is called once for each registry: a name can be registered only once.

    The registry is prometheus_client.REGISTRY if none is given; what else is given is for the first call
    alone. What was made goes with its registry, so it
    must not hold it.

    What is returned raises a StartError if a metric of somebody else has the name.
    """
    made: WeakKeyDictionary[CollectorRegistry, T] = WeakKeyDictionary()

    @functools.wraps(make)
    def of(registry: CollectorRegistry = prometheus_client.REGISTRY, *arguments: Any) -> T:
        if registry not in made:
            try:
                made[registry] = make(registry, *arguments)
            except ValueError as error:
                raise _taken(error) from None
        return made[registry]

    return of


def _taken(error: ValueError) -> Exception:
    """Return the words for a name that somebody else has registered."""
    # Duplicated timeseries in CollectorRegistry: {'a_total', 'a'}
    names = re.findall("'([^']+)'", str(error))
    if "Duplicated timeseries" not in str(error) or not names:
        return error
    name = min(names, key=len)
    return StartError(f"the registry has a metric {name} already; give that one another name")
