"""A still of the figure at three splits, as SVG; book/_static/split-explorer.svg is one."""

from dplearn.theory.explorer.heads import HEADS
from dplearn.theory.explorer.shown import number_text, numbers, order_at

# The parts of a bar, in the order of the gates; they are also the names of the styles.
SEGMENTS = ("before", "input", "after")
# Each rule names the picture, since it also stands in a page.
PICTURE_STYLE = """
.split-picture text { fill: #1a1a1a; font: 12px Helvetica, Arial, sans-serif; text-anchor: start }
.split-picture text.bold { font-weight: bold } .split-picture text.end { text-anchor: end }
.split-picture text.box { text-anchor: middle; font-size: 11px } .split-picture text.light { fill: #ffffff }
.split-picture path { stroke: #767676 } .split-picture rect { stroke: #a8660a }
.split-picture .before { fill: #1f6fb2 } .split-picture .input { fill: #fde8c8 } .split-picture .after { fill: #8fcdf2 }
.split-picture rect.ground { fill: #ffffff; stroke: none }
"""


def picture(data: dict | None = None) -> str:
    """The figure at postfix, one surround and prefix as an SVG on a white ground, with words for all of it.

    data : of :func:`dplearn.theory.explorer.numbers`, None for its own vectors.
    """
    data = numbers() if data is None else data
    length, rows = len(data["heads"][0]["outputs"]) - 1, len(data["rows"])
    wide, high = 20 + 28.5 * max(length + rows, 8), 40 + 25 * rows  # of a column, of a head
    across, height = 16 + 3 * wide, 86 + 3 * high
    shapes = []
    for column, k in enumerate((0, length // 2, length)):
        left = 16 + wide * column
        kind = {0: "postfix", length: "prefix"}.get(k, "surround")
        shapes.append(_label(left, 26, f"k = {k}, {kind}", "bold"))
        for i, name in enumerate(order_at(data, k)):
            segment = "input" if name in data["rows"] else "before" if i < k else "after"
            shapes.append(_box(left + 28.5 * i, 38, 26, 26, segment, name))
        for h, head in enumerate(data["heads"]):
            top = 104 + high * h
            if column == 0:
                shapes.append(f'<path d="M16 {top - 22}H{across - 16:g}"/>')
                shapes.append(_label(left, top, HEADS[head["name"]].title, "bold"))
            for row, name in enumerate(data["rows"]):
                x, y, percents = left + 22.0, top + 10 + 25 * row, head["gates"][k][row]
                shapes.append(_label(left, y + 14, name))
                for segment, percent in zip(SEGMENTS, percents):
                    width = 114 * percent / sum(percents)
                    if percent:
                        shapes.append(_box(x, y, width, 20, segment, str(percent) if percent > 11 else ""))
                    x += width
                words = f"{number_text(head['outputs'][k][row])} ({head['changes'][k][row]})"
                shapes.append(_label(left + wide - 16, y + 14, words, "end"))
    words = " ".join(f"{head.title}: {head.notice}" for head in HEADS.values())
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across:g} {height}" class="split-picture"'
            ' role="img">',
            "<title>Three attention heads at three splits</title>",
            "<desc>A bar holds the percent of a row's attention on the prompt before the input, on the input and on the"
            f" prompt after it. Beside it stand the row's output and its change from k = {length}. {words}</desc>",
            f"<style>{PICTURE_STYLE}</style>",
            f'<rect class="ground" width="{across:g}" height="{height}"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def _label(x: float, y: float, text: str, kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{kind}>{text}</text>'


def _box(x: float, y: float, width: float, height: float, segment: str, text: str) -> str:
    rect = f'<rect class="{segment}" x="{x:.4g}" y="{y}" width="{width:.4g}" height="{height}"/>'
    ink = "box light" if segment == "before" else "box"
    middle = float(f"{x + width / 2:.4g}")
    return rect + (_label(middle, y + height / 2 + 4, text, ink) if text else "")
