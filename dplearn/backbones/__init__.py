"""How a prompt enters a Hugging Face model and how the answer is read: one adapter per kind of backbone."""

from __future__ import annotations

from torch import nn

from dplearn.backbones.base import SHORTCUTS, Backbone
from dplearn.backbones.causal import CausalBackbone
from dplearn.backbones.encoder import EncoderBackbone
from dplearn.backbones.image_text.adapter import ImageTextBackbone
from dplearn.backbones.reading import Boundary, Reading
from dplearn.backbones.seq2seq import Seq2SeqBackbone
from dplearn.backbones.text import OTHER_WAY, TextBackbone
from dplearn.backbones.vit import ViTBackbone

ADAPTERS = (Seq2SeqBackbone, CausalBackbone, EncoderBackbone, ViTBackbone, ImageTextBackbone)

__all__ = [
    "ADAPTERS",
    "SHORTCUTS",
    "Backbone",
    "Boundary",
    "ImageTextBackbone",
    "CausalBackbone",
    "EncoderBackbone",
    "Reading",
    "Seq2SeqBackbone",
    "ViTBackbone",
    "adapt",
]


def adapt(backbone: nn.Module) -> Backbone:
    """The adapter for a Hugging Face model, which is tried out on a few tokens.

    Raises
    ------
    TypeError : not a Hugging Face model, or of a kind that no adapter serves; the message says why.
    """
    from transformers import PreTrainedModel  # slow to import, and a model at hand has imported it

    start = f"backbone={type(backbone).__name__} cannot take a prompt: "
    if not isinstance(backbone, PreTrainedModel):
        kind = f"{type(backbone).__module__}.{type(backbone).__name__}"
        raise TypeError(f"{start}expected a transformers PreTrainedModel, got {kind}{_instead_of(backbone)}")
    for adapter in ADAPTERS:
        if adapter.refusal(backbone) is None:
            candidate = adapter(backbone)
            reason = candidate.probe()
            if reason is None:
                return candidate
            if reason != OTHER_WAY:
                raise TypeError(start + reason)
    raise TypeError(f"{start}{nearest(backbone).refusal(backbone)}")


def _instead_of(backbone: object) -> str:
    """What to give in place of a model that holds a transformers model, as the end of an error message."""
    if hasattr(backbone, "prompt_config"):
        return ", which has a prompt: its add_prompt puts another one beside it, its unload gives the backbone back"
    if hasattr(backbone, "peft_config"):
        return (
            ": give its get_base_model(), in which adapters such as LoRA stay in place, frozen "
            "(import_peft reads a prompt of PEFT)"
        )
    return ""


def nearest(backbone: nn.Module) -> type[Backbone]:
    """The adapter of the kind that a refused model is nearest to, whose reason is the one to tell."""
    config = backbone.config
    if getattr(config, "is_encoder_decoder", False):
        return Seq2SeqBackbone
    if (
        getattr(config, "text_config", None) is not None
        and getattr(config, "vision_config", None) is not None
    ):
        return ImageTextBackbone
    if getattr(backbone, "main_input_name", "input_ids") == "pixel_values":
        return ViTBackbone
    return TextBackbone
