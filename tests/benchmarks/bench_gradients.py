"""How well each estimator finds the gradient of a position, on small random models of four kinds, beside the exact one.

The models are those of the tests (2 layers, width 16, float64); the prompt is random, l = 4, and all splits are equally
likely. A figure is the median over seeds, each with a model, a prompt and a batch of its own.
"""

import statistics
import sys
from pathlib import Path

import torch
from goals import ESTIMATORS, GRADIENT_KINDS
from transformers import BertForSequenceClassification

import dplearn as dp
from dplearn.theory import gradients

sys.path.insert(0, str(Path(__file__).parent.parent))

LENGTH, TEMPERATURE = 4, 0.5
LENGTHS = [8, 6, 9, 7]  # of the inputs


def make(kind, seed):
    """A prompted model with uniform logits, and a batch for it."""
    import tiny

    ids, mask = tiny.batch(LENGTHS, seed=seed)
    batch = {"input_ids": ids, "attention_mask": mask}
    if kind == "t5":
        backbone = tiny.t5(seed=seed)
        labels = torch.randint(3, tiny.VOCABULARY, (4, 2), generator=torch.Generator().manual_seed(seed))
    elif kind == "bert":
        backbone = tiny.bert(BertForSequenceClassification, seed=seed, num_labels=3)
        labels = torch.arange(4) % 3
    else:  # the last two tokens are the answer
        backbone = tiny.gpt2(seed=seed) if kind == "gpt2" else tiny.llama(seed=seed)
        labels = ids.masked_fill((mask == 0) | (mask.cumsum(1) <= mask.sum(1, keepdim=True) - 2), -100)
    torch.manual_seed(seed)
    config = dp.PromptConfig(length=LENGTH, position="task", temperature=TEMPERATURE)
    model = dp.prompted(backbone, config, vectors=torch.randn(LENGTH, tiny.WIDTH))
    model.prompt.double()
    with torch.no_grad():
        model.prompt.position.controller.logits.zero_()
    return model, batch | {"labels": labels}


def measure(report, quick, pairs):
    seeds, draws = (2, 100) if quick else (10, 2000)
    for kind in GRADIENT_KINDS:
        found = {name: [] for name in ESTIMATORS[:-1]}
        for seed in range(seeds):
            torch.manual_seed(seed)
            for name, quality in gradients.compare(*make(kind, seed), tuple(found), draws).items():
                found[name].append(quality)
        for name, qualities in found.items():
            for field in ("cosine", "noise"):
                values = sorted(getattr(quality, field) for quality in qualities)
                low, _, high = statistics.quantiles(values, n=4, method="inclusive")
                report.add(
                    f"{kind} {name} {field}",
                    statistics.median(values),
                    low=low,
                    high=high,
                    seeds=seeds,
                    draws=draws,
                )
