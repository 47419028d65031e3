"""The shelf of backbones: their names, verified loading, and where another name comes from.

Some ship with this package, some are in other pip packages (:mod:`dplearn.packaged`). A name with an owner
("google/t5-base-lm-adapt"), or a folder, is loaded through transformers, by what its config says.
:mod:`dplearn.zoo` shows this to users. It stands apart, below everything else, since cards and checkpoints ask for the
names, and what made the backbones is far above them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dplearn import packaged
from dplearn.checks import is_whole

FOLDER = Path(__file__).parent / "zoo"
# What every backbone has, and what else those of one model type (config.json) have.
NEEDED = ("config.json", "model.safetensors")
ALSO_NEEDED = {
    "t5": ("tokenizer.json", "tokenizer_config.json"),
    "vit": ("preprocessor_config.json",),
    "clip": ("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    "llama": ("tokenizer.json", "tokenizer_config.json"),
    "bert": ("tokenizer.json", "tokenizer_config.json"),
}


def shipped() -> tuple[str, ...]:
    """The backbones that ship with this package: folders whose files have recorded hashes."""
    return tuple(sorted(path.parent.name for path in FOLDER.glob("*/sha256.json")))


def names() -> tuple[str, ...]:
    """The backbones that :func:`load` knows: those that ship, then those of other pip packages, installed or not.

    >>> "t5-mini" in names(), "smollm2-135m-instruct" in names()
    (True, True)
    """
    return *shipped(), *sorted(packaged.PACKAGED)


def origin(name: str | None) -> str:
    """Where a backbone of this name comes from: "zoo", "hub", "folder" or "unknown" (it has no name).

    A name that is a path, or that lies on this machine as a folder, is one of this machine: it helps nobody else.

    >>> [origin(name) for name in ("t5-mini", "google/flan-t5-small", "../t5", "")]
    ['zoo', 'hub', 'folder', 'unknown']
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not name or name in names():
        return "zoo" if name else "unknown"
    try:
        validate_repo_id(name)
    except HFValidationError:
        return "folder"
    return "folder" if Path(name).exists() else "hub"


def folder_of(name: str) -> Path:
    """The folder of a backbone; an unknown name is an error that lists the names.

    Raises what :func:`dplearn.packaged.folder_of` raises for a backbone of another package.
    """
    if name not in names():
        raise ValueError(
            f"name={name!r}: expected one of {list(names())}, or of a model elsewhere its repository ('owner/name') "
            "or its folder"
        )
    return packaged.folder_of(name) if name in packaged.PACKAGED else FOLDER / name


def model_type(folder: Path) -> str:
    """The kind of a backbone, from its config: "t5", "vit", "clip", "llama" or "bert"."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    if kind not in ALSO_NEEDED:
        raise ValueError(
            f"{folder / 'config.json'}: model_type={kind!r}, expected one of {list(ALSO_NEEDED)}"
        )
    return kind


def verify(folder: Path) -> None:
    """Compares every file with its recorded SHA-256. A missing or changed file is an error that names it."""
    recorded = json.loads((folder / "sha256.json").read_text())
    _require(folder, recorded, NEEDED)
    for file, wanted in recorded.items():
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file} is missing: reinstall the package")
        digest = packaged.sha256(folder / file)
        if digest != wanted:
            raise ValueError(
                f"{folder / file} is damaged or was changed: its SHA-256 is {digest}, expected {wanted}; "
                "reinstall the package"
            )
    _require(folder, recorded, ALSO_NEEDED[model_type(folder)])


def _require(folder: Path, recorded: Any, files: Any) -> None:
    for file in files:
        if file not in recorded:
            raise ValueError(
                f"{folder / 'sha256.json'} has no hash of {file}: expected one for each of {list(files)}"
            )


def load_folder(folder: Path, dtype: torch.dtype = torch.float32, num_labels: int | None = None) -> Any:
    """(model in evaluation mode, tokenizer or processor) from a verified folder; arguments as in `load`."""
    _check_dtype(dtype)
    verify(folder)
    return _from_folder(folder, folder.name, dtype, num_labels)


def _check_dtype(dtype: object) -> None:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype!r}: expected a floating point torch dtype such as torch.float32")


def _from_folder(folder: Path, name: str, dtype: torch.dtype, num_labels: int | None) -> Any:
    """As `load_folder`, of files that were compared with their hashes already."""
    import transformers

    kind = model_type(folder)
    check_labels(name, kind, num_labels)
    encoder = "AutoModel" if num_labels is None else "AutoModelForSequenceClassification"
    cls = {
        "t5": transformers.AutoModelForSeq2SeqLM,
        "vit": transformers.AutoModelForImageClassification,
        "clip": transformers.AutoModel,
        "llama": transformers.AutoModelForCausalLM,
        "bert": getattr(transformers, encoder),
    }[kind]
    with _no_progress_bar():
        if num_labels is None:
            model = cls.from_pretrained(folder, dtype=dtype)
        else:
            model = with_labels(cls, folder, num_labels, dtype=dtype)
    # What a checkpoint of a prompt records: a name, not a path of this machine.
    model.name_or_path = name
    return model.eval(), _processor(folder, kind)


def check_labels(name: str, kind: str, num_labels: int | None) -> None:
    """Raise ValueError where a backbone cannot have a head for so many labels."""
    _check_head(name, kind in ("vit", "bert"), num_labels)


def _check_head(name: str, has_head: bool, num_labels: int | None) -> None:
    if num_labels is None:
        return
    if not has_head:
        raise ValueError(f"num_labels={num_labels!r}: expected None, {name} has no classification head")
    if not is_whole(num_labels, 2):
        raise ValueError(f"num_labels={num_labels!r}: expected an integer of at least 2")


def with_labels(cls: Any, source: Any, num_labels: int, **options: Any) -> Any:
    """`cls.from_pretrained(source, **options)` with a head for another number of labels, freshly initialised.

    What transformers reports about such a load is held back where it is about the head alone: a fresh head is what
    was asked for. Where the head has that number of labels already it is loaded as it is.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    config.num_labels = num_labels  # transformers warns where this is passed to from_pretrained
    options |= dict(config=config, trust_remote_code=False)
    held, logger, report = [], logging.getLogger("transformers.modeling_utils"), None

    def passes(record: Any) -> bool:
        if "LOAD REPORT" in record.getMessage():
            held.append(record)
        return record not in held

    logger.addFilter(passes)
    try:
        model, report = cls.from_pretrained(
            source, ignore_mismatched_sizes=True, output_loading_info=True, **options
        )
    finally:
        logger.removeFilter(passes)
        if report is None or not _about_the_head(report, f"{model.base_model_prefix}."):
            for record in held:
                logger.handle(record)
    return model


def _about_the_head(report: Any, base: Any) -> Any:
    """Whether all tensors that were not loaded or not used stand behind the base model, or are its pooler's.

    (Another pooler than a prompt was trained with is noticed by its fingerprint.)
    """
    names = {
        *report["missing_keys"],
        *report["unexpected_keys"],
        *(key[0] for key in report["mismatched_keys"]),
    }
    return all(name.startswith(f"{base}pooler.") or not name.startswith(base) for name in names)


def _processor(folder: Path | str, kind: str) -> Any:
    """What turns data into a model's inputs. Images go through Pillow, with or without torchvision."""
    # By name: AutoImageProcessor itself wants torchvision in some versions.
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPProcessor, ViTImageProcessorPil

    if kind == "AutoModelForImageClassification":
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(folder)
    if kind == "vit":
        return ViTImageProcessorPil.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return (
        tokenizer
        if kind != "clip"
        else CLIPProcessor(CLIPImageProcessorPil.from_pretrained(folder), tokenizer)
    )


def _check_sentencepiece(source: Any) -> None:
    """Raise ModuleNotFoundError where a tokenizer comes as a SentencePiece model alone and cannot be read here."""
    from transformers.utils import cached_file, is_protobuf_available, is_sentencepiece_available

    def has(name: str) -> bool:
        return cached_file(source, name, _raise_exceptions_for_missing_entries=False) is not None

    if is_sentencepiece_available() and is_protobuf_available():
        return
    if has("spiece.model") and not has("tokenizer.json"):
        raise ModuleNotFoundError(
            f"the tokenizer of {str(source)!r} is a SentencePiece model, which needs two more packages: pip install "
            "sentencepiece protobuf (the extra 'hub')"
        )


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers shows a bar for every load; for a second of work it is noise."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load(name: str, dtype: torch.dtype = torch.float32, num_labels: int | None = None) -> Any:
    """(model, tokenizer) of a backbone, in evaluation mode; those of the shelf are checked against their SHA-256.

    For vit-mini the second is the image processor, for clip-mini the processor (tokenizer and image processor).
    smollm2-135m-instruct and minilm-l6 are real models of other pip packages: the first is converted once, which takes
    up to a minute and 540 MB in the user's cache (:mod:`dplearn.packaged`).

    "owner/name" is a repository of the hub, and a folder is one that ``save_pretrained`` wrote: transformers loads
    them, with the class that the config asks for; code of their own is never run.

    num_labels : classes of the head of an image classifier, or of a classifier on an encoder such as minilm-l6, which
        is bare without it.
        Another number than the model's own gives a fresh head, drawn from torch's global generator as in transformers:
        seed it before. An error for backbones without a classification head.

    Raises
    ------
    ModuleNotFoundError : a backbone of another package that is not installed; the message has the line for pip.
    ValueError : an unknown name, damaged files, an unusable dtype or number of labels.

    >>> model, tokenizer = load("t5-mini")
    >>> tokenizer.tokenize("Anna has a red ball.")
    ['▁anna', '▁has', '▁a', '▁red', '▁ball', '▁.']
    """
    _check_dtype(dtype)
    if _is_elsewhere(name):
        return _from_elsewhere(name, dtype, num_labels)
    if name not in packaged.PACKAGED:
        return load_folder(folder_of(name), dtype, num_labels)
    return _from_folder(packaged.folder_of(name), name, dtype, num_labels)


def _is_elsewhere(name: Any) -> bool:
    """Whether a name is a repository with its owner, or a folder: a bare word is one of the shelf, or a mistake."""
    return isinstance(name, str | Path) and name not in names() and ("/" in str(name) or Path(name).is_dir())


def check_folder(name: str | Path) -> None:
    """Raise ValueError where a name can only be a folder, and there is none: a hub would be asked for it."""
    if origin(str(name)) == "folder" and not Path(name).is_dir():
        raise ValueError(f"name={str(name)!r}: expected a folder that save_pretrained wrote, there is none")


def _from_elsewhere(name: str, dtype: torch.dtype, num_labels: int | None) -> Any:
    """As :func:`load`, from the hub or from a folder."""
    from transformers import AutoConfig

    check_folder(name)
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    cls, takes_labels = class_of(config, num_labels)
    _check_head(name, takes_labels, num_labels)
    _check_sentencepiece(name)
    with _no_progress_bar():
        if num_labels is None:
            model = cls.from_pretrained(name, dtype=dtype, trust_remote_code=False)
        else:
            model = with_labels(cls, name, num_labels, dtype=dtype)
    return model.eval(), _processor(
        name, config.model_type if config.model_type in ("vit", "clip") else cls.__name__
    )


def class_of(config: Any, num_labels: int | None) -> Any:
    """The class that loads a model of this kind, and whether it has a head for classes."""
    import transformers
    from transformers.models.auto import modeling_auto as known

    kind = type(config)
    rows = (
        (known.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING, transformers.AutoModel, False),
        (known.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, transformers.AutoModelForImageClassification, True),
        (known.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, transformers.AutoModelForSeq2SeqLM, False),
    )
    for mapping, cls, takes_labels in rows:
        if kind in mapping:
            return cls, takes_labels
    # BERT's kind is in both lists: a model that fills masks is an encoder.
    encoder = kind in known.MODEL_FOR_MASKED_LM_MAPPING
    if num_labels is not None and kind in known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return transformers.AutoModelForSequenceClassification, True
    if kind in known.MODEL_FOR_CAUSAL_LM_MAPPING and not encoder:
        return transformers.AutoModelForCausalLM, False
    return transformers.AutoModel, False
