"""Leaves endpoints out for a while whose calls fail, as gRFC A50 and Envoy do."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from grpc_common.client.service_config import OutlierDetection

# The default of A50 and Envoy: an endpoint is left out for no longer than this, in seconds.
_MAX_EJECTION_TIME = 300


@dataclass(slots=True)
class Outcomes:
    """How the calls to one endpoint have ended since the last sweep."""

    successes: int = 0
    failures: int = 0

    def count(self, *, is_ok: bool) -> None:
        """Count a call that ended OK, or otherwise."""
        if is_ok:
            self.successes += 1
        else:
            self.failures += 1


@dataclass(slots=True)
class _Record:
    """What is remembered of one endpoint."""

    outcomes: Outcomes = field(default_factory=Outcomes)
    ejected_at: float | None = None
    times: int = 0
    """How often it was ejected, less one for each sweep that found it well; above 0 while it is ejected."""


class OutlierDetector:
    """Judges endpoints, known by their addresses, by how the calls to them ended.

    Whoever makes the calls counts them in `outcomes`, calls `sweep` each `settings.interval` seconds, and
    picks none of the `ejected`. An endpoint is left out if more than `failure_percentage` percent of its
    calls between two sweeps failed: for `base_ejection_time` times the number of ejections, 300 s at most.
    Each sweep that finds it well takes one off this number.

    An endpoint that leaves the set and comes back is remembered, until it would count as well again.
    Unlike A50, nobody is ejected if all fail: the fault is elsewhere then, and half of the servers would
    get the calls of all.
    """

    def __init__(self, settings: OutlierDetection) -> None:
        self.ejections = 0
        """How often an endpoint was ejected."""
        self._settings = settings
        self._records: dict[str, _Record] = {}

    def outcomes(self, address: str) -> Outcomes:
        """Return where the calls to an endpoint are counted.

        Ask anew when an endpoint has been away: it may have been forgotten meanwhile.
        """
        return self._records.setdefault(address, _Record()).outcomes

    def ejected(self, addresses: Collection[str]) -> set[str]:
        """Return which of these are left out: no more than `max_ejection_percent`, but never all of them.

        One may be left out in any case if there are two. Those ejected last are, if the set has shrunk.
        """
        out = [address for address in addresses if self._is_ejected(address)]
        out.sort(key=lambda address: self._records[address].ejected_at or 0, reverse=True)
        return set(out[: self._most(len(addresses))])

    def sweep(self, now: float, addresses: Collection[str]) -> bool:
        """Judge the calls since the last sweep to the endpoints of the current set, and begin to count anew.

        Return whether the answers of `ejected` may have changed. `now` is in seconds, by any steady clock.
        """
        before = self._marked()
        self._eject(now, addresses)
        for record in self._records.values():
            self._recover(now, record)
            record.outcomes.successes = record.outcomes.failures = 0
        self._forget(addresses)
        return self._marked() != before

    def _eject(self, now: float, addresses: Collection[str]) -> None:
        if len(addresses) < self._settings.minimum_hosts:
            return
        failing, well = self._judged(addresses)
        out = sum(self._is_ejected(address) for address in addresses)
        for address in failing[: max(self._most(len(addresses)) - out, 0)] if well else ():
            record = self._records[address]
            record.ejected_at = now
            record.times += 1
            self.ejections += 1

    def _judged(self, addresses: Iterable[str]) -> tuple[list[str], int]:
        """Return the endpoints to eject, the worst first, and the number of those that are well."""
        failing = {}
        well = 0
        for address in addresses:
            outcomes = self.outcomes(address)
            calls = outcomes.successes + outcomes.failures
            if not calls or self._is_ejected(address):
                continue
            percent = 100 * outcomes.failures / calls
            if percent <= self._settings.failure_percentage:
                well += 1
            elif calls >= self._settings.request_volume:
                failing[address] = percent
        return sorted(failing, key=failing.__getitem__, reverse=True), well

    def _recover(self, now: float, record: _Record) -> None:
        if record.ejected_at is None:
            record.times = max(record.times - 1, 0)
            return
        base = self._settings.base_ejection_time
        if now >= record.ejected_at + min(base * record.times, max(base, _MAX_EJECTION_TIME)):
            record.ejected_at = None

    def _forget(self, addresses: Collection[str]) -> None:
        """Forget those that are gone for good, after the time in which they would be well again."""
        current = set(addresses)
        self._records = {
            address: record for address, record in self._records.items() if address in current or record.times
        }

    def _is_ejected(self, address: str) -> bool:
        record = self._records.get(address)
        return record is not None and record.ejected_at is not None

    def _marked(self) -> set[str]:
        return {address for address in self._records if self._is_ejected(address)}

    def _most(self, endpoints: int) -> int:
        """Return how many of so many endpoints may be left out."""
        share = int(endpoints * self._settings.max_ejection_percent / 100)
        return min(max(share, 1), endpoints - 1)
