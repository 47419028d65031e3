"""Chapters for a class: the same notebooks without solutions, answers and outputs, with room where they stood.

    python book/_tools/make_exercises.py _build/exercises

Each notebook of notebooks/ gives one of the same name. Left out are the solutions of exercises with their code, the
boxes that answer a prediction, and all outputs. After each exercise stands an empty cell: for code where the solution
has some, for words otherwise. Everything else is as in the book, so the notebooks run from top to bottom.
"""

import copy
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
FENCE = r"(?P<fence>`{3,}|:{3,})"
SOLUTION = re.compile(rf"^{FENCE}\{{solution-(?P<what>start|end)\}}.*?^(?P=fence)[ \t]*$\n?", re.M | re.S)
EXERCISE = re.compile(rf"^{FENCE}\{{exercise-start\}}.*?^(?P=fence)[ \t]*$\n?", re.M | re.S)
EXERCISE_END = re.compile(rf"^{FENCE}\{{exercise-end\}}[ \t]*\n(?P=fence)[ \t]*$\n?", re.M)
ANSWER = re.compile(
    rf"^{FENCE}\{{admonition\}}[^\n]*\n:class: [^\n]*\bdropdown\b.*?^(?P=fence)[ \t]*$\n?", re.M | re.S
)
NOTE = (
    "*Notebook for a class: the exercises of this chapter without their solutions. They stand in the book, below each "
    "exercise.*"
)
ROOM = "*Your answer:*"


def pieces(cells):
    """The cells as a stream of (kind, source, cell): "text", "code", and the "start" and "end" of a solution."""
    for cell in cells:
        if cell.cell_type == "code":
            yield "code", cell.source, cell
            continue
        end = 0
        for match in SOLUTION.finditer(cell.source):
            yield "text", cell.source[end : match.start()], cell
            yield match["what"], "", cell
            end = match.end()
        yield "text", cell.source[end:], cell


def without_answers(text):
    """Text without the boxes that answer a prediction."""
    return ANSWER.sub("", text)


def numbered(text, chapter, count):
    """Text with its exercises as headings, numbered as in the book; and how many there are now."""

    def heading(match):
        nonlocal count
        count += 1
        return f"### Exercise {chapter}.{count}\n\n"

    text = EXERCISE.sub(heading, text)
    return EXERCISE_END.sub("", text), count


def for_a_class(notebook, chapter):
    """The notebook of a chapter (its number) without solutions; the argument is not changed."""
    cells, count, hidden, has_code = [], 0, False, False
    for kind, source, cell in pieces(notebook.cells):
        if kind == "start":
            hidden, has_code = True, False
        elif kind == "end":
            empty = nbformat.v4.new_code_cell() if has_code else nbformat.v4.new_markdown_cell(ROOM)
            cells.append(empty)
            hidden = False
        elif hidden:
            has_code |= kind == "code"
        elif kind == "code":
            cells.append(nbformat.v4.new_code_cell(source, metadata=copy.deepcopy(cell.metadata)))
        else:
            text, count = numbered(without_answers(source), chapter, count)
            if text.strip():
                cells.append(nbformat.v4.new_markdown_cell(text.strip()))
    if hidden:
        raise ValueError(f"chapter {chapter}: a solution starts and has no end")
    title, _, rest = cells[0].source.partition("\n")
    cells[0].source = f"{title}\n\n{NOTE}\n{rest}"
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number:02d}"
    return nbformat.v4.new_notebook(cells=cells, metadata=copy.deepcopy(notebook.metadata))


def main(folder):
    """Write all notebooks into a folder; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        result = for_a_class(nbformat.read(path, as_version=4), int(path.stem[:2]))
        nbformat.validate(result)
        target = folder / path.name
        target.write_text(nbformat.writes(result) + "\n", encoding="utf8")
        written.append(target)
    print(f"{len(written)} notebooks in {folder}")
    return written


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
