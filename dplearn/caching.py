"""What `model.cache_inputs` does: check, say how much it is, keep, and compare once with the full pass."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from dplearn import files
from dplearn.backbones import Reading, fronts
from dplearn.batches import batches_of
from dplearn.fingerprint import differing, fingerprint
from dplearn.kept import KeptInputs, state_of

ABOUT = "kept.json"


def cache_inputs(
    model,
    data: Iterable[dict] | Sequence[dict],
    collate: Callable[[list[dict]], dict] | None,
    batch_size: int,
    dtype: torch.dtype | None,
    folder: str | os.PathLike | None,
    verbose: bool,
) -> KeptInputs:
    """See :meth:`dplearn.PromptedModel.cache_inputs`."""
    adapter = model.adapter
    reason = adapter.refuses_kept(model.prompt_config)
    if reason is not None:
        raise ValueError(f"cache_inputs: {reason}")
    if adapter.values_of_a_token is None:
        adapter.values_of_a_token = fronts.values_of_a_token(adapter)
    size = adapter.values_of_a_token
    batches = list(batches_of(data, collate, batch_size, model.device))
    readings = [_read(model, batch) for batch in batches]
    before = kept = adapter.kept
    if kept is None or not kept.fresh or not kept.made_as(dtype, folder):
        _check_folder(model.backbone, dtype, folder)
        kept = KeptInputs(model.backbone, dtype, folder)
    known = kept.digests
    if verbose:
        _tell(kept, readings, size)
    adapter.kept = kept

    def forget() -> None:
        kept.keep_only(known)
        adapter.kept = before

    kept.forget = forget
    for number, reading in enumerate(readings):
        fronts.keep(adapter, kept, reading)
        if number == 0 and kept.dtype == model.backbone.dtype:
            _compare(model, batches[0])
    return kept


def _check_folder(model, dtype: torch.dtype | None, folder: str | os.PathLike | None) -> None:
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


def _read(model, batch: dict) -> Reading:
    if batch.get("input_ids") is None:
        raise ValueError(
            f"cache_inputs: a batch has {list(batch)}, expected input_ids, by which inputs are found again"
        )
    given, boundary = model._taken_apart(model.accepted(batch), sees=True)[:2]
    return model.adapter.read(given, boundary, model.prompt_config, model._size())


def _tell(kept: KeptInputs, readings: list[Reading], each: int) -> None:
    """Print how much is going to be kept."""
    lengths: dict[str, int] = {}
    for reading in readings:
        counts = fronts.counts_of(reading)
        lengths |= dict(zip(fronts.digests_of(reading, counts), counts.tolist(), strict=True))
    new = {name: count for name, count in lengths.items() if name not in kept}
    size = sum(new.values()) * each * kept.dtype.itemsize
    where = "in memory" if kept.folder is None else f"in {str(kept.folder)!r}"
    print(
        f"keeping keys and values of {len(new):,} inputs ({sum(new.values()):,} tokens, {size / 2**20:,.1f} MB) "
        f"{where}; {len(lengths) - len(new):,} are kept already"
    )


def _compare(model, batch: dict) -> None:
    """Raise ValueError where a batch is answered otherwise than by the full pass; once for each length and weights."""
    made_of = (state_of(model.backbone), batch["input_ids"].shape[1])
    if model.adapter.compared[0] == made_of[0] and model.adapter.compared[1] >= made_of[1]:
        return
    batch = {name: value for name, value in model.accepted(batch).items() if name != "labels"} | {
        "use_cache": False
    }
    kept, training = model.adapter.kept, model.training
    model.eval()
    try:
        found = model(**batch).logits
        model.adapter.kept = None
        full = model(**batch).logits
    finally:
        model.adapter.kept = kept
        model.train(training)
    # Some models compute parts in float32 whatever their dtype is.
    near = 5e-2 if model.backbone.dtype.itemsize < 4 else 1e-4
    if (found[:, -1] - full[:, -1]).abs().max() > near * full[:, -1].abs().max():
        model.adapter.kept = None
        raise ValueError(
            f"cache_inputs: {type(model.backbone).__name__} answers otherwise on kept keys and values than on the input"
        )
    model.adapter.compared = made_of
