"""The public image benchmarks: VTAB-1k, FGVC and the sets of CoOp, from the hub or from local files.

    load("vtab/cifar100")                     a hub dataset, where one is recorded in `HUB`
    load("vtab/dmlab", hub="owner/dataset")   any other one with an image and a label column
    load("coop/eurosat", path="folder")       local files; no network

Three protocols say what becomes "train", "validation" and "test":

vtab  VTAB-1k (Zhai et al., 2019): 800 training and 200 validation examples, the full test set. The 200 are from the
      validation set where the data has one, else from the training set.
fgvc  VPT's five sets (Jia et al., 2022): where no validation set is public, a tenth of each class's training
      examples.
coop  the eleven sets of CoOp (Zhou et al., 2022), which CoCoOp and MaPLe use too, with CoOp's prompt templates.
      Where the data lacks a validation set, a fifth of each class's training examples. Caltech101, Flowers102,
      Food101, DTD and EuroSAT, where they come without three splits, are pooled and divided 50, 20 and 30 % by class.
      Few-shot: `task.few_shot(16, seed, validation=4)`; base-to-new: `task.base_to_new()`, first.

These draws are ours (seeded): the benchmarks' published splits are other examples of the same data. Local folders with
the published lists give exactly these: CoOp's split_zhou_*.json, VPT's train.json, val.json and test.json, Aircraft's
own images_variant_*.txt, and the train800.txt, val200.txt and test.txt in which VTAB-1k is passed on. Numbers of
classes, sizes and templates are those of the code of VTAB (github.com/google-research/task_adaptation), VPT (KMnP/vpt)
and CoOp (KaiyangZhou/CoOp). ImageNet's own validation set is CoOp's test set; it has no other, so validation examples
come from train. Class names are those of the data; CoOp's for StanfordCars and SUN397 are worded differently: its
lists have them, or pass `class_names`. Folders of ImageNet are called by numbers; the list classnames.txt that CoOp
passes on has their names.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dplearn.tasks import split_lists
from dplearn.tasks.image_protocols import check_sizes, divided, vtab
from dplearn.tasks.image_sources import (
    SPLITS,
    Data,
    Hub,
    digest_of,
    from_folders,
    from_hub,
    from_tables,
    parquet_files,
    split_folders,
)
from dplearn.tasks.images import ImageTask
from dplearn.tasks.vision_benchmarks import BENCHMARKS, departures, with_class_names

NAMES = tuple(BENCHMARKS)
# The share of each class's training examples that becomes the validation set where the data has none.
SHARES = {"fgvc": 0.1, "coop": 0.2}

# Repositories whose columns and splits were looked up. Others are given by the user, with load(…, hub=…) or with
# HUB[name] = Hub(…).
HUB = {
    "vtab/cifar100": Hub("uoft-cs/cifar100", image="img", label="fine_label"),
    "vtab/dtd": Hub("tanganke/dtd"),
    "vtab/pets": Hub("timm/oxford-iiit-pet"),
    "vtab/svhn": Hub("ufldl-stanford/svhn", "cropped_digits", splits={"train": "train", "test": "test"}),
    "coop/imagenet": Hub("ILSVRC/imagenet-1k", splits={"train": "train", "test": "validation"}),
    "coop/dtd": Hub("tanganke/dtd"),
    "coop/food101": Hub("ethz/food101"),
    "coop/pets": Hub("timm/oxford-iiit-pet"),
}


def load(
    name: str,
    path: str | Path | None = None,
    hub: str | Hub | None = None,
    columns: tuple[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    metric: str = "accuracy_mean_per_class",
    sizes: tuple[int, int] | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> ImageTask:
    """An image task of VTAB-1k, FGVC or CoOp.

    path         a folder: class folders in folders called train, validation, test; class folders alone; parquet
                 files of these names; what `DatasetDict.save_to_disk` writes; or images with a published list (see
                 the head of this module). None: the hub
    hub          a repository or a `Hub`; None: the entry of the table `HUB`
    columns      of the image and of the label in a table, ("image", "label") when None
    class_names  in label order, where the data has numbers or other names
    metric       "mean_per_class" has the mean of the classes as headline
    sizes        of train and validation, for vtab only; (800, 200) when None
    seed         of the draws that the protocol makes
    cache_dir    where `datasets` keeps its files (None: its own default)

    Data with another number of classes or of test examples than the benchmark's is used, with a warning. Images of
    your own are a task of their own: :func:`dplearn.tasks.image_folder`.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"name={name!r}: expected one of {list(BENCHMARKS)}")
    benchmark, family = BENCHMARKS[name], name.partition("/")[0]
    sizes = check_sizes(family, sizes)
    data = _data(name, path, hub, columns, cache_dir)
    if class_names is None and any(re.fullmatch(r"n\d{8}", each) for each in data.names):
        class_names = _words_of(name, data.names, path)
    data = with_class_names(name, benchmark, data, class_names)
    if family == "vtab":
        splits, note = vtab(name, data.splits, sizes, seed)
    else:
        splits, note = divided(name, data.splits, benchmark.pooled, SHARES[family], seed)
    note += departures(name, benchmark, data.names, splits)
    source = f"{name} from {data.origin}, {note}, names and labels sha256 {digest_of(data.names, splits)}"
    return ImageTask(name, data.names, splits, metric, source, benchmark.template)


def _words_of(name: str, numbers: Sequence[str], path: str | Path | None) -> list[str]:
    """Class names of ImageNet's folders, which are called by numbers: of CoOp's list classnames.txt beside them."""
    file = None if path is None else Path(path) / "classnames.txt"
    if file is None or not file.is_file():
        raise ValueError(
            f"{name}: classes are called {numbers[0]!r}, which no text encoder knows: expected CoOp's classnames.txt "
            "in the folder, or class_names="
        )
    words = dict(line.split(maxsplit=1) for line in file.read_text("utf-8").splitlines() if line.strip())
    missing = [number for number in numbers if number not in words]
    if missing:
        raise ValueError(
            f"{file.name} has no name for {missing[0]!r}, expected one for each folder of {name}"
        )
    return [words[number].strip() for number in numbers]


def _data(name: str, path: Any, hub: Any, columns: Any, cache_dir: str | Path | None) -> Data:
    """What the hub or a folder has."""
    if path is not None and hub is not None:
        raise ValueError(f"path={str(path)!r} and hub={hub!r}: expected one of them or neither")
    if path is None:
        return from_hub(name, _hub_of(name, hub), columns, cache_dir)
    data = _from_path(Path(path), columns or ("image", "label"), cache_dir)
    if name == "coop/imagenet" and "test" not in data.splits:  # its labels of a test set are not public
        splits = {"test" if split == "validation" else split: own for split, own in data.splits.items()}
        data = replace(data, splits=splits)
    return data


def _hub_of(name: str, hub: str | Hub | None) -> Hub:
    """The dataset of the hub that is asked for."""
    if hub is None and name not in HUB:
        raise ValueError(
            f"{name}: no hub repository is recorded for it: expected hub='owner/dataset' (or a Hub with its columns "
            f"and splits, or HUB[{name!r}] = Hub(…)), or path=, a folder with the images"
        )
    if hub is not None and not isinstance(hub, str | Hub):
        raise ValueError(f"hub={hub!r}: expected the name of a repository, 'owner/dataset', or a Hub")
    return HUB[name] if hub is None else Hub(hub) if isinstance(hub, str) else hub


def _from_path(folder: Path, columns: tuple[str, str], cache_dir: str | Path | None) -> Data:
    """What a folder has: a saved table, a published list, parquet files, or folders of images."""
    import datasets

    if not folder.is_dir():
        raise FileNotFoundError(f"path={str(folder)!r}: expected a folder with images")
    if (folder / "dataset_dict.json").is_file():
        return from_tables(datasets.load_from_disk(str(folder)), *columns, "local files")
    listed = split_lists.from_lists(folder)
    if listed is not None:
        return listed
    parquet = {split: parquet_files(folder, split) for split in SPLITS}
    parquet = {split: files for split, files in parquet.items() if files}
    if parquet:
        tables = datasets.load_dataset("parquet", data_files=parquet, cache_dir=cache_dir and str(cache_dir))
        return from_tables(tables, *columns, "local parquet files")
    or_else = (
        ", parquet files called train, validation and test, a saved DatasetDict, or images with a published list of "
        "splits"
    )
    roots = split_folders(folder) or split_folders(folder / "images") or {"train": folder}
    return from_folders(folder, roots, or_else)
