"""Was a decision learned, and was there anything to win? Numbers from distributions and from losses at every option.

Pure functions of tensors: :func:`dplearn.decision_report` gets these tensors from a model and its data.

n is the number of options of a decision, N the number of inputs. ``first`` and ``last`` are the distributions over the
options at the start and at the end of the training, (N, n) rows that sum to 1; ``losses`` (N, n) is the loss of each
input with the decision held at each option.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

PERMUTATIONS = 200  # of labels, for the null distribution of a mutual information
STRENGTHS = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)  # penalties of the ridge regression, times the number of inputs
MOVED = 0.1  # total variation below which a decision counts as not learned
ONE_FOR_ALL = (
    0.99  # share of the inputs at one option from which a decision is the same for all, whatever its name
)


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats: (N, n) -> (N,). Between 0 (one option is certain) and log n (all are equally likely).

    >>> entropy(torch.tensor([[0.9, 0.1], [0.5, 0.5]])).round(decimals=3)
    tensor([0.3250, 0.6930])
    """
    return torch.special.entr(probabilities).sum(-1)


def total_variation(first: Tensor, last: Tensor) -> Tensor:
    """Half of the sum of absolute differences: (N, n), (N, n) -> (N,), between 0 (equal) and 1 (disjoint)."""
    return (first - last).abs().sum(-1) / 2


def mutual_information(options: Tensor, labels: Tensor) -> float:
    """How many nats the option of an input tells about its label, from their counts: (N,), (N,) -> a number >= 0.

    >>> round(mutual_information(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 7, 7])), 3)
    0.693
    """
    joint = torch.zeros(int(options.max()) + 1, int(labels.max()) + 1, dtype=torch.float64)
    joint.index_put_((options, labels), torch.ones(len(options), dtype=torch.float64), accumulate=True)
    joint /= len(options)
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return float((torch.xlogy(joint, joint) - torch.xlogy(joint, independent)).sum().clamp_min(0))


def uniform(mean_entropy: float | None, options: int) -> bool:
    """Whether distributions of this mean entropy (nats) are equal weights for every input, to rounding.

    >>> uniform(0.6931, 2), uniform(0.68, 2)
    (True, False)
    """
    return mean_entropy is not None and math.log(options) - mean_entropy < 1e-3


@dataclass(frozen=True)
class Evidence:
    """What one decision did.

    options : n.  inputs : N.
    entropy_first, entropy : mean entropy of the distributions at the start and now, in nats.
    moved : mean total variation between the two.  changed : share of inputs whose most likely option changed.
        (Of the start None where nobody knows it.)
    counts : how many inputs get each option.  used : how many options are used.  share : of the most used one.
    information : mutual information of option and label in nats; expected: its mean where labels are dealt out at
        random (it is not 0 for a finite number of inputs); chance: share of such deals that reach it. None without
        labels.
    loss, shuffled : mean loss with each input's own decision, and with the decisions dealt out to other inputs; cost:
        their difference, with the half-width of its 95 % interval over the inputs. None where losses were not asked
        for. If dealing them out costs nothing, the single input played no part.
    """

    options: int
    inputs: int
    entropy_first: float | None
    entropy: float
    moved: float | None
    changed: float | None
    counts: tuple[int, ...]
    used: int
    share: float
    information: float | None = None
    expected: float | None = None
    chance: float | None = None
    loss: float | None = None
    shuffled: float | None = None
    cost: tuple[float, float] | None = None

    @property
    def learned(self) -> bool | None:
        """Whether the decision moved away from its start (total variation of at least 0.1); None: not known.

        A decision that started the same for all inputs was also learned where dealing it to other inputs costs (its
        interval lies above 0), however little it moved: the weights of a mixture have no scale of their own, since
        larger vectors and smaller differences of the weights give the same prompts (chapter 14).
        """
        if self.moved is None or self.moved >= MOVED:
            return None if self.moved is None else True
        return (
            uniform(self.entropy_first, self.options)
            and self.cost is not None
            and self.cost[0] > self.cost[1]
        )

    @property
    def per_input(self) -> bool:
        """Whether different inputs get different options: less than 99 % of them share one."""
        return self.share < ONE_FOR_ALL

    def to_dict(self) -> dict:
        """Plain JSON values."""
        return asdict(self) | {"counts": list(self.counts), "learned": self.learned}


def evidence(
    last: Tensor,
    chosen: Tensor,
    first: Tensor | None = None,
    first_chosen: Tensor | None = None,
    labels: Tensor | None = None,
    own: Tensor | None = None,
    dealt: Tensor | None = None,
    seed: int = 0,
) -> Evidence:
    """Put together what one decision did.

    Parameters
    ----------
    last : (N, n) distributions now.
    chosen : (N,) options in evaluation now.
    first : as ``last``, at the start.
    first_chosen : as ``chosen``, at the start.
    labels : (N,) integers of at least 0.
    own : (N,) losses with each input's own decision.
    dealt : (N,) losses with the decisions of other inputs.
    seed : of the random deals of labels.
    """
    counts = torch.bincount(chosen, minlength=last.shape[1])
    told: dict[str, Any] = {}
    pair: dict[str, Any] = {}
    if labels is not None:
        told = _told(chosen, labels, seed)
    if own is not None and dealt is not None:
        pair = {"loss": float(own.mean()), "shuffled": float(dealt.mean()), "cost": _interval(dealt - own)}
    return Evidence(
        options=last.shape[1],
        inputs=len(last),
        entropy_first=None if first is None else float(entropy(first).mean()),
        entropy=float(entropy(last).mean()),
        moved=None if first is None else float(total_variation(first, last).mean()),
        changed=None if first_chosen is None else float((chosen != first_chosen).double().mean()),
        counts=tuple(counts.tolist()),
        used=int((counts > 0).sum()),
        share=float(counts.max() / len(chosen)),
        **told,
        **pair,
    )


def _told(chosen: Tensor, labels: Tensor, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    information = mutual_information(chosen, labels)
    deals = [labels[torch.randperm(len(labels), generator=generator)] for _ in range(PERMUTATIONS)]
    null = torch.tensor([mutual_information(chosen, deal) for deal in deals])
    reached = (1 + int((null >= information - 1e-12).sum())) / (1 + PERMUTATIONS)
    return {"information": information, "expected": float(null.mean()), "chance": reached}


@dataclass(frozen=True)
class Headroom:
    """What a decision could win, from the losses at every option. All are mean losses over the inputs.

    options : which ones were tried.  means : of each.  deviation : mean over the inputs of the standard deviation over
        the options: how much the decision matters at all.
    best : the option with the smallest mean.  fixed : its mean (the oracle per task).  fixed_elsewhere : the mean of
        the option that is best on the other half of the inputs (cross-fitted).
    random : the mean over all options.
    oracle : the mean of each input's smallest loss. Optimistic: a minimum over noise.
    per_group : where groups are known, the mean of the option that is best for the input's group on the other half.
    by_summary : where summaries are known, the mean of the option that a linear function of the summary, fitted on the
        other inputs, prefers: what a controller as the package has it could reach.
    learned : the mean at the options that the model decides for; None where nothing is decided.
    gain : fixed minus the best cross-fitted policy (per_group or by_summary; without either, the oracle), with the
        half-width of its 95 % interval over the inputs.
    closed : (fixed - learned) / (fixed - that policy); None where the gain is inside its interval.
    """

    options: tuple[int, ...]
    inputs: int
    means: tuple[float, ...]
    deviation: float
    best: int
    fixed: float
    fixed_elsewhere: float
    random: float
    oracle: float
    per_group: float | None
    by_summary: float | None
    learned: float | None
    gain: tuple[float, float]
    closed: float | None

    def to_dict(self) -> dict:
        """Plain JSON values."""
        values = asdict(self)
        return values | {name: list(values[name]) for name in ("options", "means", "gain")}

    @property
    def verdict(self) -> str:
        """One sentence: whether there was anything to win."""
        gain, half = self.gain
        crossed = self.per_group is not None or self.by_summary is not None
        if gain <= half:
            return (
                f"Nothing to win could be shown: deciding for each input gains {gain:+.3f} ± {half:.3f} over the best "
                f"fixed option ({self.best})."
            )
        how = "cross-fitted" if crossed else "at most, by each input's smallest loss"
        text = f"Deciding for each input gains {gain:.3f} ± {half:.3f} over the best fixed option ({self.best}), {how}"
        if self.closed is None:
            return f"{text}."
        if self.closed < 0:
            return f"{text}; the learned decision is worse than this fixed option."
        return f"{text}; the learned decision closes {self.closed:.0%} of this."


def headroom(
    losses: Tensor,
    options: tuple[int, ...] | None = None,
    chosen: Tensor | None = None,
    groups: Tensor | None = None,
    summaries: Tensor | None = None,
    seed: int = 0,
) -> Headroom:
    """What could be won by deciding for each input.

    Parameters
    ----------
    losses : (N, n), N >= 4.
    options : the names of the n columns, None: 0..n-1.
    chosen : (N,) what the model decides, as options; those that were not tried are an error.
    groups : (N,) integers, such as the known type of each input or a set of paraphrases.
    summaries : (N, d) what a controller looks at.
    seed : of the halves.

    Raises
    ------
    ValueError : fewer than four inputs; ``chosen`` holds an option that was not tried.

    >>> losses = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(10, 1)
    >>> room = headroom(losses, groups=torch.tensor([0, 1]).repeat(10))
    >>> room.fixed, room.per_group, room.oracle
    (0.5, 0.0, 0.0)
    """
    losses = losses.double()
    count, n = losses.shape
    if count < 4:
        raise ValueError(f"losses has {count} rows, expected at least 4 inputs")
    names = tuple(range(n)) if options is None else tuple(options)
    half = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).argsort() % 2
    rows = torch.arange(count)
    means = losses.mean(0)
    column = int(means.argmin())
    grouped = None if groups is None else losses[rows, _best_elsewhere(losses, half, groups)]
    fitted = None if summaries is None else losses[rows, _preferred(losses, summaries.double(), seed)]
    policies = [policy for policy in (grouped, fitted) if policy is not None]
    reachable = min(policies, key=lambda policy: float(policy.mean())) if policies else losses.amin(1)
    gain = _interval(losses[:, column] - reachable)
    learned = None if chosen is None else float(losses[rows, _columns_of(chosen, names)].mean())
    return Headroom(
        options=names,
        inputs=count,
        means=tuple(means.tolist()),
        deviation=float(losses.std(1, correction=0).mean()),
        best=names[column],
        fixed=float(means[column]),
        fixed_elsewhere=float(losses[rows, _best_elsewhere(losses, half, torch.zeros_like(half))].mean()),
        random=float(losses.mean()),
        oracle=float(losses.amin(1).mean()),
        per_group=None if grouped is None else float(grouped.mean()),
        by_summary=None if fitted is None else float(fitted.mean()),
        learned=learned,
        gain=gain,
        closed=None if learned is None or gain[0] <= gain[1] else (float(means[column]) - learned) / gain[0],
    )


def _columns_of(chosen: Tensor, names: tuple[int, ...]) -> Tensor:
    """(N,) columns of the chosen options; ValueError where one was not tried."""
    columns = torch.tensor([names.index(int(k)) if int(k) in names else -1 for k in chosen])
    if (columns < 0).any():
        raise ValueError(f"chosen holds options that were not tried, expected some of {list(names)}")
    return columns


def _best_elsewhere(losses: Tensor, half: Tensor, groups: Tensor) -> Tensor:
    """(N,) columns: for each input the best of its group on the other half; for a group without any there, of all."""
    best = torch.empty(len(losses), dtype=torch.int64)
    for side in (0, 1):
        other = half != side
        for group in groups.unique():
            seen = other & (groups == group)
            seen = seen if seen.any() else other
            best[(half == side) & (groups == group)] = losses[seen].mean(0).argmin()
    return best


def _preferred(losses: Tensor, summaries: Tensor, seed: int, folds: int = 5) -> Tensor:
    """(N,) columns: those with the smallest loss by a ridge regression on the summaries, fitted on other inputs."""
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(seed + 1))
    best = torch.empty(len(losses), dtype=torch.int64)
    for held_out in order.chunk(min(folds, len(order))):
        kept = torch.ones(len(losses), dtype=torch.bool)
        kept[held_out] = False
        best[held_out] = _ridge(summaries[kept], losses[kept], summaries[held_out]).argmin(1)
    return best


def _ridge(inputs: Tensor, targets: Tensor, fresh: Tensor) -> Tensor:
    """Ridge regression with an intercept, its penalty chosen by the exact leave-one-out error: (M, n) predictions."""
    centre, scale = inputs.mean(0), inputs.std(0, correction=0).clamp_min(1e-6)
    u, s, v = torch.linalg.svd((inputs - centre) / scale, full_matrices=False)
    mean = targets.mean(0)
    projected, best = u.T @ (targets - mean), (math.inf, 0.0)
    for strength in STRENGTHS:
        shrink = s.square() / (s.square() + strength * len(inputs))
        fitted = mean + u @ (shrink[:, None] * projected)
        leverage = (u.square() @ shrink + 1 / len(inputs)).clamp(max=1 - 1e-6)
        error = float(((targets - fitted) / (1 - leverage)[:, None]).square().mean())
        best = min(best, (error, strength))
    weights = v.T @ ((s / (s.square() + best[1] * len(inputs)))[:, None] * projected)
    return mean + ((fresh - centre) / scale) @ weights


def _interval(differences: Tensor) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval over the inputs (normal; N is in the dozens at least)."""
    values = differences.double()
    return float(values.mean()), float(1.96 * values.std() / math.sqrt(len(values)))
