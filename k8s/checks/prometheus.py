"""A real Prometheus for tests: it scrapes what it is told to, and answers queries."""

import json
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

PATIENCE = 30
"""Seconds that something may take which takes one."""

_POLL = 0.05
"""Seconds between two looks; Prometheus tells nobody when it has scraped."""

type Series = Mapping[str, str]


class QueryError(Exception):
    """Prometheus refuses a query; the text is its own."""


class Prometheus:
    """The API of a running Prometheus."""

    def __init__(self, port: int) -> None:
        self._port = port

    def query(self, expression: str) -> list[tuple[Series, float]]:
        """Return the labels and the value of each series that the expression has now.

        Raises:
            QueryError: it can't be evaluated, or is a mere number.

        """
        data = self._get("query", query=expression)
        if data["resultType"] != "vector":
            raise QueryError(f"{expression}: is a {data['resultType']}, not a vector")
        return [(result["metric"], float(result["value"][1])) for result in data["result"]]

    def range(
        self, expression: str, start: float, end: float, step: float
    ) -> list[tuple[Series, list[tuple[float, float]]]]:
        """Return the labels of each series, and its values at every `step` seconds from `start` to `end`."""
        data = self._get("query_range", query=expression, start=f"{start}", end=f"{end}", step=f"{step}")
        return [
            (result["metric"], [(float(at), float(value)) for at, value in result["values"]])
            for result in data["result"]
        ]

    def value(self, expression: str) -> float | None:
        """Return the value of the only series of the expression; None if there is none."""
        results = self.query(expression)
        assert len(results) <= 1, f"{expression}: {results}"
        return results[0][1] if results else None

    def wait_for(self, expression: str, value: float) -> None:
        """Wait until the expression has this value."""
        end = time.monotonic() + PATIENCE
        while (now := self.value(expression)) != value:
            assert time.monotonic() < end, f"{expression} is {now}, not {value}, after {PATIENCE} s"
            time.sleep(_POLL)

    def results(self, expression: str, count: int) -> list[tuple[Series, float]]:
        """Wait until the expression has at least `count` series, and return what `query` does.

        Prometheus forgets the series of a server whose last scrape took too long.
        """
        end = time.monotonic() + PATIENCE
        while len(found := self.query(expression)) < count:
            assert time.monotonic() < end, f"{expression} has {found} after {PATIENCE} s"
            time.sleep(_POLL)
        return found

    def series(self, selector: str) -> list[Series]:
        """Return the labels of all series that a selector matches."""
        found: list[Series] = self._get("series", **{"match[]": selector})
        return found

    def parse(self, expression: str) -> dict[str, Any]:
        """Return the syntax tree of an expression.

        Raises:
            QueryError: it is none.

        """
        tree: dict[str, Any] = self._get("parse_query", query=expression)
        return tree

    def _get(self, path: str, **arguments: str) -> Any:
        question = f"{path}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self._port}/api/v1/{question}", timeout=PATIENCE
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise QueryError(f"{arguments}: {json.load(error)['error']}") from None


def program(name: str) -> str:
    """Return where a program of Prometheus' is; skip the test if the machine has none."""
    return shutil.which(name) or pytest.skip(f"needs {name} on PATH (Debian: prometheus)")


@contextmanager
def running_prometheus(
    folder: Path, *scrape_configs: Mapping[str, Any], rules: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Prometheus]:
    """Run a Prometheus that keeps its data in `folder`; skip the test if the machine has none.

    It looks at rules every second, whatever their interval, so that no test waits for half a minute.
    """
    config, rule_file = folder / "prometheus.yaml", folder / "rules.yaml"
    rule_file.write_text(yaml.safe_dump({"groups": [{**group, "interval": "1s"} for group in rules]}))
    content = {"scrape_configs": list(scrape_configs), "rule_files": [str(rule_file)]}
    config.write_text(yaml.safe_dump(content))
    command = [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder}/data",
        "--web.listen-address=127.0.0.1:0",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            port = _port(process.stderr)
            # Read all the time, or it would stop when the pipe is full.
            threading.Thread(target=process.stderr.read).start()
            yield Prometheus(port)
        finally:
            process.kill()


def _port(log: IO[str]) -> int:
    """Read the log until Prometheus answers; return its port."""
    port, lines = None, ""
    for line in log:
        lines += line
        if found := re.search(r'msg="Listening on".* address=127\.0\.0\.1:(\d+)', line):
            port = int(found[1])
        if "Server is ready" in line:
            assert port, lines
            return port
    raise AssertionError(lines)


def scrape_config(monitor: Mapping[str, Any], pod: Mapping[str, Any], ports: Sequence[int]) -> dict[str, Any]:
    """Return how Prometheus Operator has pods scraped that a PodMonitor selects.

    Args:
        monitor: the PodMonitor, with one endpoint.
        pod: a pod that it selects.
        ports: where on this machine the port is that each pod serves its metrics on; they are called
            `pod-0`, `pod-1` and so on.

    """
    endpoint = monitor["spec"]["podMetricsEndpoints"][0]
    return {
        "job_name": f"podMonitor/{monitor['metadata']['name']}/0",
        "scrape_interval": "500ms",
        "scrape_timeout": "500ms",
        "relabel_configs": _relabelling(monitor, endpoint),
        "static_configs": [
            {"targets": [f"127.0.0.1:{port}"], "labels": _discovered(monitor, pod, f"pod-{number}")}
            for number, port in enumerate(ports)
        ],
    }


def _discovered(monitor: Mapping[str, Any], pod: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return what discovery tells of the container port `metrics` of a pod."""
    labels = pod["metadata"]["labels"]
    container = pod["spec"]["containers"][0]
    return {
        "__meta_kubernetes_namespace": monitor["metadata"]["namespace"],
        "__meta_kubernetes_pod_name": name,
        "__meta_kubernetes_pod_container_name": container["name"],
        "__meta_kubernetes_pod_container_port_name": "metrics",
        **{_label(key): value for key, value in labels.items()},
    }


def _label(key: str) -> str:
    return "__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", key)


def _relabelling(monitor: Mapping[str, Any], endpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the operator's rules, as generated by its pkg/prometheus/promcfg.go."""
    spec = monitor["spec"]

    def keep(source: str, value: str) -> dict[str, Any]:
        return {"action": "keep", "source_labels": [source], "regex": re.escape(value)}

    def copy(source: str, target: str) -> dict[str, Any]:
        return {"source_labels": [source], "target_label": target, "regex": "(.+)", "replacement": "${1}"}

    job = f"{monitor['metadata']['namespace']}/{monitor['metadata']['name']}"
    return [
        *(keep(_label(key), value) for key, value in spec["selector"]["matchLabels"].items()),
        keep("__meta_kubernetes_pod_container_port_name", endpoint["port"]),
        copy("__meta_kubernetes_namespace", "namespace"),
        copy("__meta_kubernetes_pod_container_name", "container"),
        copy("__meta_kubernetes_pod_name", "pod"),
        {"target_label": "job", "replacement": job},
        *([copy(_label(spec["jobLabel"]), "job")] if "jobLabel" in spec else []),
        {"target_label": "endpoint", "replacement": endpoint["port"]},
    ]
