"""Checkpoints of a prompt: a safetensors file, a JSON file and a card, so that a stop never leaves half of one.

The JSON file names the tensor file by its content (``prompt-<hash>.safetensors``). The tensors are written first under
their new name, then the card, then the JSON file is replaced in one atomic step, then the old tensor file is removed.
A reader follows the JSON file, so it sees the old checkpoint or the new one and never waits; writers take turns
(:mod:`dplearn.files`). The card (``README.md``) is for people; nothing here reads it. Pickles are never loaded: they
can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from dplearn.checks import shown
from dplearn.files import MISSING, locked, opened, parse, read_json, remove_stale, write, write_locked
from dplearn.settings import FORMAT, UNSEALED, Weights, digest, digest_of, document, from_tensor, verify

CONFIG, CARD = "prompt_config.json", "README.md"
OURS = re.compile(r"prompt-[0-9a-f]{16}\.safetensors")  # the names that this module gives to tensor files
# In a card that dplearn wrote. A README.md without it is somebody's own and stays as it is.
CARD_MARK = (
    "<!-- dplearn wrote this card and rewrites it at every save. Remove this line to keep your own text. -->"
)
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
# What transformers.Trainer writes of a model that is none of its own: its state dict, and nothing beside.
TRAINER, PREFIX, SETTINGS = "model.safetensors", "prompt.", "_extra_state"
# In the header of a tensor file whose settings have a seal: without one they were changed.
SEAL = "sealed_settings"
EXPECTED = "a folder written by save_pretrained (PEFT's: see import_peft)"


class Saved(NamedTuple):
    """A checkpoint as read: tensors by name, the options of PromptConfig, the description of its backbone."""

    tensors: dict[str, Tensor]
    options: dict
    backbone: dict


# --- writing ---


def files(
    tensors: dict[str, Tensor], options: dict, backbone: dict, card: str | None = None
) -> dict[str, bytes]:
    """The files of a checkpoint by name, in the order in which they are written: the last one makes it valid."""
    data = pack(tensors, {SEAL: str(FORMAT)})  # one entry: safetensors writes several in any order
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"prompt-{sha256[:16]}.safetensors"
    settings = document(options, backbone, Weights(name, sha256, len(data)))
    cards = {} if card is None else {CARD: f"{card.rstrip()}\n\n{CARD_MARK}\n".encode()}
    return {name: data} | cards | {CONFIG: _text(settings)}


def _text(settings: dict) -> bytes:
    return (json.dumps(settings, indent=2) + "\n").encode()


def save(
    folder: str | os.PathLike,
    tensors: dict[str, Tensor],
    options: dict,
    backbone: dict,
    card: str | None = None,
) -> None:
    """Write a checkpoint to ``folder``, which is made where missing; an older checkpoint in it is replaced.

    ``card`` is the Markdown text of its README.md; a README.md that dplearn did not write is left alone. Several
    processes may save to one folder: it holds the checkpoint of the last one.

    Raises
    ------
    ValueError : a tensor holds numbers that are not finite, or an option is no JSON value. Nothing is written then.
    TimeoutError : another process has held the folder for a minute.
    """
    check_finite(folder, tensors, "cannot be saved to")
    written = files(tensors, options, backbone, card)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as has_lock:
        for name, data in written.items():
            if name != CARD or _may_replace(folder / CARD):
                write_locked(folder / name, data)
        old = [path for path in folder.glob("prompt-*.safetensors") if OURS.fullmatch(path.name)]
        remove_stale([path for path in old if path.name not in written], has_lock)


def _may_replace(card: Path) -> bool:
    return not os.path.lexists(card) or (card.is_file() and CARD_MARK.encode() in card.read_bytes())


def seal(folder: str | os.PathLike) -> None:
    """Seal the settings of a checkpoint again, after ``prompt_config.json`` was edited on purpose.

    Raises what :func:`read` raises about this file, except that its settings differ from the seal.
    """
    path = Path(folder) / CONFIG
    sealed = parse(path, read_text_of(Path(folder), CONFIG, EXPECTED))
    if sealed.get("format") != UNSEALED and isinstance(sealed.get("seal"), dict):
        options = sealed["seal"].get("options")
        sealed["seal"] = sealed["seal"] | {"sha256": digest(sealed, options)}
    verify(path, sealed)
    write(path, _text(sealed))


def pack(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file."""
    return save_tensors(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata
    )


def check_finite(folder: str | os.PathLike, tensors: dict[str, Tensor], verb: str = "is loaded from") -> None:
    """Raise ValueError where a floating-point tensor holds NaN or infinity; the message names it."""
    for name, tensor in tensors.items():
        narrow = tensor.is_floating_point() and tensor.element_size() < 2  # isfinite knows no 8-bit floats
        wrong = (~(tensor.float() if narrow else tensor).isfinite()).sum().item()
        if wrong:
            raise ValueError(
                f"tensor {shown(name)} {verb} {str(folder)!r} with {wrong} of {tensor.numel()} numbers that are NaN or "
                "infinite, expected finite ones alone: training has diverged"
            )


# --- reading ---


def read(folder: str | os.PathLike) -> Saved:
    """Read and verify a checkpoint; a folder of ``transformers.Trainer.save_model`` counts as one.

    Raises
    ------
    FileNotFoundError : ``folder`` holds no checkpoint.
    ValueError : a file is damaged or incomplete, its settings were changed, the format is unknown, numbers are not
        finite, a file is a pipe or another special one, or the weights are a pickle.
    """
    folder = Path(folder)
    if not os.path.lexists(folder / CONFIG) and (folder / TRAINER).exists():
        return _read_trainer(folder / TRAINER)
    path, patience = folder / CONFIG, 20
    while True:
        text = read_text_of(folder, CONFIG, EXPECTED)
        settings = parse(path, text)
        options, backbone, weights, _ = verify(path, settings)
        if weights is None:
            raise ValueError(f"{path} names no file of weights")
        name = _plain_name(path, weights.file)
        try:
            data = _read_weights(folder / name, weights)
            break
        except MISSING:  # a new checkpoint may have been written in between: follow it
            if read_text_of(folder, CONFIG, EXPECTED) == text:
                patience -= 1  # or a new one and then this one again
                time.sleep(0.005)
            if not patience:
                raise ValueError(f"{path} names {name!r}, but there is no such file beside it") from None
    tensors = unpack(folder / name, data)
    if "seal" not in settings and SEAL in _header(data):
        raise ValueError(
            f"{path} was changed after it was written: it has no seal, and {name} was written beside sealed settings. "
            "Save the prompt again"
        )
    check_finite(folder, tensors)
    return Saved(tensors, options, backbone)


def _header(data: bytes) -> dict[str, str]:
    """The text in the header of a safetensors file that was read already."""
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}


def _plain_name(path: Path, name: str) -> str:
    """The name of a file beside ``path``: never outside of its folder, and never a pickle."""
    name = Path(name.replace("\0", "")).name
    if len(name.encode(errors="replace")) > 255:
        raise ValueError(f"{path} names {shown(name)}, expected the name of a file")
    if Path(name).suffix != ".safetensors" and (path.parent / name).is_file():
        raise ValueError(f"{path} names {name!r}, expected a .safetensors file: pickles are never loaded")
    return name


def _read_weights(path: Path, weights: Weights) -> bytes:
    """The bytes of a tensor file whose size and hash are the recorded ones."""
    with opened(path, weights.bytes) as file:
        if (
            hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest() == weights.sha256
        ):  # in pieces: any size
            file.seek(0)
            return file.read()
        raise ValueError(
            f"{path} is damaged or truncated: {file.tell()} bytes with another SHA-256 than {CONFIG} records"
        )


def _read_trainer(path: Path) -> Saved:
    """The prompt in a Trainer's ``model.safetensors``, whose settings are a tensor of bytes among the others."""
    names = _names(path)
    if not any(name.startswith(PREFIX) for name in names):
        raise _missing(path.parent, CONFIG, EXPECTED)
    if SETTINGS not in names:
        raise ValueError(
            f"{path} holds the tensors of a prompt without its settings, expected a folder written by save_pretrained: "
            "make the model with dplearn.prompted and the same PromptConfig, give these tensors to load_state_dict and "
            "call save_pretrained"
        )
    tensors = read_tensors(path.parent, path.name, EXPECTED)
    settings = from_tensor(path, tensors.pop(SETTINGS))
    check_finite(path.parent, tensors)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    if settings.tensors not in (None, digest_of(tensors)):
        raise ValueError(
            f"{path} is damaged or was changed: its tensors have another SHA-256 than its settings record. If the "
            "change is meant: make the model with dplearn.prompted and the same PromptConfig, give these tensors to "
            "load_state_dict and call save_pretrained"
        )
    return Saved(tensors, settings.options, settings.backbone)


def _names(path: Path) -> set[str]:
    """The names of the tensors in a safetensors file, which may hold a whole backbone: only its header is read."""
    try:
        with opened(path), safe_open(path, "pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, expected safetensors: {error}") from None


def unpack(path: Path, data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file at ``path`` that holds ``data``; ValueError where it is not one."""
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, expected safetensors: {error}") from None
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        # A dtype that the format has and this torch does not.
        raise ValueError(
            f"{path} holds numbers of a kind that torch {torch.__version__} does not know: {error!r}"
        ) from None


def read_tensors(folder: Path, name: str, expected: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file without a recorded hash; raises what :func:`read_text_of` raises."""
    try:
        with opened(folder / name) as file:
            return unpack(folder / name, file.read())
    except MISSING:
        raise _missing(folder, name, expected) from None


def read_text_of(folder: Path, name: str, expected: str) -> bytes:
    """The bytes of a JSON file that makes a folder a checkpoint; where it is missing, an error that says what is there.

    Raises
    ------
    FileNotFoundError : no such file; ``expected`` says what the folder should be.
    ValueError : there are pickles in its place, it is a special file, or far too large.
    """
    try:
        return read_json(folder / name)
    except MISSING:
        raise _missing(folder, name, expected) from None


def _missing(folder: Path, name: str, expected: str) -> Exception:
    """The error for a folder without the file ``name``: another one where pickles lie in its place."""
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles:
        return ValueError(
            f"folder={str(folder)!r} holds {pickles[0]!r} and no {name}: pickles are never loaded, "
            "they can run code; expected safetensors"
        )
    return FileNotFoundError(f"folder={str(folder)!r} holds no {name}, expected {expected}")
