"""Images of one's own as a task: folders and lists against naive reading, what an image task can do, and errors."""

import os
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from dplearn.experiments.execution import load_task
from dplearn.tasks import ImageTask, image_folder, image_lists
from dplearn.tasks.images import divide

PROCESSOR = ViTImageProcessorPil(size={"height": 28, "width": 28})
KINDS = ("ash", "elm", "fir", "oak")
COUNTS = {"train": 10, "validation": 5, "test": 4}  # images of each class


def picture(label, number):
    """A 6 x 6 image, different for each label and number, with nothing lost by PNG."""
    pixels = np.full((6, 6, 3), (20 * label, 10, 90), np.uint8)
    pixels[0, 0] = number
    return pixels


def write(folder, splits, per_class=COUNTS):
    """Class folders in split folders ("" is none); image n of class c has the label and the number in its pixels."""
    number = 0
    for split in splits:
        for label, kind in enumerate(KINDS):
            root = folder / split / kind
            root.mkdir(parents=True, exist_ok=True)
            for _ in range(per_class.get(split or "train")):
                Image.fromarray(picture(label, number)).save(root / f"{number:03}.png")
                number += 1
    return folder


def read(root):
    """The images of class folders, read by hand: [(label, pixels)] in the order of the paths."""
    kinds = sorted(entry.name for entry in os.scandir(root))
    return [
        (kinds.index(kind), np.asarray(Image.open(Path(root) / kind / file)).tolist())
        for kind in kinds
        for file in sorted(os.listdir(Path(root) / kind))
    ]


def contents(task):
    return {
        split: [(e["label"], np.asarray(e["image"]).tolist()) for e in examples]
        for split, examples in task.splits.items()
    }


# --- folders ---


@pytest.mark.parametrize("called", ["validation", "val", "valid", "dev"])
def test_folders_of_splits_are_taken_as_they_are(called, tmp_path):
    write(tmp_path, ("train", called, "test"), COUNTS | {called: 5})
    task = image_folder(tmp_path)
    assert isinstance(task, ImageTask) and task.class_names == KINDS
    assert contents(task) == {
        "train": read(tmp_path / "train"), "validation": read(tmp_path / called), "test": read(tmp_path / "test"),
    }  # fmt: skip
    assert task.source.startswith("local folders, splits of the data, names and labels sha256 ")
    assert task.name == f"own/{tmp_path.name}" and str(tmp_path) not in task.source


def test_class_folders_alone_are_divided_by_class(tmp_path):
    write(tmp_path, ("",))
    task, everything = image_folder(tmp_path, validation=0.3, test=0.2, seed=4), read(tmp_path)
    assert list(task.splits) == ["train", "validation", "test"]
    expected = divide([label for label, _ in everything], {"validation": 0.3, "test": 0.2}, "train", 4)
    assert contents(task) == {split: [everything[i] for i in expected[split]] for split in task.splits}
    for split, count in (("train", 5), ("validation", 3), ("test", 2)):
        assert Counter(task.splits[split].labels) == dict.fromkeys(range(4), count)
    other = image_folder(tmp_path, validation=0.3, test=0.2, seed=5)
    assert contents(other) != contents(task)
    assert contents(image_folder(tmp_path, validation=0.3, test=0.2, seed=4)) == contents(task)
    assert "validation 30%, test 20% of train by class, seed 4" in task.source


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, {"train": 32, "validation": 8, "test": 16}),
        ({"validation": 0}, {"train": 40, "test": 16}),
        ({"test": 0.5}, {"train": 32, "validation": 8, "test": 16}),  # the folder's own test set
    ],
)
def test_a_split_that_the_folder_lacks_is_divided_off(options, sizes, tmp_path):
    write(tmp_path, ("train", "test"))
    task = image_folder(tmp_path, **options)
    assert {split: len(examples) for split, examples in task.splits.items()} == sizes
    found = contents(task)
    assert found["test"] == read(tmp_path / "test")
    assert sorted(found["train"] + found.get("validation", [])) == sorted(read(tmp_path / "train"))


def test_folders_are_read_as_datasets_reads_them(tmp_path):
    write(tmp_path / "data", ("train", "test"))
    task = image_folder(tmp_path / "data", validation=0)
    tables = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache")
    )
    assert tables["train"].features["label"].names == list(task.class_names)
    for split, rows in contents(task).items():
        expected = [(row["label"], np.asarray(row["image"]).tolist()) for row in tables[split]]
        assert sorted(rows) == sorted(expected)


def test_a_class_may_be_called_train(tmp_path):
    for kind in ("bus", "train"):
        (tmp_path / kind).mkdir()
        for number in range(4):
            Image.fromarray(picture(1, number)).save(tmp_path / kind / f"{number}.png")
    task = image_folder(tmp_path, validation=0, test=0.25)
    assert task.class_names == ("bus", "train") and len(task.splits["train"]) == 6


def test_hidden_files_and_files_of_other_kinds_are_no_images(tmp_path):
    write(tmp_path, ("",))
    (tmp_path / "ash" / "._000.png").write_bytes(b"not an image")
    (tmp_path / "ash" / "notes.txt").write_text("")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "a.png").write_bytes(b"not an image")
    task = image_folder(tmp_path, validation=0, test=0)
    assert task.class_names == KINDS and len(task.splits["train"]) == 40


def test_folders_in_class_folders_are_classes(tmp_path):
    for kind in ("a/one", "a/two"):
        (tmp_path / kind).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(picture(1, number)).save(tmp_path / kind / f"{number}.JPG")
    assert image_folder(tmp_path, validation=0).class_names == ("a/one", "a/two")


def test_classes_can_have_other_names(tmp_path):
    names = ("Ash", "Elm", "Fir", "Oak")
    task = image_folder(
        write(tmp_path, ("",)), class_names=names, template="leaf of a {}", metric="mean_per_class", name="x"
    )
    assert task.class_names == names and task.captions()[0] == "leaf of a Ash" and task.name == "x"
    assert next(iter(task.score("test", task.splits["test"].labels))) == "mean_per_class"
    with pytest.raises(
        ValueError, match=r"class_names has 2 names: expected 4, one for each class \(ash, elm"
    ):
        image_folder(tmp_path, class_names=("a", "b"))


# --- lists ---


def forms(tmp_path):
    """The same twelve images as arrays, an array of all, PIL images, and paths."""
    arrays = [picture(number % 4, number) for number in range(12)]
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for path, pixels in zip(paths, arrays):
        Image.fromarray(pixels).save(path)
    return {
        "arrays": arrays,
        "one array": np.stack(arrays),
        "images": [Image.fromarray(pixels) for pixels in arrays],
        "paths": paths,
        "strings": [str(path) for path in paths],
        "of all kinds": [*arrays[:4], *paths[4:8], *map(Image.fromarray, arrays[8:])],
    }


@pytest.mark.parametrize(
    "labels",
    [
        [n % 4 for n in range(12)],
        [KINDS[n % 4] for n in range(12)],
        np.arange(12) % 4,
        torch.arange(12) % 4,
        np.array([KINDS[n % 4] for n in range(12)]),
    ],
)
def test_lists_of_all_kinds_are_the_same_task(labels, tmp_path):
    expected = [(n % 4, picture(n % 4, n).tolist()) for n in range(12)]
    parts = divide([n % 4 for n in range(12)], {"validation": 0.34, "test": 0.33}, "train", 2)
    for images in forms(tmp_path).values():
        task = image_lists(images, labels, class_names=KINDS, validation=0.34, test=0.33, seed=2)
        assert task.class_names == KINDS
        assert contents(task) == {split: [expected[i] for i in parts[split]] for split in parts}


def test_classes_are_in_label_order():
    pixels = np.zeros((4, 5, 5), np.uint8)
    options = {"validation": 0, "test": 0}
    assert image_lists(pixels, ["b", "a", "b", "a"], **options).splits["train"].labels == (1, 0, 1, 0)
    assert image_lists(pixels, ["b", "a", "b", "a"], ["b", "a"], **options).splits["train"].labels == (
        0,
        1,
        0,
        1,
    )
    assert image_lists(pixels, [0, 2, 1, 2], **options).class_names == ("0", "1", "2")
    assert image_lists(pixels, [0, 2, 1, 2], list("xyz"), **options).class_names == ("x", "y", "z")


def test_lists_for_each_split_are_taken_as_they_are(tmp_path):
    images = {
        split: [picture(n % 2, 10 * i + n) for n in range(4)] for i, split in enumerate(("test", "train"))
    }
    labels = dict.fromkeys(images, ["elm", "ash", "elm", "ash"])
    task = image_lists(images, labels, validation=0)
    assert list(task.splits) == ["train", "test"] and task.class_names == ("ash", "elm")
    for split, some in images.items():
        assert contents(task)[split] == [(1 - n % 2, some[n].tolist()) for n in range(4)]


def test_files_are_opened_when_they_are_asked_for(tmp_path):
    paths = forms(tmp_path)["paths"]
    task = image_lists(paths, [n % 4 for n in range(12)])
    paths[0].unlink()
    missing = [n for split in task.splits.values() for n in split.rows].count(0)
    assert missing == 1
    with pytest.raises(FileNotFoundError):
        contents(task)


# --- what an image task does ---


def test_all_that_an_image_task_does(tmp_path):
    task = image_folder(write(tmp_path, ("",)), template="a {} tree")
    small = task.few_shot(2, seed=1, validation=1)
    assert Counter(small.splits["train"].labels) == dict.fromkeys(range(4), 2)
    halves = small.base_to_new()
    assert halves.class_names == ("ash", "elm") and halves.new_names == ("fir", "oak")
    assert halves.captions("test_new") == ["a fir tree", "a oak tree"]
    assert halves.score_base_to_new([0, 1, 0, 1], [0, 0, 0, 0])["new"] == 0.5
    encoded, example = task.encode(PROCESSOR, "test"), task.splits["test"][3]
    by_hand = PROCESSOR(images=example["image"], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(encoded[3]["pixel_values"], by_hand) and encoded[3]["labels"] == example["label"]
    assert task.score("test", task.splits["test"].labels)["accuracy"] == 1


# --- errors ---

ONE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([ONE], [0, 1]), {}, "train: 2 labels for 1 images: expected one for each"),
        (([], []), {}, "train: 0 labels for 0 images: expected one for each, and at least one"),
        (([ONE, 3], [0, 1]), {}, r"train: images\[1\] of type int: expected a PIL image or a uint8 array"),
        (([ONE, ONE / 2], [0, 1]), {}, r"images\[1\] of shape .* dtype float64: expected a uint8 array"),
        (([ONE] * 2, [0, -1]), {}, "labels, train, row 1: label -1: expected an integer of at least 0"),
        (([ONE] * 2, [0, "a"]), {}, "labels, train, row 1: label 'a': expected an integer"),
        (([ONE] * 2, [0, 1.0]), {}, "label 1.0: expected an integer"),
        (([ONE] * 2, ["a", "c"], ["a", "b"]), {}, "labels has 'c': expected one of class_names="),
        (([ONE] * 2, ["a", "b"], ["a", "a", "b"]), {}, "expected names that differ"),
        (([ONE] * 2, [0, 2], ["a", "b"]), {}, "labels has 2: expected at most 1, there are 2 class_names"),
        (({"train": [ONE]}, [0]), {}, "images is a dict and labels a list: expected two lists"),
        (({"test": [ONE]}, {"test": [0]}), {}, r"images has splits \['test'\] .* 'train' among them"),
        (({"train": [ONE], "dev": [ONE]}, {"train": [0], "dev": [0]}), {}, r"expected the same of \['train'"),
        (({"train": [ONE], "test": [ONE]}, {"train": [0]}), {}, "labels .'train'.: expected the same"),
        (([ONE] * 2, [0, 1]), {"validation": 1}, "validation=1: expected a share of at least 0 and below 1"),
        (([ONE] * 2, [0, 1]), {"test": -0.1}, "test=-0.1: expected a share"),
        (([ONE] * 2, [0, 1]), {"test": "0.1"}, "test='0.1': expected a share"),
        (([ONE] * 2, [0, 1]), {"validation": 0.5, "test": 0.5}, "expected shares whose sum is below 1"),
        (([ONE] * 2, [0, 1]), {"seed": -1}, "seed=-1 is not valid, expected an integer of at least 0"),
        (([ONE] * 2, [0, 1]), {}, "validation=0.2, test=0.2 leaves no image for validation: expected more"),
        (([ONE] * 2, [0, 1]), {"test": 0, "validation": 0.9}, "leaves no image for train"),
        (([ONE] * 9, [0] * 9), {}, "expected two or more distinct names"),
        (([ONE] * 9, [0, 1, 2] * 3), {"template": "a cat"}, "template='a cat': expected a format string"),
        (([ONE] * 15, [0, 1, 2] * 5), {"metric": "bleu"}, "metric='bleu': expected one of"),
    ],
)
def test_bad_lists_are_refused_by_name(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        image_lists(*arguments, **options)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"train: images\[1\]='nowhere.png': expected a file"):
        image_lists([ONE, "nowhere.png"], [0, 1])


def test_bad_folders_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="path='nowhere': expected a folder with images"):
        image_folder("nowhere")
    with pytest.raises(
        FileNotFoundError, match="no image in .*: expected images in one folder for each class"
    ):
        image_folder(tmp_path)
    (tmp_path / "test" / "ash").mkdir(parents=True)
    Image.fromarray(ONE).save(tmp_path / "test" / "ash" / "1.png")
    with pytest.raises(
        ValueError, match=r"folders of the splits \['test'\]: expected one called 'train' too"
    ):
        image_folder(tmp_path)
    write(tmp_path, ("train", ""))
    with pytest.raises(
        ValueError, match=r"has \['ash', 'elm', 'fir', 'oak'\] beside folders of splits, .'test', 't"
    ):
        image_folder(tmp_path)
    more = write(tmp_path / "more", ("",))
    Image.fromarray(ONE).save(more / "loose.png")
    with pytest.raises(
        FileNotFoundError, match="loose.png in .*: expected images in one folder for each class"
    ):
        image_folder(more)


def test_a_folder_is_a_task_of_a_study_too(tmp_path, monkeypatch):
    """By name, as a study's file has it; without a draw, `validation` is the share of the division."""
    monkeypatch.setenv("PICTURES", str(write(tmp_path / "pictures", [""])))
    task = load_task("images/folder?path=$PICTURES&validation=0.3&test=0.2&seed=4&template=a sketch of a {}.")
    own = image_folder(tmp_path / "pictures", validation=0.3, test=0.2, seed=4, template="a sketch of a {}.")
    assert contents(task) == contents(own) and task.template == own.template and task.source == own.source
    drawn = load_task("images/folder?path=$PICTURES&shots=2&validation=1&draw=3")
    assert contents(drawn) == contents(image_folder(tmp_path / "pictures").few_shot(2, 3, validation=1))
    with pytest.raises(FileNotFoundError, match="expected a folder with images"):
        load_task("images/folder?path=" + str(tmp_path / "none"))
    with pytest.raises(ValueError, match="images/folder: no path, expected that of a folder"):
        load_task("images/folder")
    with pytest.raises(ValueError, match="option .shade. is unknown, expected some of"):
        load_task("images/folder?path=$PICTURES&shade=dark")
