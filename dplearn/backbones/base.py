"""What a prompt needs to know about a model: one adapter per kind of backbone derives from this.

An adapter holds a reference to the model and owns no parameters. It reads a batch (:meth:`Backbone.read`): the rows as
the model itself embeds them, which of them are real, what decisions look at, what stays behind the prompt. And it runs
the model on these rows with a prompt in place (:meth:`Backbone.run`), so that everything behind the prompt, such as
pooler, head and loss, meets what it would meet without one.

What an adapter takes for granted about its model is tried out on the model before it is used (:meth:`Backbone.probe`).
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from dplearn.backbones.mechanisms import Mechanism
from dplearn.backbones.reading import Boundary, Reading
from dplearn.backbones.views import Changes, evaluating
from dplearn.checks import caller_level
from dplearn.config import PromptConfig
from dplearn.conventions import losses_named
from dplearn.estimators import instance_losses
from dplearn.insertion import values_are_free
from dplearn.offload import device_of
from dplearn.prompt import DynamicPrompt, PromptedInput
from dplearn.summaries import masked_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dplearn.kept import KeptInputs


# What has a value for each token of the input, and what else belongs to its instances (beside labels).
OF_TOKENS = ("token_type_ids", "position_ids")
BESIDE = (*OF_TOKENS, "decoder_input_ids", "decoder_inputs_embeds", "decoder_attention_mask")
# What is not computed again where it is known: kept inputs, a prompt in front of them, rows without a gradient.
SHORTCUTS = ("inputs", "prefix", "front")


class Backbone:
    """The parts that all kinds share."""

    # What the config's options call this kind, what the model reads, and the other arguments of its embedding step.
    kind = "text"
    reads = "text"
    input_name = "input_ids"
    shortcuts = frozenset(SHORTCUTS)
    # Whether the answer stands in the input itself, as in a decoder-only language model.
    reads_answers = False
    # Whether it is read from rows of the input, each where it would be without a prompt.
    reads_own_rows = False
    causal = False  # whether no row depends on a later one
    predicts_next = False  # whether the scores of a token are about the next one

    def __init__(self, model: PreTrainedModel):
        self.model = model
        # Learned absolute positions have a last row; relative and rotary ones have none.
        most = getattr(model.config, "max_position_embeddings", None)
        self.max_positions = most if isinstance(most, int) and most > 0 else None  # XLNet says -1
        # What the model multiplies its token embeddings with, behind the embedding module; found by the probe.
        self.scale = 1.0
        self.kept: KeptInputs | None = None  # inputs of which something is known
        # Weights and length with which they were compared with the full pass.
        self.compared: tuple = (None, 0)
        # The position id of the first token, where positions are given.
        self.first_position = 0
        self._told = False  # whether the warning about padding was given

    # --- whether and how the model is served ---

    @staticmethod
    def refusal(model: PreTrainedModel) -> str | None:
        """Why this adapter cannot serve the model, or None if it can."""
        raise NotImplementedError

    def probe(self) -> str | None:
        """Try out what the adapter takes for granted; why the model cannot be served after all, or None."""
        return None

    @property
    def embedding(self) -> nn.Embedding:
        """The module that embeds tokens."""
        return self.model.get_input_embeddings()

    @property
    def vocabulary(self) -> int:
        """The number of tokens."""
        return self.embedding.weight.shape[0]

    @property
    def width(self) -> int:
        """d, the width of the input embeddings."""
        return self.embedding.weight.shape[1]

    def width_of(self, config: PromptConfig) -> int:
        """The width of the vectors of a prompt."""
        return self.width

    def summary_width(self, config: PromptConfig) -> int:
        """The width of what instance-level decisions look at."""
        return self.hidden_width if config.summary == "encoder" else self.width_of(config)

    @property
    def hidden_width(self) -> int:
        """The width of the last hidden states."""
        return getattr(self.model.config, "hidden_size", self.width)

    def describe(self) -> dict:
        """What a prompt depends on, as a checkpoint records it."""
        return {"vocabulary": self.vocabulary, "width": self.width}

    def initial_vectors(self, config: PromptConfig, generator: torch.Generator | None = None) -> Tensor:
        """First values of a prompt, ``config.shape`` times d, in float32: by default rows of random tokens, as the
        model embeds them."""
        return config.initial_vectors(self.width, self.vocabulary, self._words, generator)

    def _words(self, ids: Tensor) -> Tensor:
        return self.embed(ids.to(device_of(self.model))[None])[0]

    def add_parts(
        self, prompt: DynamicPrompt, config: PromptConfig, generator: torch.Generator | None = None
    ) -> None:
        """Add what else of a prompt depends on the kind of backbone; ``generator`` feeds what is drawn at random."""

    def check(self, config: PromptConfig) -> None:
        """Raise ValueError where a config asks for what this kind of backbone cannot do."""
        config.refuse_unserved(self.kind, type(self.model).__name__, self.reads)

    def refuses_position_space(self) -> str | None:
        """Why the position-space estimator does not reach this model's position information, or None if it does."""
        return f"{type(self.model).__name__} has no position information that is known"

    # --- for whoever asks through what a split acts on the model ---

    def mechanism(self) -> Mechanism:
        """By what its rows know where they stand, behind the place where a prompt enters."""
        return Mechanism(unreached=self.refuses_position_space())

    def seeing_all(self) -> Changes:
        """The changes by which rows see later ones too, where they do not."""
        return {}

    def on(self, view: PreTrainedModel) -> Backbone:
        """This adapter, running a view of its model."""
        other = copy.copy(self)
        other.model = view
        return other

    # --- from a batch to rows ---

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, T) token ids -> (B, T, d) frozen embeddings, scaled as the model does it."""
        with torch.no_grad():
            rows = self.embedding(input_ids)
            return rows if self.scale == 1.0 else rows * self.scale

    def read(self, batch: dict, boundary: Boundary, config: PromptConfig, size: int | None = None) -> Reading:
        """What a batch is to a prompt.

        Parameters
        ----------
        batch : what the model's forward takes, by name.
        boundary : where the input ends that the prompt surrounds.
        config : of the prompt that is going to be put in place.
        size : the number of vectors that will stand there; None: as many as there are, or fewer (a learned size).

        Raises
        ------
        ValueError : no input or several, wrong shapes or dtypes, no room for the prompt.
        """
        self._refuse_images(batch)
        ids, mask, rows = self._tokens(batch)
        self.check_length(mask.shape[1] + config.length)
        keep_last = boundary.kept(mask, self.keep_last(ids, mask))
        rows = self.embed(cast(Tensor, ids)) if rows is None else rows
        return Reading(rows, mask, self.seen(mask, keep_last), keep_last, batch)

    def check_shapes(self, batch: dict, shape: tuple[int, ...]) -> None:
        """Compare what a batch holds beside its input, labels above all, with the input's shape.

        shape : (B, T) of a text, (B,) of images.

        Raises
        ------
        ValueError : another number of instances, or of tokens where there is one value for each.
        TypeError : labels are a list.
        """
        for name in (*losses_named(batch), *BESIDE):
            value = batch.get(name)
            if isinstance(value, (list, tuple)):
                raise TypeError(f"{name} is a {type(value).__name__}, expected a tensor")
            if not isinstance(value, Tensor) or (name == "position_ids" and value.ndim != 2):
                continue
            wanted, found = self.shape_of(name, batch, shape), tuple(value.shape)
            of_tokens = len(wanted) > 1 and name in ("labels", "decoder_input_ids")
            if name == "position_ids" and found[0] == 1:
                wanted = (1, *wanted[1:])  # the same for all
            fits = len(found) == len(wanted) if of_tokens else len(found) >= len(wanted)
            fits = fits and all(size in (None, own) for own, size in zip(found, wanted))
            if not fits or (of_tokens and value.is_floating_point()):
                sizes = ["seq" if size is None else str(size) for size in wanted]
                sizes += [] if of_tokens or name in OF_TOKENS else ["..."]
                raise ValueError(
                    f"{name} has shape {found} and dtype {value.dtype}, expected {'integers ' * of_tokens}"
                    f"({', '.join(sizes)}), as the input has shape {shape}"
                )

    def shape_of(self, name: str, batch: dict, shape: tuple[int, ...]) -> tuple[int | None, ...]:
        """The first dimensions that an argument has to have beside an input of shape (B, T), None: any."""
        return shape if name in OF_TOKENS else shape[:1]

    def _refuse_images(self, batch: dict) -> None:
        for name in ("pixel_values", "interpolate_pos_encoding", "bool_masked_pos"):
            if batch.get(name) is not None:
                raise ValueError(f"{name} is for images, but {type(self.model).__name__} reads text")

    def _tokens(self, batch: dict) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Checked token ids (B, T), mask (B, T) and rows (B, T, d); of ids and rows one is None."""
        ids, mask, rows = (batch.get(name) for name in ("input_ids", "attention_mask", "inputs_embeds"))
        if (ids is None) == (rows is None):
            both = "both" if ids is not None else "none"
            raise ValueError(f"expected one of input_ids and inputs_embeds, got {both}")
        for name, value in (("input_ids", ids), ("attention_mask", mask), ("inputs_embeds", rows)):
            if value is not None and not isinstance(value, Tensor):
                raise TypeError(
                    f"{name} is a {type(value).__name__}, expected a tensor: "
                    "tokenizer(texts, return_tensors='pt', padding=True) makes them of texts"
                )
        if ids is not None and (ids.ndim != 2 or ids.is_floating_point() or 0 in ids.shape):
            raise ValueError(
                f"input_ids has shape {tuple(ids.shape)} and dtype {ids.dtype}, expected integers (batch, seq)"
                + (", at least one token each" if 0 in ids.shape else "")
            )
        if rows is not None and (rows.ndim != 3 or rows.shape[2] != self.width):
            raise ValueError(
                f"inputs_embeds has shape {tuple(rows.shape)}, expected (batch, seq, {self.width})"
            )
        if ids is not None and values_are_free(ids) and self.vocabulary:
            outside = ids[(ids < 0) | (ids >= self.vocabulary)]
            if outside.numel():
                raise ValueError(
                    f"input_ids holds {int(outside[0])}, expected 0..{self.vocabulary - 1}: the tokenizer has other "
                    f"tokens than {type(self.model).__name__}"
                )
        given = cast(Tensor, ids if rows is None else rows)
        shape = given.shape[:2]
        if mask is None:
            self._warn_of_padding(ids)
            mask = torch.ones(shape, dtype=torch.long, device=given.device)
        elif mask.shape != shape:
            mask_shape = tuple(mask.shape)
            raise ValueError(f"attention_mask has shape {mask_shape}, expected {tuple(shape)} as the input")
        return ids, mask, rows

    def _warn_of_padding(self, ids: Tensor | None) -> None:
        """Tell once that padding counts as input where nobody says that it is padding."""
        pad = getattr(self.model.config, "pad_token_id", None)
        if (
            self._told
            or ids is None
            or pad is None
            or ids.device.type != "cpu"
            or torch.compiler.is_compiling()
        ):
            return
        if bool((ids[:, [0, -1]] == pad).any()):
            self._told = True
            warnings.warn(
                f"input_ids begin or end with the padding token {pad} and there is no attention_mask: padding counts "
                "as input then, and the prompt surrounds it. Pass attention_mask",
                UserWarning,
                stacklevel=caller_level(),
            )

    def keep_last(self, input_ids: Tensor | None, mask: Tensor) -> int | Tensor:
        """How many of the last real tokens stay behind the prompt where the user says nothing: an int or (B,)."""
        return 0

    def seen(self, mask: Tensor, keep_last: int | Tensor) -> Tensor:
        """(B, T): which rows decisions look at."""
        return mask

    def check_length(self, total: int) -> None:
        """Raise ValueError where input plus prompt exceed the model's position table."""
        if self.max_positions is not None and total > self.max_positions:
            raise ValueError(
                f"input plus prompt have {total} positions, but max_position_embeddings={self.max_positions}: "
                "truncate the input or shorten the prompt"
            )

    @torch.no_grad()
    def summarize(self, reading: Reading, config: PromptConfig) -> Tensor:
        """What instance-level decisions look at, (B, w): the mean of the rows or of the last hidden states, without
        gradient or dropout."""
        if config.summary != "encoder":
            return masked_mean(reading.rows, reading.seen)
        with evaluating(self.model) as model:
            return masked_mean(self.hidden_states(model, reading.rows, reading.mask), reading.seen)

    def hidden_states(self, model: PreTrainedModel, inputs: Tensor, mask: Tensor) -> Tensor:
        """Last hidden states (B, T, h) of the input without a prompt; ``model`` is the backbone or a view of it."""
        raise NotImplementedError

    def inferred_mask(self, input_ids: Tensor, options: dict) -> Tensor | None:
        """The mask (B, T) that the model's ``generate`` infers from ids that come without one; None: all are real.

        Padding is hidden where it is told from the end of a sequence, which some models mark with the same token.
        """
        config = options.get("generation_config") or getattr(self.model, "generation_config", None)
        pad, eos = (
            options[name] if options.get(name) is not None else getattr(config, name, None)
            for name in ("pad_token_id", "eos_token_id")
        )
        ends = eos if isinstance(eos, (list, tuple)) else [eos]
        if pad is None or pad in ends or input_ids.is_floating_point():
            return None
        return (input_ids != pad).long()

    # --- through the model ---

    def continues(self, batch: dict) -> bool:
        """Whether a batch goes on behind a prompted input whose keys and values are cached."""
        return False

    def refuses_kept(self, config: PromptConfig) -> str | None:
        """Why nothing of an input's pass can be kept under such a prompt, or None if its keys and values can."""
        return f"in {type(self.model).__name__} every row of the input sees the prompt, wherever it stands"

    def sizes_kept(self, reading: Reading, config: PromptConfig) -> dict[str, int]:
        """By what the inputs of a batch are kept, and how many numbers each takes, read as at the input."""
        raise NotImplementedError

    def keep(self, kept: KeptInputs, reading: Reading, config: PromptConfig) -> None:
        """Compute and keep what is not kept yet of the inputs of a batch."""
        raise NotImplementedError

    def layer_input(self, placed: PromptedInput, reading: Reading, entry: str | None) -> PromptedInput:
        """What is done to a prompted input before the layers (positions of an image's prompt, for instance)."""
        return placed

    def shortened(self, placed: PromptedInput, reading: Reading, learning: bool) -> Reading:
        """The batch without what is known of it already, as :meth:`run` takes it then; ``learning``: for a step of
        training."""
        return reading

    def run(self, placed: PromptedInput, reading: Reading, head: nn.ModuleDict | None = None):
        """The model's own output for a prompted input; ``head`` holds modules that stand in for the model's own."""
        raise NotImplementedError

    def generate(self, placed: PromptedInput, reading: Reading, **options) -> Tensor:
        """The model's ``generate`` on a prompted input."""
        raise NotImplementedError(f"{type(self.model).__name__} does not generate")

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """One loss per input, (N,); see :func:`dplearn.estimators.instance_losses`."""
        problem = getattr(self.model.config, "problem_type", None)
        return instance_losses(logits, labels, self.predicts_next, problem)
