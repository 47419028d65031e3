"""Sphinx extension: figures of the notebooks as drawings for light and dark pages, for wide and narrow screens.

matplotlib stores a figure as SVG with dark ink on a white ground. For each one four files are made: with no ground of
its own, for a light page and for a dark one; and each of these once more with its panels below one another, for
phones. A page shows one of the four. Who does not see it hears its words once, and a link opens the drawing alone,
where it has a ground again. On paper the light one is shown, as it was drawn.
"""

import copy
import math
import posixpath
import re
import xml.etree.ElementTree as ET
from html import escape
from pathlib import Path

from docutils import nodes

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ET.register_namespace("", SVG)
ET.register_namespace("xlink", XLINK)
HREF = f"{{{XLINK}}}href"

# matplotlib draws letters 100 units high; the size of a text is what they are scaled by.
UNITS = 100
# A page shows 1.4 px for a point: the letters of a figure, 10.5 points, are nearly as large as the text beside it.
SCALE = 1.4
# Narrow drawings, in points: at least so wide, or letters would be larger than those of the page; columns of panels
# stand side by side while they fit into so much.
LEAST, MOST = 220, 300
GAP = 12
NARROW = "screen and (max-width: 600px)"

DARK = "#121212"  # the ground of a dark page
INK = "#ced6dd"  # of the theme's text on a dark page
# The dark brown of dplearn/plots.py is orange in the dark, as Okabe and Ito have it.
PARTNERS = {"#7a5200": "#e69f00"}
COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")


# --- colours ---


def channels(colour):
    """The three channels of a colour, from 0 to 255.

    >>> channels("#0072b2")
    (0, 114, 178)
    """
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def mixed(one, other, share):
    """A colour between two: so much of the other.

    >>> mixed("#000000", "#ffffff", 0.5)
    '#808080'
    """
    pairs = zip(channels(one), channels(other))
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in pairs)


def luminance(colour):
    """Relative luminance, as WCAG defines it."""
    linear = [
        c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
        for c in (v / 255 for v in channels(colour))
    ]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(one, other):
    """Contrast of two colours, from 1 to 21.

    >>> contrast("#000000", "#ffffff")
    21.0
    """
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def in_the_dark(colour):
    """The colour that stands for another one on a dark page.

    Greys keep their distance from the ground: white becomes the ground, black the ink of the page. Other colours are
    made lighter until letters in them can be read.

    >>> in_the_dark("#ffffff"), in_the_dark("#000000"), in_the_dark("#7a5200")
    ('#121212', '#ced6dd', '#e69f00')
    """
    colour = colour.lower()
    values = channels(colour)
    if max(values) - min(values) <= 16:
        return mixed(INK, DARK, sum(values) / 3 / 255)
    colour = PARTNERS.get(colour, colour)
    lighter = (mixed(colour, "#ffffff", step / 20) for step in range(21))
    return next(each for each in lighter if contrast(each, DARK) >= 4.5)


def darkened(drawing):
    """A copy of a drawing for a dark page."""
    drawing = copy.deepcopy(drawing)
    for element in drawing.iter():
        for name in ("style", "fill", "stroke"):
            if name in element.attrib:
                element.set(name, COLOUR.sub(lambda match: in_the_dark(match[0]), element.get(name)))
    return drawing


# --- where things stand ---

IDENTITY = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
STEP = re.compile(r"(\w+)\(([^)]*)\)")
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")


def times(one, other):
    """The product of two transformations, each (a, b, c, d, e, f) as in SVG."""
    a, b, c, d, e, f = one
    p, q, r, s, x, y = other
    return (a * p + c * q, b * p + d * q, a * r + c * s, b * r + d * s, a * x + c * y + e, b * x + d * y + f)


def transformation(text):
    """The transformation that an attribute says.

    >>> transformation("translate(3 4) scale(2 -2)")
    (2.0, 0.0, 0.0, -2.0, 3.0, 4.0)
    """
    result = IDENTITY
    for name, values in STEP.findall(text or ""):
        v = [float(each) for each in NUMBER.findall(values)]
        if name == "translate":
            step = (1.0, 0.0, 0.0, 1.0, v[0], v[1] if len(v) > 1 else 0.0)
        elif name == "scale":
            step = (v[0], 0.0, 0.0, v[-1], 0.0, 0.0)
        elif name == "rotate":
            cos, sin = math.cos(math.radians(v[0])), math.sin(math.radians(v[0]))
            step = (cos, sin, -sin, cos, 0.0, 0.0)
        else:
            step = tuple(v)
        result = times(result, step)
    return result


def tag(element):
    """The name of an element without its name space."""
    return element.tag.partition("}")[2]


def named(drawing):
    """The elements of a drawing by their id."""
    return {element.get("id"): element for element in drawing.iter() if element.get("id")}


def shapes(element, ids, above=IDENTITY):
    """Every path that an element shows, with its transformation; what is clipped stays in its panel and is left out."""
    if tag(element) in ("defs", "style") or element.get("clip-path"):
        return
    here = times(above, transformation(element.get("transform")))
    if tag(element) == "use":
        place = times(here, (1.0, 0.0, 0.0, 1.0, float(element.get("x", 0)), float(element.get("y", 0))))
        target = ids[element.get(HREF)[1:]]
        yield target, times(place, transformation(target.get("transform")))
    elif tag(element) == "path":
        yield element, here
    for child in element:
        yield from shapes(child, ids, here)


def box(elements, ids):
    """What elements cover: left, top, right, bottom. The points that bend a curve count as well."""
    xs, ys = [], []
    for element in elements:
        for path, (a, b, c, d, e, f) in shapes(element, ids):
            values = [float(each) for each in NUMBER.findall(path.get("d", ""))]
            xs += [a * x + c * y + e for x, y in zip(values[::2], values[1::2])]
            ys += [b * x + d * y + f for x, y in zip(values[::2], values[1::2])]
    return min(xs), min(ys), max(xs), max(ys)


def letters(drawing):
    """The size of each letter of a drawing, in points."""
    ids = named(drawing)
    for path, (a, b, c, d, _, _) in shapes(drawing, ids):
        if path.get("transform"):  # only letters bring one of their own, from the units of the font
            own = transformation(path.get("transform"))[0]
            yield UNITS * math.sqrt(abs(a * d - b * c)) / own


def size(drawing):
    """Width and height of a drawing, in points."""
    return tuple(float(each) for each in drawing.get("viewBox").split()[2:])


# --- panels below one another ---


def children(drawing, prefix):
    """The parts of the figure whose id begins with a word: axes, legend, text."""
    figure = next(element for element in drawing.iter() if element.get("id") == "figure_1")
    return [element for element in figure if element.get("id", "").startswith(prefix)]


def ground_of(panel):
    """What lies below a panel; None where its axes were turned off. Everything else of a panel is clipped to it."""
    patches = [child for child in panel if child.get("id", "").startswith("patch_")]
    return next((patch for patch in patches if not patch[0].get("clip-path")), None)


def frame(panel, ids):
    """The rectangle of a panel between its axes; where these were turned off, what its letters cover."""
    ground = ground_of(panel)
    return box([panel if ground is None else ground], ids)


def moved(elements, dx, dy):
    """Elements, as they are, in another place."""
    group = ET.Element(f"{{{SVG}}}g", {"transform": f"translate({dx:.3f} {dy:.3f})"})
    group.extend(elements)
    return group


def columns(panels, ids):
    """Panels that stand above one another, from left to right: they share the axis below them."""
    found = {}
    for panel in panels:
        left = frame(panel, ids)[0]
        key = next((each for each in found if abs(each - left) < 2), left)
        found.setdefault(key, []).append(panel)
    return [found[key] for key in sorted(found)]


def words_of_axis(panel):
    """What a panel says about its vertical axis: its numbers, and its name."""
    axes = [child for child in panel if child.get("id", "").startswith("matplotlib.axis_")]
    axis = axes[1] if axes else ()  # a drawing without axes has none
    numbers = [part for tick in axis for part in tick if part.get("id", "").startswith("text_")]
    return numbers, [part for part in axis if part.get("id", "").startswith("text_")]


def moved_words(panel, panels, ids):
    """What a panel leaves to the first one of its row to say about the vertical axis: numbers, where they share it, and
    the name."""
    here = frame(panel, ids)
    row = [each for each in panels if abs(frame(each, ids)[1] - here[1]) < 2]
    first = min(row, key=lambda each: frame(each, ids)[0])
    (own, own_name), (numbers, name) = words_of_axis(panel), words_of_axis(first)
    if own:  # the name stands as far from them as it does there
        words = [] if own_name or not numbers else name
        shift = box(own, ids)[0] - box(numbers, ids)[0] if words else 0
    else:
        words = numbers + ([] if own_name else name)
        shift = here[0] - frame(first, ids)[0]
    words = copy.deepcopy(words)
    for element in (each for word in words for each in word.iter()):
        element.attrib.pop("id", None)  # the letters are defined where they stood
    return [moved(words, shift, 0)] if words else []


def rows_of(panels, ids, most=MOST):
    """Columns of panels in rows no wider than a width: [[(elements, left, right), ...], ...]."""
    rows, used = [], 0
    for column in columns(panels, ids):
        left, _, right, _ = box(column, ids)
        if rows and used + GAP + right - left <= most:
            rows[-1].append((column, left, right))
            used += GAP + right - left
            continue
        column = column + [word for panel in column for word in moved_words(panel, panels, ids)]
        left, _, right, _ = box(column, ids)
        rows.append([(column, left, right)])
        used = right - left
    return rows


def stacked(panels, ids):
    """Panels in rows of columns below one another, the frames at the left in one line; with their width and height."""
    rows, result, widest, y = rows_of(panels, ids), [], 0, 0
    indents = [frame(row[0][0][0], ids)[0] - row[0][1] for row in rows]
    for row, indent in zip(rows, indents):
        _, top, _, bottom = box([each for column, *_ in row for each in column], ids)
        x = max(indents) - indent
        for column, left, right in row:
            result.append(moved(column, x - left, y - top))
            x += right - left + GAP
        widest, y = max(widest, x - GAP), y + bottom - top + GAP
    return result, widest, y - GAP


# --- legends ---

PITCH = 17  # between the lines of a legend


def entries(legend):
    """The entries of a legend: a text with the marks before it."""
    found = [[]]
    for part in legend:
        found[-1].append(part)
        if part.get("id", "").startswith("text_"):
            found.append([])
    return [each for each in found if each]


def baseline(entry):
    """Where the letters of an entry stand."""
    return next(transformation(part.get("transform"))[5] for part in entry[-1] if part.get("transform"))


def flowed(legend, ids, most):
    """The entries of a legend in as many lines as a width needs; with their width and height."""
    result, x, line, widest = [], 0, 0, 0
    for entry in entries(legend):
        left, _, right, _ = box(entry, ids)
        if x and x + right - left > most:
            x, line = 0, line + 1
        result.append(moved(entry, x - left, PITCH * (line + 1) - 5 - baseline(entry)))
        widest = max(widest, x + right - left)
        x += right - left + GAP
    return result, widest, PITCH * (line + 1) + GAP / 2 if result else 0


# --- the four drawings ---

# The ground shows where a link leads to it: on a page the page is the ground. Alone, the drawing fills the window.
STYLE = (
    "#ground{visibility:hidden} #ground:target{visibility:visible} "
    ":root:has(#ground:target){width:100%;height:100%}"
)


def spread(drawing, width, height):
    """Set how large a drawing is, in points, and its ground."""
    drawing.set("viewBox", f"0 0 {width:.2f} {height:.2f}")
    drawing.set("width", f"{width * SCALE:.0f}")
    drawing.set("height", f"{height * SCALE:.0f}")
    ground = named(drawing)["ground"]
    ground.set("d", f"M 0 0 H {width:.2f} V {height:.2f} H 0 z")


def parsed(text):
    """The drawing that matplotlib has stored, without grounds; or None for an SVG that is not matplotlib's."""
    drawing = ET.fromstring(text)
    ids = named(drawing)
    if "figure_1" not in ids or "patch_1" not in ids:
        return None
    ids["patch_1"][0].set("id", "ground")
    # What says nothing about its colour is black; in the dark it is not.
    ids["figure_1"].set("fill", "#000000")
    for panel in children(drawing, "axes_"):
        if (ground := ground_of(panel)) is not None:
            ground[0].set("style", "fill: none")
    next(element for element in drawing.iter() if tag(element) == "style").text += STYLE
    spread(drawing, *size(drawing))
    return drawing


def narrowed(drawing):
    """A drawing for narrow screens, or None for one whose panels stand in one column already."""
    drawing = copy.deepcopy(drawing)
    ids, panels = named(drawing), children(drawing, "axes_")
    if len(columns(panels, ids)) == 1:
        return None
    below, width, height = stacked(panels, ids)
    width = max(width, LEAST)
    legend = children(drawing, "text_") + [part for each in children(drawing, "legend_") for part in each]
    above, wide, high = flowed(legend, ids, width)
    width = max(width, wide)
    figure = ids["figure_1"]
    for part in figure[1:]:
        figure.remove(part)
    figure.extend([moved(above, 2, 0), moved(below, 2, high + 2)])
    spread(drawing, width + 4, high + height + 4)
    return drawing


def drawings(text):
    """The files of a figure: {ending: drawing}, without the narrow ones for a figure that needs none."""
    light = parsed(text)
    found = {"": light, "-narrow": light and narrowed(light)}
    found = {ending: drawing for ending, drawing in found.items() if drawing is not None}
    return found | {f"{ending}-dark": darkened(drawing) for ending, drawing in found.items()}


# --- pages ---

ALONE = "Open this figure alone"


def shown(name, kind, words, sizes):
    """One of the two pictures of a figure, light or dark, and the link to it.

    name : the address of the file, without its ending; sizes : {ending: (width, height)}.
    """
    wide, high = sizes[kind]
    source = ""
    if f"-narrow{kind}" in sizes:
        width, height = sizes[f"-narrow{kind}"]
        source = (
            f'<source media="{NARROW}" srcset="{name}-narrow{kind}.svg" width="{width}" height="{height}">'
        )
    # The light one is there for paper; it must not wait until it is seen.
    lazy = ' loading="lazy"' if kind else ""
    return (
        f'<div class="only-{"dark" if kind else "light"}"><picture>{source}'
        f'<img class="dark-light" src="{name}{kind}.svg" alt="{escape(words)}" width="{wide}" height="{high}"{lazy}>'
        f'</picture><a href="{name}{kind}.svg#ground" aria-label="{ALONE}" title="{ALONE}"></a></div>'
    )


def replaced(name, words, found):
    """The HTML of a figure; words : what it shows, for those who do not see it; found : its drawings."""
    sizes = {ending: (drawing.get("width"), drawing.get("height")) for ending, drawing in found.items()}
    both = "".join(shown(name, kind, words, sizes) for kind in ("", "-dark"))
    return f'<div class="drawing">{both}</div>'


def name_of(image):
    """The name of the files of an image: that of its figure, or that of the file that has been stored."""
    figure = image.parent if isinstance(image.parent, nodes.figure) else None
    return figure["ids"][0] if figure and figure["ids"] else Path(image["uri"]).stem


def draw(app, doctree, docname):
    """Write the drawings of a page's figures, and let the page show them."""
    if app.builder.format != "html":
        return
    for image in list(doctree.findall(nodes.image)):
        path = Path(app.srcdir, image["uri"].lstrip("/"))
        if path.suffix != ".svg" or not path.is_file():
            continue
        found = drawings(path.read_text(encoding="utf8"))
        if not found:
            continue
        name, folder = name_of(image), Path(app.outdir, app.builder.imagedir)
        folder.mkdir(parents=True, exist_ok=True)
        for ending, drawing in found.items():
            (folder / f"{name}{ending}.svg").write_bytes(ET.tostring(drawing))
        start = posixpath.dirname(app.builder.get_target_uri(docname))
        address = posixpath.relpath(posixpath.join(app.builder.imagedir, name), start or ".")
        image.replace_self(nodes.raw("", replaced(address, image.get("alt", ""), found), format="html"))


def setup(app):
    """Figures are drawn when their page is written."""
    app.connect("doctree-resolved", draw)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
