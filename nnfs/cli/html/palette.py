"""The look of the page, light and dark: colours of the treemap by percent of the content that is stored, and CSS.

The steps run from blue (little is left) over pale to red (nothing was saved), which people who see no red or no green
can tell apart. Each colour has a text on it with a contrast of 4.5 at least, as WCAG 2 asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """A colour of the treemap: up to so many percent; the colour and that of texts on it, in light and in dark."""

    most: float
    light: str
    light_text: str
    dark: str
    dark_text: str


STEPS = (
    Step(10, "#2166ac", "#ffffff", "#1f5f9e", "#ffffff"),
    Step(20, "#4393c3", "#000000", "#2a6f9f", "#ffffff"),
    Step(35, "#92c5de", "#000000", "#3f7390", "#ffffff"),
    Step(50, "#d1e5f0", "#000000", "#566f7d", "#ffffff"),
    Step(70, "#fddbc7", "#000000", "#7d6555", "#ffffff"),
    Step(90, "#f4a582", "#000000", "#985734", "#ffffff"),
    Step(float("inf"), "#d6604d", "#000000", "#ad4433", "#ffffff"),
)


def step_of(logical: int, stored: int) -> int:
    """Return the number of the step of something with content; without content the last one."""
    percent = 100 * stored / logical if logical else float("inf")
    return next(number for number, step in enumerate(STEPS) if percent <= step.most)


def _colours(field: str) -> str:
    return "".join(
        f".s{number}{{fill:{getattr(step, field)};background:{getattr(step, field)}}}"
        f".s{number} text{{fill:{getattr(step, field + '_text')}}}"
        for number, step in enumerate(STEPS)
    )


_BODY = """
:root{color-scheme:light dark;--page:#ffffff;--text:#1b1f24;--dim:#57606a;--line:#d0d7de;--bad:#b00020;--card:#f6f8fa}
body{font:15px/1.45 system-ui,sans-serif;color:var(--text);background:var(--page);max-width:1000px;margin:2em auto;
padding:0 1em;overflow-wrap:anywhere}
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.15em;margin:1.8em 0 .5em}
p{margin:.4em 0}.dim{color:var(--dim)}.bad{color:var(--bad);font-weight:600}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.6em;margin:1em 0}
dl div{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:.5em .8em}
dt{color:var(--dim);font-size:.85em}dd{margin:0;font-size:1.25em;font-weight:600}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--dim);padding-bottom:.3em}
th,td{text-align:right;padding:.25em .6em;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600}th.l,td.l,th:first-child,td:first-child{text-align:left}
tr.sum td{font-weight:600}
figure{margin:0}svg{width:100%;height:auto;display:block}
svg text{font:11px system-ui,sans-serif;pointer-events:none}
.t{stroke:var(--page);stroke-width:1}.d{fill:none;stroke:var(--page);pointer-events:none}
.key{display:flex;flex-wrap:wrap;gap:.9em;margin:.5em 0;padding:0;list-style:none;font-size:.85em}
.key i{display:inline-block;width:1em;height:1em;margin-right:.35em;vertical-align:-.15em;border:1px solid var(--line)}
"""
_DARK = ":root{--page:#0d1117;--text:#e6edf3;--dim:#9aa4ae;--line:#30363d;--bad:#ff7b72;--card:#161b22}"


def css() -> str:
    """Return the style sheet of the page."""
    dark = f"@media (prefers-color-scheme:dark){{{_DARK}{_colours('dark')}}}"
    return f"{_BODY}{_colours('light')}{dark}".replace("\n", "")


def labels() -> Sequence[str]:
    """Return the meaning of each step in words."""
    bounds = [int(step.most) for step in STEPS[:-1]]
    return [f"up to {bound} %" for bound in bounds] + [f"more than {bounds[-1]} %"]
