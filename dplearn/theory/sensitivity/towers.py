"""A frozen model as the probe runs it: rows in, a prompt at any split, hidden states and the answer out.

Everything is asked of the model's adapter (``dplearn.backbones``), so whatever :func:`dplearn.prompted` serves
the probe serves. Mechanisms are taken away on views of the model, which itself stays as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dplearn.backbones import Backbone, Boundary, Reading, adapt
from dplearn.backbones.deep import receiving
from dplearn.backbones.image_text.sides import side_of
from dplearn.backbones.rows import last_real, take_rows
from dplearn.backbones.views import Changes, changed
from dplearn.config import PromptConfig
from dplearn.insertion import Inserted, insert
from dplearn.prompt import PromptedInput
from dplearn.summaries import masked_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class States(NamedTuple):
    """What a frozen model makes of a (prompted) batch."""

    hidden: Tensor  # (B, S, d), the last hidden states of all rows
    placed: PromptedInput  # which row holds which token; without a prompt, prompt_positions is (B, 0)
    between: Tensor  # (B, T) bool, the real input tokens that stand between the two parts of the prompt
    readout: Tensor  # (B, ...), what the model answers with, read where the token stands that it belongs to
    fixed: (
        Tensor | None
    )  # the same, read from the rows where the tokens would be without a prompt; None: no such rows
    of_tokens: bool  # whether the answer is one for each input token, (B, T, ...)

    @property
    def rows(self) -> Tensor:
        """(B, T, d), the last hidden states of the input's tokens, wherever they stand."""
        return take_rows(self.hidden, self.placed.input_positions)


class Tower:
    """One stack of layers of a frozen model, from the rows that a prompt joins to the answer that is read.

    positions : the mechanism by which rows know where they stand; None: there is none behind the insertion.
    causal : whether rows see only the rows before them.
    unreached : why the position mechanism cannot be switched off; None: it can.
    decoder_input_ids : (B, U), for encoder-decoder models; None: the start token.
    """

    def __init__(self, adapter: Backbone):
        self.adapter, self.model = adapter, adapter.model
        self.mechanism = adapter.mechanism()
        self.positions, self.unreached = self.mechanism.name, self.mechanism.unreached
        self.causal = adapter.causal
        self.decoder_input_ids: Tensor | None = None
        self._switched: Changes = {}

    def embed(self, *, length: int = 1, **batch: Tensor | None) -> Reading:
        """The batch as rows, before any prompt is put around them; without gradient.

        Parameters
        ----------
        length : l, of the prompts to come.
        batch : what the model reads: ``input_ids`` and ``attention_mask`` (B, T), or ``pixel_values``.

        Raises
        ------
        ValueError : the model does not take the batch, or has no room for the prompt.
        """
        given = {name: value for name, value in batch.items() if value is not None}
        with torch.no_grad():
            reading = self.adapter.read(given, Boundary(), PromptConfig(length=length))
        if self.adapter.reads == "images":  # a prompt is put around the special tokens too
            every = torch.ones_like(reading.mask)
            reading = reading._replace(mask=every, seen=every)
        return reading

    def place(
        self, reading: Reading, prompt: Tensor | None = None, split: int | None = None
    ) -> PromptedInput:
        """A batch with a prompt (l, d) at a split; ``prompt=None``: without a prompt."""
        rows, mask = reading.rows, reading.mask
        if prompt is None:
            every = torch.arange(rows.shape[1], device=rows.device).expand(len(rows), -1)
            placed = Inserted(rows.clone(), mask, every, every[:, :0])
        else:
            placed = insert(prompt, rows, mask, split, keep_last=reading.keep_last)
        return self.adapter.layer_input(PromptedInput(*placed, decisions={}), reading, None)

    def encode(
        self,
        embeds: Tensor,
        mask: Tensor | None = None,
        *,
        see_all: bool = False,
        deep: Tensor | None = None,
        deep_rows: Tensor | None = None,
    ) -> Tensor:
        """All layers on any rows: (B, S, d), (B, S) -> (B, S, h).

        Parameters
        ----------
        embeds : (B, S, d).
        mask : (B, S), 1 = real; None: all are.
        see_all : whether the causal mask is taken away.
        deep : (n, l, d), vectors that replace the rows ``deep_rows`` before layers 2..n+1 of an image model.
        deep_rows : (B, l).
        """
        if mask is None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        fresh = None
        if deep is not None:
            layers = cast(Any, self.adapter).layers
            fresh = receiving(self.model, layers, deep, cast(Tensor, deep_rows))
        with self._view(see_all, fresh) as view:
            return self.adapter.hidden_states(view, embeds, mask)

    def states(
        self,
        reading: Reading,
        prompt: Tensor | None = None,
        split: int | None = None,
        *,
        see_all: bool = False,
    ) -> States:
        """Encode and read a batch with a prompt (l, d) at a split; ``prompt=None``: without a prompt."""
        placed, fixed = self.place(reading, prompt, split), None
        with self._view(see_all) as view:
            # A copy: some models scale the rows that they are given in place (CTRL).
            hidden = self.adapter.hidden_states(view, placed.embeds.clone(), placed.mask)
            answer = self._answer(view, placed, reading)
            if answer is None:  # a causal model without a head, or another one
                row = last_real(placed.mask) if self.causal else placed.input_positions[:, 0]
                answer = take_rows(hidden, row.unsqueeze(1))[:, 0]
            of_tokens = self._of_tokens(answer, reading)
            if self.adapter.reads_own_rows and not of_tokens:
                indices = torch.arange(reading.rows.shape[1], device=hidden.device)
                usual = placed._replace(input_positions=indices.expand_as(placed.input_positions))
                fixed = self._answer(view, usual, reading._replace(columns=None))
                fixed = hidden[:, 0] if fixed is None else fixed
        if of_tokens and reading.columns is not None:  # in the order of the rows
            answer = take_rows(answer, reading.columns.argsort(1))
        return States(hidden, placed, between(reading), answer, fixed, of_tokens)

    def _answer(self, view: PreTrainedModel, placed: PromptedInput, reading: Reading) -> Tensor | None:
        given = dict(reading.given)
        if "use_cache" in inspect.signature(self.model.forward).parameters:
            given["use_cache"] = False
        if self.model.config.is_encoder_decoder:
            given["decoder_input_ids"] = self._decoder_inputs(len(placed.mask))
        if self.adapter.reads_answers:  # a language model's answer is what comes next: its head sees one row
            reading = reading._replace(columns=last_real(reading.mask).unsqueeze(1))
        output = self.adapter.on(view).run(placed, reading._replace(given=given))
        return output.logits[:, 0] if self.adapter.reads_answers else answer_of(output)

    def _decoder_inputs(self, batch: int) -> Tensor:
        if self.decoder_input_ids is not None:
            return self.decoder_input_ids
        return torch.full((batch, 1), self.model.config.decoder_start_token_id, device=self.model.device)

    def _of_tokens(self, answer: Tensor, reading: Reading) -> bool:
        decoded = self.model.config.is_encoder_decoder  # as many rows as the decoder reads
        return not decoded and answer.dim() == 3 and answer.shape[:2] == reading.mask.shape

    def _view(self, see_all: bool, changes: Changes | None = None) -> AbstractContextManager[nn.Module]:
        """The model without what is switched off, and with other changes."""
        opened = self.adapter.seeing_all() if see_all else {}
        return changed(self.model, {**self._switched, **opened, **(changes or {})})

    def table(self) -> tuple[nn.Embedding, int] | None:
        """The learned position vectors and the row of position 0, where positions look these up."""
        if self.mechanism.first is None:
            return None
        return self.model.get_submodule(self.mechanism.paths[0]), self.mechanism.first

    @contextmanager
    def without_positions(self) -> Iterator[None]:
        """While this is open, the tower has no position information behind the insertion point.

        Raises
        ------
        TypeError : its position information is not reached.
        """
        if self.unreached is not None:
            raise TypeError(self.unreached)
        with self._switching(self.mechanism.off()):
            yield

    @contextmanager
    def standing_at(self, positions: Tensor) -> Iterator[None]:
        """While this is open, the rows of a batch stand at these positions, (B, S); for models with a table."""
        with self._switching(self.mechanism.standing_at(positions)):
            yield

    @contextmanager
    def _switching(self, changes: Changes) -> Iterator[None]:
        usual = self._switched
        self._switched = {**usual, **changes}
        try:
            yield
        finally:
            self._switched = usual

    def draw(self, length: int, reading: Reading, generator: torch.Generator) -> Tensor:
        """A random prompt (l, d): embeddings of random tokens, or for images normal vectors like their rows."""
        if self.adapter.reads == "images":
            return normal_like(reading.rows, length, generator)
        ids = torch.randint(self.adapter.vocabulary, (1, length), generator=generator)
        return self.adapter.embed(ids.to(reading.rows.device))[0]


def tower(model: PreTrainedModel, *, image: bool = False) -> Tower:
    """The tower of a model that reads text, or images (``image=True``).

    Raises
    ------
    TypeError : none serves the model; the message says why.
    """
    adapter = side_of(model, image) or adapt(model)
    if image and adapter.reads != "images":
        raise TypeError(
            f"model={type(model).__name__} with pixel_values: expected a vision transformer, or CLIP or SigLIP"
        )
    if not image and adapter.reads == "images":
        raise TypeError(f"model={type(model).__name__} cannot read text: expected pixel_values")
    return Tower(adapter)


def between(reading: Reading) -> Tensor:
    """(B, T) bool: the real input tokens that stand between the two parts of a prompt."""
    mask, kept = reading.mask != 0, reading.keep_last
    behind = mask.sum(1, keepdim=True) - mask.cumsum(1) + 1  # the last real token has 1
    return mask & (behind > (kept.unsqueeze(1) if isinstance(kept, Tensor) else kept))


def answer_of(output: Any) -> Tensor | None:
    """What a model answers with: its head's logits, else the vector that stands for the whole; None: it has neither."""
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "text_embeds", "image_embeds", "pooler_output"):
        if getattr(output, name, None) is not None:
            return output[name]
    if getattr(output, "start_logits", None) is not None:  # where an answer begins and ends in the text
        return torch.stack([output.start_logits, output.end_logits], -1)
    return None


def normal_like(rows: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """(l, d) normal vectors with the mean and the standard deviation of all entries of the rows."""
    noise = torch.randn(length, rows.shape[-1], generator=generator, dtype=torch.float64).to(rows)
    return rows.mean() + rows.std() * noise


def readouts(states: States) -> dict[str, Tensor]:
    """Common ways to read one vector (B, d) from encoded rows: four that follow the tokens, two that take a fixed row.

    The last row counts the real rows only, so that padding does not matter.
    """
    mask, rows = states.placed.mask, states.rows
    real = mask.gather(1, states.placed.input_positions)
    first, last = real.long().argmax(1, keepdim=True), last_real(real).unsqueeze(1)  # (B, 1), of the input
    start, end = mask.long().argmax(1, keepdim=True), last_real(mask).unsqueeze(1)  # (B, 1), of all rows
    return {
        "first token, tracked": take_rows(rows, first)[:, 0],
        "last token, tracked": take_rows(rows, last)[:, 0],
        "mean over the input": masked_mean(rows, real),
        "mean over all rows": masked_mean(states.hidden, mask),
        "first row": take_rows(states.hidden, start)[:, 0],
        "last row": take_rows(states.hidden, end)[:, 0],
    }
