"""A training step with a learned position on a decoder-only model and on an encoder, against their fixed prefix.

Both are random, with 4 layers and the width of t5-small; the vocabulary is cut as there. The fixed prefix is made by
hand, by concatenation, and stays in front of the head.
"""

import torch
from bench_steps import (
    EOS,
    FULL,
    ONE_PASS,
    SMALL,
    VOCABULARY,
    FixedPrompt,
    frozen_with_gradient,
    make_step,
    padded,
)

import dplearn as dp

LENGTH, LAYERS = 20, 4


def make_gpt2(shape):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": shape.dim, "n_layer": LAYERS, "n_head": shape.heads, "n_inner": shape.inner}
    config = GPT2Config(
        vocab_size=VOCABULARY, **sizes, n_positions=256, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=EOS, eos_token_id=EOS, use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def make_bert(shape):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=shape.dim, num_hidden_layers=LAYERS, num_attention_heads=shape.heads,
        intermediate_size=shape.inner, max_position_embeddings=256, num_labels=2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def make_batch(kind, shape):
    """Inputs as for T5. GPT-2 and Llama learn the last two tokens of each, BERT one of two classes."""
    lengths = torch.randint(shape.seq // 2, shape.seq + 1, (shape.batch,))
    lengths[0] = shape.seq
    batch = padded(lengths, shape.seq)
    if kind == "bert":
        return batch | {"labels": torch.randint(2, (shape.batch,))}
    answer = torch.arange(shape.seq) >= lengths.unsqueeze(1) - 2
    return batch | {"labels": batch["input_ids"].where(answer & (batch["attention_mask"] == 1), -100)}


def measure(report, quick, pairs):
    shape = SMALL if quick else FULL
    for kind, make in (("gpt2", make_gpt2), ("bert", make_bert)):
        backbone, batch = make(shape), make_batch(kind, shape)
        config = dp.PromptConfig(length=LENGTH, position="instance", **ONE_PASS)
        models = dp.prompted(backbone, config), FixedPrompt(backbone, torch.randn(LENGTH, shape.dim))
        steps = [make_step(model.train(), batch) for model in models]
        backbone.eval()
        report.ratio(f"{kind} instance/fixed", *steps, pairs)
        report.add(f"{kind} frozen", frozen_with_gradient(backbone))
