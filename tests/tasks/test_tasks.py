"""The task interface: templates, label words, encoding with truncation, few-shot draws, metrics and names."""

import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import dplearn.tasks
from dplearn.tasks.base import Task
from dplearn.tasks.encoding import cut, template_fields
from dplearn.tasks.metrics import METRICS

WORDS = "yes no maybe question: paragraph: end . a b c dog cat bird".split()


@cache
def make_tokenizer():
    """One token per known word; adds </s>, as T5 does."""
    specials = ["<pad>", "</s>", "<unk>", "<extra_id_0>"]
    vocabulary = {word: i for i, word in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_task(**changes):
    train = [{"q": "dog ?", "p": f"a b c {i}", "label": i % 2, "group": i // 3} for i in range(12)]
    test = [
        {"q": "cat ?", "p": "b", "label": label, "group": group} for label, group in [(1, 0), (0, 0), (1, 1)]
    ]
    fields = {
        "name": "made/up",
        "labels": ("false", "true"),
        "words": ("no", "yes"),
        "template": "question: {q} paragraph: {p} end .",
        "splits": {"train": train, "test": test},
        "metric": "accuracy",
        "source": "made up",
    }
    return Task(**{**fields, **changes})


def test_text_fills_the_template():
    assert (
        make_task().text({"q": "dog ?", "p": "{a} b", "label": 0}) == "question: dog ? paragraph: {a} b end ."
    )


def test_template_fields_in_order_and_once():
    assert template_fields("{b} {a} {b} {{c}}") == ("b", "a")


# --- encoding -----------------------------------------------------------------------------------------------


def test_encode_gives_ids_mask_and_answer():
    tokenizer, task = make_tokenizer(), make_task()
    rows = task.encode(tokenizer, "test", answer_prefix="<extra_id_0>")
    words = "question: cat ? paragraph: b end . </s>".split()
    expected = tokenizer.convert_tokens_to_ids([word if word != "?" else "<unk>" for word in words])
    sentinel, no, yes = tokenizer.convert_tokens_to_ids(["<extra_id_0>", "no", "yes"])
    assert [row["input_ids"] for row in rows] == [expected] * 3
    assert [row["attention_mask"] for row in rows] == [[1] * len(expected)] * 3
    assert [row["labels"] for row in rows] == [[sentinel, yes], [sentinel, no], [sentinel, yes]]


def test_encode_without_a_prefix_has_the_word_alone():
    tokenizer = make_tokenizer()
    labels = [row["labels"] for row in make_task().encode(tokenizer, "test")]
    assert labels == [[tokenizer.convert_tokens_to_ids(word)] for word in ("yes", "no", "yes")]


def test_truncation_cuts_the_longest_field_first():
    tokenizer = make_tokenizer()
    example = {"q": "dog cat", "p": "a b c " * 50, "label": 0}
    task = make_task(splits={"train": [example]})
    (row,) = task.encode(tokenizer, "train", max_length=12)
    expected = "question: dog cat paragraph: a b c a b end . </s>".split()
    assert row["input_ids"] == tokenizer.convert_tokens_to_ids(expected)


field = st.lists(st.sampled_from(["a", "b", "c", "dog", "bird", "unknown"]), min_size=0, max_size=40)


@settings(deadline=None)  # the machine may be busy
@given(question=field, passage=field, max_length=st.integers(5, 60))
def test_truncation_keeps_the_ends_and_uses_the_room(question, passage, max_length):
    """Results fit, template words and </s> stay, fields are starts of what they were, no room is lost."""
    tokenizer = make_tokenizer()
    task = make_task(splits={"train": [{"q": " ".join(question), "p": " ".join(passage), "label": 1}]})
    (row,) = task.encode(tokenizer, "train", max_length=max_length)
    full = 5 + len(question) + len(passage)  # question: paragraph: end . </s>
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert len(tokens) == full if full <= max_length else len(tokens) <= max_length
    assert tokens[0] == "question:" and tokens[-3:] == ["end", ".", "</s>"]
    middle = tokens.index("paragraph:")
    known = [[word if word in WORDS else "<unk>" for word in words] for words in (question, passage)]
    kept = tokens[1:middle], tokens[middle + 1 : -3]
    assert kept[0] == known[0][: len(kept[0])] and kept[1] == known[1][: len(kept[1])]
    if full > max_length:
        assert (
            len(tokens) >= max_length - 1
        )  # both fields may lose a word at the same limit: one place is free
        lengths = [len(" ".join(words[: len(part)])) for words, part in zip((question, passage), kept)]
        for i in (
            0,
            1,
        ):  # a field that was cut is about as long as the other one: words have 7 letters at most
            assert len(kept[i]) == len(known[i]) or lengths[i] + 8 >= lengths[1 - i]


@settings(deadline=None)
@given(text=st.text(alphabet="ab \n", max_size=30), length=st.integers(0, 35))
def test_cut_is_a_start_that_ends_at_a_word(text, length):
    short = cut(text, length)
    assert text.startswith(short) and len(short) <= length
    assert short == text or text[len(short)].isspace() or len(short.split()) <= 1
    words = text[:length].split()
    if len(words) > 1 and length < len(text):  # no whole word is lost that had room
        complete = words if text[length].isspace() or text[length - 1].isspace() else words[:-1]
        assert short.split() == complete


def test_template_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match=r"max_length=4: expected at least 5"):
        make_task().encode(make_tokenizer(), "train", max_length=4)


# --- label words --------------------------------------------------------------------------------------------


def test_word_ids_follow_the_label_order():
    tokenizer = make_tokenizer()
    task = make_task(labels=("x", "y", "z"), words=("maybe", "no", "yes"))
    assert task.word_ids(tokenizer) == tokenizer.convert_tokens_to_ids(["maybe", "no", "yes"])


def test_words_with_the_same_first_token_are_refused():
    task = make_task(words=("a dog", "a cat"))
    with pytest.raises(ValueError, match=r"'a dog' and 'a cat' both start with token"):
        task.word_ids(make_tokenizer())


@pytest.mark.parametrize("words", [("no", "sure"), ("no", "")])
def test_unknown_words_are_refused(words):
    with pytest.raises(ValueError, match="expected text that this tokenizer knows"):
        make_task(words=words).word_ids(make_tokenizer())


# --- few-shot -----------------------------------------------------------------------------------------------


def test_few_shot_counts_seeds_and_leaves_the_rest_alone():
    task = make_task()
    small = task.few_shot(2, seed=3)
    train = small.splits["train"]
    assert sorted(example["label"] for example in train) == [0, 0, 1, 1]
    assert len({id(example) for example in train}) == 4 and all(
        example in task.splits["train"] for example in train
    )
    order = [task.splits["train"].index(example) for example in train]
    assert order == sorted(order)
    assert small.splits["test"] is task.splits["test"] and len(task.splits["train"]) == 12
    assert replace(small, splits=task.splits, source=task.source) == task
    assert small.splits["train"] == task.few_shot(2, seed=3).splits["train"]
    draws = {
        tuple(example["p"] for example in task.few_shot(2, seed=seed).splits["train"]) for seed in range(8)
    }
    assert len(draws) > 4
    assert small.source == "made up; train: 2 per label, seed 3"


def test_few_shot_draws_every_example_about_equally_often():
    task = make_task()
    counts = dict.fromkeys((example["p"] for example in task.splits["train"]), 0)
    for seed in range(600):
        for example in task.few_shot(1, seed=seed).splits["train"]:
            counts[example["p"]] += 1
    assert all(60 <= count <= 145 for count in counts.values())  # 100 expected, standard deviation 9


def test_few_shot_of_more_than_there_is():
    with pytest.raises(ValueError, match=r"per_label=7: expected at most 6, .* label 'false'"):
        make_task().few_shot(7, seed=0)


# --- metrics and scores -------------------------------------------------------------------------------------


def f1_by_hand(labels, predictions, positive):
    hits = sum(a == positive == b for a, b in zip(labels, predictions))
    wrong = sum(a != b and positive in (a, b) for a, b in zip(labels, predictions))
    return 2 * hits / (2 * hits + wrong) if hits + wrong else 0.0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=20))
def test_accuracy_and_macro_f1_by_hand(pairs):
    labels, predictions = zip(*pairs)
    result = METRICS["accuracy_f1"](labels, predictions)
    classes = set(labels) | set(predictions)
    mean = sum(f1_by_hand(labels, predictions, c) for c in classes) / len(classes)
    assert list(result) == ["accuracy", "f1"]
    assert result["accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert result["f1"] == pytest.approx(mean)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=20))
def test_f1a_and_exact_match_by_hand(rows):
    labels, predictions, groups = zip(*rows)
    result = METRICS["f1a_em"](labels, predictions, groups)
    whole = [all(a == b for a, b, g in rows if g == group) for group in set(groups)]
    assert list(result) == ["f1a", "em", "accuracy"]
    assert result["f1a"] == pytest.approx(f1_by_hand(labels, predictions, 1))
    assert result["em"] == pytest.approx(sum(whole) / len(whole))
    assert result["accuracy"] == pytest.approx(sum(a == b for a, b in zip(labels, predictions)) / len(rows))


def test_metrics_on_one_worked_example():
    labels, predictions, groups = [1, 0, 1, 1, 0, 0], [1, 0, 0, 1, 1, 0], ["a", "a", "b", "b", "c", "d"]
    assert METRICS["accuracy"](labels, predictions) == {"accuracy": pytest.approx(4 / 6)}
    assert METRICS["f1a_em"](labels, predictions, groups) == pytest.approx(
        {"f1a": 4 / 6, "em": 0.5, "accuracy": 4 / 6}
    )
    labels, predictions = [0, 0, 1, 2], [0, 1, 1, 1]
    assert METRICS["accuracy_f1"](labels, predictions) == pytest.approx(
        {"accuracy": 0.5, "f1": (2 / 3 + 1 / 2 + 0) / 3}
    )


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor])
def test_score_takes_lists_and_tensors(kind):
    task = make_task(metric="f1a_em")
    assert task.score("test", kind([1, 0, 0])) == pytest.approx({"f1a": 2 / 3, "em": 0.5, "accuracy": 2 / 3})


# --- errors -------------------------------------------------------------------------------------------------

GOOD = {"q": "x", "p": "y", "label": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("one",), "words": ("no",)}, r"labels=\('one',\): expected two or more distinct names"),
        ({"labels": ("x", "x")}, "labels=.*: expected two or more distinct names"),
        ({"words": ("no",)}, r"words=\('no',\): expected one distinct word for each of the labels"),
        ({"words": ("no", "no")}, "words=.*: expected one distinct word"),
        ({"template": "no field"}, "template='no field': expected a format string with named fields"),
        ({"template": "{} and {p}"}, "template=.*: expected a format string with named fields"),
        ({"metric": "bleu"}, r"metric='bleu': expected one of \['accuracy'"),
        ({"splits": {"test": [GOOD]}}, r"splits=\['test'\]: expected one named 'train'"),
        ({"splits": {"train": []}}, "split 'train' is empty: expected at least one example"),
        (
            {"splits": {"train": [GOOD, {"q": "x", "label": 0}]}},
            "example 1 of split 'train': field 'p' is None: exp",
        ),
        ({"splits": {"train": [{**GOOD, "p": 3}]}}, "field 'p' is 3: expected text"),
        ({"splits": {"train": [{**GOOD, "label": 2}]}}, r"label 2: expected an int in 0\.\.1"),
        ({"splits": {"train": [{**GOOD, "label": True}]}}, r"label True: expected an int in 0\.\.1"),
        ({"splits": {"train": [{"q": "x", "p": "y"}]}}, r"label None: expected an int in 0\.\.1"),
        ({"splits": {"train": [GOOD]}, "metric": "f1a_em"}, "no 'group': metric 'f1a_em' expects one"),
    ],
)
def test_a_bad_task_is_refused_when_it_is_made(changes, message):
    with pytest.raises(ValueError, match=f"made/up: .*{message}"):
        make_task(**changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.examples("dev"), r"split='dev': expected one of \['train', 'test'\] \(data: made up\)"),
        (lambda t: t.encode(make_tokenizer(), "dev"), "split='dev': expected one of"),
        (
            lambda t: t.encode(make_tokenizer(), "test", max_length=0),
            "max_length=0: expected an integer of at least",
        ),
        (
            lambda t: t.encode(make_tokenizer(), "test", answer_prefix="huh"),
            "answer_prefix 'huh' .*: expected text",
        ),
        (lambda t: t.text({"q": "x"}), r"example with fields \['q'\] lacks \['p'\]"),
        (lambda t: t.few_shot(0, seed=1), "per_label=0: expected an integer of at least 1"),
        (lambda t: t.few_shot(1.5, seed=1), "per_label=1.5: expected an integer of at least 1"),
        (lambda t: t.score("dev", [1]), "split='dev': expected one of"),
        (
            lambda t: t.score("test", [1, 0]),
            "2 predictions: expected 3, one for each example of split 'test'",
        ),
        (lambda t: t.score("test", [1, 0, 2]), r"predictions\[2\]=2: expected a label index in 0\.\.1"),
        (lambda t: t.score("test", [1, 0, 0.9]), r"predictions\[2\]=0.9: expected a label index"),
        (lambda t: dplearn.tasks.load("superglue"), r"name='superglue': expected one of"),
        (
            lambda t: dplearn.tasks.load("imagenet/cats"),
            "name='imagenet/cats': expected 'family/task' with a family",
        ),
        (lambda t: dplearn.tasks.load(None), "name=None: expected 'family/task'"),
        (
            lambda t: dplearn.tasks.load("superglue/copa"),
            r"name='superglue/copa': expected one of \['superglue/boolq'",
        ),
        (lambda t: dplearn.tasks.names("vision"), "family='vision': expected one of"),
    ],
)
def test_a_bad_call_names_the_argument_and_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_task())


# --- names --------------------------------------------------------------------------------------------------


def test_load_hands_the_options_to_the_family(monkeypatch):
    class Family:
        NAMES = ("toy/one",)

        @staticmethod
        def load(name, **options):
            return name, options

    monkeypatch.setitem(dplearn.tasks.FAMILIES, "toy", "toy_family")
    monkeypatch.setitem(sys.modules, "toy_family", Family)
    assert dplearn.tasks.load("toy/one", seed=3) == ("toy/one", {"seed": 3})
    assert dplearn.tasks.names("toy") == ("toy/one",)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "place/mixed",
            ("Task('place/mixed', 118 labels, train ", "validation ", "test ", "metric 'accuracy')"),
        ),
        ("images/digits", ("ImageTask('images/digits', 10 classes, train ", "test ", "metric 'accuracy")),
    ],
)
def test_a_task_is_shown_in_a_line_without_its_data(name, words):
    task = dplearn.tasks.load(name)
    assert all(part in repr(task) for part in words) and len(repr(task)) < 200
    assert all(f"{split} {len(rows):,}" in repr(task) for split, rows in task.splits.items())
    if name == "images/digits":
        halves = task.base_to_new()
        assert "5 classes and 5 new ones" in repr(halves)
        train = task.splits["train"]
        assert repr(train) == f"ImageSplit({len(train):,} images of 10 classes)"
