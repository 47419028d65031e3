"""What tools of the transformers library ask a model for, answered as the backbone answers it.

`transformers.Trainer` and its collators look a model up: the parameters of its ``forward`` decide which columns of a
data set it gets, the name of its class how labels are smoothed and which of its arguments are labels, attributes how
losses are counted and whether it generates. A prompted model answers as its backbone does, with the arguments of a
prompt added, and it has what the backbone has and nothing else. Its outputs are of transformers' kind.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import make_dataclass
from difflib import get_close_matches
from functools import cache
from types import FunctionType
from typing import Any, SupportsIndex

import torch
from torch import nn

from dplearn.offload import device_of

# Asked for by name: by collators, by the Trainer (loss type, NEFTune, the devices of a model that is spread over
# several) and before generation.
ASKED = (
    "prepare_decoder_input_ids_from_labels",
    "can_generate",
    "loss_type",
    "get_input_embeddings",
    "hf_device_map",
    "generation_config",
)
# Asked for by PEFT before it puts anything into a model.
ASKED_BY_PEFT = ("peft_config", "prompt_encoder")
FIRST = ("input_ids", "attention_mask")  # in this order where they are given by place
OURS = ("summary", "task_ids", "keep_last", "context_length", "decisions")


@cache
def class_for(base: Any, backbone: type) -> type:
    """A subclass of ``base`` for a class of backbones: its name, and ``forward`` with its parameters.

    The Trainer reads both from the class, not from the model.
    """
    usual = base.forward
    forward: Any = FunctionType(
        usual.__code__, usual.__globals__, "forward", usual.__defaults__, usual.__closure__
    )
    forward.__kwdefaults__, forward.__doc__ = usual.__kwdefaults__, usual.__doc__
    forward.__qualname__ = usual.__qualname__
    # A forward that spells its arguments out (an image-text model's) tells them as they are.
    signature, known = inspect.signature(usual), names_of(usual)
    if any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
        forward.__signature__ = signature = signature_for(backbone)
        known = names_for(backbone)
    fields = {"forward": forward, "__module__": base.__module__, "__doc__": base.__doc__, "made_from": base}
    fields |= {"known_names": known, "places": tuple(signature.parameters)[1:]}
    return type(f"Prompted{backbone.__name__}", (base,), fields)


def signature_for(backbone: Any) -> inspect.Signature:
    """The parameters of a prompted ``forward``: those of the backbone, each by its own name, and those of a prompt.

    Ids and mask come first, as in nearly all models; everything is optional.
    """
    theirs = inspect.signature(backbone.forward).parameters
    names = [name for name, p in theirs.items() if p.kind is not p.VAR_KEYWORD and name != "self"]
    first = [name for name in FIRST if name in names]
    ordered = list(dict.fromkeys([*first, *names, *OURS]))
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter("self", kind),
        *(inspect.Parameter(n, kind, default=None) for n in ordered),
    ]
    parameters += [p for p in theirs.values() if p.kind is p.VAR_KEYWORD]
    return inspect.Signature(parameters)


def names_for(backbone: Any) -> frozenset[str] | None:
    """What a prompted ``forward`` takes by name; None where the backbone's takes any name."""
    theirs = names_of(backbone.forward)
    return None if theirs is None else theirs | set(OURS)


def names_of(forward: Callable) -> frozenset[str] | None:
    """What a method takes by name; None where it takes any name."""
    parameters = inspect.signature(forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return frozenset(parameters) - {"self"}


@cache
def nearly(name: str, known: tuple[str, ...]) -> str | None:
    """The known name that ``name`` seems to mean by a slip of the pen, or None.

    >>> nearly("context_lenght", ("labels", "context_length")), nearly("num_items_in_batch", ("labels",))
    ('context_length', None)
    """
    alike = get_close_matches(name, known, 1, cutoff=0.82)
    return alike[0] if alike and abs(len(alike[0]) - len(name)) <= 3 else None


class AsBackbone(nn.Module):
    """A module whose ``backbone`` answers what libraries ask (``ASKED``), of a class made for the backbone's class."""

    def __new__(cls, backbone: nn.Module | None = None, *arguments: Any, **options: Any) -> Any:
        """An instance of the class for the backbone's class."""
        made = backbone is None or "made_from" in vars(cls)
        kinds: tuple[Any, Any] = (cls, type(backbone))
        return super().__new__(cls if made else class_for(*kinds))

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple:
        """Pickles find the class by the two that it is made from."""
        made: Any = type(self)
        return _blank, (made.made_from, type(self.backbone)), self.__dict__

    def __getattr__(self, name: str) -> Any:
        if name in ASKED:
            return getattr(self.backbone, name)
        if name in ASKED_BY_PEFT and sys._getframe(1).f_globals.get("__name__", "").startswith("peft."):
            # It would freeze the prompt without a word, and save nothing: the backbone is in no state dict.
            raise TypeError(
                f"the model given to PEFT is a {type(self).__name__}, whose prompt PEFT would freeze: expected its "
                "backbone. get_peft_model(model.backbone, ...) puts adapters such as LoRA into it, and the prompt is "
                "trained and saved beside them (the page At work, Adapters in the backbone)"
            )
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "generation_config":  # the Trainer replaces it, and the backbone's is the one in use
            self.backbone.generation_config = value
        else:
            super().__setattr__(name, value)

    def _get_name(self) -> str:
        """The backbone's class: the Trainer looks up how its labels are shifted."""
        backbone = self._modules.get("backbone")
        return type(self).__name__ if backbone is None else type(backbone).__name__

    # What ``forward`` takes by name, None: anything (set for each class of backbones).
    known_names: frozenset[str] | None = None
    # Its parameters in their order.
    places: tuple[str, ...] = FIRST

    def accepted(self, batch: dict) -> dict:
        """What of a batch the model takes: a data set may have columns beside."""
        return {n: v for n, v in batch.items() if self.known_names is None or n in self.known_names}

    def _check_names(self, names: Iterable[str]) -> None:
        """Raise TypeError where an argument is neither of the backbone's forward nor of a prompt.

        Most models take any name and do nothing with those that they do not know. So where one is nearly the name of an
        argument it is taken for a slip: ``context_lenght`` would leave the prompt in another place without a word.
        """
        for name in names:
            start = f"{name} is not an argument of {self._get_name()}.forward, nor of a prompt: expected "
            if self.known_names is not None and name not in self.known_names:
                raise TypeError(f"{start}some of {sorted(self.known_names)}")
            if self.known_names is None and name not in self.places and not torch.compiler.is_compiling():
                near = nearly(name, self.places)
                if near is not None:
                    raise TypeError(f"{start}{near}, or a name that is less like it")

    @property
    def config(self) -> Any:
        """The backbone's own configuration (the prompt's is ``prompt_config``)."""
        return self.backbone.config

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs, also while the backbone's weights wait elsewhere (accelerate's offload)."""
        return device_of(self.backbone)

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    @property
    def main_input_name(self) -> str:
        """What the backbone reads: "input_ids" or "pixel_values"."""
        return self.backbone.main_input_name


def _blank(base: type, backbone: type) -> AsBackbone:
    return object.__new__(class_for(base, backbone))


@cache
def _make_extended_type(kind: type) -> type:
    fields = [(name, object, None) for name in ("penalty", "draws")]
    return make_dataclass(f"Prompted{kind.__name__}", fields, bases=(kind,))


def _extended_type(kind: type) -> type:
    return _make_extended_type(kind)


# Compiled code does not look into the making of a class. This is what torch.compiler.assume_constant_result does, which
# would import the compiler with this package: two fifths of the time that `import dplearn` took.
vars(_extended_type)["_dynamo_marked_constant"] = True


def extended(output: Any, **fields: object) -> Any:
    """A transformers output with ``penalty`` and ``draws`` as fields of its own kind.

    Items that its class does not know would be lost or refused where outputs are taken apart and put together again, as
    DistributedDataParallel does.
    """
    if type(output) is dict:  # without what is None, as an output of transformers is
        return {name: value for name, value in (output | fields).items() if value is not None}
    return _extended_type(type(output))(**dict(output) | fields)


def check_output(output: Any, name: str) -> None:
    """Raise TypeError where an output has no names: ``penalty`` and ``draws`` could not be added to it.

    name : of the class of the model that gave it.
    """
    if not hasattr(output, "items"):
        raise TypeError(
            f"the output of {name} is a {type(output).__name__}, expected one with names (a ModelOutput of "
            "transformers, or a dict): the prompt adds parts of its own, penalty or draws"
        )


def losses_named(batch: dict) -> list[str]:
    """The names of the labels in a batch, as transformers finds them."""
    return [
        name
        for name, value in batch.items()
        if value is not None and ("label" in name or name in ("start_positions", "end_positions"))
    ]
