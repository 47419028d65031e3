"""A training step of each way to tune a prompt, on a frozen random T5 of the shape of t5-small.

The vocabulary is cut to 2,048 words, so the head and its loss cost less than in the real model; all ways share that,
and the same frozen weights. Dropout is off for all. A step clears the gradients, runs forward and backward, and lets
Adam update what is trained. What the values are does not matter for the time.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import gumbel_softmax, pad

import dplearn as dp

VOCABULARY, EOS = 2048, 1


class Shape(NamedTuple):
    """B, T, and the model: width d, heads, inner width of the feed-forward layers, layers (of each stack)."""

    batch: int
    seq: int
    dim: int
    heads: int
    inner: int
    layers: int


FULL, SMALL = Shape(8, 128, 512, 8, 2048, 6), Shape(2, 24, 32, 2, 64, 2)


def make_t5(shape):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=shape.dim,
        d_kv=shape.dim // shape.heads,
        d_ff=shape.inner,
        num_layers=shape.layers,
        num_decoder_layers=shape.layers,
        num_heads=shape.heads,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    return T5ForConditionalGeneration(config).eval()


def padded(lengths, width=None):
    """Random token ids (B, T) with an end token, right-padded, and their mask."""
    steps = torch.arange(width or int(lengths.max()))
    mask = (steps < lengths.unsqueeze(1)).long()
    ids = torch.randint(3, VOCABULARY, mask.shape).where(steps < lengths.unsqueeze(1) - 1, EOS) * mask
    return {"input_ids": ids, "attention_mask": mask}


def make_batch(shape):
    """Inputs of T/2 to T tokens, one of them T long, and labels: a word and the end token."""
    lengths = torch.randint(shape.seq // 2, shape.seq + 1, (shape.batch,))
    lengths[0] = shape.seq
    labels = torch.tensor([5, EOS]).repeat(shape.batch, 1)
    return padded(lengths, shape.seq) | {"labels": labels}


class FixedPrompt(nn.Module):
    """A trained prefix by plain concatenation: what prompt tuning costs without any package."""

    def __init__(self, backbone, vectors):
        super().__init__()
        self.backbone, self.vectors = backbone.requires_grad_(False), nn.Parameter(vectors)

    def forward(self, input_ids, attention_mask, labels):
        inputs = self.backbone.get_input_embeddings()(input_ids)
        embeds = torch.cat([self.vectors.expand(len(inputs), -1, -1), inputs], 1)
        if labels.shape == attention_mask.shape:  # a decoder-only model has a label for each row
            labels = pad(labels, (len(self.vectors), 0), value=-100)
        mask = pad(attention_mask, (len(self.vectors), 0), value=1)
        return self.backbone(inputs_embeds=embeds, attention_mask=mask, labels=labels)


def authors_loops(prompt, inputs, ends, weights):
    """Every candidate of every instance, one by one: their order of vectors (rotated), their slices by tensors."""
    mixed = []
    for i in range(len(inputs)):
        out = weights[i, 0] * torch.cat([prompt, inputs[i]])
        for j in range(1, len(prompt) + 1):
            front = torch.cat([prompt[j:], inputs[i][: ends[i]]])
            front = torch.cat([front, prompt[:j]])
            out = out + weights[i, j] * torch.cat([front, inputs[i][ends[i] :]])
        mixed.append(out)
    return torch.stack(mixed)


class AuthorsWay(nn.Module):
    """An instance position as the authors' code computes it, written anew from a description of that code.

    The frozen model runs twice, the first time with its decoder, its head and all hidden states; the mean of the
    encoder's states runs over padding too; embeddings and mask each go through the loops.
    """

    def __init__(self, backbone, vectors):
        super().__init__()
        self.backbone, self.vectors = backbone.requires_grad_(False), nn.Parameter(vectors)
        self.linear = nn.Linear(vectors.shape[1], len(vectors) + 1)

    def forward(self, input_ids, attention_mask, labels):
        first = self.backbone(input_ids, attention_mask, labels=labels, output_hidden_states=True)
        logits = self.linear(first.encoder_last_hidden_state.mean(1)).relu()
        weights = gumbel_softmax(logits, tau=1.0, hard=True)
        inputs, ends = self.backbone.get_input_embeddings()(input_ids), attention_mask.sum(1) - 1
        embeds = authors_loops(self.vectors, inputs, ends, weights)
        ones, mask = torch.ones(len(self.vectors), 1), attention_mask.unsqueeze(2).float()
        mask = authors_loops(ones, mask, ends, weights.detach()).squeeze(2).long()
        return self.backbone(inputs_embeds=embeds, attention_mask=mask, labels=labels)


ONE_PASS = {"estimator": "straight-through"}  # what others cost is the figure of the estimators
OURS = {
    "prefix": {},
    "task": {"position": "task", **ONE_PASS},
    "instance": {"position": "instance", **ONE_PASS},
    "unified": {"position": "instance", "size": "instance", "vector": "instance", **ONE_PASS},
    "encoder": {"position": "instance", "summary": "encoder", **ONE_PASS},
}


def peft_prompt(backbone, length, task="SEQ_2_SEQ_LM"):
    """The prompt tuning of the library peft on the same frozen model, in front of the encoder alone where there are two
    stacks; None where it is not installed."""
    try:
        from peft import PromptTuningConfig, get_peft_model
    except ModuleNotFoundError:
        return None
    config = PromptTuningConfig(task_type=task, num_virtual_tokens=length, num_transformer_submodules=1)
    return get_peft_model(backbone, config)


def make_step(model, batch):
    """A function that makes one training step of what is trained in the model."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def step():
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return step


def frozen_with_gradient(backbone):
    """How many weights of the backbone have a gradient or ask for one; a number that should be 0."""
    return sum(p.grad is not None or p.requires_grad for p in backbone.parameters())


def operator_step(vectors, shape):
    """The operator by itself at the shape of a step, with all its gradients."""
    prompt, count = vectors.clone().requires_grad_(), len(vectors) + 1
    weights = torch.eye(count)[torch.randint(count, (shape.batch,))].requires_grad_()
    rows = torch.randn(shape.batch, shape.seq, shape.dim)
    back = torch.randn(shape.batch, shape.seq + len(vectors), shape.dim)

    def step():
        dp.insert_weighted(prompt, rows, weights=weights).embeds.backward(back)

    return step


def report_length(report, shape, length, pairs):
    backbone, batch = make_t5(shape), make_batch(shape)
    vectors = torch.randn(length, shape.dim)
    models = {way: dp.prompted(backbone, dp.PromptConfig(length=length, **o)) for way, o in OURS.items()}
    models |= {"fixed": FixedPrompt(backbone, vectors), "authors": AuthorsWay(backbone, vectors.clone())}
    theirs = peft_prompt(backbone, length)
    if theirs is not None:
        models["peft"] = theirs
    steps = {way: make_step(model.train(), batch) for way, model in models.items()}
    backbone.eval()  # they share it: the same mode for all
    steps["operator"] = operator_step(vectors, shape)
    ratios = [
        "peft/fixed",
        *(f"{way}/fixed" for way in OURS),
        "instance/peft",
        "authors/instance",
        "operator/instance",
    ]
    for ratio in ratios:
        if theirs is None and "peft" in ratio:
            report.skip(f"{ratio} l={length}", "peft is not installed")
            continue
        report.ratio(f"{ratio} l={length}", *(steps[way] for way in ratio.split("/")), pairs)
    report.add(f"frozen l={length}", frozen_with_gradient(backbone))


def measure(report, quick, pairs):
    for length in (20, 100):
        report_length(report, SMALL if quick else FULL, length, pairs)
