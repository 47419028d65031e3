"""The settings of a saved prompt, as JSON under a seal: its options, its backbone, and which file holds its tensors.

The seal is the SHA-256 of these settings in canonical JSON, with the list of the options. A file that was edited, or
that lost an option (whose default would then make another prompt of the same tensors), is refused and not loaded as
something else. Format 2, written before there were seals, is read as it always was. The same settings also travel as a
tensor of bytes, for programs that save tensors alone (:func:`to_tensor`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dplearn.checks import is_whole, shown
from dplearn.files import parse
from dplearn.shelf import origin
from dplearn.version import __version__

FORMAT, UNSEALED = 3, 2  # 1 had task logits without the dimension of tasks
SEALED = ("format", "prompt", "backbone", "weights")
# Options that say how a prompt is trained. All others say what its tensors mean.
OF_TRAINING = (
    "size_cost",
    "controller_init",
    "estimator",
    "samples",
    "temperature",
    "init",
    "backbone_dropout",
)


class Weights(NamedTuple):
    """The tensor file of a checkpoint: its name, the SHA-256 of its bytes, and their number (None in format 2)."""

    file: str
    sha256: str
    bytes: int | None = None


class Settings(NamedTuple):
    """Verified settings: the options of PromptConfig, the description of the backbone, the tensor file."""

    options: dict
    backbone: dict
    weights: Weights | None


def document(options: dict, backbone: dict, weights: Weights | None = None) -> dict:
    """The sealed settings as a JSON object.

    The name of a backbone that was loaded from a folder is not a part of them: a path of one machine helps nobody else,
    and tells about that machine.

    Raises
    ------
    ValueError : an option or a part of the description is no JSON value.
    """
    if origin(backbone.get("name_or_path")) == "folder":
        backbone = backbone | {"name_or_path": ""}
    settings = {
        "format": FORMAT,
        "dplearn_version": __version__,
        "prompt": options,
        "backbone": backbone,
        "weights": None if weights is None else weights._asdict(),
    }
    return settings | {
        "seal": {"options": sorted(options), "sha256": digest(settings | {"options": sorted(options)})}
    }


def digest(document: dict) -> str:
    """SHA-256 of the settings in canonical JSON: sorted keys, no spaces, no numbers that are not finite."""
    sealed = {key: document.get(key) for key in (*SEALED, "options")}
    try:
        text = json.dumps(sealed, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"the settings of a prompt have to be JSON values: {error}") from None
    return hashlib.sha256(text.encode()).hexdigest()


def verify(path: str | Path, document: dict) -> Settings:
    """The settings that a JSON object holds; ``path`` is what errors call it.

    Raises
    ------
    ValueError : an unknown format, a missing part, a missing option, or other settings than were sealed.
    """
    version = document.get("format")
    if version not in (FORMAT, UNSEALED) or isinstance(version, bool):
        raise ValueError(
            f"{path} has format={shown(version)}, expected {FORMAT}: it was written by another version of dplearn"
        )
    try:
        options, backbone, weights = document["prompt"], document["backbone"], document["weights"]
        if not isinstance(options, dict) or not isinstance(backbone, dict):
            raise TypeError("prompt and backbone have to be objects")
        weights = None if weights is None and version == FORMAT else _weights(weights, version)
        seal = document["seal"] if version == FORMAT else None
        known, sha256 = (list(seal["options"]), str(seal["sha256"])) if seal else ([], None)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is incomplete, expected prompt, backbone and weights"
            f"{' with their seal' if version == FORMAT else ''}: {shown(error)}"
        ) from None
    missing = [name for name in known if name not in options]
    if missing:
        raise ValueError(f"{path} has lost the option {shown(missing[0])}, which it was written with")
    if sha256 is None and "seal" not in document:
        return Settings(options, backbone, weights)
    if sha256 is None or digest(document | {"options": known}) != sha256:
        raise ValueError(
            f"{path} was changed after it was written: its settings have another SHA-256 than its seal records. "
            "Save the prompt again, or, if the change is meant, call dplearn.checkpoint.seal(folder)"
        )
    return Settings(options, backbone, weights)


def _weights(described: dict, version: int) -> Weights:
    size = described["bytes"] if version == FORMAT else None
    if version == FORMAT and not is_whole(size):
        raise TypeError(f"weights has bytes={size!r}, expected an integer")
    return Weights(str(described["file"]), str(described["sha256"]), size)


def to_tensor(options: dict, backbone: dict) -> Tensor:
    """The sealed settings as bytes, (n,) uint8, to stand beside a prompt's tensors in a state dict."""
    text = json.dumps(document(options, backbone)).encode()
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def from_tensor(path: str | Path, tensor: Tensor) -> Settings:
    """The inverse of :func:`to_tensor`; ``path`` is what errors call it.

    Raises
    ------
    ValueError : no such bytes, or what :func:`verify` refuses.
    """
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.uint8 or tensor.ndim != 1:
        raise ValueError(f"{path} holds no settings of a prompt, expected JSON as a vector of uint8")
    return verify(path, parse(Path(path), tensor.cpu().numpy().tobytes()))


def check_options(recorded: dict, options: dict) -> None:
    """Raise ValueError where tensors were saved under options that give them another meaning than ``options`` do.

    Options that only one side has are not compared: another version of dplearn may have known others.
    """
    for name, value in recorded.items():
        if name in options and name not in OF_TRAINING and options[name] != value:
            raise ValueError(
                f"the tensors were saved with {name}={shown(value)}, this prompt has {name}={shown(options[name])}"
            )
