"""Checkpoints of earlier versions load for ever: folders in tests/data/checkpoints, with the logits of their day.

Most were written by commit 15be3a0, before settings had a digest (format 2), t5-sealed and t5-trainer (a folder of
transformers.Trainer) by commit f8a3a7a, when four parts of them had one (format 3). Never write them again: what they are for is that
they are old. The backbones' weights come from a generator over sorted names, so that the order in which a version of
transformers initialises a model does not matter.
"""

from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import BertForSequenceClassification

import dplearn as dp

FOLDER = Path(__file__).parent / "data" / "checkpoints"


def sequences(**more):
    ids, mask = tiny.batch([6, 3, 5], eos=False)
    return dict(input_ids=ids, attention_mask=mask, **more)


def captions():
    ids, mask = tiny.texts([[5, 6, 7], [8, 9]])
    return dict(input_ids=ids, attention_mask=mask, pixel_values=tiny.images(3))


# name -> (backbone, batch, name of the output that is compared)
CASES = {
    "t5-instance": (tiny.t5, lambda: sequences(labels=torch.tensor([[5, 1], [6, 1], [7, 1]])), "logits"),
    "t5-sealed": (tiny.t5, lambda: sequences(labels=torch.tensor([[5, 1], [6, 1], [7, 1]])), "logits"),
    "t5-trainer": (tiny.t5, lambda: sequences(labels=torch.tensor([[5, 1], [6, 1], [7, 1]])), "logits"),
    "gpt2-postfix": (tiny.gpt2, sequences, "logits"),
    "bert-head": (lambda: tiny.bert(BertForSequenceClassification, num_labels=3), sequences, "logits"),
    "vit-before-positions": (tiny.vit, lambda: dict(pixel_values=tiny.images()), "logits"),
    "clip-both": (tiny.clip, captions, "logits_per_image"),
    "llama-tasks": (tiny.llama, lambda: sequences(task_ids=["rte", "boolq", "rte"]), "logits"),
}


def backbone_of(case):
    """The backbone of a case, with weights that no version of transformers draws differently."""
    model, generator = CASES[case][0](), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.3 * values + (1 if parameter.ndim == 1 else 0))
    return model


def answer(model, case):
    _, batch, output = CASES[case]
    given = batch()
    with torch.no_grad():
        found = model.eval()(**given)[output]
    return found[given["attention_mask"].bool()] if case.startswith(("gpt2", "llama")) else found


@pytest.mark.parametrize("case", CASES)
def test_an_old_checkpoint_answers_as_on_the_day_on_which_it_was_written(case):
    model = dp.from_pretrained(FOLDER / case, backbone_of(case))
    expected = load_file(FOLDER / case / "expected" / "logits.safetensors")["logits"]
    torch.testing.assert_close(answer(model, case), expected, rtol=1e-9, atol=1e-9)
    with torch.no_grad():  # and the prompt matters: with others of its vectors the answer differs
        model.prompt.vectors.normal_(0, 3)
    assert (answer(model, case) - expected).abs().max() > 0.01
