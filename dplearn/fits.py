"""Whether a checkpoint fits: its backbone against the one at hand, its tensors against the modules they are for."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from dplearn.checks import shown

NEEDED = ("model_type", "class")  # what every checkpoint has recorded from the first one on
# What is no part of a backbone's kind, or may differ with a warning (:mod:`dplearn.fingerprint`).
NOT_COMPARED = ("name_or_path", "fingerprint", "quantization", "label_names", "adapters")


# What helps where a part of a backbone differs.
ADVICE = {
    "labels": ": expected the same number. A prompt with head='frozen' needs the head that it was trained with (save "
    "the model with backbone.save_pretrained, and load it from there), one with head='trained' brings its own"
}


def check_backbone(folder: str | os.PathLike, recorded: dict, present: dict) -> None:
    """Raise ValueError where the backbone at hand is not of the recorded kind.

    Everything that is recorded is compared, whatever adapter described it; what an older version did not record is not.
    A vocabulary may have grown since: new tokens come behind the others.
    """
    names = [*NEEDED, *(name for name in {**present, **recorded} if name in recorded and name not in NEEDED)]
    for name in names:
        old, new = recorded.get(name), present.get(name)
        if name in NOT_COMPARED or old == new:
            continue
        if name == "vocabulary":
            if isinstance(old, int) and isinstance(new, int) and 0 < old < new:
                continue
        raise ValueError(
            f"the prompt in {str(folder)!r} was trained for a backbone with {name}={shown(old)}, "
            f"this one has {name}={shown(new)}{ADVICE.get(name, '')}"
        )


def check_tensor(
    folder: str | os.PathLike,
    tensors: dict[str, Tensor],
    name: str,
    shape: tuple[int, ...],
    whole: bool = False,
) -> None:
    """Raise ValueError where a tensor is missing, of another shape, or not floating point (``whole``: not int64)."""
    actual = tuple(tensors[name].shape) if name in tensors else "no such tensor"
    if actual != shape:
        raise ValueError(f"tensor {name!r} in {str(folder)!r}: expected shape {shape}, found {actual}")
    dtype = tensors[name].dtype
    if dtype != torch.int64 if whole else not dtype.is_floating_point:
        expected = "int64" if whole else "floating point"
        raise ValueError(f"tensor {name!r} in {str(folder)!r}: expected {expected}, found {dtype}")


def fill(folder: str | os.PathLike, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load all tensors into ``module``, each in its own dtype; raise ValueError where names or shapes differ."""
    expected = module.state_dict()
    if set(tensors) != set(expected):
        raise ValueError(f"{str(folder)!r} holds the tensors {sorted(tensors)}, expected {sorted(expected)}")
    for name, tensor in expected.items():
        check_tensor(folder, tensors, name, tuple(tensor.shape), not tensor.is_floating_point())
    # Assigned, so not rounded.
    module.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
