"""Decoder-only models (GPT-2, Llama, Qwen and others that take `inputs_embeds`).

The prompt surrounds the real tokens up to a boundary that the user names (``context_length`` or ``keep_last``; without
one, all of them), and what follows, such as an answer or a cue, stays behind the whole prompt. Labels have no say in
it: where the prompt stands in training is where it stands in generation. The language-modelling head sees one row per
input token, the one that predicts the next token: before the first token behind a postfix that is the last prompt
vector. So logits and labels have the shapes that they have without a prompt.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dplearn.backbones import fronts, mechanisms, parts, position_space
from dplearn.backbones.heads import standing_in
from dplearn.backbones.probing import probe_ids, same
from dplearn.backbones.reading import Reading
from dplearn.backbones.text import TextBackbone, prompted_positions
from dplearn.backbones.views import Changes, below, changed, evaluating, prepare
from dplearn.config import PromptConfig
from dplearn.conventions import OURS
from dplearn.kept import KeptInputs


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


class CausalBackbone(TextBackbone):
    """Adapter of a decoder-only model with or without a head."""

    causal = True

    def __init__(self, model):
        super().__init__(model)
        self.predicts_next = model.get_output_embeddings() is not None and not _classifies_text(model)
        self.reads_answers = self.predicts_next
        self.values_of_a_token: int | None = None  # how many numbers of a token are kept
        self.prefixes: list[parts.KnownPrefix] = []  # vectors in front of every input, with keys and values
        # As :mod:`dplearn.backbones.parts` does it; asked when it matters.
        self.runs_in_parts: bool | None = None
        self._pads_left: bool | None = None  # whether padding in front changes nothing; asked when it matters

    def seen(self, mask: Tensor, keep_last: int | Tensor) -> Tensor:
        if isinstance(keep_last, int) and keep_last == 0:
            return mask
        rest = mask.long().flip(1).cumsum(1).flip(1)  # real tokens from each one to the end
        kept = keep_last.unsqueeze(1) if isinstance(keep_last, Tensor) else keep_last
        return mask * (rest > kept)

    def shortened(self, placed, reading: Reading, learning: bool) -> Reading:
        front = fronts.front_of(self, placed, reading, learning) if "inputs" in self.shortcuts else None
        return reading if front is None else fronts.shortened(front, reading, self.predicts_next)

    def run(self, placed, reading: Reading, head: nn.ModuleDict | None = None):
        if reading.front is not None:
            return fronts.run(self, placed, reading, head)
        mask: Any = None
        changes = standing_in(head)
        if placed.moves is not None:
            mask = position_space.causal_masks(
                self.model.config, placed.moves, placed.mask, placed.embeds.dtype
            )
            how, name = cast(tuple[str, str], self._positions())
            changes[below(self.entry.path, name)] = getattr(position_space, how)(
                self.entry.module.get_submodule(name), placed.moves
            )
        entry = self.entry(
            placed, reading, self.rows_read(placed, reading.places(placed)), mask, self.first_position
        )
        changes[self.entry.path] = parts.cut(entry, self, placed, reading)
        prepare(self.entry.module, reading.given)
        with changed(self.model, changes) as model:
            output = model(**reading.given)
        cache: Any = reading.given.get("past_key_values")
        cache = getattr(output, "past_key_values", None) if cache is None else cache
        if hasattr(cache, "get_seq_length") and not torch.compiler.is_compiling():
            vectors = (placed.mask != 0).sum(1, keepdim=True) - (reading.mask != 0).sum(1, keepdim=True)
            own = reading.given.get("position_ids")
            positions = prompted_positions(own, placed, reading, self.first_position)
            following = positions.amax(1, keepdim=True) + 1
            cache.prompted = Prompted.of(cache, placed.mask, vectors, following)  # for :meth:`proceed`
        return output

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
        cache: Any = batch.get("past_key_values")
        mask, positions = batch.get("attention_mask"), batch.get("position_ids")
        tokens = batch["input_ids"] if batch.get("input_ids") is not None else batch.get("inputs_embeds")
        if tokens is None:
            raise ValueError("expected one of input_ids and inputs_embeds, got none")
        known, count = cache.prompted, tokens.shape[1]
        if known.mask.shape[0] != tokens.shape[0]:
            raise ValueError(
                f"past_key_values holds {known.mask.shape[0]} inputs, expected as many as there are new ones: "
                f"{tokens.shape[0]}"
            )
        if not self.entry.takes_positions and bool((known.mask == 0).any()):
            raise ValueError(
                f"past_key_values holds inputs of several lengths, and {type(self.model).__name__} takes no "
                "position_ids: expected inputs of one length, or generate"
            )
        new = known.mask.new_ones(tokens.shape[:2]) if mask is None else mask[:, -count:].to(known.mask.dtype)
        if positions is None:
            positions = (known.following + new.long().cumsum(1) - 1) * (new != 0)
        else:
            positions = positions.expand(tokens.shape[:2]) + known.vectors
        given = {name: value for name, value in batch.items() if value is not None and name not in OURS}
        given["attention_mask"] = torch.cat([known.mask, new], 1)
        if self.entry.takes_positions:
            given["position_ids"] = positions
        output = self.model(**given)
        following = torch.where(new != 0, positions + 1, known.following).amax(1, keepdim=True)
        cache.prompted = Prompted.of(cache, given["attention_mask"], known.vectors, following)
        return output

    def _positions(self) -> tuple[str, str] | None:
        """How position information enters: learned vectors (GPT-2) or rotary angles (Llama), and the module's name."""
        module = self.model.base_model if self.entry is None else self.entry.module
        for name, how in (("wpe", "in_vectors"), ("rotary_emb", "in_rotary_angles")):
            if isinstance(getattr(module, name, None), nn.Module):
                return how, name
        return None

    def mechanism(self) -> mechanisms.Mechanism:
        positions = self._positions()
        if positions is None:
            return mechanisms.Mechanism(unreached=super().refuses_position_space())
        how, name = positions
        first = 0 if type(self.entry.module.get_submodule(name)) is nn.Embedding else None
        kind = mechanisms.ABSOLUTE if how == "in_vectors" else mechanisms.ROTARY
        return mechanisms.Mechanism(kind, (below(self.entry.path, name),), first)

    def seeing_all(self) -> Changes:
        return {self.entry.path: mechanisms.hiding_padding_alone}

    def refuses_position_space(self) -> str | None:
        if self._positions() is None:
            return super().refuses_position_space()
        window = getattr(self.model.config, "sliding_window", None)
        reason = position_space.unknown_layers(self.model.config) or position_space.refuses_order(
            self.model, self._ordered_states, self.width, window
        )
        return reason and f"{type(self.model).__name__}: {reason}"

    def _ordered_states(self, rows: Tensor, order: Tensor | None) -> Tensor:
        """Hidden states of rows (1, S, d) that stand at ``order`` (S,); None: by the model's own masks."""
        places = torch.arange(rows.shape[1], device=rows.device) if order is None else order
        mask: Any = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
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
        self._check_generates(placed.mask)
        cache: Any = options.get("past_key_values")
        if hasattr(cache, "get_seq_length") and int(cache.get_seq_length()) > 0:
            raise ValueError(
                f"past_key_values holds {int(cache.get_seq_length())} rows, expected an empty cache: generate puts the "
                "prompt around the whole input. A loop over model(...) continues a cache"
            )
        known = None
        if cache is None and "inputs" in self.shortcuts:
            cache = fronts.cache_for(self, placed, reading, options)
        if cache is None and "prefix" in self.shortcuts:
            known = parts.prefix_for(self, placed, options)
        # Padding before real rows, each in their order; behind the rows that are known.
        places = placed.mask.long()
        if known is not None:
            count, cache = known
            places = torch.cat([places[:, :count] - 2, places[:, count:]], 1)
        order = places.argsort(dim=1, stable=True)
        embeds = placed.embeds.gather(1, order.unsqueeze(2).expand_as(placed.embeds))
        options = self._with_room(options, reading.mask.shape[1], placed.embeds.shape[1])
        options |= {"inputs_embeds": embeds, "attention_mask": placed.mask.gather(1, order)}
        options |= {} if cache is None else {"past_key_values": cache}
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

    def _check_generates(self, mask: Tensor) -> None:
        """Raise where the model does not generate from embedded inputs, or not from those of several lengths (B, S)."""
        name = type(self.model).__name__
        if not self.model.can_generate():
            raise NotImplementedError(f"{name} does not generate")
        if "inputs_embeds" not in inspect.signature(self.model.prepare_inputs_for_generation).parameters:
            raise NotImplementedError(f"{name} does not generate from embedded inputs, which a prompt needs")
        if bool((mask != 0).all()):
            return
        if self._pads_left is None:
            self._pads_left = self._same_with_padding_in_front()
        if not self._pads_left:
            raise ValueError(
                f"the inputs have several lengths, and {name} answers differently behind padding on the left, which "
                "generation needs: expected inputs of one length"
            )

    def _same_with_padding_in_front(self) -> bool:
        """Whether generation from five tokens begins the same way behind two of padding."""
        rows = self.embed(probe_ids(self.model, self.vocabulary))
        padded = torch.cat([rows[:, :2], rows], 1)
        mask = torch.ones(padded.shape[:2], dtype=torch.long, device=rows.device)
        mask[:, :2] = 0
        options = dict(max_new_tokens=1, do_sample=False, num_beams=1, pad_token_id=0)
        options |= dict(output_logits=True, return_dict_in_generate=True)
        with evaluating(self.model) as model:
            plain = model.generate(inputs_embeds=rows, attention_mask=mask[:, 2:], **options)
            behind = model.generate(inputs_embeds=padded, attention_mask=mask, **options)
        return same(self.model, behind.logits[0], plain.logits[0])

    def _with_room(self, options: dict, tokens: int, rows: int) -> dict:
        """Limits of generation that count input and new tokens, for an input of so many tokens whose prompt makes more
        rows of it."""
        config = options.get("generation_config") or self.model.generation_config
        usual, more = type(config)(), {}
        new = options.get("max_new_tokens", getattr(config, "max_new_tokens", None))  # goes before max_length
        for name in ("max_length", "min_length"):
            limit = options.get(name)
            if limit is None and options.get(name.replace("length", "new_tokens")) is None:
                own = getattr(config, name, None)
                limit = None if own == getattr(usual, name, None) else own
            if name == "max_length" and limit and limit <= tokens and new is None:
                raise ValueError(
                    f"max_length={limit} leaves no room for a new token: the input has {tokens} with its padding, "
                    "expected more, or max_new_tokens"
                )
            if limit:
                more[name] = limit + rows - tokens
        return options | more

    def refuses_kept(self, config: PromptConfig) -> str | None:
        if config.position not in ("postfix", 0):
            return f"position={config.position!r}, expected 'postfix': an input's rows see the vectors in front of them"
        if config.backbone_dropout:
            return "backbone_dropout=True, expected False: with dropout no two passes are alike"
        if not (self.predicts_next or _classifies_text(self.model)):
            return f"{type(self.model).__name__} gives the states of the input's own rows, expected a model with a head"
        if self.values_of_a_token is None:
            self.values_of_a_token = fronts.values_of_a_token(self)
        return None

    def sizes_kept(self, reading: Reading, config: PromptConfig) -> dict[str, int]:
        if reading.given.get("input_ids") is None:
            raise ValueError(
                f"cache_inputs: a batch has {list(reading.given)}, expected input_ids, by which inputs are found again"
            )
        counts = fronts.counts_of(reading)
        each = [count * self.values_of_a_token for count in counts.tolist()]
        return dict(zip(fronts.digests_of(reading, counts), each, strict=True))

    def keep(self, kept: KeptInputs, reading: Reading, config: PromptConfig) -> None:
        fronts.keep(self, kept, reading)

    def rows_read(self, placed, own: Tensor) -> Tensor:
        """Which row the head reads for each token, whose own row is ``own`` (B, T): for language models the one before
        the next input token, for classifiers of the whole text the last real one, wherever they look for it, else each
        token's own."""
        steps = torch.arange(placed.mask.shape[1], device=placed.mask.device)
        last = (steps * (placed.mask != 0)).amax(1, keepdim=True)
        if _classifies_text(self.model):
            return last.expand_as(own)
        if not self.predicts_next:
            return own
        return torch.cat([own[:, 1:] - 1, last], 1).clamp(min=0)


def _classifies_text(model: nn.Module) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    names = set(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values())
    return any(parent.__name__ in names for parent in type(model).__mro__)
