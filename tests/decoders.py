"""Small decoder-only models of several kinds, batches for them, and what a step of training gives with and without
the work that is spared."""

import spliced
import tiny
import torch
from torch.testing import assert_close
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from dplearn.backbones.parts import runs_in_parts

ROWS = [[5, 9, 6, 20, 33], [40, 4, 8], [3, 3, 17, 21, 12, 9, 50]]
BEHIND = [2, 1, 3]
NEAR = dict(rtol=1e-5, atol=1e-8)  # some models compute parts of a layer in float32
SIZES = dict(
    vocab_size=tiny.VOCABULARY, hidden_size=tiny.WIDTH, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, pad_token_id=tiny.PAD, eos_token_id=tiny.EOS,
    bos_token_id=None,
)  # fmt: skip


def windowed():
    """Attention that reaches eight rows back."""
    return tiny.finish(MistralForCausalLM, MistralConfig(**SIZES, sliding_window=8), 0, torch.float64)


def alternating():
    """A layer with a window, then one without; embeddings that the model scales."""
    return tiny.finish(Gemma2ForCausalLM, Gemma2Config(**SIZES, sliding_window=8), 0, torch.float64)


def shifted():
    """Learned positions that count from two, found from the mask."""
    config = OPTConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=tiny.WIDTH, word_embed_proj_dim=tiny.WIDTH, ffn_dim=32,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=96, dropout=0.0, pad_token_id=tiny.PAD,
        eos_token_id=tiny.EOS, bos_token_id=None,
    )  # fmt: skip
    return tiny.finish(OPTForCausalLM, config, 0, torch.float64)


MODELS = {
    "gpt2": tiny.gpt2,
    "llama": tiny.llama,
    "qwen2": tiny.qwen2,
    "mistral": windowed,
    "gemma2": alternating,
    "opt": shifted,
}


def batch_of(rows=ROWS, behind=BEHIND, side="right", extra=0):
    ids, mask = spliced.padded(rows, side, extra=extra)
    labels = [[-100] * (len(row) - last) + row[len(row) - last :] for row, last in zip(rows, behind)]
    labels = spliced.padded(labels, side, -100, extra)[0]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "keep_last": torch.tensor(behind)}


def model_of(kind="llama", position="postfix", **options):
    return spliced.prompted(MODELS[kind](), position, **options)


def lengths_run(model):
    """A list that gets the number of rows of each pass through the first layer."""
    runs_in_parts(model.adapter)  # which tries it out once
    seen, module = [], model.adapter.entry.module
    layer = next(layer for name, layer in module.named_modules() if name in ("layers.0", "h.0"))

    def look(layer, arguments, options):
        seen.append((arguments[0] if arguments else options["hidden_states"]).shape[1])

    layer.register_forward_pre_hook(look, with_kwargs=True)
    return seen


def gradients(model, batch, **options):
    torch.manual_seed(3)
    output = model.train()(**batch, **options)
    parameters = model.trainable_parameters()
    found = torch.autograd.grad(output.loss, parameters.values(), allow_unused=True)
    return output, dict(zip(parameters, found))


def assert_as_without(model, batch, shortcut="inputs", **tolerance):
    """Loss and gradients with the shortcut and without; returns the outputs."""
    outputs = []
    for shortcuts in ((shortcut,), ()):
        model.shortcuts = shortcuts
        outputs.append(gradients(model, batch))
    model.shortcuts = (shortcut,)
    (found, own), (full, wanted) = outputs
    assert_close(
        found.loss, full.loss, rtol=tolerance.get("rtol", 1e-5), atol=0
    )  # in float32 by transformers
    for name, gradient in wanted.items():
        if gradient is None:
            assert own[name] is None
        else:
            assert gradient.abs().max() > 1e-8, name
            assert_close(own[name], gradient, **tolerance or NEAR)
    return found, full
