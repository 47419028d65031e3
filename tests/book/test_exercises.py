"""Notebooks for a class: every exercise has room for an answer, no solution is left, the rest is as in the book."""

import re

import nbformat
import pytest
from project import ROOT, tool

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """{name: (the notebook of the book, the one for a class)} of all chapters."""
    paths = tool("make_exercises").main(tmp_path_factory.mktemp("exercises"))
    read = nbformat.read
    return {path.stem: (read(ROOT / "notebooks" / path.name, 4), read(path, 4)) for path in paths}


def code(cells):
    return [cell.source for cell in cells if cell.cell_type == "code"]


def prose(cells):
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def code_outside_solutions(notebook):
    """The code of a chapter that belongs to no solution, read by lines and not by the tool's patterns."""
    kept, inside = [], False
    for cell in notebook.cells:
        if cell.cell_type == "code":
            kept += [] if inside else [cell.source]
            continue
        for line in cell.source.splitlines():
            inside = "{solution-start}" in line or (inside and "{solution-end}" not in line)
    return kept


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_for_a_class(written, path):
    source, result = written[path.stem]
    text, exercises = prose(result.cells), prose(source.cells).count("{exercise-start}")
    chapter = int(path.stem[:2])
    headings = re.findall(r"^### Exercise (\S+)$", text, re.M)
    assert headings == [f"{chapter}.{n}" for n in range(1, exercises + 1)]
    assert not re.search(r"\{(?:solution|exercise)-|:class: dropdown", text)
    assert text.startswith(prose(source.cells).partition("\n")[0]) and "Notebook for a class" in text
    # The code is the chapter's own; what was added is empty, as many times as there are exercises.
    assert [lines for lines in code(result.cells) if lines] == code_outside_solutions(source)
    room = code(result.cells).count("") + sum(cell.source == "*Your answer:*" for cell in result.cells)
    assert room == exercises
    assert all(
        not cell.outputs and cell.execution_count is None for cell in result.cells if cell.cell_type == "code"
    )


def test_the_chapters_themselves_stay(written):
    source, result = written["00_first_prompt"]
    assert any(cell.get("outputs") for cell in source.cells)
    assert "Most of the 15.5 kB" in prose(result.cells) and "20 * 768" not in "".join(code(result.cells))


def test_answers_to_predictions_are_left_out():
    without = tool("make_exercises").without_answers
    text = (
        "**Predict.** Why?\n\n```{admonition} Answer\n:class: dropdown\n\nSo.\n```\n\n```{note}\nMore.\n```\n"
    )
    assert "So." not in without(text) and "Why?" in without(text) and "More." in without(text)


def test_a_solution_without_an_end_is_an_error():
    cell = nbformat.v4.new_markdown_cell("# 01\n\n```{solution-start} ex\n:class: dropdown\n```\nIt is 2.")
    with pytest.raises(ValueError, match="chapter 1: a solution starts and has no end"):
        tool("make_exercises").for_a_class(nbformat.v4.new_notebook(cells=[cell]), 1)
