"""What there is once for each registry of Prometheus metrics, which several servers may share."""

import functools
from collections.abc import Callable
from weakref import WeakKeyDictionary

import prometheus_client
from prometheus_client import CollectorRegistry


def per_registry[T](make: Callable[[CollectorRegistry], T]) -> Callable[..., T]:
    """Return `make` so that it is called once for each registry: a name can be registered only once.

    The registry is prometheus_client.REGISTRY if none is given. What was made goes with its registry, so it
    must not hold it.
    """
    made: WeakKeyDictionary[CollectorRegistry, T] = WeakKeyDictionary()

    @functools.wraps(make)
    def of(registry: CollectorRegistry = prometheus_client.REGISTRY) -> T:
        if registry not in made:
            made[registry] = make(registry)
        return made[registry]

    return of
