"""Classification heads: which modules of a model they are, whether anybody trained them, and a prompt's own copy.

A head that was not in the checkpoint of a model is drawn at random when the model is loaded, and so is BERT's pooler,
which stands in front of the head and is missing in many checkpoints. Another draw is another head: so a prompt either
brings these modules (``head="trained"``), or its user is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dplearn.backbones.views import Changes, below, path_of
from dplearn.offload import resident_copy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def head_of(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The classification head by the names of its modules: all with parameters that stand behind the base model.

    (BERT's pooler is inside of the base model.)

    Raises
    ------
    ValueError : there is no head, or it is a language model's, whose weights may be the input embeddings'.
    """
    base, start = model.base_model, f"head='trained' needs a classification head, {type(model).__name__} has"
    if model.get_output_embeddings() is not None:
        raise ValueError(
            f"{start} a language-model head: expected head='frozen', or the model for a classification"
        )
    children = {} if base is model else dict(model.named_children())
    head = {name: child for name, child in children.items() if child is not base and list(child.parameters())}
    if not head:
        raise ValueError(f"{start} none: expected head='frozen', or the model with its head")
    return head


def pooler_of(model: PreTrainedModel) -> str | None:
    """The path of the base model's pooler, through which the head reads; None where there is none with weights."""
    base = model.base_model
    pooler = getattr(base, "pooler", None)
    if base is model or not isinstance(pooler, nn.Module) or not list(pooler.parameters()):
        return None
    return below(path_of(model, base), "pooler")


def fresh_weights(model: PreTrainedModel) -> list[str]:
    """The names of head and pooler parameters that were in no checkpoint while others of the model were.

    transformers marks what it loads from a checkpoint. A model that was made from a config, or copied, has no marks,
    and nothing is known. A language-model head is left out: when a vocabulary is resized it loses its mark.
    """

    def loaded(parameter):
        return getattr(parameter, "_is_hf_initialized", False)

    if not any(loaded(parameter) for parameter in model.parameters()):
        return []
    output = model.get_output_embeddings()
    left_out = set() if output is None else {id(parameter) for parameter in output.parameters()}
    return [
        name
        for name, parameter in model.named_parameters()
        if is_of_head(model, name)
        and not (loaded(parameter) or parameter.is_meta or id(parameter) in left_out)
    ]


def is_of_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a parameter of this name stands behind the base model, or in its pooler."""
    base = model.base_model
    if base is model:
        return False
    pooler = pooler_of(model)
    return not name.startswith(f"{path_of(model, base)}.") or (
        pooler is not None and name.startswith(f"{pooler}.")
    )


def own_head(model: PreTrainedModel, pooler: bool | None = None) -> nn.ModuleDict:
    """A prompt's own copy of a model's head, to be trained, with the pooler where that is as fresh as the head.

    The copy is in float32 at least, as the prompt is: half precision is too coarse to train.

    Parameters
    ----------
    pooler : whether the pooler is a part of it; None: where it was in no checkpoint.

    Returns
    -------
    Modules by their path in the model, with dashes for dots (which names of modules cannot have).

    Raises
    ------
    ValueError : the model has no head or a language model's, or it is quantised.
    """
    head, path = dict(head_of(model)), pooler_of(model)
    if path is not None:
        if pooler is None:
            pooler = any(name.startswith(f"{path}.") for name in fresh_weights(model))
        if pooler:
            head = {key_of(path): model.get_submodule(path)} | head
    copies = nn.ModuleDict({key: resident_copy(module) for key, module in head.items()})
    for name, parameter in copies.named_parameters():
        if not parameter.is_floating_point():
            raise ValueError(
                f"head='trained' cannot train {name.replace('-', '.')} of {type(model).__name__}, which holds "
                f"{parameter.dtype}: expected a head in floating point (leave it out when the model is quantised), or "
                "head='frozen'"
            )
    return copies.to(torch.promote_types(model.dtype, torch.float32)).requires_grad_(True)


def key_of(path: str) -> str:
    """The name of a module in a prompt's head.

    >>> key_of("bert.pooler")
    'bert-pooler'
    """
    return path.replace(".", "-")


def paths_of(head: Iterable[str] | None) -> tuple[str, ...]:
    """The paths of the modules of a model that a prompt's head stands in for."""
    return () if head is None else tuple(key.replace("-", ".") for key in head)


def standing_in(head: nn.ModuleDict | None) -> Changes:
    """Changes of a model by which each module of ``head`` stands in for the model's own of that path.

    They see floating point inputs in their own dtype, which the model's may be coarser than.
    """
    modules = () if head is None else head.values()
    return {path: _in_own_dtype(module) for path, module in zip(paths_of(head), modules)}


def _in_own_dtype(module: nn.Module):
    def forward(usual, *arguments, **options):
        dtype = next(module.parameters()).dtype

        def cast(value):
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return module(*map(cast, arguments), **{name: cast(value) for name, value in options.items()})

    return forward


# ---- names of labels ----


def label_names(model: PreTrainedModel) -> list[str] | None:
    """The names of a model's labels in their order; None where it has none but LABEL_0, LABEL_1 and so on."""
    config = model.config
    named = getattr(config, "id2label", None) or {}
    names = [str(named.get(number, f"LABEL_{number}")) for number in range(len(named))]
    return None if names == [f"LABEL_{number}" for number in range(len(named))] else names


def set_label_names(model: PreTrainedModel, names: list[str]) -> None:
    """Write names of labels to the model's config."""
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}


def counts_labels(model: PreTrainedModel) -> bool:
    """Whether the number of labels in the model's config is that of a head it has."""
    return getattr(model, "num_labels", None) is not None
