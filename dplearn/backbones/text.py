"""Text models whose prompt enters at the base model: rows go in, and the input's own rows come out.

The head never learns of the prompt. The base model inside of it is replaced, for one call, by one that takes the
prompted rows and gives back the rows of the input (:class:`Entry`). So what stands behind it (pooler, classifier,
language-modelling head, the search for the last token, the loss) reads the tokens, masks and labels that the user gave,
each hidden state where it would be without a prompt.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dplearn.backbones.base import Backbone
from dplearn.backbones.probing import Refused, is_empty, probe_ids, same, tried
from dplearn.backbones.reading import Boundary, Reading
from dplearn.backbones.rows import token_positions, with_rows
from dplearn.backbones.views import Change, below, changed, evaluating, path_of
from dplearn.config import PromptConfig
from dplearn.insertion import insert
from dplearn.prompt import PromptedInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What the base model is told anew; everything else that has a value for each token moves with its token.
PLACED = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")


class Entry:
    """The module of a model that a prompted input enters, and whose last hidden states the head reads.

    path : of the module inside of the model, "" where it is the model itself.
    """

    def __init__(self, model: PreTrainedModel, path: str):
        self.path = path
        self.module = model.get_submodule(path)
        self.names = list(inspect.signature(self.module.forward).parameters)
        self.takes_positions = "position_ids" in self.names

    @classmethod
    def of(cls, model: PreTrainedModel, ids: Tensor) -> Entry:
        """The base model, or the module of it that the head calls: its decoder (OPT), or a model of another name.

        ids : (1, T) tokens to try it with.

        Raises
        ------
        Refused : the model fails on tokens, or its head calls nothing that takes rows.
        """
        path, headless = path_of(model, model.base_model), model.base_model is model
        inside = [name for name, _ in model.named_children()] if headless else [below(path, "decoder")]
        has_head = model.get_output_embeddings() is not None
        candidates = inside if headless and has_head else [path, *inside]
        for candidate in candidates:
            try:
                module = model.get_submodule(candidate)
            except AttributeError:
                continue
            if _takes_rows(module) and _calls(model, candidate, ids):
                return cls(model, candidate)
        raise Refused(f"the head of {type(model).__name__} does not run its base model on embedded tokens")

    def arguments(self, values: tuple, options: dict) -> dict:
        """What the module was called with, by name, without those that are None."""
        named = dict(zip(self.names, values)) | options
        return {name: value for name, value in named.items() if value is not None}

    def __call__(
        self,
        placed: PromptedInput,
        reading: Reading,
        rows: Tensor | None,
        mask: Tensor | None = None,
        first: int = 0,
    ) -> Change:
        """The change by which the module gets a prompted input and gives back ``rows`` (B, N) of its last states.

        rows : None: the states as they are (they were picked inside).
        mask : another one than the prompted input's, such as (B, 1, S, S).
        first : the position of the first token.
        """

        def forward(usual, *values, **options):
            inner = self.arguments(values, options)
            positions = inner.get("position_ids")
            places = reading.places(placed)
            shape, kept = places.shape, {}
            for name, value in inner.items():
                if name not in PLACED:
                    # What is about an encoder's rows (cross-attention) may have the input's shape by chance.
                    beside = name.startswith("encoder_") or not isinstance(value, Tensor)
                    per_token = not beside and value.shape[:2] == shape
                    if per_token and name not in reading.given:
                        raise ValueError(
                            f"the head makes {name} itself, from tokens that do not stand there any more"
                        )
                    kept[name] = moved(value, placed, places) if per_token else value
            if self.takes_positions:
                if positions is not None:
                    refuse_packed(positions, inner)
                kept["position_ids"] = prompted_positions(positions, placed, reading, first)
            output = usual(
                inputs_embeds=placed.embeds, attention_mask=placed.mask if mask is None else mask, **kept
            )
            return output if rows is None else with_rows(output, rows)

        return forward


def _takes_rows(module: nn.Module) -> bool:
    return "inputs_embeds" in inspect.signature(module.forward).parameters


def _calls(model: PreTrainedModel, path: str, ids: Tensor) -> bool:
    """Whether a module is called once when the model reads tokens."""
    calls = []

    def recording(usual, *values, **options):
        calls.append(path)
        return usual(*values, **options)

    try:
        with torch.no_grad(), evaluating(model, copies=False), changed(model, {path: recording}) as view:
            view(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception as error:
        name = type(model).__name__
        raise Refused(
            f"{name} fails on {ids.shape[1]} tokens: {type(error).__name__}: {str(error).strip()[:200]}"
        ) from None
    return len(calls) == 1


def moved(values: Tensor, placed: PromptedInput, places: Tensor, fill: float = 0) -> Tensor:
    """Values of tokens, (B, T, ...), in the rows where they went, and ``fill`` in those of the prompt: (B, S, ...)."""
    batch, count = placed.mask.shape
    index = places.view(*places.shape, *[1] * (values.ndim - 2)).expand_as(values)
    return values.new_full((batch, count, *values.shape[2:]), fill).scatter(1, index, values)


def prompted_positions(
    positions: Tensor | None, placed: PromptedInput, reading: Reading, first: int
) -> Tensor:
    """Position ids (B, S) of a prompted input: they count real rows from ``first``, or go by the tokens' own ids.

    Tokens with ids of their own, (B, T) or (1, T), move up by the number of vectors in front of them, and vectors
    continue the count of the row in front of them (or precede that of the first token).
    """
    if positions is None:
        return token_positions(placed.mask) + first
    places = reading.places(placed)
    positions = positions.expand(places.shape)
    is_token = moved(torch.ones_like(positions), placed, places)
    real = moved((_columns(reading, reading.mask) != 0).to(positions.dtype), placed, places)
    vector = (1 - is_token) * (placed.mask != 0)
    before = vector.cumsum(1)  # vectors up to each row
    own = moved(positions, placed, places) + before
    steps = torch.arange(own.shape[1], device=own.device)
    # The last real token up to each row.
    known = torch.where((real * is_token) > 0, steps, -1).cummax(1).values
    start_row = (real * is_token).argmax(1, keepdim=True)
    start = own.gather(1, start_row) - before.gather(1, start_row)  # the first token's own id
    behind = own.gather(1, known.clamp(min=0)) + steps - known
    front = start + before - 1
    return torch.where(is_token > 0, own, torch.where(known >= 0, behind, front)) * (placed.mask != 0)


def refuse_packed(positions: Tensor, given: dict) -> None:
    """Raise ValueError where position ids without a mask start again inside of a row: several texts in one row, which
    attention keeps apart where it sees this (flash attention, or no cache). One prompt cannot stand in all of them."""
    if given.get("attention_mask") is None and not torch.compiler.is_compiling():
        if bool((positions.diff(dim=1) < 1).any()):
            raise ValueError(
                "position_ids start again inside of a row and there is no attention_mask, which means several texts in "
                "one row (packed), expected one text in each row"
            )


def _columns(reading: Reading, values: Tensor) -> Tensor:
    """Values of rows, (B, T), in the user's columns."""
    return values if reading.columns is None else values.gather(1, reading.columns)


def right_padded(reading_of: dict, mask: Tensor) -> tuple[dict, Tensor, Tensor]:
    """Ids or rows with padding on the right, their mask (B, T), and the row that holds each given column (B, T)."""
    # The rows move around by the padding in front; what else the mask hides stays where it is.
    steps, first = torch.arange(mask.shape[1], device=mask.device), (mask != 0).long().argmax(1, keepdim=True)
    order = (steps + first) % mask.shape[1]
    taken = {}
    for name, value in reading_of.items():
        index = order if value.ndim == 2 else order.unsqueeze(2).expand_as(value)
        taken[name] = value.gather(1, index)
    return taken, mask.gather(1, order), (steps - first) % mask.shape[1]


OTHER_WAY = "it looks the other way"  # a decoder for the adapter of encoders, or the reverse


class TextBackbone(Backbone):
    """What the adapters of decoder-only models and of encoders share. Which of them a model needs shows in its answers:
    in a causal model no row depends on a later one."""

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.entry: Entry = None  # type: ignore[assignment]  # found by the probe
        self.labels_tokens = labels_tokens(model)
        rope = getattr(model.config, "rope_parameters", None)
        if isinstance(rope, dict) and rope and _rope_types(rope) != {"default"}:
            self.max_positions = None  # angles that stretch with the input

    @staticmethod
    def refusal(model: PreTrainedModel) -> str | None:
        """Why this adapter cannot serve the model, or None if it can."""
        from transformers.models.auto import modeling_auto

        config, kind = model.config, getattr(model.config, "model_type", "")
        if getattr(config, "is_encoder_decoder", False):
            return f"expected an encoder or a decoder, model_type={kind!r} has both"
        known = (
            modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
            modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        )
        if not any(kind in names for names in known) or model.main_input_name != "input_ids":
            return f"model_type={kind!r} is not known as a model of texts"
        return no_table(model)

    def probe(self) -> str | None:
        ids = probe_ids(self.model, self.vocabulary)
        try:
            self.entry = Entry.of(self.model, ids)
            findings = tried(self.model, self.embedding, self.entry.module, self._states)
        except Refused as reason:
            return str(reason)
        if findings.causal != self.causal:
            return OTHER_WAY
        self.scale, self.first_position = findings.scale, findings.first
        if is_empty(self.embedding):
            return None  # nothing can be tried
        try:
            self.look(ids)
        except Refused as reason:
            return str(reason)
        return self._check_head(ids)

    def look(self, ids: Tensor) -> None:
        """Find out what else an adapter needs, with a few tokens (1, T); raises Refused."""

    def _check_head(self, ids: Tensor) -> str | None:
        """Why the head cannot be given the rows of the input alone, or None: two words are put around three tokens."""
        words, rest = ids[:, :2], ids[:, 2:]
        given, name = {"input_ids": rest, "attention_mask": torch.ones_like(rest)}, type(self.model).__name__
        try:
            with torch.no_grad(), evaluating(self.model, copies=False):
                reading = self.read(given, Boundary(), PromptConfig(length=2))
                placed = insert(self.embed(words)[0], reading.rows, reading.mask, 1)
                prompted = self.run(PromptedInput(*placed, decisions={}), reading)
                whole = torch.cat([words[:, :1], rest, words[:, 1:]], 1)
                plain = self.model(input_ids=whole, attention_mask=torch.ones_like(whole))
        except Exception as error:
            return f"{name} fails on rows of a prompt: {type(error).__name__}: {str(error).strip()[:200]}"
        if self.reads_answers and not same(self.model, prompted.logits, plain.logits[:, [1, 2, 4]]):
            return f"{name} answers differently to a prompt of words and to these words"
        return None

    def _states(self, mask: Tensor, first: int = 0, **tokens) -> Tensor:
        module = self.entry.module
        places: dict[str, Tensor] = {}
        given: dict[str, bool] = {}
        if "inputs_embeds" in tokens and self.entry.takes_positions:
            places["position_ids"] = token_positions(mask) + first
        if "use_cache" in self.entry.names:
            given["use_cache"] = False
        return module(**tokens, **places, **given, attention_mask=mask, return_dict=True).last_hidden_state

    def check_length(self, total: int) -> None:
        super().check_length(total + self.first_position)

    def position_ids(self, mask: Tensor) -> dict[str, Tensor]:
        """Position ids that count real tokens, as arguments; none where the model takes none."""
        takes = self.entry.takes_positions
        return {"position_ids": token_positions(mask) + self.first_position} if takes else {}

    def read(self, batch: dict, boundary: Boundary, config: PromptConfig, size: int | None = None) -> Reading:
        """Padding moves to the right: not every model takes position ids, and some carry padding on to what follows."""
        self._refuse_images(batch)
        ids, mask, rows = self._tokens(batch)
        self.check_shapes(batch, tuple(mask.shape))
        self.check_length(mask.shape[1] + config.length)
        tokens, mask, columns = right_padded(
            {"input_ids": ids} if rows is None else {"inputs_embeds": rows}, mask
        )
        keep_last = boundary.kept(mask)
        rows = self.embed(tokens["input_ids"]) if rows is None else tokens["inputs_embeds"]
        return Reading(rows, mask, self.seen(mask, keep_last), keep_last, batch, columns)

    def shape_of(self, name: str, batch: dict, shape: tuple[int, ...]) -> tuple[int | None, ...]:
        return shape if name == "labels" and self.labels_tokens else super().shape_of(name, batch, shape)

    def hidden_states(self, model: PreTrainedModel, inputs: Tensor, mask: Tensor) -> Tensor:
        options: dict[str, Any] = self.position_ids(mask)
        if "use_cache" in self.entry.names:
            options["use_cache"] = False
        output = model.get_submodule(self.entry.path)(
            inputs_embeds=inputs, attention_mask=mask, **options, return_dict=True
        )
        return output.last_hidden_state


def labels_tokens(model: PreTrainedModel) -> bool:
    """Whether a model's labels have one value for each token: a language model, or a tagger."""
    from transformers.models.auto import modeling_auto

    names = {
        *modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(),
        *modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values(),
        *modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values(),
    }
    return any(parent.__name__ in names for parent in type(model).__mro__)


def no_table(model: PreTrainedModel) -> str | None:
    """Why a model has no table of token embeddings, whose rows a prompt stands among, or None if it has one."""
    try:
        table = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        table = None
    if getattr(getattr(table, "weight", None), "ndim", 0) != 2:
        return f"{type(model).__name__} has no table of token embeddings"
    return None


def _rope_types(parameters: dict) -> set[str]:
    several = parameters.values() if all(isinstance(v, dict) for v in parameters.values()) else [parameters]
    return {each.get("rope_type", "default") for each in several if each}
