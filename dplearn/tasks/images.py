"""What an image task is: images in fixed splits, class names, templates for them, one metric; and the offline tasks.

The interface is that of the text tasks (`dplearn.tasks.base`): `examples`, `encode`, `few_shot`, `score`. Images
stay where they are (in memory, in files, in a `datasets` table) and are decoded when they are asked for.

images/digits         scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (from the UCI set of Alpaydin and Kaynak)
images/icons          drawings that the zoo's vit-mini and clip-mini never saw, of 40 classes that they know by name
images/icons-style    trained and validated in styles that the two saw, tested in a font that they never saw
images/icons-classes  icons of 40 classes that the two never saw in any style; see `dplearn.zoo.icons`
"""

import hashlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from typing import Any

from dplearn.tasks.base import Task, shown_task
from dplearn.tasks.encoding import template_fields
from dplearn.tasks.metrics import harmonic_mean

NEW = "test_new"  # the split of the new classes, see ImageTask.base_to_new
SPLIT_SEED = 0  # of the fixed division of the offline tasks
SHARES = {"train": 0.5, "validation": 0.2}  # of each class of the digits; the rest is "test"


def check_image(value: Any, what: str = "image") -> None:
    """Raise ValueError unless a value is a PIL image or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."""
    import numpy as np
    from PIL import Image

    if isinstance(value, np.ndarray):
        shape = value.shape[:2] if value.ndim == 3 and value.shape[2] == 1 else value.shape
        if value.dtype != np.uint8 or not (len(shape) == 2 or len(shape) == 3 and shape[2] in (3, 4)):
            raise ValueError(
                f"{what} of shape {value.shape} and dtype {value.dtype}: expected a uint8 array (H, W) or "
                "(H, W, channels) with 1, 3 or 4 channels"
            )
    elif not isinstance(value, Image.Image):
        raise ValueError(f"{what} of type {type(value).__name__}: expected a PIL image or a uint8 array")


def to_image(value: Any) -> Any:
    """A PIL image in RGB, from any PIL image or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."""
    import numpy as np
    from PIL import Image

    check_image(value)
    if isinstance(value, np.ndarray):
        value = Image.fromarray(value[:, :, 0] if value.ndim == 3 and value.shape[2] == 1 else value)
    return value.convert("RGB")


@dataclass(frozen=True, eq=False, repr=False)
class ImageSplit(Sequence):
    """One split: example i is {"image": a PIL image in RGB, "label": an int}.

    images  anything with `images[row]`: a list, a uint8 array, a column that decodes on demand
    labels  the label of each example of the split
    rows    which of the images each example is; None for all of them in order
    """

    images: Sequence
    labels: Sequence[int]
    rows: Sequence[int] = None  # type: ignore[assignment]  # a tuple once it is made

    def __post_init__(self) -> None:
        rows = range(len(self.images)) if self.rows is None else self.rows
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "rows", tuple(rows))
        if len(self.labels) != len(self.rows):
            raise ValueError(f"{len(self.labels)} labels: expected {len(self.rows)}, one for each image")

    def __repr__(self) -> str:
        return f"ImageSplit({len(self):,} images of {len(set(self.labels))} classes)"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        return {"image": to_image(self.images[self.rows[index]]), "label": self.labels[index]}

    def __iter__(self) -> Iterator[dict]:
        return (self[index] for index in range(len(self)))

    def take(self, indices: Sequence[int], shift: int = 0) -> "ImageSplit":
        """The split with these examples only, in this order; `shift` is added to their labels."""
        labels = tuple(self.labels[i] + shift for i in indices)
        return replace(self, labels=labels, rows=tuple(self.rows[i] for i in indices))


class EncodedImages(Sequence):
    """A split as `transformers.Trainer` takes it: {"pixel_values": tensor (channels, H, W), "labels": int}.

    The processor runs when an example is asked for, or once for all of them with `in_memory`: True, or the most bytes
    that all of them may take.
    """

    def __init__(self, split: ImageSplit, processor: Any, in_memory: bool | int = False):
        self.split, self.processor = split, processor
        self._pixels = self._all(in_memory) if in_memory and len(split) else None

    def _all(self, most: bool | int) -> list | None:
        """All images, encoded; None where they take more than so many bytes, all like the first one."""
        first = self._encode(0)
        if most is not True and first.nbytes * len(self.split) > most:
            return None
        return [first, *(self._encode(i) for i in range(1, len(self.split)))]

    def _encode(self, index: int) -> Any:
        return self.processor(images=self.split[index]["image"], return_tensors="pt")["pixel_values"][0]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]  # one at a time, as a DataLoader asks
        pixels = self._encode(index) if self._pixels is None else self._pixels[index]
        return {"pixel_values": pixels, "labels": self.split.labels[index]}


@dataclass(frozen=True, eq=False, repr=False)
class ImageTask:
    """One image classification task with its data. All fields but the images are checked when the task is made.

    name         for example "coop/dtd"
    class_names  the names of the classes; a label is an index into them
    splits       split name -> `ImageSplit`; "train" must exist. "test_new" is about `new_names` instead
    metric       a key of `dplearn.tasks.metrics.METRICS` that needs no groups
    source       where the data is from, with its version or hash
    template     what a text encoder reads about a class: a format string with one place, {}
    new_names    the names of the new classes after `base_to_new`
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, ImageSplit]
    metric: str
    source: str
    template: str = "a photo of a {}."
    new_names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        count = f"{len(self.class_names)} classes" + (
            f" and {len(self.new_names)} new ones" * bool(self.new_names)
        )
        return shown_task("ImageTask", self.name, count, self.splits, self.metric)

    def __post_init__(self) -> None:
        if "train" not in self.splits:
            raise ValueError(f"{self.name}: splits={list(self.splits)}: expected one named 'train'")
        if (NEW in self.splits) != bool(self.new_names):
            raise ValueError(
                f"{self.name}: splits={list(self.splits)} and {len(self.new_names)} new_names: expected "
                f"{NEW!r} and new names together or neither"
            )
        self._check_template(self.template)
        for names in (self.class_names, self.new_names):
            for value in names:
                if not isinstance(value, str) or not value.strip():
                    raise ValueError(f"{self.name}: class name {value!r}: expected text that is not empty")
        for split in self.splits:
            self._numbers(split)

    def _check_template(self, template: str) -> None:
        if not isinstance(template, str) or template_fields(template) != ("",):
            raise ValueError(
                f"{self.name}: template={template!r}: expected a format string with one place for the class "
                "name, such as 'a photo of a {}.'"
            )

    def _numbers(self, split: str, called: str | None = None) -> Task:
        """The split as a text task whose texts are the numbers of its examples.

        Checks, draws and scores are those of the text tasks: they only need labels.
        """
        classes = tuple(f"{number} {name}" for number, name in enumerate(self.classes(split)))
        rows = [{"number": str(i), "label": y} for i, y in enumerate(self.examples(split).labels)]
        splits = {"train": [{"number": "0", "label": 0}], called or split: rows}
        return Task(self.name, classes, classes, "{number}", splits, self.metric, self.source)

    def classes(self, split: str = "train") -> tuple[str, ...]:
        """The names that the labels of this split are indices into."""
        self.examples(split)
        return self.new_names if split == NEW else self.class_names

    def captions(self, split: str = "train", template: str | None = None) -> list[str]:
        """The filled template of each class, "_" in a name read as a space, as CoOp's code does it."""
        if template is not None:
            self._check_template(template)
        text = self.template if template is None else template
        return [text.format(name.replace("_", " ")) for name in self.classes(split)]

    def examples(self, split: str) -> ImageSplit:
        """The examples of a split; an unknown name is an error that lists the names."""
        if split not in self.splits:
            raise ValueError(
                f"{self.name}: split={split!r}: expected one of {list(self.splits)} (data: {self.source})"
            )
        return self.splits[split]

    def encode(self, processor: Any, split: str, in_memory: bool | int = False) -> EncodedImages:
        """The split for `transformers.Trainer`: dicts with "pixel_values" and "labels".

        processor  an image processor, or a processor with one inside (CLIP's); it resizes and normalises.
                   Without torchvision transformers uses its Pillow version, `backend="pil"` asks for it
        in_memory  True keeps the encoded images: for small sets that are read many times. A number: where they take
                   at most so many bytes; larger sets are encoded as they are read
        """
        return EncodedImages(self.examples(split), processor, in_memory)

    def few_shot(self, per_label: int, seed: int, validation: int | None = None) -> "ImageTask":
        """The same task with `per_label` training examples of each class, drawn as `Task.few_shot` draws them.

        validation  examples per class that "validation" is reduced to, None for all. CoOp uses min(per_label, 4);
                    16 per class and 4 for validation is its largest setting
        """
        splits = {**self.splits, "train": self._draw("train", per_label, seed)}
        note = f"; train: {per_label} per label, seed {seed}"
        if validation is not None:
            splits["validation"] = self._draw("validation", validation, seed)
            note += f"; validation: {validation} per label"
        return replace(self, splits=splits, source=self.source + note)

    def _draw(self, split: str, per_label: int, seed: int) -> Any:
        drawn = self._numbers(split, called="train").few_shot(per_label, seed).examples("train")
        return self.splits[split].take([int(example["number"]) for example in drawn])

    def base_to_new(self) -> "ImageTask":
        """The task of the first half of the classes; "test_new" has the test examples of the second half.

        As in CoOp's code the halves are of the classes in label order, and the first one has the odd class. Labels
        of the new classes count from 0 again: base and new classes are never told apart from each other.
        Nothing of the new classes is in "train" or "validation".
        """
        if self.new_names:
            raise ValueError(f"{self.name}: new_names={self.new_names!r}: expected a task not split yet")
        self.examples("test")
        if len(self.class_names) < 4:
            raise ValueError(
                f"{self.name}: {len(self.class_names)} classes: expected at least 4, two for each half"
            )
        half = math.ceil(len(self.class_names) / 2)
        splits = {}
        for name, split in self.splits.items():
            splits[name] = split.take([i for i, label in enumerate(split.labels) if label < half])
        test = self.splits["test"]
        splits[NEW] = test.take([i for i, label in enumerate(test.labels) if label >= half], shift=-half)
        return replace(
            self,
            class_names=self.class_names[:half],
            new_names=self.class_names[half:],
            splits=splits,
            source=f"{self.source}; first {half} of {len(self.class_names)} classes as base, the rest new",
        )

    def score(self, split: str, predictions: Sequence[int]) -> dict[str, float]:
        """The metric for one predicted label index per example; the first value is the headline."""
        return self._numbers(split).score(split, predictions)

    def score_base_to_new(
        self, base_predictions: Sequence[int], new_predictions: Sequence[int]
    ) -> dict[str, float]:
        """The headline on "test" (base classes) and on "test_new", and their harmonic mean."""
        base = next(iter(self.score("test", base_predictions).values()))
        new = next(iter(self.score(NEW, new_predictions).values()))
        return {"base": base, "new": new, "harmonic_mean": harmonic_mean(base, new)}


def shuffled(size: int, seed: int) -> list[int]:
    """0..size-1 in an order that depends on the seed alone, the same in all versions of Python."""
    generator = random.Random(seed)
    keys = [generator.random() for _ in range(size)]
    return sorted(range(size), key=keys.__getitem__)


def divide(labels: Sequence[int], shares: Mapping[str, float], rest: str, seed: int) -> dict[str, list[int]]:
    """Divide examples into named parts, label by label: part -> numbers of its examples in their order.

    Of each label's examples every part gets its share, rounded, and `rest` gets what remains.

    >>> {part: len(numbers) for part, numbers in divide([0] * 10 + [1] * 5, {"validation": 0.2}, "train", 0).items()}
    {'validation': 3, 'train': 12}
    """
    by_label: dict[int, list[int]] = {}
    for number in shuffled(len(labels), seed):
        by_label.setdefault(labels[number], []).append(number)
    parts: dict[str, list[int]] = {part: [] for part in (*shares, rest)}
    for members in by_label.values():
        start = 0
        for part, share in shares.items():
            stop = start + round(share * len(members))
            parts[part] += members[start:stop]
            start = stop
        parts[rest] += members[start:]
    return {part: sorted(numbers) for part, numbers in parts.items()}


def load_digits() -> ImageTask:
    """scikit-learn's handwritten digits, bright on dark, in a fixed division of each class: half of it for training,
    a fifth for validation, the rest for the test. The processor's resize brings the 8 x 8 pixels to its size."""
    import numpy as np
    from sklearn import datasets

    data = datasets.load_digits()
    images = (data.images * (255 / 16)).round().astype(np.uint8)  # grey levels 0..16
    labels = data.target.tolist()
    digest = hashlib.sha256(images.tobytes() + bytes(labels)).hexdigest()[:16]
    parts = divide(labels, SHARES, "test", SPLIT_SEED)
    whole = ImageSplit(images, labels)
    return ImageTask(
        name="images/digits",
        class_names=tuple(str(name) for name in data.target_names),
        splits={part: whole.take(parts[part]) for part in ("train", "validation", "test")},
        metric="accuracy_mean_per_class",
        source=f"scikit-learn's digits, sha256 {digest}, division by class with seed {SPLIT_SEED}",
        template="a photo of the number {}.",
    )


# name -> (parts of the icon catalogue, which of its two lists of classes)
ICONS = {
    "images/icons": (("icons", "style"), "KNOWN_WORDS"),
    "images/icons-style": (("icons", "style"), "KNOWN_WORDS"),
    "images/icons-classes": (("classes",), "HELD_OUT_WORDS"),
}


@cache
def load_icons(name: str, size: int = 40) -> ImageTask:
    """Icons, black on white, in size x size pixels, from the fonts of an installed package.

    All styles and weights of one drawing are in the same split, about 50, 20 and 30 % of a class's drawings in
    train, validation and test. "images/icons-style" keeps the unseen font for the test and the seen ones for train
    and validation; it has the classes with icons on both sides (validation lacks a few of these). The catalogue's
    base classes come first, so `base_to_new` of the other two gives its fixed halves. Without the fonts the error
    says what to install.
    """
    from dplearn.zoo import icons

    parts, words = ICONS[name]
    base, new = icons.base_new(getattr(icons, words))
    splits = icons.task_splits(icons.icons(*parts, words=base + new))
    if name == "images/icons-style":
        for split in splits:
            part = "style" if split == "test" else "icons"
            splits[split] = [icon for icon in splits[split] if icons.part_of(icon) == part]
    present = [{icon.label for icon in splits[split]} for split in ("train", "test")]
    classes = tuple(word for word in base + new if all(word in labels for labels in present))
    drawn = {}
    for split, chosen in splits.items():
        chosen = [icon for icon in chosen if icon.label in classes]
        paper = 255 - icons.render_all(chosen, size=size)
        drawn[split] = ImageSplit(paper, [classes.index(icon.label) for icon in chosen])
    return ImageTask(
        name=name,
        class_names=classes,
        splits=drawn,
        metric="accuracy_mean_per_class",
        source=f"icon fonts of {icons.DISTRIBUTION} {icons.fonts_version()}, parts {', '.join(parts)}, {size} pixels",
        template="an icon of {}",
    )


NAMES = ("images/digits", *ICONS, "images/folder")


def load(name: str, **options: Any) -> ImageTask:
    """An image task by name; all but the last are there offline. The icons take `size`, their number of pixels (40);
    "images/folder" takes `path` and what else :func:`dplearn.tasks.image_folder` does."""
    if name not in NAMES:
        raise ValueError(f"name={name!r}: expected one of {list(NAMES)}")
    if name == "images/folder":
        from dplearn.tasks.own_images import image_folder

        known = list(signature(image_folder).parameters)
        for option in options:
            if option not in known:
                raise ValueError(f"{name}: option {option!r} is unknown, expected some of {known}")
        if "path" not in options:
            raise ValueError(f"{name}: no path, expected that of a folder with images")
        return image_folder(**options)
    return load_icons(name, **options) if name in ICONS else load_digits(**options)
