"""Real-text tasks: what counts as prose, how signatures are read, disjoint splits, labels, the recorded hash."""

import warnings

import pytest

from dplearn import tasks
from dplearn.tasks import documentation as docs

SOURCE = '''
def max_pool2d(inputs, kernel_size, *, strideLength=1):
    """Pool the inputs by their largest value in `windows`.

    The windows do not overlap unless a stride is given, and each gives one number.

    >>> max_pool2d(1, 2)

    This paragraph stands after a doctest and is not counted as following.
    """


def _private():
    """This is private and must not be found at all."""


class LinearModel:
    """A linear model that is fitted by least squares."""

    def __init__(self, alpha):
        pass
'''


def test_entries_are_public_and_hold_signature_summary_and_following_prose():
    pool, model = docs.entries_of(SOURCE)
    assert pool["signature"] == "max pool 2 d ( inputs , kernel size , stride length )"
    assert pool["summary"] == "Pool the inputs by their largest value in windows ."
    assert len(pool["passages"]) == 2 and pool["passages"][1].startswith("The windows do not overlap")
    assert model["signature"] == "linear model ( alpha )"


@pytest.mark.parametrize(
    "name, words",
    [
        ("max_pool2d", "max pool 2 d"),
        ("MaxPool2d", "max pool 2 d"),
        ("HTMLParser", "html parser"),
        ("x", "x"),
    ],
)
def test_identifiers_become_words(name, words):
    assert docs.split_name(name) == words


@pytest.mark.parametrize(
    "paragraph, expected",
    [
        ("This is a plain sentence of running text here.", True),
        (">>> this is a doctest and not a sentence at all", False),
        ("- a list item with quite a few words in it", False),
        ("x : int\n    The value that is used for all of it.", False),
        ("Too short.", False),
        ("Parameters\n----------", False),
    ],
)
def test_prose_is_told_from_markup(paragraph, expected):
    assert docs.prose(paragraph) == expected


def test_markup_is_taken_out():
    assert docs.plain("See :func:`~a.b` and *this* `link <http://x.y>`_ now") == "See a.b and this link now"


def test_the_installed_data_is_the_recorded_one_or_a_warning_shows_both_hashes(monkeypatch):
    found = docs.data_hash("networkx")
    monkeypatch.setitem(docs.RECORDED, "networkx", ("0.0", found))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert docs.check_recorded("networkx") == found
    monkeypatch.setitem(docs.RECORDED, "networkx", ("0.0", "0" * 16))
    with pytest.warns(UserWarning, match=rf"{found}.*version 0.0 with data {'0' * 16}"):
        docs.check_recorded("networkx")


def test_a_missing_library_is_named_with_its_package(monkeypatch):
    monkeypatch.setattr(docs.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        docs.sources("sklearn", ())


def test_task_and_pretraining_libraries_are_apart():
    assert not set(docs.TASK_LIBRARIES) & set(docs.PRETRAINING_LIBRARIES)


@pytest.mark.parametrize("name", docs.NAMES)
def test_splits_are_balanced_and_share_no_text(name):
    task = tasks.load(name)
    texts = {}
    for split, examples in task.splits.items():
        counts = [sum(e["label"] == label for e in examples) for label in range(len(task.labels))]
        assert max(counts) - min(counts) <= 1 and len(examples) >= 100
        texts[split] = {
            e["passage"] if name == "docs/library" else (e[task.fields[0]], e[task.fields[1]])
            for e in examples
        }
    if (
        name != "docs/library"
    ):  # the same sentence may stand in two modules' docstrings, whole examples may not
        assert not texts["train"] & texts["test"] and not texts["validation"] & texts["test"]


def test_signature_labels_follow_from_the_sources():
    pairs = {
        (e["signature"], e["summary"])
        for split in docs.SIZES
        for found in docs.entries(split).values()
        for e in found
    }
    for example in tasks.load("docs/signature").splits["test"]:
        assert ((example["signature"], example["summary"]) in pairs) == (example["label"] == 1)


def test_next_labels_follow_from_the_sources():
    neighbours = set()
    for found in docs.entries("test").values():
        for entry in found:
            neighbours |= set(zip(entry["passages"], entry["passages"][1:], strict=False))
    wrong = [
        example
        for example in tasks.load("docs/next").splits["test"]
        if ((example["first"], example["second"]) in neighbours) != (example["label"] == 1)
    ]
    assert len(wrong) <= 2  # a stock phrase may really follow in another docstring


def test_library_passages_do_not_name_the_library():
    for example in tasks.load("docs/library").splits["test"]:
        words = example["passage"].lower().replace(".", " ").split()
        assert not {"networkx", "sklearn", "scikit-learn", "scipy"} & set(words)


def test_nothing_is_imported():
    """The sources are parsed: `ast` sees a file that would fail on import."""
    assert (
        docs.entries_of(
            'import nothing_like_this\n\n\ndef f(a):\n    """Return the value of a as it is."""\n'
        )[0]["name"]
        == "f"
    )


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="name='docs/none': expected one of"):
        docs.load("docs/none")
