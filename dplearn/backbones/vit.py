"""Vision transformers (ViT, DeiT, DINOv2), with or without a classification head.

An image is cut into patches; the rows of the input are the special tokens ([CLS]; DeiT's distillation token) and the
patches. The prompt stands around the patches, behind the special tokens. It passes through the layers and leaves before
the last layer norm: pooler, classifier, pooled patches and loss see the rows of the input alone, so [CLS] is read where
it is, never a prompt vector that took its place.

Where the prompt enters decides whether its place can matter:

after-positions   (default) behind the position embeddings, as in VPT (Jia et al. 2022). What follows treats all rows
                  alike, so every split gives the same output: the order-blindness theorem of chapter 04.
before-positions  in front of them. Special tokens keep their position vectors. The prompt and the patches are one
                  sequence in reading order, and its n-th row gets the n-th position of a taller grid: the model's own
                  grid of patch positions, stretched by as few rows as hold the prompt with the bicubic interpolation
                  that these models use for larger images. Nothing of it is trained. A split k shifts all patches by k
                  places, which no change of the vectors undoes. The frozen model never saw such positions: compare
                  with "after-positions" before a gain is ascribed to the place.

position-coded    behind them, but the prompt gets position vectors too: each of its vectors the one that the stretched
                  grid has where it stands, while the patches keep their own. The place is then written in the prompt
                  and nowhere else. At one split for all images this is no more than other vectors could do; where the
                  split differs between images, so do the vectors.

A prompt from a later layer on (``from_layer`` > 1) stands in the states that the layers in front of it give; these are
the image's own, the same for every prompt and in every step, so they can be kept.

Deep prompts (``depth`` > 1, VPT-deep) replace the prompt's rows by fresh vectors at the input of each further layer;
rows are followed to where they stand, not counted from the front.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dplearn.backbones.base import Backbone
from dplearn.backbones.deep import receiving
from dplearn.backbones.heads import standing_in
from dplearn.backbones.patches import check_order_matters, check_pixels, image_vectors
from dplearn.backbones.position_space import code_term, table_term
from dplearn.backbones.reading import Boundary, Reading
from dplearn.backbones.rows import take_rows
from dplearn.backbones.views import Change, Changes, below, changed, evaluating, path_of, prepare
from dplearn.controllers import LEARNED
from dplearn.kept import digest_of
from dplearn.summaries import masked_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = {"vit", "deit", "dinov2"}
POSITIONED = ("before-positions", "position-coded")  # the ways to insert in which a position is real
# Heads that read rows of the last hidden states. (Others read the pixels too, or all layers.)
HEADS = ("Model", "ForImageClassification", "ForImageClassificationWithTeacher")


class ViTBackbone(Backbone):
    """Adapter of a vision transformer whose positions are one table, added to the embedded patches."""

    kind, reads = "vision", "images"
    input_name = "pixel_values"
    reads_own_rows = True

    def __init__(self, model):
        super().__init__(model)
        self.max_positions = None
        self.base = model.base_model
        self.path = path_of(model, self.base)
        self.layers = cast(nn.ModuleList, _layers(model))  # `refusal` has seen them
        self.embeddings = self.base.embeddings
        self.patches = self.embeddings.patch_embeddings
        # DINOv2's embeddings always interpolate, so they have no option for it.
        self.known = set(inspect.signature(type(self.embeddings).forward).parameters)
        # Special tokens, which stand in front: [CLS], and DeiT's distillation token.
        self.special = self.embeddings.position_embeddings.shape[1] - self.patches.num_patches

    @staticmethod
    def refusal(model: PreTrainedModel) -> str | None:
        """Why this adapter cannot serve the model, or None if it can."""
        kind = getattr(model.config, "model_type", "")
        if kind not in KINDS:
            return f"expected one of the vision transformers {sorted(KINDS)}, got model_type={kind!r}"
        names = [ancestor.__name__ for ancestor in type(model).__mro__]
        if not any(name.endswith(HEADS) and not name.endswith("PreTrainedModel") for name in names):
            return f"expected a model that ends in one of {list(HEADS)}, got {type(model).__name__}"
        if _layers(model) is None:
            return f"{type(model).__name__} has no list that holds its layers"
        return None

    @property
    def width(self) -> int:
        """d, the width of the embedded patches."""
        return self.model.config.hidden_size

    def describe(self) -> dict:
        """What a prompt of this backbone depends on: the width, and the shape (channels, height, width) of a patch."""
        return {"width": self.width, "patch": list(self.patches.projection.weight.shape[1:])}

    def initial_vectors(self, config, generator: torch.Generator | None = None) -> Tensor:
        """First values beside embedded patches; see :func:`dplearn.backbones.patches.image_vectors`."""
        return image_vectors(self.patches.projection, config, generator)

    def check(self, config) -> None:
        """Raise ValueError where a config asks for what this model cannot do; warn where it asks for what is void."""
        super().check(config)
        name = type(self.model).__name__
        last = config.from_layer + config.depth - 1
        if last > len(self.layers):
            named = "" if config.from_layer == 1 else f"from_layer={config.from_layer} with "
            raise ValueError(
                f"{named}depth={config.depth} is too deep, expected "
                + (f"the last layer, {last}, to be one of " if named else "")
                + f"1..{len(self.layers)}: {name}'s layers"
            )
        if config.size in LEARNED and "attention_mask" not in inspect.signature(self.base.forward).parameters:
            raise ValueError(
                f"size={config.size!r} hides vectors behind a mask, and {name} of this version of transformers takes "
                "none; expected 'full' or a number"
            )
        if config.entry not in POSITIONED:
            check_order_matters(config, name, f", or entry={' or '.join(map(repr, POSITIONED))}")

    def refuses_position_space(self) -> str | None:
        return None

    # --- from pixels to rows ---

    def read(self, batch: dict, boundary: Boundary, config, size: int | None = None) -> Reading:
        """Decisions look at the patches with their positions, wherever the prompt enters."""
        name = type(self.model).__name__
        surplus = [n for n in ("input_ids", "attention_mask", "inputs_embeds") if batch.get(n) is not None]
        if surplus or batch.get("pixel_values") is None:
            raise ValueError(
                f"{name} reads images: expected pixel_values=..., got {surplus[0] if surplus else 'none'}"
            )
        if boundary.given:
            raise ValueError(
                f"keep_last and context_length are for texts, expected None: {name} reads images, all of which the "
                "prompt surrounds"
            )
        pixels = batch["pixel_values"]
        if isinstance(pixels, Tensor):
            self.check_shapes(batch, tuple(pixels.shape[:1]))
        options = {key: value for key, value in batch.items() if key in self.known and key != "pixel_values"}
        rows = self.embed(pixels, positions=config.entry != "before-positions", **options)
        passed = config.from_layer - 1
        if passed:
            rows = self._states(rows, batch, passed)
        mask = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
        mask[:, : self.special] = 0  # no prompt surrounds special tokens, and no decision looks at them
        vectors = config.length if size is None else size
        codes = self.positions(pixels, vectors) if config.entry in POSITIONED else None
        return Reading(rows, mask, mask, 0, batch, None, codes, passed=passed)

    def _states(self, rows: Tensor, batch: dict, passed: int) -> Tensor:
        """Embedded images (B, T, d) behind the first layers, as they are kept or computed now."""
        kept = self.kept if "inputs" in self.shortcuts and not torch.compiler.is_compiling() else None
        wanted = torch.is_grad_enabled() and any(p.requires_grad for p in self.model.parameters())
        if kept is not None and len(kept) and kept.fresh and not wanted:
            digests = self._digests(batch, passed)
            if digests and all(digest in kept for digest in digests):
                return kept.layers(digests, rows.device)[0][0].squeeze(1)
        with torch.set_grad_enabled(wanted):  # of an adapter that is trained beside the prompt
            return self._behind(rows, passed)

    def _behind(self, rows: Tensor, passed: int) -> Tensor:
        """The input of a layer, for embedded images."""

        def reached(usual, states, *arguments, **options):
            raise _Reached(states)

        changes = self._embedded() | {below(path_of(self.model, self.layers), str(passed)): reached}
        with changed(self.model, changes) as model:
            try:
                model.get_submodule(self.path)(pixel_values=rows)
            except _Reached as stopped:
                return stopped.states
        raise RuntimeError(f"{type(self.model).__name__} does not run its layer {passed + 1}")

    def _digests(self, batch: dict, passed: int) -> list[str]:
        """By what images are kept: their pixels and the layers that they passed. Nothing where the embeddings are told
        more than the pixels: such images are not kept."""
        others = [name for name, value in batch.items() if name in self.known and value is not None]
        if others != ["pixel_values"]:
            return []
        return [f"{digest_of(pixels)}-{passed}" for pixels in batch["pixel_values"]]

    def refuses_kept(self, config) -> str | None:
        if config.from_layer == 1:
            return (
                "from_layer=1, expected a later layer: from the first one on, the image's rows see the prompt"
            )
        if config.backbone_dropout:
            return "backbone_dropout=True, expected False: with dropout no two passes are alike"
        return None

    def sizes_kept(self, reading: Reading, config) -> dict[str, int]:
        return dict.fromkeys(self._digests(reading.given, config.from_layer - 1), reading.rows[0].numel())

    def keep(self, kept, reading: Reading, config) -> None:
        passed = config.from_layer - 1
        digests = self._digests(reading.given, passed)
        new = [number for number, digest in enumerate(digests) if digest not in kept]
        if new:
            states = self._behind(reading.rows[new], passed)
            kept.add({digests[number]: [rows[None]] for number, rows in zip(new, states)})

    @torch.no_grad()
    def embed(  # type: ignore[override]  # images are embedded with options
        self, pixel_values: Tensor, positions: bool = True, **options
    ) -> Tensor:
        """(B, channels, height, width) -> (B, T, d): special tokens and patches, with or without position vectors.

        ``options`` are those of the model's embeddings: ``interpolate_pos_encoding``, ``bool_masked_pos``.
        """
        weight = self.patches.projection.weight
        check_pixels(pixel_values, self.patches.projection)
        table = self.embeddings.position_embeddings
        replaced = {} if positions else {"position_embeddings": torch.zeros_like(table)}
        # Dropout comes later, for the prompt too.
        with changed(self.embeddings, {"dropout": lambda usual, rows: rows}, replaced) as embeddings:
            return embeddings(pixel_values.to(weight.dtype), **options)

    @torch.no_grad()
    def summarize(self, reading: Reading, config) -> Tensor:
        """The mean of the patches' rows, or of their last hidden states."""
        rows = reading.rows
        if config.entry == "before-positions":
            given = {k: v for k, v in reading.given.items() if k in self.known and k != "pixel_values"}
            rows = self.embed(reading.given["pixel_values"], **given)
        if config.summary != "encoder":
            return masked_mean(rows, reading.seen)
        with evaluating(self.model) as model:
            return masked_mean(self.hidden_states(model, rows, reading.mask, reading.passed), reading.seen)

    @torch.no_grad()
    def positions(self, pixel_values: Tensor, extra: int) -> Tensor:
        """Position vectors (1, T + extra, d): of the special tokens, then of patches and ``extra`` prompt vectors."""
        sides = zip(self.patches.image_size, self.patches.patch_size)
        high, wide = (side // patch for side, patch in sides)
        rows, columns = (
            side // patch for side, patch in zip(pixel_values.shape[-2:], self.patches.patch_size)
        )
        table = self.embeddings.position_embeddings
        special, grid = table[:, : self.special], table[:, self.special :]
        grid = grid.unflatten(1, (high, wide)).permute(0, 3, 1, 2)  # (1, d, high, wide)
        wanted = rows * columns + extra
        size = (-(-wanted // columns), columns)
        dtype = torch.promote_types(grid.dtype, torch.float32)
        grid = interpolate(grid.to(dtype), size=size, mode="bicubic", align_corners=False).to(table.dtype)
        return torch.cat([special, grid.flatten(2).mT[:, :wanted]], 1)

    def layer_input(self, placed, reading: Reading, entry: str | None):
        """Add position vectors, (1, T + n, d), where the prompt entered in front of them or has its own
        ("position-coded"); show the special tokens.

        The position-space estimator's gradient enters here, and the share of a code's place in straight-through's.
        Without positions to add, order cannot matter and both are 0.
        """
        embeds, moves, positions, coded = (
            placed.embeds,
            placed.moves,
            reading.codes,
            entry == "position-coded",
        )
        position = placed.decisions.get("position") if moves is None else moves
        weights = None if position is None else position.weights
        if positions is None:
            if moves is not None and weights is not None:
                embeds = embeds + weights.sum().to(embeds.dtype) * 0
        else:
            table = positions[:, : embeds.shape[1]]
            holds = _holders(placed).to(embeds.dtype).unsqueeze(2) if coded else 1
            embeds = embeds + table * holds
            if moves is not None:
                embeds = embeds + table_term(moves, positions[0, self.special :], embeds.dtype) * holds
            elif coded and weights is not None and torch.is_grad_enabled():
                patches = placed.input_positions.shape[1] - self.special
                at = _rows_of_vectors(weights.shape[1], embeds.shape[1], self.special, patches, embeds.device)
                embeds = embeds + code_term(weights, table[0], at, embeds.dtype)
        shown = placed.mask.new_ones(len(placed.mask), self.special)
        mask = torch.cat([shown, placed.mask[:, self.special :]], 1)
        return placed._replace(embeds=embeds, mask=mask, moves=None)

    # --- through the model ---

    def hidden_states(self, model, inputs: Tensor, mask: Tensor, passed: int = 0) -> Tensor:
        """``passed``: layers that the inputs have behind them already."""
        with changed(model, self._embedded() | self._skipping(passed)) as model:
            base = model.get_submodule(self.path)
            return base(pixel_values=inputs, return_dict=True).last_hidden_state

    def run(self, placed, reading: Reading, head: nn.ModuleDict | None = None):
        """Rows of the prompt leave before the last layer norm; ``hidden_states`` of single layers still hold them."""
        given = {name: value for name, value in reading.given.items() if name not in self.known}
        if placed.masked:
            given["attention_mask"] = placed.mask
        changes = standing_in(head) | self._embedded() | self._skipping(reading.passed)
        changes[below(self.path, "layernorm")] = _reading(placed.input_positions)
        if placed.deeper is not None:
            changes |= receiving(
                self.model, self.layers, placed.deeper, placed.prompt_positions, reading.passed
            )
        prepare(self.base, given)
        with changed(self.model, changes) as model:
            return model(pixel_values=placed.embeds, **given)

    def _skipping(self, passed: int) -> Changes:
        """The change by which the first layers give back what they get."""
        path = path_of(self.model, self.layers)
        return {
            below(path, str(number)): lambda usual, states, *arguments, **options: states
            for number in range(passed)
        }

    def _embedded(self) -> Changes:
        """The change by which the model takes embedded rows for pixels."""
        dropout = self.embeddings.dropout
        return {below(self.path, "embeddings"): lambda usual, rows, *arguments, **options: dropout(rows)}


class _Reached(Exception):
    """Ends a pass at the layer whose input (B, T, d) is wanted."""

    def __init__(self, states: Tensor):
        super().__init__()
        self.states = states


def _layers(model: PreTrainedModel) -> nn.ModuleList | None:
    """The list of the model's layers: ``layers``, or ``encoder.layer`` in some versions and kinds."""
    count = model.config.num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            if all(type(layer).__name__.endswith("Layer") for layer in module):
                return module
    return None


def _holders(placed) -> Tensor:
    """(B, S): 1 in the rows that hold prompt vectors."""
    batch, count = placed.embeds.shape[:2]
    rows = torch.where(placed.prompt_positions < 0, count, placed.prompt_positions)
    return rows.new_zeros(batch, count + 1).scatter_(1, rows, 1)[:, :count]


def _rows_of_vectors(splits: int, rows: int, special: int, patches: int, device: torch.device) -> Tensor:
    """(K, S): 1 in the rows that hold prompt vectors at each split; all vectors but ``special + patches`` rows."""
    row = torch.arange(rows, device=device) - special
    front = torch.arange(splits, device=device).clamp(max=rows - special - patches).unsqueeze(1)
    return ((row >= 0) & ((row < front) | (row >= front + patches))).to(torch.float32)


def _reading(rows: Tensor) -> Change:
    """A row-wise module that sees the given rows alone, (B, T) of (B, S)."""
    return lambda usual, states: usual(take_rows(states, rows))
