"""Sphinx extension: words of the glossary are links in the chapters, and the links carry the definition.

The first time a chapter uses one of WORDS in its prose, the word becomes a link to the glossary. Every link to an entry
of the glossary has the definition in an attribute; book/_static/definitions.js shows it on hover and on focus.
"""

import html
import re

from docutils import nodes
from plain_text import one_line
from sphinx import addnodes

GLOSSARY = "book/glossary"
CHAPTERS = "notebooks/"
# Entries that mean the same wherever they stand, with the forms in which prose has them. "Task" or "size" are words of
# the language as well, and stay as they are.
WORDS = {
    "Backbone": r"backbones?",
    "Bag of words": r"bags? of words",
    "Controller": r"controllers?",
    "CoOp": r"CoOp",
    "CaPT": r"CaPT",
    "Few-shot": r"few-shot",
    "Frozen": r"frozen",
    "Gumbel-Softmax": r"Gumbel-Softmax",
    "Headroom": r"headroom",
    "LoRA": r"LoRA",
    "Logit": r"logits?",
    "MaPLe": r"MaPLe",
    "Model organism": r"model organisms?",
    "Order-blind": r"order-blind",
    "Pool": r"pools?",
    "Position space": r"position space",
    "Postfix": r"postfix",
    "Prompt tuning": r"prompt tuning",
    "Random control": r"random controls?",
    "Reparametrisation": r"reparametrisations?",
    "Score function": r"score functions?",
    "SMoP": r"SMoP",
    "Soft prompt": r"soft prompts?",
    "Straight-through": r"straight-through",
    "Token space": r"token space",
    "Tracked row": r"tracked rows?",
    "Usage entropy": r"usage entropy",
    "Verbalizer": r"verbalizers?",
    "Visual prompt tuning (VPT)": r"VPT|visual prompt tuning",
    "Warm-up": r"warm-up",
    "Waywardness": r"waywardness",
}
ONE = re.compile(
    r"(?<![\w-])(?:"
    + "|".join(f"(?P<w{n}>{forms})" for n, forms in enumerate(WORDS.values()))
    + r")(?![\w-])"
)
ENTRIES = list(WORDS)
LINK = re.compile(r'<a class="reference internal" href="(?:[^"#]*glossary\.html)?#(?P<id>term-[^"]+)"')


def entry_of(match):
    """The entry of the glossary that a match of ONE belongs to."""
    return ENTRIES[int(match.lastgroup[1:])]


def link_to(entry, text, page):
    """A reference to an entry of the glossary, still to be resolved."""
    link = addnodes.pending_xref(
        "", refdomain="std", reftype="term", reftarget=entry, refexplicit=True, refwarn=True, refdoc=page
    )
    link += nodes.inline(text, text, classes=["xref", "std", "std-term"])
    return link


def link_words(app, doctree):
    """Link the first use of each word in the prose of a chapter."""
    page = app.env.docname
    if not page.startswith(CHAPTERS):
        return
    linked = set()
    for paragraph in list(doctree.findall(nodes.paragraph)):
        if not isinstance(paragraph.parent, (nodes.section, nodes.list_item)):
            continue
        for text in [child for child in paragraph.children if isinstance(child, nodes.Text)]:
            parts, end = [], 0
            for match in ONE.finditer(text):
                if entry_of(match) in linked:
                    continue
                linked.add(entry_of(match))
                parts += [nodes.Text(text[end : match.start()]), link_to(entry_of(match), match[0], page)]
                end = match.end()
            if parts:
                paragraph.replace(text, [*parts, nodes.Text(text[end:])])


def definitions_of(glossary):
    """{id of a term: its definition as text} of the glossary's page."""
    found = {}
    for item in glossary.findall(nodes.definition_list_item):
        terms = [child for child in item.children if isinstance(child, nodes.term)]
        text = " ".join(one_line(child) for child in item.children if isinstance(child, nodes.definition))
        found.update({name: text for term in terms for name in term["ids"]})
    return found


def add_definitions(app, page, template, context, doctree):
    """Put the definition into each link to the glossary."""
    if "body" not in context or GLOSSARY not in app.env.all_docs:
        return
    if not hasattr(app, "dplearn_definitions"):
        app.dplearn_definitions = definitions_of(app.env.get_doctree(GLOSSARY))
    found = app.dplearn_definitions

    def with_definition(match):
        text = found.get(match["id"])
        return match[0] + (f' data-definition="{html.escape(text)}"' if text else "")

    context["body"] = LINK.sub(with_definition, context["body"])


def setup(app):
    """Link after a page is read, define when it is written."""
    app.connect("doctree-read", link_words)
    app.connect("html-page-context", add_definitions)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
