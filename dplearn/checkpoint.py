"""Checkpoints of a prompt: a safetensors file, a JSON file and a card, so that a stop never leaves half of one.

The JSON file names the tensor file by its content (``prompt-<hash>.safetensors``). The tensors are written first under
their new name, then the card, then the JSON file is replaced in one atomic step, then the old tensor file is removed. A
reader follows the JSON file, so it sees the old checkpoint or the new one. The card (``README.md``) is for people;
nothing here reads it. Pickles are never loaded: they can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

FORMAT = 2  # 1 had task logits without the dimension of tasks
CONFIG = "prompt_config.json"
CARD = "README.md"
# In a card that dplearn wrote. A README.md without it is somebody's own and stays as it is.
CARD_MARK = (
    "<!-- dplearn wrote this card and rewrites it at every save. Remove this line to keep your own text. -->"
)
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


class Saved(NamedTuple):
    """A checkpoint as read: tensors by name, the options of PromptConfig, the description of its backbone."""

    tensors: dict[str, Tensor]
    options: dict
    backbone: dict


def files(
    tensors: dict[str, Tensor], options: dict, backbone: dict, card: str | None = None
) -> dict[str, bytes]:
    """The files of a checkpoint by name, in the order in which they are written: the last one makes it valid."""
    from dplearn import __version__

    data = pack(tensors)
    digest = hashlib.sha256(data).hexdigest()
    name = f"prompt-{digest[:16]}.safetensors"
    document = {
        "format": FORMAT,
        "dplearn_version": __version__,
        "prompt": options,
        "backbone": backbone,
        "weights": {"file": name, "sha256": digest},
    }
    cards = {} if card is None else {CARD: f"{card.rstrip()}\n\n{CARD_MARK}\n".encode()}
    return {name: data} | cards | {CONFIG: (json.dumps(document, indent=2) + "\n").encode()}


def save(
    folder: str | os.PathLike,
    tensors: dict[str, Tensor],
    options: dict,
    backbone: dict,
    card: str | None = None,
) -> None:
    """Write a checkpoint to ``folder``, which is made where missing; an older checkpoint in it is replaced.

    ``card`` is the Markdown text of its README.md; a README.md that dplearn did not write is left alone.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = files(tensors, options, backbone, card)
    for name, data in written.items():
        if name != CARD or _may_replace(folder / CARD):
            write(folder / name, data)
    for old in folder.glob("prompt-*.safetensors"):
        if old.name not in written:
            old.unlink()


def _may_replace(card: Path) -> bool:
    return not card.exists() or (card.is_file() and CARD_MARK.encode() in card.read_bytes())


def pack(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file."""
    return save_tensors(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata
    )


def unpack(path: Path, data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file at ``path`` that holds ``data``; ValueError where it is not one."""
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, expected safetensors: {error}") from None


def write(path: Path, data: bytes) -> None:
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
    ValueError : a file is damaged or incomplete, the format is unknown, or the weights are a pickle.
    """
    folder = Path(folder)
    path = folder / CONFIG
    while True:
        text = read_text_of(folder, CONFIG, "a folder written by save_pretrained (PEFT's: see import_peft)")
        document = parse(path, text)
        if document.get("format") != FORMAT:
            found = document.get("format")
            raise ValueError(
                f"{path} has format={found!r}, expected {FORMAT}: it was written by another version of dplearn"
            )
        try:
            options, backbone = dict(document["prompt"]), dict(document["backbone"])
            name, digest = str(document["weights"]["file"]), document["weights"]["sha256"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is incomplete, expected prompt, backbone and weights: {error!r}"
            ) from None
        weights = folder / Path(name).name  # never outside the folder
        try:
            data = weights.read_bytes()
        except MISSING:
            if path.is_file() and path.read_bytes() != text:
                continue  # a new checkpoint was written in between: follow it
            raise ValueError(f"{path} names {name!r}, but there is no such file beside it") from None
        break
    if weights.suffix != ".safetensors":
        raise ValueError(f"{path} names {name!r}, expected a .safetensors file: pickles are never loaded")
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(
            f"{weights} is damaged or truncated: {len(data)} bytes with another SHA-256 than {CONFIG} records"
        )
    return Saved(unpack(weights, data), options, backbone)


def read_text_of(folder: Path, name: str, expected: str) -> bytes:
    """The bytes of a text file that makes a folder a checkpoint; where it is missing, an error that says what is there.

    Raises
    ------
    FileNotFoundError : no such file; ``expected`` says what the folder should be.
    ValueError : there are pickles in its place.
    """
    try:
        return (folder / name).read_bytes()
    except MISSING:
        refuse_pickles(folder, name)
        raise FileNotFoundError(f"folder={str(folder)!r} holds no {name}, expected {expected}") from None


def refuse_pickles(folder: Path, missing: str) -> None:
    """Raise ValueError where a folder without the file ``missing`` holds pickles."""
    found = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if found:
        raise ValueError(
            f"folder={str(folder)!r} holds {found[0]!r} and no {missing}: pickles are never loaded, "
            "they can run code; expected safetensors"
        )


def parse(path: Path, text: bytes) -> dict:
    """The JSON object that ``text`` holds; ValueError, which names ``path``, where it holds none."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged, expected JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds a {type(document).__name__}, expected a JSON object")
    return document


def check_backbone(folder: str | os.PathLike, recorded: dict, found: dict) -> None:
    """Raise ValueError where the backbone at hand is not of the recorded kind."""
    for key in ("model_type", "class", "width", "vocabulary", "vision_width", "patch", "labels"):
        if key in found and recorded.get(key) != found[key]:
            raise ValueError(
                f"the prompt in {str(folder)!r} was trained for a backbone with {key}={recorded.get(key)!r}, "
                f"this one has {key}={found[key]!r}"
            )


def check_tensor(
    folder: str | os.PathLike, tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]
) -> None:
    """Raise ValueError where a tensor is missing, of another shape, or not floating point."""
    found = tuple(tensors[name].shape) if name in tensors else "no such tensor"
    if found != shape:
        raise ValueError(f"tensor {name!r} in {str(folder)!r}: expected shape {shape}, found {found}")
    if not tensors[name].is_floating_point():
        raise ValueError(
            f"tensor {name!r} in {str(folder)!r}: expected floating point, found {tensors[name].dtype}"
        )


def fill(folder: str | os.PathLike, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load all tensors into ``module``, each in its own dtype; raise ValueError where names or shapes differ."""
    expected = module.state_dict()
    if set(tensors) != set(expected):
        raise ValueError(f"{str(folder)!r} holds the tensors {sorted(tensors)}, expected {sorted(expected)}")
    for name, tensor in expected.items():
        check_tensor(folder, tensors, name, tuple(tensor.shape))
    module.load_state_dict(
        {name: tensor.clone() for name, tensor in tensors.items()}, assign=True
    )  # not rounded
