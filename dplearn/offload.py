"""Backbones whose weights wait elsewhere (accelerate's CPU and disk offload, or a ``device_map`` with them).

Such a model shows tensors on the meta device. A hook on each module fetches the weights when the module is called, to
the device on which it runs, and lets them go afterwards. Here is what else a prompt asks of such a model: where it
runs, what a weight holds, and a copy of a module that stays.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn


def _hooks(module: nn.Module) -> list:
    """What accelerate has hung on a module: one hook, or several in a row."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def device_of(model: nn.Module) -> torch.device:
    """Where a transformers model takes its inputs, also while its weights wait elsewhere.

    A model on the meta device that nothing fetches weights for is taken for one that will be filled on the CPU.
    """
    device = cast(torch.device, model.device)
    if device.type != "meta":
        return device
    for module in model.modules():
        for hook in _hooks(module):
            if getattr(hook, "execution_device", None) is not None:
                return torch.device(hook.execution_device)
    return torch.device("cpu")


def is_offloaded(module: nn.Module) -> bool:
    """Whether a hook fetches the weights of this one module when it is called."""
    return any(getattr(hook, "weights_map", None) is not None for hook in _hooks(module))


def values_of(model: nn.Module, name: str) -> Tensor | None:
    """The values of a parameter, where they are; None where it is on the meta device and nobody has them."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    tensor = module._parameters[own]
    if tensor is None or not tensor.is_meta:
        return tensor
    for hook in _hooks(module):
        if getattr(hook, "weights_map", None) is not None:
            return hook.weights_map[own]
    return None


def resident_copy(module: nn.Module) -> nn.Module:
    """A copy of a module with weights of its own that are there, whether or not those of the module wait elsewhere.

    Raises
    ------
    ValueError : the weights are on the meta device and nobody has them.
    """
    hooks = [hook for each in module.modules() for hook in _hooks(each)]
    stores = [store for hook in hooks if (store := getattr(hook, "weights_map", None)) is not None]
    resident = copy.deepcopy(
        module, memo={id(store): store for store in stores}
    )  # of a whole model: not copied
    if hooks:
        from accelerate.hooks import remove_hook_from_module

        # This may put weights of the store itself in their place.
        remove_hook_from_module(resident, recurse=True)
    for name, parameter in module.named_parameters():
        if not hooks and not parameter.is_meta:
            continue
        values = values_of(module, name)
        if values is None:
            raise ValueError(
                f"{name} of a {type(module).__name__} is on the meta device without values, expected a loaded model"
            )
        path, _, own = name.rpartition(".")
        values = nn.Parameter(values.detach().clone(), parameter.requires_grad)
        resident.get_submodule(path)._parameters[own] = values
    return resident
