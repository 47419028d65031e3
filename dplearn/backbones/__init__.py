"""How a prompt enters a Hugging Face model and how the answer is read: one adapter per kind of backbone."""

from __future__ import annotations

from torch import nn

from dplearn.backbones.seq2seq import Seq2SeqBackbone

ADAPTERS = (Seq2SeqBackbone,)


def adapt(backbone: nn.Module) -> Seq2SeqBackbone:
    """The adapter for a Hugging Face model.

    Raises
    ------
    TypeError : not a Hugging Face model, or of a kind that no adapter serves; the message says why.
    """
    reasons = []
    for adapter in ADAPTERS:
        reason = adapter.refusal(backbone)
        if reason is None:
            return adapter(backbone)
        reasons.append(reason)
    raise TypeError(f"backbone={type(backbone).__name__} cannot take a prompt: " + "; ".join(reasons))
