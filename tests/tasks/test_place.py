"""The place tasks: right by an independent reading of the texts, balanced, and types that words tell or do not tell."""

import re
from collections import defaultdict

import numpy as np
import pytest
import torch

from dplearn import tasks
from dplearn.tasks import place, world, world_scenes, world_words

DIGESTS = {
    "place/fixed": "6869fcb82d1a6eea",
    "place/mixed": "5f263eac59741f54",
    "place/xor": "d7fc9ffb5ea39258",
    "place/names": "4c28637e2f9e3406",
    "place/none": "1e2b24a72e29331e",
}
CUED = ("place/mixed", "place/names", "place/none")


def read(text):
    """Independent reading of a text: kind -> the only word of that kind in it."""
    pools = {
        "person": world_words.PEOPLE,
        "colour": world_words.COLOURS,
        "thing": world_words.THINGS,
        "place": world_words.PLACES,
    }
    words = re.findall(r"\w+", text)
    found = {kind: [word for word in words if word in pool] for kind, pool in pools.items()}
    assert all(len(values) == 1 for values in found.values()), text
    return {kind: values[0] for kind, values in found.items()}


@pytest.fixture(params=place.NAMES)
def task(request):
    return tasks.load(request.param)


def test_the_data_is_the_recorded_one(task):
    assert world.digest(task.splits["test"]) == DIGESTS[task.name]
    kind = task.name.removeprefix("place/")
    assert place.build(kind, "validation") == task.splits["validation"]


def test_the_label_is_what_the_type_asks_for(task):
    for examples in task.splits.values():
        for example in examples:
            facts = read(task.text(example))
            assert {kind: example[kind] for kind in facts} == facts
            asked = "place" if task.name == "place/none" else ("colour", "person")[example["type"]]
            assert task.words[example["label"]] == facts[asked]


def test_sizes_are_fixed_and_types_balanced(task):
    for split, examples in task.splits.items():
        types = place.types_of(task, split)
        assert len(types) == len(examples) == place.SIZES[split]
        assert sum(types) == (0 if task.name == "place/fixed" else len(types) / 2)


def test_combinations_of_the_splits_are_disjoint(task):
    seen = {
        split: {(e["person"], e["colour"], e["thing"]) for e in task.splits[split]} for split in task.splits
    }
    assert not seen["train"] & (seen["validation"] | seen["test"] | seen["test_wordings"])
    assert not seen["validation"] & (seen["test"] | seen["test_wordings"])
    assert all(world_scenes.part_of(*facts) == "train" for facts in seen["train"])


def test_held_out_wordings_occur_in_no_other_split(task):
    def forms(split):
        told = (({e[kind] for kind in read(task.text(e))}, task.text(e)) for e in task.splits[split][:500])
        return {" ".join("_" if word in facts else word for word in text.split()) for facts, text in told}

    assert len(forms("train")) == 12 and forms("test") <= forms("train")
    assert len(forms("test_wordings")) == 4 and not forms("test_wordings") & forms("train")


def shares(task, split):
    """word -> types of the texts that it stands in."""
    found = defaultdict(list)
    for example in task.splits[split]:
        for word in set(re.findall(r"\w+", task.text(example))):
            found[word].append(example["type"])
    return found


def test_no_word_tells_the_type_of_an_exclusive_or():
    task = tasks.load("place/xor")
    for split in task.splits:
        assert {np.mean(types) for types in shares(task, split).values()} == {0.5}
    table = defaultdict(set)
    for example in task.splits["test"]:
        signs = example["thing"] in place.THINGS_BEHIND, example["place"] in place.PLACES_BEHIND
        table[signs].add(example["type"])
    assert table == {(False, False): {0}, (True, True): {0}, (False, True): {1}, (True, False): {1}}


def linear_rule(task):
    """Share of test types that a linear rule on word counts finds (cross-entropy, as a linear controller)."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    counter = CountVectorizer(token_pattern=r"\S+")
    texts = {split: [task.text(e) for e in task.splits[split]] for split in ("train", "test")}
    rule = LogisticRegression(max_iter=1000).fit(
        counter.fit_transform(texts["train"]), place.types_of(task, "train")
    )
    return rule.score(counter.transform(texts["test"]), place.types_of(task, "test"))


def test_a_linear_rule_on_words_finds_the_type_unless_it_is_an_exclusive_or():
    assert all(linear_rule(tasks.load(name)) == 1.0 for name in CUED)
    assert abs(linear_rule(tasks.load("place/xor")) - 0.5) < 0.06


@pytest.mark.parametrize(
    "name, kind, pool",
    [("place/mixed", "place", world_words.PLACES), ("place/names", "person", world_words.PEOPLE), ("place/none", "place", world_words.PLACES)],
)  # fmt: skip
def test_half_of_the_words_tell_the_type(name, kind, pool):
    told = defaultdict(set)
    for split in ("train", "test"):
        for example in tasks.load(name).splits[split]:
            told[example[kind]].add(example["type"])
    assert set(told) == set(pool) and all(len(types) == 1 for types in told.values())
    assert sum(types == {1} for types in told.values()) == len(pool) // 2


def test_one_split_is_right_and_all_are_where_the_place_says_nothing():
    assert [place.right_splits("place/xor", kind, 8) for kind in (0, 1)] == [(8,), (0,)]
    assert place.right_splits("place/fixed", 0, 1) == (1,)
    assert place.right_splits("place/none", 1, 2) == (0, 1, 2)
    assert place.share_right(
        "place/names", torch.tensor([0, 1, 1]), torch.tensor([4, 0, 4]), 4
    ) == pytest.approx(2 / 3)
    assert place.share_right("place/none", [0, 1], [3, 1], 4) == 1.0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: place.right_splits("world/rte", 0, 1), "name='world/rte': expected one of"),
        (lambda: place.right_splits("place/xor", 2, 1), "example_type=2 is not valid, expected 0"),
        (lambda: place.right_splits("place/xor", True, 1), "example_type=True is not valid"),
        (lambda: place.right_splits("place/xor", 0, 0), "length=0 is not valid, expected an integer of at least 1"),
        (lambda: place.share_right("place/xor", [0, 1], [1], 1), "splits has 1 values and types 2"),
        (lambda: place.share_right("place/xor", [0], [2], 1), r"splits=2 is not valid, expected splits in 0\.\.1"),
        (lambda: tasks.load("place/many"), "name='place/many': expected one of"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_label_words_are_tokens_of_both_tokenizers_and_a_loss_takes_them(task):
    import dplearn as dp

    for name in ("place-mini", "t5-mini"):
        tokenizer = dp.zoo.load(name)[1]
        ids = task.word_ids(tokenizer)
        rows = task.encode(tokenizer, "test", answer_prefix=dp.zoo.ANSWER_PREFIX)
        assert tokenizer.unk_token_id not in {i for row in rows for i in row["input_ids"]}
        targets = dp.LabelWordLoss(ids).targets(torch.tensor([row["labels"] for row in rows]))
        assert targets.tolist() == [example["label"] for example in task.splits["test"]]
