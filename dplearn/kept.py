"""What no prompt can change of an input, kept: keys and values of a text, states of an image.

In a causal model a row sees the rows in front of it alone. So where a prompt stands behind the input (postfix), the
input's keys and values in every layer are those of the frozen model, in every step of training and for every prompt.
:class:`KeptInputs` holds them, in memory or in files; :mod:`dplearn.backbones.fronts` makes and uses them.

In an image model whose prompt stands in later layers only, the states in front of the first of these are the frozen
model's own in the same way (:mod:`dplearn.backbones.vit`).

What is kept is found by the token ids or pixels that it was made from, and holds for the weights that it was made with:
an input that was never seen, or a model that was changed, takes the full pass. (Changes are seen as autograd counts
them. Of a write through ``parameter.data``, which nothing counts, one number of each parameter is looked at.)
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dplearn import files


def digest_of(values: Tensor) -> str:
    """The name under which an input is kept: token ids (T,), or pixel values.

    >>> digest_of(torch.tensor([3, 5])) == digest_of(torch.tensor([3, 5], dtype=torch.int32))
    True
    """
    values = values.detach().cpu().to(torch.float64 if values.is_floating_point() else torch.int64)
    return hashlib.blake2b(values.contiguous().numpy().tobytes(), digest_size=16).hexdigest()


def _nothing() -> None:
    """What is undone where nothing was done."""


class KeptInputs:
    """Keys and values, or states, of inputs by the digest of what they were made from.

    As a context, ``with model.cache_inputs(batch, verbose=False): ...``, it forgets at the end what the call added: to
    answer several prompts on one input, say.

    Parameters
    ----------
    model : the backbone that they are of.
    dtype : in which they are kept; None: the model's own, which is exact.
    folder : where they lie as safetensors; what is there already is used: it has to be this model's. None: in memory.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype | None = None, folder: str | os.PathLike | None = None
    ):
        self.model, self.dtype = model, model.dtype if dtype is None else dtype
        self.folder = None if folder is None else Path(folder)
        # By digest: keys (H, T, d_k) and values (H, T, d_v), layer by layer, or an image's states (1, T, d); or the
        # file that holds them, and how many.
        self._layers: dict[str, Sequence[Tensor]] = {}
        self._files: dict[str, tuple[Path, int]] = {}
        self._made_with = state_of(model)
        self._latest: tuple = (None, None)  # what was asked for last, and what it was
        # Undoes the call of cache_inputs that gave these.
        self.forget: Callable[[], None] = _nothing
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for file in sorted(self.folder.glob("inputs-*.safetensors")):
                self._read(file)

    def __len__(self) -> int:
        return len(self._layers) + len(self._files)

    @property
    def digests(self) -> frozenset[str]:
        """By what inputs are kept: digests of their token ids."""
        return frozenset(self._layers) | frozenset(self._files)

    def __contains__(self, digest: str) -> bool:
        return digest in self._layers or digest in self._files

    def made_as(self, dtype: torch.dtype | None, folder: str | os.PathLike | None) -> bool:
        """Whether these are what a caller with such options asks for."""
        return self.dtype == (self.model.dtype if dtype is None else dtype) and self.folder == (
            None if folder is None else Path(folder)
        )

    @property
    def fresh(self) -> bool:
        """Whether the model's weights are those that these were made with."""
        return state_of(self.model) == self._made_with

    def __enter__(self) -> KeptInputs:
        return self

    def __exit__(self, *raised: Any) -> None:
        self.forget()

    def keep_only(self, digests: Collection[str]) -> None:
        """Forget all other inputs (files stay where they are)."""
        self._layers = {name: layers for name, layers in self._layers.items() if name in digests}
        self._files = {name: file for name, file in self._files.items() if name in digests}
        self._latest = (None, None)

    def add(self, by_name: dict[str, Sequence[Tensor]]) -> None:
        """Keep inputs: by digest, keys (H, T, d_k) and values (H, T, d_v) of one layer after the other."""
        dtype = cast(torch.dtype, self.dtype)
        kept = {name: [layer.to(dtype).contiguous() for layer in layers] for name, layers in by_name.items()}
        if self.folder is None or not kept:
            self._layers |= {name: [layer.cpu() for layer in layers] for name, layers in kept.items()}
            return
        # Named by what is in it: several processes may write to one folder.
        path = self.folder / f"inputs-{hashlib.sha256(''.join(kept).encode()).hexdigest()[:16]}.safetensors"
        tensors = {
            f"{name}.{i}": layer.cpu() for name, layers in kept.items() for i, layer in enumerate(layers)
        }
        files.write(path, save(tensors))
        self._read(path)

    def layers(self, digests: Sequence[str], device: torch.device) -> tuple[list[Tensor], Tensor]:
        """Keys and values of several inputs, padded in front: (B, H, T, d) one after the other, and the mask (B, T)."""
        asked, latest = (tuple(digests), device), self._latest  # read once: other threads may ask too
        if latest[0] != asked:  # several prompts in turn ask for the same
            self._latest = latest = (asked, self._padded(digests, device))
        return latest[1]

    def _padded(self, digests: Sequence[str], device: torch.device) -> tuple[list[Tensor], Tensor]:
        stored = [self._of(digest) for digest in digests]
        lengths = [layers[0].shape[1] for layers in stored]
        longest, dtype = max(lengths), cast(torch.dtype, self.model.dtype)
        steps = torch.arange(longest, device=device)
        mask = (steps >= longest - torch.tensor(lengths, device=device).unsqueeze(1)).long()
        batched = []
        for same in zip(*stored, strict=True):
            values = torch.zeros(
                len(same), same[0].shape[0], longest, same[0].shape[2], dtype=dtype, device=device
            )
            for number, (each, length) in enumerate(zip(same, lengths)):
                values[number, :, longest - length :] = each.to(device, dtype, non_blocking=True)
            batched.append(values)
        return batched, mask

    def _of(self, digest: str) -> Sequence[Tensor]:
        if digest in self._layers:
            return self._layers[digest]
        path, layers = self._files[digest]
        with safe_open(path, "pt") as file:
            return [file.get_tensor(f"{digest}.{number}") for number in range(layers)]

    def _read(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            count = Counter(name.partition(".")[0] for name in file.keys())
        self._files |= {digest: (path, layers) for digest, layers in count.items()}


def state_of(model: nn.Module) -> tuple:
    """What changes with what a model computes: where its weights lie, how often they were written to, one number of
    each; and which adapters are at work, since a library such as PEFT switches these without touching a weight.

    >>> layer = nn.Linear(3, 2)
    >>> before = state_of(layer)
    >>> layer.weight.data += 1  # which autograd does not count
    >>> state_of(layer) == before
    False
    """
    parameters = [p for p in model.parameters() if not p.is_meta and p.numel()]
    lie = tuple((p.data_ptr(), p._version, p.dtype) for p in parameters)
    known = _MIDDLES.get(model)
    if known is None or known[0] != [pointer for pointer, *_ in lie]:
        known = _MIDDLES[model] = ([pointer for pointer, *_ in lie], _middles(parameters))
    middles = tuple(tuple(torch.cat([view.float() for view in views]).tolist()) for views in known[1])
    return lie, middles, adapters_of(model)


# What a layer of PEFT keeps beside its weights: whether adapters are off, which are on, with which factor.
_SWITCHES = ("_disable_adapters", "_active_adapter", "scaling")


def adapters_of(model: nn.Module) -> tuple[str, ...]:
    """How the layers of adapters in a model are switched; empty where there are none."""
    layers = (vars(module) for module in model.modules() if "_disable_adapters" in vars(module))
    return tuple(repr([layer.get(name) for name in _SWITCHES]) for layer in layers)


# By model: where its weights lie, and a view of the middle number of each, by kind. Views show what is there now.
_MIDDLES: WeakKeyDictionary[nn.Module, tuple[list[int], list[list[Tensor]]]] = WeakKeyDictionary()


def _middles(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    kinds: dict[tuple, list[Tensor]] = {}
    for parameter in parameters:
        value = parameter.detach()
        index = tuple(slice(size // 2, size // 2 + 1) for size in value.shape)
        kinds.setdefault((value.dtype, value.device), []).append(value[index].reshape(1))
    return list(kinds.values())
