"""The texts of the classes that images are compared with, and their features, which are kept until they may change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dplearn.backbones.image_text.captions import Captions


class _Kept(NamedTuple):
    """Features of the classes, and what they were computed from."""

    key: tuple
    features: Tensor
    version: int  # of the features, which their user may have changed in place
    parameters: tuple[Tensor, ...]  # held, so that no other parameter takes their place in memory


class Classes:
    """The texts of the classes, in label order, with the features that are kept of them."""

    def __init__(self, captions: Captions):
        self.captions = captions
        self._kept: _Kept | None = None

    def __len__(self) -> int:
        return len(self.captions.ends)

    def moved(self, fn: Callable[[Tensor], Tensor]) -> Classes:
        """The same texts where ``fn`` puts their tensors, such as another device; nothing is kept of them."""
        ids, mask = fn(self.captions.input_ids), fn(self.captions.mask)
        return Classes(self.captions._replace(input_ids=ids, mask=mask))

    def forget(self) -> None:
        """Keep no features."""
        self._kept = None

    def forget_prompted(self) -> None:
        """Keep no features under a prompt; those without one stay."""
        if self._kept is not None and self._kept.parameters:
            self._kept = None

    def features(
        self, key: tuple, compute: Callable[[], Tensor], parameters: Sequence[Tensor] = ()
    ) -> Tensor:
        """The features (C, p) that belong to a key: those that are kept, or new ones.

        Parameters
        ----------
        key : what they depend on.
        compute : gives them anew.
        parameters : of the prompt that they are made with.
        """
        kind = self.captions.input_ids.device.type
        if torch.is_autocast_enabled(kind):  # its features have another dtype
            key = (*key, torch.get_autocast_dtype(kind))
        kept, compiling = self._kept, torch.compiler.is_compiling()
        if kept is not None and kept.key == key and (compiling or kept.features._version == kept.version):
            return kept.features
        if compiling:  # a graph keeps nothing itself
            return compute()
        with torch.inference_mode(False), torch.no_grad():  # training may meet them later
            features = compute()
        self._kept = _Kept(key, features, features._version, tuple(parameters))
        return features
