"""Tells observers of calls, none of which can change what becomes of a call."""

import time
from collections.abc import Iterable

import prometheus_client
import structlog

from grpc_common.core.calls import Call, CallObserver
from grpc_common.observe.metrics import observer_failures

log = structlog.get_logger()

_LOG_INTERVAL = 60.0
"""Seconds in which the failures of one observer are logged once: they may come with every call."""


class Observers:
    """The observers of a server's or a channel's calls.

    Args:
        observers: are told of each call, in this order.
        failures: counts their exceptions by their names, from 0 on; if None, the default registry's does,
            once there is one.

    """

    def __init__(
        self, observers: Iterable[CallObserver], failures: prometheus_client.Counter | None = None
    ) -> None:
        self._observers = tuple(observers)
        self._failures = failures
        if failures is not None:
            for observer in self._observers:
                failures.labels(type(observer).__name__)
        self._logged: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._observers)

    def started(self, call: Call) -> None:
        """Tell each observer that a call begins."""
        for observer in self._observers:
            try:
                observer.started(call)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 (whatever it is, the call goes on)
                self._failed(type(observer).__name__, error)

    def ended(self, call: Call) -> None:
        """Tell each observer that a call has ended with `call.code`."""
        for observer in self._observers:
            try:
                observer.ended(call)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 (as above)
                self._failed(type(observer).__name__, error)

    def _failed(self, name: str, error: BaseException) -> None:
        (self._failures or observer_failures()).labels(name).inc()
        now = time.monotonic()
        if now - self._logged.get(name, -_LOG_INTERVAL) >= _LOG_INTERVAL:
            self._logged[name] = now
            log.error("observer failed, calls go on", observer=name, exc_info=error)
