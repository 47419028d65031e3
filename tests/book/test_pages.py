"""What the book's own extensions add to a page: names, descriptions, definitions, buttons; and the check of the site."""

import doctest
import html
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from project import ROOT, tool

pytest.importorskip("docutils")
EXTENSIONS = ROOT / "book" / "_ext"


@pytest.fixture(autouse=True)
def neighbours(monkeypatch):
    """Extensions import each other by name, as Sphinx's local_extensions allows."""
    monkeypatch.syspath_prepend(EXTENSIONS)
    yield
    sys.modules.pop("plain_text", None)


def extension(name):
    return tool(name, "_ext")


@pytest.mark.parametrize(
    "name", ["accessible", "descriptions", "figures", "plain_text", "repository", "reference_tables"]
)
def test_examples(name, monkeypatch):
    module = extension(name)
    # By its name doctest asks whose a function is, and a build in this process may have left a module of that name.
    monkeypatch.setitem(sys.modules, name, module)
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


# Names for who does not see the page.

FRAME = """<h2>Cost <a class="headerlink" href="#cost" title="x">#</a></h2>
<table border="1" class="dataframe"><thead>
<tr style="text-align: right;"><th></th><th>size &amp; time</th><th>b</th></tr>
<tr><th>k</th><th></th><th></th></tr>
</thead><tbody><tr><th>0</th><td>1</td><td>2</td></tr></tbody></table>"""


def test_a_table_is_named_and_its_head_has_one_row():
    body = extension("accessible").mended(FRAME)
    table = ET.fromstring(body[body.index("<table") :])
    assert table.get("aria-label") == "Cost: k, size & time, b"
    assert [[cell.text for cell in row] for row in table.iter("tr")] == [
        ["k", "size & time", "b"],
        ["0", "1", "2"],
    ]
    assert [cell.tag for cell in table.find("thead/tr")] == ["th"] * 3


def test_a_cell_that_holds_a_sentence_is_marked():
    """The style sheet gives it room on a phone; a figure with its spread needs none."""
    verdict = "cannot tell (would need about 72 seeds): +1.0\xa0±\xa03.1"
    cells = "".join(f"<td>{text}</td>" for text in (verdict, "0.952 ± 0.009", "better by 45.2 ± 1.0"))
    body = extension("accessible").mended(FRAME.replace("<td>1</td>", cells.replace("\xa0", " ")))
    assert "<td>0.952\xa0±\xa00.009</td><td>better by 45.2\xa0±\xa01.0</td>" in body
    assert re.findall(r'<td class="([^"]*)">([^<]*)<', body) == [("sentence", verdict)]
    assert "td.sentence {" in (ROOT / "book" / "_static" / "custom.css").read_text()


def test_tables_of_the_same_name_are_told_apart_and_captions_stay():
    mended = extension("accessible").mended
    body = mended(FRAME + FRAME)
    assert re.findall('aria-label="([^"]*)"', body) == [
        "Cost: k, size &amp; time, b", "Cost: k, size &amp; time, b (table 2)"
    ]  # fmt: skip
    captioned = FRAME.replace("<thead>", "<caption>What it costs</caption><thead>")
    assert "aria-label" not in mended(captioned)
    assert mended(body) == body


def test_an_empty_head_is_a_plain_cell_and_rows_that_clash_stay():
    mended = extension("accessible").mended
    empty = '<table><thead><tr><th class="head"><p></p></th><th>a</th></tr></thead></table>'
    assert '<td class="head"><p></p></td><th>a</th>' in mended(empty)
    two = "<table><thead><tr><th>x</th><th>y</th></tr><tr><th>a</th><th>b</th></tr></thead></table>"
    assert mended(two).count("<tr>") == 2


def test_boxes_lists_and_parts_have_names():
    module = extension("accessible")
    box = '<input class="task-list-item-checkbox"{} disabled="disabled" type="checkbox">'
    body = module.mended(box.format(' checked="checked"') + box.format(""))
    assert re.findall('aria-label="([^"]*)"', body) == ["ticked", "not ticked"]
    listed = '<div role="list" class="citation-list"><div class="citation" id="a" role="doc-biblioentry">'
    assert "role=" not in module.mended(listed)
    part = '<a href="x">API &amp; more</a><details><summary><span class="toctree-toggle" role="presentation">'
    assert 'summary aria-label="Pages of API &amp; more"' in module.named_parts(part)


def test_a_cell_brings_the_caption_of_its_table():
    from docutils import nodes

    page = SimpleNamespace(env=SimpleNamespace(docname="notebooks/x"))
    cell = nodes.container(cell_metadata={"mystnb": {"table": {"caption": "Cost of $k$"}}})
    cell += nodes.raw("", '<table class="dataframe"><tr></tr></table>', format="html")
    doctree = nodes.section("", cell)
    extension("accessible").add_captions(page, doctree)
    table = next(iter(doctree.findall(nodes.raw))).astext()
    assert table.startswith('<table class="dataframe"><caption>Cost of <span class="math')
    assert "aria-label" not in extension("accessible").mended(table)
    empty = nodes.section("", nodes.container(cell_metadata=cell["cell_metadata"]))
    with pytest.raises(ValueError, match="caption 'Cost of .*, and no table"):
        extension("accessible").add_captions(page, empty)


# Descriptions and definitions.


def parsed(text):
    """A Markdown page as a document tree, its references not resolved."""
    from docutils.core import publish_doctree
    from myst_parser.docutils_ import Parser

    settings = {
        "myst_enable_extensions": ["dollarmath", "deflist"],
        "report_level": 5,
        "doctitle_xform": False,
        "myst_suppress_warnings": ["myst"],
    }
    return publish_doctree(text, parser=Parser(), settings_overrides=settings)


def test_a_description_is_the_first_prose_without_tex():
    describe = extension("descriptions").description
    page = "# Title\n\n- a list that is long enough to be taken for a description of it all\n\n"
    text = "How many of the $l$ vectors\nstand before, with $0 < k \\le l$ and `dp.insert`?\n\nMore."
    assert (
        describe(parsed(page + text))
        == "How many of the l vectors stand before, with 0 < k ≤ l and dp.insert?"
    )
    assert describe(parsed("# T\n\nShort.\n\nThe second paragraph is taken as well.")).endswith(
        "taken as well."
    )
    assert len(describe(parsed("# T\n\n" + "word " * 200))) <= 300


def test_every_word_to_link_is_an_entry_of_the_glossary():
    text = (ROOT / "book" / "glossary.md").read_text()
    block = re.search(r"```\{glossary\}\n(.*?)^```", text, re.S | re.M)[1]
    entries = set(re.findall(r"^(\S.*)$", block, re.M))
    words = extension("definitions").WORDS
    assert words.keys() <= entries
    # And so are the words that readers have looked for in vain.
    assert {"Pool", "Visual prompt tuning (VPT)", "Few-shot", "CoOp", "MaPLe", "LoRA", "Install"} <= entries


def test_the_first_use_of_a_word_is_linked_in_chapters_alone():
    from sphinx import addnodes

    text = "# Soft prompts\n\nA `pool` of soft prompts, and pools. A [pool](x).\n\n- The pool, frozen.\n\n> LoRA\n"
    for page, expected in (
        ("notebooks/x", [("Soft prompt", "soft prompts"), ("Pool", "pools"), ("Frozen", "frozen")]),
        ("book/x", []),
    ):
        doctree = parsed(text)
        module = extension("definitions")
        module.link_words(SimpleNamespace(env=SimpleNamespace(docname=page)), doctree)
        links = list(doctree.findall(addnodes.pending_xref))
        assert [
            (link["reftarget"], link.astext()) for link in links if link.get("reftype") == "term"
        ] == expected
        assert doctree.astext() == parsed(text).astext()


def test_a_link_to_the_glossary_has_its_definition():
    from docutils import nodes

    item = nodes.definition_list_item("", nodes.term("", "Pool", ids=["term-Pool"]))
    item += nodes.definition(
        "", nodes.paragraph("", "", nodes.math("", r"\beta_j"), nodes.Text(' of "them"'))
    )
    glossary = nodes.definition_list("", item)
    app = SimpleNamespace(
        env=SimpleNamespace(all_docs={"book/glossary": 0}, get_doctree=lambda page: glossary)
    )
    link = '<a class="reference internal" href="{}#term-{}"><span>x</span></a>'
    context = {
        "body": link.format("../book/glossary.html", "Pool")
        + link.format("", "Pool")
        + link.format("y.html", "Pool")
    }
    extension("definitions").add_definitions(app, "notebooks/x", "page.html", context, None)
    assert context["body"].count('data-definition="β_j of &quot;them&quot;"') == 2


# The address of the repository, and the footer.

OPTIONS = {
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "repository_url": "",
    "other": 1,
}


@pytest.mark.parametrize("address", ["", "https://github.com/someone/dplearn"])
def test_buttons_follow_the_address(address, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    config = SimpleNamespace(html_theme_options={**OPTIONS, "repository_url": address})
    extension("repository").set_options(SimpleNamespace(srcdir=str(ROOT)), config)
    options = config.html_theme_options
    assert bool(options["launch_buttons"]) == bool(address) == options["use_repository_button"]
    assert options["other"] == 1 and "1970-01-02" in options["extra_footer"]


def test_bibtex_has_the_software_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    text = extension("repository").bibtex(citation, "", "2026")
    assert re.findall(r"@(\w+)\{(\w+),", text) == [
        ("software", "dplearn"),
        ("inproceedings", "yang2025position"),
    ]
    assert "author    = {Yang, Xianjun and Cheng, Wei and" in text and "pages     = {8501--8523}" in text
    assert text.count("{") == text.count("}") and "url       = {}" not in text
    assert "https://x.org" in extension("repository").bibtex(citation, "https://x.org", "2026")


# The check of the built site finds each of these.

HEAD = '<html><head><meta name="description" content="d">{}</head><body>{}</body></html>'
GOOD = '<a id="a" href="#a">x</a><img src="i.png" alt="a line"><table aria-label="n"></table><table><caption>c</caption></table>'
PAGES = {
    "nothing wrong": (HEAD.format("", GOOD), None),
    "nameless table": (HEAD.format("", "<table><tr></tr></table>"), "table without caption"),
    "no description": ("<html></html>", "no description"),
    "leads on": ('<meta http-equiv="Refresh" content="0; url=index.html">', None),
    "heavy": (HEAD.format('<script src="heavy.js?v=1"></script>', ""), "scripts of 2000001 bytes"),
    "mathematics": (HEAD.format('<script src="mathjax/heavy.js"></script>', ""), None),
    "broken link": (HEAD.format("", '<a href="none.html">x</a>'), "broken link"),
    "broken anchor": (HEAD.format("", '<a href="#none">x</a>'), "broken anchor"),
    "outside": (HEAD.format('<script src="https://example.org/a.js"></script>', ""), "loads from outside"),
    "no picture for phones": (
        HEAD.format("", '<picture><source srcset="i.png 1x, none.svg 2x"><img src="i.png" alt="a"></picture>'),
        "broken link: none.svg",
    ),
    "wordless image": (HEAD.format("", '<img src="i.png" alt="i.png">'), "without alternative text"),
}  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_the_check_of_the_site(tmp_path, capsys, name):
    text, expected = PAGES[name]
    (tmp_path / "mathjax").mkdir()
    for path in ("heavy.js", "mathjax/heavy.js"):
        (tmp_path / path).write_bytes(b"/" * 2_000_001)
    (tmp_path / "i.png").write_bytes(b"")
    (tmp_path / "index.html").write_text(text)
    assert tool("check_site").main(tmp_path) == (expected is not None)
    printed = capsys.readouterr().out
    assert (expected or "0 problems") in printed


# A small book with the settings of this one.

MINI = "# A chapter\n\nWhat is it?"
HUB = "https://github.com/someone/somewhere"
LAUNCH = (
    "https://colab.research.google.com/github/someone/somewhere/blob/main/notebooks/x.ipynb",
    "https://mybinder.org/v2/gh/someone/somewhere/main?urlpath=lab/tree/notebooks/x.ipynb",
)


@pytest.mark.parametrize("address", ["", HUB])
def test_a_fork_changes_one_line(tmp_path, address):
    pytest.importorskip("jupyter_book")
    settings = (ROOT / "_config.yml").read_text()
    assert settings.count('  repository_url: ""\n') == 1
    (tmp_path / "_config.yml").write_text(
        settings.replace('repository_url: ""', f'repository_url: "{address}"')
    )
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: notebooks/x\n")
    for name in ("book/_ext", "book/_static", "book/_templates", "book/inventories", "book/references.bib"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("pyproject.toml", "CITATION.cff"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "notebooks").mkdir()
    cells = [nbformat.v4.new_markdown_cell(MINI), nbformat.v4.new_code_cell("1 + 1")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / "x.ipynb")
    start = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", start, "build", str(tmp_path), "-q"]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "0"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-2000:]
    page = (tmp_path / "_build" / "html" / "notebooks" / "x.html").read_text()
    found = [link for link in LAUNCH if f'href="{link}"' in html.unescape(page)]
    assert found == (list(LAUNCH) if address else [])
    assert (f'href="{HUB}"' in page) == bool(address)
    assert "fontawesome.js" not in page and "built on 1970-01-01" in page
    assert '<meta name="description" content="What is it?"' in page
    assert "download-notebook-button" in page or "download-source-button" in page
