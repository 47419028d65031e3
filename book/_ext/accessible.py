"""Sphinx extension: what a screen reader needs and the theme, Sphinx or pandas leave out of a page.

A table in the output of a cell gets the caption that the cell's metadata has under `mystnb`, `table`, `caption`; in it,
`code` and $mathematics$ are written as in Markdown. Then the body of each page is mended before it is written: an empty
head of a table is a plain cell; the row in which pandas writes the name of the index joins the row of the columns; a
table without a caption is named by its section and its columns; `l = 5` in a head and `0.95 ± 0.01` are not broken; a
cell that holds a sentence is marked, so that a phone gives it room; a box of a list of tasks has a name; the
bibliography has no roles that its parts do not fit. In the sidebar, what opens a part of the contents is named by that
part.
"""

import collections
import html
import re

from docutils import nodes

HEAD = re.compile(r"<thead>.*?</thead>", re.S)
ROW = re.compile(r"(<tr[^>]*>)(.*?)(</tr>)", re.S)
CELL = re.compile(r"<th\b[^>]*>.*?</th>", re.S)
SENTENCE = re.compile(r"<td>(?=[^<]{30,}</td>)")  # a verdict, say
CELL_OF_TEXT = re.compile(r"<td>[^<]*</td>")
SPREAD = re.compile(r"(?<=\d) ± (?=\d)")
EQUATION = re.compile(r"(?<=\w) = (?=[\w.])")
EMPTY = re.compile(r"<th\b([^>]*)>(\s*(?:<p>\s*</p>)?\s*)</th>")
TITLE_OR_TABLE = re.compile(
    r"<h[1-6][^>]*>(?P<title>.*?)</h[1-6]>|<table\b(?P<table>[^>]*)>(?P<inside>.*?)</table>", re.S
)
SUMMARY = re.compile(
    r'(?P<link><a [^>]*>(?P<part>[^<]*)</a><details[^>]*>)<summary>(?P<rest><span class="toctree-toggle")'
)
# Roles that HTML's own elements do not need, or that Sphinx gives to parts which may not have them.
BIBLIOGRAPHY = {' role="list" class="citation-list"': ' class="citation-list"', ' role="doc-biblioentry"': ""}
BACKLINK = re.compile(r' role="doc-backlink"')
BOX = re.compile(r'<input class="task-list-item-checkbox"(?P<checked> checked="checked")?')


INLINE = re.compile(r"`([^`]+)`|\$([^$]+)\$")
MATH = '<span class="math notranslate nohighlight">\\({}\\)</span>'


def caption(text):
    """A caption as HTML.

    >>> caption("`a` < $k$")
    '<caption><code>a</code> &lt; <span class="math notranslate nohighlight">\\\\(k\\\\)</span></caption>'
    """

    def inline(match):
        code, tex = match.groups()
        return f"<code>{code}</code>" if code else MATH.format(tex)

    return f"<caption>{INLINE.sub(inline, html.escape(text, quote=False))}</caption>"


def add_captions(app, doctree):
    """Put the captions of cells into the first table of their output."""
    for cell in doctree.findall(nodes.container):
        metadata = cell.get("cell_metadata") or {}
        text = metadata.get("mystnb", {}).get("table", {}).get("caption")
        if not text:
            continue
        tables = [raw for raw in cell.findall(nodes.raw) if "<table" in raw.astext()]
        if not tables:
            raise ValueError(f"{app.env.docname}: a cell has the caption {text!r}, and no table")
        before, start, inside = re.split(r"(<table\b[^>]*>)", tables[0].astext(), maxsplit=1)
        tables[0].replace_self(nodes.raw("", before + start + caption(text) + inside, format="html"))


def words(markup):
    """The text of a piece of HTML: without elements, links of headings and mathematics' marks."""
    markup = re.sub(r'<a class="headerlink".*?</a>', "", markup, flags=re.S)
    text = html.unescape(re.sub(r"<[^>]*>", "", markup))
    return " ".join(re.sub(r"\\[()]|[${}\\]", "", text).split())


def one_row(head):
    """The head of a pandas table with the names of its index in the row of the columns, where that row has room.

    >>> one_row("<thead><tr><th></th><th>a</th></tr><tr><th>k</th><th></th></tr></thead>")
    '<thead><tr><th>k</th><th>a</th></tr></thead>'
    """
    rows = list(ROW.finditer(head))
    if len(rows) < 2:
        return head
    above, last = (CELL.findall(row[2]) for row in rows[-2:])
    if len(above) != len(last) or not all(words(a) == "" or words(b) == "" for a, b in zip(above, last)):
        return head
    joined = iter([a if words(a) else b for a, b in zip(above, last)])
    row = CELL.sub(lambda match: next(joined), rows[-2][0])
    return head[: rows[-2].start()] + row + head[rows[-1].end() :]


def name_of(title, inside):
    """The name of a table without a caption: its section and its columns.

    >>> name_of("Cost", "<thead><tr><td></td><th>size</th><th>time</th></tr></thead>")
    'Cost: size, time'
    """
    head = HEAD.search(inside)
    columns = [words(cell) for cell in CELL.findall(head[0])] if head else []
    between = " " if title.endswith(("?", "!", ":", ".")) else ": "
    return between.join(filter(None, [title, ", ".join(filter(None, columns))])) or "Table"


def unbroken(cell):
    """The head of a column or row in which equations stay in one line.

    >>> unbroken("<th>place, l = 5</th>"), unbroken("<th><code>a = 1</code></th>")
    ('<th>place, l\xa0=\xa05</th>', '<th><code>a\xa0=\xa01</code></th>')
    """
    parts = re.split(r"(<[^>]*>)", cell)
    return "".join(part if part.startswith("<") else EQUATION.sub("\xa0=\xa0", part) for part in parts)


def mended(body):
    """The body of a page, with what is missing."""
    for wrong, right in BIBLIOGRAPHY.items():
        body = body.replace(wrong, right)
    body = BACKLINK.sub("", body)
    body = BOX.sub(lambda m: f'{m[0]} aria-label="{"ticked" if m["checked"] else "not ticked"}"', body)
    body = HEAD.sub(lambda match: EMPTY.sub(r"<td\1>\2</td>", one_row(match[0])), body)
    body = CELL.sub(lambda match: unbroken(match[0]), body)
    body = CELL_OF_TEXT.sub(lambda match: SPREAD.sub("\xa0±\xa0", match[0]), body)
    body = SENTENCE.sub('<td class="sentence">', body)
    title, names = "", collections.Counter()

    def named(match):
        nonlocal title
        if match["table"] is None:
            title = words(match["title"])
            return match[0]
        if "<caption" in match["inside"] or "aria-label" in match["table"]:
            return match[0]
        name = name_of(title, match["inside"])
        names[name] += 1
        label = html.escape(name if names[name] == 1 else f"{name} (table {names[name]})")
        return f'<table{match["table"]} aria-label="{label}">{match["inside"]}</table>'

    return TITLE_OR_TABLE.sub(named, body)


def named_parts(navigation):
    """The contents of the sidebar; what opens a part is named by it."""
    return SUMMARY.sub(
        lambda m: f'{m["link"]}<summary aria-label="Pages of {m["part"].strip()}">{m["rest"]}',
        navigation,
    )


def mend(app, page, template, context, doctree):
    """Mend what the template is about to put on a page."""
    if context.get("body"):
        context["body"] = mended(context["body"])
    contents = context.get("generate_toctree_html")
    if contents is not None:
        context["generate_toctree_html"] = lambda *args, **kwargs: named_parts(str(contents(*args, **kwargs)))


def setup(app):
    """Captions when a page is read; the rest last, after the theme has set what it shows."""
    app.connect("doctree-read", add_captions)
    app.connect("html-page-context", mend, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
