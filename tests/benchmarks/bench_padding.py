"""What padding costs: one epoch over inputs of uneven length, padded in three ways.

64 inputs in batches of 8, with lengths drawn from a log-normal distribution (median 60, sigma 0.6) and cut to 20..200
tokens. Each epoch trains an instance position on the T5 of bench_steps.
"""

import torch
from bench_steps import EOS, FULL, ONE_PASS, SMALL, make_step, make_t5, padded

import dplearn as dp

INPUTS, BATCH = 64, 8


def make_lengths(quick):
    lengths = (60 * torch.exp(0.6 * torch.randn(INPUTS))).round().long().clamp(20, 200)
    return (lengths[:16] / 4).long() if quick else lengths


def make_batches(lengths, width=None):
    """Batches of 8 in the order of ``lengths``, each as wide as its longest input, or all of one width."""
    labels = torch.tensor([5, EOS]).repeat(BATCH, 1)
    return [padded(part, width) | {"labels": labels} for part in lengths.split(BATCH)]


def make_epoch(model, batches):
    steps = [make_step(model, batch) for batch in batches]
    return lambda: [step() for step in steps]


def share_of_padding(batches):
    masks = [batch["attention_mask"] for batch in batches]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def measure(report, quick, pairs):
    model = dp.prompted(
        make_t5(SMALL if quick else FULL), dp.PromptConfig(position="instance", **ONE_PASS)
    ).train()
    lengths = make_lengths(quick)
    ways = {
        "longest": make_batches(lengths, int(lengths.max())),
        "dynamic": make_batches(lengths),
        "grouped": make_batches(lengths.sort().values),
    }
    epochs = {way: make_epoch(model, batches) for way, batches in ways.items()}
    for way in ("dynamic", "grouped"):
        report.ratio(f"{way}/longest", epochs[way], epochs["longest"], pairs)
    for way, batches in ways.items():
        report.add(f"padding {way}", share_of_padding(batches))
