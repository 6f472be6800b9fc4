"""A report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere."""

import html
import re
from collections.abc import Mapping, Sequence

_LIGHT = "--text: #1f2328; --back: #ffffff; --soft: #59636e; --line: #d1d9e0;"
_DARK = "--text: #f0f6fc; --back: #0d1117; --soft: #9198a1; --line: #3d444d;"

# Whatever a report says, a page of it asks nobody for anything, and runs nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_NO_TEXT = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no place for (https://www.w3.org/TR/xml/#charsets), nor a screen: control characters."""

_STYLE = """
h1, h2, p, li { overflow-wrap: anywhere; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 2rem auto;
  padding: 0 1rem; } h1, h2 { line-height: 1.2; }
.soft { color: var(--soft); } table { border-collapse: collapse; } .scrolled { overflow-x: auto; }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
@media print { section, svg, tr { break-inside: avoid; } .sticky { position: static; } }
"""


def escape(text: str) -> str:
    """Return a text as HTML or SVG has it, without control characters."""
    return html.escape(_NO_TEXT.sub("\ufffd", text))


def aside(text: str) -> str:
    """Return a text as HTML has it beside others, whose direction it leaves as it is."""
    return f"<bdi>{escape(text)}</bdi>"


def theme(selector: str, light: str, dark: str) -> str:
    """Return the style that gives an element the colours of all reports, and these, by day and by night."""
    night = f"@media (prefers-color-scheme: dark) {{ {selector} {{ {_DARK} {dark} }} }}"
    return f"{selector} {{ color-scheme: light dark; {_LIGHT} {light} }} {night}"


def document(title: str, style: str, body: str) -> str:
    """Return a page whose style is that of all reports, and this."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head>"
        f"<body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def setting(values: Mapping[str, object]) -> str:
    """Return where and how it was measured."""
    pairs = " · ".join(f"{aside(str(name))}: {aside(str(value))}" for name, value in values.items())
    return f'<p class="soft setting">{pairs}</p>'


def skipped(heading: str, reasons: Mapping[str, str]) -> str:
    """Return a section about what is missing and why; nothing if nothing is."""
    items = "".join(f"<li>{aside(what)}: {aside(why)}</li>" for what, why in reasons.items())
    return f'<section class="skipped"><h2>{escape(heading)}</h2><ul>{items}</ul></section>' if items else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, which scrolls by itself where it is too wide."""

    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f'<div class="scrolled"><table><thead>{row(head, "th")}</thead><tbody>{body}</tbody></table></div>'
