"""A training step with each estimator of the position's gradient, against the fixed prompt, on the T5 of bench_steps.

WAYS is the place for estimators: one line each, with the further options of PromptConfig that it needs. One that the
package does not know is skipped. The batch has 4 inputs, since "exact" runs the model on l+1 = 21 copies of it.
"""

import math

import torch
from bench_steps import FULL, SMALL, FixedPrompt, make_batch, make_step, make_t5

import dplearn as dp

LENGTH = 20
WAYS = [
    ("straight-through", {}),
    ("position-space", {}),
    ("score-function", {}),
    ("exact", {}),
]


def measure(report, quick, pairs):
    shape = (SMALL if quick else FULL)._replace(batch=4)
    backbone, batch = make_t5(shape), make_batch(shape)
    fixed = make_step(FixedPrompt(backbone, torch.randn(LENGTH, shape.dim)), batch)
    for name, options in WAYS:
        try:
            config = dp.PromptConfig(length=LENGTH, position="instance", estimator=name, **options)
        except (TypeError, ValueError) as error:
            report.skip(f"{name}/fixed", f"not available: {error}")
            continue
        step = make_step(dp.prompted(backbone, config).train(), batch)
        report.ratio(f"{name}/fixed", step, fixed, pairs)
    report.ratio("score-function settled/fixed", settled_step(backbone, batch), fixed, pairs)


def settled_step(backbone, batch):
    """A step whose decisions are nearly made: one split has probability 0.9, so most draws of an input agree."""
    model = dp.prompted(backbone, dp.PromptConfig(length=LENGTH, position="instance")).train()
    with torch.no_grad():
        model.prompt.position.controller.linear.bias[3] = math.log(0.9 / (0.1 / LENGTH))
    return make_step(model, batch)
