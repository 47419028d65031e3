"""What a prompt needs to know about a model: one adapter per kind of backbone derives from this.

An adapter holds a reference to the model and owns no parameters. It embeds the input, says which tokens stay last, runs
the model on the prompted input, and sees to it that the answer is read from the right rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dplearn.controllers import masked_mean
from dplearn.estimators import instance_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dplearn.config import PromptConfig
    from dplearn.prompt import DynamicPrompt, PromptedInput


class Backbone:
    """The parts that all kinds share."""

    # Whether a summary also looks at the tokens that are kept last: answers in the input must stay unseen.
    summarize_kept = True
    # What the model reads, by the name of its argument, and the other arguments that its embeddings take.
    input_name = "input_ids"
    embedding_options: tuple[str, ...] = ()

    def __init__(self, model: PreTrainedModel):
        self.model = model
        # Learned absolute positions have a last row; relative and rotary ones have none.
        self.max_positions = getattr(model.config, "max_position_embeddings", None)

    @staticmethod
    def refusal(model: nn.Module) -> str | None:
        """Why this adapter cannot serve the model, or None if it can."""
        raise NotImplementedError

    @staticmethod
    def model_class() -> type:
        """The class of a prompted model of this kind."""
        from dplearn.model import PromptedModel

        return PromptedModel

    @property
    def embedding(self) -> Tensor:
        """The token embedding matrix, (vocabulary, d)."""
        return self.model.get_input_embeddings().weight

    @property
    def width(self) -> int:
        """d, the width of the input embeddings."""
        return self.embedding.shape[1]

    def width_of(self, config: PromptConfig) -> int:
        """The width of the vectors of a prompt."""
        return self.width

    def summary_width(self, config: PromptConfig) -> int:
        """The width of what instance-level decisions look at."""
        return self.width_of(config)

    def describe(self) -> dict:
        """What a prompt depends on, as a checkpoint records it."""
        return {"vocabulary": len(self.embedding), "width": self.width}

    def initial_vectors(self, config: PromptConfig, generator: torch.Generator | None = None) -> Tensor:
        """First values of a prompt, ``config.shape`` times d, in float32."""
        table = self.embedding
        return config.initial_vectors(
            table.shape[1], table.shape[0], lambda ids: table[ids.to(table.device)], generator
        )

    def complete(
        self, prompt: DynamicPrompt, config: PromptConfig, generator: torch.Generator | None = None
    ) -> None:
        """Add what else of a prompt depends on the backbone: its own copy of the head, where that is trained.

        The copy is in float32 at least, as the prompt is: half precision is too coarse to train. ``generator`` feeds
        what is drawn at random; a copy is not.

        Raises
        ------
        ValueError : a trained head is asked for, and the model has none or a language model's.
        """
        if config.head == "trained":
            head = nn.ModuleDict(
                {name: copy.deepcopy(module) for name, module in head_of(self.model).items()}
            )
            prompt.head = head.to(torch.promote_types(self.model.dtype, torch.float32)).requires_grad_(True)

    def check(self, config: PromptConfig) -> None:
        """Raise ValueError where a config asks for what this kind of backbone cannot do."""
        config.refuse_unserved("text", type(self.model).__name__, "text")

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, T) token ids -> (B, T, d) frozen embeddings, scaled as the model does it."""
        with torch.no_grad():
            return self.model.get_input_embeddings()(input_ids)

    def full_mask(self, inputs: Tensor) -> Tensor:
        """The mask (B, T) of inputs (B, T, d) that come without one."""
        return torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)

    def keep_last(self, input_ids: Tensor | None, mask: Tensor, labels: Tensor | None) -> int | Tensor:
        """How many of the last real tokens stay behind the prompt: an int or (B,)."""
        return 0

    def check_length(self, total: int) -> None:
        """Raise ValueError where input plus prompt exceed the model's position table."""
        if self.max_positions is not None and total > self.max_positions:
            raise ValueError(
                f"input plus prompt have {total} positions, but max_position_embeddings={self.max_positions}: "
                "truncate the input or shorten the prompt"
            )

    @torch.no_grad()
    def summarize(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Masked mean of the last hidden states: (B, T, d), (B, T) -> (B, d), without gradient or dropout."""
        training = self.model.training
        if training:
            self.model.eval()
        try:
            return masked_mean(self.hidden_states(inputs, mask), mask)
        finally:
            if training:
                self.model.train()

    def hidden_states(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Last hidden states (B, T, d) of the input without a prompt."""
        raise NotImplementedError

    def refuses_position_space(self) -> str | None:
        """Why the position-space estimator does not reach this model's position information, or None if it does."""
        return f"{type(self.model).__name__} has no position information that is known"

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """One loss per instance, (N,); see :func:`dplearn.estimators.instance_losses`."""
        return instance_losses(logits, labels)

    def finish(self, placed: PromptedInput, positions: Tensor | None, coded: bool = False) -> PromptedInput:
        """What is done to a prompted input before the layers; ``positions`` where a config gives the prompt some, for
        the whole input or (``coded``) for the prompt alone."""
        return placed

    def forward(self, placed: PromptedInput, **options):
        """The model's own output for a prompted input; ``options`` are what the model's forward takes."""
        raise NotImplementedError

    def generate(self, placed: PromptedInput, **options) -> Tensor:
        """The model's ``generate`` on a prompted input."""
        raise NotImplementedError(f"{type(self.model).__name__} does not generate")


def head_of(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The classification head by the names of its modules: all with parameters that stand behind the base model.

    (BERT's pooler is inside of the base model.)

    Raises
    ------
    ValueError : there is no head, or it is a language model's, whose weights may be the input embeddings'.
    """
    base, start = model.base_model, f"head='trained' needs a classification head, {type(model).__name__} has"
    if model.get_output_embeddings() is not None:
        raise ValueError(
            f"{start} a language-model head: expected head='frozen', or the model for a classification"
        )
    children = {} if base is model else dict(model.named_children())
    head = {name: child for name, child in children.items() if child is not base and list(child.parameters())}
    if not head:
        raise ValueError(f"{start} none: expected head='frozen', or the model with its head")
    return head


def token_positions(mask: Tensor) -> Tensor:
    """Positions (B, S) that count the real tokens of each row from 0; padding gets 0.

    >>> token_positions(torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]]))
    tensor([[0, 0, 1, 2],
            [0, 1, 0, 0]])
    """
    return (mask.long().cumsum(1) - 1) * (mask != 0)


def take_rows(states: Tensor, rows: Tensor) -> Tensor:
    """Rows of each instance: (B, S, d), (B, N) -> (B, N, d)."""
    return states.gather(1, rows.unsqueeze(2).expand(-1, -1, states.shape[2]))


@contextmanager
def forward_as(module: nn.Module, forward: Callable):
    """While this is open, ``forward`` stands in for the module's own."""
    patched = module.__dict__.get("forward")
    # Not a forward hook: registering one counts handles in a class attribute, which torch.compile cannot trace.
    module.forward = forward
    try:
        yield
    finally:
        if patched is None:
            module.__dict__.pop("forward")  # the class's own is visible again
        else:
            module.forward = patched  # as accelerate does


@contextmanager
def standing_in(model: nn.Module, modules: nn.ModuleDict | None):
    """While this is open, each of ``modules`` stands in for the model's own of that name; None changes nothing.

    They see floating point inputs in their own dtype, which the model's may be coarser than.
    """
    with ExitStack() as changes:
        for name, module in ({} if modules is None else modules).items():
            changes.enter_context(forward_as(getattr(model, name), _in_own_dtype(module)))
        yield


def _in_own_dtype(module: nn.Module) -> Callable:
    def forward(*arguments, **options):
        dtype = next(module.parameters()).dtype

        def cast(value):
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return module(*map(cast, arguments), **{name: cast(value) for name, value in options.items()})

    return forward


def rows_of(module: nn.Module, rows: Tensor):
    """While this is open, the module's last hidden states are those of the given rows, (B, N) of (B, S).

    What stands behind the module (pooler, classifier, language-modelling head, loss) then sees N rows, each where it
    would be without a prompt.
    """
    usual = module.forward

    def forward(*arguments, **options):
        output = usual(*arguments, **options)
        if isinstance(output, tuple):
            return (take_rows(output[0], rows), *output[1:])
        output["last_hidden_state"] = take_rows(output["last_hidden_state"], rows)
        return output

    return forward_as(module, forward)
