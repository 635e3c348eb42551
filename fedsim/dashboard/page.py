"""The report's page: one HTML file that opens from a disk, without a network, on a phone, in the dark and on paper.

Holds the stylesheet and the small script that draws the figures in the page's colours; knows nothing of runs.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from gzip import compress
from typing import Any

from plotly.offline import get_plotlyjs

from fedsim.dashboard.markup import text

_CSS = """
:root { --page:#fff; --ink:#1b1b1b; --soft:#595959; --line:#d8d8d8; --tint:#f5f5f3; --link:#0055aa; color-scheme:light dark }
@media screen and (prefers-color-scheme: dark) {
  :root { --page:#16181b; --ink:#ececec; --soft:#b0b0b0; --line:#3a3d42; --tint:#1f2226; --link:#8cc4ff }
}
* { box-sizing:border-box }
body { margin:0; background:var(--page); color:var(--ink); font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif }
main { max-width:1100px; margin:0 auto; padding:24px 16px 64px }
h1 { font-size:1rem; font-weight:600; color:var(--soft); margin:0 0 8px }
h2 { font-size:1.35rem; margin:56px 0 8px; line-height:1.25 }
h3 { font-size:1rem; margin:24px 0 0 }
p { max-width:75ch; margin:8px 0 }
.answer { font-size:1.6rem; line-height:1.3; font-weight:600; max-width:52ch; margin:0 0 16px; text-wrap:balance; overflow-wrap:anywhere }
.whole { white-space:nowrap }
.note, figcaption { color:var(--soft); font-size:.9rem }
a { color:var(--link) } .data { white-space:nowrap }
:focus-visible { outline:3px solid var(--link); outline-offset:2px }
.scroll { overflow-x:auto; margin:0 0 16px; position:relative }
table { border-collapse:collapse; font-variant-numeric:tabular-nums; font-size:.95rem; min-width:100% }
th, td { text-align:right; padding:6px 0 6px 16px; border-bottom:1px solid var(--line); vertical-align:top }
th:first-child { text-align:left; padding-left:0 }
td { white-space:nowrap }
small { display:block; font-size:.85rem; color:var(--soft) }
thead th { vertical-align:bottom; color:var(--soft); font-weight:600; font-size:.85rem; min-width:6em }
tbody th { font-weight:600; overflow-wrap:break-word }
.policy { display:flex; gap:8px; align-items:baseline; min-width:9em }
.swatch { flex:none }
figure { margin:8px 0 16px } figcaption { margin-top:6px }
.plot { width:100%; min-height:180px }
.controls { display:flex; flex-wrap:wrap; gap:4px 20px; margin:8px 0 0 }
select { font:inherit; color:inherit; background:var(--page); border:1px solid var(--line); border-radius:4px; padding:2px 6px; max-width:100% }
.control { display:inline-flex; gap:6px; align-items:center; max-width:100% }
.slider { flex:1 1 320px; max-width:560px } .slider input { flex:1 } .slider output { min-width:5em; font-variant-numeric:tabular-nums }
fieldset { border:0; padding:0; margin:8px 0 0; display:flex; flex-wrap:wrap; gap:2px 20px }
legend { position:absolute; width:1px; height:1px; overflow:hidden; clip-path:inset(50%) }
label { display:inline-flex; gap:6px; align-items:center; font-size:.9rem; overflow-wrap:anywhere; cursor:pointer }
pre { background:var(--tint); padding:12px; overflow:auto; max-height:32rem; font-size:.85rem; max-width:100% }
details { margin:8px 0 } summary { cursor:pointer }
nav { display:none }
@media screen and (min-width:1480px) {
  nav { display:block; position:fixed; top:24px; left:calc(50% - 735px); width:165px; font-size:.85rem; line-height:1.35 }
  nav a { display:block; padding:4px 0; color:var(--soft); text-decoration:none } nav a:hover { text-decoration:underline }
}
@media (max-width:600px) { .answer { font-size:1.3rem } main { padding:16px 12px 48px } h2 { margin-top:40px } }
@media print { figure, tr { break-inside:avoid } h2, h3 { break-after:avoid } input, .controls { display:none } .scroll { overflow:visible } pre { max-height:none } }
"""

_SCRIPT = """
(async () => {
  // Plotly and the figures travel compressed: together they would weigh three times as much.
  const unpacked = async (id) => {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };
  const library = document.createElement("script");
  library.textContent = await unpacked("plotly");
  document.head.append(library);
  const places = JSON.parse(await unpacked("places"));

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isTouch = matchMedia("(pointer: coarse)").matches;
  const themes = {
    light: { ink: "#1b1b1b", page: "#ffffff", grid: "#e4e4e4" },
    dark: { ink: "#ececec", page: "#16181b", grid: "#33363b" },
  };
  const current = () => (dark.matches ? themes.dark : themes.light);
  // In the page's colours; on paper always the light ones.
  const themed = (theme) => ({
    "font.color": theme.ink, "hoverlabel.bgcolor": theme.page, "hoverlabel.font.color": theme.ink,
    "xaxis.gridcolor": theme.grid, "yaxis.gridcolor": theme.grid,
  });
  const inked = (trace, theme) => {
    if (trace.type === "bar") return { "marker.color": theme.ink };
    if (trace.mode === "markers") return { "marker.color": theme.ink, "marker.line.color": theme.page };
    return { "line.color": theme.ink };
  };
  const paint = async (plot, theme) => {
    await Plotly.relayout(plot, themed(theme));
    for (const [i, trace] of plot.data.entries()) {
      if (trace.meta && trace.meta.is_ink) await Plotly.restyle(plot, inked(trace, theme), [i]);
    }
  };

  class Place {
    constructor(plot) {
      this.plot = plot;
      this.views = places[plot.id];
      this.figure = plot.closest("figure") || plot.parentElement;
      this.controls = [...this.figure.querySelectorAll("[data-control]")];
      this.boxes = [...this.figure.querySelectorAll("[data-policy]")];
      this.controls.forEach((control) => control.addEventListener("input", () => this.show()));
      this.boxes.forEach((box) => box.addEventListener("change", () => this.hide()));
      this.figure.querySelectorAll("[data-csv]").forEach((link) => link.addEventListener("click", (event) => {
        event.preventDefault();
        this.save(link.dataset.csv);
      }));
    }

    value(control) {
      return control.type === "range" ? control.dataset.values.split("|")[control.value] : control.value;
    }

    // Later controls offer only what exists beside the choices before them.
    chosen() {
      let prefix = "";
      for (const control of this.controls) {
        if (control.type !== "range") {
          const options = [...control.options];
          options.forEach((option) => {
            const key = prefix + option.value;
            const exists = Object.keys(this.views).some((view) => view === key || view.startsWith(key + "|"));
            option.hidden = option.disabled = !exists;
          });
          if (control.selectedOptions[0].disabled) control.value = options.find((option) => !option.disabled).value;
        }
        prefix += this.value(control) + "|";
      }
      return prefix.slice(0, -1);
    }

    async show() {
      this.view = this.views[this.chosen()];
      const { data, layout, title, caption } = this.view;
      // A finger on a figure scrolls the page; a mouse zooms.
      const own = { ...layout, dragmode: isTouch ? false : "zoom", showlegend: layout.showlegend && !this.boxes.length };
      await Plotly.react(this.plot, structuredClone(data), own, { responsive: true, displayModeBar: false });
      await paint(this.plot, current());
      if (this.boxes.some((box) => !box.checked)) await this.hide();
      if (title === undefined) return;
      this.figure.querySelector("h3").textContent = title;
      this.figure.querySelector(".words").textContent = caption;
      this.plot.setAttribute("aria-label", title);
      this.controls.filter((control) => control.type === "range").forEach((control) => {
        control.setAttribute("aria-valuetext", this.value(control));
        control.nextElementSibling.textContent = this.value(control);
      });
      this.figure.querySelectorAll("[data-csv]").forEach((link) => { link.hidden = !(link.dataset.csv in this.view.csv); });
    }

    async hide() {
      const off = new Set(this.boxes.filter((box) => !box.checked).map((box) => box.dataset.policy));
      const visible = this.plot.data.map((trace) => !(trace.meta && off.has(trace.meta.policy)));
      await Plotly.restyle(this.plot, { visible }, visible.map((_, i) => i));
    }

    save(which) {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([this.view.csv[which]], { type: "text/csv" }));
      link.download = this.view.name + (which === "exact" ? "_exact" : "") + ".csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }
  }

  const all = [...document.querySelectorAll(".plot")].map((plot) => new Place(plot));
  for (const place of all) await place.show();
  const paintAll = (theme) => all.forEach((place) => paint(place.plot, theme));
  dark.addEventListener("change", () => paintAll(current()));
  addEventListener("beforeprint", () => paintAll(themes.light));
  addEventListener("afterprint", () => paintAll(current()));
  document.documentElement.dataset.drawn = "all";
})();
"""


def page(*, title: str, opening: str, sections: Sequence[tuple[str, str]], places: Mapping[str, Any]) -> str:
    """The whole page.

    opening: markup of the first screen. sections: (question, markup) each. places: id of a `.plot` element -> its views
    (`places.place_data`), each with Plotly's data and layout. The content policy in the head forbids every request.
    """
    entries = list(enumerate(sections))
    contents = "".join(f'<a href="#question-{i}">{text(question)}</a>' for i, (question, _) in entries)
    body = "".join(
        f'<section id="question-{i}"><h2>{text(question)}</h2>{content}</section>' for i, (question, content) in entries
    )
    allowed = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{allowed}"><link rel="icon" href="data:,">'
        f"<title>{text(title)}</title><style>{_CSS}</style></head>\n<body>"
        f'<nav aria-label="Questions">{contents}</nav>\n<main>{opening}{body}'
        "<noscript><p>The figures are drawn by a script in this file; tables and words do without.</p></noscript></main>\n"
        f'<script type="text/plain" id="plotly">{_library()}</script>\n'
        f'<script type="text/plain" id="places">{_packed(json.dumps(places, separators=(",", ":"), allow_nan=False))}</script>\n'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


@cache
def _library() -> str:
    return _packed(get_plotlyjs())


def _packed(content: str) -> str:
    """gzip in base64, the same bytes for the same text: nothing in it can end a script element."""
    return b64encode(compress(content.encode(), compresslevel=6, mtime=0)).decode()
