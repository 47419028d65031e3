"""Lists in which the splits of benchmarks are passed on: CoOp's, VPT's, those of VTAB-1k, and FGVC-Aircraft's own."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dplearn.tasks.image_sources import ALIASES, SPLITS, Data, Images, numbered
from dplearn.tasks.images import ImageSplit


def from_lists(folder: Path) -> Data | None:
    """The published lists of splits, None where the folder has none of them."""
    zhou = sorted(folder.glob("split_zhou_*.json"))
    if zhou:
        content = json.loads(zhou[0].read_text(encoding="utf-8"))
        rows = {split: [(p, int(y)) for p, y, _ in _listed(content, split, zhou[0])] for split in SPLITS}
        named = {int(y): name for split in SPLITS for _, y, name in _listed(content, split, zhou[0])}
        names = [named.get(number, str(number)) for number in range(max(named) + 1)]
        return _with_files(folder, rows, names, zhou[0].name)
    lists = {"train": "train800.txt", "validation": "val200.txt", "test": "test.txt"}
    if all((folder / file).is_file() for file in lists.values()):
        rows = {}
        for split, file in lists.items():
            lines = [
                line.rsplit(maxsplit=1) for line in (folder / file).read_text("utf-8").splitlines() if line
            ]
            rows[split] = [(path, int(label)) for path, label in lines]
        return _with_files(folder, rows, None, ", ".join(lists.values()))
    lists = {"train": "train.json", "validation": "val.json", "test": "test.json"}
    if all((folder / file).is_file() for file in lists.values()):
        rows = {
            split: list(json.loads((folder / file).read_text("utf-8")).items())
            for split, file in lists.items()
        }
        names = sorted({value for pairs in rows.values() for _, value in pairs})
        rows = {split: [(path, names.index(value)) for path, value in pairs] for split, pairs in rows.items()}
        return _with_files(folder, rows, [str(name) for name in names], ", ".join(lists.values()))
    lists = {"train": "train", "validation": "val", "test": "test"}
    lists = {split: f"images_variant_{short}.txt" for split, short in lists.items()}
    if all((folder / file).is_file() for file in (*lists.values(), "variants.txt")):
        names = [line.strip() for line in (folder / "variants.txt").read_text("utf-8").splitlines() if line]
        return _with_files(folder, _aircraft(folder, lists, names), names, ", ".join(lists.values()))
    return None


def _aircraft(folder: Path, lists: Mapping[str, str], names: list[str]) -> dict[str, list]:
    """The rows of FGVC-Aircraft: lines of a number, which is a file, and the variant."""
    rows: dict[str, list] = {}
    for split, file in lists.items():
        pairs = [line.split(maxsplit=1) for line in (folder / file).read_text("utf-8").splitlines() if line]
        unknown = [name for _, name in pairs if name.strip() not in names]
        if unknown:
            raise ValueError(f"{file} has {unknown[0]!r}, expected a name out of variants.txt")
        rows[split] = [(f"{number}.jpg", names.index(name.strip())) for number, name in pairs]
    return rows


def _listed(content: Any, split: str, file: Any) -> Any:
    for alias in ALIASES[split]:
        if alias in content:
            return content[alias]
    raise ValueError(f"{file.name} has {list(content)}: expected the splits train, val and test")


def _with_files(folder: Path, rows: Mapping[str, list], names: Any, lists: str) -> Data:
    """Paths of a list are relative to the folder or to one folder in it."""
    first = rows["train"][0][0]
    places = [folder, *sorted(place for place in folder.iterdir() if place.is_dir())]
    roots = [place for place in places if (place / first).is_file()]
    if not roots:
        raise FileNotFoundError(
            f"path={str(folder)!r}: {first!r}, the first of {lists}, is not there: expected it in the folder or in a "
            "folder in it"
        )
    names, labels = numbered(
        {split: [y for _, y in pairs] for split, pairs in rows.items()}, names, f"the lists {lists}"
    )
    splits = {
        split: ImageSplit(Images([roots[0] / path for path, _ in pairs]), labels[split])
        for split, pairs in rows.items()
    }
    return Data(names, splits, f"local files with the lists {lists}")
