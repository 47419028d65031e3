"""How a prompt enters a Hugging Face model and how the answer is read: one adapter per kind of backbone."""

from __future__ import annotations

from torch import nn

from dplearn.backbones.base import Backbone
from dplearn.backbones.causal import CausalBackbone
from dplearn.backbones.clip import CLIPBackbone
from dplearn.backbones.encoder import EncoderBackbone
from dplearn.backbones.seq2seq import Seq2SeqBackbone
from dplearn.backbones.vit import ViTBackbone

ADAPTERS = (Seq2SeqBackbone, EncoderBackbone, CausalBackbone, ViTBackbone, CLIPBackbone)


def adapt(backbone: nn.Module) -> Backbone:
    """The adapter for a Hugging Face model.

    Raises
    ------
    TypeError : not a Hugging Face model, or of a kind that no adapter serves; the message says why.
    """
    from transformers import PreTrainedModel  # slow to import, and a model at hand has imported it

    start = f"backbone={type(backbone).__name__} cannot take a prompt: "
    if not isinstance(backbone, PreTrainedModel):
        kind = f"{type(backbone).__module__}.{type(backbone).__name__}"
        raise TypeError(f"{start}expected a transformers PreTrainedModel, got {kind}")
    reasons = []
    for adapter in ADAPTERS:
        reason = adapter.refusal(backbone)
        if reason is None:
            return adapter(backbone)
        reasons.append(reason)
    raise TypeError(start + "; ".join(reasons))
