"""Stand-ins for what full-scale studies fetch: tiny random models and a few rows, in the hub's own files and folders.

``fill(home)`` writes a cache as the hub's client and `datasets` leave it behind, under the real names, so that the real
commands run offline: with ``environment(home)``, a process finds "google/t5-small-lm-adapt", "aps/super_glue", folders of
VTAB-1k with its lists, and folders of CoOp's sets with theirs. Shapes, file names, columns and label orders are those of
the published repositories; numbers and texts are made up.
"""

import json
import os
import random
import shutil
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from dplearn.experiments.costs import KNOWN
from dplearn.shelf import folder_of
from dplearn.tasks.superglue import FORMATS, REVISION

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WORDS = "a red ball in the garden near anna who keeps it".split()
ROWS = {"train": 120, "validation": 20}


def environment(home: Path) -> dict[str, str]:
    """Variables of a process that finds the stand-ins and asks nobody else."""
    own = {"HF_HOME": home, "VTAB": home / "vtab", "FGVC": home / "fgvc", "COOP": home / "coop"}
    return {
        **os.environ, **{name: str(path) for name, path in own.items()}, "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


def snapshot(home: Path, name: str) -> Path:
    """The folder in which the hub's client keeps a model, with the reference that leads to it."""
    root = home / "hub" / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    folder = root / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


def copy_of(name: str, folder: Path, *files: str) -> None:
    for file in files:
        shutil.copy(folder_of(name) / file, folder / file)


def t5(home: Path, name: str) -> None:
    """T5 1.1 as its repository has it: pickled weights, a head of its own, `tie_word_embeddings` false, and a tokenizer
    that is a SentencePiece model alone."""
    folder = snapshot(home, name)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 256}
    config = T5Config(
        **shape, feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0
    )
    weights = {key: value.clone() for key, value in T5ForConditionalGeneration(config).state_dict().items()}
    weights["lm_head.weight"] = torch.randn_like(weights["lm_head.weight"])
    torch.save(weights, folder / "pytorch_model.bin")
    entries = config.to_dict() | {
        "tie_word_embeddings": False,
        "architectures": ["T5ForConditionalGeneration"],
    }
    (folder / "config.json").write_text(json.dumps(entries, default=str))
    sentencepiece(folder / "spiece.model")
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 100}
    entries = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512} | special
    (folder / "tokenizer_config.json").write_text(json.dumps(entries))


def sentencepiece(path: Path) -> None:
    """A SentencePiece model of few words, with T5's numbers for padding, end and unknown words."""
    from sentencepiece import SentencePieceTrainer

    text = [
        f"{' '.join(WORDS)} yes no maybe hypothesis : premise : sentence1 : question : answer : paragraph : word"
    ] * 50
    SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_prefix=str(path.with_suffix("")), vocab_size=100, hard_vocab_limit=False,
        user_defined_symbols=["▁yes", "▁no", "▁maybe"], pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    path.with_suffix(".vocab").unlink()


def vit(home: Path, name: str) -> None:
    """ViT-B/16 of ImageNet-21k as its repository has it: a body without a head."""
    folder = snapshot(home, name)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    ViTModel(ViTConfig(**shape, image_size=32, patch_size=16)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def clip(home: Path, name: str) -> None:
    """CLIP with the tokenizer of clip-mini; its processor as in the repositories of 2021."""
    folder = snapshot(home, name)
    own = json.loads((folder_of("clip-mini") / "config.json").read_text())
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    text = {key: own["text_config"][key] for key in ("vocab_size", "max_position_embeddings", "eos_token_id",
                                                      "bos_token_id", "pad_token_id")}  # fmt: skip
    text["max_position_embeddings"] = 77
    vision = {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=text | shape, vision_config=vision | shape, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    copy_of("clip-mini", folder, "tokenizer.json", "tokenizer_config.json")
    size = {"crop_size": 32, "size": 32, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3,
            "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "feature_extractor_type": "CLIPFeatureExtractor"}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(size))


MAKERS = {"t5": t5, "vit": vit, "clip": clip}

# Columns of the hub's SuperGLUE, of its card: features of each task beside "idx" and "label".
COLUMNS = {
    "boolq": ("question", "passage"), "cb": ("premise", "hypothesis"), "rte": ("premise", "hypothesis"),
    "multirc": ("paragraph", "question", "answer"), "wic": ("word", "sentence1", "sentence2"),
}  # fmt: skip


def superglue(home: Path) -> None:
    """The five tasks in the cache of `datasets`, at the revision that the package asks for."""
    import datasets
    from datasets import ClassLabel, Dataset, Features, Value

    source = home / "made" / "super_glue"
    draw, configs = random.Random(0), []
    for key, columns in COLUMNS.items():
        idx = {name: Value("int32") for name in ("paragraph", "question", "answer")}
        features = Features(
            {name: Value("string") for name in columns}
            | {"idx": idx if key == "multirc" else Value("int32")}
            | {"label": ClassLabel(names=list(FORMATS[key].labels))}
        )
        for split in ("train", "validation"):
            numbers = range(ROWS[split])
            rows = {name: [" ".join(draw.choices(WORDS, k=6)) for _ in numbers] for name in columns}
            rows["label"] = [i % len(FORMATS[key].labels) for i in numbers]
            rows["idx"] = (
                [{"paragraph": i // 4, "question": i // 2, "answer": i} for i in numbers]
                if key == "multirc" else list(numbers)
            )  # fmt: skip
            (source / key).mkdir(parents=True, exist_ok=True)
            Dataset.from_dict(rows, features=features).to_parquet(
                source / key / f"{split}-00000-of-00001.parquet"
            )
        files = [{"split": split, "path": f"{key}/{split}-*"} for split in ("train", "validation")]
        configs.append({"config_name": key, "data_files": files})
    (source / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    for key in COLUMNS:
        builder = datasets.load_dataset_builder(str(source), key, cache_dir=str(home / "made" / "cache"))
        builder.download_and_prepare()
        shutil.copytree(builder.cache_dir, home / "datasets" / "aps___super_glue" / key / "0.0.0" / REVISION)


def images(folder: Path, count: int, classes: int) -> list[tuple[str, int]]:
    """Pictures of one colour for each class, and their (path, label)."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        label, path = number % classes, f"images/{number}.png"
        colour = tuple(random.Random(label).choices(range(256), k=3))
        Image.new("RGB", (20, 20), colour).save(folder / path)
        rows.append((path, label))
    return rows


def vtab(folder: Path, classes: int) -> None:
    """A set of VTAB-1k with the lists in which its splits are passed on; few pictures, named again and again."""
    rows = images(folder, 3 * classes, classes)
    for part, (name, count) in enumerate({"train800.txt": 800, "val200.txt": 200, "test.txt": 30}.items()):
        own = rows[part * classes : (part + 1) * classes]
        lines = [f"{path} {label}" for path, label in (own[i % classes] for i in range(count))]
        (folder / name).write_text("\n".join(lines) + "\n")


def fgvc(folder: Path, classes: int) -> None:
    """A set with VPT's lists."""
    rows = images(folder, 3 * classes, classes)
    for part, name in enumerate(("train.json", "val.json", "test.json")):
        pairs = {path: str(label + 1) for path, label in rows[part * classes : (part + 1) * classes]}
        (folder / name).write_text(json.dumps(pairs))


def coop(folder: Path, classes: int) -> None:
    """A set with CoOp's list: 17 training images of each class, so that 16 can be drawn."""
    rows = [(path, label, f"kind {label}") for path, label in images(folder, 25 * classes, classes)]
    parts = {
        "train": rows[: 17 * classes],
        "val": rows[17 * classes : 21 * classes],
        "test": rows[21 * classes :],
    }
    (folder / f"split_zhou_{folder.name}.json").write_text(json.dumps(parts))


def fill(home: Path, models=tuple(KNOWN)) -> None:
    """Write stand-ins for these models and for SuperGLUE."""
    torch.manual_seed(0)
    for name in models:
        MAKERS[KNOWN[name][0]](home, name)
    superglue(home)
