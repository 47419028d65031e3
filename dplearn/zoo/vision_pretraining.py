"""How vit-mini and clip-mini are pretrained: on rendered icons and their names, on one CPU thread each.

vit-mini classifies icons by the first word of their name; clip-mini matches icons with captions made of their names
(Radford et al. 2021). Both see the part "train" of `dplearn.zoo.icons` only, drawn anew in every step.
"""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import torch

from ..files import write
from .icon_images import held_out_data, rendered
from .run_folder import KEEP_MEMORY, append_log, write_export, write_hashes
from .training_loop import train as train_steps
from .vision_objectives import OBJECTIVES
from .vision_probes import measure
from .vision_recipes import RECIPES


@contextmanager
def without_denormals():
    """Numbers below 1e-38 count as 0, which is faster; afterwards as usual, since this holds for the whole process."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@without_denormals()
def train(objective, folder: Path, held: dict, report_every: int = 100, stop: int | None = None) -> None:
    """Runs a recipe to its end or to step ``stop``, from folder/checkpoint.pt if it is there; logs and saves."""
    recipe, model = objective.recipe, objective.model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )

    def told(step: int, losses: list[float], seconds: float) -> None:
        report(objective, folder, held, step, losses, seconds)

    train_steps(
        model, optimizer, folder, recipe.steps, recipe.rate_at, objective.loss, told, report_every, stop
    )


@torch.no_grad()
def report(objective, folder: Path, held: dict, step: int, losses: list[float], seconds: float) -> None:
    """Appends a line to the log: mean loss since the last line, minutes, held-out accuracies; prints it too."""
    objective.model.eval()
    record = dict(
        step=step, samples=step * objective.recipe.batch, loss=round(sum(losses) / len(losses), 4),
        minutes=round(seconds / 60, 2), held_out=objective.held_out(held),
    )  # fmt: skip
    append_log(folder, record)


def pretrain(name: str, folder: Path) -> None:
    """Runs the recipe of a backbone in its run folder, which holds rendered icons, checkpoint and log."""
    os.environ.update(KEEP_MEMORY, TOKENIZERS_PARALLELISM="false")
    torch.set_num_threads(1)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    objective = OBJECTIVES[name](*rendered(folder, "train"), RECIPES[name])
    train(objective, folder, held_out_data(folder, name))


def export(name: str, folder: Path, target: Path) -> Path:
    """Writes a checkpoint as Hugging Face files (float16): processor, losses, probes and the SHA-256 of each file."""
    folder, target = Path(folder), Path(target)
    objective = OBJECTIVES[name](*rendered(folder, "train"), RECIPES[name])
    write_export(folder, target, objective.model, objective.processor())
    write(target / "probes.json", (json.dumps(measure(name, target), indent=0) + "\n").encode())
    write_hashes(target)
    return target
