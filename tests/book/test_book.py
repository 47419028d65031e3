"""The book's sources: notebooks are stored executed in the normal form, figures have words, the map is true."""

import re

import nbformat
import pytest
from project import ROOT, toc_files, tool

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = sorted((ROOT / "book").rglob("*.md"))
PLACEHOLDER = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|TBD|lorem ipsum)\b|\?\?\?|\bX" r"XX\b", re.IGNORECASE)


def source_of(name):
    """The file behind an entry of _toc.yml."""
    return next((path for path in (ROOT / f"{name}.md", ROOT / f"{name}.ipynb") if path.exists()), None)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def prose(path):
    """The words of a page or of a notebook's markdown cells."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def execution_problems(notebook):
    """What shows that a notebook was not run from top to bottom; strict nbval passes stripped notebooks silently."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in cells]
    problems = [] if counts == list(range(1, len(cells) + 1)) else [f"execution counts are {counts}"]
    if cells and not any(cell.outputs for cell in cells):
        problems.append("no cell has an output")
    for count, cell in enumerate(cells, start=1):
        problems += [f"cell {count} raises {o.ename}" for o in cell.outputs if o.output_type == "error"]
        if any(o.output_type == "stream" and o.name == "stderr" for o in cell.outputs):
            problems.append(f"cell {count} writes to stderr")
    return problems


def figure_problems(cell):
    """What a cell with an image lacks: words for those who do not see it, a caption, a name to refer to."""
    if not any(
        "image/png" in o.get("data", {}) or "image/svg+xml" in o.get("data", {}) for o in cell.outputs
    ):
        return []
    metadata = cell.metadata.get("mystnb", {})
    fields = {
        "image.alt": metadata.get("image", {}).get("alt"),
        "figure.caption": metadata.get("figure", {}).get("caption"),
        "figure.name": metadata.get("figure", {}).get("name"),
    }
    return [f"mystnb.{field} is missing" for field, value in fields.items() if not value]


def solutions_outside_dropdowns(text):
    """The solutions of a page that show at once: each directive must have the class dropdown."""
    pattern = re.compile(r"^(?:`{3,}|:{3,})\{solution(?:-start)?\}[^\n]*\n((?::[^\n]*\n)*)", re.MULTILINE)
    return [
        m.group(0)
        for m in pattern.finditer(text)
        if not re.search(r"^:class:.*\bdropdown\b", m.group(1), re.M)
    ]


# Where no link can stand: code, mathematics, headings, and the words of a link itself.
UNLINKED = re.compile(
    r"^```(?!\{).*?^```|\{[\w:]+\}`[^`]*`|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|^#+ [^\n]*$", re.M | re.S
)


def chapters_without_link(text, numbers):
    """The chapters that are named by their number alone, of those that exist."""
    named = re.findall(r"\b[Cc]hapters?\s((?:\d\d(?:, | and | or | to )?)+)", UNLINKED.sub("", text))
    return sorted(set(re.findall(r"\d\d", " ".join(named))) & numbers)


@pytest.mark.parametrize("path", NOTEBOOKS + PAGES, ids=lambda path: path.stem)
def test_a_chapter_is_named_by_a_link(path):
    numbers = {other.stem[:2] for other in NOTEBOOKS} - {path.stem[:2]}
    assert chapters_without_link(prose(path), numbers) == []


@pytest.mark.parametrize(
    "text, expected",
    [
        ("as chapter 03 says", ["03"]),
        ("Chapters\n03 and 04: 05", ["03", "04"]),
        ("{doc}`chapter 03 <03_x>`, `chapter 03`, $x$ of chapter 12", []),
        ("# chapter 03\n```python\nchapter 03\n```\n```{note}\nin chapter 04\n```", ["04"]),
    ],
)
def test_a_chapter_without_a_link_is_found(text, expected):
    assert chapters_without_link(text, {"03", "04", "05"}) == expected


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_executed(path):
    assert execution_problems(nbformat.read(path, as_version=4)) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_in_the_normal_form(path):
    text = path.read_text(encoding="utf8")
    expected = tool("refresh_notebooks").normal_form(nbformat.reads(text, as_version=4))
    assert text == expected, f"run: make notebooks NB=notebooks/{path.name}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_fits_the_page(path):
    """A cell shows 88 columns; what is longer is cut at the right, also where the formatter leaves it (in strings)."""
    long = [line for cell in code_cells(path) for line in cell.source.splitlines() if len(line) > 88]
    assert not long


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_figures_have_words(path):
    problems = {n: figure_problems(cell) for n, cell in enumerate(code_cells(path), start=1)}
    assert not {n: lines for n, lines in problems.items() if lines}


@pytest.mark.parametrize("path", NOTEBOOKS + PAGES, ids=lambda path: path.stem)
def test_page_is_finished(path):
    text = prose(path)
    assert not PLACEHOLDER.findall(text)
    assert solutions_outside_dropdowns(text) == []
    exercises, solutions = (
        len(re.findall(rf"^(?:`{{3,}}|:{{3,}})\{{{word}(?:-start)?\}}", text, re.MULTILINE))
        for word in ("exercise", "solution")
    )
    assert exercises == solutions, f"{exercises} exercises but {solutions} solutions"


def test_every_notebook_is_a_page_and_every_page_exists():
    files = toc_files()
    assert len(files) == len(set(files))
    assert [name for name in files if source_of(name) is None] == []
    assert {f"notebooks/{path.stem}" for path in NOTEBOOKS} <= set(files)
    assert {str(path.relative_to(ROOT).with_suffix("")) for path in PAGES} <= set(files)


def test_the_map_names_every_page_in_the_order_of_the_contents():
    rows = re.findall(
        r"^\| (\d\d)? ?\| \{doc\}`(?:[^`<]* <)?([^`>]+)>?` \|",
        (ROOT / "book" / "intro.md").read_text(),
        re.MULTILINE,
    )
    chapters = [(number, page.rpartition("/")[2]) for number, page in rows if number]
    assert chapters == [(path.stem[:2], path.stem) for path in sorted(NOTEBOOKS)]
    pages = [name.removeprefix("book/") for name in toc_files() if name.startswith("book/")]
    assert [page for number, page in rows if not number] == [
        page for page in pages if "/" not in page and page != "intro"
    ]


def test_every_module_is_in_the_api_reference():
    text = "".join(path.read_text() for path in sorted((ROOT / "book" / "api").glob("*.md")))
    documented = re.findall(r"automodule:: (\S+)", text)
    package = ROOT / "dplearn"
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in package.rglob("*.py")
        if not path.name.startswith("_") or path.name == "__init__.py"
    } - {"dplearn", "dplearn.backbones"}
    assert len(documented) == len(set(documented))
    assert set(documented) == modules


def test_paper_map_names_tests_that_exist():
    text = (ROOT / "book" / "paper-map.md").read_text()
    # Tests lie in folders that mirror the package; their names tell them apart.
    paths = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", text)
    assert len(named) > 50
    # The functions are references, which the build checks.
    for file, name in named:
        assert file in paths, f"{file} does not exist"
        assert f"def {name}(" in paths[file].read_text(), f"{file} has no {name}"


def test_names_of_test_files_are_unique():
    """The paper map names a test by its file, without the folder."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))


# The checks above can fail: each of these notebooks or pages is wrong in one way.


def notebook_with(*cells):
    return nbformat.v4.new_notebook(cells=list(cells))


def executed_cell(count, output=None, **metadata):
    outputs = [] if output is None else [output]
    return nbformat.v4.new_code_cell("1 + 1", execution_count=count, outputs=outputs, metadata=metadata)


TEXT = nbformat.v4.new_output("stream", name="stdout", text="2\n")
PICTURE = nbformat.v4.new_output("display_data", data={"image/png": "", "text/plain": "<Figure>"})


@pytest.mark.parametrize(
    "notebook, expected",
    [
        (notebook_with(executed_cell(1, TEXT), executed_cell(2)), []),
        (
            notebook_with(executed_cell(None), executed_cell(None)),
            ["execution counts", "no cell has an output"],
        ),
        (notebook_with(executed_cell(1, TEXT), executed_cell(3)), ["execution counts"]),
        (
            notebook_with(executed_cell(1, nbformat.v4.new_output("stream", name="stderr", text="w"))),
            ["stderr"],
        ),
        (
            notebook_with(
                executed_cell(1, nbformat.v4.new_output("error", ename="E", evalue="", traceback=[]))
            ),
            ["raises E"],
        ),
    ],
    ids=["right", "stripped", "out of order", "warning", "error"],
)
def test_execution_check_can_fail(notebook, expected):
    problems = execution_problems(notebook)
    assert len(problems) == len(expected)
    assert all(part in problem for part, problem in zip(expected, problems))


def test_figure_check_can_fail():
    words = {"image": {"alt": "a line"}, "figure": {"caption": "A line.", "name": "fig-line"}}
    assert figure_problems(executed_cell(1, PICTURE, mystnb=words)) == []
    assert len(figure_problems(executed_cell(1, PICTURE))) == 3
    assert figure_problems(executed_cell(1, PICTURE, mystnb={**words, "image": {}})) == [
        "mystnb.image.alt is missing"
    ]


def test_solution_check_can_fail():
    hidden = "````{solution-start} ex-a\n:class: dropdown\n````\ntext\n"
    assert solutions_outside_dropdowns(hidden) == []
    assert len(solutions_outside_dropdowns(hidden.replace(":class: dropdown\n", ""))) == 1
    assert len(solutions_outside_dropdowns("```{solution} ex-b\nIt is 2.\n```\n")) == 1


def test_normal_form_is_stable_and_drops_what_depends_on_the_machine():
    normal_form = tool("refresh_notebooks").normal_form
    halves = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in ("a\n", "b\n")]
    cell = nbformat.v4.new_code_cell(
        "print()", execution_count=7, outputs=halves, metadata={"collapsed": True}
    )
    notebook = nbformat.v4.new_notebook(
        cells=[cell], metadata={"kernelspec": {"name": "mine", "display_name": "mine"}}
    )
    text = normal_form(notebook)
    stored = nbformat.reads(text, as_version=4)
    assert normal_form(stored) == text
    assert [o.text for o in stored.cells[0].outputs] == ["a\nb\n"]
    assert (stored.cells[0].execution_count, stored.cells[0].id, dict(stored.cells[0].metadata)) == (
        1,
        "cell-00",
        {},
    )
    assert stored.metadata.kernelspec.name == "python3"
    assert cell.execution_count == 7


def test_docstrings_become_field_lists():
    module = tool("plain_docstrings", "_ext")
    numpy_style = [
        "Parameters",
        "----------",
        "size : how many",
        "    of them.",
        "",
        "Returns",
        "-------",
        "(B,) ids.",
    ]
    text = "\n".join(module.rewrite(numpy_style))
    assert ":param size: how many of them." in text and ":returns: (B,) ids." in text
    several = ["Raises", "------", "KeyError, ValueError : none of both.", "TypeError : no dict."]
    assert module.rewrite(several)[1:] == [
        ":raises KeyError: none of both.", ":raises ValueError: none of both.", ":raises TypeError: no dict."
    ]  # fmt: skip
    assert module.rewrite(["path    where", "        it lies"])[1] == ":param path: where it lies"
    # Two blanks after a full stop are no table, and examples stay as they are.
    for lines in (["One sentence.  Another one."], [">>> f(1,    2)", "3    4"]):
        assert [line for line in module.rewrite(lines) if line] == lines
    assert module.rewrite(["Like this:", "    a = 1"])[2:5] == ["::", "", "        a = 1"]
    assert module.rewrite(["the distance |u - v| of `a|b`"]) == [r"the distance \|u - v\| of `a|b`"]
    # Entries without a heading; a sentence with a colon is none, and the second line of a bullet belongs to it.
    assert module.rewrite(["a : one", "    more", "b : two.  c : three"]) == [
        ":param a: one more", ":param b: two.", ":param c: three"
    ]  # fmt: skip
    assert module.rewrite(["a, b: two", "c: one"]) == ["* ``a, b`` two", "* ``c`` one"]
    for lines in (["Three: one,", "two and three."], ["note: one line"], ["* a bullet", "  of two lines"]):
        assert module.rewrite(lines) == lines


def test_the_type_of_what_is_returned_stands_before_an_example():
    for example in ([">>> f(1)", ":rtype: int", "2"], [":rtype: int", ">>> f(1)", "2"]):
        lines = ["What it does.", "", *example]
        tool("plain_docstrings", "_ext").types_before_examples(lines)
        assert [line for line in lines if line] == ["What it does.", ":rtype: int", ">>> f(1)", "2"]
        assert lines[lines.index(":rtype: int") - 1] == lines[lines.index(":rtype: int") + 1] == ""
    plain = ["What it does.", "", ":rtype: int", "", ">>> f(1)", "2"]
    again = list(plain)
    tool("plain_docstrings", "_ext").types_before_examples(again)
    assert again == plain


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("dplearn.Annealing", "dplearn.training.Annealing"),
        (
            "dplearn.loading.PromptedModel.save_pretrained",
            "dplearn.named_prompts.NamedPrompts.save_pretrained",
        ),
        ("dplearn.model.PromptedModel.forward", "dplearn.model.PromptedModel.forward"),
        ("dplearn.model.PromptedModel.no_such_method", None),
        ("dplearn.model", None),
    ],
)
def test_a_reference_is_led_to_where_its_name_is_defined(name, where):
    assert tool("plain_docstrings", "_ext").defined_name(name) == where


def test_a_model_card_becomes_a_section():
    card = "---\nlicense: apache-2.0\n---\n# t5-mini\n\ntext\n\n## Data\n\n```bash\n# a comment\n```\n"
    text = tool("model_cards", "_ext").as_section(card)
    assert text == "## t5-mini\n\ntext\n\n### Data\n\n```bash\n# a comment\n```"


def test_what_is_numbered_carries_its_chapter(tmp_path):
    """Figures, equations and exercises of chapter 03 are 3.1, 3.2, ...; other pages count through."""
    built = pytest.importorskip("sphinx.application")
    (tmp_path / "conf.py").write_text(
        "extensions = ['myst_parser', 'sphinx_exercise', 'sphinx_proof', 'chapter_numbers']\n"
        "numfig = True\nmyst_enable_extensions = ['dollarmath', 'amsmath']\n"
        "import sys\nsys.path.insert(0, '" + (ROOT / "book" / "_ext").as_posix() + "')\n"
    )
    (tmp_path / "index.md").write_text("# Book\n\n```{toctree}\none\nplain\ntwo\n```\n")
    body = "\n\n$$ a = b $$ (eq-{0})\n\n$$ b = c $$ (eq-{0}-again)\n\nsee {{eq}}`eq-{0}-again` and {{eq}}`eq-one`\n"
    exercise = (
        "\n```{{exercise}}\n:label: ex-{0}\nWhy?\n```\n\n```{{prf:theorem}}\n:label: thm-{0}\nSo.\n```\n"
    )
    titles = {"one": "# 00 · Start", "plain": "# A page", "two": "# 03 · Attention"}
    for name, title in titles.items():
        (tmp_path / f"{name}.md").write_text(title + (body + exercise).format(name))
    folders = [str(tmp_path), str(tmp_path), str(tmp_path / "html"), str(tmp_path / "trees")]
    built.Sphinx(*folders, "html", status=None, warning=None).build()
    pages = {name: (tmp_path / "html" / f"{name}.html").read_text() for name in titles}
    for name, first, second in (("one", "0.1", "0.2"), ("two", "3.1", "3.2")):
        assert f">({first})<" in pages[name] and f">({second})<" in pages[name]
        assert f"Exercise {first}" in pages[name] and f"Theorem {first}" in pages[name]
        assert "(0.1)</a>" in pages[name]  # a reference to another chapter's equation
    assert "<h1>03 · Attention" in pages["two"]  # no second number in the title
    assert ">(1)<" in pages["plain"]
