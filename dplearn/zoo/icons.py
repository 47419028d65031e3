"""Icons with names, rendered from the icon fonts of the installed package QtAwesome; and what pretraining never sees.

The fonts and their lists of names are read as files: QtAwesome is not imported and Qt is not needed; nothing of the
fonts is shipped with this package. An icon is a glyph of one *style* (a font, or a weight within a font) with a name
such as "arrow-left-circle". Its *class* is the first word of the name. Icons of one *drawing* (same name without the
marks of weight: "heart", "heart-outline", "heart-bold") always stand on the same side of a split.

Every icon belongs to one of five parts, and vit-mini and clip-mini are trained on the first only:

train       what the backbones are pretrained on
validation  other drawings of the same styles, for choices during pretraining
icons       other drawings of the 40 `KNOWN_WORDS`, in styles that were seen
style       the font `HELD_OUT_FONT` (Phosphor, five weights), which is never seen; words that are known
classes     every icon, of any font, whose name has one of the 40 `HELD_OUT_WORDS`
"""

import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata, util
from pathlib import Path

# font -> beginning of its files' names
FONTS = {
    "material": "materialdesignicons6-webfont",
    "remix": "remixicon",
    "codicon": "codicon",
    "elusive": "elusiveicons-webfont",
    "awesome-solid": "fontawesome6-solid-webfont",
    "awesome-regular": "fontawesome6-regular-webfont",
    "phosphor": "phosphor",
}
# The ends of names that say how heavy a drawing is, not what it shows.
WEIGHTS = {
    "material": ("outline",),
    "remix": ("fill", "line"),
    "phosphor": ("bold", "fill", "light", "thin"),
}
HELD_OUT_FONT = "phosphor"
HELD_OUT_WORDS = tuple(
    """bag bed bell bookmark briefcase bug building bus camera cart chess cookie database dice door fan fire flag
    flask gamepad glass heart hourglass key keyboard lightbulb microphone moon mouse printer puzzle robot ruler
    snowflake store thermometer train truck umbrella wallet""".split()
)
KNOWN_WORDS = tuple(
    """airplane align archive arrow battery book calendar chart chat check circle clock cloud currency eye file
    folder git hand house link list lock map music note pencil person phone play plus shield speaker square star
    sun tag text user wifi""".split()
)
PARTS = ("train", "validation", "icons", "style", "classes")
SPLITS = ("train", "validation", "test")
DISTRIBUTION = "QtAwesome"
NO_INK = {("codicon", "blank")}  # a glyph with nothing to see


@dataclass(frozen=True, order=True)
class Icon:
    """One glyph: its font, style, full name, words without marks of weight, code point, and other names of it."""

    font: str
    style: str
    name: str
    words: tuple[str, ...]
    code: int
    aliases: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The class: the first word."""
        return self.words[0]

    @property
    def text(self) -> str:
        """The name as text, without marks of weight: "arrow left circle"."""
        return " ".join(self.words)

    @property
    def drawing(self) -> str:
        """What icons of different styles and weights share; splits are made by it."""
        return "-".join(self.words)


def fonts_folder() -> Path:
    """Where the fonts are. QtAwesome is only looked up, never imported (that would need Qt)."""
    spec = util.find_spec("qtawesome")
    places = spec.submodule_search_locations if spec else None
    folder = Path(places[0]) / "fonts" if places else None
    if folder is None or not folder.is_dir():
        raise FileNotFoundError(
            "the icon fonts are missing: install the package qtawesome (pip install 'dplearn[experiments]')"
        )
    return folder


def fonts_version() -> str:
    """The installed version of the package that carries the fonts."""
    return metadata.version(DISTRIBUTION)


def file_of(font: str, kind: str) -> Path:
    """The font file (kind "ttf") or the list of names (kind "json") of a font, whatever its version."""
    if font not in FONTS:
        raise ValueError(f"font={font!r}: expected one of {list(FONTS)}")
    middle = "-charmap" if kind == "json" else ""
    pattern = re.compile(re.escape(FONTS[font] + middle) + r"-[\d.]+\." + kind)
    files = [path for path in sorted(fonts_folder().iterdir()) if pattern.fullmatch(path.name)]
    if len(files) != 1:
        raise FileNotFoundError(f"{fonts_folder()} has {len(files)} files {pattern.pattern}: expected one")
    return files[0]


@cache
def catalogue() -> tuple[Icon, ...]:
    """All icons in a fixed order: one for each code point of each font, under the first of its names."""
    every = []
    for font in FONTS:
        names = defaultdict(list)
        for name, code in json.loads(file_of(font, "json").read_text()).items():
            names[int(code, 16)].append(name)
        every += [icon_of(font, code, sorted(group)) for code, group in names.items()]
    every = [icon for icon in every if (icon.font, icon.name) not in NO_INK]
    return tuple(sorted(every))


def icon_of(font: str, code: int, names: Sequence[str]) -> Icon:
    """An icon from the names of its glyph.

    >>> icon_of("phosphor", 1, ["arrow-left-bold"])
    Icon(font='phosphor', style='phosphor-bold', name='arrow-left-bold', words=('arrow', 'left'), code=1, aliases=())
    """
    words = tuple(names[0].split("-"))
    style = font
    if len(words) > 1 and words[-1] in WEIGHTS.get(font, ()):
        words, style = words[:-1], f"{font}-{words[-1]}"
    return Icon(font, style, names[0], words, code, tuple(names[1:]))


def fold(text: str, count: int) -> int:
    """A number below ``count`` that depends on the text only."""
    return zlib.crc32(text.encode()) % count


def has_held_out_word(icon: Icon) -> bool:
    """Whether one of the icon's names has a held-out word (or its plural) anywhere."""
    words = {word for name in (icon.name, *icon.aliases) for word in name.split("-")}
    return any(word in words or word + "s" in words or word + "es" in words for word in HELD_OUT_WORDS)


def part_of(icon: Icon) -> str:
    """Which of `PARTS` an icon belongs to.

    >>> [part_of(icon_of("material", 1, [name])) for name in ("hand-heart", "cloud", "cloud-lock")]
    ['classes', 'icons', 'train']
    >>> part_of(icon_of("phosphor", 1, ["archive-thin"]))
    'style'
    """
    if has_held_out_word(icon):
        return "classes"
    if icon.font == HELD_OUT_FONT:
        return "style"
    if icon.label in KNOWN_WORDS and fold(icon.drawing, 5) < 2:
        return "icons"
    return "validation" if fold(icon.drawing, 20) == 7 else "train"


def icons(*parts: str, words: Iterable[str] | None = None) -> list[Icon]:
    """The icons of these parts (all parts without one), in fixed order; ``words`` keeps only these classes."""
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"part={part!r}: expected one of {list(PARTS)}")
    kept = None if words is None else set(words)
    return [
        icon
        for icon in catalogue()
        if (not parts or part_of(icon) in parts) and (kept is None or icon.label in kept)
    ]


def base_new(words: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Two halves of the classes, fixed by the words alone: (base, new), each in alphabetical order.

    >>> base, new = base_new(KNOWN_WORDS)
    >>> len(base), len(new), not set(base) & set(new)
    (20, 20, True)
    """
    ordered = sorted(set(words), key=lambda word: (zlib.crc32(f"base/{word}".encode()), word))
    half = (len(ordered) + 1) // 2
    return tuple(sorted(ordered[:half])), tuple(sorted(ordered[half:]))


def task_splits(chosen: Iterable[Icon]) -> dict[str, list[Icon]]:
    """{"train", "validation", "test"} of icons, class by class: about 50, 20 and 30 % of the drawings of each class.

    All styles and weights of a drawing are in the same split. Every class has a drawing in each split; a class with
    fewer than three drawings is an error.
    """
    by_class: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for icon in sorted(chosen):
        by_class[icon.label][icon.drawing].append(icon)
    result: dict[str, list] = {split: [] for split in SPLITS}
    for label, drawings in sorted(by_class.items()):
        if len(drawings) < 3:
            raise ValueError(f"class {label!r} has {len(drawings)} drawings: expected at least 3")
        ordered = sorted(drawings, key=lambda name: (zlib.crc32(f"split/{name}".encode()), name))
        tests = max(1, round(0.3 * len(ordered)))
        validations = max(1, round(0.2 * len(ordered)))
        bounds = {"test": (0, tests), "validation": (tests, tests + validations)}
        bounds["train"] = (tests + validations, len(ordered))
        for split, (low, high) in bounds.items():
            result[split] += [icon for name in ordered[low:high] for icon in drawings[name]]
    return result


@cache
def _font(font: str, points: int):
    from PIL import ImageFont

    # The basic layout engine is the same in every build of Pillow.
    return ImageFont.truetype(str(file_of(font, "ttf")), points, layout_engine=ImageFont.Layout.BASIC)


def render(icon: Icon, size: int = 40, margin: int = 2):
    """The icon's coverage, (size, size) uint8 with 255 where it is inked: drawn large, cropped, centred, reduced.

    The longer side of the drawing fills the square up to the margin. A glyph without ink is an error.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    if not isinstance(size, int) or size < 8 or not 0 <= margin < size // 4:
        raise ValueError(
            f"size={size!r}, margin={margin!r}: expected size of at least 8, margin below size / 4"
        )
    points = 4 * size
    large = Image.new("L", (2 * points, 2 * points))
    ImageDraw.Draw(large).text(
        (points // 2, points // 4), chr(icon.code), font=_font(icon.font, points), fill=255
    )
    box = large.getbbox()
    if box is None:
        raise ValueError(f"{icon.font}: {icon.name!r} (U+{icon.code:X}) has no ink")
    cropped = large.crop(box)
    inner = size - 2 * margin
    scale = inner / max(cropped.size)
    shape = [max(1, round(side * scale)) for side in cropped.size]
    small = cropped.resize(shape, Image.Resampling.BOX)
    canvas = Image.new("L", (size, size))
    canvas.paste(small, ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return np.asarray(canvas).copy()


def render_all(chosen: Sequence[Icon], size: int = 40, margin: int = 2):
    """(N, size, size) uint8: :func:`render` of each icon."""
    import numpy as np

    if not chosen:
        return np.zeros((0, size, size), np.uint8)
    return np.stack([render(icon, size, margin) for icon in chosen])


def paint(mask, ink=(0, 0, 0), paper=(255, 255, 255)):
    """A coverage mask (H, W) as a PIL RGB image: ink on paper, colours as three numbers from 0 to 255."""
    import numpy as np
    from PIL import Image

    cover = np.asarray(mask, np.float64)[..., None] / 255
    colours = cover * np.asarray(ink, np.float64) + (1 - cover) * np.asarray(paper, np.float64)
    return Image.fromarray(np.rint(colours).astype(np.uint8))
