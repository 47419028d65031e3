"""Quantised backbones: linear layers of integers, everything else in floating point, as bitsandbytes leaves a model.

The reference is the same backbone with the weights that the integers stand for.
"""

import copy
import warnings
from functools import partial

import pytest
import tiny
import torch
from torch import nn
from torch.testing import assert_close
from transformers import BertForSequenceClassification, GPT2ForSequenceClassification

import dplearn as dp


class Linear8bit(nn.Module):
    """A linear layer whose weights are bytes with one scale for each row."""

    def __init__(self, layer):
        super().__init__()
        weight = layer.weight.detach().T if type(layer).__name__ == "Conv1D" else layer.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


def quantise(model, skipped=()):
    """Linear layers become integers, all but the output embeddings and those of these names."""
    output = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ in ("Linear", "Conv1D") and child is not output and name not in skipped:
                setattr(module, name, Linear8bit(child))
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    return model


def dequantise(model):
    """The same with floating-point layers of those values."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear8bit):
                layer = nn.Linear(child.weight.shape[1], child.weight.shape[0], bias=child.bias is not None)
                layer.weight = nn.Parameter(child.weight.double() * child.scale.double())
                layer.bias = child.bias
                setattr(module, name, layer)
    model.config.quantization_config = None
    return model


MAKE = {
    "llama": tiny.llama,
    "gpt2": tiny.gpt2,
    "t5": tiny.t5,
    "bert": partial(tiny.bert, BertForSequenceClassification, num_labels=3),
    "vit": tiny.vit,
}


def batch_of(name):
    if name == "vit":
        return dict(pixel_values=tiny.images())
    ids, mask = tiny.batch([6, 3, 8], eos=name == "t5")
    labels = dict(labels=torch.tensor([[5, 1], [6, 1], [7, 1]])) if name == "t5" else {}
    return dict(input_ids=ids, attention_mask=mask, **labels)


def config_of(name, **options):
    return dp.PromptConfig(length=3, **({} if name == "vit" else {"position": "instance"}) | options)


@pytest.mark.parametrize("name", MAKE)
def test_answers_and_gradients_are_those_of_the_weights_that_the_integers_stand_for(name):
    quantised, models = quantise(MAKE[name]()), []
    for backbone in (quantised, dequantise(quantised)):
        model = dp.prompted(backbone, config_of(name), generator=torch.Generator().manual_seed(3))
        model.prompt.double()
        with torch.no_grad():
            generator = torch.Generator().manual_seed(4)
            for parameter in model.prompt.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        models.append(model)
    integers = [p for p in quantised.parameters() if p.dtype == torch.int8]
    assert len(integers) >= 6
    before = [parameter.clone() for parameter in integers]
    outputs = [model(**batch_of(name)).logits for model in models]
    assert_close(*outputs, rtol=0, atol=1e-10)
    for output in outputs:
        output.square().sum().backward()
    for found, expected in zip(*(model.prompt.parameters() for model in models), strict=True):
        assert (found.grad is None) == (expected.grad is None)
        if expected.grad is not None:
            assert_close(found.grad, expected.grad, rtol=1e-9, atol=1e-9)
    assert models[0].prompt.vectors.grad.abs().max() > 1e-6
    assert all(torch.equal(now, then) for now, then in zip(integers, before, strict=True))
    if name in ("llama", "gpt2", "t5"):
        ids, mask = (batch_of(name)[key] for key in ("input_ids", "attention_mask"))
        answers = [model.generate(ids, mask, max_new_tokens=5) for model in models]
        assert torch.equal(*answers)


def test_freezing_and_setting_free_leave_integers_alone():
    backbone = quantise(tiny.llama())
    free = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    dtypes = {name: parameter.dtype for name, parameter in backbone.named_parameters()}
    model = dp.prompted(backbone, config_of("llama"))
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert all(parameter.requires_grad for parameter in model.prompt.parameters())
    assert model.prompt.vectors.dtype == torch.float32
    assert model.unload() is backbone
    assert {name for name, parameter in backbone.named_parameters() if parameter.requires_grad} == free
    assert {name: parameter.dtype for name, parameter in backbone.named_parameters()} == dtypes
    assert torch.int8 in dtypes.values() and free


def test_a_checkpoint_goes_both_ways_with_a_word_about_it(tmp_path):
    quantised = quantise(tiny.llama())
    model = dp.prompted(quantised, config_of("llama"))
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = dp.from_pretrained(tmp_path, quantise(tiny.llama()))
    assert torch.equal(again(**batch_of("llama")).logits, model(**batch_of("llama")).logits)
    with pytest.warns(
        UserWarning, match="quantization='bitsandbytes', this one has quantization=None"
    ) as caught:
        plain = dp.from_pretrained(tmp_path, tiny.llama())
    assert len(caught) == 1
    difference = plain(**batch_of("llama")).logits - model(**batch_of("llama")).logits
    assert 1e-6 < difference.abs().max() < 0.5  # a little
    plain.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="quantization=None, this one has quantization='bitsandbytes'"):
        dp.from_pretrained(tmp_path, quantise(tiny.llama()))


def test_a_head_of_integers_is_not_trained_and_one_that_was_left_out_is(tmp_path):
    make, config = MAKE["bert"], config_of("bert", head="trained")
    backbone = quantise(make())
    with pytest.raises(
        ValueError, match=r"head='trained' cannot train classifier.weight of BertFor.* holds torch.int8"
    ):
        dp.prompted(backbone, config)
    assert next(backbone.bert.embeddings.parameters()).requires_grad
    model = dp.prompted(quantise(make(), skipped=("classifier",)), config).train()
    model(**batch_of("bert"), labels=torch.tensor([1, 2, 0])).loss.backward()
    assert model.prompt.head.classifier.weight.grad.abs().max() > 1e-6
    gpt2 = quantise(tiny.gpt2(GPT2ForSequenceClassification, num_labels=3), skipped=("score",))
    assert dp.prompted(gpt2, config).prompt.head.score.weight.requires_grad
