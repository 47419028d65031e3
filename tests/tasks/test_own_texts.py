"""Texts of one's own as a task: files of four kinds against naive reading, divisions, studies' names, and errors."""

import csv
import json

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dplearn
from dplearn.experiments.execution import load_task
from dplearn.tasks import text_folder
from dplearn.tasks.images import divide
from dplearn.tasks.row_files import rows_of

TEMPLATE = "about {topic}: {text} It is"
ROWS = [
    {"text": f'the {n}. film, "loud"\nand long', "topic": "films", "mood": ("good", "bad", "fair")[n % 3]}
    for n in range(30)
]


def write(file, rows):
    """The rows in a file of the kind that its name says."""
    file.parent.mkdir(exist_ok=True, parents=True)
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif file.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(file)
    else:
        with file.open("w", encoding="utf-8", newline="") as opened:
            table = csv.DictWriter(opened, list(rows[0]), delimiter="\t" if file.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    return file


def expected(rows, names):
    return [
        {"text": row["text"], "topic": row["topic"], "label": names.index(str(row["mood"]))} for row in rows
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_kind_of_file_has_the_same_examples(tmp_path, suffix):
    """Cells with quotes, commas and line breaks among them."""
    for stem, rows in (("train", ROWS[:18]), ("dev", ROWS[18:24]), ("test", ROWS[24:])):
        write(tmp_path / "films" / f"{stem}{suffix}", rows)
    task = text_folder(tmp_path / "films", template=TEMPLATE, column="mood")
    names = ("bad", "fair", "good")
    assert task.labels == task.words == names and task.name == "own/films"
    assert list(task.splits) == ["train", "validation", "test"]
    for split, rows in (("train", ROWS[:18]), ("validation", ROWS[18:24]), ("test", ROWS[24:])):
        assert list(task.examples(split)) == expected(rows, names)
    assert task.text(task.examples("test")[0]) == 'about films: the 24. film, "loud"\nand long It is'
    assert "splits of the files" in task.source


def test_what_has_no_file_is_divided_off_by_label(tmp_path):
    file = write(tmp_path / "films.csv", ROWS)
    task = text_folder(file, template=TEMPLATE, column="mood", validation=0.3, test=0.2, seed=5)
    every = expected(ROWS, task.labels)
    parts = divide([one["label"] for one in every], {"validation": 0.3, "test": 0.2}, "train", 5)
    assert {split: list(rows) for split, rows in task.splits.items()} == {
        split: [every[number] for number in parts[split]] for split in ("train", "validation", "test")
    }
    again = text_folder(file, template=TEMPLATE, column="mood", validation=0.3, test=0.2, seed=5)
    assert again.source == task.source
    write(file, ROWS[:-1] + [ROWS[-1] | {"text": "another"}])
    assert (
        text_folder(file, template=TEMPLATE, column="mood", validation=0.3, test=0.2, seed=5).source
        != task.source
    )
    assert list(text_folder(file, template=TEMPLATE, column="mood", validation=0, test=0).splits) == ["train"]


def test_labels_are_names_or_numbers_of_given_names(tmp_path):
    numbers = [row | {"mood": n % 3} for n, row in enumerate(ROWS)]
    given = {"template": TEMPLATE, "column": "mood", "validation": 0, "test": 0}
    for suffix in (".jsonl", ".csv"):  # a number in the one, a digit in the other
        file = write(tmp_path / f"numbers{suffix}", numbers)
        plain = text_folder(file, **given)
        assert plain.labels == ("0", "1", "2")
        named = text_folder(file, labels=("good", "bad", "fair"), words=("yes", "no", "maybe"), **given)
        assert named.labels == ("good", "bad", "fair") and named.words == ("yes", "no", "maybe")
        assert [e["label"] for e in named.examples("train")] == [n % 3 for n in range(30)]
    many = write(tmp_path / "many.jsonl", [row | {"mood": n % 12} for n, row in enumerate(ROWS)])
    assert text_folder(many, **given).labels == tuple(map(str, range(12)))  # by size: "2" before "10"


def test_a_study_names_such_a_task(tmp_path, monkeypatch):
    file = write(tmp_path / "films" / "train.csv", ROWS)
    monkeypatch.setenv("FILMS", str(file.parent))
    name = f"texts/folder?path=$FILMS&template={TEMPLATE}&column=mood&words=no, maybe, yes&validation=0.25&seed=2"
    own = text_folder(
        file.parent, template=TEMPLATE, column="mood", words=("no", "maybe", "yes"), validation=0.25, seed=2
    )
    assert load_task(name) == own
    drawn = load_task(name + "&shots=2&draw=1")
    assert drawn.splits["train"] == own.few_shot(2, 1).splits["train"]
    assert "texts/folder" in dplearn.tasks.names() and "images/folder" in dplearn.tasks.names("images")


def test_its_rows_are_encoded_as_those_of_any_task(tmp_path):
    """The answer is the first token of the label's word, in the order of the examples."""
    backbone, tokenizer = dplearn.zoo.load("t5-mini")
    rows = [row | {"mood": ("red", "blue")[n % 2]} for n, row in enumerate(ROWS)]
    task = text_folder(write(tmp_path / "films.jsonl", rows), template=TEMPLATE, column="mood")
    encoded = task.encode(tokenizer, "train", backbone)
    ids = task.word_ids(tokenizer, backbone)
    assert [row["labels"][0] for row in encoded] == [ids[e["label"]] for e in task.examples("train")]


@given(
    cells=st.lists(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2, max_size=2),
        min_size=1,
        max_size=6,
    )
)
def test_any_cells_are_read_as_the_csv_module_wrote_them(tmp_path_factory, cells):
    file = write(tmp_path_factory.mktemp("cells") / "train.csv", [dict(zip("ab", row)) for row in cells])
    assert rows_of([file]) == [dict(zip("ab", row)) for row in cells]


@pytest.mark.parametrize(
    ("content", "options", "error", "words"),
    [
        (None, {}, FileNotFoundError, "expected a folder with files of texts, or such a file"),
        ("text,topic,mood\n", {}, ValueError, "expected two or more distinct names"),
        ("text,mood\na,good\n", {}, ValueError, "train, row 1: no 'topic', expected columns"),
        ("text,topic,mood\na,b\n", {}, ValueError, "films.csv line 2: 2 cells, expected 3"),
        ("text,topic,mood\na,b,c,d\n", {}, ValueError, "films.csv line 2: 4 cells, expected 3"),
        ('text,topic,mood\na,b,"c\n', {}, ValueError, "films.csv after line 1: expected a row of cells"),
        (b"text,topic,mood\na,b,gr\xfcn\n", {}, ValueError, "films.csv line 2: expected text in UTF-8"),
        ("text,topic,mood\na,b,good\nc,d,bad\n", {}, ValueError, "leaves no text for validation"),
        (
            "text,topic,mood\na,b,good\nc,d,odd\n", {"labels": ("good", "bad")}, ValueError,
            "train, row 2: mood='odd', expected one of \\['good', 'bad'\\]",
        ),
        ("text,topic,mood\na,b,good\nc,d,bad\n", {"test": 1.5}, ValueError, "test=1.5: expected a share"),
        ("text,topic,mood\na,b,good\nc,d,bad\n", {"template": "no field"}, ValueError, "expected a format string"),
    ],
)  # fmt: skip
def test_errors_name_the_line_and_what_was_expected(tmp_path, content, options, error, words):
    file = tmp_path / "films.csv"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    if "leaves no text" not in words:
        options = {"validation": 0, "test": 0} | options
    with pytest.raises(error, match=words):
        text_folder(file, **{"template": TEMPLATE, "column": "mood"} | options)


def test_a_folder_without_training_texts_and_a_file_of_another_kind_are_refused(tmp_path):
    write(tmp_path / "films" / "test.csv", ROWS)
    with pytest.raises(FileNotFoundError, match="no training texts, expected train.jsonl or train.csv"):
        text_folder(tmp_path / "films", template=TEMPLATE, column="mood")
    (tmp_path / "films.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"films.xlsx: expected a file that ends in one of"):
        text_folder(tmp_path / "films.xlsx", template=TEMPLATE, column="mood")
    with pytest.raises(ValueError, match="option 'patth' is unknown, expected some of"):
        load_task(f"texts/folder?patth={tmp_path}&template={TEMPLATE}")
    with pytest.raises(ValueError, match="texts/folder: path=None and template='a {b}', expected both"):
        load_task("texts/folder?template=a {b}")


def test_signs_that_mean_something_in_a_name_are_written_out(tmp_path):
    file = write(tmp_path / "films.jsonl", ROWS)
    task = load_task(f"texts/folder?path={file}&template={{topic}} %26 {{text}} %2B&column=mood")
    assert task.template == "{topic} & {text} +"
