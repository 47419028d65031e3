"""The backbone that a checkpoint names, loaded without running code of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from dplearn import shelf
from dplearn.backbones import heads
from dplearn.checks import shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_backbone(folder: str | os.PathLike, description: dict, own_head: bool = False) -> PreTrainedModel:
    """The backbone that the checkpoint in ``folder`` describes: from the shelf, or by name through transformers.

    own_head : the prompt has one, so a fresh head stands in its place, with the recorded number of labels and their
        names.

    Raises
    ------
    ValueError : there is no name or no such class in transformers, or the backbone comes with code of its own, which
        is never run; the message asks for ``from_pretrained(folder, backbone)``.
    """
    import transformers

    name, kind, labels = (description.get(key) for key in ("name_or_path", "class", "labels"))
    labels = labels if own_head else None
    if name in shelf.names():
        return _named(shelf.load(name, num_labels=labels)[0], description, own_head)
    model_class: Any = getattr(transformers, str(kind), None)
    known = isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    if not name or not isinstance(name, str) or not known:
        raise ValueError(
            f"the prompt in {str(folder)!r} was trained for a backbone with class={shown(kind)} and "
            f"name_or_path={shown(name)}, which cannot be loaded by name: expected from_pretrained(folder, backbone), "
            "with the model that the prompt was trained on"
        )
    _refuse_own_code(folder, name, model_class)
    if labels is None:
        return model_class.from_pretrained(name, trust_remote_code=False)
    return _named(shelf.with_labels(model_class, name, labels), description, own_head)


def _named(model: PreTrainedModel, description: dict, own_head: bool) -> PreTrainedModel:
    """The model with the recorded names of labels, where the head is the prompt's own and there is one for each."""
    names = description.get("label_names")
    if own_head and isinstance(names, list) and len(names) == model.config.num_labels:
        heads.set_label_names(model, [str(name) for name in names])
    return model


def _refuse_own_code(folder: str | os.PathLike, name: str, model_class: Any) -> None:
    """Raise ValueError where a config names code of its own (``auto_map``) for a kind that transformers does not know.

    transformers would ask in the terminal whether to run that code. Where it knows the kind, its own code is used.
    """
    from transformers import CONFIG_MAPPING

    config, _ = model_class.config_class.get_config_dict(name)
    if config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(
            f"the prompt in {str(folder)!r} names the backbone {shown(name)}, whose config has "
            f"model_type={shown(config.get('model_type'))} and code of its own (auto_map): such code is never run, "
            "expected from_pretrained(folder, backbone)"
        )
