"""What `model.cache_inputs` does: check, say how much it is, keep, and compare once with the full pass."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from dplearn import files
from dplearn.backbones import Reading
from dplearn.batches import batches_of, number_of_batches
from dplearn.fingerprint import differing, fingerprint
from dplearn.kept import KeptInputs, state_of
from dplearn.progress import told

ABOUT = "kept.json"


def cache_inputs(
    model: Any,
    data: Iterable[dict] | Sequence[dict],
    collate: Callable[[list[dict]], dict] | None,
    batch_size: int,
    dtype: torch.dtype | None,
    folder: str | os.PathLike | None,
    verbose: bool,
) -> KeptInputs:
    """See :meth:`dplearn.PromptedModel.cache_inputs`."""
    adapter, config = model.adapter, model.prompt_config
    reason = adapter.refuses_kept(config)
    if reason is not None:
        raise ValueError(f"cache_inputs: {reason}")
    held = list(data) if isinstance(data, Iterator) else None  # they are gone through twice

    def batches() -> Iterator[dict]:
        return batches_of(data if held is None else iter(held), collate, batch_size, model.device)

    sizes: dict[str, int] = {}
    for batch in batches():
        sizes |= adapter.sizes_kept(_read(model, batch), config)
    before, kept = adapter.kept, _kept_or_new(model, dtype, folder)
    known = kept.digests
    if verbose:
        _tell(kept, sizes)
    adapter.kept = kept

    kept.forget = partial(_forget, adapter, kept, known, before)  # no inner function: models are pickled
    count = number_of_batches(data, batch_size) if held is None else len(held)
    for number, batch in enumerate(told(batches(), "keeping inputs", count, verbose)):
        adapter.keep(kept, _read(model, batch), config)
        if number == 0 and kept.dtype == model.backbone.dtype:
            _compare(model, batch)
    return kept


def _forget(adapter: Any, kept: KeptInputs, known: Collection[str], before: KeptInputs | None) -> None:
    """Undo a call that added to ``kept``: ``known`` were there, and ``before`` was in use."""
    kept.keep_only(known)
    adapter.kept = before


def _kept_or_new(model: Any, dtype: torch.dtype | None, folder: str | os.PathLike | None) -> KeptInputs:
    """What the model keeps already, where it is of these weights and was made in this way; else room for it."""
    kept = model.adapter.kept
    if kept is not None and kept.fresh and kept.made_as(dtype, folder):
        return kept
    _check_folder(model.backbone, dtype, folder)
    return KeptInputs(model.backbone, dtype, folder)


def _check_folder(model: Any, dtype: torch.dtype | None, folder: str | os.PathLike | None) -> None:
    """Write down what a folder is of, or raise ValueError where it is of another model or in another dtype."""
    if folder is None:
        return
    about = {"dtype": str(model.dtype if dtype is None else dtype), "fingerprint": fingerprint(model)}
    path = Path(folder) / ABOUT
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, json.dumps(about).encode())
    known = files.parse(path, files.read_json(path))
    other = differing(known["fingerprint"], model)
    if known["dtype"] != about["dtype"] or other:
        raise ValueError(
            f"folder={str(folder)!r} holds inputs of "
            + (f"a model with other values of {other}" if other else f"dtype {known['dtype']}")
            + f", expected those of this {type(model).__name__} in {about['dtype']}, or an empty folder"
        )


def _read(model: Any, batch: dict) -> Reading:
    given, boundary = model._taken_apart(model.accepted(batch))[:2]
    # Layers that an image passes do not run here.
    return model.adapter.read(given, boundary, replace(model.prompt_config, from_layer=1))


def _tell(kept: KeptInputs, sizes: dict[str, int]) -> None:
    """Print how much is going to be kept."""
    new = [size for name, size in sizes.items() if name not in kept]
    where = "in memory" if kept.folder is None else f"in {str(kept.folder)!r}"
    print(
        f"keeping {sum(new) * cast(torch.dtype, kept.dtype).itemsize / 2**20:,.1f} MB of {len(new):,} inputs {where}; "
        f"{len(sizes) - len(new):,} are kept already"
    )


def _answers(output: Any) -> torch.Tensor:
    return output["logits"] if "logits" in output else output[0]


def _compare(model: Any, batch: dict) -> None:
    """Raise ValueError where a batch is answered otherwise than by the full pass; once for each length and weights."""
    width = next(batch[name] for name in ("input_ids", "pixel_values") if batch.get(name) is not None).shape[
        1
    ]
    made_of = (state_of(model.backbone), width)
    if model.adapter.compared[0] == made_of[0] and model.adapter.compared[1] >= made_of[1]:
        return
    batch = {name: value for name, value in model.accepted(batch).items() if name != "labels"}
    if model.adapter.kind == "text":
        batch["use_cache"] = False
    kept, training = model.adapter.kept, model.training
    model.eval()
    try:
        answers = _answers(model(**batch))
        model.adapter.kept = None
        full = _answers(model(**batch))
    finally:
        model.adapter.kept = kept
        model.train(training)
    # Some models compute parts in float32 whatever their dtype is.
    near = 5e-2 if model.backbone.dtype.itemsize < 4 else 1e-4
    if model.adapter.kind == "text":  # the other columns are of rows that did not run
        answers, full = answers[:, -1], full[:, -1]
    if (answers - full).abs().max() > near * full.abs().max():
        model.adapter.kept = None
        raise ValueError(
            f"cache_inputs: {type(model.backbone).__name__} answers otherwise on what is kept than on the input"
        )
    model.adapter.compared = made_of
