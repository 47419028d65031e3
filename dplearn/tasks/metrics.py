"""The metrics of the tasks, as SuperGLUE and the image benchmarks define them: labels and predictions to named numbers.

The first value of a result is the headline. scikit-learn is imported when a metric is computed, not before.
"""

import statistics
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from dplearn.checks import is_number, is_whole


def accuracy(
    labels: Sequence[int], predictions: Sequence[int], groups: Sequence | None = None
) -> dict[str, float]:
    """The share of right predictions (BoolQ, RTE, WiC)."""
    from sklearn.metrics import accuracy_score

    return {"accuracy": float(accuracy_score(labels, predictions))}


def accuracy_f1(
    labels: Sequence[int], predictions: Sequence[int], groups: Sequence | None = None
) -> dict[str, float]:
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


def mean_per_class(
    labels: Sequence[int], predictions: Sequence[int], groups: Sequence | None = None
) -> dict[str, float]:
    """The unweighted mean of the accuracy within each class, and plain accuracy.

    The headline where classes have very different numbers of examples, for example in CLIP's linear probes on
    Caltech101, OxfordPets, Flowers102 and FGVCAircraft (Radford et al., 2021). The mean is over the classes that
    occur among the labels; a prediction outside of them is just wrong.
    """
    from sklearn.metrics import recall_score

    present = sorted(set(labels))
    mean = recall_score(labels, predictions, labels=present, average="macro", zero_division=0.0)
    return {"mean_per_class": float(mean), **accuracy(labels, predictions)}


def accuracy_mean_per_class(
    labels: Sequence[int], predictions: Sequence[int], groups: Sequence | None = None
) -> dict[str, float]:
    """Accuracy, the headline of VTAB, of VPT's FGVC results and of CoOp, and the mean of the per-class accuracies."""
    return {**accuracy(labels, predictions), **mean_per_class(labels, predictions)}


def harmonic_mean(base: float, new: float) -> float:
    """The harmonic mean of the accuracies on base and on new classes; 0 where one of them is 0.

    It is how base-to-new results are summarised since Zhou et al. (2022, CoCoOp): a high score needs both.

    >>> round(harmonic_mean(0.6, 0.3), 3)
    0.4
    """
    for argument, value in (("base", base), ("new", new)):
        if not is_number(value) or not 0 <= value < float("inf"):
            raise ValueError(f"{argument}={value!r}: expected an accuracy, a number of at least 0")
    return statistics.harmonic_mean((base, new))


def recall_at(
    scores: Any,
    relevant: Sequence[Sequence[int]] | None = None,
    ranks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Retrieval: the share of queries for which one of the first k items is relevant, for each k of ``ranks``.

    Parameters
    ----------
    scores : (queries, items) numbers, the larger the better, such as ``model.similarity(images, texts)`` for images
        that look for texts, and its transpose for texts that look for images.
    relevant : for each query the numbers of its relevant items (an image can have five captions); None: query i has
        item i.

    Equal scores count against the query: items that are not relevant go first.

    Raises
    ------
    ValueError : not a matrix, a rank below 1, a query without relevant items, or items that do not exist.

    >>> recall_at([[0.9, 0.1, 0.3], [0.8, 0.2, 0.5]], ranks=(1, 2, 3))
    {'recall@1': 0.5, 'recall@2': 0.5, 'recall@3': 1.0}
    """
    import numpy as np

    scores = np.asarray(scores)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores has shape {scores.shape}, expected (queries, items)")
    if not all(is_whole(k, 1) for k in ranks):
        raise ValueError(f"ranks={list(ranks)}: expected integers of at least 1")
    relevant = [[i] for i in range(len(scores))] if relevant is None else [list(items) for items in relevant]
    if len(relevant) != len(scores):
        raise ValueError(f"relevant has {len(relevant)} entries: expected {len(scores)}, one for each query")
    places = []
    for query, items in enumerate(relevant):
        if not items or not all(0 <= item < scores.shape[1] for item in items):
            raise ValueError(
                f"relevant[{query}]={items}: expected some of the items 0..{scores.shape[1] - 1}"
            )
        others = np.delete(scores[query], items)
        places.append(1 + int((others >= scores[query, items].max()).sum()))
    return {f"recall@{k}": float(np.mean([place <= k for place in places])) for k in ranks}


@dataclass(frozen=True)
class Metric:
    """A metric function and whether it needs the group of each example."""

    function: Callable[..., dict[str, float]]
    grouped: bool = False

    def __call__(
        self, labels: Sequence[int], predictions: Sequence[int], groups: Sequence | None = None
    ) -> dict[str, float]:
        return self.function(labels, predictions, groups)


METRICS = {
    "accuracy": Metric(accuracy),
    "accuracy_f1": Metric(accuracy_f1),
    "f1a_em": Metric(f1a_em, grouped=True),
    "mean_per_class": Metric(mean_per_class),
    "accuracy_mean_per_class": Metric(accuracy_mean_per_class),
}
