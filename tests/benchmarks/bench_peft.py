"""A training step against prompt tuning by the library peft, on models of the shape of T5-small, SmolLM2-135M, BERT-base.

All are random. The vocabulary is cut to 2,048 words; both ways share the frozen weights, the batch and the optimizer.
"""

from bench_kept import make_llama
from bench_models import make_batch as batch_for
from bench_models import make_bert
from bench_steps import (
    ONE_PASS,
    SMALL,
    Shape,
    frozen_with_gradient,
    make_batch,
    make_step,
    make_t5,
    peft_prompt,
)
from goals import PEFT_MODELS, PEFT_WAYS

import dplearn as dp

LENGTH = 20
T5_SMALL = Shape(8, 128, 512, 8, 2048, 6)
BERT_BASE = Shape(8, 128, 768, 12, 3072, 12)
WAYS = {
    "prefix": {},
    "instance": {"position": "instance", **ONE_PASS},
    "pool": {"vector": "instance", "pool_size": 4},
}


def model_and_batch(kind, quick):
    """A frozen model, a batch for it, and what peft calls its task."""
    if kind == "t5":
        shape = SMALL if quick else T5_SMALL
        return make_t5(shape), make_batch(shape), "SEQ_2_SEQ_LM"
    if kind == "llama":
        shape = Shape(4, 24 if quick else 100, 0, 0, 0, 0)
        return make_llama(quick), batch_for("llama", shape), "CAUSAL_LM"
    shape = SMALL if quick else BERT_BASE
    return make_bert(shape), batch_for("bert", shape), "SEQ_CLS"


def measure(report, quick, pairs):
    for kind in PEFT_MODELS:
        backbone, batch, task = model_and_batch(kind, quick)
        ours = {way: dp.prompted(backbone, dp.PromptConfig(length=LENGTH, **WAYS[way])) for way in PEFT_WAYS}
        own = batch | ({"keep_last": 2} if kind == "llama" else {})
        steps = {way: make_step(model.train(), own) for way, model in ours.items()}
        theirs = peft_prompt(backbone, LENGTH, task)
        if theirs is not None:
            for name, parameter in theirs.named_parameters():
                parameter.requires_grad_("prompt" in name)  # a classifier's head would be trained as well
            other = make_step(theirs.train(), batch)
        backbone.eval()  # they share it: the same mode for all
        for way in PEFT_WAYS:
            if theirs is None:
                report.skip(f"{kind} {way}/peft", "peft is not installed")
            else:
                report.ratio(f"{kind} {way}/peft", steps[way], other, pairs)
        report.add(f"{kind} frozen", frozen_with_gradient(backbone))
