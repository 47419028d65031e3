"""Targets that a prompt reaches at one split and at no other, with their exact losses, and the models where none exist.

Every comparison is at the same number of prompt vectors, and every prompt is the best one for its split. The frozen
readers are small enough to be solved completely. One file for each kind of reader, and for what they share:

window       a head that sees a window, and no content: the split fixes its weights
sides        two heads with content that look to one side each: rows that a prefix, or a postfix, cannot influence
biases       one layer with any relative bias
equivalence  which splits can stand in for each other in it, decided exactly
causal       two causal layers read at an end token; what stands before the input gates, what stands behind it reads
shift        absolute positions; the split moves the input along the position table
instance     types of inputs that need different splits, so that one split per task is not enough
search       the best prompt of such a reader, from many starts: a search proves no bound, it can only break one
places       which row stands where

Exact results are sympy numbers. The functions that end in ``_loss``, and ``one_sided`` and ``biased_rows``, are the
same readers in torch, for :func:`~dplearn.theory.separation.search.best_prompt`.

Symbols: ``split`` k is the number of prompt vectors before the input, ``length`` l of all of them, ``seq`` T of input
tokens; ``teacher`` is the split at which the target was made. The attention between tokens i and j of a sequence has
the relative offset r = j - i. Inputs have mean 0 and E[x x^T] = 1 wherever a loss is exact.
"""

from dplearn.theory.separation.biases import (
    Bias,
    alibi_bias,
    biased_rows,
    linear_bias,
    no_bias,
    t5_bias,
    t5_bucket,
)
from dplearn.theory.separation.causal import causal_bound, causal_coefficients, causal_infimum, causal_loss
from dplearn.theory.separation.equivalence import (
    equally_expressive,
    expressiveness_table,
    matching,
    profiles,
    transfer,
)
from dplearn.theory.separation.instance import (
    INSTANCE_VALUES,
    InstanceToy,
    TaskLevel,
    instance_cases,
    instance_level_accuracy,
    instance_level_loss,
    instance_output,
    instance_toy,
    task_level_accuracy,
    task_level_minimum,
    task_rule_floor,
)
from dplearn.theory.separation.search import BestPrompt, best_prompt
from dplearn.theory.separation.shift import (
    SHIFT_FACTORS,
    SHIFT_TARGET,
    shift_floor,
    shift_loss,
    shift_weights,
)
from dplearn.theory.separation.sides import Heads, head_bounds, one_sided, one_sided_floor, random_heads
from dplearn.theory.separation.window import (
    EPSILON,
    window_attention,
    window_floor,
    window_loss,
    window_minimum,
)

__all__ = [
    "EPSILON",
    "INSTANCE_VALUES",
    "SHIFT_FACTORS",
    "SHIFT_TARGET",
    "BestPrompt",
    "Bias",
    "Heads",
    "InstanceToy",
    "TaskLevel",
    "alibi_bias",
    "best_prompt",
    "biased_rows",
    "causal_bound",
    "causal_coefficients",
    "causal_infimum",
    "causal_loss",
    "equally_expressive",
    "expressiveness_table",
    "head_bounds",
    "instance_cases",
    "instance_level_accuracy",
    "instance_level_loss",
    "instance_output",
    "instance_toy",
    "linear_bias",
    "matching",
    "no_bias",
    "one_sided",
    "one_sided_floor",
    "profiles",
    "random_heads",
    "shift_floor",
    "shift_loss",
    "shift_weights",
    "t5_bias",
    "t5_bucket",
    "task_level_accuracy",
    "task_level_minimum",
    "task_rule_floor",
    "transfer",
    "window_attention",
    "window_floor",
    "window_loss",
    "window_minimum",
]
