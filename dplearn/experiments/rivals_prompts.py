"""Two newer ways to prompt per input, on our own parts: SMoP routes to a short prompt, CaPT adds the input's mean.

SMoP (Choi et al., EMNLP 2023), after the authors' code: a pool of K = 4 prompts of 5 vectors in front of the input. A
linear layer without a bias, orthogonal at first, sees the masked mean of the input embeddings; its softmax p picks the
prompt with the largest p_k, and that prompt, times p_k, is inserted, so that the router has a gradient. While training,
logits s become s (1 + e), e standard normal; the loss has their term for an even load, a = 0.01 times
``K sum_k mean(p_k) share(k)``. Departures: first vectors are rows of the vocabulary, as of all prompts here (theirs are
standard normal), the router has the rate of controllers (theirs that of the prompts), rates are constant after the
warm-up, nothing decays, and the answer is read among the label words instead of generated.

CaPT (Liu et al., NeurIPS 2025, arXiv 2510.16670). From the paper's abstract: one vector, task-aware and
instance-aware, at the earliest position. From summaries by others (we did not see its equations): a learned vector plus
the mean of what enters the layer, in front of the sequence, *in each layer*. Our reading is the first layer alone,
where an embedded input can be prompted: ``p + mean(x)``, the mean over the real tokens. So it is the shallow form of
that method, with d trained numbers instead of d for each layer; p starts at a row of the vocabulary, as all prompts
here do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from transformers import PreTrainedModel, set_seed

from dplearn.config import PromptConfig
from dplearn.controllers import FixedDecision
from dplearn.experiments.fitting import Settings
from dplearn.experiments.rivals import options_of
from dplearn.experiments.tuning import USUAL, Encode, prompted_for, train_prompt
from dplearn.experiments.watching import LOOKS, Looks
from dplearn.model import PromptedModel
from dplearn.prompt import DynamicPrompt
from dplearn.sampling import Choice, at_least_float32, learned
from dplearn.tasks.base import Task
from dplearn.vector import Mixture


class MeanRouter(nn.Linear):
    """Logits from the mean of the embeddings as it is, (B, d) -> (B, K): no bias, orthogonal weights."""

    looks_at_input = True

    def __init__(self, width: int, options: int):
        super().__init__(width, options, bias=False)
        nn.init.orthogonal_(self.weight)

    @property
    def options(self) -> int:
        """K, how many prompts there are."""
        return self.out_features

    def forward(self, summary: Tensor, task: Tensor | None = None) -> Tensor:
        """Logits (B, K); ``task`` is not used."""
        return super().forward(summary.to(self.weight.dtype))


class Router(Mixture):
    """Picks one prompt of a pool and scales it by its probability.

    Parameters
    ----------
    width : d.
    options : K.
    noise : standard deviation of what logits are multiplied by (around 1) while training.
    """

    def __init__(self, width: int, options: int, noise: float = 1.0):
        super().__init__(MeanRouter(width, options))
        self.mixing, self.noise = "hard", noise  # one of many, though nothing samples it

    def forward(self, summary: Tensor, task: Tensor | None = None, sampling: bool | None = None) -> Choice:
        """The choice of each instance, with weights (B, K) that are its probability at one prompt and 0 elsewhere."""
        logits = at_least_float32(self.controller(summary))
        if (self.training if sampling is None else sampling) and self.noise:
            logits = logits + self.noise * torch.randn_like(logits) * logits.detach()
        probabilities = logits.softmax(-1)
        index = probabilities.argmax(-1)
        return Choice(index, probabilities * one_hot(index, self.controller.options), logits)


class RoutedPrompt(DynamicPrompt):
    """A prompt whose pool is routed over, with the cost of an uneven load while training.

    balance : the factor of that cost.
    """

    def __init__(self, *parts, balance: float = 0.01, **others):
        super().__init__(*parts, **others)
        self.balance = balance

    def penalty(self, decisions: dict[str, Choice], sampling: bool | None = None) -> Tensor | None:
        """``balance * K * sum_k mean(p_k) share(k)``, least where the load is even; None in evaluation."""
        if not self.balance or not (self.training if sampling is None else sampling):
            return None
        choice = decisions["vector"]
        means = learned(choice.logits).softmax(-1).mean(0)
        shares = one_hot(choice.index, len(means)).to(means).mean(0)
        return self.balance * len(means) * (means * shares).sum()


class InputMean(nn.Module):
    """Adds the mean of an input's embeddings to its prompt; nothing is trained.

    It stands among the decisions of a prompt, of which it has the form: its "choice" carries the mean.
    """

    looks_at_input = True

    def forward(self, summary: Tensor, task: Tensor | None = None, sampling: bool | None = None) -> Choice:
        """summary: (B, d), the mean."""
        return Choice(torch.zeros(len(summary), dtype=torch.long, device=summary.device), summary)

    def edit(self, vectors: Tensor, choice: Choice) -> Tensor:
        """The prompt of each instance: (l, d) -> (B, l, d)."""
        return vectors + learned(choice.weights).to(vectors.dtype).unsqueeze(1)

    def entries_in_use(self) -> dict[str, int]:
        """How many entries of each parameter can change an output: there are none."""
        return {}


def config_of(options: Mapping) -> PromptConfig:
    """The prompt of a rival in our options, as far as they can say it.

    >>> config_of(options_of("rival", {"type": "SMoP"})).shape
    (4, 5)
    """
    if options["type"] == "CaPT":
        return PromptConfig(length=1, init=options["init"])
    return PromptConfig(
        length=options["length"],
        vector="instance",
        pool_size=options["pool_size"],
        mixing="hard",
        standardize=False,
        controller_init="uniform",
        estimator="straight-through",
        init=options["init"],
    )


def rival_prompt(prompt: DynamicPrompt, options: Mapping) -> DynamicPrompt:
    """The prompt of a rival, from the vectors of one that :func:`config_of` describes."""
    position, width = FixedDecision(prompt.length), prompt.width
    if options["type"] == "CaPT":
        return DynamicPrompt(prompt.vectors, position, others={"instance": InputMean()})
    router = Router(width, options["pool_size"], options["noise"])
    return RoutedPrompt(prompt.vectors, position, vector=router, balance=options["balance"])


def tune_rival(
    backbone: PreTrainedModel,
    tokenizer,
    task: Task,
    options: Mapping,
    settings: Settings = USUAL,
    seed: int = 0,
    splits: Sequence[str] = ("validation", "test"),
    answer_prefix: str = "",
    encode: Encode | None = None,
    looks: Looks = LOOKS,
) -> dict:
    """Tune SMoP or CaPT on a frozen backbone and score it.

    Parameters
    ----------
    options : the type and options of it (:func:`dplearn.experiments.rivals.options_of`).
    encode : as in :func:`dplearn.experiments.tuning.tune_prompt`, and so are the others.

    Returns the row of :func:`~dplearn.experiments.tuning.tune_prompt` with the options ("rival").

    Raises
    ------
    ValueError : an unknown type or option, or a wrong value.
    """
    options = options_of("rival", options)
    set_seed(seed)
    model = prompted_rival(backbone, tokenizer, options, settings)
    row = train_prompt(model, tokenizer, task, settings, seed, splits, answer_prefix, encode, looks)
    return row | {"rival": options}


def prompted_rival(
    backbone: PreTrainedModel, tokenizer, options: Mapping, settings: Settings = USUAL
) -> PromptedModel:
    """The backbone with the prompt of a rival; ``options`` are all of them."""
    model = prompted_for(backbone, tokenizer, config_of(options), settings)
    prompt = rival_prompt(model.prompt, options).to(model.device)
    prompt.vectors.requires_grad_(settings.train_vectors)
    model.prompt = prompt
    return model
