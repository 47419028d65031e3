"""What becomes "train", "validation" and "test" of the images that a source has, in each protocol."""

from collections.abc import Mapping
from typing import Any, cast

from dplearn.checks import is_whole
from dplearn.tasks.image_sources import SPLITS
from dplearn.tasks.images import ImageSplit, divide, shuffled

VTAB_SIZES = (800, 200)


def check_sizes(family: str, sizes: Any) -> tuple[int, int]:
    """The sizes of train and validation that vtab takes; other families take none."""
    if sizes is None:
        return VTAB_SIZES
    if family != "vtab":
        raise ValueError(f"sizes={sizes!r}: expected None, only vtab has a fixed number of examples")
    valid = isinstance(sizes, tuple | list) and len(sizes) == 2
    if not valid or not all(is_whole(n, 1) for n in sizes):
        raise ValueError(f"sizes={sizes!r}: expected two integers of at least 1, for train and validation")
    return tuple(sizes)


def _need(name: str, splits: Mapping, *needed: str) -> None:
    missing = [split for split in needed if split not in splits]
    if missing:
        raise ValueError(
            f"{name}: the data has splits {list(splits)}, lacks {missing}: expected {list(needed)} for this protocol"
        )


def vtab(
    name: str, splits: Mapping[str, ImageSplit], sizes: tuple[int, int], seed: int
) -> tuple[dict[str, ImageSplit], str]:
    """800 examples of train, 200 of validation (of the rest of train without one), all of test; and so in words."""
    _need(name, splits, "train", "test")
    train = splits["train"]
    sources = [train, splits.get("validation", train)]
    starts = [0, 0 if "validation" in splits else sizes[0]]
    drawn = []
    for part, source, start, size in zip(SPLITS, sources, starts, sizes):
        if len(source) < start + size:
            raise ValueError(
                f"{name}: sizes={sizes!r}: expected at most {max(len(source) - start, 0)} examples for {part}, what "
                "the data has left"
            )
        drawn.append(source.take(sorted(shuffled(len(source), seed)[start : start + size])))
    note = f"{sizes[0]} train and {sizes[1]} validation examples, seed {seed}, all of test"
    return {"train": drawn[0], "validation": drawn[1], "test": splits["test"]}, note


def divided(
    name: str, splits: Mapping[str, ImageSplit], pooled: bool, share: float, seed: int
) -> tuple[dict[str, ImageSplit], str]:
    """The splits that are there; without a validation set a share of train, by class; or all pooled and divided;
    and so in words."""
    if all(split in splits for split in SPLITS):
        return {split: splits[split] for split in SPLITS}, "splits of the data"
    if pooled:
        whole = _pool([splits[split] for split in SPLITS if split in splits])
        parts = divide(whole.labels, {"train": 0.5, "validation": 0.2}, "test", seed)
        chosen = {split: whole.take(parts[split]) for split in SPLITS}
        note = f"pooled and divided 50, 20 and 30 % by class, seed {seed}"
    else:
        _need(name, splits, "train", "test")
        parts = divide(splits["train"].labels, {"validation": share}, "train", seed)
        chosen = {split: splits["train"].take(parts[split]) for split in ("train", "validation")}
        chosen["test"] = splits["test"]
        note = f"validation {share:.0%} of train by class, seed {seed}"
    return chosen, note


def _pool(splits: list[ImageSplit]) -> ImageSplit:
    from torch.utils.data import ConcatDataset, Subset

    images: Any = ConcatDataset([Subset(cast(Any, split.images), split.rows) for split in splits])
    return ImageSplit(images, [label for split in splits for label in split.labels])
