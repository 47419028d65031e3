"""Prompts of other libraries: PEFT's prompt tuning, both ways, and plain arrays.

What PEFT calls prompt tuning is a fixed prompt of one prefix. Such a prompt gives the same logits here and there; the
package PEFT is not needed for it, since only its two files are read and written. Two differences are left. Where inputs
are padded on the left, PEFT puts the prompt before the padding, and this package before the first real token. And for a
decoder-only model, PEFT's loss also counts the first token of the input, where that has a label.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from dplearn import checkpoint, files, fits
from dplearn.backbones import CausalBackbone, Seq2SeqBackbone, adapt
from dplearn.checks import is_whole
from dplearn.config import PromptConfig
from dplearn.image_text import PromptedCLIP
from dplearn.length import resolve_size
from dplearn.loading import prompted
from dplearn.model import PromptedModel
from dplearn.position import resolve_split
from dplearn.shelf import origin

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG, WEIGHTS, TENSOR = "adapter_config.json", "adapter_model.safetensors", "prompt_embeddings"


def import_peft(folder: str | os.PathLike, backbone: PreTrainedModel) -> PromptedModel | PromptedCLIP:
    """A prompt that PEFT's prompt tuning trained and saved, as a fixed prefix on ``backbone``.

    PEFT's files for encoder-decoder models hold ``2 * num_virtual_tokens`` rows. Its forward pass reads the first half
    alone (for the encoder); the second half keeps its random first values and is left out here.

    Parameters
    ----------
    folder : holds ``adapter_config.json`` and ``adapter_model.safetensors``.
    backbone : the model that the prompt was trained on. The files name it at best by a path, so only the width is
        compared.

    Raises
    ------
    FileNotFoundError : one of the two files is missing.
    ValueError : another method than prompt tuning, weights in a pickle, trained parts besides the prompt (a classifier
        of PEFT), a wrong width, a missing key, damage; the message names which.
    TypeError : the backbone is of a kind that cannot take a prompt.
    """
    folder, width = Path(folder), adapt(backbone).width
    path, weights = folder / CONFIG, folder / WEIGHTS
    options = files.parse(path, checkpoint.read_text_of(folder, CONFIG, "a folder written by PEFT"))
    if options.get("peft_type") != "PROMPT_TUNING":
        raise ValueError(f"{path} has peft_type={options.get('peft_type')!r}, expected 'PROMPT_TUNING'")
    length, per_token = _rows(path, options)
    tensors = checkpoint.read_tensors(folder, WEIGHTS, f"the weights that belong to {CONFIG}")
    others = sorted(set(tensors) - {TENSOR})
    if others:
        raise ValueError(
            f"{weights} holds {others[0]!r} besides {TENSOR!r}, expected a prompt alone: other trained parts belong "
            "into the backbone"
        )
    fits.check_tensor(folder, tensors, TENSOR, (length * per_token, width))
    return _fixed(weights, tensors[TENSOR][:length], backbone, "prefix")


def _rows(path: Path, options: dict) -> tuple[int, int]:
    """How many vectors a PEFT config names, and how many rows its file holds for each."""
    encoder_decoder = options.get("task_type") == "SEQ_2_SEQ_LM"
    submodules = options.get("num_transformer_submodules")
    counts = {
        "num_virtual_tokens": options.get("num_virtual_tokens"),
        "num_transformer_submodules": 1 + encoder_decoder if submodules is None else submodules,
    }
    for key, value in counts.items():
        if not is_whole(value, 1):
            raise ValueError(f"{path} has {key}={value!r}, expected an integer of at least 1")
    vectors, submodules = (cast(int, count) for count in counts.values())
    return vectors, submodules


def export_peft(model: PromptedModel, folder: str | os.PathLike) -> None:
    """Write the prompt in use as a checkpoint of PEFT's prompt tuning, which ``PeftModel.from_pretrained`` loads.

    The folder gets ``adapter_config.json`` and ``adapter_model.safetensors`` with one tensor, ``prompt_embeddings``
    (length, d). For an encoder-decoder, PEFT by itself writes twice as many rows, of which the second half is meant for
    the decoder and never read; here ``num_transformer_submodules`` is 1, so PEFT expects and counts the rows in use.

    A stop at any moment leaves the old checkpoint, none or the new one, never a mixture: PEFT's files have fixed names,
    so an older ``adapter_config.json`` that differs goes first, and the new one comes last.

    Parameters
    ----------
    model : its prompt has to be one fixed prefix with all vectors in use, on an encoder-decoder or decoder-only
        language model. (PEFT reads the answer of encoders and classifiers from other rows, so the logits would differ.)
    folder : made where missing.

    Raises
    ------
    ValueError : the prompt or the backbone is of another kind, or a vector is not finite; the message names which.
        Nothing is written then.
    """
    config = model.prompt_config
    split, size = resolve_split(config.position, config.length), resolve_size(config.size, config.length)
    refused = {
        "position": (split != config.length, config.position, "'prefix'"),
        "size": (size != config.length, config.size, "'full'"),
        "vector": (config.vector != "single", config.vector, "'single'"),
        "head": (config.head != "frozen", config.head, "'frozen'"),
    }
    for name, (is_refused, value, expected) in refused.items():
        if is_refused:
            raise ValueError(
                f"{name}={value!r} cannot be exported to PEFT, expected {expected}: it has fixed prefixes alone"
            )
    rows, name = model.prompt.vectors, model.backbone.name_or_path
    options = {
        # A path of this machine would help nobody else.
        "base_model_name_or_path": name if name and origin(name) != "folder" else None,
        "inference_mode": True,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": rows.shape[0],
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "task_type": _task_type(model),
        "token_dim": rows.shape[1],
    }
    checkpoint.check_finite(folder, {TENSOR: rows}, "cannot be exported to")
    folder, text = Path(folder), (json.dumps(options, indent=2, sort_keys=True) + "\n").encode()
    data = checkpoint.pack({TENSOR: rows}, {"format": "pt"})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CONFIG
    with files.locked(folder):
        if path.is_file() and path.read_bytes() != text:
            path.unlink()
        files.write_locked(folder / WEIGHTS, data)
        files.write_locked(path, text)


def _task_type(model: PromptedModel) -> str:
    if isinstance(model.adapter, Seq2SeqBackbone):
        return "SEQ_2_SEQ_LM"
    if isinstance(model.adapter, CausalBackbone) and model.backbone.get_output_embeddings() is not None:
        return "CAUSAL_LM"
    raise ValueError(
        f"backbone={type(model.backbone).__name__} cannot be exported to PEFT, expected an encoder-decoder or a "
        "decoder-only language model: PEFT reads the answer of others from rows of the prompt"
    )


def import_npy(
    path: str | os.PathLike, backbone: PreTrainedModel, position: str | int = "prefix"
) -> PromptedModel | PromptedCLIP:
    """A prompt in a plain ``.npy`` file (the format of Google's prompt tuning), as a fixed prefix on ``backbone``.

    Parameters
    ----------
    path : an array (l, d) of floating point numbers. float16 becomes float32; others keep their dtype.
    backbone : the model that the prompt was trained on.
    position : another place, as in :class:`~dplearn.PromptConfig`.

    Raises
    ------
    FileNotFoundError : no such file.
    ValueError : not a .npy file, or one with pickled objects, which are never loaded; not (l, d) floating point; a
        wrong width; an unknown position.
    TypeError : the backbone is of a kind that cannot take a prompt.
    """
    import numpy

    path, width = Path(path), adapt(backbone).width
    try:
        array = numpy.load(path, allow_pickle=False)
    except (ValueError, EOFError):  # numpy's own message advises to load pickles
        raise ValueError(
            f"{path} is no .npy file of numbers, or it is damaged, expected an array (length, {width}): "
            "pickles are never loaded, they can run code"
        ) from None
    if not isinstance(array, numpy.ndarray):
        array.close()
        raise ValueError(f"{path} is an archive of arrays, expected one array in a .npy file")
    dtype = array.dtype.newbyteorder("=")
    if dtype not in (numpy.float16, numpy.float32, numpy.float64):
        raise ValueError(f"{path} holds an array of dtype {dtype}, expected float16, float32 or float64")
    if array.ndim != 2 or not len(array) or array.shape[1] != width:
        raise ValueError(f"{path} holds an array of shape {array.shape}, expected (length, {width})")
    native = numpy.array(array, dtype=dtype, order="C")
    return _fixed(path, torch.from_numpy(native), backbone, position)


def _fixed(
    path: Path, vectors: Tensor, backbone: PreTrainedModel, position: str | int
) -> PromptedModel | PromptedCLIP:
    if not vectors.isfinite().all():
        raise ValueError(f"{path} holds numbers that are not finite, expected finite ones alone")
    if vectors.dtype != torch.float64:
        vectors = vectors.float()  # half precision is too coarse to train
    return prompted(backbone, PromptConfig(length=len(vectors), position=position), vectors=vectors)
