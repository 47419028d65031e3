"""What VTAB-1k, FGVC and CoOp fix about each of their sets: classes and their names, sizes, templates."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dplearn.checks import caller_level
from dplearn.tasks.image_sources import Data
from dplearn.tasks.images import ImageSplit


@dataclass(frozen=True)
class Benchmark:
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


BENCHMARKS = {
    # natural
    "vtab/caltech101": Benchmark(102, 6084),
    "vtab/cifar100": Benchmark(100, 10000),
    "vtab/dtd": Benchmark(47, 1880),
    "vtab/flowers102": Benchmark(102, 6149),
    "vtab/pets": Benchmark(37, 3669),
    "vtab/sun397": Benchmark(397, 21750),
    "vtab/svhn": Benchmark(10, 26032),
    # specialised
    "vtab/camelyon": Benchmark(2, 32768),
    "vtab/eurosat": Benchmark(10, 5400),
    "vtab/resisc45": Benchmark(45, 6300),
    "vtab/retinopathy": Benchmark(5, 42670),
    # structured: the labels are bins of a position, an angle, a distance or a count
    "vtab/clevr_count": Benchmark(8, 15000),
    "vtab/clevr_distance": Benchmark(6, 15000),
    "vtab/dmlab": Benchmark(6, 22735),
    "vtab/dsprites_location": Benchmark(16, 73728),
    "vtab/dsprites_orientation": Benchmark(16, 73728),
    "vtab/kitti_distance": Benchmark(4, 711),
    "vtab/smallnorb_azimuth": Benchmark(18, 12150),
    "vtab/smallnorb_elevation": Benchmark(9, 12150),
    "fgvc/cub": Benchmark(200),
    "fgvc/nabirds": Benchmark(555),
    "fgvc/flowers": Benchmark(102),
    "fgvc/dogs": Benchmark(120),
    "fgvc/cars": Benchmark(196),
    "coop/imagenet": Benchmark(1000),
    "coop/caltech101": Benchmark(
        100,
        pooled=True,
        ignored=("BACKGROUND_Google", "Faces_easy"),
        renamed={"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"},
    ),
    "coop/pets": Benchmark(37, template="a photo of a {}, a type of pet."),
    "coop/cars": Benchmark(196),
    "coop/flowers102": Benchmark(102, template="a photo of a {}, a type of flower.", pooled=True),
    "coop/food101": Benchmark(101, template="a photo of {}, a type of food.", pooled=True),
    "coop/aircraft": Benchmark(100, template="a photo of a {}, a type of aircraft."),
    "coop/sun397": Benchmark(397),
    "coop/dtd": Benchmark(47, template="{} texture.", pooled=True),
    "coop/eurosat": Benchmark(
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
    "coop/ucf101": Benchmark(101, template="a photo of a person doing {}."),
}


def departures(
    name: str, benchmark: Benchmark, names: Sequence[str], splits: Mapping[str, ImageSplit]
) -> str:
    """Warns where the data is not that of the benchmark; the same words go into the task's source."""
    differences = []
    if len(names) != benchmark.classes:
        differences.append(f"{len(names)} classes, the benchmark has {benchmark.classes}")
    if benchmark.test is not None and len(splits["test"]) != benchmark.test:
        differences.append(f"{len(splits['test'])} test examples, the benchmark has {benchmark.test}")
    if not differences:
        return ""
    text = "not the benchmark's data: " + ", ".join(differences)
    warnings.warn(f"{name}: {text}", stacklevel=caller_level())
    return f", {text}"


def with_class_names(name: str, benchmark: Benchmark, data: Data, class_names: Sequence[str] | None) -> Data:
    """The benchmark's classes under its names: ignored ones dropped, others renamed, or all named by the user."""
    ignored = [i for i, entry in enumerate(data.names) if entry in benchmark.ignored]
    if ignored:
        kept = [i for i in range(len(data.names)) if i not in ignored]
        number = {old: new for new, old in enumerate(kept)}
        splits = {}
        for split, entry in data.splits.items():
            rows = [(row, number[y]) for row, y in zip(entry.rows, entry.labels) if y in number]
            splits[split] = ImageSplit(entry.images, [y for _, y in rows], [row for row, _ in rows])
        data = Data(tuple(data.names[i] for i in kept), splits, data.origin)
    if class_names is not None and len(class_names) != len(data.names):
        raise ValueError(
            f"{name}: class_names has {len(class_names)} names: expected {len(data.names)}, one for each label "
            f"({', '.join(data.names[:4])}, …)"
        )
    names = class_names or [benchmark.renamed.get(entry, entry) for entry in data.names]
    return Data(tuple(names), data.splits, data.origin)
