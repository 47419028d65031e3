"""Evaluation with a learned size: 20 of 100 vectors are in use. What does it save to drop the other 80?

In evaluation the package drops the vectors that no instance of the batch uses. The other way leaves them in the batch
and masks them, which is what training needs. Both give the same logits.
"""

import torch
from bench_steps import FULL, ONE_PASS, SMALL, make_batch, make_t5

import dplearn as dp

LENGTH, USED, SPLIT = 100, 20, 10


def make_model(backbone):
    """A model whose size is learned, made sure of the size 20."""
    config = dp.PromptConfig(length=LENGTH, size="task", position=SPLIT, **ONE_PASS)
    model = dp.prompted(backbone, config).eval()
    with torch.no_grad():
        model.prompt.size.controller.logits[:, USED] = 10.0
    return model


@torch.no_grad()
def dropped(model, batch):
    """The package's evaluation: (B, T+20) rows."""
    return model(**batch).logits


@torch.no_grad()
def masked(model, batch):
    """The same decisions with all vectors in the batch: (B, T+100) rows."""
    ids, mask, labels = batch.values()
    inputs = model.adapter.embed(ids)
    size = model.prompt.decide(inputs)["size"].index
    kept = model.adapter.keep_last(ids, mask, labels)
    placed = dp.insert(model.prompt.vectors, inputs, mask, SPLIT, size, keep_last=kept)
    return model.backbone(inputs_embeds=placed.embeds, attention_mask=placed.mask, labels=labels).logits


def measure(report, quick, pairs):
    shape = SMALL if quick else FULL
    model, differences = make_model(make_t5(shape)), []
    for seq in (64, 128):
        batch = make_batch(shape._replace(seq=seq))
        ours, theirs = dropped(model, batch), masked(model, batch)
        differences.append(float((ours - theirs).abs().max() / theirs.abs().max()))
        report.ratio(
            f"dropped/masked T={seq}",
            lambda b=batch: dropped(model, b),
            lambda b=batch: masked(model, b),
            pairs,
        )
    report.add("difference", max(differences))
