"""The tables that pages get from the code or from a record: every option, every architecture, and "not run"."""

import json
import re
from dataclasses import fields

import pytest
from project import ROOT, tool

import dplearn as dp
from dplearn.config import option_rows

EXTENSION = tool("reference_tables", "_ext")
RECORD = {
    "transformers": "5.23.0",
    "status": {
        "seq2seq-t5": "exact",
        "seq2seq-led": "left refused",
        "causal-gpt2": "exact",
        "causal-bert-as-decoder": "refused",
        "causal-blenderbot-small": "refused",
        "causal-bloom": "refused",
        "classification-bert": "exact",
        "classification-layoutlm": "not built",
    },
}


def cells(text):
    """The rows of the first Markdown table, without the line below its head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]
    return [row for row in rows if set(row[-1]) - set(":-") or not row[-1]]


def test_every_option_has_a_row_with_its_default():
    head, *rows = cells(EXTENSION.options(option_rows()))
    assert head == list(EXTENSION.OPTIONS)
    defaults = {field.name: f"`{field.default!r}`" for field in fields(dp.PromptConfig)}
    assert {row[0].strip("`"): row[1].rpartition("; default: ")[2] for row in rows} == defaults
    served = {row[0].strip("`"): row[2].partition(" (backbones: ")[2] for row in rows}
    assert {name: kinds for name, kinds in served.items() if kinds} == {
        "summary": "all; `'image'`: image-text)",
        "depth": "vision, image-text)",
        "from_layer": "vision)",
        "entry": "vision)",
        "towers": "image-text)",
    }
    assert all(len(row) == len(head) and all(row) for row in rows)


def test_values_are_code_and_bars_are_bars():
    assert EXTENSION.values_as_code("None or 'a b', at least 1") == "`None` or `'a b'`, at least 1"
    assert cells(EXTENSION.table([["a", "b"], ["x|y", 1]])) == [["a", "b"], [r"x\|y", "1"]]


def test_architectures_are_counted_by_task_and_outcome():
    text = EXTENSION.architectures(RECORD)
    assert cells(text) == [
        ["", "Exact", "Exact with padding on the right; on the left refused", "Refused by name", "Not tried"],
        ["Encoder-decoder models", "1", "1", "0", "0"],
        ["Models that predict the next token", "1", "0", "3", "0"],
        ["Text classifiers", "1", "0", "0", "1"],
    ]
    assert "`bert` (as a decoder), `blenderbot-small`, `bloom`" in text
    assert "transformers 5.23.0, 8 rows" in text


def test_reasons_stand_beside_the_architectures_that_share_them():
    reasons = {"causal-bloom": "no positions", "causal-blenderbot-small": "no positions"}
    text = EXTENSION.architectures(RECORD | {"reasons": reasons})
    assert "- `blenderbot-small`, `bloom`: no positions" in text and "- `bert` (as a decoder)\n" in text


def test_an_outcome_of_another_name_is_shown_too():
    text = EXTENSION.architectures({"transformers": "6", "status": {"causal-new": "odd"}})
    assert cells(text)[0] == ["", "odd"] and "`new`" in text


def test_without_a_record_the_page_says_not_run():
    assert "not run" in EXTENSION.architectures(None)


@pytest.mark.parametrize("page", EXTENSION.PAGES)
def test_each_page_has_its_mark_once(page):
    assert (ROOT / f"{page}.md").read_text().count(EXTENSION.PAGES[page]) == 1


def test_the_record_of_this_copy_is_counted_whole():
    path = ROOT / EXTENSION.RECORD
    if not path.is_file():
        pytest.skip("no record in this copy")
    record = json.loads(path.read_text())
    rows = cells(EXTENSION.architectures(record))[1:]
    assert sum(int(cell) for row in rows for cell in row[1:]) == len(record["status"])
