"""The report as a page, and the README's chart."""

from dataclasses import replace

from tools.bench.charts import DARK, LIGHT, LONG_LABELS, STYLE, Bar, both, chart
from tools.bench.results import Change, Report, Result
from tools.pages.document import document, escape, setting, skipped, table, theme
from tools.pages.units import readable

_TITLE = "What a gRPC call costs a server"

_STYLE = f"""
{theme(":root", LIGHT, DARK)} body {{ max-width: 800px; }}
{STYLE}
svg {{ width: 100%; height: auto; }} svg.narrow {{ display: none; }}
@media (max-width: 600px) {{ svg.narrow {{ display: inline; }} svg.wide {{ display: none; }} }}
.key {{ white-space: nowrap; margin-right: 1.5em; }} .key svg {{ width: .8em; margin-right: .4em; }}
"""

_METHOD = """
CPU time of each server process, by the kernel's account, as a multiple of bare grpc.aio's in the same round:
shorter is better. A bar is the median of all rounds, its whisker goes from the least to the most, the dashed
line is bare grpc.aio. The load comes from h2load; messages are bytes that no server parses. For mTLS a relay,
which is not counted, stands between the two, as h2load has no client certificates; latencies there have the
relay's in them. The access log goes to /dev/null, traces to a port where nobody listens.
"""

_PEERS = """
Each server is one process with its defaults. pyvoy is Envoy with Python inside. connect-python serves gRPC
only where HTTP/2 has trailers, so not on uvicorn, gunicorn or granian; it has no health service and no
reflection of its own. grpc.server, grpc-go and pyvoy use more than one thread. Only servers with a client of
the same library are measured as services that call others.
"""


def page(report: Report, changes: list[Change]) -> str:
    """Return the page; `changes` is what an older report is compared by."""
    groups = list(dict.fromkeys(result.group for result in report.results))
    titles: dict[str, list[Result]] = {}
    for result in report.results:
        titles.setdefault(result.series or result.load, []).append(result)
    sections = [_section(title, results, groups) for title, results in titles.items()]
    method = f"<p>{_METHOD}</p><p>{_PEERS}</p>{setting(report.setting)}"
    body = f"{method}{_legend(groups)}{''.join(sections)}{_changes(changes)}"
    return document(_TITLE, _STYLE, body + skipped("Not measured", report.skipped))


def _legend(groups: list[str]) -> str:
    keys = (
        f'<span class="key"><svg viewBox="0 0 8 8"><rect class="c{index}" width="8" height="8"/></svg>'
        f"{escape(group)}</span>"
        for index, group in enumerate(groups)
    )
    return f"<p>{''.join(keys)}</p>"


def _section(title: str, results: list[Result], groups: list[str]) -> str:
    charts = _row_of_loads(results, groups) if results[0].series else _one_load(results, groups)
    return f"<section><h2>{escape(title)}</h2>{charts}{_figures(results)}</section>"


def _one_load(results: list[Result], groups: list[str]) -> str:
    title = results[0].load
    latencies = "".join(_latency(results, groups, name) for name in _names(results, "latencies"))
    others = "".join(_other(results, groups, name) for name in _names(results, "others"))
    return both(f"CPU time, {title}", ratios(results, groups), mark=1) + latencies + others


def ratios(results: list[Result], groups: list[str]) -> list[Bar]:
    """Return a bar for each result's CPU time, as a multiple of bare grpc.aio's."""
    return [
        Bar(
            r.way,
            r.ratio.median,
            f"{r.ratio.median:.2f}",
            groups.index(r.group),
            (r.ratio.least, r.ratio.most),
        )
        for r in results
    ]


def _row_of_loads(results: list[Result], groups: list[str]) -> str:
    bars = [
        Bar(
            f"{r.way}, {r.load}",
            r.cpu,
            f"{readable(r.cpu)} ({r.ratio.median:.2f})",
            groups.index(r.group),
        )
        for r in sorted(results, key=lambda r: [other.way for other in results].index(r.way))
    ]
    what = "<p>CPU time a call, and in brackets as a multiple of bare grpc.aio's.</p>"
    return what + both("CPU time", bars, wide=LONG_LABELS)


def _names(results: list[Result], of: str) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in getattr(result, of)))


def _latency(results: list[Result], groups: list[str], name: str) -> str:
    bars = [
        Bar(r.way, r.latencies[name], readable(r.latencies[name]), groups.index(r.group))
        for r in results
        if name in r.latencies
    ]
    return f"<h3>Latency, {escape(name)}</h3>{both(f'latency, {name}', bars)}"


def _other(results: list[Result], groups: list[str], name: str) -> str:
    bars = [
        Bar(r.way, r.others[name], f"{r.others[name]:.2f}", groups.index(r.group))
        for r in results
        if name in r.others
    ]
    return f"<h3>{escape(name)}</h3>{both(name, bars)}"


def _figures(results: list[Result]) -> str:
    unit, latencies, others = results[0].unit, _names(results, "latencies"), _names(results, "others")
    head = ["server", "CPU ratio", "least", "most", f"CPU/{unit}", f"{unit}s/s", *latencies, *others]
    rows = [
        [
            f"{r.way}, {r.load}" if r.series else r.way,
            *(f"{value:.2f}" for value in (r.ratio.median, r.ratio.least, r.ratio.most)),
            readable(r.cpu),
            f"{r.rate:,.0f}" if r.rate else "",
            *(readable(r.latencies[name]) if name in r.latencies else "" for name in latencies),
            *(f"{r.others[name]:.2f}" if name in r.others else "" for name in others),
        ]
        for r in results
    ]
    return f"<details><summary>Figures</summary>{table(head, rows)}</details>"


def _changes(changes: list[Change]) -> str:
    if not changes:
        return ""
    rows = [
        [
            f"{change.load}; {change.way}",
            f"{change.old.median:.2f}",
            f"{change.new.median:.2f}",
            change.verdict,
        ]
        for change in changes
    ]
    head = ["load; server", "CPU ratio then", "now", "a clear change"]
    return f"<section><h2>Compared with the older report</h2>{table(head, rows)}</section>"


def readme_chart(report: Report) -> str:
    """Return the README's chart as an SVG file: the peers, and grpc_common with all but traces and TLS."""
    load = report.results[0].load  # saturation
    results = [r for r in report.results if r.load == load]
    groups = list(dict.fromkeys(r.group for r in results))
    shown = [r for r in results if r.group == groups[0] or r.way.endswith("+ access line")]
    style = f"{theme('svg', LIGHT, DARK)} svg {{ background: var(--back); }} {STYLE}"
    bars = [replace(bar, label=_short(bar.label)) for bar in ratios(shown, groups)]
    return chart(f"CPU time of a server a call, {load}", bars, mark=1, style=style) + "\n"


def _short(way: str) -> str:
    return f"grpc_common, {way.partition(':')[0]}" if way.endswith("+ access line") else way
