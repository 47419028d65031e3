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

import torch
from torch import Tensor, nn

MATRICES, VECTORS, VALUES = 5, 4, 4  # how many weights and norms, spread over the model; values of each
LEAST = 1e-6  # relative difference that counts as rounding in any dtype: values are recorded with nine digits


def fingerprint(model: nn.Module, head: bool = True) -> dict:
    """A few values of a few floating-point tensors of a transformers model, as plain JSON values.

    Parameters
    ----------
    model : in any dtype, on any device; tensors on the meta device and quantised ones are left out.
    head : whether the modules behind the base model count; not where a prompt brings its own head.

    Returns
    -------
    dict : name of the tensor -> {"dtype", "index", "values"} with indices into the flattened tensor; empty where no
        tensor is floating point.
    """
    found = _tensors(model)
    if not head:
        base = f"{getattr(model, 'base_model_prefix', '')}."
        inside = {name: tensor for name, tensor in found.items() if name.startswith(base)}
        found = inside or found
    embedding = _embedding(model)
    chosen = {name for name, tensor in found.items() if tensor is embedding}
    chosen |= _spread([name for name, tensor in found.items() if tensor.ndim > 1], MATRICES)
    chosen |= _spread([name for name, tensor in found.items() if tensor.ndim == 1], VECTORS)
    return {name: _sample(tensor) for name, tensor in found.items() if name in chosen}


def matches(recorded: dict, model: nn.Module) -> bool:
    """Whether a model has the values of a fingerprint, up to rounding.

    A tensor that is not there or not floating point any more (quantised since) is not compared.
    """
    found = _tensors(model)
    return all(_agrees(sample, found[name]) for name, sample in recorded.items() if name in found)


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

    ``recorded`` is the description of the backbone in the checkpoint, with ``fingerprint`` and ``quantization``; what
    an older version did not record is not compared.
    """
    text = f"the prompt in {str(folder)!r} was trained "
    if not matches(recorded.get("fingerprint") or {}, model):
        warnings.warn(
            f"{text}on other weights than those of this {type(model).__name__}: another backbone of the same shape, or "
            "one that was trained further. Its answers will be others",
            UserWarning,
            stacklevel=3,
        )
    now = quantization(model)
    if "quantization" in recorded and recorded["quantization"] != now:
        warnings.warn(
            f"{text}on a backbone with quantization={recorded['quantization']!r}, this one has quantization={now!r}: "
            "its answers will differ a little",
            UserWarning,
            stacklevel=3,
        )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The floating-point parameters that hold values, by name."""
    return {
        name: tensor
        for name, tensor in model.named_parameters()
        if tensor.is_floating_point() and tensor.element_size() > 1 and tensor.numel() and not tensor.is_meta
    }


def _spread(names: list[str], count: int) -> set[str]:
    """So many names at equal distances, with the first and the last."""
    return {names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)} if names else set()


def _embedding(model: nn.Module) -> Tensor | None:
    try:
        return getattr(model.get_input_embeddings(), "weight", None)
    except (AttributeError, NotImplementedError):  # CLIP has two towers and none of its own
        return None


def _sample(tensor: Tensor) -> dict:
    step = tensor.numel() / VALUES
    index = [int((i + 0.5) * step) for i in range(min(VALUES, tensor.numel()))]
    values = [float(f"{value:.9g}") for value in _values(tensor, index).tolist()]
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "index": index, "values": values}


def _values(tensor: Tensor, index: list[int]) -> Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[torch.tensor(index, device=tensor.device)].cpu().double()


def _agrees(sample: dict, tensor: Tensor) -> bool:
    """Whether a tensor has the recorded values, up to the rounding of the coarser dtype."""
    try:
        values, index = torch.tensor(sample["values"], dtype=torch.float64), sample["index"]
        known = [getattr(torch, sample["dtype"]), tensor.dtype]
        eps = max(LEAST, *(torch.finfo(dtype).eps for dtype in known))
        least = max(torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps for dtype in known)
        found = _values(tensor, index)
        return bool(((found - values).abs() <= 2 * eps * values.abs() + 2 * least).all())
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return False  # the tensor has become smaller, or the record is damaged
