"""The theory of the book as functions: what a prompt can do inside attention, and what a sampled split learns.

attention    attention with prompts, in sympy and in torch: the gated decomposition and what follows from it
separation   targets that one split realises and another cannot, with their exact losses
sensitivity  how much a real model's answer changes when the split moves, and through which mechanism
gumbel       Gumbel-Softmax and its straight-through gradient against the exact one
gradients    the estimates that a real model's training step gives, against the exact gradient
explorer     the interactive figure: three small heads at every split

Submodules are loaded when they are first used: some need sympy.
"""

from importlib import import_module

SUBMODULES = ("attention", "separation", "sensitivity", "gumbel", "gradients", "explorer")

__all__ = [*SUBMODULES, "position_sensitivity"]


def __getattr__(name: str) -> object:
    if name in SUBMODULES:
        return import_module(f"dplearn.theory.{name}")
    if name == "position_sensitivity":
        return import_module("dplearn.theory.sensitivity").position_sensitivity
    raise AttributeError(f"module 'dplearn.theory' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
