"""Sphinx extension: put the model cards of the shipped backbones into the page that describes them.

A card lies beside the weights (dplearn/zoo/<name>/README.md) and travels with the package. The line CARDS in
book/backbones.md is replaced by all cards: without their metadata block, and with headings one level lower.
"""

import re
from pathlib import Path

PAGE = "book/backbones"
CARDS = "<!-- the model cards -->"
NONE = "No backbone ships with this version."


def as_section(card):
    """The text of one card, fit to be a section of a page."""
    text = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL).strip()
    parts = re.split(r"(^```.*?^```)", text, flags=re.DOTALL | re.MULTILINE)
    # Lines that start with # in a code block are comments, not headings.
    parts = [p if p.startswith("```") else re.sub(r"^#", "##", p, flags=re.MULTILINE) for p in parts]
    return "".join(parts)


def insert_cards(app, docname, source):
    """Replace the line CARDS of the page; a changed card makes Sphinx read the page again."""
    if docname != PAGE:
        return
    cards = sorted(Path(app.srcdir, "dplearn", "zoo").glob("*/README.md"))
    for card in cards:
        app.env.note_dependency(str(card))
    sections = [as_section(card.read_text(encoding="utf8")) for card in cards]
    source[0] = source[0].replace(CARDS, "\n\n".join(sections) or NONE)


def setup(app):
    """Register the replacement."""
    app.connect("source-read", insert_cards)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
