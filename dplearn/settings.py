"""The settings of a saved prompt, as JSON under a seal: its options, its backbone, and which file holds its tensors.

The seal is the SHA-256 of all else in the file, in canonical JSON, with the list of the options. A file that was
edited, or that lost an option (whose default would then make another prompt of the same tensors), is refused and not
loaded as something else. Format 3 sealed four of its parts; format 2, written before there were seals, is read as it
always was. The same settings also travel as a tensor of bytes, for programs that save tensors alone
(:func:`to_tensor`), and then hold the SHA-256 of these tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dplearn.checks import is_whole, shown
from dplearn.files import parse
from dplearn.shelf import origin
from dplearn.version import __version__

# 3 sealed four parts of its settings and nothing else; 2 had no seal; 1 had task logits without the dimension of tasks.
FORMAT, SEALED_IN_PARTS, UNSEALED = 4, 3, 2
PARTS = ("format", "prompt", "backbone", "weights")
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
    """Verified settings: the options of PromptConfig, the description of the backbone, the tensor file; of tensors that
    travel with their settings the SHA-256, where it was known."""

    options: dict
    backbone: dict
    weights: Weights | None
    tensors: str | None = None


def document(
    options: dict, backbone: dict, weights: Weights | None = None, tensors: str | None = None
) -> dict:
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
    settings |= {} if tensors is None else {"tensors": tensors}
    known = sorted(options)
    return settings | {"seal": {"options": known, "sha256": digest(settings, known)}}


def digest(document: dict, known: list[str]) -> str:
    """SHA-256 of the settings in canonical JSON: sorted keys, no spaces, no numbers that are not finite.

    ``known`` : the names of the options; ``document`` : all else, with or without its seal.
    """
    if document.get("format") == SEALED_IN_PARTS:
        sealed = {key: document.get(key) for key in PARTS} | {"options": known}
    else:
        sealed = {"settings": {key: document[key] for key in document if key != "seal"}, "options": known}
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
    if version not in (FORMAT, SEALED_IN_PARTS, UNSEALED) or not is_whole(version):
        raise ValueError(
            f"{path} has format={shown(version)}, expected {FORMAT}: it was written by another version of dplearn"
        )
    try:
        options, backbone, weights = document["prompt"], document["backbone"], document["weights"]
        if not isinstance(options, dict) or not isinstance(backbone, dict):
            raise TypeError("prompt and backbone have to be objects")
        weights = None if weights is None and version != UNSEALED else _weights(weights, version)
        seal = document["seal"] if version != UNSEALED else None
        known, sha256 = (list(seal["options"]), str(seal["sha256"])) if seal else ([], None)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is incomplete, expected prompt, backbone and weights"
            f"{' with their seal' if version != UNSEALED else ''}: {shown(error)}"
        ) from None
    missing = [name for name in known if name not in options]
    if missing:
        raise ValueError(f"{path} has lost the option {shown(missing[0])}, which it was written with")
    if sha256 is None and "seal" not in document:
        return Settings(options, backbone, weights)
    if sha256 is None or digest(document, known) != sha256:
        raise ValueError(
            f"{path} was changed after it was written: its settings have another SHA-256 than its seal records. "
            "Save the prompt again, or, if the change is meant, call dplearn.checkpoint.seal(folder)"
        )
    tensors = document.get("tensors")
    return Settings(options, backbone, weights, None if tensors is None else str(tensors))


def _weights(described: dict, version: int) -> Weights:
    size = described["bytes"] if version != UNSEALED else None
    if version != UNSEALED and not is_whole(size):
        raise TypeError(f"weights has bytes={size!r}, expected an integer")
    return Weights(str(described["file"]), str(described["sha256"]), size)


def digest_of(tensors: Mapping[str, Tensor]) -> str | None:
    """SHA-256 of tensors with their names, kinds and shapes; None where this process does not hold all of them.

    (A share of a tensor, in several processes, is of a kind of its own, or has no storage.)
    """
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta:
            return None
        rows = tensor.detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(rows.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def to_tensor(options: dict, backbone: dict, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
    """The sealed settings as bytes, (n,) uint8, to stand beside a prompt's ``tensors`` in a state dict."""
    sha256 = None if tensors is None else digest_of(tensors)
    text = json.dumps(document(options, backbone, tensors=sha256)).encode()
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
