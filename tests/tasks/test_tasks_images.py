"""Image tasks: splits, few-shot draws, base-to-new, scores, what a Trainer gets, sources of data, and errors.

The local data are small coloured squares: the colour says the class, one corner pixel says which example it is.
"""

import json
import math
import warnings
from collections import Counter
from dataclasses import replace
from importlib import util

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import hmean
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from transformers import (
    CLIPImageProcessorPil,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from dplearn.tasks import ImageTask, load, names, split_lists
from dplearn.tasks.image_sources import Hub
from dplearn.tasks.images import EncodedImages, ImageSplit, divide, shuffled, to_image
from dplearn.tasks.metrics import METRICS, harmonic_mean, recall_at
from dplearn.tasks.vision_benchmarks import BENCHMARKS, Benchmark
from dplearn.tasks.vision_sets import HUB

PROCESSOR = ViTImageProcessorPil(size={"height": 28, "width": 28})
needs_fonts = pytest.mark.skipif(
    util.find_spec("qtawesome") is None, reason="the icon fonts are not installed"
)


def square(label, number):
    """A 6 x 6 image, different for each label and number, with nothing lost by PNG."""
    pixels = np.full((6, 6, 3), (20 * label, 10, 90), np.uint8)
    pixels[0, 0] = number
    return Image.fromarray(pixels)


def number_of(example):
    return int(np.asarray(example["image"])[0, 0, 0])


def make_split(labels, start=0):
    return ImageSplit([square(label, start + i) for i, label in enumerate(labels)], labels)


def make_task(classes=5, per_class=6, **changes):
    labels = [i % classes for i in range(classes * per_class)]
    fields = {
        "name": "made/up",
        "class_names": tuple(f"kind_{i}" for i in range(classes)),
        "splits": {
            split: make_split(labels, 60 * i) for i, split in enumerate(("train", "validation", "test"))
        },
        "metric": "accuracy_mean_per_class",
        "source": "made up",
    }
    return ImageTask(**{**fields, **changes})


# --- images and splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
def test_arrays_become_rgb_images(shape):
    pixels = np.random.randint(0, 256, shape, dtype=np.uint8)
    image = to_image(pixels)
    colours = pixels.reshape(4, 5, -1)[:, :, :3]
    assert image.mode == "RGB" and image.size == (5, 4)
    assert np.array_equal(np.asarray(image), np.broadcast_to(colours, (4, 5, 3)))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_pil_images_of_other_modes_become_rgb(mode):
    assert to_image(square(2, 7).convert(mode)).mode == "RGB"


@pytest.mark.parametrize(
    "value", [np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8), "picture.png", None]
)
def test_other_values_are_refused(value):
    with pytest.raises(ValueError, match="image of .*: expected"):
        to_image(value)


def test_a_split_is_a_sequence_of_images_with_labels():
    split = make_split([0, 1, 2, 1])
    assert [example["label"] for example in split] == [0, 1, 2, 1]
    assert [number_of(example) for example in split[1:3]] == [1, 2]
    part = split.take([3, 1]).take([0], shift=-1)
    assert number_of(part[0]) == 3 and part[0]["label"] == 0 and part.rows == (3,)
    with pytest.raises(IndexError):
        split[4]


def test_labels_must_match_the_images():
    with pytest.raises(ValueError, match="2 labels: expected 1, one for each image"):
        ImageSplit([square(0, 0)], [0, 1])


# --- dividing ------------------------------------------------------------------------------------------------

LABELS = st.lists(st.integers(0, 4), max_size=60)


@given(LABELS, st.floats(0, 0.5), st.floats(0, 0.5), st.integers(0, 9))
def test_divide_is_a_partition_with_rounded_shares_of_each_label(labels, first, second, seed):
    parts = divide(labels, {"a": first, "b": second}, "rest", seed)
    assert sorted(sum(parts.values(), [])) == list(range(len(labels)))
    assert all(numbers == sorted(numbers) for numbers in parts.values())
    for label, count in Counter(labels).items():
        for part, share in (("a", first), ("b", second)):
            found = sum(labels[i] == label for i in parts[part])
            assert found == round(share * count) or part == "b" and found == count - round(first * count)
    assert parts == divide(labels, {"a": first, "b": second}, "rest", seed)


def test_the_seed_decides():
    assert shuffled(8, 0) == shuffled(8, 0) and sorted(shuffled(8, 3)) == list(range(8))
    assert len({tuple(shuffled(8, seed)) for seed in range(20)}) > 15
    labels = [0] * 20
    assert divide(labels, {"a": 0.5}, "b", 0) != divide(labels, {"a": 0.5}, "b", 1)


def test_shuffled_is_the_same_in_all_versions_of_python():
    assert shuffled(6, 0) == [3, 5, 2, 4, 1, 0]  # random.Random(0).random() gives .84 .76 .42 .26 .51 .40


# --- few-shot and base-to-new --------------------------------------------------------------------------------


def test_few_shot_has_exactly_so_many_of_each_class():
    task = make_task()
    small = task.few_shot(2, seed=3)
    train = small.splits["train"]
    assert Counter(train.labels) == dict.fromkeys(range(5), 2)
    numbers = [number_of(example) for example in train]
    assert len(set(numbers)) == 10 and numbers == sorted(numbers)
    assert all(example["label"] == number % 5 for example, number in zip(train, numbers))
    assert small.splits["test"] is task.splits["test"]
    assert small.splits["validation"] is task.splits["validation"]
    assert len(task.splits["train"]) == 30 and task.source == "made up"
    assert small.source == "made up; train: 2 per label, seed 3"
    assert small.splits["train"].rows == task.few_shot(2, seed=3).splits["train"].rows
    assert len({task.few_shot(2, seed=seed).splits["train"].rows for seed in range(8)}) > 4


def test_few_shot_draws_as_the_text_tasks_do():
    from dplearn.tasks import Task

    labels = [i % 3 for i in range(30)]
    examples = [{"x": str(i), "label": y} for i, y in enumerate(labels)]
    text = Task("t", ("a", "b", "c"), ("a", "b", "c"), "{x}", {"train": examples}, "accuracy", "s")
    images = make_task(3, splits={"train": make_split(labels)})
    for seed in range(5):
        drawn = [int(example["x"]) for example in text.few_shot(4, seed).splits["train"]]
        assert list(images.few_shot(4, seed).splits["train"].rows) == drawn


def test_few_shot_can_reduce_validation_as_coop_does():
    small = make_task().few_shot(3, seed=1, validation=2)
    assert Counter(small.splits["validation"].labels) == dict.fromkeys(range(5), 2)
    assert all(60 <= number_of(example) < 90 for example in small.splits["validation"])
    assert small.source == "made up; train: 3 per label, seed 1; validation: 2 per label"


@pytest.mark.parametrize("classes", [4, 5, 8, 9])
def test_base_is_the_first_half_and_new_the_second(classes):
    task = make_task(classes)
    split = task.base_to_new()
    half = math.ceil(classes / 2)
    assert split.class_names == task.class_names[:half] and split.new_names == task.class_names[half:]
    assert split.classes("test") == split.classes() == task.class_names[:half]
    assert split.classes("test_new") == task.class_names[half:]
    for name in ("train", "validation", "test"):
        original = task.splits[name]
        kept = [example for example in original if example["label"] < half]
        assert [number_of(e) for e in split.splits[name]] == [number_of(e) for e in kept]
        assert list(split.splits[name].labels) == [e["label"] for e in kept]
    new = [example for example in task.splits["test"] if example["label"] >= half]
    assert [number_of(e) for e in split.splits["test_new"]] == [number_of(e) for e in new]
    assert list(split.splits["test_new"].labels) == [e["label"] - half for e in new]


def test_few_shot_and_base_to_new_commute():
    task = make_task(6)
    one, two = task.few_shot(2, 5).base_to_new(), task.base_to_new().few_shot(2, 5)
    assert Counter(one.splits["train"].labels) == Counter(two.splits["train"].labels) == {0: 2, 1: 2, 2: 2}
    assert one.splits["test_new"].rows == two.splits["test_new"].rows


def test_captions_fill_the_template_of_the_split():
    task = make_task(4, template="a photo of a {}, a type of pet.").base_to_new()
    assert task.captions() == [
        "a photo of a kind 0, a type of pet.",
        "a photo of a kind 1, a type of pet.",
    ]
    assert task.captions("test_new", template="{} texture.") == ["kind 2 texture.", "kind 3 texture."]


def test_two_classes_may_have_the_same_name():
    task = make_task(2, class_names=("crane", "crane"))  # a bird and a machine, as in ImageNet
    assert Counter(task.few_shot(2, 0).splits["train"].labels) == {0: 2, 1: 2}
    assert task.captions() == ["a photo of a crane."] * 2


# --- metrics and scores --------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=30))
def test_mean_per_class_is_sklearns_balanced_accuracy(pairs):
    labels, predictions = zip(*pairs)
    result = METRICS["mean_per_class"](labels, predictions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sklearn warns of predicted classes that no label has
        expected = balanced_accuracy_score(labels, predictions)
    assert list(result) == ["mean_per_class", "accuracy"]
    assert result["mean_per_class"] == pytest.approx(expected)
    assert result["accuracy"] == pytest.approx(np.mean(np.equal(labels, predictions)))
    other = METRICS["accuracy_mean_per_class"](labels, predictions)
    assert other == result and list(other) == ["accuracy", "mean_per_class"]


def test_mean_per_class_differs_from_accuracy_where_classes_differ_in_size():
    assert METRICS["mean_per_class"]([0, 0, 0, 1], [0, 0, 0, 0]) == {"mean_per_class": 0.5, "accuracy": 0.75}


SCORES = st.one_of(st.just(0.0), st.just(1), st.floats(1e-6, 100))


@given(SCORES, SCORES)
def test_harmonic_mean_is_scipys(base, new):
    assert harmonic_mean(base, new) == pytest.approx(hmean([base, new]), rel=1e-12)


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 10_000))
def test_recall_is_what_sorting_finds(queries, items, seed):
    numbers = np.random.default_rng(seed)
    scores = numbers.permuted(np.arange(queries * items)).reshape(queries, items)  # no two alike
    relevant = [numbers.choice(items, numbers.integers(1, items + 1), replace=False).tolist() for _ in scores]
    found = recall_at(scores, relevant, ranks=(1, 2, 5))
    for k in (1, 2, 5):
        first = [set(np.argsort(-row)[:k]) for row in scores]
        hits = [bool(best & set(own)) for best, own in zip(first, relevant, strict=True)]
        assert found[f"recall@{k}"] == sum(hits) / queries


def test_recall_with_one_item_each_is_scikit_learns():
    scores = np.random.default_rng(0).normal(size=(9, 9))
    found = recall_at(scores, ranks=(1, 3))
    for k in (1, 3):
        assert found[f"recall@{k}"] == top_k_accuracy_score(range(9), scores, k=k)


def test_equal_scores_earn_nothing():
    assert recall_at([[1.0, 1.0, 1.0]], ranks=(1, 2, 3)) == {
        "recall@1": 0.0,
        "recall@2": 0.0,
        "recall@3": 1.0,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0],), r"scores has shape \(2,\), expected \(queries, items\)"),
        (([[1.0]], [[1]]), r"relevant\[0\]=\[1\]: expected some of the items 0..0"),
        (([[1.0]], [[]]), r"relevant\[0\]=\[\]"),
        (([[1.0]], [[0], [0]]), "relevant has 2 entries: expected 1"),
        (([[1.0]], None, (0,)), r"ranks=\[0\]: expected integers of at least 1"),
    ],
)
def test_recall_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        recall_at(*arguments)


@pytest.mark.parametrize(
    ("values", "argument"),
    [((-0.1, 1), "base"), ((0.5, float("nan")), "new"), ((0.5, "0.5"), "new"), ((True, 0.5), "base")],
)
def test_harmonic_mean_refuses_what_is_no_accuracy(values, argument):
    with pytest.raises(ValueError, match=f"{argument}=.*: expected an accuracy"):
        harmonic_mean(*values)


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array])
def test_scores_of_base_and_new_classes(kind):
    task = make_task(4, per_class=2).base_to_new()
    assert task.score("test", kind([0, 1, 0, 0])) == {"accuracy": 0.75, "mean_per_class": 0.75}
    scores = task.score_base_to_new(kind([0, 1, 0, 0]), kind([1, 1, 1, 1]))
    assert scores == pytest.approx({"base": 0.75, "new": 0.5, "harmonic_mean": 0.6})


# --- what the model gets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [False, True])
def test_pixel_values_are_those_of_the_processor_called_by_hand(in_memory):
    task = make_task()
    encoded = task.encode(PROCESSOR, "validation", in_memory=in_memory)
    assert isinstance(encoded, EncodedImages) and len(encoded) == 30
    for i in (0, 7, 29):
        expected = PROCESSOR(images=square(i % 5, 60 + i), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(encoded[i]["pixel_values"], expected) and encoded[i]["labels"] == i % 5
        assert expected.shape == (3, 28, 28)


def test_digits_are_resized_by_pillow_and_normalised():
    data, task = load_digits(), load("images/digits")
    encoded, split = task.encode(PROCESSOR, "test"), task.splits["test"]
    for i in (0, 100):
        grey = Image.fromarray(np.rint(data.images[split.rows[i]] * 255 / 16).astype(np.uint8))
        large = np.asarray(grey.resize((28, 28), Image.Resampling.BILINEAR), np.float32)
        expected = torch.from_numpy((large / 255 - 0.5) / 0.5).expand(3, 28, 28)
        torch.testing.assert_close(encoded[i]["pixel_values"], expected, rtol=0, atol=1e-6)
        assert encoded[i]["labels"] == data.target[split.rows[i]]


def test_grey_images_and_clips_processor():
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    grey = np.random.randint(0, 256, (2, 9, 7), dtype=np.uint8)
    task = make_task(2, splits={"train": ImageSplit(grey, [0, 1])})
    by_hand = processor(images=Image.fromarray(grey[1]).convert("RGB"), return_tensors="pt")["pixel_values"]
    assert torch.equal(task.encode(processor, "train")[1]["pixel_values"], by_hand[0])


def test_trainer_takes_the_encoded_splits(tmp_path):
    task = load("images/digits").few_shot(1, seed=0, validation=1)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=28,
        patch_size=14,
        num_labels=10,
    )
    model = ViTForImageClassification(config)
    arguments = TrainingArguments(tmp_path, max_steps=2, report_to=[], save_strategy="no", use_cpu=True)
    train = task.encode(PROCESSOR, "train", in_memory=True)
    validation = task.encode(PROCESSOR, "validation")
    trainer = Trainer(model, arguments, train_dataset=train, eval_dataset=validation)
    assert math.isfinite(trainer.train().training_loss) and math.isfinite(trainer.evaluate()["eval_loss"])
    output = trainer.predict(validation)
    assert output.label_ids.tolist() == list(task.splits["validation"].labels)
    assert 0 <= task.score("validation", output.predictions.argmax(-1))["accuracy"] <= 1


# --- offline tasks -------------------------------------------------------------------------------------------


def test_digits_are_divided_once_and_for_all():
    task, again = load("images/digits"), load("images/digits")
    rows = {split: task.splits[split].rows for split in task.splits}
    assert list(rows) == ["train", "validation", "test"]
    assert sorted(sum(rows.values(), ())) == list(range(1797))
    assert rows == {split: again.splits[split].rows for split in again.splits}
    assert {split: len(numbers) for split, numbers in rows.items()} == {
        "train": 898,
        "validation": 359,
        "test": 540,
    }
    assert rows["train"][:5] == (2, 3, 5, 7, 8)
    assert "sha256 a19cb3d96bba7dea" in task.source and "seed 0" in task.source
    target = load_digits().target
    for split in task.splits.values():
        assert [target[row] for row in split.rows] == list(split.labels)
        share = np.bincount(split.labels) / np.bincount(target)
        assert np.ptp(share) < 0.02  # every digit has the same share of every split


@needs_fonts
@pytest.mark.parametrize("name", ["images/icons", "images/icons-style", "images/icons-classes"])
def test_icons_are_those_of_the_catalogue(name):
    from dplearn.zoo import icons

    task = load(name)
    assert load(name) is task and load(name, size=16).splits["train"][0]["image"].size == (16, 16)
    known = set(icons.HELD_OUT_WORDS if name == "images/icons-classes" else icons.KNOWN_WORDS)
    assert set(task.class_names) <= known and len(task.class_names) == (36 if "style" in name else 40)
    for split in ("train", "test"):
        assert set(task.splits[split].labels) == set(range(len(task.class_names)))
    parts = ("classes",) if name == "images/icons-classes" else ("icons", "style")
    chosen = icons.task_splits(icons.icons(*parts, words=known))
    expected = {split: [i for i in chosen[split] if i.label in task.class_names] for split in chosen}
    if name == "images/icons-style":  # never a style in training that the test has
        expected = {
            split: [i for i in chosen if (i.font == icons.HELD_OUT_FONT) == (split == "test")]
            for split, chosen in expected.items()
        }
    drawings = {split: {icon.drawing for icon in expected[split]} for split in expected}
    assert not drawings["train"] & drawings["test"] and not drawings["train"] & drawings["validation"]
    for split, some in expected.items():
        assert [task.class_names[label] for label in task.splits[split].labels] == [i.label for i in some]
        for i in (0, len(some) - 1):
            painted = icons.paint(icons.render(some[i]))
            assert np.array_equal(np.asarray(task.splits[split][i]["image"]), np.asarray(painted))
    if name != "images/icons-style":
        halves = task.base_to_new()
        assert (halves.class_names, halves.new_names) == icons.base_new(known)


def test_without_the_fonts_the_error_says_what_to_install(monkeypatch):
    from dplearn.tasks import images
    from dplearn.zoo import icons

    images.load_icons.cache_clear()
    icons.catalogue.cache_clear()
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"icon fonts .*pip install 'dplearn\["):
        load("images/icons")


# --- the public sets -----------------------------------------------------------------------------------------

COUNTS = {"train": 10, "validation": 5, "test": 4}  # examples per class
KINDS = ("ash", "elm", "fir")


@pytest.fixture
def small_sets(monkeypatch):
    """Benchmarks of three classes, so that small files are all of a benchmark."""
    for name, benchmark in BENCHMARKS.items():
        test = benchmark.test and 12
        monkeypatch.setitem(BENCHMARKS, name, replace(benchmark, classes=3, test=test))


def examples_of(split):
    start = 50 * list(COUNTS).index(split)
    return [(number % 3, start + number) for number in range(3 * COUNTS[split])]


def write_folders(folder, splits=tuple(COUNTS), called=None):
    for split in splits:
        root = folder / (called or {}).get(split, split)
        for label, number in examples_of(split):
            (root / KINDS[label]).mkdir(parents=True, exist_ok=True)
            square(label, number).save(root / KINDS[label] / f"{number:03}.png")
    return folder


def table_of(split, label=None):
    """As `datasets` has it: with label names unless `label` says otherwise."""
    rows = sorted(examples_of(split))  # the order of class folders
    features = datasets.Features(
        {"image": datasets.Image(), "label": label or datasets.ClassLabel(names=list(KINDS))}
    )
    values = [KINDS[y] if getattr(label, "dtype", None) == "string" else y for y, _ in rows]
    return datasets.Dataset.from_dict({"image": [square(*row) for row in rows], "label": values}, features)


def write_parquet(folder, splits=tuple(COUNTS), label=None):
    for split in splits:
        table_of(split, label).to_parquet(folder / f"{split}.parquet")
    return folder


def contents(task):
    return {
        split: [(e["label"], number_of(e), np.asarray(e["image"]).tobytes()) for e in task.splits[split]]
        for split in task.splits
    }


@pytest.mark.parametrize("name", ["coop/cars", "fgvc/cub", "coop/dtd"])
def test_folders_parquet_files_and_saved_tables_are_the_same_task(name, tmp_path, small_sets):
    (tmp_path / "parquet").mkdir()
    folders = load(name, path=write_folders(tmp_path / "folders", called={"validation": "val"}))
    parquet = load(name, path=write_parquet(tmp_path / "parquet"), cache_dir=tmp_path / "cache")
    datasets.DatasetDict({split: table_of(split) for split in COUNTS}).save_to_disk(tmp_path / "saved")
    saved = load(name, path=tmp_path / "saved")
    assert contents(folders) == contents(parquet) == contents(saved)
    assert folders.class_names == parquet.class_names == saved.class_names == KINDS
    for split in COUNTS:
        assert Counter(folders.splits[split].labels) == dict.fromkeys(range(3), COUNTS[split])
        expected = [(y, n, np.asarray(square(y, n)).tobytes()) for y, n in sorted(examples_of(split))]
        assert contents(folders)[split] == expected
    assert "splits of the data" in folders.source and "local folders" in folders.source
    digest = folders.source.rpartition("sha256 ")[2]
    assert len(digest) == 16 and digest in parquet.source and digest in saved.source


def test_folders_are_read_as_datasets_reads_them(tmp_path, small_sets):
    path = write_folders(tmp_path / "data")
    task = load("coop/cars", path=path)
    tables = datasets.load_dataset("imagefolder", data_dir=str(path), cache_dir=str(tmp_path / "cache"))
    assert tables["train"].features["label"].names == list(task.class_names)
    for split in COUNTS:
        expected = sorted((row["label"], np.asarray(row["image"]).tobytes()) for row in tables[split])
        assert sorted((y, pixels) for y, _, pixels in contents(task)[split]) == expected


@pytest.mark.parametrize("label", [datasets.Value("string"), datasets.Value("int64")])
def test_labels_may_be_names_or_numbers(label, tmp_path, small_sets):
    options = {"class_names": KINDS} if label.dtype == "int64" else {}
    task = load(
        "coop/cars", path=write_parquet(tmp_path, label=label), cache_dir=tmp_path / "cache", **options
    )
    assert task.class_names == KINDS
    assert [(y, n) for y, n, _ in contents(task)["test"]] == sorted(examples_of("test"))
    if not options:
        return
    bare = load("coop/cars", path=tmp_path, cache_dir=tmp_path / "cache")
    assert bare.class_names == ("0", "1", "2") and bare.splits["test"].labels == task.splits["test"].labels


def test_parquet_files_with_plain_bytes_and_other_columns(tmp_path, small_sets):
    for split in COUNTS:
        table = table_of(split).cast_column("image", datasets.Image(decode=False))
        rows = [{"img": {"bytes": r["image"]["bytes"], "path": None}, "kind": r["label"]} for r in table]
        (tmp_path / "data").mkdir(exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    task = load("fgvc/cub", path=tmp_path, columns=("img", "kind"), cache_dir=tmp_path / "cache")
    assert [(y, n) for y, n, _ in contents(task)["train"]] == sorted(examples_of("train"))
    with pytest.raises(ValueError, match=r"train: no image column 'image': expected columns=.*'img', 'kind'"):
        load("fgvc/cub", path=tmp_path, cache_dir=tmp_path / "cache")


# --- protocols -----------------------------------------------------------------------------------------------


def numbers(task):
    return {split: {number for _, number, _ in rows} for split, rows in contents(task).items()}


def of(*splits):
    return {number for split in splits for _, number in examples_of(split)}


@pytest.mark.parametrize("official", [True, False])
def test_vtab_takes_so_many_examples_and_all_of_test(official, tmp_path, small_sets):
    path = write_folders(tmp_path / "data", COUNTS if official else ("train", "test"))
    task = load("vtab/dmlab", path=path, sizes=(12, 6), seed=1)
    found = numbers(task)
    assert [len(task.splits[split]) for split in COUNTS] == [12, 6, 12] == [len(f) for f in found.values()]
    assert found["test"] == of("test") and found["train"] < of("train")
    assert found["validation"] < of("validation" if official else "train")
    assert not found["train"] & found["validation"]
    assert contents(task) == contents(load("vtab/dmlab", path=path, sizes=(12, 6), seed=1))
    assert found["train"] != numbers(load("vtab/dmlab", path=path, sizes=(12, 6), seed=2))["train"]
    assert "12 train and 6 validation examples, seed 1" in task.source


def test_vtab_wants_800_and_200_by_default(tmp_path, small_sets):
    path = write_folders(tmp_path / "data")
    with pytest.raises(ValueError, match=r"sizes=\(800, 200\): expected at most 30 examples for train"):
        load("vtab/dmlab", path=path)
    with pytest.raises(ValueError, match=r"sizes=\(28, 3\): expected at most 2 examples for validation"):
        load("vtab/dmlab", path=write_folders(tmp_path / "two", ("train", "test")), sizes=(28, 3))


@pytest.mark.parametrize(("name", "held"), [("fgvc/cub", 1), ("coop/cars", 2)])
def test_a_share_of_each_class_becomes_validation(name, held, tmp_path, small_sets):
    path = write_folders(tmp_path / "data", ("train", "test"))
    task, found = load(name, path=path), numbers(load(name, path=path))
    assert Counter(task.splits["validation"].labels) == dict.fromkeys(range(3), held)
    assert Counter(task.splits["train"].labels) == dict.fromkeys(range(3), 10 - held)
    assert found["train"] | found["validation"] == of("train") and found["test"] == of("test")
    assert not found["train"] & found["validation"]
    assert found["validation"] != numbers(load(name, path=path, seed=1))["validation"]


@pytest.mark.parametrize("splits", [("train",), ("train", "test"), ("train", "validation")])
def test_pooled_sets_are_divided_50_20_30(splits, tmp_path, small_sets):
    task = load("coop/dtd", path=write_folders(tmp_path / "data", splits))
    found, each = numbers(task), sum(COUNTS[split] for split in splits)
    assert set.union(*found.values()) == of(*splits) and sum(map(len, found.values())) == 3 * each
    expected = [round(0.5 * each), round(0.2 * each)]
    expected.append(each - sum(expected))
    for split, count in zip(COUNTS, expected):
        assert Counter(task.splits[split].labels) == dict.fromkeys(range(3), count)
        assert all(number in of(*splits) for number in found[split])
    for split in task.splits.values():  # the image belongs to the label, after pooling too
        assert all(np.asarray(e["image"])[3, 3, 0] == 20 * e["label"] for e in split)


def test_class_folders_alone_are_one_pool(tmp_path, small_sets):
    whole = write_folders(tmp_path / "data", ("train",))
    assert contents(load("coop/dtd", path=whole)) == contents(load("coop/dtd", path=whole / "train"))


def test_caltech_ignores_two_folders_and_renames_four(tmp_path):
    kinds = ("BACKGROUND_Google", "Faces", "Faces_easy", "airplanes", "wrench")
    for label, kind in enumerate(kinds):
        (tmp_path / kind).mkdir()
        for number in range(10):
            square(label, number).save(tmp_path / kind / f"{number}.png")
    with pytest.warns(UserWarning, match="coop/caltech101: not the benchmark's data: 3 classes, the .* 100"):
        task = load("coop/caltech101", path=tmp_path)
    assert task.class_names == ("face", "airplane", "wrench")
    for split in task.splits.values():
        assert all(np.asarray(e["image"])[3, 3, 0] == 20 * (1, 3, 4)[e["label"]] for e in split)
    assert "not the benchmark's data: 3 classes" in task.source


# --- the published lists -------------------------------------------------------------------------------------


def write_lists(folder, kind):
    """The same examples with CoOp's, VTAB's or VPT's lists; images in a folder called jpg."""
    rows = {}
    for split in COUNTS:
        rows[split] = [(f"{KINDS[y]}/{n}.png", y, n) for y, n in examples_of(split)]
        for file, y, n in rows[split]:
            (folder / "jpg" / file).parent.mkdir(parents=True, exist_ok=True)
            square(y, n).save(folder / "jpg" / file)
    short = {"train": "train", "validation": "val", "test": "test"}
    if kind == "coop":
        content = {short[s]: [[f, y, KINDS[y]] for f, y, _ in rows[s]] for s in rows}
        (folder / "split_zhou_Made.json").write_text(json.dumps(content))
    for split, file in (("train", "train800"), ("validation", "val200"), ("test", "test")):
        if kind == "vtab":
            (folder / f"{file}.txt").write_text("".join(f"{f} {y}\n" for f, y, _ in rows[split]))
        if kind == "fgvc":  # VPT's class numbers need not count from 0
            text = json.dumps({f: 10 * y + 1 for f, y, _ in rows[split]})
            (folder / f"{short[split]}.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("kind", "name", "names"),
    [
        ("coop", "coop/sun397", KINDS),
        ("vtab", "vtab/dtd", ("0", "1", "2")),
        ("fgvc", "fgvc/dogs", ("1", "11", "21")),
    ],
)
def test_published_lists_are_followed_exactly(kind, name, names, tmp_path, small_sets):
    options = {"sizes": (30, 15)} if kind == "vtab" else {}
    task = load(name, path=write_lists(tmp_path, kind), **options)
    assert task.class_names == names
    for split in COUNTS:
        assert [(y, n) for y, n, _ in contents(task)[split]] == examples_of(split)


def write_aircraft(folder):
    """As the archive has it: numbers and variants in lines, pictures in one folder; names have spaces and slashes."""
    names = ("707-320", "DC-9-30", "F/A-18")
    (folder / "images").mkdir()
    (folder / "variants.txt").write_text("".join(f"{name}\n" for name in names))
    for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
        lines = []
        for label, number in examples_of(split):
            square(label, number).save(folder / "images" / f"{number:07}.jpg", format="PNG")
            lines.append(f"{number:07} {names[label]}\n")
        (folder / f"images_variant_{short}.txt").write_text("".join(lines))
    return names


def test_aircrafts_own_lists_are_followed(tmp_path, small_sets):
    names = write_aircraft(tmp_path)
    task = load("coop/aircraft", path=tmp_path)
    assert task.class_names == names
    for split in COUNTS:
        assert [(y, n) for y, n, _ in contents(task)[split]] == examples_of(split)
    (tmp_path / "images_variant_val.txt").write_text("0000050 DC-10\n")
    with pytest.raises(
        ValueError, match="images_variant_val.txt has 'DC-10', expected a name out of variants"
    ):
        load("coop/aircraft", path=tmp_path)


def test_imagenet_lies_as_coop_wants_it_and_its_validation_set_is_the_test(tmp_path, small_sets):
    numbers = ("n01440764", "n01443537", "n01484850")
    words = ("tench", "goldfish", "great white shark")
    for split, place in (("train", "train"), ("test", "val")):
        for label, number in examples_of(split):
            folder = tmp_path / "images" / place / numbers[label]
            folder.mkdir(parents=True, exist_ok=True)
            square(label, number).save(folder / f"{number:03}.png")
    (tmp_path / "classnames.txt").write_text("".join(f"{n} {w}\n" for n, w in zip(numbers, words)))
    task = load("coop/imagenet", path=tmp_path)
    assert task.class_names == words
    found = {split: sorted((y, n) for y, n, _ in rows) for split, rows in contents(task).items()}
    assert found["test"] == sorted(examples_of("test"))
    assert sorted(found["train"] + found["validation"]) == sorted(examples_of("train"))
    assert len(found["validation"]) == 6  # a fifth of each class


def test_a_list_whose_images_are_missing(tmp_path):
    write_lists(tmp_path, "coop")
    (tmp_path / "jpg").rename(tmp_path / "jpg2")
    assert split_lists.from_lists(tmp_path) is not None  # any one folder in it will do
    content = json.loads((tmp_path / "split_zhou_Made.json").read_text())
    content["train"][0][0] = "nowhere.png"
    (tmp_path / "split_zhou_Made.json").write_text(json.dumps(content))
    with pytest.raises(
        FileNotFoundError, match="'nowhere.png', the first of split_zhou_Made.json, is not there"
    ):
        load("coop/dtd", path=tmp_path)


# --- the hub -------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the hub: keeps the calls, answers with what a test puts in."""
    state = {"calls": [], "tables": {split: table_of(split) for split in ("train", "test")}}

    def load_dataset(repository, config=None, **options):
        state["calls"].append((repository, config, options))
        if isinstance(state["tables"], Exception):
            raise state["tables"]
        return datasets.DatasetDict(state["tables"])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return state


def test_the_hub_entry_of_the_table_is_used(hub, small_sets):
    table = hub["tables"]
    hub["tables"] = {s: t.rename_columns({"image": "img", "label": "fine_label"}) for s, t in table.items()}
    task = load("vtab/cifar100", sizes=(12, 6))
    assert hub["calls"] == [("uoft-cs/cifar100", None, {"revision": None, "cache_dir": None})]
    assert task.source.startswith("vtab/cifar100 from the hub, uoft-cs/cifar100, 12 train")
    assert len(task.splits["test"]) == 12


def test_the_table_can_be_overridden(hub, small_sets, monkeypatch):
    entry = Hub("me/mine", "small", splits={"train": "train", "test": "validation"}, revision="abc")
    hub["tables"]["validation"] = hub["tables"].pop("test")
    monkeypatch.setitem(HUB, "coop/cars", entry)
    first, second = load("coop/cars"), load("coop/aircraft", hub=entry)
    assert hub["calls"] == [("me/mine", "small", {"revision": "abc", "cache_dir": None})] * 2
    assert contents(first) == contents(second) and numbers(first)["test"] == of("test")
    load("coop/imagenet")
    assert hub["calls"][-1][0] == "ILSVRC/imagenet-1k"
    hub["tables"]["test"] = hub["tables"]["validation"]
    load("coop/aircraft", hub="you/yours", cache_dir="cache")
    assert hub["calls"][-1] == ("you/yours", None, {"revision": None, "cache_dir": "cache"})


def test_a_set_without_a_recorded_repository_says_so(hub):
    with pytest.raises(
        ValueError, match=r"vtab/dmlab: no hub repository is recorded .* expected hub='owner/"
    ):
        load("vtab/dmlab")
    assert not hub["calls"]


def test_without_a_connection_the_error_offers_local_files(hub):
    hub["tables"] = OSError("no network")
    with pytest.raises(ConnectionError, match=r"'tanganke/dtd' \(OSError: no network\).*pass path="):
        load("coop/dtd")


def test_labels_that_are_kept_back(hub, small_sets):
    hub["tables"]["test"] = table_of("test", datasets.Value("int64")).map(lambda row: {"label": -1})
    with pytest.raises(ValueError, match=r"test, row 0: label -1: expected an integer .* kept back"):
        load("coop/cars", hub="me/mine")


def test_other_data_than_the_benchmarks_is_named(tmp_path):
    with pytest.warns(UserWarning, match="vtab/dtd: .* 3 classes, .* 47, 12 test examples, .* 1880"):
        task = load("vtab/dtd", path=write_folders(tmp_path / "data"), sizes=(12, 6))
    assert "12 test examples, the benchmark has 1880" in task.source


# --- names and facts -----------------------------------------------------------------------------------------


def test_there_are_19_and_5_and_11_sets():
    assert [len(names(family)) for family in ("vtab", "fgvc", "coop")] == [19, 5, 11]
    offline = ("images/digits", "images/icons", "images/icons-style", "images/icons-classes")
    assert names("images") == (*offline, "images/folder")
    assert len(set(names())) == len(names()) and set(HUB) <= set(BENCHMARKS)
    assert all(name.startswith("vtab/") for name in names("vtab"))


def test_benchmarks_are_those_of_the_published_code():
    classes = {
        name.partition("/")[2]: benchmark.classes for name, benchmark in BENCHMARKS.items() if "coop" in name
    }
    assert classes == {
        "imagenet": 1000,
        "caltech101": 100,
        "pets": 37,
        "cars": 196,
        "flowers102": 102,
        "food101": 101,
        "aircraft": 100,
        "sun397": 397,
        "dtd": 47,
        "eurosat": 10,
        "ucf101": 101,
    }
    assert BENCHMARKS["coop/pets"].template.format("beagle") == "a photo of a beagle, a type of pet."
    assert BENCHMARKS["coop/ucf101"].template.format("Archery") == "a photo of a person doing Archery."
    assert all(benchmark.test for name, benchmark in BENCHMARKS.items() if name.startswith("vtab/"))
    assert {name for name, benchmark in BENCHMARKS.items() if benchmark.pooled} == {
        f"coop/{key}" for key in ("caltech101", "flowers102", "food101", "dtd", "eurosat")
    }
    assert sum(len(benchmark.renamed) for benchmark in BENCHMARKS.values()) == 12


# --- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": {"test": make_split([0, 1])}}, r"splits=\['test'\]: expected one named 'train'"),
        ({"splits": {"train": make_split([])}}, "split 'train' is empty: expected at least one example"),
        (
            {"splits": {"train": make_split([0, 5])}},
            r"example 1 of split 'train': label 5: expected an int in",
        ),
        (
            {"class_names": ("only",), "splits": {"train": make_split([0])}},
            "expected two or more distinct names",
        ),
        ({"class_names": ("a", "", "c", "d", "e")}, "class name '': expected text"),
        ({"metric": "bleu"}, "metric='bleu': expected one of"),
        ({"metric": "f1a_em"}, "no 'group'"),
        ({"template": "a photo"}, "template='a photo': expected a format string with one place"),
        ({"template": "a {name}"}, "expected a format string with one place"),
        ({"new_names": ("x", "y")}, "2 new_names: expected 'test_new' and new names together or neither"),
    ],
)
def test_a_bad_task_is_refused_when_it_is_made(changes, message):
    with pytest.raises(ValueError, match=f"made/up: .*{message}"):
        make_task(**changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.examples("dev"), r"split='dev': expected one of \['train', .* \(data: made up\)"),
        (lambda t: t.encode(PROCESSOR, "dev"), "split='dev': expected one of"),
        (lambda t: t.captions("test_new"), "split='test_new': expected one of"),
        (lambda t: t.captions(template="no place"), "template='no place': expected"),
        (lambda t: t.few_shot(7, 0), r"per_label=7: expected at most 6, .* label '0 kind_0'"),
        (lambda t: t.few_shot(0, 0), "per_label=0: expected an integer of at least 1"),
        (lambda t: t.few_shot(1, 0, validation=9), "per_label=9: expected at most 6"),
        (lambda t: t.score("test", [0]), "1 predictions: expected 30"),
        (lambda t: t.score("test", [5] * 30), r"predictions\[0\]=5: expected a label index in 0\.\.4"),
        (lambda t: t.base_to_new().base_to_new(), "new_names=.*: expected a task not split yet"),
        (lambda t: make_task(3).base_to_new(), "3 classes: expected at least 4"),
        (
            lambda t: make_task(splits={"train": t.splits["train"]}).base_to_new(),
            "split='test': expected one",
        ),
        (lambda t: load("images/letters"), r"name='images/letters': expected one of \['images/digits'"),
        (lambda t: load("vtab/mnist"), r"name='vtab/mnist': expected one of \['vtab/caltech101'"),
        (lambda t: load("coop/dtd", path="x", hub="y/z"), "path='x' and hub='y/z': expected one of them"),
        (lambda t: load("coop/dtd", hub=3), "hub=3: expected the name of a repository"),
        (lambda t: load("coop/dtd", sizes=(8, 2)), r"sizes=\(8, 2\): expected None"),
        (lambda t: load("vtab/dtd", sizes=(8, 0)), r"sizes=\(8, 0\): expected two integers"),
        (lambda t: load("vtab/dtd", sizes=8), "sizes=8: expected two integers"),
    ],
)
def test_a_bad_call_names_the_argument_and_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_task())


def test_bad_folders_are_named(tmp_path, small_sets):
    with pytest.raises(FileNotFoundError, match=r"path='.*nowhere': expected a folder with images"):
        load("coop/dtd", path=tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError, match="no image in .*: expected images in one folder for each class"
    ):
        load("coop/dtd", path=tmp_path)
    square(0, 0).save(tmp_path / "loose.png")
    with pytest.raises(
        FileNotFoundError, match="loose.png in .*: expected images in one folder for each class"
    ):
        load("coop/dtd", path=tmp_path)
    (tmp_path / "loose.png").unlink()
    write_folders(tmp_path, ("train",))
    with pytest.raises(ValueError, match=r"coop/cars: the data has splits \['train'\], lacks \['test'\]"):
        load("coop/cars", path=tmp_path)
    with pytest.raises(
        ValueError, match=r"class_names has 2 names: expected 3, one for each label \(ash, elm, fir"
    ):
        load("coop/dtd", path=tmp_path, class_names=("a", "b"))


def test_a_benchmark_needs_no_options():
    assert Benchmark(3) == Benchmark(3, None, "a photo of a {}.", False, (), {})


def test_folders_of_imagenet_get_their_words_from_coops_list(tmp_path):
    """A folder is called n01440764; texts need "tench". Without the list, or with one that lacks a folder, an error."""
    names = {
        "n01440764": "tench",
        "n01443537": "goldfish, gold",
        "n01484850": "great white shark",
        "n01491361": "x",
    }
    for split in ("train", "test"):
        for number in names:
            folder = tmp_path / split / number
            folder.mkdir(parents=True)
            for picture in "abcdef":
                Image.new("RGB", (8, 8)).save(folder / f"{picture}.png")

    def loaded():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # four classes are not the benchmark's thousand
            return load("coop/imagenet", path=tmp_path)

    with pytest.raises(ValueError, match="classes are called 'n01440764', which no text encoder knows"):
        loaded()
    (tmp_path / "classnames.txt").write_text("".join(f"{number} {word}\n" for number, word in names.items()))
    assert list(loaded().class_names) == list(names.values())
    (tmp_path / "classnames.txt").write_text("n01440764 tench\n")
    with pytest.raises(ValueError, match="classnames.txt has no name for 'n01443537'"):
        loaded()
