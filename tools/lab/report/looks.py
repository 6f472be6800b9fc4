"""How the page looks: its style, and the keys to the charts."""

from tools.lab.report.chart import DARK, LIGHT, PAGE_STYLE, STYLE
from tools.pages.document import theme

WHOLE_STYLE = f"""
{theme(":root", LIGHT, DARK)} body {{ max-width: 1240px; }} {STYLE} {PAGE_STYLE}
h1 {{ margin: 0 0 .4rem; }} h2 {{ font-size: 1.1rem; margin: 1rem 0 .2rem; }}
p {{ margin: .4rem 0; max-width: 90ch; }} ul, ol {{ margin: .5rem 0; }} code {{ overflow-wrap: anywhere; }}
.keys, .events {{ display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; list-style: none; padding: 0; }}
.keys svg, .events svg {{ vertical-align: -3px; margin-right: .4em; }}
.keys svg {{ width: 34px; height: 14px; }} .causes {{ padding-left: 1.2rem; overflow-wrap: anywhere; }}
.runs {{ display: grid; gap: 1.2rem 2.5rem; }} .run {{ min-width: 0; scroll-margin-top: 4rem; }}
.about {{ margin: 0 0 .6rem; }}
dl {{ display: grid; grid-template-columns: repeat(4, 1fr); gap: .5rem 1rem; margin: .5rem 0; }}
dl div {{ display: flex; flex-direction: column-reverse; justify-content: flex-end; }}
dt {{ color: var(--soft); font-size: 12px; line-height: 1.2; }} dd {{ margin: 0; font-weight: 600; }}
.bad {{ color: var(--failed); font-weight: 700; }}
.summary {{ width: 100%; }} .summary th {{ vertical-align: bottom; white-space: normal; font-weight: 600; }}
.summary tbody th {{ text-align: left; white-space: nowrap; }} .summary a {{ color: inherit; }}
.invariants td {{ text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }}
.invariants td:first-child {{ white-space: nowrap; }} .invariants td:nth-child(2) {{ font-weight: 600; }}
details th, details td {{ font-size: 13px; padding: .2rem .3rem; vertical-align: top; }}
details th, details td:last-child {{ white-space: normal; }}
details td:last-child {{ overflow-wrap: anywhere; min-width: 5rem; }}
@media (min-width: 700px) {{
  .invariants td:nth-child(2) {{ min-width: 20rem; }}
  .runs {{ grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); }}
  .sticky {{ position: sticky; top: 0; background: var(--back); padding: .4rem 0; }} }}
@media (max-width: 699px) {{
  body {{ margin: 1rem auto; padding: 0 .7rem; }} dl {{ grid-template-columns: 1fr 1fr; }}
  .desk {{ display: none; }} .invariants td {{ display: block; border: 0; padding: 0 .2rem; }}
  .invariants tr {{ display: block; border-bottom: 1px solid var(--line); padding: .2rem 0; }}
  .summary th, .summary td {{ padding: .2rem .15rem; font-size: 13px; font-weight: 400; }}
  details th, details td {{ padding: .2rem .15rem; font-size: 12px; }}
  .summary tbody th, details td:first-child {{ white-space: normal; }}
  details th:nth-child(2), details td:nth-child(2), details th:nth-child(5), details td:nth-child(5) {{
    display: none; }} }}
@media print {{ .desk {{ display: none; }} }}
@media (max-width: 340px) {{
  .summary th, .summary td, details th, details td {{ padding: .2rem .07rem; font-size: 11px; }} }}
"""

_LANE = '<rect class="lane" width="34" height="14"/>'
_FAIR = '<rect class="fair" y="7" width="34" height="7"/>'
_OVER = '<rect class="over" width="34" height="7"/>'
_BAND = '<rect x="5" width="24" height="14"/><line x1="5" x2="5" y2="14"/><line x1="29" x2="29" y2="14"/>'

KEYS = {
    "no calls": _LANE,
    "a fair share of the calls": _LANE + _FAIR,
    "twice that, or more": _FAIR + _OVER,
    "failed calls": '<rect class="failure" x="14" y="2" width="6" height="12"/>',
    "p99": '<path class="p99" d="M0 10H14V3H20V10H34"/>',
    "a planned event": f'<g class="event planned">{_BAND}</g>',
    "a fault": f'<g class="event fault">{_BAND}</g>',
}
"""What the shapes of a chart mean; each is 34 pixels wide and 14 high."""

HOW = """
Each chart has a lane for each pod, which begins and ends with it. What fills the lane is the pod's share of
the calls: half a lane is what it gets when the load is even, so the more the lanes look alike, the evener it
is. A pod takes the lane of one that has ended. Below are the calls that failed, and p99, which is drawn on a
logarithmic scale.
"""
