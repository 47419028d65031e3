"""The SuperGLUE tasks: file layouts, label order, templates, protocols, and errors for bad data.

The files in tests/tasks/data/superglue are invented sentences in SuperGLUE's own layout.
"""

import json
import os
import shutil
from pathlib import Path

import datasets
import pytest
from project import ROOT

from dplearn.tasks import load, names
from dplearn.tasks.encoding import template_fields
from dplearn.tasks.superglue import FORMATS, REVISION, carve
from dplearn.tasks.superglue_rows import HUB, label_index

DATA = Path(__file__).parent / "data" / "superglue"
RTE = {"premise": "It rained.", "hypothesis": "It was wet.", "label": "entailment", "idx": 0}


def write(folder, split, rows):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def rows_of(folder, split):
    return [json.loads(line) for line in (DATA / folder / f"{split}.jsonl").read_text("utf-8").splitlines()]


def flat(key, split):
    """The rows as the hub has them: integer labels, MultiRC flattened (spelled out independently)."""
    rows = rows_of(FORMATS[key].folder, split)
    if key == "multirc":
        return [
            {
                "paragraph": row["passage"]["text"],
                "question": question["question"],
                "answer": answer["text"],
                "idx": {"paragraph": row["idx"], "question": question["idx"], "answer": answer["idx"]},
                "label": answer["label"],
            }
            for row in rows
            for question in row["passage"]["questions"]
            for answer in question["answers"]
        ]
    numbers = {"entailment": 0, "contradiction": 1, "not_entailment": 1, "neutral": 2, False: 0, True: 1}
    return [{**row, "label": numbers[row["label"]]} for row in rows]


def hub_like(key):
    """What `datasets` returns for the hub repository: with label names and a test split without labels."""
    label = datasets.ClassLabel(names=list(FORMATS[key].labels))
    splits = {}
    for split, file in (("train", "train"), ("validation", "val")):
        splits[split] = datasets.Dataset.from_list(flat(key, file)).cast_column("label", label)
    splits["test"] = splits["train"].map(lambda row: {"label": -1})
    return datasets.DatasetDict(splits)


# --- what is loaded -----------------------------------------------------------------------------------------

EXPECTED = {  # task: (template filled with the first official validation example, its answer word, the words)
    "boolq": (
        "hypothesis: is the ferry faster than the train. premise: The ferry takes an hour, the "
        "train half of that.",
        "no",
        ("no", "yes"),
    ),
    "multirc": (
        "question: What failed? answer: the beans. paragraph: Emil planted beans in March and peas in May. "
        "The beans failed.",
        "yes",
        ("no", "yes"),
    ),
    "rte": (
        "sentence1: The bridge was painted blue in spring. sentence2: The bridge is made of wood.",
        "no",
        ("yes", "no"),
    ),
    "cb": (
        "hypothesis: the soup was cold. premise: Bo noticed that the soup was cold.",
        "yes",
        ("yes", "no", "maybe"),
    ),
    "wic": (
        "sentence1: She wore a ring. sentence2: The ring was made of tin. word: ring",
        "yes",
        ("no", "yes"),
    ),
}


@pytest.mark.parametrize("key", EXPECTED)
def test_template_and_answer_word(key):
    task = load(f"superglue/{key}", path=DATA)
    text, word, words = EXPECTED[key]
    first = task.splits["test"][0]
    assert task.text(first) == text
    assert task.words == words and task.words[first["label"]] == word


def test_names_are_the_five_tasks_of_the_paper():
    assert names("superglue") == tuple(f"superglue/{key}" for key in ("boolq", "multirc", "rte", "cb", "wic"))
    assert set(EXPECTED) == set(FORMATS)


def test_label_numbers_are_superglues_own():
    assert FORMATS["cb"].labels == ("entailment", "contradiction", "neutral")
    assert FORMATS["rte"].labels == ("entailment", "not_entailment")
    assert {FORMATS[key].labels for key in ("boolq", "multirc", "wic")} == {("False", "True")}
    assert [e["label"] for e in load("superglue/cb", path=DATA).splits["test"]] == [0, 2, 1]
    assert [e["label"] for e in load("superglue/rte", path=DATA).splits["test"]] == [1, 0]
    assert [e["label"] for e in load("superglue/boolq", path=DATA).splits["test"]] == [0, 1, 1]


def test_multirc_answers_of_a_question_share_a_group():
    task = load("superglue/multirc", path=DATA, protocol="paper")
    test = task.splits["validation"]
    assert [e["answer"] for e in test] == ["the beans", "the peas", "in May", "in March", "in spring"]
    assert [e["group"] for e in test] == ["0-0", "0-0", "0-1", "0-1", "0-1"]
    assert len({e["group"] for e in task.splits["train"]}) == 5
    scores = task.score("validation", [1, 0, 1, 1, 0])  # the labels are 1 0, 1 0 1: the last two are wrong
    assert scores == pytest.approx({"f1a": 4 / 6, "em": 0.5, "accuracy": 0.6})


@pytest.mark.parametrize("key", FORMATS)
def test_metrics_are_superglues_own(key):
    task = load(f"superglue/{key}", path=DATA)
    headline = {"multirc": ["f1a", "em", "accuracy"], "cb": ["accuracy", "f1"]}.get(key, ["accuracy"])
    perfect = task.score("test", [e["label"] for e in task.splits["test"]])
    assert perfect == dict.fromkeys(headline, 1.0) and list(perfect) == headline


# --- where it is loaded from --------------------------------------------------------------------------------


def same_data(one, other):
    assert one.splits == other.splits
    digest = one.source.split("sha256 ")[1].split(",")[0]
    assert len(digest) == 16 and f"sha256 {digest}," in other.source


@pytest.mark.parametrize("key", FORMATS)
def test_path_may_be_the_folder_of_the_task(key):
    name = f"superglue/{key}"
    same_data(load(name, path=DATA), load(name, path=str(DATA / FORMATS[key].folder)))


@pytest.mark.parametrize("key", FORMATS)
def test_round_trip_through_save_to_disk(key, tmp_path):
    hub_like(key).save_to_disk(tmp_path / "saved")
    same_data(load(f"superglue/{key}", path=DATA), load(f"superglue/{key}", path=tmp_path / "saved"))


@pytest.mark.parametrize("key", FORMATS)
def test_round_trip_through_the_hubs_parquet_layout(key, tmp_path):
    (tmp_path / key).mkdir()
    for split, data in hub_like(key).items():
        half = len(data) // 2
        for i, part in enumerate((range(half), range(half, len(data)))):
            data.select(part).to_parquet(tmp_path / key / f"{split}-0000{i}-of-00002.parquet")
    task = load(f"superglue/{key}", path=tmp_path, cache_dir=tmp_path / "cache")
    same_data(load(f"superglue/{key}", path=DATA), task)


def test_integer_labels_in_jsonl(tmp_path):
    for split in ("train", "val"):
        write(tmp_path, split, flat("cb", split))
    same_data(load("superglue/cb", path=DATA), load("superglue/cb", path=tmp_path))


def test_nested_multirc_through_parquet(tmp_path):
    for split in ("train", "val"):
        datasets.Dataset.from_list(rows_of("MultiRC", split)).to_parquet(tmp_path / f"{split}.parquet")
    task = load("superglue/multirc", path=tmp_path, cache_dir=tmp_path / "cache")
    same_data(load("superglue/multirc", path=DATA), task)


def test_names_of_a_label_column_decide_not_its_numbers(tmp_path):
    saved = hub_like("rte")
    other = datasets.ClassLabel(names=["not_entailment", "entailment"])
    swapped = {
        split: saved[split].map(lambda row: {"label": 1 - row["label"]}).cast_column("label", other)
        for split in ("train", "validation")
    }
    datasets.DatasetDict(swapped).save_to_disk(tmp_path / "saved")
    same_data(load("superglue/rte", path=DATA), load("superglue/rte", path=tmp_path / "saved"))


@pytest.mark.parametrize("key", FORMATS)
def test_the_hub_is_asked_for_the_parquet_repository(key, monkeypatch):
    calls = []

    def load_dataset(*arguments, **options):
        calls.append((arguments, options))
        return hub_like(key)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load(f"superglue/{key}")
    assert calls == [((HUB, key), {"revision": REVISION, "cache_dir": None})]
    assert f"{HUB} revision {REVISION}" in task.source
    same_data(load(f"superglue/{key}", path=DATA), task)


def test_a_hub_that_cannot_be_reached_is_explained(monkeypatch):
    def load_dataset(*arguments, **options):
        raise OSError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConnectionError, match=r"'rte'.*'aps/super_glue'.*OSError: no route.*pass path="):
        load("superglue/rte")


# --- protocols ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", FORMATS)
def test_protocols_share_the_data_out_without_overlap(key):
    paper = load(f"superglue/{key}", path=DATA, protocol="paper")
    honest = load(f"superglue/{key}", path=DATA)
    assert list(paper.splits) == ["train", "validation"]
    assert list(honest.splits) == ["train", "validation", "test"]
    assert honest.splits["test"] == paper.splits["validation"]
    official = [json.dumps(e) for e in paper.splits["train"]]
    rest, held = ([json.dumps(e) for e in honest.splits[split]] for split in ("train", "validation"))
    assert sorted(rest + held) == sorted(official) and not set(rest) & set(held)
    assert rest == [e for e in official if e in rest]  # order kept
    context = FORMATS[key].context
    contexts = [{e[context] for e in honest.splits[split]} for split in ("train", "validation")]
    assert not contexts[0] & contexts[1]


def test_paper_protocol_has_no_test_split():
    task = load("superglue/rte", path=DATA, protocol="paper")
    with pytest.raises(ValueError, match=r"split='test': expected one of .*'validation'.*no test split"):
        task.examples("test")


def many(per_label=50, copies=1):
    return [
        {"text": f"{label} {i}", "n": n, "label": label} for label in (0, 1, 2) for i in range(per_label)
        for n in range(copies)
    ]  # fmt: skip


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("share", [0.1, 0.23, 0.5])
def test_carve_takes_the_share_of_each_label(share, copies):
    rest, held = carve(many(47, copies), "text", share, seed=1)
    for label in (0, 1, 2):
        count = sum(example["label"] == label for example in held)
        assert abs(count - share * 47 * copies) <= copies / 2
    assert len(rest) + len(held) == 141 * copies


def test_carve_is_seeded_and_keeps_something_of_each_label_on_both_sides():
    assert carve(many(), "text", 0.2, seed=1) == carve(many(), "text", 0.2, seed=1)
    assert carve(many(), "text", 0.2, seed=1) != carve(many(), "text", 0.2, seed=2)
    for share in (0.01, 0.99):
        rest, held = carve(many(per_label=2), "text", share, seed=0)
        assert sorted(e["label"] for e in rest) == sorted(e["label"] for e in held) == [0, 1, 2]


def test_carve_needs_two_contexts():
    with pytest.raises(ValueError, match=r"holdout=0.2: no label has two text texts in train"):
        carve(many(per_label=1, copies=4), "text", 0.2, seed=0)


def test_few_shot_reduces_the_rest_of_train_alone():
    task = load("superglue/cb", path=DATA)
    small = task.few_shot(1, seed=0)
    assert sorted(e["label"] for e in small.splits["train"]) == [0, 1, 2]
    assert (
        small.splits["validation"] is task.splits["validation"]
        and small.splits["test"] is task.splits["test"]
    )


# --- a named validation file: FewGLUE -------------------------------------------------------------------------


@pytest.fixture
def fewglue(tmp_path):
    """The invented rows in FewGLUE's layout: all of train, a development file of as many rows, the official set."""
    for recipe in FORMATS.values():
        shutil.copytree(DATA / recipe.folder, tmp_path / recipe.folder)
        write(tmp_path / recipe.folder, "dev32", rows_of(recipe.folder, "train")[::-1])
    return tmp_path


@pytest.mark.parametrize("key", FORMATS)
def test_a_named_file_is_validation_and_train_stays_whole(key, fewglue):
    task = load(f"superglue/{key}", path=fewglue, validation="dev32.jsonl")
    paper = load(f"superglue/{key}", path=DATA, protocol="paper")
    assert list(task.splits) == ["train", "validation", "test"]
    assert task.splits["train"] == paper.splits["train"] and task.splits["test"] == paper.splits["validation"]
    assert sorted(map(json.dumps, task.splits["validation"])) == sorted(map(json.dumps, task.splits["train"]))
    assert "validation dev32.jsonl, test the official validation set" in task.source
    # FewGLUE's set is fixed: so many rows in all, in MultiRC questions, with labels as they fall.
    units = len({e["group"] for e in task.splits["train"]}) if key == "multirc" else len(task.splits["train"])
    assert list(task.few_shot(total=units).splits["train"]) == task.splits["train"]


def test_the_source_names_the_data_of_the_file_too(fewglue):
    one = load("superglue/cb", path=fewglue, validation="dev32.jsonl").source
    write(fewglue / "CB", "dev32", rows_of("CB", "train"))
    assert one != load("superglue/cb", path=fewglue, validation="dev32.jsonl").source


@pytest.mark.parametrize(
    "options",
    [{"path": None}, {"holdout": 0.3}, {"protocol": "paper"}, {"validation": "dev32"}, {"validation": 32}],
)
def test_a_named_file_needs_a_folder_and_takes_the_holdouts_place(options, fewglue):
    with pytest.raises(ValueError, match="validation=.*: expected"):
        load("superglue/cb", **{"path": fewglue, "validation": "dev32.jsonl"} | options)


def test_a_named_file_that_is_not_there(fewglue):
    with pytest.raises(
        FileNotFoundError, match=r"validation='dev.jsonl': .* of CB, expected one of \['dev32.jsonl', 'tr"
    ):
        load("superglue/cb", path=fewglue, validation="dev.jsonl")


@pytest.mark.parametrize("key", FORMATS)
def test_what_is_cut_and_what_a_classifier_reads_are_fields_of_the_template(key):
    task = load(f"superglue/{key}", path=DATA)
    never = {
        "boolq": "question",
        "multirc": "question",
        "rte": "hypothesis",
        "cb": "hypothesis",
        "wic": "word",
    }[key]
    assert task.cuttable and never not in task.cuttable
    assert {field for part in task.pair for field in template_fields(part)} == set(task.fields)


# --- the real files, where they are -----------------------------------------------------------------------------

REAL = Path(os.environ.get("DPLEARN_DATA", ROOT.parent / "shared" / "data")) / "superglue"
SIZES = {  # examples of train, dev32, val; MultiRC's are answers
    "boolq": (32, 32, 3270),
    "cb": (32, 32, 56),
    "multirc": (154, 167, 4848),
    "rte": (32, 32, 277),
    "wic": (32, 32, 638),
}


@pytest.mark.skipif(
    not REAL.is_dir(), reason="no real files: DPLEARN_DATA names the folder that has superglue/"
)
@pytest.mark.parametrize("key", FORMATS)
def test_the_real_files(key):
    task = load(f"superglue/{key}", path=REAL, validation="dev32.jsonl")
    assert tuple(len(task.splits[split]) for split in ("train", "validation", "test")) == SIZES[key]
    assert list(task.few_shot(total=32).splits["train"]) == task.splits["train"]
    assert all(task.text(example) for example in task.splits["test"][:20])


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "superglue/axb"}, r"name='superglue/axb': expected one of \['superglue/boolq'"),
        ({"protocol": "best"}, r"protocol='best': expected one of \['holdout', 'paper'\]"),
        ({"holdout": 0}, "holdout=0: expected a share between 0 and 1"),
        ({"holdout": 1.0}, "holdout=1.0: expected a share between 0 and 1"),
        ({"holdout": "a fifth"}, "holdout='a fifth': expected a share between 0 and 1"),
        ({"protocol": "paper", "holdout": 0.2}, "holdout=0.2: expected None, because protocol 'paper'"),
    ],
)
def test_bad_options_are_refused_before_anything_is_read(options, message):
    with pytest.raises(ValueError, match=message):
        load(**{"name": "superglue/rte", "path": "no folder", **options})


def without(row, *fields):
    return {key: value for key, value in row.items() if key not in fields}


MULTIRC = {
    "passage": {
        "text": "T",
        "questions": [{"question": "Q", "answers": [{"text": "A", "label": 1}], "idx": 0}],
    }
}


@pytest.mark.parametrize(
    ("key", "train", "message"),
    [
        ("rte", [], "SuperGLUE RTE: the train data is empty: expected at least one row"),
        ("rte", ["\n"], "the train data is empty"),
        ("rte", ["{broken\n"], "train.jsonl line 1: expected one JSON object"),
        ("rte", [RTE, "[1]\n"], r"train.jsonl line 2: expected one JSON object, found '\[1\]'"),
        (
            "rte",
            [RTE, without(RTE, "premise")],
            "RTE, train, row 1: field 'premise' is None: expected text; the row",
        ),
        ("rte", [{**RTE, "hypothesis": 4}], "field 'hypothesis' is 4: expected text"),
        (
            "rte",
            [{**RTE, "label": "neutral"}],
            r"label 'neutral': expected one of \['entailment', 'not_entailment'\]",
        ),
        ("rte", [{**RTE, "label": True}], "label True: expected one of"),
        ("rte", [{**RTE, "label": 2}], r"label 2: expected one of .* or 0\.\.1$"),
        ("rte", [{**RTE, "label": -1}], "label -1: .*marks SuperGLUE's test split, which cannot be used"),
        ("rte", [without(RTE, "label")], "label None: .*marks SuperGLUE's test split"),
        ("boolq", [RTE], "BoolQ, train, row 0: field 'question' is None"),
        (
            "multirc",
            [{"idx": 0, "passage": {"text": "T"}}],
            "'questions' is None: expected a list of objects",
        ),
        (
            "multirc",
            [{"idx": 0, "passage": {"text": "T", "questions": []}}],
            r"'questions' is \[\]: expected a list",
        ),
        (
            "multirc",
            [MULTIRC],
            "idx is .*'paragraph': None.*: expected the numbers of the paragraph and of the",
        ),
        (
            "multirc",
            [{"paragraph": "T", "question": "Q", "answer": "A", "label": 1}],
            "idx is None: expected the num",
        ),
    ],
)
def test_bad_rows_are_named(key, train, message, tmp_path):
    write(tmp_path, "train", train)
    shutil.copy(DATA / FORMATS[key].folder / "val.jsonl", tmp_path)
    with pytest.raises(ValueError, match=message):
        load(f"superglue/{key}", path=tmp_path)


def test_folders_that_lack_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="path=.*nowhere.*: expected a folder with the files of RTE"):
        load("superglue/rte", path=tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError, match="no train and no validation data of RTE: expected train.jsonl"
    ):
        load("superglue/rte", path=tmp_path)
    write(tmp_path, "train", [RTE])
    with pytest.raises(
        FileNotFoundError, match="no validation data of RTE: expected train.jsonl and val.jsonl"
    ):
        load("superglue/rte", path=tmp_path)
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_list([RTE])})
    saved.save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"has splits \['train'\]: expected \['train', 'validation'\]"):
        load("superglue/rte", path=tmp_path / "saved")


def test_labels_as_text():
    assert label_index("true", ("False", "True")) == 1
    assert label_index("Not_Entailment", ("entailment", "not_entailment")) == 1
