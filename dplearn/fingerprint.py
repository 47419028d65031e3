"""A fingerprint of a frozen backbone: a few of its numbers, so that another model of the same shape is noticed.

A prompt steers the model that it was trained on; on another one of the same width it loads, runs and answers nonsense.
The fingerprint is a few values of a few floating-point tensors, spread over the model: reading it takes about a
millisecond, on any device. Values are compared within the rounding of the coarser of both dtypes, so a model in
bfloat16 matches itself in float32, and by their place, so a vocabulary may grow. Quantised weights are integers and are
left out; norms and embeddings stay floating point and are enough.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from dplearn.backbones.heads import is_of_head
from dplearn.checks import caller_level
from dplearn.kept import adapters_of
from dplearn.offload import values_of

MATRICES, VECTORS, VALUES = 5, 4, 4  # how many weights and norms, spread over the model; values of each
OF_HEAD = 12  # how many tensors of head and pooler
LEAST = 1e-6  # relative difference that counts as rounding in any dtype: values are recorded with nine digits


def fingerprint(model: nn.Module, without: Collection[str] = ()) -> dict:
    """A few values of a few floating-point tensors of a transformers model, as plain JSON values.

    All tensors of its classification head and pooler are among them where there are not many: these may be others while
    the rest is the same.

    Parameters
    ----------
    model : in any dtype, on any device, also with weights that wait elsewhere (accelerate's offload); tensors without
        values and quantised ones are left out.
    without : paths of modules that do not count: those that a prompt brings itself.

    Returns
    -------
    dict : name of the tensor -> {"dtype", "index", "values"} with indices into the flattened tensor; empty where no
        tensor is floating point.
    """
    own = tuple(f"{path}." for path in without)
    tensors = {name: tensor for name, tensor in _tensors(model).items() if not name.startswith(own)}
    embedding = _embedding(model)
    chosen = {name for name, tensor in tensors.items() if tensor is embedding}
    chosen |= _spread([name for name in tensors if is_of_head(model, name)], OF_HEAD)
    chosen |= _spread([name for name, tensor in tensors.items() if tensor.ndim > 1], MATRICES)
    chosen |= _spread([name for name, tensor in tensors.items() if tensor.ndim == 1], VECTORS)
    samples = {name: _sample(model, name) for name in tensors if name in chosen}
    return {name: sample for name, sample in samples.items() if sample is not None}


def differing(recorded: dict, model: nn.Module) -> list[str]:
    """The tensors in which a model has other values than a fingerprint, up to rounding.

    A tensor that is not there or not floating point any more (quantised since) is not compared.
    """
    tensors = _tensors(model)
    return [name for name, sample in recorded.items() if name in tensors and not _agrees(sample, model, name)]


def matches(recorded: dict, model: nn.Module) -> bool:
    """Whether a model has the values of a fingerprint; see :func:`differing`."""
    return not differing(recorded, model)


def quantization(model: nn.Module) -> str | None:
    """The method by which a transformers model is quantised ("bitsandbytes", "gptq", ...), or None."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is None:
        return None
    read = config.get if isinstance(config, dict) else lambda key: getattr(config, key, None)
    method = read("quant_method")
    return str(getattr(method, "value", method) or "unknown")


def warn_of_changes(folder: str | os.PathLike, recorded: dict, model: nn.Module) -> None:
    """Warn where the backbone at hand is another one than a checkpoint was saved with, or is quantised otherwise.

    ``recorded`` is the description of the backbone in the checkpoint, with ``fingerprint``, ``quantization`` and
    ``adapters``; what an older version did not record is not compared.
    """
    text, kind = f"the prompt in {str(folder)!r} was trained ", type(model).__name__
    changed = differing(recorded.get("fingerprint") or {}, model)
    if changed and all(is_of_head(model, name) for name in changed):
        warnings.warn(
            f"{text}with another head than that of this {kind}: {', '.join(changed)} had other values. Its answers "
            "will be others. A head that was in no checkpoint is drawn anew at each loading: save the model with it "
            "(backbone.save_pretrained) and load it from there, or use head='trained', where the prompt brings its own",
            UserWarning,
            stacklevel=caller_level(),
        )
    elif changed:
        warnings.warn(
            f"{text}on other weights than those of this {kind}: another backbone of the same shape, or "
            "one that was trained further. Its answers will be others",
            UserWarning,
            stacklevel=caller_level(),
        )
    now = quantization(model)
    if "quantization" in recorded and recorded["quantization"] != now:
        warnings.warn(
            f"{text}on a backbone with quantization={recorded['quantization']!r}, this one has quantization={now!r}: "
            "its answers will differ a little",
            UserWarning,
            stacklevel=caller_level(),
        )
    before, layers = recorded.get("adapters", 0), len(adapters_of(model))
    if "quantization" in recorded and before != layers:
        warnings.warn(
            f"{text}on a backbone with adapters of PEFT in {before} layers, this one has them in {layers}: expected "
            "the same, its answers will be others. Load the adapters first, and put the prompt on what their model's "
            "get_base_model() returns",
            UserWarning,
            stacklevel=caller_level(),
        )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The floating-point parameters by name; some may have their values elsewhere (:mod:`dplearn.offload`)."""
    return {
        name: tensor
        for name, tensor in model.named_parameters()
        if tensor.is_floating_point() and tensor.element_size() > 1 and tensor.numel()
    }


def _spread(names: list[str], count: int) -> set[str]:
    """So many names at equal distances, with the first and the last."""
    return {names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)} if names else set()


def _embedding(model: Any) -> Tensor | None:
    try:
        return getattr(model.get_input_embeddings(), "weight", None)
    except (AttributeError, NotImplementedError):  # CLIP has two towers and none of its own
        return None


def _sample(model: nn.Module, name: str) -> dict | None:
    tensor = values_of(model, name)
    if tensor is None or not tensor.is_floating_point():
        return None
    step = tensor.numel() / VALUES
    index = [int((i + 0.5) * step) for i in range(min(VALUES, tensor.numel()))]
    values = [float(f"{value:.9g}") for value in _values(tensor, index).tolist()]
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "index": index, "values": values}


def _values(tensor: Tensor, index: list[int]) -> Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[torch.tensor(index, device=tensor.device)].cpu().double()


def _agrees(sample: dict, model: nn.Module, name: str) -> bool:
    """Whether a tensor has the recorded values, up to the rounding of the coarser dtype; True where it has none."""
    tensor = values_of(model, name)
    if tensor is None:
        return True
    try:
        values, index = torch.tensor(sample["values"], dtype=torch.float64), sample["index"]
        known = [getattr(torch, sample["dtype"]), tensor.dtype]
        eps = max(LEAST, *(torch.finfo(dtype).eps for dtype in known))
        least = max(torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps for dtype in known)
        sampled = _values(tensor, index)
        return bool(((sampled - values).abs() <= 2 * eps * values.abs() + 2 * least).all())
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return False  # the tensor has become smaller, or the record is damaged
