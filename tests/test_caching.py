"""What `cache_inputs` does around what is kept: goes through any data, adds, says how much, and compares once."""

import json
from types import SimpleNamespace

import pytest
import spliced
import tiny
import torch
from decoders import BEHIND, ROWS, batch_of, lengths_run, model_of
from torch import nn
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq
from transformers.modeling_outputs import CausalLMOutput

import dplearn as dp
from dplearn import caching
from dplearn.kept import KeptInputs, digest_of, state_of

DIGESTS = {digest_of(torch.tensor(row[: len(row) - last - 1])) for row, last in zip(ROWS, BEHIND)}


def examples():
    return [
        {"input_ids": row, "labels": [-100] * (len(row) - last) + row[-last:], "context_length": len(row) - last}
        for row, last in zip(ROWS, BEHIND)
    ]  # fmt: skip


# --- any data ---


@pytest.mark.parametrize("kind", ["batch", "iterator", "list of batches", "examples", "loader"])
def test_all_inputs_of_any_data_are_kept(kind, capsys):
    model, sizes = model_of(), []
    collator = DataCollatorForSeq2Seq(spliced.tokenizer(), model)

    def collate(rows):
        sizes.append(len(rows))
        return collator(rows)

    split = [batch_of([row], [last]) for row, last in zip(ROWS, BEHIND)]
    data = {
        "batch": batch_of(),
        "iterator": iter(split),
        "list of batches": (each for each in split),
        "examples": examples(),
        "loader": DataLoader(examples(), 2, collate_fn=collate),
    }[kind]
    more = {"collate": collate, "batch_size": 2} if kind == "examples" else {}
    kept = model.cache_inputs(data, **more, verbose=False)
    assert kept.digests == DIGESTS and model.adapter.kept is kept
    assert sizes == ([2, 1] * 2 if kind in ("examples", "loader") else [])  # counted, then kept
    assert capsys.readouterr().out == ""


def test_a_refusal_says_what_was_called():
    model = dp.prompted(tiny.llama(), dp.PromptConfig(length=3, position="prefix"))
    with pytest.raises(ValueError) as error:
        model.cache_inputs(iter([batch_of()]))
    assert str(error.value) == (
        "cache_inputs: position='prefix', expected 'postfix': an input's rows see the vectors in front of them"
    )
    assert model.adapter.kept is None


def test_layers_of_an_image_run_once_to_be_kept():
    config = dp.PromptConfig(length=2, from_layer=3)
    model, runs = dp.prompted(tiny.vit(), config).double().eval(), []
    layer = next(module for name, module in model.backbone.named_modules() if name.endswith("layers.0"))
    inside = next(layer.children())  # the layer itself is called, and stood in for
    inside.register_forward_pre_hook(lambda module, values: runs.append(len(values[0])))
    kept = model.cache_inputs({"pixel_values": tiny.images(2)}, verbose=False)
    assert len(kept) == 2 and runs == [2, 2]  # kept, then compared with the full pass
    model.cache_inputs({"pixel_values": tiny.images(3)}, verbose=False)
    assert len(kept) == 3 and runs == [2, 2, 1]  # only what is new


# --- what is there already ---


def test_a_further_call_adds_where_weights_and_options_are_the_same(tmp_path):
    model, (first, second) = model_of(), (batch_of([row], [2]) for row in (ROWS[0], ROWS[2]))
    kept = model.cache_inputs(first, verbose=False)
    assert model.cache_inputs(second, verbose=False) is kept and len(kept) == 2
    short, in_files = {"dtype": torch.bfloat16}, {"folder": tmp_path / "a"}
    for options in (short, in_files, {"folder": tmp_path / "b"}, short | {"folder": tmp_path / "c"}):
        other = model.cache_inputs(second, **options, verbose=False)
        assert other is not kept and len(other) == 1 and model.adapter.kept is other
        assert other.made_as(options.get("dtype"), options.get("folder"))
        assert model.cache_inputs(second, **options, verbose=False) is other
        if "folder" in options:
            about = json.loads((options["folder"] / "kept.json").read_text())
            assert about["dtype"] == str(options.get("dtype", torch.float64))
        kept = other
    with torch.no_grad():
        next(model.backbone.parameters()).mul_(1.5)
    again = model.cache_inputs(second, verbose=False)
    assert again is not kept and again.fresh and again.folder is None


def test_leaving_forgets_what_the_call_added_and_no_more():
    model, (first, second) = model_of(), (batch_of([row], [2]) for row in (ROWS[0], ROWS[2]))
    with model.cache_inputs(first, verbose=False) as kept:
        before = kept.digests
        assert len(before) == 1
        with model.cache_inputs(second, verbose=False) as more:
            assert more is kept and len(kept) == 2
        assert kept.digests == before and model.adapter.kept is kept
        with model.cache_inputs(second, dtype=torch.bfloat16, verbose=False) as other:
            assert model.adapter.kept is other
        assert model.adapter.kept is kept
    # The last call's end was the second one's: what was kept before it stays.
    assert model.adapter.kept is kept


# --- how much it is ---


def test_it_says_how_much_is_new(tmp_path, capsys):
    big = 3 * 2**19
    for kept, room, place in (
        (KeptInputs(tiny.llama()), "12.0", "in memory"),
        (KeptInputs(tiny.llama(), torch.bfloat16), "3.0", "in memory"),
        (KeptInputs(tiny.llama(), folder=tmp_path), "12.0", f"in {str(tmp_path)!r}"),
    ):
        kept.add({"old": [torch.zeros(1, 2, 3)] * 2})
        caching._tell(kept, {"old": 10**9, "one": big, "two": 2**14})
        caching._tell(kept, {f"{number}": 2**20 for number in range(1200)} | {"old": 1})
        thousand = 1200 * kept.dtype.itemsize
        assert capsys.readouterr().out == (
            f"keeping {room.replace('.0', '.1') if room == '12.0' else room} MB of 2 inputs {place}; 1 are kept already\n"
            f"keeping {thousand:,.1f} MB of 1,200 inputs {place}; 1 are kept already\n"
        )
    for data in (batch_of(), iter([batch_of([row], [last]) for row, last in zip(ROWS, BEHIND)])):
        model_of().cache_inputs(data)
        assert capsys.readouterr().out == "keeping 0.0 MB of 3 inputs in memory; 0 are kept already\n"


# --- folders ---


def test_a_folder_is_of_one_model_and_dtype(tmp_path):
    model, folder = tiny.llama(), tmp_path / "new" / "folder"
    caching._check_folder(model, None, None)
    caching._check_folder(model, None, folder)
    assert json.loads((folder / "kept.json").read_text())["dtype"] == "torch.float64"
    for dtype in (None, torch.float64):
        caching._check_folder(model, dtype, str(folder))
    with pytest.raises(ValueError) as error:
        caching._check_folder(model, torch.bfloat16, folder)
    assert str(error.value) == (
        f"folder={str(folder)!r} holds inputs of dtype torch.float64, expected those of this LlamaForCausalLM in "
        "torch.bfloat16, or an empty folder"
    )
    other = tiny.llama()
    with torch.no_grad():
        other.model.norm.weight.add_(1)
    with pytest.raises(ValueError) as error:
        caching._check_folder(other, None, folder)
    assert str(error.value) == (
        f"folder={str(folder)!r} holds inputs of a model with other values of ['model.norm.weight'], expected those of "
        "this LlamaForCausalLM in torch.float64, or an empty folder"
    )
    (tmp_path / "short").mkdir()
    caching._check_folder(model, torch.bfloat16, tmp_path / "short")
    caching._check_folder(model, torch.bfloat16, tmp_path / "short")
    with pytest.raises(ValueError, match=r"in torch\.float64, or an empty folder"):
        caching._check_folder(model, None, tmp_path / "short")
    (folder / "kept.json").write_text("{")
    with pytest.raises(ValueError, match="kept.json is damaged, expected JSON"):
        caching._check_folder(model, None, folder)


# --- compared with the full pass ---


class Answering(nn.Module):
    """A model whose answers on what is kept differ from those of the full pass by ``off``, column by column."""

    def __init__(self, full, off, kind="text", dtype=torch.float32):
        super().__init__()
        self.backbone, self.full, self.off = nn.Linear(3, 2).to(dtype), full, off
        self.backbone.dtype = dtype
        self.adapter = SimpleNamespace(kind=kind, kept="kept", compared=(None, 0))
        self.calls = []

    def accepted(self, batch):
        return {name: value for name, value in batch.items() if name != "topic"}

    def forward(self, **batch):
        self.calls.append((self.adapter.kept, self.training, batch))
        return {"logits": self.full + (0 if self.adapter.kept is None else self.off)}


FULL = torch.tensor([[3.0, -400.0, 2.0], [1.0, 5.0, -20.0]])  # (B, columns)
TEXT = {"input_ids": torch.ones(2, 7).long(), "labels": torch.ones(2), "topic": "a"}
IMAGE = {"pixel_values": torch.ones(2, 3, 8, 8), "input_ids": None}


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("training", [False, True])
def test_a_batch_is_answered_twice_without_labels(kind, training):
    model, batch = Answering(FULL, 0.0, kind).train(training), TEXT if kind == "text" else IMAGE
    caching._compare(model, batch)
    expected = {name: value for name, value in batch.items() if name not in ("labels", "topic")}
    expected |= {"use_cache": False} if kind == "text" else {}
    assert model.calls == [("kept", False, expected), (None, False, expected)]
    assert model.training is training and model.adapter.kept == "kept"
    assert model.adapter.compared == (state_of(model.backbone), 7 if kind == "text" else 3)


@pytest.mark.parametrize(
    ("kind", "dtype", "column", "off", "near"),
    [
        ("text", torch.float32, 2, 0.0019, True),  # less than 1e-4 of the largest answer of the last column
        ("text", torch.float32, 2, 0.0021, False),
        ("text", torch.float32, 2, -0.0021, False),
        ("text", torch.float64, 2, 0.0021, False),
        ("text", torch.float32, 1, 100.0, True),  # of rows that did not run
        ("text", torch.float32, 0, 100.0, True),
        ("text", torch.bfloat16, 2, 0.9, True),
        ("text", torch.bfloat16, 2, 1.1, False),
        ("image", torch.float32, 0, 0.039, True),
        ("image", torch.float32, 0, 0.041, False),
        ("image", torch.float16, 0, 19.0, True),
        ("image", torch.float16, 0, 21.0, False),
    ],
)
def test_answers_that_are_further_off_than_rounding_are_refused(kind, dtype, column, off, near):
    model = Answering(FULL, off * torch.eye(3)[column], kind, dtype).train()
    if near:
        caching._compare(model, TEXT)
        assert model.adapter.kept == "kept" and model.adapter.compared[1] == 7
        return
    with pytest.raises(ValueError) as error:
        caching._compare(model, TEXT)
    assert str(error.value) == "cache_inputs: Linear answers otherwise on what is kept than on the input"
    assert model.adapter.kept is None and model.adapter.compared == (None, 0) and model.training


def test_answers_of_zeros_are_alike():
    model = Answering(torch.zeros(2, 3), 0.0)
    caching._compare(model, TEXT)
    assert model.adapter.kept == "kept"


def test_an_error_in_the_model_leaves_it_as_it_was():
    model = Answering(FULL, torch.zeros(5)).train()  # shapes that do not fit
    with pytest.raises(RuntimeError, match="size of tensor"):
        caching._compare(model, TEXT)
    assert model.training and model.adapter.kept == "kept" and model.adapter.compared == (None, 0)


def test_a_batch_is_compared_once_for_each_length_and_weights():
    model = Answering(FULL, 0.0)

    def compared(width):
        model.calls.clear()
        caching._compare(model, {"input_ids": torch.ones(2, width).long()})
        return len(model.calls) == 2

    assert [compared(width) for width in (5, 5, 4, 6, 5, 6)] == [True, False, False, True, False, False]
    with torch.no_grad():
        model.backbone.weight.mul_(2)
    assert [compared(width) for width in (4, 4, 6)] == [True, False, True]


def test_only_the_first_batch_is_compared_and_only_what_is_exact():
    for options, expected in (({}, 1), ({"dtype": torch.bfloat16}, 0)):
        model = model_of()
        seen = lengths_run(model)
        split = [batch_of([row], [last]) for row, last in zip(ROWS, BEHIND)]
        model.cache_inputs(iter(split), **options, verbose=False)
        full = len(spliced.WORDS) + len(ROWS[0])  # the first row with its prompt
        assert [length for length in seen if length > 6] == [full] * expected


def test_answers_are_the_logits_or_what_comes_first():
    first, second = torch.zeros(2, 3), torch.ones(2, 3)
    assert caching._answers(CausalLMOutput(loss=first, logits=second)) is second
    assert caching._answers(CausalLMOutput(logits=second, hidden_states=(first,))) is second
    assert caching._answers((first, second)) is first
