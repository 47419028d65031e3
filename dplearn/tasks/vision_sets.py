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

These draws are ours (seeded): the benchmarks' published splits are other examples of the same data. Local folders
with the published lists give exactly these: CoOp's split_zhou_*.json, VPT's train.json, val.json and test.json, and
the train800.txt, val200.txt and test.txt in which VTAB-1k is passed on. Numbers of classes, sizes and templates are
those of the code of VTAB (github.com/google-research/task_adaptation), VPT (KMnP/vpt) and CoOp (KaiyangZhou/CoOp).
CoOp has no validation set for ImageNet and none is made of its test set here. Class names are those of the data; CoOp's
for ImageNet, StanfordCars and SUN397 are worded differently: its lists have them, or pass `class_names`.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dplearn.checks import is_whole
from dplearn.tasks.images import ImageSplit, ImageTask, divide, shuffled

SPLITS = ("train", "validation", "test")
ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test",),
}
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
VTAB_SIZES = (800, 200)


@dataclass(frozen=True)
class Recipe:
    """One set: its number of classes, and what else its protocol fixes.

    test      number of test examples, where it is checked
    template  what a text encoder reads about a class
    pooled    no split of its own: all images are pooled and divided by class
    ignored   folders that are not classes of the benchmark
    renamed   names of folders -> class names
    """

    classes: int
    test: int | None = None
    template: str = "a photo of a {}."
    pooled: bool = False
    ignored: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)


RECIPES = {
    # natural
    "vtab/caltech101": Recipe(102, 6084),
    "vtab/cifar100": Recipe(100, 10000),
    "vtab/dtd": Recipe(47, 1880),
    "vtab/flowers102": Recipe(102, 6149),
    "vtab/pets": Recipe(37, 3669),
    "vtab/sun397": Recipe(397, 21750),
    "vtab/svhn": Recipe(10, 26032),
    # specialised
    "vtab/camelyon": Recipe(2, 32768),
    "vtab/eurosat": Recipe(10, 5400),
    "vtab/resisc45": Recipe(45, 6300),
    "vtab/retinopathy": Recipe(5, 42670),
    # structured: the labels are bins of a position, an angle, a distance or a count
    "vtab/clevr_count": Recipe(8, 15000),
    "vtab/clevr_distance": Recipe(6, 15000),
    "vtab/dmlab": Recipe(6, 22735),
    "vtab/dsprites_location": Recipe(16, 73728),
    "vtab/dsprites_orientation": Recipe(16, 73728),
    "vtab/kitti_distance": Recipe(4, 711),
    "vtab/smallnorb_azimuth": Recipe(18, 12150),
    "vtab/smallnorb_elevation": Recipe(9, 12150),
    "fgvc/cub": Recipe(200),
    "fgvc/nabirds": Recipe(555),
    "fgvc/flowers": Recipe(102),
    "fgvc/dogs": Recipe(120),
    "fgvc/cars": Recipe(196),
    "coop/imagenet": Recipe(1000),
    "coop/caltech101": Recipe(
        100,
        pooled=True,
        ignored=("BACKGROUND_Google", "Faces_easy"),
        renamed={"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"},
    ),
    "coop/pets": Recipe(37, template="a photo of a {}, a type of pet."),
    "coop/cars": Recipe(196),
    "coop/flowers102": Recipe(102, template="a photo of a {}, a type of flower.", pooled=True),
    "coop/food101": Recipe(101, template="a photo of {}, a type of food.", pooled=True),
    "coop/aircraft": Recipe(100, template="a photo of a {}, a type of aircraft."),
    "coop/sun397": Recipe(397),
    "coop/dtd": Recipe(47, template="{} texture.", pooled=True),
    "coop/eurosat": Recipe(
        10,
        template="a centered satellite photo of {}.",
        pooled=True,
        renamed={
            "AnnualCrop": "Annual Crop Land",
            "HerbaceousVegetation": "Herbaceous Vegetation Land",
            "Highway": "Highway or Road",
            "Industrial": "Industrial Buildings",
            "Pasture": "Pasture Land",
            "PermanentCrop": "Permanent Crop Land",
            "Residential": "Residential Buildings",
            "SeaLake": "Sea or Lake",
        },
    ),
    "coop/ucf101": Recipe(101, template="a photo of a person doing {}."),
}
NAMES = tuple(RECIPES)


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


@dataclass(frozen=True)
class Data:
    """What a source has: splits whose labels are indices into `names`."""

    names: tuple[str, ...]
    splits: dict[str, ImageSplit]
    origin: str


class Files(Sequence):
    """Image files, opened when they are asked for."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int):
        from PIL import Image

        with Image.open(self.paths[row]) as image:
            return image.convert("RGB")


class Column(Sequence):
    """The images of a `datasets` table, decoded when they are asked for."""

    def __init__(self, table, column: str):
        self.table, self.column = table, column

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int):
        return self.table[row][self.column]


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

    path         a folder: class folders in folders called train, validation, test ("ImageFolder"); class folders
                 alone; parquet files called train, validation and test; what `DatasetDict.save_to_disk` writes;
                 or images with one of the published lists (see the head of this module). None: the hub
    hub          a repository or a `Hub`; None: the entry of the table `HUB`
    columns      of the image and of the label in a table, ("image", "label") when None
    class_names  the names of the classes in label order, where the data has numbers or other names
    metric       "accuracy_mean_per_class", or "mean_per_class" to have the mean of the classes as headline
    sizes        of train and validation, for vtab only; (800, 200) when None
    seed         of the draws that the protocol makes
    cache_dir    where `datasets` keeps its files (its own default when None)

    Data with another number of classes or of test examples than the benchmark's is used, with a warning.
    """
    if name not in RECIPES:
        raise ValueError(f"name={name!r}: expected one of {list(RECIPES)}")
    recipe, family = RECIPES[name], name.partition("/")[0]
    if path is not None and hub is not None:
        raise ValueError(f"path={str(path)!r} and hub={hub!r}: expected one of them or neither")
    sizes = _check_sizes(family, sizes)
    if path is not None:
        data = _from_path(Path(path), columns or ("image", "label"), cache_dir)
    else:
        data = _from_hub(name, hub, columns, cache_dir)
    data = _classes(name, recipe, data, class_names)
    if family == "vtab":
        splits, note = _vtab(name, data.splits, sizes, seed)
    else:
        splits, note = _divided(name, data.splits, recipe.pooled, 0.1 if family == "fgvc" else 0.2, seed)
    digest = hashlib.sha256(
        json.dumps([data.names, {k: splits[k].labels for k in SPLITS}]).encode()
    ).hexdigest()
    note += _departures(name, recipe, data.names, splits)
    source = f"{name} from {data.origin}, {note}, names and labels sha256 {digest[:16]}"
    return ImageTask(name, data.names, splits, metric, source, recipe.template)


def _check_sizes(family, sizes) -> tuple[int, int]:
    if sizes is None:
        return VTAB_SIZES
    if family != "vtab":
        raise ValueError(f"sizes={sizes!r}: expected None, only vtab has a fixed number of examples")
    valid = isinstance(sizes, tuple | list) and len(sizes) == 2
    if not valid or not all(is_whole(n, 1) for n in sizes):
        raise ValueError(f"sizes={sizes!r}: expected two integers of at least 1, for train and validation")
    return tuple(sizes)


# --- protocols -----------------------------------------------------------------------------------------------


def _need(name, splits, *needed):
    missing = [split for split in needed if split not in splits]
    if missing:
        raise ValueError(
            f"{name}: the data has splits {list(splits)}, lacks {missing}: expected {list(needed)} for this protocol"
        )


def _vtab(name, splits, sizes, seed):
    """800 examples of train, 200 of validation (of the rest of train without one), all of test."""
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


def _divided(name, splits, pooled, share, seed):
    """The splits that are there; without a validation set a share of train, by class; or all pooled and divided."""
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

    images = ConcatDataset([Subset(split.images, split.rows) for split in splits])
    return ImageSplit(images, [label for split in splits for label in split.labels])


def _departures(name, recipe, names, splits) -> str:
    """Warns where the data is not that of the benchmark; the same words go into the task's source."""
    found = []
    if len(names) != recipe.classes:
        found.append(f"{len(names)} classes, the benchmark has {recipe.classes}")
    if recipe.test is not None and len(splits["test"]) != recipe.test:
        found.append(f"{len(splits['test'])} test examples, the benchmark has {recipe.test}")
    if not found:
        return ""
    text = "not the benchmark's data: " + ", ".join(found)
    warnings.warn(f"{name}: {text}", stacklevel=3)
    return f", {text}"


def _classes(name, recipe, data: Data, class_names) -> Data:
    """The benchmark's classes under its names: ignored ones dropped, others renamed, or all named by the user."""
    ignored = [i for i, found in enumerate(data.names) if found in recipe.ignored]
    if ignored:
        kept = [i for i in range(len(data.names)) if i not in ignored]
        number = {old: new for new, old in enumerate(kept)}
        splits = {}
        for split, found in data.splits.items():
            rows = [(row, number[y]) for row, y in zip(found.rows, found.labels) if y in number]
            splits[split] = ImageSplit(found.images, [y for _, y in rows], [row for row, _ in rows])
        data = Data(tuple(data.names[i] for i in kept), splits, data.origin)
    if class_names is not None and len(class_names) != len(data.names):
        raise ValueError(
            f"{name}: class_names has {len(class_names)} names: expected {len(data.names)}, one for each label "
            f"({', '.join(data.names[:4])}, …)"
        )
    names = class_names or [recipe.renamed.get(found, found) for found in data.names]
    return Data(tuple(names), data.splits, data.origin)


# --- sources -------------------------------------------------------------------------------------------------


def _from_hub(name, hub, columns, cache_dir) -> Data:
    import datasets

    if hub is None and name not in HUB:
        raise ValueError(
            f"{name}: no hub repository is recorded for it: expected hub='owner/dataset' (or a Hub with its columns "
            f"and splits, or HUB[{name!r}] = Hub(…)), or path=, a folder with the images"
        )
    if hub is not None and not isinstance(hub, str | Hub):
        raise ValueError(f"hub={hub!r}: expected the name of a repository, 'owner/dataset', or a Hub")
    given = HUB[name] if hub is None else Hub(hub) if isinstance(hub, str) else hub
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
    return _from_tables(tables, *(columns or (given.image, given.label)), origin)


def _from_path(folder: Path, columns, cache_dir) -> Data:
    import datasets

    if not folder.is_dir():
        raise FileNotFoundError(f"path={str(folder)!r}: expected a folder with images")
    if (folder / "dataset_dict.json").is_file():
        return _from_tables(datasets.load_from_disk(str(folder)), *columns, "local files")
    listed = _from_lists(folder)
    if listed is not None:
        return listed
    parquet = {split: _parquet(folder, split) for split in SPLITS}
    parquet = {split: files for split, files in parquet.items() if files}
    if parquet:
        tables = datasets.load_dataset("parquet", data_files=parquet, cache_dir=cache_dir and str(cache_dir))
        return _from_tables(tables, *columns, "local parquet files")
    return _from_folders(folder)


def _parquet(folder: Path, split: str) -> list[str]:
    """One split's files: train.parquet or, as on the hub, train-00000-of-00002.parquet, here or in data/."""
    for place in (folder, folder / "data"):
        for alias in ALIASES[split]:
            found = sorted([*place.glob(f"{alias}.parquet"), *place.glob(f"{alias}-*.parquet")])
            if found:
                return [str(file) for file in found]
    return []


def _from_tables(tables, image: str, label: str, origin: str) -> Data:
    """Splits of a `DatasetDict`; labels may be a ClassLabel, numbers, or names."""
    import datasets

    found = {}
    for split, aliases in ALIASES.items():
        for alias in aliases:
            if alias in tables:
                found.setdefault(split, tables[alias])
    if not found:
        raise ValueError(f"{origin} has splits {list(tables)}: expected {list(SPLITS)}")
    values = {}
    for split, table in found.items():
        for argument, column in (("image", image), ("label", label)):
            if column not in table.column_names:
                raise ValueError(
                    f"{origin}, {split}: no {argument} column {column!r}: expected columns=(image, label) to be two "
                    f"of {table.column_names}"
                )
        if not isinstance(table.features[image], datasets.Image):  # bytes, as parquet files may have them
            found[split] = table.cast_column(image, datasets.Image())
        values[split] = list(table[label])
    names = getattr(next(iter(found.values())).features[label], "names", None)
    names, labels = _numbered(values, names, origin)
    splits = {split: ImageSplit(Column(table, image), labels[split]) for split, table in found.items()}
    return Data(names, splits, origin)


def _numbered(values: Mapping[str, list], names, origin) -> tuple[tuple[str, ...], dict[str, list[int]]]:
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


def _from_folders(folder: Path) -> Data:
    """Class folders in split folders, or class folders alone (then all is "train"). A class is named by its folder;
    of nested folders by the path, "a/abbey"."""
    roots = {
        split: folder / alias
        for split, aliases in ALIASES.items()
        for alias in reversed(aliases)
        if (folder / alias).is_dir()
    }
    files = {}
    for split, root in (roots or {"train": folder}).items():
        paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
        loose = [path for path in paths if path.parent == root]
        if loose or not paths:
            raise FileNotFoundError(
                f"path={str(folder)!r}: {loose[0].name if loose else 'no image'} in {root.name!r}: expected images "
                "in one folder for each class (in folders train, validation and test), parquet files called train, "
                "validation and test, a saved DatasetDict, or images with a published list of splits"
            )
        files[split] = paths
    values = {
        split: [path.parent.relative_to(roots.get(split, folder)).as_posix() for path in paths]
        for split, paths in files.items()
    }
    names, labels = _numbered(values, None, "local folders")
    return Data(names, {s: ImageSplit(Files(files[s]), labels[s]) for s in files}, "local folders")


def _from_lists(folder: Path) -> Data | None:
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
    return None


def _listed(content, split, file):
    for alias in ALIASES[split]:
        if alias in content:
            return content[alias]
    raise ValueError(f"{file.name} has {list(content)}: expected the splits train, val and test")


def _with_files(folder: Path, rows: Mapping[str, list], names, lists: str) -> Data:
    """Paths of a list are relative to the folder or to one folder in it."""
    first = rows["train"][0][0]
    places = [folder, *sorted(place for place in folder.iterdir() if place.is_dir())]
    roots = [place for place in places if (place / first).is_file()]
    if not roots:
        raise FileNotFoundError(
            f"path={str(folder)!r}: {first!r}, the first of {lists}, is not there: expected it in the folder or in a "
            "folder in it"
        )
    names, labels = _numbered(
        {split: [y for _, y in pairs] for split, pairs in rows.items()}, names, f"the lists {lists}"
    )
    splits = {
        split: ImageSplit(Files([roots[0] / path for path, _ in pairs]), labels[split])
        for split, pairs in rows.items()
    }
    return Data(names, splits, f"local files with the lists {lists}")
