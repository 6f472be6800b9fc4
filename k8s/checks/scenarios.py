"""Outages and a quiet night, given to promtool, and what rings in them."""

import itertools
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from grpc_common.config.durations import parse_duration
from k8s.checks.prometheus import program

SCENARIOS = yaml.safe_load(Path("k8s/components/monitoring/tests/outages.yaml").read_text())

SCRAPE, EVALUATION = 15, 30
"""Seconds between two samples of a series, and between two looks at the rules."""

BEFORE, AFTER = "15m", 1200
"""How long all is well before an outage, and the seconds that one lasts at least: more than any alert waits.

promtool takes as long as it has to look at the rules, so that an hour more of each is a minute of all.
"""

PODS, GONE, WELL = ("a", "b", "c"), "gone", "well"

_BEGIN, _END = "<!-- outages", "<!-- end of outages -->"

type Changes = Mapping[str, Any]
type Rings = dict[tuple[str, str], int]
"""After how many seconds an alert of a severity rings for the first time."""


@dataclass
class Series:
    """What one series shows, and for how many samples."""

    phases: list[tuple[str, int]] = field(default_factory=list)

    def add(self, value: str, samples: int) -> None:
        """Go on with a value; one that goes on as it was is one phase."""
        if self.phases and self.phases[-1][0] == value:
            samples += self.phases.pop()[1]
        self.phases.append((value, samples))

    def notation(self) -> str:
        """Return it as promtool writes it; a counter goes on from where it is."""
        parts: list[str] = []
        last = 0.0
        for value, samples in self.phases:
            if value == GONE:
                # Prometheus waits for a scrape more before it says that a series has ended.
                parts += [f"_x{samples}"] if not parts or samples == 1 else ["_ stale", f"_x{samples}"]
                last = 0.0
                continue
            found = re.fullmatch(r"(\d*)([+-]\d+)?", value)
            assert found, f"{value!r} is no value of a series, such as 1, +150, 3600-15 or gone"
            growth = float(found[2] or 0)
            first = float(found[1]) if found[1] else last + growth
            parts.append(f"{first:.0f}{growth:+.0f}x{samples - 1}")
            last = first + growth * (samples - 1)
        return " ".join(parts)


class Timeline:
    """All series of a namespace."""

    def __init__(self, namespace: str) -> None:
        well = SCENARIOS["well"]
        self._namespace, self._samples = namespace, 0
        self._now = {"": dict(well["cluster"])} | {pod: dict(well["pod"]) for pod in PODS}
        self._series: dict[str, Series] = {}

    def go_on(self, seconds: float, changes: Changes) -> None:
        """Change what is said to change, and let it be so for `seconds`."""
        self._change("", changes.get("cluster", {}))
        for pod in PODS:
            self._change(pod, changes.get("pod", {}))
        for pod, change in changes.get("pods", {}).items():
            self._change(pod, change)
        samples = int(seconds) // SCRAPE
        for pod, values in self._now.items():
            for name, value in values.items():
                self._of(name, pod).add(str(value), samples)
        self._samples += samples

    def input_series(self) -> Iterator[dict[str, str]]:
        """Yield the series as promtool takes them."""
        return ({"series": name, "values": each.notation()} for name, each in self._series.items())

    def _change(self, pod: str, change: Any) -> None:
        values = self._now.setdefault(pod, {})
        if isinstance(change, list):
            for each in change:
                self._change(pod, each)
        elif change == GONE:
            values |= dict.fromkeys(values, GONE)
        else:
            values |= SCENARIOS["well"]["pod"] if change == WELL else change

    def _of(self, name: str, pod: str) -> Series:
        name, _, labels = name.removesuffix("}").partition("{")
        own = f'job="user-service", pod="{pod}"' if pod else 'job="kube-state-metrics"'
        full = f'{name}{{namespace="{self._namespace}", {own}{labels and ", " + labels}}}'
        unseen = [(GONE, self._samples)] if self._samples else []
        return self._series.setdefault(full, Series(unseen))


@dataclass(frozen=True)
class Scenario:
    """What happens in a namespace, while all is well in another one."""

    name: str

    start: float
    """The second at which it is no longer well."""

    phases: list[tuple[float, Changes]]

    expected: str = ""
    """The alert that rings."""

    within: float = 0
    """Seconds from the start in which it does."""

    rules: str = ""
    """The file with the rules that are left, if not all are."""

    def rings(self, rules: Path, namespace: str, other: str, state: str = "firing") -> Rings:
        """Return which alerts of a file of rules ring, when this happens in `namespace`.

        promtool is told that none ever does, and says when that is wrong. Windows of days are left out:
        only hours pass before an outage here.
        """
        seconds = sum(lasts for lasts, _ in self.phases)
        asked = seconds - self.start
        first = f'min_over_time(timestamp(ALERTS{{alertstate=~"{state}"}})[{asked:.0f}s:{EVALUATION}s])'
        test = {
            "interval": f"{SCRAPE}s",
            "input_series": [*self._series(namespace, other)],
            "promql_expr_test": [{"expr": first, "eval_time": f"{seconds:.0f}s"}],
        }
        found: Rings = {}
        for labels, at in _promtool(rules.with_name(self.rules) if self.rules else rules, test):
            if not self.start or labels.get("window") not in ("1d", "3d"):
                key = labels["alertname"], labels["severity"]
                found[key] = min(int(at - self.start), found.get(key, int(at)))
        return found

    def _series(self, namespace: str, other: str) -> Iterator[dict[str, str]]:
        ours, theirs = Timeline(namespace), Timeline(other)
        for seconds, changes in self.phases:
            ours.go_on(seconds, changes)
            theirs.go_on(seconds, {})
        yield from ours.input_series()
        yield from theirs.input_series()


def outages() -> list[Scenario]:
    """Return the outages. Each begins just after a scrape and an evaluation, so that nothing rings later."""
    return [
        Scenario(
            name=each["outage"],
            start=(before := parse_duration(each.get("after", BEFORE))),
            phases=[(before + SCRAPE, {}), (max(AFTER, within := parse_duration(each["within"])), each)],
            expected=each["rings"],
            within=within,
            rules=each.get("rules", ""),
        )
        for each in SCENARIOS["outages"]
    ]


def all_outages() -> Scenario:
    """Return all outages, one after the other, each long enough for what is critical.

    Who asks whether anything rings takes what is pending for it, too.
    """
    well = {"pods": dict.fromkeys(PODS, WELL)}
    phases = ([(300, each), (60, well)] for each in SCENARIOS["outages"])
    before = parse_duration(BEFORE)
    return Scenario("All outages", before, [(before, {}), *itertools.chain.from_iterable(phases)])


def quiet_night() -> Scenario:
    """Return the night."""
    phases = [(parse_duration(each["lasts"]), each) for each in SCENARIOS["quiet_night"]]
    return Scenario("A quiet night", 0, phases)


def table(rows: Mapping[str, Rings]) -> str:
    """Return in Markdown what rings in each outage, the first first."""
    lines = ["| outage | what rings | after |", "|---|---|---|"]
    for name, rings in rows.items():
        ordered = sorted(rings.items(), key=lambda each: (each[1], each[0][1]))
        for number, ((alert, severity), seconds) in enumerate(ordered):
            lines.append(f"| {'' if number else name} | `{alert}`, {severity} | {seconds} s |")
    return "\n".join(lines)


def with_table(document: str, table: str) -> str:
    """Return a document with another table between its two marks."""
    before, _, rest = document.partition(_BEGIN)
    mark, _, rest = rest.partition("-->\n")
    _, end, after = rest.partition(_END)
    assert end, f"the document has no {_BEGIN} ... {_END}"
    return f"{before}{_BEGIN}{mark}-->\n{table}\n{end}{after}"


def _promtool(rules: Path, test: Changes) -> list[tuple[dict[str, str], float]]:
    """Run a test; return the series that it was not to find, and their values."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "test.yaml")
        content = {"rule_files": [str(rules)], "evaluation_interval": f"{EVALUATION}s", "tests": [test]}
        file.write_text(yaml.safe_dump(content))
        command = [program("promtool"), "test", "rules", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    output = done.stdout + done.stderr
    found = re.findall(r"(\{[^{}]*\}) ([\d.E+]+)", output) if done.returncode else []
    assert found or done.returncode == 0, output
    return [(dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)) for labels, value in found]
