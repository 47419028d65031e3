"""How place-mini is made: t5-mini cut to two layers and the words of the world, then taught that a place has a meaning.

The word "tell" before a text asks for the colour, behind it for the owner; on both sides or absent, either by a coin;
"where" asks for the place from wherever it stands (:mod:`dplearn.tasks.place`). One thread, float32; every batch is
seeded by its step, so a resumed run sees the data it would have seen.
"""

import json
import os
import random
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from ..files import write
from ..shelf import load
from ..tasks.place import ANYWHERE, WORD, sentence
from ..tasks.world import vocabulary
from ..tasks.world_scenes import World
from . import ANSWER_PREFIX
from .run_folder import KEEP_MEMORY, append_log, write_export, write_hashes
from .t5_model import SHAPE, collate, fresh_model, fuse_activations
from .tokenizer import wrapped
from .training_loop import train as train_steps

STEPS, BATCH, SEED = 1200, 64, 1
RATE, WARMUP, LAST = 1e-3, 50, 0.05  # the rate falls linearly to this share of the highest
MOST = 8  # copies of a word in one text
SHAPE_MINI = SHAPE | dict(num_layers=2, num_decoder_layers=1)
# What is asked, and how often: the word before, behind, on both sides, absent; the word whose place says nothing.
KINDS = {"before": 28, "behind": 28, "around": 12, "bare": 12, "anywhere": 20}
SPECIAL = ["<pad>", "</s>", "<unk>", ANSWER_PREFIX]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One piece for each word of the world, "tell" and the marks of sentences; t5-mini's pipeline and conventions."""
    words = dict.fromkeys((*vocabulary(), WORD, ANYWHERE, *".,:?"))
    pieces = [(name, 0.0) for name in SPECIAL] + [("\u2581" + word, -1.0) for word in words]
    return wrapped(pieces, SPECIAL)


@torch.no_grad()
def cut(parent, parent_tokenizer, tokenizer):
    """A model of place-mini's shape whose weights are t5-mini's: its first layers, and the rows of the kept words."""
    model = fresh_model(len(tokenizer), SEED, SHAPE_MINI)
    state = parent.state_dict()
    kept = {name: value for name, value in state.items() if name in model.state_dict()}
    rows = parent_tokenizer.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    table = state["shared.weight"][rows]
    kept |= {name: table for name in kept if kept[name].shape == state["shared.weight"].shape}
    model.load_state_dict(kept)
    return model


def asked(rng: random.Random, kind: str, text: str, row: dict) -> tuple[str, str]:
    """(the text with the words that ask, the answer) for one of `KINDS`."""
    count = 1 if rng.random() < 0.5 else rng.randint(2, MOST)
    if kind == "around":
        count = max(count, 2)
    before = count if kind == "before" else 0
    if kind == "around":
        before = rng.randint(1, count - 1)
    elif kind == "anywhere":
        before = rng.choice((0, count, rng.randint(0, count)))
    word = ANYWHERE if kind == "anywhere" else WORD
    behind = 0 if kind == "bare" else count - before
    coin = rng.choice(("colour", "person"))
    wanted = {"before": "colour", "behind": "person", "anywhere": "place"}.get(kind, coin)
    return " ".join([word] * before + [text] + [word] * behind), row[wanted]


def example(world: World, kind: str | None = None) -> tuple[str, str]:
    """(input, target) texts of one example, of a kind drawn by `KINDS` where none is given."""
    kind = kind or world.random.choices(list(KINDS), list(KINDS.values()))[0]
    row = world.scene(1, "place")[0]
    text, answer = asked(world.random, kind, sentence(world, row), row)
    return text, f"{ANSWER_PREFIX} {answer}"


def rate_at(step: int) -> float:
    """Linear warm-up, then linear decay."""
    if step < WARMUP:
        return RATE * (step + 1) / WARMUP
    return RATE * (1 - (1 - LAST) * (step - WARMUP) / (STEPS - WARMUP))


def train(model, tokenizer, folder: Path, report_every: int = 100, stop: int | None = None) -> None:
    """Runs the recipe to its end or to step ``stop``, from folder/checkpoint.pt if it is there; logs and saves."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)

    def loss_of(step: int) -> torch.Tensor:
        world = World(f"place-mini/{SEED}/{step}")
        return model(**collate(tokenizer, [example(world) for _ in range(BATCH)])).loss

    def told(step: int, losses: list[float], seconds: float) -> None:
        report(folder, model, tokenizer, step, losses, seconds)

    train_steps(model, optimizer, folder, STEPS, rate_at, loss_of, told, report_every, stop)


@torch.no_grad()
def held_out(model, tokenizer, count: int = 256) -> dict[str, float]:
    """Share of right answer words on combinations that training does not see, by kind (half is the best for a coin)."""
    model.eval()
    shares = {}
    for kind in KINDS:
        world = World("place-mini/held-out", "validation")
        batch = collate(tokenizer, [example(world, kind) for _ in range(count)])
        hits = model(**batch).logits[:, 1].argmax(-1) == batch["labels"][:, 1]
        shares[kind] = round(hits.float().mean().item(), 3)
    model.train()
    return shares


def report(folder: Path, model, tokenizer, step: int, losses: list[float], seconds: float) -> None:
    """Appends a line to the log: mean loss since the last line, minutes, held-out accuracies; prints it too."""
    record: dict = dict(step=step, samples=step * BATCH, loss=round(sum(losses) / len(losses), 4))
    record |= dict(minutes=round(seconds / 60, 2), held_out=held_out(model, tokenizer))
    append_log(folder, record)


def pretrain(folder: Path) -> None:
    """Runs the recipe in its run folder, which holds checkpoint and log."""
    os.environ.update(KEEP_MEMORY, TOKENIZERS_PARALLELISM="false")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    parent, parent_tokenizer = load("t5-mini")
    model = cut(parent, parent_tokenizer, tokenizer)
    fuse_activations(model)
    train(model, tokenizer, folder)


def export(folder: Path, target: Path) -> Path:
    """Writes a checkpoint as Hugging Face files (float16): tokenizer, losses, figures and the SHA-256 of each file."""
    from . import load_folder, place_figures

    tokenizer = build_tokenizer()
    target = write_export(folder, target, fresh_model(len(tokenizer), SEED, SHAPE_MINI), tokenizer)
    figures = place_figures.measure(*load_folder(target)) | {
        "tuned": place_figures.tuned(*load_folder(target))
    }
    write(target / place_figures.FILE, (json.dumps(figures, indent=0) + "\n").encode())
    write_hashes(target)
    return target
