"""Making prompted models: from a backbone and a config, or from a checkpoint."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dplearn import checkpoint, hub
from dplearn.backbones import Backbone, ImageTextBackbone, adapt
from dplearn.building import as_config, new_prompt, restore
from dplearn.by_name import load_backbone
from dplearn.config import PromptConfig
from dplearn.image_text import PromptedCLIP
from dplearn.model import PromptedModel
from dplearn.prompt import DynamicPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Kinds of backbone whose prompted models have a class of their own.
MODELS: dict[type[Backbone], type[PromptedCLIP]] = {ImageTextBackbone: PromptedCLIP}


def prompted(
    backbone: PreTrainedModel,
    config: PromptConfig | None = None,
    *,
    vectors: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> PromptedModel | PromptedCLIP:
    """Freeze a Hugging Face model and give it a trainable prompt.

    Parameters
    ----------
    backbone : a model of transformers with its head: a text model (encoder-decoder, decoder-only or encoder), a vision
        transformer, or an image-text model (CLIP, SigLIP), which gives a PromptedCLIP. It is frozen in place.
    config : what kind of prompt; ``PromptConfig()`` is a prefix of 20 vectors.
    vectors : (length, d) first values of the prompt, instead of ``config.init``; (pool_size, length, d) for a pool,
        and with a ``depth`` above 1 that dimension before the length.
    generator : source of the random initial vectors; None uses torch's global generator.

    Raises
    ------
    TypeError : the backbone is of a kind that cannot take a prompt; ``config`` is no PromptConfig.
    ValueError : ``vectors`` does not have the shape that the config and the backbone's width ask for; a trained head
        is asked for and the backbone has none.

    Warns
    -----
    UserWarning : the frozen head was in no checkpoint (``BertForSequenceClassification.from_pretrained`` of a base
        model leaves a random one), and the prompt is going to depend on it.
    """
    config = as_config(config)
    adapter = adapt(backbone)
    return _model(adapter, new_prompt(adapter, config, vectors, generator), config)


def _model(adapter: Backbone, prompt: DynamicPrompt, config: PromptConfig) -> PromptedModel | PromptedCLIP:
    return MODELS.get(type(adapter), PromptedModel)(adapter.model, prompt, config, adapter)


def from_pretrained(
    folder: str | os.PathLike,
    backbone: PreTrainedModel | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
) -> PromptedModel | PromptedCLIP:
    """Load a prompt written by :meth:`PromptedModel.save_pretrained` or :meth:`PromptedModel.push_to_hub`.

    Parameters
    ----------
    folder : where ``prompt_config.json`` lies, or the repository "owner/name" of a model hub. What is a folder here is
        read here. ``revision``, ``token``, ``cache_dir`` and ``local_files_only`` are about a repository
        (:func:`dplearn.hub.located`).
    backbone : the model to put the prompt on. None loads the one that the checkpoint names: a backbone of
        :mod:`dplearn.zoo`, or a path or hub name through transformers, with the recorded number of labels where the
        prompt has its own head.

    The labels of a prompt's own head have names (``backbone.config.id2label``), which are recorded and restored; a
    backbone that has other names for them keeps its own.

    Warns
    -----
    UserWarning : the backbone, its head or the names of its labels are others than those that the prompt was trained
        with.

    Raises
    ------
    FileNotFoundError : no checkpoint there.
    PermissionError : the hub wants a token, or does not take this one.
    ValueError : the checkpoint is damaged, a pickle, of another version, made for another backbone, or made for one
        that cannot be found by name while ``backbone`` is None; the message names which.
    """
    path = hub.located(
        folder, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
    )
    saved = checkpoint.read(path)
    config = PromptConfig.from_saved(saved.options)
    if backbone is None:
        backbone = load_backbone(folder, saved.backbone, own_head=config.head == "trained")
    adapter = adapt(backbone)
    return _model(adapter, restore(folder, saved, config, adapter), config)
