"""Sphinx extension: each page has a description for search engines, its first paragraph as plain text."""

import html

from docutils import nodes
from plain_text import one_line

# A description is made longer until it says something, and is cut where search engines cut it.
SHORTEST, LONGEST = 40, 300
GENERATED = {
    "genindex": "Index of the functions, classes and words of the book on dynamic prompt tuning.",
    "search": "Search the book on dynamic prompt tuning.",
    "py-modindex": "The modules of the package dplearn.",
    "prf-prf": "The theorems, propositions and definitions of the book on dynamic prompt tuning.",
}


def shortened(text, longest=LONGEST):
    """Text of at most longest characters that ends with a word.

    >>> shortened("one two three", 9)
    'one two …'
    """
    if len(text) <= longest:
        return text
    return text[: longest - 1].rsplit(" ", 1)[0].rstrip(",;:") + " …"


def is_prose(paragraph):
    """True for a paragraph of the page itself, not of a table, a note, a caption or a list."""
    parent = paragraph.parent
    return isinstance(parent, (nodes.section, nodes.document))


def description(doctree):
    """The first paragraphs of a page in one line."""
    text = ""
    for paragraph in doctree.findall(nodes.paragraph):
        if len(text) >= SHORTEST:
            break
        if is_prose(paragraph):
            text = f"{text} {one_line(paragraph)}".strip()
    return shortened(text)


def describe(app, page, template, context, doctree):
    """Add the description to the head of a page."""
    text = GENERATED.get(page, "") if doctree is None else description(doctree)
    if not text and page.startswith("_modules"):
        text = f"Source code of {context.get('title', 'dplearn')}."
    if text:
        meta = f'<meta name="description" content="{html.escape(text)}"/>'
        context["metatags"] = context.get("metatags", "") + f"\n    {meta}"


def setup(app):
    """Describe each page."""
    app.connect("html-page-context", describe)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
