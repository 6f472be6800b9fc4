"""What there is once for each registry of Prometheus metrics, which several servers may share."""

import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import prometheus_client
from prometheus_client import CollectorRegistry


def per_registry[T](make: Callable[..., T]) -> Callable[..., T]:
    """Return `make` so that it is called once for each registry: a name can be registered only once.

    The registry is prometheus_client.REGISTRY if none is given; what else is given is for the first call
    alone. What was made goes with its registry, so it
    must not hold it.
    """
    made: WeakKeyDictionary[CollectorRegistry, T] = WeakKeyDictionary()

    @functools.wraps(make)
    def of(registry: CollectorRegistry = prometheus_client.REGISTRY, *arguments: Any) -> T:
        if registry not in made:
            made[registry] = make(registry, *arguments)
        return made[registry]

    return of
