"""Checkpoints of a prompt: one safetensors file and one JSON file, written so that a stop never leaves half of one.

The JSON file names the tensor file by its content (``prompt-<hash>.safetensors``). The tensors are written first under
their new name, then the JSON file is replaced in one atomic step, then the old tensor file is removed. A reader follows
the JSON file, so it sees the old checkpoint or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

FORMAT = 2  # 1 had task logits without the dimension of tasks
CONFIG = "prompt_config.json"


class Saved(NamedTuple):
    """A checkpoint as read: tensors by name, the options of PromptConfig, the description of its backbone."""

    tensors: dict[str, Tensor]
    options: dict
    backbone: dict


def save(folder: str | os.PathLike, tensors: dict[str, Tensor], options: dict, backbone: dict) -> None:
    """Write a checkpoint to ``folder``, which is made where missing; an older checkpoint in it is replaced."""
    from dplearn import __version__

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    name = f"prompt-{digest[:16]}.safetensors"
    document = {
        "format": FORMAT,
        "dplearn_version": __version__,
        "prompt": options,
        "backbone": backbone,
        "weights": {"file": name, "sha256": digest},
    }
    _write(folder / name, data)
    _write(folder / CONFIG, (json.dumps(document, indent=2) + "\n").encode())
    for old in folder.glob("prompt-*.safetensors"):
        if old.name != name:
            old.unlink()


def _write(path: Path, data: bytes) -> None:
    """Write a file in one step: to a temporary name first, flushed to the disk, then renamed."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner may read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(folder: str | os.PathLike) -> Saved:
    """Read and verify a checkpoint.

    Raises
    ------
    FileNotFoundError : ``folder`` holds no checkpoint.
    ValueError : a file is damaged or incomplete, or the format is unknown.
    """
    folder = Path(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"folder={str(folder)!r} holds no {CONFIG}, expected a folder written by save_pretrained"
        )
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged, expected JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else None
        raise ValueError(
            f"{path} has format={found!r}, expected {FORMAT}: it was written by another version of dplearn"
        )
    try:
        options, backbone = dict(document["prompt"]), dict(document["backbone"])
        name, digest = document["weights"]["file"], document["weights"]["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is incomplete, expected prompt, backbone and weights: {error!r}") from None
    weights = folder / Path(name).name  # never outside the folder
    if not weights.is_file():
        raise ValueError(f"{path} names {name!r}, but there is no such file beside it")
    data = weights.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(
            f"{weights} is damaged or truncated: {len(data)} bytes with another SHA-256 than {CONFIG} records"
        )
    return Saved(load_tensors(data), options, backbone)


def check_backbone(folder: str | os.PathLike, recorded: dict, found: dict) -> None:
    """Raise ValueError where the backbone at hand is not of the recorded kind."""
    for key in ("model_type", "class", "width", "vocabulary"):
        if recorded.get(key) != found[key]:
            raise ValueError(
                f"the prompt in {str(folder)!r} was trained for a backbone with {key}={recorded.get(key)!r}, "
                f"this one has {key}={found[key]!r}"
            )


def check_tensor(
    folder: str | os.PathLike, tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]
) -> None:
    """Raise ValueError where a tensor is missing or of another shape."""
    found = tuple(tensors[name].shape) if name in tensors else "no such tensor"
    if found != shape:
        raise ValueError(f"tensor {name!r} in {str(folder)!r}: expected shape {shape}, found {found}")


def fill(folder: str | os.PathLike, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load all tensors into ``module``; raise ValueError where names or shapes differ."""
    expected = module.state_dict()
    if set(tensors) != set(expected):
        raise ValueError(f"{str(folder)!r} holds the tensors {sorted(tensors)}, expected {sorted(expected)}")
    for name, tensor in expected.items():
        check_tensor(folder, tensors, name, tuple(tensor.shape))
    module.load_state_dict(tensors)
