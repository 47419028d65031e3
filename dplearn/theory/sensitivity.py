"""How much a real model's answer changes when the split of a prompt moves, and through which mechanism.

Attention without position information does not see the order of its rows. So a split acts only through what a model
adds to that: position vectors, a bias of relative distances, rotary angles, the causal mask, and the choice of the row
that is read. :func:`position_sensitivity` moves a prompt through all splits of a frozen model, measures the change, and
measures it again with each of these switched off. No training is needed, so ask it before a position is learned.

Nothing of the model is changed: mechanisms are switched off by hooks and masks, for one forward pass at a time.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from dplearn.backbones import Backbone, CausalBackbone, EncoderBackbone, Seq2SeqBackbone, adapt
from dplearn.backbones.base import evaluating, last_real, take_rows, token_positions, with_rows
from dplearn.backbones.text import right_padded
from dplearn.backbones.views import changed
from dplearn.insertion import Inserted, insert
from dplearn.summaries import masked_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ABSOLUTE, RELATIVE, ROTARY = "absolute positions", "relative bias", "rotary angles"
CAUSAL, READOUT = "causal visibility", "readout"


class Embedded(NamedTuple):
    """A batch of inputs as rows, before any prompt is put around them."""

    inputs: Tensor  # (B, T, d), what a prompt is inserted into
    mask: Tensor  # (B, T), 1 = real
    keep_first: int  # input rows that stay before the prompt
    keep_last: int | Tensor  # real rows that stay behind the prompt, as in `insert`
    readout: Tensor | None  # (B,), the input row that is read; None: see the tower
    # rows at most, where padding at the end gives way to the prompt; None: no such limit
    room: int | None = None


class States(NamedTuple):
    """What a frozen model makes of a (prompted) batch."""

    hidden: Tensor  # (B, S, d), the last hidden states of all rows
    placed: Inserted  # which row holds which token; without a prompt, prompt_positions is (B, 0)
    between: Tensor  # (B, T) bool, the real input tokens that stand between the two parts of the prompt
    readout: Tensor  # (B, ...), what the model answers with, read where the token stands that it belongs to
    fixed: (
        Tensor | None
    )  # the same read from the row where that token would be without a prompt; None: no such row

    @property
    def rows(self) -> Tensor:
        """(B, T, d), the last hidden states of the input's tokens, wherever they stand."""
        return take_rows(self.hidden, self.placed.input_positions)


# ---- the models --------------------------------------------------------------------------------------------


class Tower:
    """One stack of layers of a frozen model, from the rows that a prompt joins to the answer that is read.

    positions : the mechanism by which rows know where they stand; None: there is none behind the insertion.
    causal : whether rows see only the rows before them.
    unreached : why the position mechanism cannot be switched off; None: it can.
    """

    positions: str | None = None
    causal = False
    unreached: str | None = None

    def __init__(self, model: PreTrainedModel, adapter: Backbone | None = None):
        self.model = model
        self.adapter = adapter  # where the model is a text model of one stack

    def embed(self, *, input_ids=None, attention_mask=None, pixel_values=None) -> Embedded:
        """The batch as rows; without gradient."""
        raise NotImplementedError

    def encode(self, embeds: Tensor, mask: Tensor | None = None, *, see_all: bool = False) -> Tensor:
        """All layers on any rows: (B, S, d), (B, S) -> (B, S, d). ``see_all`` takes the causal mask away."""
        raise NotImplementedError

    def read(self, hidden: Tensor, placed: Inserted, embedded: Embedded) -> tuple[Tensor, Tensor | None]:
        """What is read from encoded rows: from the right row, and from the row of the same index without a prompt."""
        raise NotImplementedError

    def states(
        self, embedded: Embedded, prompt: Tensor | None = None, split: int | None = None, **options
    ) -> States:
        """Encode and read a batch with a prompt (l, d) at a split; ``prompt=None``: without a prompt."""
        placed = place(embedded, prompt, split)
        hidden = self.encode(placed.embeds, placed.mask, **options)
        return States(hidden, placed, between(embedded), *self.read(hidden, placed, embedded))

    def position_modules(self) -> list[nn.Module]:
        """The modules whose outputs are all the position information behind the insertion."""
        return []

    def table(self) -> tuple[nn.Embedding, int] | None:
        """The learned position vectors and the row of position 0, where positions are absolute."""
        return None

    @property
    def words(self) -> int:
        """The number of tokens in the vocabulary."""
        return self.model.get_input_embeddings().num_embeddings

    @contextmanager
    def without_positions(self) -> Iterator[None]:
        """While this is open, the model has no position information behind the insertion point.

        Raises
        ------
        TypeError : its position information is not reached.
        """
        if self.unreached is not None:
            raise TypeError(self.unreached)
        handles = [module.register_forward_hook(_silence) for module in self.position_modules()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def draw(self, length: int, embedded: Embedded, generator: torch.Generator) -> Tensor:
        """A random prompt (l, d): embeddings of random tokens."""
        ids = torch.randint(self.words, (1, length), generator=generator).to(embedded.inputs.device)
        return self.embed(input_ids=ids).inputs[0]


def _silence(module: nn.Module, arguments, output):
    """A forward hook: rotary angles of zero (cosine 1, sine 0), or vectors and biases of zero."""
    if isinstance(output, tuple):
        return torch.ones_like(output[0]), torch.zeros_like(output[1])
    return torch.zeros_like(output)


class EncoderTower(Tower):
    """BERT and its kin; the answer is that of the model's pooler or head, else the first token's row."""

    def __init__(self, model, adapter):
        super().__init__(model, adapter)
        # What the pooler or head reads: the layers behind which a pooler stands, else the base model.
        self.stack = adapter.stack or adapter.entry.path
        self.unreached = self.adapter.refuses_position_space()
        if self.unreached is None:
            self.positions = ABSOLUTE

    def embed(self, *, input_ids=None, attention_mask=None, pixel_values=None) -> Embedded:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return Embedded(self.adapter.embed(input_ids), mask, 0, 0, None)

    def encode(self, embeds, mask=None, *, see_all=False):
        return self.adapter.hidden_states(self.model, embeds, _ones(embeds) if mask is None else mask)

    def states(self, embedded, prompt=None, split=None, **options):
        placed = place(embedded, prompt, split)
        inside = dict(inputs_embeds=placed.embeds, attention_mask=placed.mask)
        inside |= self.adapter.position_ids(placed.mask)
        rows, caught = _own_rows(placed), []

        def leave(usual, *arguments, **options):
            output = usual(*arguments, **options)
            caught.append(output[0])
            return with_rows(output, rows)

        with changed(self.model, {self.stack: leave}) as view:
            right = _answer(view(**inside, return_dict=True))
        fixed = None
        if not _of_tokens(right, embedded):  # one answer per row has no first row
            fixed = _answer(self.model(**inside, return_dict=True))
        return States(caught[0], placed, between(embedded), right, fixed)

    def position_modules(self):
        return [self.adapter.table]

    def table(self):
        return self.adapter.table, self.adapter.first_position


class CausalTower(Tower):
    """GPT-2, Llama, Qwen and their kin; the answer is read at the last row: behind a postfix, a prompt vector's."""

    causal = True

    def __init__(self, model, adapter):
        super().__init__(model, adapter)
        base = model.base_model
        for name, positions in (("wpe", ABSOLUTE), ("rotary_emb", ROTARY)):
            self.module = getattr(base, name, None)
            if isinstance(self.module, nn.Module):
                self.positions = positions
                break
        else:
            self.unreached = f"{type(model).__name__} has no position information that is known"

    embed = EncoderTower.embed

    def encode(self, embeds, mask=None, *, see_all=False):
        mask = _ones(embeds) if mask is None else mask
        return self.model.base_model(
            inputs_embeds=embeds,
            attention_mask=_padding_mask(mask, embeds.dtype) if see_all else mask,
            position_ids=token_positions(mask),
            use_cache=False,
            return_dict=True,
        ).last_hidden_state

    def read(self, hidden, placed, embedded):
        row = take_rows(hidden, last_real(placed.mask).unsqueeze(1))[:, 0]
        head = self.model.get_output_embeddings() or getattr(self.model, "score", None)
        return (row if head is None else head(row)), None

    def position_modules(self):
        return [self.module]

    def table(self):
        return (self.module, 0) if self.positions == ABSOLUTE else None


class Seq2SeqTower(Tower):
    """T5, BART and their kin: the rows are the encoder's, the answer is the decoder's logits."""

    def __init__(self, model, adapter):
        super().__init__(model, adapter)
        self.unreached = self.adapter.refuses_position_space()
        self.decoder_input_ids: Tensor | None = None  # (B, U); None: the start token alone
        if self.unreached is None:
            self.positions = ABSOLUTE if self._biases() == [] else RELATIVE

    def embed(self, *, input_ids=None, attention_mask=None, pixel_values=None) -> Embedded:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if self.positions != RELATIVE:  # these models count positions from the first column, padding or not
            tokens, mask, _ = right_padded({"input_ids": input_ids}, mask)
            input_ids = tokens["input_ids"]
        kept = self.adapter.keep_last(input_ids, mask)
        return Embedded(self.adapter.embed(input_ids), mask, 0, kept, None)

    def encode(self, embeds, mask=None, *, see_all=False):
        return self.adapter.hidden_states(self.model, embeds, _ones(embeds) if mask is None else mask)

    def read(self, hidden, placed, embedded):
        start = self.decoder_input_ids
        if start is None:
            begin = self.model.config.decoder_start_token_id
            start = torch.full((len(hidden), 1), begin, device=hidden.device)
        output = self.model(
            encoder_outputs=(hidden,), attention_mask=placed.mask, decoder_input_ids=start, use_cache=False
        )
        return output.logits, None

    def position_modules(self):
        return self._biases() or [self.adapter.position_table()]

    def _biases(self) -> list[nn.Module]:
        modules = self.model.get_encoder().modules()
        return [
            m.relative_attention_bias for m in modules if getattr(m, "has_relative_attention_bias", False)
        ]


class VisionTower(Tower):
    """ViT, DeiT, DINOv2, and the vision models of CLIP and SigLIP. A prompt joins the patches after their position
    vectors, as in visual prompt tuning (Jia et al., 2022) and MaPLe (Khattak et al., 2023), so no mechanism is left
    behind the insertion.
    Every row counts as input, special tokens first. The answer is read from the class token's row, and where the model
    does so from DeiT's distillation token, the mean of the patches (DINOv2's classifier) or all rows (SigLIP).
    """

    def __init__(self, model):
        super().__init__(model)
        base = model.base_model
        self.base = getattr(base, "vision_model", base)
        if type(model).__name__ == "SiglipVisionModel" and not hasattr(self.base, "head"):
            raise TypeError("model=SiglipVisionModel answers with nothing: expected vision_use_head=True")

    def embed(self, *, input_ids=None, attention_mask=None, pixel_values=None) -> Embedded:
        with torch.no_grad():
            inputs = self.base.embeddings(pixel_values)
        return Embedded(inputs, _ones(inputs), 0, 0, inputs.new_zeros(len(inputs), dtype=torch.long))

    def layers(self) -> nn.ModuleList:
        """The layers, in order."""
        holder = getattr(self.base, "encoder", self.base)
        return holder.layers if hasattr(holder, "layers") else holder.layer

    def encode(
        self, embeds, mask=None, *, see_all=False, deep: Tensor | None = None, deep_rows: Tensor | None = None
    ):
        """All layers on any rows. ``deep`` (n, l, d) replaces the rows ``deep_rows`` (B, l) before layers 2..n+1."""
        padding = None if mask is None or bool((mask != 0).all()) else _padding_mask(mask, embeds.dtype)
        hidden = self.base.pre_layrnorm(embeds) if hasattr(self.base, "pre_layrnorm") else embeds
        for number, layer in enumerate(self.layers()):
            if deep is not None and 1 <= number <= len(deep):
                fresh = deep[number - 1].expand(len(hidden), -1, -1)
                hidden = hidden.scatter(1, deep_rows.unsqueeze(2).expand_as(fresh), fresh)
            takes_mask = "attention_mask" in inspect.signature(layer.forward).parameters
            hidden = layer(hidden, padding) if takes_mask else layer(hidden)
        return self.base.layernorm(hidden) if hasattr(self.base, "layernorm") else hidden

    def read(self, hidden, placed, embedded):
        every, own = self._reads_all(), placed.input_positions
        if every is not None:
            return every(take_rows(hidden, own)), every(hidden[:, : own.shape[1]])
        row = own.gather(1, embedded.readout.unsqueeze(1))
        return self._head(take_rows(hidden, row)), self._head(hidden[:, :1])

    def _reads_all(self) -> Callable[[Tensor], Tensor] | None:
        """How the answer follows from all rows of the input, (B, T, d) -> (B, ...); None: from the first one alone."""
        names = {parent.__name__ for parent in type(self.model).__mro__}
        if "DeiTForImageClassificationWithTeacher" in names:
            first, second = self.model.cls_classifier, self.model.distillation_classifier
            return lambda rows: (first(rows[:, 0]) + second(rows[:, 1])) / 2
        if "Dinov2ForImageClassification" in names:
            return lambda rows: self.model.classifier(torch.cat([rows[:, 0], rows[:, 1:].mean(1)], 1))
        if names & {"SiglipModel", "SiglipVisionModel"}:
            return lambda rows: self.base.head(self.base.post_layernorm(rows))
        if "SiglipForImageClassification" in names:
            return lambda rows: self.model.classifier(self.base.post_layernorm(rows).mean(1))
        return None

    def _head(self, row: Tensor) -> Tensor:
        """What stands behind the class token's row, (B, 1, d) -> (B, ...)."""
        if getattr(self.base, "pooler", None) is not None:
            return self.base.pooler(row)
        row = row[:, 0]
        behind = [
            (self.base, "post_layernorm"),
            (self.model, "visual_projection"),
            (self.model, "classifier"),
        ]
        for module, name in behind:
            row = getattr(module, name)(row) if hasattr(module, name) else row
        return row

    def draw(self, length, embedded, generator):
        """Normal vectors with the mean and the standard deviation of the image's rows."""
        return _like(embedded.inputs, length, generator)


class ClipTextTower(Tower):
    """CLIP's text model, with the start token first and the end-of-text token last, as CoOp (Zhou et al.,
    2022) places its prompts; the answer is read from the end-of-text row."""

    positions, causal = ABSOLUTE, True

    def __init__(self, model):
        super().__init__(model)
        self.base = getattr(model, "text_model", model)

    def embed(self, *, input_ids=None, attention_mask=None, pixel_values=None) -> Embedded:
        config = self.base.config
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        tokens, mask, _ = right_padded({"input_ids": input_ids}, mask)
        ids = tokens["input_ids"]
        with torch.no_grad():
            inputs = self.base.embeddings.token_embedding(ids)
        # The library's own rule, among the tokens that are real: the first end token; configurations from before its
        # correction hold a 2 and mean the largest number.
        largest = ids.masked_fill(mask == 0, -1).amax(1, keepdim=True)
        ends = (ids == (largest if self.base.eos_token_id == 2 else self.base.eos_token_id)) & (mask != 0)
        if not ends.any(1).all():
            row = int((~ends.any(1)).nonzero()[0])
            raise ValueError(
                f"input_ids row {row} has no end token that is real, expected texts with their end token"
            )
        end = ends.int().argmax(1)
        # CLIP's start token is numbered one below its end token, also where the configuration says something else.
        starts = (ids[:, 0] == config.bos_token_id) | (ids[:, 0] == ids.gather(1, end[:, None])[:, 0] - 1)
        first = int(ids.shape[1] > 1 and bool(starts.all()))
        return Embedded(inputs, mask, first, mask.sum(1) - end, end)

    def encode(self, embeds, mask=None, *, see_all=False):
        mask = _ones(embeds) if mask is None else mask
        length = embeds.shape[1]
        limit = self.base.embeddings.position_embedding.num_embeddings
        if length > limit:
            raise ValueError(f"input plus prompt have {length} positions, expected at most {limit}")
        seen = _padding_mask(mask, embeds.dtype)
        if not see_all:
            steps = torch.arange(length, device=embeds.device)
            seen = seen.masked_fill(steps > steps.unsqueeze(1), torch.finfo(embeds.dtype).min)
        positions = self.base.embeddings.position_embedding(torch.arange(length, device=embeds.device))
        hidden = self.base.encoder(inputs_embeds=embeds + positions, attention_mask=seen).last_hidden_state
        return self.base.final_layer_norm(hidden)

    def read(self, hidden, placed, embedded):
        fixed = embedded.readout.unsqueeze(1)
        followed = placed.input_positions.gather(1, fixed)
        head = getattr(self.model, "text_projection", nn.Identity())
        right, wrong = (head(take_rows(hidden, row)[:, 0]) for row in (followed, fixed))
        return right, wrong

    @property
    def words(self):
        return self.base.embeddings.token_embedding.num_embeddings

    def position_modules(self):
        return [self.base.embeddings.position_embedding]

    def table(self):
        return self.base.embeddings.position_embedding, 0

    def draw(self, length, embedded, generator):
        ids = torch.randint(self.words, (1, length), generator=generator).to(embedded.inputs.device)
        return self.base.embeddings.token_embedding(ids)[0]


class SiglipTextTower(ClipTextTower):
    """SigLIP's text model: it sees both ways, and its padding too, so the prompt takes the place of padding. The answer
    is read in the last row, which no prompt moves."""

    causal = False

    def embed(self, *, input_ids=None, attention_mask=None, pixel_values=None) -> Embedded:
        if attention_mask is not None and not bool((attention_mask != 0).all()):
            raise ValueError(
                "attention_mask hides tokens, expected none: SigLIP is trained to see padding (pass input_ids alone, "
                "padded to max_length)"
            )
        config, columns = self.base.config, input_ids.shape[1]
        with torch.no_grad():
            inputs = self.base.embeddings.token_embedding(input_ids)
        stop = (input_ids == config.pad_token_id) | (input_ids == config.eos_token_id)
        words = torch.where(stop.any(1), stop.int().argmax(1), columns)
        room = self.base.embeddings.position_embedding.num_embeddings
        return Embedded(inputs, torch.ones_like(input_ids), 0, columns - words, None, room)

    def encode(self, embeds, mask=None, *, see_all=False):
        positions = self.base.embeddings.position_embedding(
            torch.arange(embeds.shape[1], device=embeds.device)
        )
        hidden = self.base.encoder(inputs_embeds=embeds + positions).last_hidden_state
        return self.base.final_layer_norm(hidden)

    def read(self, hidden, placed, embedded):
        return self.base.head(hidden[:, -1]), None


TOWERS = {Seq2SeqBackbone: Seq2SeqTower, EncoderBackbone: EncoderTower, CausalBackbone: CausalTower}
# Classes whose answer is read as these towers read it.
VISION = (
    "ViTModel",
    "ViTForImageClassification",
    "DeiTModel",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "Dinov2Model",
    "Dinov2ForImageClassification",
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "CLIPModel",
    "SiglipVisionModel",
    "SiglipForImageClassification",
    "SiglipModel",
)
CLIP_TEXT = ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel")
SIGLIP_TEXT = ("SiglipTextModel", "SiglipModel")


def tower(model: PreTrainedModel, *, image: bool = False) -> Tower:
    """The tower of a model that reads text, or images (``image=True``).

    Raises
    ------
    TypeError : no tower serves the model; the message says why.
    """
    names = {parent.__name__ for parent in type(model).__mro__}
    if image:
        if names.isdisjoint(VISION):
            raise TypeError(
                f"model={type(model).__name__} with pixel_values: expected one of {', '.join(VISION)}"
            )
        return VisionTower(model)
    if not names.isdisjoint(CLIP_TEXT):
        return ClipTextTower(model)
    if not names.isdisjoint(SIGLIP_TEXT):
        return SiglipTextTower(model)
    adapter = adapt(model)
    serves = TOWERS.get(type(adapter))
    if serves is None:
        raise TypeError(f"model={type(model).__name__} cannot read text: expected pixel_values")
    return serves(model, adapter)


def place(embedded: Embedded, prompt: Tensor | None, split: int | None = None) -> Inserted:
    """Insert a prompt (l, d) into a batch; rows that stay first stay first. ``prompt=None``: the batch as it is."""
    inputs, mask, first = embedded.inputs, embedded.mask, embedded.keep_first
    if prompt is None:
        every = torch.arange(inputs.shape[1], device=inputs.device).expand(len(inputs), -1)
        return Inserted(inputs, mask, every, every[:, :0])
    found = insert(prompt, inputs[:, first:], mask[:, first:], split, keep_last=embedded.keep_last)
    if embedded.room is not None:
        return _in_room(embedded, found, len(prompt))
    if first == 0:
        return found
    before = torch.arange(first, device=inputs.device).expand(len(inputs), -1)
    return Inserted(
        torch.cat([inputs[:, :first], found.embeds], 1),
        torch.cat([mask[:, :first], found.mask], 1),
        torch.cat([before, found.input_positions + first], 1),
        found.prompt_positions + first,
    )


def _in_room(embedded: Embedded, found: Inserted, length: int) -> Inserted:
    """The same with as many rows as there is room for; padding at the end gives way."""
    room, kept = embedded.room, embedded.keep_last
    needed = length + embedded.inputs.shape[1] - int(kept.min())
    if needed > room:
        raise ValueError(f"input plus prompt have {needed} positions, expected at most {room}")
    rows = found.input_positions.clamp(max=room - 1)  # of padding that is gone: the last row
    return found._replace(embeds=found.embeds[:, :room], mask=found.mask[:, :room], input_positions=rows)


def between(embedded: Embedded) -> Tensor:
    """(B, T) bool: the real input tokens that stand between the two parts of a prompt."""
    mask = embedded.mask != 0
    behind = mask.sum(1, keepdim=True) - mask.cumsum(1) + 1  # the last real token has 1
    kept = embedded.keep_last
    kept = kept.unsqueeze(1) if isinstance(kept, Tensor) else kept
    return mask & (behind > kept) & (torch.arange(mask.shape[1], device=mask.device) >= embedded.keep_first)


# ---- the probe ---------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """Relative changes, ||now - before|| / ||before||, the largest over splits."""

    rows: float  # of the last hidden states of the input's tokens between the prompt's parts, each followed as it moves
    readout: float  # of what the model answers with
    fixed: float | None  # of what a reader that does not follow the move answers with; None: no such reader


@dataclass(frozen=True)
class Sensitivity:
    """What :func:`position_sensitivity` found; ``print`` shows it as a table with a verdict."""

    model: str  # name of the class
    length: int  # l
    splits: tuple[int, ...]
    positions: str | None  # the mechanism by which rows know where they stand, behind the insertion
    causal: bool
    unreached: str | None  # why position information could not be switched off
    full: Change  # the model as it is
    position_off: Change | None  # None: not there, or not reached
    mask_off: Change | None
    both_off: (
        Change | None
    )  # everything that is there switched off: zero on the rows, or the probe missed something
    prompt_moves: (
        Change | None
    )  # absolute positions, mask off: those of the prompt vectors move, those of the input stay
    input_moves: Change | None  # and the other way round
    redrawn: Change  # new prompt vectors at k = l: a scale for all of the above
    tolerance: float  # at or below this, a change is rounding

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """Through what the split was seen to act, of what could be switched off."""
        alone = [(self.positions, self.mask_off if self.causal else self.full), (CAUSAL, self.position_off)]
        found = [
            name
            for name, change in alone
            if change is not None and name is not None and self._acts(change.rows)
        ]
        if (
            self.both_off is not None
            and not self._acts(self.both_off.rows)
            and self._acts(self.both_off.readout)
        ):
            found.append(READOUT)
        return tuple(found if self.unreached is None else [])

    @property
    def order_blind(self) -> bool:
        """Whether the split changed neither the rows of the input nor the answer."""
        return not (self._acts(self.full.rows) or self._acts(self.full.readout))

    @property
    def complete(self) -> bool:
        """Whether nothing is left on the rows once everything known is switched off."""
        return self.unreached is None and not self._acts((self.both_off or self.full).rows)

    @property
    def verdict(self) -> str:
        """One sentence for someone who wonders whether to learn a position."""
        scale = f"the answer changes by {_number(self.full.readout)} (new vectors: {_number(self.redrawn.readout)})"
        if self.order_blind:
            trap = ""
            if self.fixed_index_trap:
                trap = f"; a reader that does not follow its row would be off by {_number(self.full.fixed)}"
            why = "order-blind" if self.positions is None and not self.causal else "order-blind on this batch"
            return f"{why}: learning a position cannot change the answer{trap}"
        if self.unreached is not None:
            return f"the split acts, {scale}; through what is not known: {self.unreached}"
        if not self.complete:
            return f"the split acts, {scale}; through something else too: with all that is known off it still does"
        return f"the split acts through {', '.join(self.mechanisms)}: {scale}"

    @property
    def fixed_index_trap(self) -> bool:
        """Whether the tracked answer is the same at all splits and the one at a fixed index is not."""
        fixed = self.full.fixed
        return fixed is not None and self._acts(fixed) and not self._acts(self.full.readout)

    def table(self) -> dict[str, Change | None]:
        """The rows of the table, by what was done; None where that does not apply."""
        return {
            "as it is": self.full,
            "position off": self.position_off,
            "causal mask off": self.mask_off,
            "both off": self.both_off if self.causal else None,
            "prompt's positions alone": self.prompt_moves,
            "input's positions alone": self.input_moves,
            "new vectors": self.redrawn,
        }

    def text(self, value: float | None) -> str:
        """A change as the table shows it: 0 where it is rounding, a dash where there is none."""
        return "–" if value is None else _number(value) if self._acts(value) else "0"

    def __str__(self) -> str:
        every = self.splits == tuple(range(self.length + 1))
        splits = f"0..{self.length}" if every else ", ".join(map(str, self.splits))
        lines = [f"{self.model}, {self.length} prompt vectors, splits {splits}"]
        lines.append(f"{'':26}{'input rows':>10}{'answer':>9}{'fixed row':>11}")
        for name, change in self.table().items():
            if change is not None:
                cells = [self.text(value) for value in change]
                lines.append(f"{name:26}{cells[0]:>10}{cells[1]:>9}{cells[2]:>11}")
        return "\n".join([*lines, *textwrap.wrap(self.verdict, 72)])

    def _acts(self, change: float) -> bool:
        return not change <= self.tolerance  # a nan acts


def _number(value: float) -> str:
    return f"{value:.2f}" if value >= 0.095 else f"{value:.1g}"


def position_sensitivity(
    model: PreTrainedModel,
    *,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    pixel_values: Tensor | None = None,
    decoder_input_ids: Tensor | None = None,
    length: int = 4,
    prompt: Tensor | None = None,
    splits: Sequence[int] | None = None,
    draws: int = 3,
    seed: int = 0,
) -> Sensitivity:
    """Move a prompt through its splits and measure what changes, with each mechanism on and off.

    The same prompt at split k is compared with itself as a prefix (k = l). A number is ||now - before|| / ||before||,
    the largest over the splits, the mean over prompts. Everything runs in evaluation mode and without gradients, and
    the model is left as it was.

    Parameters
    ----------
    model : T5, BART and kin; BERT, RoBERTa and kin; GPT-2, Llama, Qwen2 and kin; ViT, DeiT, DINOv2; the text and
        vision models of CLIP and SigLIP, or both in one.
    input_ids : (B, T), a batch of text, with ``attention_mask`` (B, T); or ``pixel_values`` (B, channels,
        height, width) of images.
    decoder_input_ids : (B, U), for encoder-decoder models; None: the start token.
    length : l, of the random prompts.
    prompt : (l, d), a prompt of one's own instead, such as a trained one.
    splits : those to compare with k = l; None: all.
    draws : number of random prompts (of redrawn vectors, where a prompt is given).
    seed : of the random prompts: embeddings of random tokens for text, for images normal vectors with the mean and
        the standard deviation of the rows.

    Raises
    ------
    TypeError : no tower serves the model.
    ValueError : neither or both of input_ids and pixel_values, or a split outside 0..l; a text for CLIP without an end
        token; a mask that hides tokens from SigLIP.
    """
    if (input_ids is None) == (pixel_values is None):
        raise ValueError(
            "expected either input_ids or pixel_values, got " + ("neither" if input_ids is None else "both")
        )
    if prompt is None and length < 1 or draws < 1:
        raise ValueError(f"length={length}, draws={draws}: expected at least 1 each")
    stack = tower(model, image=pixel_values is not None)
    if prompt is not None and (prompt.dim() != 2 or len(prompt) == 0):
        raise ValueError(f"prompt has shape {tuple(prompt.shape)}, expected (length, dim), length >= 1")
    if isinstance(stack, Seq2SeqTower):
        stack.decoder_input_ids = decoder_input_ids
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), evaluating(model, copies=False):
        embedded = stack.embed(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
        if prompt is None:
            pairs = [[stack.draw(length, embedded, generator) for _ in range(2)] for _ in range(draws)]
        else:
            prompt = prompt.detach().to(embedded.inputs)
            pairs = [[prompt, _like(prompt, len(prompt), generator)] for _ in range(draws)]
        length = len(pairs[0][0])
        tried = (
            tuple(range(length)) if splits is None else tuple(k for k in dict.fromkeys(splits) if k != length)
        )
        if not tried:
            raise ValueError(f"splits={list(splits)} has no split to compare with the prefix, {length}")
        if stack.adapter is not None:
            stack.adapter.check_length(embedded.inputs.shape[1] + length)
        found = [_probe(stack, embedded, first, second, tried) for first, second in pairs]
    means = {name: _mean([one[name] for one in found]) for name in found[0]}
    return Sensitivity(
        model=type(model).__name__,
        length=length,
        splits=tuple(sorted({*tried, length})),
        positions=stack.positions,
        causal=stack.causal,
        unreached=stack.unreached,
        tolerance=1e-4 if embedded.inputs.dtype in (torch.float32, torch.float64) else 5e-2,
        **means,
    )


def _probe(stack: Tower, embedded: Embedded, prompt: Tensor, other: Tensor, splits: Sequence[int]) -> dict:
    """Every line of the table for one prompt; ``other`` replaces it where vectors are redrawn."""
    reached = stack.unreached is None
    positions = reached and stack.positions is not None
    open_mask = {"see_all": True} if stack.causal else {}
    found = {"full": _moved(stack, embedded, prompt, splits)}
    found["position_off"] = _moved(stack, embedded, prompt, splits, positions=False) if positions else None
    can_open = stack.causal and reached  # models whose positions are known take a mask of our own
    found["mask_off"] = _moved(stack, embedded, prompt, splits, **open_mask) if can_open else None
    found["both_off"] = found["position_off"] if positions else None
    if positions and stack.causal:
        found["both_off"] = _moved(stack, embedded, prompt, splits, positions=False, **open_mask)
    has_table = reached and stack.table() is not None and type(stack.table()[0]) is nn.Embedding
    for name in ("prompt_moves", "input_moves"):
        found[name] = _moved(stack, embedded, prompt, splits, pin=name, **open_mask) if has_table else None
    length = len(prompt)
    states = [stack.states(embedded, vectors, length) for vectors in (prompt, other)]
    found["redrawn"] = compare(states[1], states[0])
    return found


def _moved(stack, embedded, prompt, splits, *, positions=True, pin=None, **options) -> Change:
    """The largest change over splits, relative to k = l, of each column."""
    length = len(prompt)
    reference = place(embedded, prompt, length)

    def states(split):
        with ExitStack() as inside:
            if not positions:
                inside.enter_context(stack.without_positions())
            if pin is not None:
                table, first = stack.table()
                ids = _pinned(place(embedded, prompt, split), reference, pin) + first
                inside.enter_context(_at(table, ids))
            return stack.states(embedded, prompt, split, **options)

    start = states(length)
    changes = [compare(states(split), start) for split in splits]
    return Change(*(max(column) if column[0] is not None else None for column in zip(*changes)))


def compare(now: States, before: States) -> Change:
    """How far the states of a batch are from those of the same batch under another prompt or split."""
    real = now.between
    fixed = None if now.fixed is None else _relative(now.fixed, before.fixed)
    readout = [s.readout[real] if _of_tokens(s.readout, s) else s.readout for s in (now, before)]
    return Change(_relative(now.rows[real], before.rows[real]), _relative(*readout), fixed)


def _relative(now: Tensor, before: Tensor) -> float:
    return float((now - before).norm() / before.norm())


def _mean(changes: Sequence[Change | None]) -> Change | None:
    if changes[0] is None:
        return None
    columns = zip(*changes)
    return Change(*(None if column[0] is None else sum(column) / len(column) for column in columns))


def _pinned(placed: Inserted, reference: Inserted, what_moves: str) -> Tensor:
    """Position ids (B, S) of the placed rows, where only those of the prompt or only those of the input move."""
    ids, there = token_positions(placed.mask), token_positions(reference.mask)
    field = "input_positions" if what_moves == "prompt_moves" else "prompt_positions"
    stays, stayed = getattr(placed, field), getattr(reference, field)
    return ids.scatter(1, stays, there.gather(1, stayed))


# ---- what absolute positions leave, and where an answer is read ---------------------------------------------


def absorb(prompt: Tensor, table: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The prompt that has at the positions ``after`` the rows that ``prompt`` has at the positions ``before``.

    A model that adds position vectors sees the sums ``prompt + table[positions]``, so ``p' = p + table[before] -
    table[after]`` keeps them: moving prompt vectors costs nothing that training could not give back. (The input has
    no such freedom: its embeddings are given.)

    Parameters
    ----------
    prompt : (l, d).
    table : (positions, d), the model's position vectors.
    before : (l,) integer positions, and so is ``after``.

    >>> absorb(torch.ones(1, 2), torch.tensor([[0.0, 0.0], [3.0, 5.0]]), torch.tensor([1]), torch.tensor([0]))
    tensor([[4., 6.]])
    """
    for name, positions in (("before", before), ("after", after)):
        if positions.shape != prompt.shape[:1]:
            raise ValueError(
                f"{name} has shape {tuple(positions.shape)}, expected ({len(prompt)},), one per vector"
            )
    return prompt + table[before] - table[after]


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


# ---- tools -------------------------------------------------------------------------------------------------


@contextmanager
def _at(table: nn.Embedding, ids: Tensor) -> Iterator[None]:
    """While this is open, the table looks up these ids (B, S) instead of those that it is asked for."""
    handle = table.register_forward_pre_hook(lambda module, arguments: (ids,))
    try:
        yield
    finally:
        handle.remove()


def _own_rows(placed: Inserted) -> Tensor:
    """(B, T): each input token's own row. A pooler reads column 0, so where that is padding (on the left) it holds the
    row of the first real token."""
    own = placed.input_positions
    first = placed.mask.gather(1, own).long().argmax(1, keepdim=True)
    return torch.cat([own.gather(1, first), own[:, 1:]], 1)


def _ones(embeds: Tensor) -> Tensor:
    return torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)


def _padding_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask (B, 1, S, S) to add to scores that hides padding and nothing else."""
    hidden = (mask == 0)[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
    return torch.zeros(hidden.shape, dtype=dtype, device=mask.device).masked_fill(
        hidden, torch.finfo(dtype).min
    )


def _like(rows: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """(l, d) normal vectors with the mean and the standard deviation of all entries of the rows."""
    noise = torch.randn(length, rows.shape[-1], generator=generator, dtype=torch.float64).to(rows)
    return rows.mean() + rows.std() * noise


def _answer(output) -> Tensor:
    """What an encoder answers with: its head's logits, else the pooler's vector, else its first row."""
    for name in ("logits", "pooler_output"):
        if getattr(output, name, None) is not None:
            return output[name]
    return output.last_hidden_state[:, 0]


def _of_tokens(answer: Tensor, batch: Embedded | States) -> bool:
    """Whether an encoder's answer is one vector per input token."""
    tokens = batch.mask if isinstance(batch, Embedded) else batch.between
    return answer.dim() == 3 and answer.shape[:2] == tokens.shape
