"""Data as batches: examples, one batch, an iterable of batches, on a device, and lengths that do not fit."""

import pytest
import torch
from torch.utils.data import DataLoader

from dplearn.batches import batches_of

EXAMPLES = [{"input_ids": [number, number + 1], "labels": number} for number in range(5)]


def test_examples_become_batches_in_their_order():
    found = list(batches_of(EXAMPLES, batch_size=2))
    assert [batch["labels"].tolist() for batch in found] == [[0, 1], [2, 3], [4]]
    assert [batch["input_ids"].tolist() for batch in found] == [[[0, 1], [1, 2]], [[2, 3], [3, 4]], [[4, 5]]]
    (all_in_one,) = batches_of([EXAMPLES[0]] * 64)
    assert all_in_one["input_ids"].shape == (64, 2) and len(list(batches_of([EXAMPLES[0]] * 65))) == 2


def test_a_function_that_collates_is_used():
    found = list(batches_of(EXAMPLES, lambda rows: {"count": len(rows), "ids": torch.tensor([0])}, 4))
    assert [batch["count"] for batch in found] == [4, 1]


def test_one_batch_and_batches_stay_as_they_are():
    batch = {"input_ids": torch.ones(2, 3), "name": "text"}
    for data in (batch, iter([batch]), DataLoader([batch], batch_size=None)):
        (found,) = batches_of(data, batch_size=1)
        assert torch.equal(found["input_ids"], batch["input_ids"]) and found["name"] == "text"
    assert list(batches_of([])) == []


def test_tensors_are_moved_and_nothing_else():
    (found,) = batches_of({"input_ids": torch.ones(2, 3), "name": "text"}, device="meta")
    assert found["input_ids"].device.type == "meta" and found["name"] == "text"
    (stays,) = batches_of({"input_ids": torch.ones(2, 3)})
    assert stays["input_ids"].device.type == "cpu"


def test_examples_of_different_lengths_need_a_function_that_pads():
    ragged = [{"input_ids": [1, 2]}, {"input_ids": [1]}]
    with pytest.raises(ValueError) as found:
        list(batches_of(ragged, batch_size=2))
    assert str(found.value) == (
        "collate=None, and the examples have different lengths: expected a collate function that pads, such as "
        "transformers.DataCollatorForSeq2Seq(tokenizer, model)"
    )
    assert "expected sequence of length" in str(found.value.__cause__)


@pytest.mark.parametrize("words", ["expected sequence of length 3", "something else"])
def test_errors_of_ones_own_function_and_of_other_kinds_pass_through(words):
    def fails(rows):
        raise ValueError(words)

    with pytest.raises(ValueError, match=f"^{words}$"):
        list(batches_of(EXAMPLES, fails))

    def broken():
        raise ValueError("something else")
        yield

    with pytest.raises(ValueError, match="^something else$"):
        list(batches_of(broken()))


@pytest.mark.parametrize(
    ("data", "shown"), [([1, 2], "1"), (["a text"], "'a text'"), ("a text", "'a'"), (torch.ones(3, 4), "a tensor of shape")]
)  # fmt: skip
def test_what_is_no_example_is_named(data, shown):
    said = rf"^data holds {shown}.*, expected examples by name: .*, or a collate function that makes batches of what"
    with pytest.raises(TypeError, match=said):
        next(batches_of(data))
    found = list(batches_of(list(data), lambda rows: {"rows": rows}, 2))  # who collates may hold anything
    assert sum(len(batch["rows"]) for batch in found) == len(data)
