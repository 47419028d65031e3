"""Does a place mean something to place-mini, and is there anything to win by choosing it for each input?

`measure` asks the model with given words at every place, and controls with random layers; `tuned` trains a vector. Both
are recorded beside the weights, and `python -m dplearn.zoo check place-mini` prints them with the gates.
"""

import json
import random
import statistics
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F

from ..config import PromptConfig
from ..tasks import place as tasks
from ..tasks.base import Task
from . import ANSWER_PREFIX, folder_of, load
from .evaluation import word_logits
from .place import SPECIAL

FILE = "places.json"
COUNT = 500  # texts of each figure
SEEDS = (1, 2, 3)  # of the controls and of the tuned vectors
# (word, copies before, copies behind)
CASES = (
    ("", 0, 0), *(("tell", n, 0) for n in (1, 4, 8)), *(("tell", 0, n) for n in (1, 4, 8)),
    ("tell", 1, 1), ("tell", 1, 7), ("tell", 4, 4), ("tell", 7, 1),
    ("where", 1, 0), ("where", 0, 1), ("where", 4, 4), ("where", 8, 0), ("where", 0, 8),
)  # fmt: skip


def given_prompt(model, tokenizer, name: str, length: int) -> torch.Tensor:
    """The given prompt of a task, (length, d): copies of the embedding of its word, for ``prompted(vectors=...)``.

    >>> model, tokenizer = load("place-mini")
    >>> given_prompt(model, tokenizer, "place/mixed", 2).shape
    torch.Size([2, 128])
    """
    (row,) = tokenizer(tasks.prompt_word(name), add_special_tokens=False)["input_ids"]
    return model.get_input_embeddings().weight[row].detach().repeat(length, 1)


def around(word: str, before: int, text: str, behind: int) -> str:
    """The text with copies of a word on both sides, as a prompt of its embedding stands there.

    >>> around("tell", 1, "a red ball .", 2)
    'tell a red ball . tell tell'
    """
    return " ".join([word] * before + [text] + [word] * behind)


def shares(model, tokenizer, word: str, before: int, behind: int) -> dict[str, float]:
    """How often the answer is the colour, the person or the place of its text, where a word is put around it."""
    task = tasks.load("place/mixed")
    examples = task.examples("test")[:COUNT]
    texts = [around(word, before, example["text"], behind) for example in examples]
    answers = [tasks.ANSWERS[i] for i in word_logits(model, tokenizer, task, texts).argmax(-1)]
    kinds = ("colour", "person", "place")
    return {
        kind: round(sum(a == e[kind] for a, e in zip(answers, examples)) / len(examples), 3) for kind in kinds
    }


def untrained(model, tokenizer, draws: int = 5) -> list[dict]:
    """`shares` where random words of the vocabulary stand before or behind: prompts that nobody trained; means."""
    task = tasks.load("place/mixed")
    examples = task.examples("test")[:COUNT]
    words = [tokenizer.decode([i]).strip() for i in range(len(SPECIAL), len(tokenizer))]
    kinds, rows = ("colour", "person", "place"), []
    for length in (1, 8):
        for before in (length, 0):
            generator, hits = random.Random(length), dict.fromkeys(kinds, 0)
            for _ in range(draws):
                drawn = " ".join(generator.choices(words, k=length))
                parts = [(drawn, e["text"]) if before else (e["text"], drawn) for e in examples]
                logits = word_logits(model, tokenizer, task, [" ".join(pair) for pair in parts])
                for answer, example in zip(logits.argmax(-1), examples):
                    for kind in kinds:
                        hits[kind] += tasks.ANSWERS[answer] == example[kind]
            total = draws * len(examples)
            row = {"before": before, "behind": length - before}
            rows.append(row | {kind: round(count / total, 3) for kind, count in hits.items()})
    return rows


def losses(model, tokenizer, task: Task, split: str, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy (N, length + 1) of each text with its given prompt at every split, and whether it is right."""
    examples, word = task.examples(split)[:COUNT], tasks.prompt_word(task.name)
    labels = torch.tensor([example["label"] for example in examples])
    by_split = [
        word_logits(model, tokenizer, task, [around(word, k, e["text"], length - k) for e in examples])
        for k in range(length + 1)
    ]
    loss = torch.stack([F.cross_entropy(logits, labels, reduction="none") for logits in by_split], dim=1)
    return loss, torch.stack([logits.argmax(-1) == labels for logits in by_split], dim=1).float()


def headroom(model, tokenizer, task: Task, length: int) -> dict:
    """What choosing a split for each input can win with the given prompt: accuracies and losses on test.

    The best fixed split is the one with the lowest loss on validation. "known" is each input at its known right split,
    without any look at losses, so no minimum over noise is in it; "oracle" takes the lowest loss of each input.
    """
    best = int(losses(model, tokenizer, task, "validation", length)[0].mean(0).argmin())
    loss, right = losses(model, tokenizer, task, "test", length)
    known = [tasks.right_splits(task.name, e["type"], length)[0] for e in task.examples("test")[: len(loss)]]
    rows = torch.arange(len(loss))

    def figures(values, choice):
        return {
            "best fixed": values[:, best], "random": values.mean(1), "known": values[rows, known],
            "oracle": values[rows, choice],
        }  # fmt: skip

    row = {"task": task.name, "length": length, "split": best}
    for key, values in (("accuracy", right), ("loss", loss)):
        chosen = figures(values, loss.argmin(1)).items()
        row[key] = {name: round(value.mean().item(), 3) for name, value in chosen}
    return row


def measure(model, tokenizer, seeds: Sequence[int] = SEEDS) -> dict:
    """The answers by word and place, beside controls with random layers, and the headroom of every task."""
    from .t5_model import fresh_model, shape_of

    controls = [fresh_model(model.config.vocab_size, seed, shape_of(model.config)).eval() for seed in seeds]
    asked = []
    for word, before, behind in CASES:
        row = {"word": word, "before": before, "behind": behind} | shares(
            model, tokenizer, word, before, behind
        )
        if before + behind == 1:
            random_shares = [shares(control, tokenizer, word, before, behind) for control in controls]
            row["random"] = [max(values.values()) for values in random_shares]
        asked.append(row)
    lengths = [(name, length) for length in (1, 4) for name in tasks.NAMES]
    rows = [headroom(model, tokenizer, tasks.load(name), length) for name, length in lengths]
    return {"asked": asked, "untrained": untrained(model, tokenizer), "headroom": rows}


def tuned(model, tokenizer, seeds: Sequence[int] = SEEDS, steps: int = 100) -> list[dict]:
    """Test accuracy of one learned vector in front, on the frozen model and on random layers, from a random row."""
    from ..experiments.tuning import Settings, tune_prompt
    from .t5_model import fresh_model, shape_of

    rows = []
    for name in ("place/fixed", "place/mixed", "place/none"):
        row: dict = {"task": name, "steps": steps, "pretrained": [], "random": []}
        for seed in seeds:
            control = fresh_model(model.config.vocab_size, seed, shape_of(model.config)).eval()
            for key, backbone in (("pretrained", model), ("random", control)):
                run = tune_prompt(
                    backbone, tokenizer, tasks.load(name), PromptConfig(length=1), Settings(steps=steps), seed,
                    ("test",), ANSWER_PREFIX,
                )  # fmt: skip
                row[key].append(round(run["scores"]["test"]["accuracy"], 3))
        rows.append(row)
    return rows


def judge(figures: dict) -> list[tuple[str, bool, str]]:
    """The gates from the figures: (gate, holds, why)."""
    asked = {(row["word"], row["before"], row["behind"]): row for row in figures["asked"]}
    pure = [r for r in asked.values() if r["word"] == "tell" and not (r["before"] and r["behind"])]
    wanted = [("colour", "person") if row["before"] else ("person", "colour") for row in pure]
    good = min(row[right] for row, (right, _) in zip(pure, wanted))
    bad = max(row[wrong] for row, (_, wrong) in zip(pure, wanted))
    coins = [
        r for r in asked.values() if not r["word"] or (r["word"] == "tell" and r["before"] and r["behind"])
    ]
    farthest = max(max(abs(row["colour"] - 0.5), abs(row["person"] - 0.5)) for row in coins)
    where = min(row["place"] for row in asked.values() if row["word"] == "where")
    control = max(value for row in asked.values() for value in row.get("random", ()))
    gains = {
        (r["task"], r["length"]): r["accuracy"]["known"] - r["accuracy"]["best fixed"]
        for r in figures["headroom"]
    }
    win = min(v for (task, _), v in gains.items() if task in ("place/mixed", "place/xor", "place/names"))
    none = max(abs(v) for (task, _), v in gains.items() if task in ("place/none", "place/fixed"))
    fixed = next(row for row in figures["tuned"] if row["task"] == "place/fixed")
    learned, untaught = min(fixed["pretrained"]), max(fixed["random"])
    return [
        ("1 before: the colour, behind: the owner, at least .98, the other at most .02", good >= 0.98 and bad <= 0.02,
         f"lowest {good:.3f}, highest of the other {bad:.3f}"),
        ("2 on both sides or absent: either, within .10 of one half", farthest <= 0.1, f"farthest {farthest:.3f}"),
        ("3 where: the place from everywhere, at least .98", where >= 0.98, f"lowest {where:.3f}"),
        ("4 random layers at most .10 (one constant colour is right on .083)", control <= 0.1,
         f"highest {control:.3f}"),
        ("5 something to win on mixed, xor and names (at least .40), nothing on fixed and none (at most .01)",
         win >= 0.4 and none <= 0.01, f"least {win:.3f}, most {none:.3f}"),
        ("6 one learned vector reaches .95 on place/fixed, random layers at most .20",
         learned >= 0.95 and untaught <= 0.2, f"lowest {learned:.3f}, random layers highest {untaught:.3f}"),
    ]  # fmt: skip


@cache
def recorded(name: str) -> dict:
    """The recorded figures of a backbone."""
    return json.loads((folder_of(name) / FILE).read_text())


def table(figures: dict) -> str:
    """The figures as text."""
    lines = [
        f"{'word':6} {'before':>6} {'behind':>6} {'colour':>7} {'owner':>7} {'place':>7}   random layers, highest"
    ]
    for row in figures["asked"]:
        controls = " ".join(f"{value:.3f}" for value in row.get("random", ()))
        lines.append(
            f"{row['word'] or '-':6} {row['before']:6d} {row['behind']:6d} {row['colour']:7.3f} {row['person']:7.3f} "
            f"{row['place']:7.3f}   {controls}".rstrip()
        )
    for row in figures["untrained"]:
        lines.append(
            f"{'random':6} {row['before']:6d} {row['behind']:6d} {row['colour']:7.3f} {row['person']:7.3f} "
            f"{row['place']:7.3f}"
        )
    names = ("best fixed", "random", "known", "oracle")
    head = " ".join(f"{name:>10}" for name in names)
    lines += ["", f"{'given prompt':14} {'l':>2} {'split':>5} {head}   (accuracy on test)"]
    for row in figures["headroom"]:
        values = " ".join(f"{row['accuracy'][name]:10.3f}" for name in names)
        lines.append(f"{row['task']:14} {row['length']:2d} {row['split']:5d} {values}")
    lines += ["", f"{'given prompt':14} {'l':>2} {'split':>5} {head}   (cross-entropy on test)"]
    for row in figures["headroom"]:
        values = " ".join(f"{row['loss'][name]:10.3f}" for name in names)
        lines.append(f"{row['task']:14} {row['length']:2d} {row['split']:5d} {values}")
    lines += [
        "",
        f"{'learned prefix':14} {'l':>2} {'steps':>5} {'pretrained':>10} {'random':>10}   (mean over seeds)",
    ]
    for row in figures["tuned"]:
        means = (statistics.mean(row[key]) for key in ("pretrained", "random"))
        lines.append(
            f"{row['task']:14} {1:2d} {row['steps']:5d} " + " ".join(f"{value:10.3f}" for value in means)
        )
    return "\n".join(lines)


def report(name: str = "place-mini", run: bool = True) -> str:
    """Figures and gates as text: recorded, or (``run``) measured now but for the tuned vectors."""
    figures = recorded(name)
    if run:
        figures = measure(*load(name)) | {"tuned": figures["tuned"]}
    verdicts = [
        f"{'holds ' if holds else 'FAILS '} gate {gate}: {why}" for gate, holds, why in judge(figures)
    ]
    return table(figures) + "\n\n" + "\n".join(verdicts)
