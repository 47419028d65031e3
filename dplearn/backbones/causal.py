"""Decoder-only models (GPT-2, Llama, Qwen and others that take `inputs_embeds` and `position_ids`).

The prompt surrounds the real tokens up to a boundary that the user names (``context_length`` or ``keep_last``; without
one, all of them), and what follows, such as an answer or a cue, stays behind the whole prompt. Labels have no say in
it: where the prompt stands in training is where it stands in generation. The language-modelling head sees one row per
input token, the one that predicts the next token: before the first token behind a postfix that is the last prompt
vector. So logits and labels have the shapes that they have without a prompt.
"""

from __future__ import annotations

import inspect
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dplearn.backbones import position_space
from dplearn.backbones.base import (
    Backbone,
    Reading,
    evaluating,
    probe_ids,
    probed_scale,
    standing_in,
    token_positions,
)
from dplearn.backbones.text import Entry, continued_positions
from dplearn.backbones.views import below, changed, prepare
from dplearn.conventions import OURS
from dplearn.estimators import instance_losses


class Prompted(NamedTuple):
    """What is remembered with a cache that holds a prompted input."""

    mask: Tensor  # (B, S) of all rows in it
    vectors: Tensor  # (B, 1), how many vectors stand in front of what comes
    following: Tensor  # (B, 1), the position id of the next token
    held: int  # the rows that it holds by its own account
    keys: Tensor | None  # its first layer's, another object once rows were cropped, reordered or repeated

    @classmethod
    def of(cls, cache, mask: Tensor, vectors: Tensor, following: Tensor) -> Prompted:
        return cls(mask, vectors, following, int(cache.get_seq_length()), _keys(cache))


def _keys(cache) -> Tensor | None:
    layers = getattr(cache, "layers", None)
    return getattr(layers[0], "keys", None) if layers else None


class CausalBackbone(Backbone):
    """Adapter of a decoder-only model with or without a head."""

    def __init__(self, model):
        super().__init__(model)
        if getattr(model.config, "rope_parameters", None) and _rope_types(model.config) != {"default"}:
            self.max_positions = None  # angles that stretch with the input
        self.predicts_next = model.get_output_embeddings() is not None and not _classifies_text(model)
        self.reads_answers = self.predicts_next
        self.entry: Entry | None = None

    @staticmethod
    def refusal(model: nn.Module) -> str | None:
        """Why this adapter cannot serve the model, or None if it can."""
        config = model.config
        if config.is_encoder_decoder:
            return f"expected a decoder-only model, model_type={config.model_type!r} has an encoder"
        if not is_causal(model):
            return f"expected a decoder-only model, model_type={config.model_type!r} is not known as one"
        parameters = inspect.signature(model.base_model.forward).parameters
        for needed in ("inputs_embeds", "position_ids"):
            if needed not in parameters and not hasattr(model.base_model, "decoder"):
                return f"{type(model.base_model).__name__} does not take {needed}"
        return None

    def probe(self) -> str | None:
        ids = probe_ids(self.model, self.vocabulary).to(self.model.device)
        name = type(self.model).__name__
        with evaluating(self.model, copies=False):
            try:
                self.entry = Entry.of(self.model, ids)
            except Exception as error:
                return f"{name} fails on {ids.shape[1]} tokens: {type(error).__name__}: {str(error)[:200]}"
        if self.entry is None:
            return f"the head of {name} does not run its base model on embedded tokens"
        if not self.entry.takes_positions:
            return f"{type(self.entry.module).__name__} does not take position_ids"
        found = probed_scale(self.model, self.embedding, self.entry.module, self._states)
        if isinstance(found, str):
            return found
        self.scale = found
        return None

    def _states(self, **tokens) -> Tensor:
        like = next(iter(tokens.values()))
        places = {}
        if "inputs_embeds" in tokens:
            places["position_ids"] = torch.arange(like.shape[1], device=like.device)[None]
        mask = torch.ones(like.shape[:2], dtype=torch.long, device=like.device)
        return self.entry.module(
            **tokens, **places, attention_mask=mask, use_cache=False, return_dict=True
        ).last_hidden_state

    def seen(self, mask: Tensor, keep_last: int | Tensor) -> Tensor:
        if isinstance(keep_last, int) and keep_last == 0:
            return mask
        rest = mask.long().flip(1).cumsum(1).flip(1)  # real tokens from each one to the end
        kept = keep_last.unsqueeze(1) if isinstance(keep_last, Tensor) else keep_last
        return mask * (rest > kept)

    def hidden_states(self, model, inputs: Tensor, mask: Tensor) -> Tensor:
        output = model.get_submodule(self.entry.path)(
            inputs_embeds=inputs,
            attention_mask=mask,
            position_ids=token_positions(mask),
            use_cache=False,
            return_dict=True,
        )
        return output.last_hidden_state

    def run(self, placed, reading: Reading, head: nn.ModuleDict | None = None):
        mask, changes = None, standing_in(head)
        if placed.moves is not None:
            mask = position_space.causal_masks(
                self.model.config, placed.moves, placed.mask, placed.embeds.dtype
            )
            how, name = self._positions()
            changes[below(self.entry.path, name)] = getattr(position_space, how)(
                self.entry.module.get_submodule(name), placed.moves
            )
        changes[self.entry.path] = self.entry(placed, reading, self._rows(placed, reading), mask)
        prepare(self.entry.module, reading.given)
        with changed(self.model, changes) as model:
            output = model(**reading.given)
        cache = reading.given.get("past_key_values")
        cache = getattr(output, "past_key_values", None) if cache is None else cache
        if hasattr(cache, "get_seq_length") and not torch.compiler.is_compiling():
            vectors = (placed.mask != 0).sum(1, keepdim=True) - (reading.mask != 0).sum(1, keepdim=True)
            following = self._positions_of(placed, reading).amax(1, keepdim=True) + 1
            cache.prompted = Prompted.of(cache, placed.mask, vectors, following)  # for :meth:`proceed`
        return output

    def _positions_of(self, placed, reading: Reading) -> Tensor:
        """The position ids (B, S) that the model gets."""
        own = reading.given.get("position_ids")
        if own is None:
            return token_positions(placed.mask)
        places = reading.places(placed)
        return continued_positions(own.expand(places.shape), placed, reading, places)

    def continues(self, batch: dict) -> bool:
        """Whether ``past_key_values`` holds a prompted input.

        Raises
        ------
        ValueError : it holds something else.
        """
        cache = batch.get("past_key_values")
        if cache is None or not hasattr(cache, "get_seq_length") or int(cache.get_seq_length()) == 0:
            return False
        held, known = int(cache.get_seq_length()), getattr(cache, "prompted", None)
        if known is None or known.held != held or known.keys is not _keys(cache):
            raise ValueError(
                f"past_key_values holds {held} rows that are not as a prompted model left them, expected an empty "
                "cache or one of an earlier output of this model, with nothing cropped, reordered or repeated"
            )
        return True

    def proceed(self, batch: dict):
        """The model on new tokens behind a cached prompted input; the mask of that is remembered with the cache."""
        cache, mask, positions = (batch.get(n) for n in ("past_key_values", "attention_mask", "position_ids"))
        tokens = batch["input_ids"] if batch.get("input_ids") is not None else batch.get("inputs_embeds")
        if tokens is None:
            raise ValueError("expected one of input_ids and inputs_embeds, got none")
        known, count = cache.prompted, tokens.shape[1]
        if known.mask.shape[0] != tokens.shape[0]:
            raise ValueError(
                f"past_key_values holds {known.mask.shape[0]} inputs, expected as many as there are new ones: "
                f"{tokens.shape[0]}"
            )
        new = known.mask.new_ones(tokens.shape[:2]) if mask is None else mask[:, -count:].to(known.mask.dtype)
        if positions is None:
            positions = (known.following + new.long().cumsum(1) - 1) * (new != 0)
        else:
            positions = positions.expand(tokens.shape[:2]) + known.vectors
        given = {name: value for name, value in batch.items() if value is not None and name not in OURS}
        given |= {"attention_mask": torch.cat([known.mask, new], 1), "position_ids": positions}
        output = self.model(**given)
        following = torch.where(new != 0, positions + 1, known.following).amax(1, keepdim=True)
        cache.prompted = Prompted.of(cache, given["attention_mask"], known.vectors, following)
        return output

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return instance_losses(logits, labels, shift=self.predicts_next)

    def _positions(self) -> tuple[str, str] | None:
        """How position information enters: learned vectors (GPT-2) or rotary angles (Llama), and the module's name."""
        module = self.model.base_model if self.entry is None else self.entry.module
        for name, how in (("wpe", "in_vectors"), ("rotary_emb", "in_rotary_angles")):
            if isinstance(getattr(module, name, None), nn.Module):
                return how, name
        return None

    def refuses_position_space(self) -> str | None:
        if self._positions() is None:
            return super().refuses_position_space()
        reason, like = position_space.unknown_layers(self.model.config), self.embedding.weight.new_empty(0)
        if reason is None:
            window = getattr(self.model.config, "sliding_window", None)
            with evaluating(self.model, copies=False):
                reason = position_space.refuses_order(self._ordered_states, self.width, like, window)
        return reason and f"{type(self.model).__name__}: {reason}"

    def _ordered_states(self, rows: Tensor, order: Tensor | None) -> Tensor:
        """Hidden states of rows (1, S, d) that stand at ``order`` (S,); None: by the model's own masks."""
        places = torch.arange(rows.shape[1], device=rows.device) if order is None else order
        mask = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
        if order is not None:
            mask = position_space.ordered_masks(self.model.config, order, rows.dtype)
        return self.entry.module(
            inputs_embeds=rows,
            attention_mask=mask,
            position_ids=places[None],
            use_cache=False,
            return_dict=True,
        ).last_hidden_state

    def generate(self, placed, reading: Reading, **options) -> Tensor:
        """Returns the new tokens alone, as transformers does for ``inputs_embeds``. Padding goes to the left first."""
        if not self.model.can_generate():
            return super().generate(placed, reading, **options)
        cache = options.get("past_key_values")
        if hasattr(cache, "get_seq_length") and int(cache.get_seq_length()) > 0:
            raise ValueError(
                f"past_key_values holds {int(cache.get_seq_length())} rows, expected an empty cache: generate puts the "
                "prompt around the whole input. A loop over model(...) continues a cache"
            )
        # Padding before real rows, each in their order.
        order = placed.mask.long().argsort(dim=1, stable=True)
        embeds = placed.embeds.gather(1, order.unsqueeze(2).expand_as(placed.embeds))
        options = self._with_room(options, placed.embeds.shape[1] - reading.mask.shape[1])
        options |= {"inputs_embeds": embeds, "attention_mask": placed.mask.gather(1, order)}
        try:
            with evaluating(self.model) as model:
                return model.generate(**options)
        except IndexError as error:
            if self.max_positions is None:
                raise
            raise ValueError(
                f"generation went past max_position_embeddings={self.max_positions}; input and prompt have "
                f"{embeds.shape[1]} positions: ask for fewer new tokens, truncate the input or shorten the prompt"
            ) from error

    def _with_room(self, options: dict, extra: int) -> dict:
        """Limits of generation that count input and new tokens, for an input with so many prompt rows in it."""
        config = options.get("generation_config") or self.model.generation_config
        usual, more = type(config)(), {}
        for name in ("max_length", "min_length"):
            limit = options.get(name)
            if limit is None and options.get(name.replace("length", "new_tokens")) is None:
                own = getattr(config, name, None)
                limit = None if own == getattr(usual, name, None) else own
            if limit:
                more[name] = limit + extra
        return options | more

    def _rows(self, placed, reading: Reading) -> Tensor:
        """Which row the head reads: for language models the one before the next input token, for classifiers of the
        whole text the last real one, wherever they look for it, else each token's own."""
        own, steps = reading.places(placed), torch.arange(placed.mask.shape[1], device=placed.mask.device)
        last = (steps * (placed.mask != 0)).amax(1, keepdim=True)
        if _classifies_text(self.model):
            return last.expand_as(own)
        if not self.predicts_next:
            return own
        return torch.cat([own[:, 1:] - 1, last], 1).clamp(min=0)


def _rope_types(config) -> set[str]:
    parameters = config.rope_parameters
    several = parameters.values() if all(isinstance(v, dict) for v in parameters.values()) else [parameters]
    return {each.get("rope_type", "default") for each in several if each}


def is_causal(model: nn.Module) -> bool:
    """Whether a model is of a kind that transformers knows as decoder-only."""
    from transformers.models.auto import modeling_auto

    kind = model.config.model_type
    # Encoders that can be made decoders (BERT, ERNIE, RemBERT) are listed as both; as they come, they look both ways.
    return (
        kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and kind not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def _classifies_text(model: nn.Module) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    names = set(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values())
    return any(parent.__name__ in names for parent in type(model).__mro__)
