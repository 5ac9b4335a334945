"""The template of the report: a page without numbers, filled in by :mod:`lrenv.training.report`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from string import Template
from typing import Any

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<h1>$title</h1>
<p>$introduction</p>
<section aria-labelledby="summary">
<h2 id="summary">Summary</h2>
$summary
<p class="note">$summary_note</p>
</section>
<section aria-labelledby="ratios">
<h2 id="ratios">Ratio to the tuned expert</h2>
<figure>
<div id="ratio-plot" class="plot" role="img" aria-label="$ratio_label"
 style="height: ${ratio_height}px"></div>
<figcaption>$ratio_caption</figcaption>
</figure>
</section>
<section aria-labelledby="profile">
<h2 id="profile">Performance profile</h2>
<figure>
<div id="profile-plot" class="plot" role="img" aria-label="$profile_label"></div>
<figcaption>The share of runs whose ratio is at most that on the axis; diverged runs never
count.</figcaption>
</figure>
</section>
<section aria-labelledby="curves">
<h2 id="curves">One run of each method</h2>
<p><label for="task">Task</label> <select id="task">$tasks</select></p>
<div class="legend" role="group" aria-label="Methods shown">$legend</div>
<div class="pair">
<figure>
<h3>Learning rate</h3>
<div id="lr-plot" class="plot" role="img"></div>
<figcaption id="lr-caption"></figcaption>
</figure>
<figure>
<h3>Training loss</h3>
<div id="loss-plot" class="plot" role="img"></div>
<figcaption id="loss-caption"></figcaption>
</figure>
</div>
<noscript><p>The plots need JavaScript; the tables hold the same results.</p></noscript>
</section>
<details>
<summary>Every run</summary>
$runs
</details>
<details>
<summary>Settings and environment</summary>
$settings
</details>
</main>
<script type="application/json" id="report-data">$data</script>
<script>$plotly</script>
<script>$script</script>
</body>
</html>
""")

STYLE = """
:root { --ink: #1c2127; --soft: #59616b; --rule: #d9dde2; --paper: #ffffff; --tint: #e6f2ec;
  --accent: #b34e00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7eaee; --soft: #a2abb6; --rule: #363c45; --paper: #14171b; --tint: #17382b;
    --accent: #f08a3c; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem clamp(0.9rem, 3vw, 2rem) 3rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 0.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem; }
h3 { font-size: 1rem; margin: 0.75rem 0 0; }
p { max-width: 48rem; margin: 0.5rem 0; overflow-wrap: anywhere; }
.note, figcaption { color: var(--soft); font-size: 0.9rem; }
figcaption { margin-top: 0.4rem; }
figure { margin: 0; min-width: 0; }
.plot { height: 340px; }
.pair { display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
.summary table { width: 100%; }
th, td { padding: 0.4rem 0.6rem; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
thead th { vertical-align: bottom; white-space: normal; color: var(--soft); font-weight: 600; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
td.text, .runs th:nth-child(-n + 3) { text-align: left; }
tbody th { font-weight: 400; }
@media (max-width: 44rem) {
  tbody th { min-width: 8.5rem; white-space: normal; }
  tbody .swatch { display: block; } }
tr.learned th { font-weight: 700; }
tr.reference > * { color: var(--soft); }
td.best { background: var(--tint); font-weight: 700; }
.badge { border: 1px solid var(--rule); border-radius: 0.6rem; padding: 0 0.4rem;
  font-size: 0.75rem; white-space: nowrap; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.swatch { width: 1.75rem; height: 0.6rem; margin-right: 0.4rem; vertical-align: middle; }
.legend { display: flex; flex-wrap: wrap; gap: 0.4rem; }
button, select { font: inherit; font-size: 0.9rem; color: var(--ink); background: var(--paper);
  border: 1px solid var(--rule); border-radius: 0.4rem; padding: 0.3rem 0.6rem; max-width: 100%;
  min-height: 2.25rem; }
button { cursor: pointer; text-align: left; }
button[aria-pressed="false"] { opacity: 0.6; text-decoration: line-through; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
details { margin-top: 1.25rem; border-top: 1px solid var(--rule); padding-top: 0.75rem; }
details > summary { cursor: pointer; font-weight: 600; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: 0.2rem 1rem;
  font-size: 0.9rem; }
dt { color: var(--soft); overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; }
"""

SCRIPT = """
const data = JSON.parse(document.getElementById("report-data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 44rem)");
const touch = matchMedia("(pointer: coarse)");
const select = document.getElementById("task");
const hidden = new Set();

function plot(id, traces, layout) {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = {gridcolor: colour("--rule"), linecolor: colour("--rule"), zeroline: false,
    automargin: true};
  // A phone has no room for names beside the rows: there they stand above them.
  const {tickvals = [], ticktext = []} = layout.yaxis;
  const above = id === "ratio-plot" && narrow.matches;
  const annotations = above ? ticktext.map((text, i) => ({text, y: tickvals[i], yshift: 21, x: 0,
    xref: "paper", xanchor: "left", showarrow: false, bgcolor: colour("--paper")})) : [];
  Plotly.react(id, traces, {...layout, annotations,
    xaxis: {...axis, ...layout.xaxis},
    yaxis: {...axis, ...layout.yaxis, showticklabels: !above},
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    font: {color: colour("--ink"), family: "system-ui, sans-serif", size: 13},
    margin: {l: 8, r: 12, t: 12, b: 8}, hovermode: "closest",
    dragmode: touch.matches ? false : "zoom"}, {responsive: true, displayModeBar: false});
}

function drawCurves() {
  const task = data.tasks[select.value];
  if (!task) return;
  for (const kind of ["lr", "loss"]) {
    const traces = task[kind].traces.map((t) => ({...t, visible: !hidden.has(String(t.meta))}));
    plot(kind + "-plot", traces, task[kind].layout);
    document.getElementById(kind + "-plot").setAttribute("aria-label", task[kind].label);
    document.getElementById(kind + "-caption").textContent = task[kind].caption;
  }
}

function draw() {
  plot("ratio-plot", data.ratio.traces, data.ratio.layout);
  plot("profile-plot", data.profile.traces, data.profile.layout);
  drawCurves();
}

for (const button of document.querySelectorAll("[data-method]")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    if (shown) hidden.delete(button.dataset.method); else hidden.add(button.dataset.method);
    drawCurves();
  });
}
select.addEventListener("change", drawCurves);
dark.addEventListener("change", draw);
narrow.addEventListener("change", draw);
draw();
"""


def number(value: Any) -> float | None:
    """Return a finite number as a float, and ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def table_head(titles: Iterable[str]) -> str:
    """The head of a table as HTML; titles are plain text."""
    cells = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    return f"<thead><tr>{cells}</tr></thead>"


def scroll_table(label: str, content: str, kind: str = "") -> str:
    """A table that scrolls on a narrow page, also by keyboard.

    Args:
        label: What it holds, for screen readers.
        content: Its head and rows, as HTML.
        kind: A class of CSS.
    """
    # Relative, so that the texts for screen readers alone do not widen the page.
    return (
        f'<div class="scroll {kind}" style="position: relative" role="region" tabindex="0" '
        f'aria-label="{label}"><table>{content}</table></div>'
    )


def simple_page(title: str, body: str) -> str:
    """A whole page of HTML, readable in light and dark and on a phone.

    Args:
        title: Its title and heading, plain text.
        body: What stands below the heading, HTML.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )
