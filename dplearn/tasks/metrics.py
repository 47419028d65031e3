"""The metrics of the tasks, as SuperGLUE defines them: each maps labels and predictions to named numbers.

The first value of a result is the headline. scikit-learn is imported when a metric is computed, not before.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass


def accuracy(labels: Sequence[int], predictions: Sequence[int], groups=None) -> dict[str, float]:
    """The share of right predictions (BoolQ, RTE, WiC)."""
    from sklearn.metrics import accuracy_score

    return {"accuracy": float(accuracy_score(labels, predictions))}


def accuracy_f1(labels: Sequence[int], predictions: Sequence[int], groups=None) -> dict[str, float]:
    """Accuracy and the unweighted mean of the per-class F1 (CB).

    As in SuperGLUE's own code the mean is over the classes that occur among labels or predictions.
    """
    from sklearn.metrics import f1_score

    f1 = f1_score(labels, predictions, average="macro", zero_division=0.0)
    return {**accuracy(labels, predictions), "f1": float(f1)}


def f1a_em(labels: Sequence[int], predictions: Sequence[int], groups: Sequence[Hashable]) -> dict[str, float]:
    """F1 of label 1 over all answers, and the share of groups without any error (MultiRC).

    A group is a question with its candidate answers. Plain accuracy comes last: the paper's code reports it.
    """
    from sklearn.metrics import f1_score

    whole: dict[Hashable, bool] = {}
    for label, prediction, group in zip(labels, predictions, groups, strict=True):
        whole[group] = whole.get(group, True) and label == prediction
    f1a = f1_score(labels, predictions, average="binary", pos_label=1, zero_division=0.0)
    return {"f1a": float(f1a), "em": sum(whole.values()) / len(whole), **accuracy(labels, predictions)}


@dataclass(frozen=True)
class Metric:
    """A metric function and whether it needs the group of each example."""

    function: Callable[..., dict[str, float]]
    grouped: bool = False

    def __call__(self, labels, predictions, groups=None) -> dict[str, float]:
        return self.function(labels, predictions, groups)


METRICS = {
    "accuracy": Metric(accuracy),
    "accuracy_f1": Metric(accuracy_f1),
    "f1a_em": Metric(f1a_em, grouped=True),
}
