"""Images of your own as a task: a folder of class folders, or lists of images and labels.

    image_folder("pictures")                                     pictures/cat/1.jpg, divided here
    image_folder("pictures", template="a sketch of a {}.")        pictures/train/cat/1.jpg, pictures/test/cat/2.jpg
    image_lists(["1.jpg", "2.jpg"], ["cat", "dog"])              paths, PIL images or uint8 arrays

The task is an :class:`~dplearn.tasks.ImageTask` like all others: ``few_shot``, ``base_to_new``, ``encode``,
``captions`` and ``score`` work as on a benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dplearn.checks import Whole, is_number, shown
from dplearn.tasks.image_sources import (
    SPLITS,
    SUFFIXES,
    Data,
    Images,
    digest_of,
    from_folders,
    image_files,
    numbered,
    split_folders,
)
from dplearn.tasks.images import ImageSplit, ImageTask, check_image, divide

TEMPLATE, METRIC = "a photo of a {}.", "accuracy_mean_per_class"


def image_folder(
    path: str | Path,
    *,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
    template: str = TEMPLATE,
    metric: str = METRIC,
    name: str | None = None,
) -> ImageTask:
    """A folder of images as a task. Images are opened when they are asked for.

    Parameters
    ----------
    path : a folder with a folder of images for each class, ``pictures/cat/1.jpg``; or with folders called train,
        validation (or val, valid, dev) and test that have these, ``pictures/train/cat/1.jpg``, as torchvision's
        ``ImageFolder`` and ``datasets`` lay them out. Folders in a class folder are classes of their own, "cat/tabby".
    validation : the share of each class's training images that becomes this split where the folder has none, rounded;
        0: the task has no such split.
    test : the same for the test split.
    seed : of that division.
    class_names : other names for the classes, in the alphabetical order of their folders.
    template : what a text encoder reads about a class.
    metric : "mean_per_class" has the mean over the classes as headline.
    name : of the task; None: that of the folder.

    Raises
    ------
    FileNotFoundError : there is no such folder, or no image in it, or images that are in no class folder.
    ValueError : split folders without "train", or beside class folders; shares that leave nothing to train on.

    >>> import tempfile
    >>> from PIL import Image
    >>> folder = Path(tempfile.mkdtemp())
    >>> for number, color in enumerate(["blue"] * 5 + ["red"] * 5):
    ...     (folder / color).mkdir(exist_ok=True)
    ...     Image.new("RGB", (8, 8), color).save(folder / color / f"{number}.png")
    >>> task = image_folder(folder, template="the color {}.", name="colors")
    >>> task.class_names, {split: len(examples) for split, examples in task.splits.items()}
    (('blue', 'red'), {'train': 6, 'validation': 2, 'test': 2})
    """
    shares = shares_of(validation, test, seed)
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"path={str(path)!r}: expected a folder with images")
    data = from_folders(folder, _roots(folder))
    name = f"own/{folder.resolve().name}" if name is None else name
    return _task(name, data, class_names, shares, seed, template, metric)


def image_lists(
    images: Sequence | Mapping[str, Sequence],
    labels: Sequence | Mapping[str, Sequence],
    class_names: Sequence[str] | None = None,
    *,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    template: str = TEMPLATE,
    metric: str = METRIC,
    name: str = "own/images",
) -> ImageTask:
    """Images and their labels as a task.

    Parameters
    ----------
    images : of one list, PIL images, uint8 arrays (H, W) or (H, W, 1, 3 or 4), and paths of files, which are opened
        when they are asked for; an array (N, H, W, channels) is such a list. Or a list for each split: {"train": ...,
        "validation": ..., "test": ...}, of which "train" is needed.
    labels : a label for each image, in lists as the images are: integers from 0, or names.
    class_names : the names of the classes in label order; None: the names in ``labels`` in alphabetical order, or the
        numbers.
    validation : as of :func:`image_folder`, and so are the next four.
    test : the share of the test split.
    seed : of the division.
    template : what a text encoder reads about a class.
    metric : the headline.
    name : of the task.

    Raises
    ------
    FileNotFoundError : a path at which there is no file.
    ValueError : no image, or one of another kind; a label that is no class; lists that do not fit each other; shares
        that leave nothing to train on.

    >>> import numpy as np
    >>> pixels = np.zeros((10, 8, 8, 3), np.uint8)
    >>> task = image_lists(pixels, ["cat", "dog"] * 5)
    >>> task.class_names, len(task.splits["test"]), task.captions()
    (('cat', 'dog'), 2, ['a photo of a cat.', 'a photo of a dog.'])
    """
    shares = shares_of(validation, test, seed)
    images, labels = _by_split(images, labels)
    values = {split: _checked(split, images[split], labels[split]) for split in SPLITS if split in images}
    names, indices = _indices(values, class_names)
    splits = {split: ImageSplit(Images(images[split]), indices[split]) for split in values}
    return _task(name, Data(names, splits, "lists"), None, shares, seed, template, metric)


def _by_split(images: Any, labels: Any) -> tuple[Mapping[str, Sequence], Mapping[str, Sequence]]:
    """Images and labels by split, a list of each being "train"."""
    if isinstance(images, Mapping) != isinstance(labels, Mapping):
        raise ValueError(
            f"images is a {type(images).__name__} and labels a {type(labels).__name__}: expected two lists, or two "
            f"mappings of {list(SPLITS)} to lists"
        )
    if not isinstance(images, Mapping):
        images, labels = {"train": images}, {"train": labels}
    unknown = [split for split in images if split not in SPLITS]
    if "train" not in images or unknown or set(images) != set(labels):
        raise ValueError(
            f"images has splits {list(images)} and labels {list(labels)}: expected the same of {list(SPLITS)} in "
            "both, 'train' among them"
        )
    return images, labels


def shares_of(validation: float, test: float, seed: int) -> dict[str, float]:
    """The shares of "validation" and "test" by split; ValueError where one is none, or nothing is left for training."""
    Whole(0)("seed", seed)
    shares = {"validation": validation, "test": test}
    for argument, share in shares.items():
        if not is_number(share) or not 0 <= share < 1:
            raise ValueError(f"{argument}={shown(share)}: expected a share of at least 0 and below 1")
    if validation + test >= 1:
        raise ValueError(
            f"validation={validation} and test={test}: expected shares whose sum is below 1, the rest is for training"
        )
    return shares


def _roots(folder: Path) -> dict[str, Path]:
    """The folders with class folders by split. A class may be called "train": then its folder has images in it."""
    roots = split_folders(folder)
    direct = [
        path for path in roots.values() if any(file.suffix.lower() in SUFFIXES for file in path.iterdir())
    ]
    others = sorted(
        path.name for path in folder.iterdir()
        if path.is_dir() and path.name[0] != "." and path not in roots.values() and image_files(path)
    )  # fmt: skip
    if not roots or (others and direct):
        return {"train": folder}
    if others:
        raise ValueError(
            f"path={str(folder)!r} has {shown(others)} beside folders of splits, "
            f"{sorted(path.name for path in roots.values())}: expected folders of classes or folders of splits"
        )
    if "train" not in roots:
        raise ValueError(
            f"path={str(folder)!r} has folders of the splits {list(roots)}: expected one called 'train' too"
        )
    return roots


def _checked(split: str, images: Sequence, labels: Sequence) -> list:
    """The labels of a split as a list, after a look at each image and at the lengths."""
    labels = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if len(images) == 0 or len(labels) != len(images):
        raise ValueError(
            f"{split}: {len(labels)} labels for {len(images)} images: expected one for each, and at least one"
        )
    for row in range(len(images)):
        value = images[row]
        if not isinstance(value, str | Path):
            check_image(value, f"{split}: images[{row}]")
        elif not Path(value).is_file():
            raise FileNotFoundError(f"{split}: images[{row}]={str(value)!r}: expected a file, there is none")
    return labels


def _indices(
    values: Mapping[str, list], class_names: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Class names, and the labels of each split as indices into them."""
    if class_names is None:
        return numbered(values, None, "labels")
    known = tuple(class_names)
    every = {value for labels in values.values() for value in labels}
    if all(isinstance(value, str) for value in every):
        if unknown := sorted(every - set(known)):
            raise ValueError(f"labels has {unknown[0]!r}: expected one of class_names={shown(list(known))}")
        if len(set(known)) < len(known):
            raise ValueError(
                f"class_names={shown(list(known))}: expected names that differ, labels are names"
            )
        return known, {split: [known.index(value) for value in labels] for split, labels in values.items()}
    numbers = numbered(values, None, "labels")[1]
    most = max(max(labels) for labels in numbers.values())
    if most >= len(known):
        raise ValueError(
            f"labels has {most}: expected at most {len(known) - 1}, there are {len(known)} class_names"
        )
    return known, numbers


def _task(
    name: str, data: Data, class_names: Any, shares: Any, seed: int, template: Any, metric: Any
) -> ImageTask:
    """The task of what a source has; splits that it lacks are divided off "train"."""
    if class_names is not None and len(class_names) != len(data.names):
        raise ValueError(
            f"class_names has {len(class_names)} names: expected {len(data.names)}, one for each class "
            f"({', '.join(data.names[:4])}{', …' if len(data.names) > 4 else ''})"
        )
    names = data.names if class_names is None else tuple(class_names)
    missing = {split: share for split, share in shares.items() if share and split not in data.splits}
    train = data.splits["train"]
    parts = divide(train.labels, missing, "train", seed)
    empty = [split for split in (*missing, "train") if not parts[split]]
    if empty:
        raise ValueError(
            f"{name}: {', '.join(f'{split}={share}' for split, share in missing.items())} leaves no image for "
            f"{empty[0]}: expected more images of each class, other shares, or 0 for a task without that split"
        )
    divided = {split: train.take(rows) for split, rows in parts.items()}
    splits = {split: (data.splits | divided)[split] for split in SPLITS if split in data.splits | divided}
    note = ", ".join(f"{split} {share:.0%}" for split, share in missing.items())
    note = f"{note} of train by class, seed {seed}" if missing else "splits of the data"
    source = f"{data.origin}, {note}, names and labels sha256 {digest_of(names, splits)}"
    return ImageTask(name, names, splits, metric, source, template)
