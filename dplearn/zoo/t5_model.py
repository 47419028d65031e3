"""The architecture of t5-mini (and place-mini), how it starts, and what its optimizer and its batches are."""

import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.activations import NewGELUActivation

from .noise import embed_with_noise

SEED = 1
SHAPE = dict(d_model=128, d_kv=16, d_ff=448, num_layers=4, num_decoder_layers=2, num_heads=8)


def fresh_model(tokenizer_size=4096, seed=SEED, shape=SHAPE):
    """The architecture with freshly initialised weights; ``shape`` has the sizes that t5-mini's `SHAPE` has."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=tokenizer_size, feed_forward_proj="gated-gelu", dropout_rate=0.0, tie_word_embeddings=True,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, **shape,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    mimic(model)
    return model


def shape_of(config) -> dict:
    """The sizes of a model's config that `SHAPE` has: a fresh model of the same architecture is made of them."""
    return {key: getattr(config, key) for key in SHAPE}


@torch.no_grad()
def mimic(model):
    """A start that looks a little like a trained transformer ("mimetic initialisation", Trockman and Kolter 2023).

    Half of the encoder's heads start by looking at a neighbour (relative biases), the other half at equal words
    (keys are scaled queries). Attention in the decoder starts by looking for equal words and copying what it sees.
    """
    for head, bucket in enumerate((1, 17, 2, 18)):  # offsets -1, +1, -2, +2
        model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight[bucket, head] = 4.0
    model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight[0, 4:] = -3.0  # not oneself
    for block in model.encoder.block:
        look_for_equals(block.layer[0].SelfAttention, first_head=4)
    for block in model.decoder.block:
        cross = block.layer[1].EncDecAttention
        look_for_equals(cross, first_head=0)
        torch.nn.init.orthogonal_(cross.v.weight)
        cross.o.weight.copy_(cross.v.weight.T)


def look_for_equals(attention, first_head):
    """From this head on, keys are the scaled queries: equal inputs get the largest scores."""
    rows = slice(first_head * attention.key_value_proj_dim, None)
    attention.k.weight[rows] = attention.q.weight[rows] * attention.key_value_proj_dim**0.5


def parameter_groups(model):
    """AdamW moves every weight by about the learning rate, whatever its size, so large weights need larger rates.

    Attending by position needs relative biases of several units, which start near 0; embeddings start at 1.
    """
    named = dict(model.named_parameters())
    biases = [p for name, p in named.items() if "relative_attention_bias" in name]
    embeddings = [named["shared.weight"]]
    special = {id(p) for p in biases + embeddings}
    rest = [p for p in named.values() if id(p) not in special]
    return [
        {"params": rest, "factor": 1.0},
        {"params": biases, "factor": 20.0, "weight_decay": 0.0},
        {"params": embeddings, "factor": 3.0, "weight_decay": 0.0},
    ]


def fuse_activations(model):
    """The same GELU in one kernel instead of seven: a tenth of a step. The config stays, and so does the export."""
    for module in model.modules():
        if isinstance(getattr(module, "act", None), NewGELUActivation):
            module.act = torch.nn.GELU(approximate="tanh")


def collate(tokenizer, pairs):
    """(input, target) texts -> input_ids (B, T), attention_mask (B, T), labels (B, S) with -100 as padding."""
    inputs = tokenizer([text for text, _ in pairs], padding=True, return_tensors="pt")
    labels = tokenizer([target for _, target in pairs], padding=True, return_tensors="pt")
    hidden = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)
    return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "labels": hidden}


def forward(model, batch, noise_id, seed):
    """The model's output for a batch of :func:`collate`, its noise drawn from ``seed``."""
    embeds = embed_with_noise(model, batch["input_ids"], noise_id, torch.Generator().manual_seed(seed))
    return model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], labels=batch["labels"])
