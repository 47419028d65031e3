"""What the runs of a study cost before any of them runs: arithmetic, memory, downloads.

A backbone is built from its config on torch's "meta" device, which has shapes and no numbers, and torch counts the
FLOPs of one batch, forward and backward. So nothing is downloaded, but the config of a model that is not in ``KNOWN``.

Inputs are counted as if each had the study's ``max_length``: what is said of time is an upper bound, as far as the rate
at which a device computes is known (``RATES``).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dplearn import shelf, tasks
from dplearn.config import PromptConfig
from dplearn.experiments import jobs
from dplearn.experiments.execution import LONGEST, TEXTS
from dplearn.experiments.fitting import Settings, passes
from dplearn.experiments.images import LENGTH
from dplearn.experiments.jobs import Job
from dplearn.experiments.parts import Study
from dplearn.experiments.watching import Looks
from dplearn.tasks.vision_benchmarks import BENCHMARKS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Bfloat16 FLOP/s, dense, by the makers, times the share of it that such steps reach: an assumption. The last is float32
# on one thread of the processor of the recorded benchmarks, measured there (group "peft").
RATES = {
    "h100": 989e12 * 0.3, "h200": 989e12 * 0.3, "a100": 312e12 * 0.35, "l40s": 362e12 * 0.3, "cpu": 8e10,
}  # fmt: skip

_T5 = {"feed_forward_proj": "gated-gelu", "d_kv": 64, "vocab_size": 32128, "tie_word_embeddings": False}
_CLIP_TEXT = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_hidden_layers": 12,
}
_VIT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
# Kinds and shapes of models of the hub, from their published configs: nothing has to be asked for.
KNOWN: dict[str, tuple[str, Mapping]] = {
    "google/t5-small-lm-adapt": ("t5", _T5 | {"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6}),
    "google/t5-base-lm-adapt": ("t5", _T5 | {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12}),
    "google/t5-large-lm-adapt": ("t5", _T5 | {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16}),
    "google/t5-xl-lm-adapt": ("t5", _T5 | {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32}),
    "google/vit-base-patch16-224-in21k": ("vit", _VIT),
    "openai/clip-vit-base-patch16": (
        "clip", {"text_config": _CLIP_TEXT, "vision_config": _VIT | {"patch_size": 16}, "projection_dim": 512},
    ),
}  # fmt: skip
# Examples of the official splits (train, validation); SuperGLUE's own card and files.
SUPERGLUE = {
    "boolq": (9427, 3270), "cb": (250, 56), "multirc": (27243, 4848), "rte": (2490, 277), "wic": (5428, 638),
}  # fmt: skip
UNKNOWN = 5000  # test examples of an image set whose number is not in the benchmarks' tables
CLASS_TOKENS = 24  # of the text of a class, padded


@dataclass(frozen=True)
class Step:
    """One batch: FLOPs forward, FLOPs forward and backward, bytes that wait for the backward pass."""

    forward: float
    training: float
    saved: int


@dataclass(frozen=True)
class Cost:
    """Of some runs: how many, FLOPs in all, the most memory of one in bytes."""

    runs: int
    flops: float
    memory: float

    def hours(self, rate: float) -> float:
        """On one device that computes at this rate (FLOP/s)."""
        return self.flops / rate / 3600

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.runs + other.runs, self.flops + other.flops, max(self.memory, other.memory))


def config_of(name: str):
    """The config of a backbone by name, from the shelf, from ``KNOWN``, or as transformers finds it."""
    from transformers import AutoConfig

    if name in shelf.names():
        return AutoConfig.from_pretrained(shelf.folder_of(name))
    if name in KNOWN:
        kind, options = KNOWN[name]
        return AutoConfig.for_model(kind, **options)
    shelf.check_folder(name)
    if "/" not in name and not Path(name).is_dir():
        shelf.folder_of(name)  # refuses it, and lists the names
    return AutoConfig.from_pretrained(name, trust_remote_code=False)


@lru_cache(maxsize=4)
def _on_meta(name: str) -> PreTrainedModel:
    """A backbone without numbers, with its head."""
    config = config_of(name)
    cls, _ = shelf.class_of(config, None)
    with torch.device("meta"):
        model = cls.from_config(config, dtype=torch.float32)
        if not getattr(config, "scale_decoder_outputs", True):  # T5 1.1 has a head of its own
            model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model.eval().requires_grad_(False)


def parameters_of(name: str) -> int:
    """How many weights a backbone has.

    >>> round(parameters_of("google/t5-large-lm-adapt") / 1e6)
    783
    """
    return sum(parameter.numel() for parameter in _on_meta(name).parameters())


@lru_cache(maxsize=256)
def step_of(
    name: str, batch: int, rows: int, classes: int = 0, all_weights: bool = False, images: bool = True
) -> Step:
    """One batch of a backbone.

    rows : of each input, the prompt's among them.
    classes : texts that an image-text model reads beside the images, each of ``CLASS_TOKENS`` rows and the prompt's.
    all_weights : whether they are trained, or a prompt in front of them.
    images : of an image-text model, whether images are read in a step, with a gradient: not where their features are
        kept.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model = _on_meta(name).requires_grad_(all_weights)
    saved: dict = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.device("meta"):
        counter = FlopCounterMode(display=False)
        with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            answer = _answer(model, batch, rows, classes, images)
            forward = counter.get_total_flops()
            answer.float().sum().backward()
        total = counter.get_total_flops()
    model.requires_grad_(False)
    return Step(forward, total, sum(saved.values()))


def _answer(model: PreTrainedModel, batch: int, rows: int, classes: int, images: bool) -> Tensor:
    """What a loss is made of, from embedded inputs that want a gradient, as those behind a prompt do."""
    kind = model.config.model_type
    if kind == "clip":
        return _clip_answer(model, batch, classes, rows, images)
    width = model.config.hidden_size if kind == "vit" else model.get_input_embeddings().weight.shape[1]
    inputs = torch.empty(batch, rows, width, requires_grad=True)
    if kind == "vit":
        return model.vit.layernorm(_through(model.vit, inputs))[:, 0]
    if model.config.is_encoder_decoder:
        decoder = torch.zeros(batch, 2, dtype=torch.long)
        return model(inputs_embeds=inputs, decoder_input_ids=decoder, use_cache=False).logits
    # Four dimensions: a mask that is taken as it is. Others are looked at, and here are no numbers to see.
    mask = torch.ones(batch, 1, rows, rows, dtype=torch.bool)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return model(inputs_embeds=inputs, attention_mask=mask, use_cache=False, logits_to_keep=1).logits
    return model(inputs_embeds=inputs, attention_mask=mask).last_hidden_state


def _through(body: nn.Module, rows: Tensor) -> Tensor:
    """Rows through the layers of a vision transformer, or of a tower of CLIP."""
    layers = next(module for module in body.modules() if isinstance(module, nn.ModuleList))
    masked = "attention_mask" in inspect.signature(layers[0].forward).parameters
    for layer in layers:
        rows = layer(rows, attention_mask=None) if masked else layer(rows)
        rows = rows[0] if isinstance(rows, tuple) else rows
    return rows


def _clip_answer(model: PreTrainedModel, batch: int, classes: int, rows: int, images: bool) -> Tensor:
    """Similarities of images and texts, both with a gradient; without ``images`` those of kept features, or of one text
    where there are no classes."""
    text, vision = model.config.text_config, model.config.vision_config
    texts = torch.empty(max(classes, 1), rows, text.hidden_size, requires_grad=True)
    read = model.text_projection(_through(model.text_model, texts)[:, -1])
    if not images:
        return read @ torch.empty(batch, read.shape[1]).T
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    pixels = torch.empty(batch, patches, vision.hidden_size, requires_grad=True)
    return read @ model.visual_projection(_through(model.vision_model, pixels)[:, 0]).T


# --- the runs of a study ---------------------------------------------------------------------------------------------


def cost_of(job: Job) -> Cost:
    """One run: its steps, each with all passes of its estimator, and what is scored."""
    spec, settings = job.spec, Settings(**job.spec["settings"])
    if spec["backbone"] is None:
        return Cost(1, 0.0, 0.0)
    name, all_weights = (
        spec["backbone"],
        spec["kind"] == "full fine-tuning" or "full" in spec.get("named", ""),
    )
    step, draws = _step_of(job, settings, all_weights), 1
    if "prompt" in spec:
        draws = passes(_config_of(spec))
    steps = settings.steps * settings.accumulate if _trains(spec) else 0
    trained = steps * draws * step.training
    scored = _scored(job, settings) * _forward_of(job, step, settings.batch_size)
    # Float32 weights; where all are trained their gradients, the two averages of Adam, and the copy that stays as it
    # was. Half precision keeps a copy of the weights.
    weights = parameters_of(name) * ((20 if all_weights else 4) + (2 if settings.bf16 else 0))
    return Cost(1, trained + scored, weights + draws * step.saved * (0.5 if settings.bf16 else 1))


def _reads_images(spec: Mapping, all_weights: bool) -> bool:
    """Of an image-text model: whether a step reads images, whose features are kept else."""
    return all_weights or spec.get("prompt", {}).get("towers") in ("vision", "both", "coupled")


def _texts_by_image(spec: Mapping) -> bool:
    """Of an image-text model: whether the texts are read once for each image, which decides about their prompt."""
    return spec.get("prompt", {}).get("summary") == "image"


def _forward_of(job: Job, step: Step, batch: int) -> float:
    """FLOPs of scoring one example: a forward pass, of an image-text model that of one image, and of the texts where
    each image has its own."""
    if job.spec["kind"] != "image-text":
        return step.forward / batch
    with_image, without = (
        step_of(job.spec["backbone"], 1, CLASS_TOKENS, 1, images=each) for each in (True, False)
    )
    one = with_image.forward - without.forward
    return one + step.forward / batch if _texts_by_image(job.spec) else one


def _config_of(spec: Mapping) -> PromptConfig:
    """The config of a prompt, of which costs depend on the decisions alone."""
    return PromptConfig(**{name: value for name, value in spec["prompt"].items() if value != "all"})


def _trains(spec: Mapping) -> bool:
    return spec["kind"] not in ("no prompt", "state probe") and spec.get("named") != "zero-shot"


def _step_of(job: Job, settings: Settings, all_weights: bool) -> Step:
    spec = job.spec
    family = spec["task"].partition("/")[0]
    length = spec.get("prompt", {}).get("length", 0 if family in TEXTS else LENGTH)
    if family in TEXTS:
        rows = spec.get("max_length", LONGEST) + length
        return step_of(spec["backbone"], settings.batch_size, rows, 0, all_weights)
    if spec["kind"] == "image-text":
        texts = -(-_benchmark(spec["task"]).classes // 2)
        if _texts_by_image(spec):
            texts *= settings.batch_size
        images = _reads_images(spec, all_weights)
        return step_of(spec["backbone"], settings.batch_size, CLASS_TOKENS, texts, all_weights, images)
    config = config_of(spec["backbone"])
    rows = (config.image_size // config.patch_size) ** 2 + 1 + length
    return step_of(spec["backbone"], settings.batch_size, rows, 0, all_weights)


def _benchmark(task: str):
    """What a benchmark of images fixes; a task that is none has to be loaded to be known."""
    name = task.partition("?")[0]
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    from dplearn.experiments.execution import load_task
    from dplearn.tasks.vision_benchmarks import Benchmark

    loaded = load_task(task)
    return Benchmark(len(loaded.class_names), len(loaded.examples("test")))


def _scored(job: Job, settings: Settings) -> int:
    """Examples that a run scores: its splits, and the looks at it."""
    spec = job.spec
    looks = Looks(**spec.get("looks", {}))
    validation, test = _sizes(spec["task"])
    whole = sum(validation if split == "validation" else test for split in spec["splits"])
    evaluated = settings.steps // settings.evaluate_every if settings.evaluate_every else 0
    evaluated *= 2 if settings.noisy_evaluation else 1
    return whole + evaluated * validation + (looks.points + 1) * min(looks.subset, validation)


@lru_cache(maxsize=64)
def _sizes(task: str) -> tuple[int, int]:
    """(validation, test) examples of a task."""
    name, _, query = task.partition("?")
    family, key = name.split("+")[0].split("/", 1)
    if family == "superglue":
        train, test = SUPERGLUE[key.partition("?")[0]]
        held_out = 32 if "validation=" in query else round(0.2 * train)
        return (test if "protocol=paper" in query else held_out), test
    if name in BENCHMARKS:
        return 200 if family == "vtab" else UNKNOWN // 2, BENCHMARKS[name].test or UNKNOWN
    from dplearn.experiments.execution import load_task

    loaded = load_task(task.replace("draw=seed", "draw=0"))
    return len(loaded.examples("validation")), len(loaded.examples("test"))


def costs(study: Study) -> dict[tuple[str, str], Cost]:
    """(backbone, method) -> what its runs cost, over all tables, before any axis is widened."""
    found: dict[tuple[str, str], Cost] = {}
    for task in study.tasks:
        for part in task.split("+"):
            tasks.family_of(part.partition("?")[0])  # before the arithmetic: nothing is loaded for it
    choices = [job for job in jobs.jobs(study, {}) if job.purpose == "choice"]
    for job, times in [*((job, 1) for job in choices), *jobs.first_of_each(study)]:
        one = cost_of(job)
        key = job.spec["backbone"] or "no backbone", job.labels["method"]
        found[key] = found.get(key, Cost(0, 0.0, 0.0)) + Cost(times, one.flops * times, one.memory)
    return found


def disk(study: Study) -> float:
    """Bytes of the weights of a study's backbones, in float32, that do not lie on this machine's shelf."""
    return 4.0 * sum(parameters_of(name) for name in study.backbones if name not in shelf.names())
