"""Where labeled images come from: a dataset of the hub, tables with an image and a label column, folders of files."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dplearn.checks import is_whole
from dplearn.tasks.images import ImageSplit

ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test",),
}
SPLITS = tuple(ALIASES)
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Hub:
    """A dataset of the hub.

    repository  "owner/dataset"
    config      the name of one of its configurations
    image       the column of the images
    label       the column of the labels
    splits      our split -> its split; None for those that are called train, validation (or val, valid, dev), test
    revision    a commit of its repository, to have the same data always; None for the newest
    """

    repository: str
    config: str | None = None
    image: str = "image"
    label: str = "label"
    splits: Mapping[str, str] | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Data:
    """What a source has: splits whose labels are indices into `names`."""

    names: tuple[str, ...]
    splits: dict[str, ImageSplit]
    origin: str


class Images(Sequence):
    """Images, or paths of image files, which are opened when they are asked for."""

    def __init__(self, values: Sequence):
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int) -> Any:  # type: ignore[override]  # one at a time
        value = self.values[row]
        if not isinstance(value, str | Path):
            return value
        from PIL import Image

        with Image.open(value) as image:
            return image.convert("RGB")


class Column(Sequence):
    """The images of a `datasets` table, decoded when they are asked for."""

    def __init__(self, table: Any, column: str):
        self.table, self.column = table, column

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> Any:  # type: ignore[override]  # one at a time
        return self.table[row][self.column]


def from_hub(name: str, given: Hub, columns: tuple[str, str] | None, cache_dir: str | Path | None) -> Data:
    """The splits of a dataset of the hub; ``name`` is what errors call the task."""
    import datasets

    try:
        tables = datasets.load_dataset(
            given.repository, given.config, revision=given.revision, cache_dir=cache_dir and str(cache_dir)
        )
    except Exception as error:  # the hub client, `datasets` and the network each raise their own kinds
        raise ConnectionError(
            f"{name} could not be loaded from the hub repository {given.repository!r} ({type(error).__name__}: "
            f"{error}). Expected a connection or a filled cache; without them pass path=, a folder with the images"
        ) from error
    if given.splits is not None:
        missing = [theirs for theirs in given.splits.values() if theirs not in tables]
        if missing:
            raise ValueError(f"{name}: {given.repository} has splits {list(tables)}: expected {missing} too")
        tables = {ours: tables[theirs] for ours, theirs in given.splits.items()}
    origin = f"the hub, {given.repository}" + (f" revision {given.revision}" if given.revision else "")
    return from_tables(tables, *(columns or (given.image, given.label)), origin)


def parquet_files(folder: Path, split: str) -> list[str]:
    """One split's files: train.parquet or, as on the hub, train-00000-of-00002.parquet, here or in data/."""
    for place in (folder, folder / "data"):
        for alias in ALIASES[split]:
            files = sorted([*place.glob(f"{alias}.parquet"), *place.glob(f"{alias}-*.parquet")])
            if files:
                return [str(file) for file in files]
    return []


def from_tables(tables: Any, image: str, label: str, origin: str) -> Data:
    """Splits of a `DatasetDict`; labels may be a ClassLabel, numbers, or names."""
    import datasets

    by_split: dict = {}
    for split, aliases in ALIASES.items():
        for alias in aliases:
            if alias in tables:
                by_split.setdefault(split, tables[alias])
    if not by_split:
        raise ValueError(f"{origin} has splits {list(tables)}: expected {list(SPLITS)}")
    values = {}
    for split, table in by_split.items():
        for argument, column in (("image", image), ("label", label)):
            if column not in table.column_names:
                raise ValueError(
                    f"{origin}, {split}: no {argument} column {column!r}: expected columns=(image, label) to be two "
                    f"of {table.column_names}"
                )
        if not isinstance(table.features[image], datasets.Image):  # bytes, as parquet files may have them
            by_split[split] = table.cast_column(image, datasets.Image())
        values[split] = list(table[label])
    names = getattr(next(iter(by_split.values())).features[label], "names", None)
    names, labels = numbered(values, names, origin)
    splits = {split: ImageSplit(Column(table, image), labels[split]) for split, table in by_split.items()}
    return Data(names, splits, origin)


def numbered(
    values: Mapping[str, list], names: Any, origin: str
) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Class names and labels from numbers (with names or without) or from names, which are put in order."""
    every = {value for labels in values.values() for value in labels}
    if all(isinstance(value, str) for value in every):
        names = sorted(every)
        index = {value: number for number, value in enumerate(names)}
        return tuple(names), {split: [index[value] for value in labels] for split, labels in values.items()}
    for split, labels in values.items():
        for row, value in enumerate(labels):
            if not is_whole(value, 0):
                hint = " (-1 or no label marks a test split whose labels are kept back)"
                raise ValueError(
                    f"{origin}, {split}, row {row}: label {value!r}: expected an integer of at least 0"
                    + (hint if value in (-1, None) else "")
                )
    if names is None:
        names = [str(number) for number in range(max(every) + 1)]
    return tuple(names), {split: list(labels) for split, labels in values.items()}


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders in a folder that are called like splits: split -> folder."""
    return {
        split: folder / alias
        for split, aliases in ALIASES.items()
        for alias in reversed(aliases)
        if (folder / alias).is_dir()
    }


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and the folders in it, in order; hidden ones, such as those of macOS, are none."""
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(p for p in paths if not any(part[0] == "." for part in p.relative_to(folder).parts))


def from_folders(folder: Path, roots: Mapping[str, Path], or_else: str = "") -> Data:
    """Class folders in the folder of each split. A class is named by its folder; of nested folders by the path,
    "a/abbey".

    roots : split -> folder with class folders.
    or_else : what else the caller takes, for the error.
    """
    files = {split: image_files(root) for split, root in roots.items()}
    for split, root in roots.items():
        loose = [path for path in files[split] if path.parent == root]
        if loose or not files[split]:
            raise FileNotFoundError(
                f"path={str(folder)!r}: {loose[0].name if loose else 'no image'} in {root.name!r}: expected images "
                f"in one folder for each class (in folders train, validation and test){or_else}"
            )
    values = {
        split: [path.parent.relative_to(roots[split]).as_posix() for path in paths]
        for split, paths in files.items()
    }
    names, labels = numbered(values, None, "local folders")
    splits = {split: ImageSplit(Images(paths), labels[split]) for split, paths in files.items()}
    return Data(names, splits, "local folders")


def digest_of(names: Sequence[str], splits: Mapping[str, ImageSplit]) -> str:
    """Sixteen hex digits for the class names and the labels of all splits."""
    text = json.dumps([list(names), {split: data.labels for split, data in splits.items()}])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
