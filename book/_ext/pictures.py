"""Sphinx extension: pictures drawn in HTML, where text keeps its size on a phone and its colours in the dark.

A line `<!-- picture: NAME -->` in a page of `PAGES` is replaced by the picture of that name. Values come from the
records that ship with the package; what a record lacks is left out. Each picture says in words what it shows to those
who do not see it.
"""

import json
import math
import re
from functools import partial
from html import escape
from pathlib import Path

PAGES = ("book/benchmarks", "book/backbones", "book/images")
MARK = re.compile(r"^<!-- picture: ([\w-]+) -->$", re.MULTILINE)
RECORDS = Path("dplearn", "experiments", "records")


def record_of(root, name):
    """A published record; none of it is needed to build the book."""
    path = Path(root) / RECORDS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf8")) if path.is_file() else {"rows": []}


def figure(name, words, caption, lines):
    """One picture with its caption. words : what it shows, for those who do not see it."""
    inner = "".join(lines)
    return (
        f'```{{raw}} html\n<figure class="picture {name}" id="picture-{name}">'
        f'<div role="img" aria-label="{escape(words)}">{inner}</div>'
        f"<figcaption>{caption}</figcaption></figure>\n```"
    )


# --- bars ---

STEPS = {
    "PEFT's prompt tuning": ("steps", "peft/fixed l=20"),
    "our prefix": ("steps", "prefix/fixed l=20"),
    "place per task, straight-through": ("steps", "task/fixed l=20"),
    "place per input, straight-through": ("steps", "instance/fixed l=20"),
    "place, number and mixture per input": ("steps", "unified/fixed l=20"),
    "place per input, from the encoder's summary": ("steps", "encoder/fixed l=20"),
    "place per input, as the authors' code does it*": ("steps", "authors/instance l=20"),
    "score function, once decisions have settled": ("estimators", "score-function settled/fixed"),
    "score function, four draws (the default)": ("estimators", "score-function/fixed"),
    "exact, all 21 places": ("estimators", "exact/fixed"),
}
SPARED = {
    "CLIP, nothing spared": ("clip", "none/CoOp 50"),
    "CLIP, image features kept": ("clip", "cached/CoOp 50"),
    "CLIP, and texts cut": ("clip", "cached truncated/CoOp 50"),
    "CLIP, and what they share computed once": ("clip", "cached truncated shared/CoOp 50"),
    "Llama, postfix on kept inputs, T = 64": ("kept", "kept/postfix T=64"),
    "Llama, postfix on kept inputs, T = 256": ("kept", "kept/postfix T=256"),
    "T5, 80 of 100 unused vectors dropped": ("length", "dropped/masked T=64"),
    "T5, inputs of like length in a batch": ("padding", "grouped/longest"),
}


def measured(root, wanted):
    """(label, value) of the figures that the record of the benchmarks has."""
    found = {
        (row["group"], each["name"]): each.get("value")
        for row in record_of(root, "benchmarks")["rows"]
        for each in row["figures"]
    }
    return [(label, found[key]) for label, key in wanted.items() if found.get(key) is not None]


def bars(rows, least, most):
    """Lines with a bar each, from 1 to the value, on a logarithmic scale."""
    span = math.log(most / least)
    one = 100 * math.log(1 / least) / span
    for label, value in rows:
        end = 100 * math.log(value / least) / span
        yield (
            f'<div class="line"><span class="label">{escape(label)}</span><span class="track">'
            f'<span class="bar" style="left:{min(one, end):.1f}%;width:{abs(end - one):.1f}%"></span>'
            f'<span class="one" style="left:{one:.1f}%"></span></span>'
            f'<span class="value">{value:.2f}</span></div>'
        )


def spoken(rows):
    """The same in words."""
    return "Bars. " + "; ".join(f"{label} {value:.2f}" for label, value in rows)


def ratios(root, wanted, least, most, caption):
    """A picture of ratios that the benchmarks have recorded, on a scale from ``least`` to ``most``."""
    rows = measured(root, wanted)
    return figure("bars", spoken(rows), caption, bars(rows, least, most)) if rows else ""


STEPS_CAPTION = (
    "Time of a training step on a T5 of the size of t5-small, as a multiple of a fixed prompt's (the dashed line, 1; "
    "the scale is logarithmic). * as a multiple of our place per input."
)
SPARED_CAPTION = (
    "What is left of a step, or of an epoch, with what the package can spare (the dashed line is all of it; the scale "
    "is logarithmic)."
)


# --- points ---

SHOWN = {
    "no prompt": "none",
    "prefix, random layers": "random",
    "prefix": "prompt",
    "full fine-tuning": "full",
}
NAMES = {
    "none": "no prompt",
    "random": "a prompt on random layers",
    "prompt": "a prompt",
    "full": "all weights trained",
}


def gates(root):
    """What a prompt reaches on the shipped text backbones, beside its controls."""
    scores = {}
    for name in ("gates", "gates-llama"):
        for row in record_of(root, name)["rows"]:
            if row["purpose"] == "report" and row["method"] in SHOWN:
                key = f"{row['backbone']}, {row['task']}"
                value = next(iter(row["scores"]["test"].values()))
                scores.setdefault(key, {}).setdefault(SHOWN[row["method"]], []).append(value)
    means = {
        key: {kind: 100 * sum(values) / len(values) for kind, values in found.items()}
        for key, found in scores.items() if "prompt" in found
    }  # fmt: skip
    if not means:
        return ""
    legend = "".join(
        f'<span class="key"><span class="dot {kind}"></span>{NAMES[kind]}</span>' for kind in NAMES
    )
    lines = [f'<div class="legend">{legend}</div>']
    for key, found in means.items():
        dots = "".join(
            f'<span class="dot {kind}" style="left:{value:.1f}%"></span>' for kind, value in found.items()
        )
        lines.append(
            f'<div class="line"><span class="label">{escape(key)}</span><span class="track">{dots}</span></div>'
        )
    lines.append('<div class="line scale"><span class="label"></span><span class="track">'
                 '<span style="left:0%">0</span><span style="left:50%">50</span><span style="left:100%">100 %</span>'
                 "</span></div>")  # fmt: skip
    words = "; ".join(
        f"{key}: " + ", ".join(f"{NAMES[kind]} {value:.0f} %" for kind, value in found.items())
        for key, found in means.items()
    )
    caption = (
        "Right answers on test, means over seeds. Where the same prompt does as well on layers with random weights "
        "(docs/library), the task says nothing about what was pretrained; elsewhere it is at least 20 points "
        "behind there."
    )
    return figure("points", words, caption, lines)


# --- rows of boxes ---


def boxes(cells):
    """A row of boxes: (text, kind, what stands below)."""
    return "".join(
        f'<span class="box {kind}">{text}<small>{below or "&nbsp;"}</small></span>'
        for text, kind, below in cells
    )


def entries(root):
    """Where a prompt of two vectors enters a vision transformer, at the split k = 1."""
    cls, p1, p2 = ("cls", "token"), ("P<sub>1</sub>", "prompt"), ("P<sub>2</sub>", "prompt")
    patch = [(f"x<sub>{i}</sub>", "token") for i in (1, 2, 3)]
    rows = {
        "after-positions": [
            (*cls, "0"), *((*each, str(i + 1)) for i, each in enumerate(patch)), (*p1, ""), (*p2, ""),
        ],
        "before-positions": [
            (*cls, "0"), (*p1, "1"), (*patch[0], "2"), (*patch[1], "3"), (*patch[2], "4"), (*p2, "5"),
        ],
        "position-coded": [
            (*cls, "0"), *((*each, str(i + 1)) for i, each in enumerate(patch)), (*p1, "1"), (*p2, "5"),
        ],
    }  # fmt: skip
    lines = [
        f'<div class="line"><span class="label"><code>{name}</code></span>'
        f'<span class="sequence">{boxes(cells)}</span></div>'
        for name, cells in rows.items()
    ]
    words = (
        "Three rows of boxes: class token, three patches and two prompt vectors, with the position vector that each "
        "gets. After positions: patches keep the positions 1 to 3 and the prompt has none. Before positions, split 1: "
        "one vector in front of the patches takes position 1, the patches move to 2, 3 and 4, the other vector has 5. "
        "Position-coded: patches keep 1 to 3, and the vectors carry 1 and 5 themselves."
    )
    caption = (
        "Which position vector (small number) each row gets, for a prompt of two vectors at the split k = 1. Behind "
        "the positions a place is void; in front of them it moves the patches; coded, it moves none. (The real grid of "
        "positions is stretched for the longer sequence.)"
    )
    return figure("rows", words, caption, lines)


DRAWN = {
    "steps": partial(ratios, wanted=STEPS, least=0.8, most=30, caption=STEPS_CAPTION),
    "spared": partial(ratios, wanted=SPARED, least=0.03, most=1.2, caption=SPARED_CAPTION),
    "gates": gates,
    "entries": entries,
}


def insert_pictures(app, docname, source):
    """Replace the marks of a page; a new record makes Sphinx read it again."""
    if docname not in PAGES:
        return
    for name in ("benchmarks", "gates", "gates-llama"):
        app.env.note_dependency(str(Path(app.srcdir) / RECORDS / f"{name}.json"))
    source[0] = MARK.sub(lambda match: DRAWN[match[1]](app.srcdir), source[0])


def setup(app):
    """Register the replacement."""
    app.connect("source-read", insert_pictures)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
