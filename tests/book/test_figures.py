"""The figures of the notebooks: letters that can be read on a phone, colours that can be told from both grounds, the
four drawings of each, and one of them on a page."""

import importlib.util
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from project import ROOT, tool

pytest.importorskip("matplotlib")
figures = tool("figures", "_ext")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PHONE = 390 - 2 * 16  # what a page of that width leaves to a figure; test_site.py measures it
GRID = {"#dddddd", "#ffffff"}  # what need not stand out: the grid, and edges in the colour of the ground


def outputs(path):
    """The outputs of a notebook that show something: {type: content}."""
    cells = nbformat.read(path, as_version=4).cells
    return [output.data for cell in cells for output in cell.get("outputs", []) if "data" in output]


def drawn(path):
    """The figures of a notebook."""
    return [data["image/svg+xml"] for data in outputs(path) if "image/svg+xml" in data]


def smallest(drawing, width):
    """The size in pixels of the smallest letter of a drawing that has so much room."""
    points = figures.size(drawing)[0]
    return min(figures.letters(drawing)) * min(width, points * figures.SCALE) / points


def colours(text):
    """The colours of a figure, without the grid and the ground."""
    return {each.lower() for each in figures.COLOUR.findall(text)} - GRID


STORED = [
    pytest.param(text, id=f"{path.stem[:2]}-{n}") for path in NOTEBOOKS for n, text in enumerate(drawn(path))
]


def test_figures_are_stored_as_drawings():
    assert len(STORED) > 30
    assert [path.name for path in NOTEBOOKS for data in outputs(path) if "image/png" in data] == []


@pytest.mark.parametrize("text", STORED)
def test_a_figure_can_be_read_on_a_phone_and_is_small(text):
    found = figures.drawings(text)
    on_a_phone = found.get("-narrow", found[""])
    assert smallest(on_a_phone, PHONE) >= 9
    assert smallest(found[""], 700) >= 10  # beside the two sidebars of a desktop
    assert len(text) < 150_000


@pytest.mark.parametrize("text", STORED)
def test_every_colour_can_be_told_from_both_grounds(text):
    for colour in colours(text):
        assert figures.contrast(colour, "#ffffff") >= 3, colour
        assert figures.contrast(figures.in_the_dark(colour), figures.DARK) >= 3, colour


def style_of(theme):
    """The rules of an installed theme."""
    folder = Path(importlib.util.find_spec(theme).origin).parent
    files = sorted(folder.rglob("static/styles/*.css"))
    return "".join(path.read_text(encoding="utf8") for path in files)


def test_the_ground_and_the_ink_are_those_of_the_theme():
    dark = re.compile(r"data-theme=dark\]\{([^}]*)\}")
    assert any(
        f"--pst-color-background:{figures.DARK}" in each
        for each in dark.findall(style_of("sphinx_book_theme"))
    )
    assert any(
        f"--pst-color-text-base:{figures.INK}" in each
        for each in dark.findall(style_of("pydata_sphinx_theme"))
    )


# A figure of three panels that share an axis, with a legend; drawn in a process of its own, as matplotlib's settings are
# of the whole process.

DRAW = """
import sys
from dplearn import plots
plots.use_style()
assert "IPython" not in sys.modules
import matplotlib
matplotlib.use("svg")
import matplotlib.pyplot as plt
figure, axes = plt.subplots(1, 3, figsize=(7.4, 3), sharey=True, layout="constrained")
for number, ax in enumerate(axes):
    for colour, marker in zip(plots.COLOURS, plots.MARKERS):
        ax.plot([0, 1], [number, 2], color=colour, marker=marker, label=f"a curve in {colour}")
    ax.set(title=f"panel {number}", xlabel="step")
axes[0].set_ylabel("loss")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
figure.savefig(sys.argv[1], metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
"""


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    path = tmp_path_factory.mktemp("figure") / "figure.svg"
    subprocess.run([sys.executable, "-c", DRAW, path], check=True, cwd=ROOT)
    return path


def test_the_same_figure_is_the_same_file(example, tmp_path):
    subprocess.run([sys.executable, "-c", DRAW, tmp_path / "again.svg"], check=True, cwd=ROOT)
    assert (tmp_path / "again.svg").read_bytes() == example.read_bytes()


NOTEBOOK = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.display_formatter.active_types = ["image/png", "image/svg+xml"]
import matplotlib
matplotlib.use("module://matplotlib_inline.backend_inline")
from dplearn import plots
plots.use_style()  # before the first figure, when nothing is set up, and after it
import matplotlib.pyplot as plt
figure, _ = plt.subplots()
for _ in range(2):
    data, _ = shell.display_formatter.format(figure)
    assert "image/png" not in data, list(data)
    print(data["image/svg+xml"])
    plots.use_style()
"""


def test_a_notebook_stores_figures_as_svg_without_a_date():
    run = subprocess.run([sys.executable, "-c", NOTEBOOK], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("</svg>") == 2 and "metadata" not in run.stdout


def test_panels_stand_below_one_another_with_the_words_of_their_axis(example):
    wide = figures.parsed(example.read_text())
    narrow = figures.narrowed(wide)
    above, below = list(figures.named(narrow)["figure_1"])[1:]
    ids = figures.named(narrow)
    boxes = [figures.box([panel], ids) for panel in below]
    assert len(boxes) == 3
    for one, other in zip(boxes, boxes[1:]):
        assert one[3] <= other[1]  # the bottom of each lies above the top of the next
    lefts = [
        figures.box([panel[0][0]], ids)[0] + figures.transformation(panel.get("transform"))[4]
        for panel in below
    ]
    assert max(lefts) - min(lefts) < 0.1  # the frames stand in one line
    # Numbers and name of the axis stand left of every frame, as far as at the first panel.
    indents = [left - panel[0] for left, panel in zip(lefts, boxes)]
    assert min(indents) > 20 and max(indents) - min(indents) < 0.1
    width, height = figures.size(narrow)
    everything = figures.box([above, below], ids)
    assert 0 <= everything[0] and 0 <= everything[1] and everything[2] <= width and everything[3] <= height
    assert width <= figures.MOST + 4 < figures.size(wide)[0]
    assert len(list(above)) == 7 and len({figures.box([entry], ids)[1] // 10 for entry in above}) > 2


def test_a_panel_with_numbers_of_its_own_gets_the_name_of_its_axis_alone(example):
    wide = figures.parsed(example.read_text())
    ids, (first, second, _) = figures.named(wide), figures.children(wide, "axes_")
    numbers, name = figures.words_of_axis(first)
    assert len(numbers) > 3 and len(name) == 1 and figures.words_of_axis(second) == ([], [])
    (words,) = figures.moved_words(second, [first, second], ids)
    assert len(words) == len(numbers) + 1
    axis = [child for child in second if child.get("id", "").startswith("matplotlib.axis_")][1]
    axis[0].append(numbers[0])  # now it has a number, though in the place of the other's
    (words,) = figures.moved_words(second, [first, second], ids)
    left = figures.box(name, ids)[0] - figures.box(numbers, ids)[0]
    assert len(words) == 1
    assert figures.box([words], ids)[0] - figures.box([numbers[0]], ids)[0] == pytest.approx(left, abs=0.01)
    axis.append(name[0])
    assert figures.moved_words(second, [first, second], ids) == []


def test_no_letter_is_lost_on_the_way(example):
    wide = figures.parsed(example.read_text())
    count = len(list(figures.letters(wide)))
    axis = sum(figures.words_of_axis(figures.children(wide, "axes_")[0]), [])
    repeated = [
        path
        for word in axis
        for path, _ in figures.shapes(word, figures.named(wide))
        if path.get("transform")
    ]
    assert len(repeated) > 4
    assert len(list(figures.letters(figures.darkened(wide)))) == count
    assert len(list(figures.letters(figures.narrowed(wide)))) == count + 2 * len(repeated)


def test_of_panels_whose_axes_are_turned_off_nothing_is_lost(tmp_path):
    """They have no ground: the first box that is drawn is not it."""
    draw = (
        DRAW[: DRAW.index("figure, axes")]
        + """
figure, axes = plt.subplots(1, 2, figsize=(8.4, 2))
for ax in axes:
    ax.add_patch(plt.Rectangle((0.1, 0.1), 0.8, 0.8, fc="#0072b2"))
    ax.text(0.5, 0.5, "a box")
    ax.axis("off")
figure.savefig(sys.argv[1])
"""
    )
    subprocess.run([sys.executable, "-c", draw, tmp_path / "off.svg"], check=True, cwd=ROOT)
    drawing = figures.parsed((tmp_path / "off.svg").read_text())
    assert ET.tostring(drawing, encoding="unicode").count("fill: #0072b2") == 2
    narrow = figures.narrowed(drawing)
    count = len(list(figures.letters(drawing)))
    assert len(list(figures.letters(narrow))) == count >= 2 * len("abox")


def test_a_figure_of_one_panel_stays_as_it_is(example):
    wide = figures.parsed(example.read_text())
    figure = figures.named(wide)["figure_1"]
    for panel in figures.children(wide, "axes_")[1:]:
        figure.remove(panel)
    assert figures.narrowed(wide) is None


def test_dark_drawings_have_no_dark_ink(example):
    light = figures.parsed(example.read_text())
    dark = figures.darkened(light)
    ids = figures.named(dark)
    assert ids["figure_1"].get("fill") == figures.INK and figures.DARK in ids["ground"].get("style")
    text = figures.ET.tostring(dark, encoding="unicode")
    assert "#000000" not in text and "#ffffff" not in text
    assert figures.ET.tostring(light, encoding="unicode").count("#000000") > 10


def test_an_svg_of_another_origin_is_left_alone():
    assert figures.drawings(f'<svg xmlns="{figures.SVG}" viewBox="0 0 1 1"><path d="M 0 0"/></svg>') == {}


def page(folder, svg):
    """What becomes of a page with one figure: its HTML, as one string, and the folder of its images."""
    from docutils import nodes

    (folder / "stored.svg").write_text(svg)
    image = nodes.image(uri="/stored.svg", alt='a "line"')
    figure = nodes.figure("", image, nodes.caption("", "A line."), ids=["fig-line"])
    doctree = nodes.section("", figure)
    builder = SimpleNamespace(
        format="html", imagedir="_images", get_target_uri=lambda docname: f"{docname}.html"
    )
    app = SimpleNamespace(builder=builder, srcdir=folder, outdir=folder / "html")
    figures.draw(app, doctree, "notebooks/x")
    assert doctree[0][1].astext() == "A line."
    return doctree[0][0].astext(), folder / "html" / "_images"


def test_a_page_has_four_drawings_and_a_link(example, tmp_path):
    html, images = page(tmp_path, example.read_text())
    endings = ("", "-dark", "-narrow", "-narrow-dark")
    assert {path.name for path in images.iterdir()} == {f"fig-line{ending}.svg" for ending in endings}
    halves = re.findall(r'<div class="only-(light|dark)">(.*?)</div>', html)
    assert [name for name, _ in halves] == ["light", "dark"]
    for (_, half), kind in zip(halves, ("", "-dark")):
        assert half.count("alt=") == 1 and 'alt="a &quot;line&quot;"' in half
        assert f'<source media="{figures.NARROW}" srcset="../_images/fig-line-narrow{kind}.svg"' in half
        assert f'src="../_images/fig-line{kind}.svg"' in half
        link = f'<a href="../_images/fig-line{kind}.svg#ground" aria-label="Open this figure alone"'
        assert half.index(link) > half.index(
            "</picture>"
        )  # the words of a picture inside a link would be the link's
        assert ("lazy" in half) == (kind == "-dark")


def test_what_is_no_page_of_a_site_keeps_its_images(tmp_path):
    app = SimpleNamespace(builder=SimpleNamespace(format="text"))
    figures.draw(app, None, "notebooks/x")


def test_strict_nbval_leaves_figures_out():
    spec = importlib.util.spec_from_file_location("notebooks_conftest", ROOT / "notebooks" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    notebook = SimpleNamespace(skip_compare=("image/png",))
    module.pytest_collectstart(notebook)
    assert notebook.skip_compare == ("image/png", "image/svg+xml")
    module.pytest_collectstart(SimpleNamespace())
