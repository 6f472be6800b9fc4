"""The report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere."""

from html import escape

from tools.bench.charts import Bar, chart
from tools.bench.results import Change, Report, Result

_STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --back: #ffffff; --soft: #59636e; --line: #d1d9e0;
  --c0: #8c959f; --c1: #bf8700; --c2: #0969da; }
@media (prefers-color-scheme: dark) { :root { --text: #f0f6fc; --back: #0d1117; --soft: #9198a1;
  --line: #3d444d; --c0: #6e7681; --c1: #d29922; --c2: #4493f8; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 800px;
  margin: 2rem auto; padding: 0 1rem; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--text); }
svg .label { text-anchor: end; } .c0 { fill: var(--c0); } .c1 { fill: var(--c1); } .c2 { fill: var(--c2); }
.whisker, .mark { stroke: var(--text); fill: none; } .mark { stroke: var(--soft); stroke-dasharray: 3 3; }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .3em; border-radius: 2px; }
.soft { color: var(--soft); } table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
"""

_METHOD = """
CPU time of each server process, by the kernel's account, as a multiple of bare grpc.aio's in the same round:
shorter is better. A bar is the median of all rounds, its whisker goes from the least to the most. The load
comes from h2load. For mTLS a relay, which is not counted, stands between the two, as h2load has no client
certificates; latencies there have the relay's in them. The access log goes to /dev/null, traces to a port
where nobody listens.
"""


def page(report: Report, changes: list[Change]) -> str:
    """Return the page; `changes` is what an older report is compared by."""
    loads = list(dict.fromkeys(result.load for result in report.results))
    groups = list(dict.fromkeys(result.group for result in report.results))
    sections = [_load([r for r in report.results if r.load == load], groups) for load in loads]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>What a gRPC call costs a server</title><style>{_STYLE}</style></head><body>"
        f"<h1>What a gRPC call costs a server</h1>{_how(report)}{_legend(groups)}"
        f"{''.join(sections)}{_changes(changes)}{_skipped(report)}</body></html>\n"
    )


def _how(report: Report) -> str:
    setting = ", ".join(f"{escape(str(name))} {escape(str(value))}" for name, value in report.setting.items())
    return f'<p>{_METHOD}</p><p class="soft">{setting}</p>'


def _legend(groups: list[str]) -> str:
    keys = (
        f'<span class="key" style="background: var(--c{index})"></span>{escape(group)} &emsp;'
        for index, group in enumerate(groups)
    )
    return f"<p>{''.join(keys)}</p>"


def _load(results: list[Result], groups: list[str]) -> str:
    title = results[0].load
    bars = [
        Bar(
            r.way,
            r.ratio.median,
            f"{r.ratio.median:.2f}",
            groups.index(r.group),
            (r.ratio.least, r.ratio.most),
        )
        for r in results
    ]
    latencies = "".join(_latency(results, groups, name) for name in _quantiles(results))
    return (
        f"<section><h2>{escape(title)}</h2>{chart(f'CPU time, {title}', bars, mark=1)}"
        f"{latencies}{_figures(results)}</section>"
    )


def _quantiles(results: list[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.latencies))


def _latency(results: list[Result], groups: list[str], name: str) -> str:
    bars = [
        Bar(r.way, r.latencies[name], f"{r.latencies[name] * 1000:.2f} ms", groups.index(r.group))
        for r in results
        if name in r.latencies
    ]
    return f"<h3>Latency, {escape(name)}</h3>{chart(f'latency, {name}', bars)}"


def _figures(results: list[Result]) -> str:
    unit, names = results[0].unit, _quantiles(results)
    head = ["server", "CPU ratio", "least", "most", f"CPU/{unit}", f"{unit}s/s", *names]
    rows = [
        [
            r.way,
            *(f"{value:.2f}" for value in (r.ratio.median, r.ratio.least, r.ratio.most)),
            f"{r.cpu * 1e6:.1f} µs",
            f"{r.rate:,.0f}",
            *(f"{r.latencies[name] * 1000:.2f} ms" if name in r.latencies else "" for name in names),
        ]
        for r in results
    ]
    return f"<details><summary>Figures</summary>{_table(head, rows)}</details>"


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
    return f"<section><h2>Compared with the older report</h2>{_table(head, rows)}</section>"


def _skipped(report: Report) -> str:
    items = "".join(f"<li>{escape(way)}: {escape(why)}</li>" for way, why in report.skipped.items())
    return f"<section><h2>Not measured</h2><ul>{items}</ul></section>" if items else ""


def _table(head: list[str], rows: list[list[str]]) -> str:
    def row(cells: list[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f'<div class="wide"><table><thead>{row(head, "th")}</thead><tbody>{body}</tbody></table></div>'
