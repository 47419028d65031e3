"""The interactive figure as one piece of HTML: numbers, words, styles, and a small script that only shows them.

The frame, the look and the slider are those of all figures (:mod:`dplearn.interactive.page`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dplearn.interactive.page import checked_name, displayed, frame, number_table
from dplearn.theory.explorer.heads import HEADS, INPUTS, PROMPT
from dplearn.theory.explorer.shown import number_text, numbers, order_at
from dplearn.theory.explorer.still import picture

if TYPE_CHECKING:
    from IPython.display import HTML

# Stands where scripts do not run, with the picture at three splits.
STILL = "Scripts are off in this view. The table below holds the numbers that the figure shows as the split moves."


def split_explorer(
    name: str = "split-explorer", *, prompt: Any = PROMPT, inputs: Any = INPUTS, start: int | None = None
) -> HTML:
    """The interactive figure, as an object that a notebook and the book display.

    ``name`` is the figure's id in the page: several explorers in one page need different ones. ``start`` is the split
    that it opens with, None for the middle. Own ``prompt`` (l, 2) and ``inputs`` (T, 2) can be looked at in a live
    notebook. Needs IPython, which the extra ``book`` brings. Raises ValueError for an unfit argument.
    """
    return displayed(markup(name, prompt=prompt, inputs=inputs, start=start))


def markup(
    name: str = "split-explorer", *, prompt: Any = PROMPT, inputs: Any = INPUTS, start: int | None = None
) -> str:
    """The HTML of `split_explorer`: styles, words, a table of all numbers, the numbers as JSON, the script."""
    checked_name(name)
    data = numbers(prompt, inputs)
    length = len(data["heads"][0]["outputs"]) - 1
    start = length // 2 if start is None else start
    if type(start) is not int or not 0 <= start <= length:
        raise ValueError(f"start={start!r} is not a split, expected an int from 0 to {length}")
    panels = (
        f'<div class="dpx-head"><p><strong>{head.title}</strong><br>{head.rule}</p>\n'
        f'<p class="dpx-notice"><em>Notice:</em> {head.notice}</p></div>'
        for head in HEADS.values()
    )
    body = "\n".join(
        ['<div class="dpx-still">', picture(data), "</div>", '<div class="dpx-heads">', *panels, "</div>"]
    )
    return frame(name, body, _table(data), {"start": start, **data}, SCRIPT, style=STYLE, still=STILL)


def _table(data: dict) -> str:
    """Every number of the figure, one line per head and split."""
    length = len(data["heads"][0]["outputs"]) - 1
    words = (
        "Percent of the row's attention on the prompt before · the input · the prompt after; then the row's output"
        f" and, in brackets, its change from k = {length}."
    )
    lines = []
    for head in data["heads"]:
        for k, columns in enumerate(zip(head["gates"], head["outputs"], head["changes"])):
            cells = [
                f"{' · '.join(map(str, percent))}<br>{number_text(output)} ({change})"
                for percent, output, change in zip(*columns)
            ]
            lines.append([head["name"], str(k), " ".join(order_at(data, k)), *cells])
    return number_table(words, ["Head", "k", "Order", *data["rows"]], lines)


# ---- styles and script ------------------------------------------------------------------------------------

# On a phone the slider stays in view while the heads below it are scrolled.
STYLE = """
.dpx-heads { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: .8rem 1.4rem }
.dpx-head { border-top: 2px solid var(--line); padding-top: .2rem; display: grid; grid-template-rows: subgrid;
  grid-row: span 3; row-gap: 0; align-content: start }
.dpx-notice { font-size: .85rem !important }
.dpx-control g { transition: transform .35s }
.dpx-wide { width: 100%; text-align: center }
.dpx-count { font-weight: 600 }
.dpx-row { display: grid; grid-template-columns: 1.6rem 1fr; align-items: center; margin-bottom: .45rem }
.dpx-out { display: grid; grid-template-columns: 1fr auto; gap: .6rem; align-items: center; grid-column: 2;
  font-size: .8rem; font-variant-numeric: tabular-nums }
.dpx-out span { min-width: 5.8rem; text-align: right }
.dpx text { fill: #1a1a1a; text-anchor: middle; transition: fill .35s }
.dpx text.dpx-light { fill: #fff }
.dpx circle.dpx-now { fill: currentColor; stroke: none }
@media (max-width: 42rem) {
  .dpx-control { position: sticky; top: calc(var(--pst-header-height, .6rem) - .6rem); z-index: 1;
    margin: 0 -2px .6rem; padding: .6rem max(2px, 50% - 13.5rem) .3rem; background: var(--ground) }
}
"""

# It builds what needs a script: the slider, the sequence below it, a bar and a line for each row of each head.
SCRIPT = """
  const last = data.heads[0].outputs.length - 1, rows = data.rows.length;
  const segments = ["before", "input", "after"];
  const number = (value) => value.toFixed(2).replace("-", "\\u2212");
  const kind = (k) => (k === 0 ? "postfix" : k === last ? "prefix" : "surround");
  const heads = root.querySelector(".dpx-heads");

  // The slider, and the sequence below it: one box per vector.
  const box = root.insertBefore(document.createElement("div"), heads);
  box.className = "dpx-control";
  const texts = Array.from({ length: last + 1 }, (_, k) => `k = ${k}, ${kind(k)}`);
  const ends = [0, last].map((k) => `${k} ${kind(k)}`);
  const split = control(box, { kind: "slider", label: "Split", texts, start: data.start, ends }, () => show());
  const wide = 46 * (last + rows);
  const strip = draw(box, "svg", { viewBox: `0 0 ${wide} 36`, role: "img" });
  const title = draw(strip, "title", {});
  const vector = (name, segment) => {
    const group = draw(strip, "g", {});
    const shape = draw(group, "rect", { x: 2, y: 2, width: 42, height: 32, rx: 5, class: "dpx-" + segment });
    const text = draw(group, "text", { x: 23, y: 23, "font-size": 15 });
    draw(text, "tspan", {}, name[0]);
    draw(text, "tspan", { dy: 4, "font-size": 11 }, name.slice(1));
    return { group, shape, text };
  };
  const inputs = data.rows.map((name) => vector(name, "input"));
  const prompt = Array.from({ length: last }, (_, i) => vector("P" + (i + 1), "before"));

  // What the colours and marks mean, and the state in words.
  const key = root.insertBefore(document.createElement("div"), heads);
  key.className = "dpx-key";
  const names = ["prompt before", "input (X and R)", "prompt after"];
  add(key, "span", {}, "Percent of a row's attention:");
  names.forEach((name, s) => add(add(key, "span"), "i", { class: "dpx-" + segments[s] }).after(name));
  const then = `\\u25cb the output at k\\u00a0=\\u00a0${last}`;
  add(key, "span", { class: "dpx-wide" }, "\\u25cf output, with its change from " + then);
  const state = root.insertBefore(document.createElement("p"), heads);
  state.className = "dpx-state";
  state.setAttribute("aria-live", "polite");

  // One panel per head, one row per input token: a bar of shares, a line with the output.
  const all = data.heads.flatMap((head) => head.outputs.flat());
  const low = Math.min(...all), high = Math.max(...all);
  const at = (value) => (high > low ? 4 + (92 * (value - low)) / (high - low) : 50) + "%";
  const panels = data.heads.map((head, h) => {
    const panel = heads.children[h], notice = panel.querySelector(".dpx-notice");
    panel.setAttribute("role", "group");
    panel.setAttribute("aria-label", head.name + " head");
    const inner = panel.insertBefore(document.createElement("div"), notice);
    const count = add(inner, "p", { class: "dpx-count" });
    const lines = data.rows.map((name, r) => {
      const line = add(inner, "div", { class: "dpx-row" });
      const tag = add(line, "span", {}, name[0]);
      add(tag, "sub", {}, name.slice(1));
      const bar = draw(line, "svg", { height: 20, role: "img" });
      const words = draw(bar, "title", {});
      const parts = segments.map((s) => draw(bar, "rect", { y: 0, height: 20, class: "dpx-" + s }));
      const shares = segments.map((s) => draw(bar, "text", { y: 14, class: s === "before" ? "dpx-light" : "" }));
      const out = add(line, "div", { class: "dpx-out" });
      const scale = draw(out, "svg", { height: 16, "aria-hidden": "true" });
      draw(scale, "line", { x1: 0, x2: "100%", y1: 8, y2: 8, "stroke-opacity": .5 });
      draw(scale, "circle", { cx: at(head.outputs[last][r]), cy: 8, r: 5.5 });
      const dot = draw(scale, "circle", { cy: 8, r: 3.5, class: "dpx-now" });
      return { words, parts, shares, dot, value: add(out, "span") };
    });
    return { count, lines };
  });

  const show = () => {
    const k = split();
    const move = (b, to) => (b.group.style.transform = `translateX(${46 * to}px)`);
    inputs.forEach((b, t) => move(b, t === rows - 1 ? last + t : k + t));
    prompt.forEach((b, i) => {
      move(b, i < k ? i : i + rows - 1);
      b.shape.setAttribute("class", i < k ? "dpx-before" : "dpx-after");
      b.text.setAttribute("class", i < k ? "dpx-light" : "");
    });
    const names = prompt.map((_, i) => "P" + (i + 1)), x = data.rows;
    const order = [...names.slice(0, k), ...x.slice(0, -1), ...names.slice(k), x[rows - 1]];
    title.textContent = "Order of the vectors: " + order.join(", ");
    const said = data.heads.map((head, h) => {
      const changes = head.changes[k], moved = changes.filter((change) => change !== "0").length;
      panels[h].count.textContent = k === last
        ? `k = ${last} is the reference` : `${moved} of ${rows} outputs changed`;
      panels[h].lines.forEach((line, r) => {
        const share = head.gates[k][r], sum = share[0] + share[1] + share[2];
        let x = 0;
        share.forEach((part, s) => {
          const width = (100 * part) / sum;
          line.parts[s].setAttribute("x", x + "%");
          line.parts[s].setAttribute("width", width + "%");
          line.shares[s].setAttribute("x", x + width / 2 + "%");
          line.shares[s].textContent = width < (part < 10 ? 6 : 10) ? "" : part;
          x += width;
        });
        line.words.textContent = `Row ${data.rows[r]}, attention: ${share[0]} % prompt before, `
          + `${share[1]} % input, ${share[2]} % prompt after`;
        line.dot.setAttribute("cx", at(head.outputs[k][r]));
        line.value.textContent = `${number(head.outputs[k][r])} (${changes[r]})`;
      });
      const change = changes[rows - 1];
      return `${head.name} ${number(head.outputs[k][rows - 1])}`
        + (k === last ? "" : change === "0" ? " (unchanged)" : ` (changed by ${change})`);
    });
    state.textContent = `Output of the readout R at k = ${k}: ${said.join(", ")}.`;
  };
  show();
"""
