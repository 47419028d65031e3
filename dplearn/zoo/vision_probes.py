"""What vit-mini and clip-mini know: recall on held-out icons, linear probes, and the same for layers never trained."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from .caption_tokenizer import tokenize
from .icon_images import RENDERED, pixels_of
from .icons import HELD_OUT_WORDS, KNOWN_WORDS, Icon, icons, render_all, task_splits
from .vision_models import fresh_like


def features_of(model, pixels: torch.Tensor) -> torch.Tensor:
    """What a linear probe sees of images (N, 3, 28, 28): vit-mini's CLS vector, clip-mini's image vector; (N, 96)."""
    with torch.no_grad():
        if model.config.model_type == "vit":
            features = [model.vit(pixel_values=p).last_hidden_state[:, 0] for p in pixels.split(256)]
        else:
            pooled = [model.vision_model(pixel_values=p).pooler_output for p in pixels.split(256)]
            features = [model.visual_projection(vector) for vector in pooled]
    return torch.cat(features)


def probe_data(task: str, name: str) -> dict[str, tuple[torch.Tensor, np.ndarray]]:
    """{split: (pixels, labels)} of a probe task.

    "digits" are scikit-learn's handwritten digits (500 train, 300 validation, 997 test), "new classes" the icons of
    `HELD_OUT_WORDS`, "new style" the known words in the font that was never seen (words with three drawings).
    """
    if task == "digits":
        from sklearn.datasets import load_digits

        data = load_digits()
        order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0)).numpy()
        pixels = pixels_of(name, torch.from_numpy(np.rint(data.images * (255 / 16)).astype(np.uint8)))
        bounds = {"train": order[:500], "validation": order[500:800], "test": order[800:]}
        return {split: (pixels[rows], data.target[rows]) for split, rows in bounds.items()}
    words = {"new classes": HELD_OUT_WORDS, "new style": KNOWN_WORDS}
    if task not in words:
        raise ValueError(f"task={task!r}: expected one of {['digits', *words]}")
    chosen = icons({"new classes": "classes", "new style": "style"}[task], words=words[task])
    drawings = Counter(label for label, _ in {(icon.label, icon.drawing) for icon in chosen})
    splits = task_splits(icon for icon in chosen if drawings[icon.label] >= 3)
    return {
        split: (
            pixels_of(name, torch.from_numpy(render_all(some, RENDERED))),
            np.array([icon.label for icon in some]),
        )
        for split, some in splits.items()
    }


def probe(model, data: dict) -> float:
    """Test accuracy of a linear probe (logistic regression on standardised features), its strength chosen on
    validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    seen = {split: features_of(model, pixels).double().numpy() for split, (pixels, _) in data.items()}
    best: tuple = (-1.0, None)
    for strength in (1e-3, 1e-2, 1e-1, 1.0):
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        fitted.fit(seen["train"], data["train"][1])
        score = fitted.score(seen["validation"], data["validation"][1])
        if score > best[0]:
            best = (score, fitted)
    return round(best[1].score(seen["test"], data["test"][1]), 4)


@torch.no_grad()
def recall(model, processor, chosen: Sequence[Icon], masks) -> float:
    """Share of right names of icons of `KNOWN_WORDS`, averaged over the words (a constant answer gets 1 / 40 or less).

    vit-mini chooses out of all its classes, clip-mini out of the 40 words in "an icon of ...".
    """
    if model.config.model_type == "vit":
        names, extra, pixels = model.config.id2label, {}, pixels_of("vit-mini", masks)
    else:
        names, pixels = KNOWN_WORDS, pixels_of("clip-mini", masks)
        extra = tokenize(processor.tokenizer, [f"an icon of {word}" for word in names])
    right = defaultdict(list)
    for rows in torch.arange(len(chosen)).split(256):
        output = model(pixel_values=pixels[rows], **extra)
        scores = output.logits_per_image if extra else output.logits
        for row, answer in zip(rows.tolist(), scores.argmax(-1).tolist()):
            right[chosen[row].label].append(names[answer] == chosen[row].label)
    return round(float(np.mean([np.mean(answers) for answers in right.values()])), 4)


def measure(name: str, folder: Path, seeds: Sequence[int] = (1, 2, 3)) -> dict:
    """{figure: {"pretrained": value, "random": [value for each seed]}}: exported weights and never trained ones.

    Figures: :func:`recall` on the held-out parts, and :func:`probe` on the tasks of :func:`probe_data`.
    """
    from . import load_folder

    pretrained, processor = load_folder(folder)
    controls = [fresh_like(pretrained.config, seed).eval() for seed in seeds]
    result = {}
    for part in ("icons", "style"):
        chosen = icons(part, words=KNOWN_WORDS)
        masks = torch.from_numpy(render_all(chosen, RENDERED))
        values = [recall(model, processor, chosen, masks) for model in (pretrained, *controls)]
        result[f"recall, part {part}"] = {"pretrained": values[0], "random": values[1:]}
    for task in ("digits", "new classes", "new style"):
        data = probe_data(task, name)
        values = [probe(model, data) for model in (pretrained, *controls)]
        result[f"linear probe, {task}"] = {"pretrained": values[0], "random": values[1:]}
    return result


def figures(name: str, run: bool = True) -> str:
    """The end of a backbone's pretraining, and :func:`measure`, recorded or (``run``) now."""
    from . import folder_of

    folder = folder_of(name)
    last = json.loads((folder / "losses.json").read_text())[-1]
    kind = "accuracy over all classes" if name == "vit-mini" else "zero-shot accuracy over 40 words"
    lines = [
        f"step {last['step']}, {last['samples']} samples, {last['minutes']} minutes, loss {last['loss']}",
        *(f"{kind}, part {part}: {value:.3f}" for part, value in last["held_out"].items()),
    ]
    probes = measure(name, folder) if run else json.loads((folder / "probes.json").read_text())
    for task, scores in probes.items():
        random = ", ".join(f"{score:.3f}" for score in scores["random"])
        lines.append(f"{task}: {scores['pretrained']:.3f} (random layers: {random})")
    return "\n".join(lines)
