"""Does the place of an untrained prompt matter to a real language model, before anything is learned?

    python -m dplearn.experiments.untrained_places --data superglue --out places.json

For each task the same texts are read with the same random prompts at several splits k (k = 0 is a postfix, k = l a
prefix), with a bare template and with a cue that stays behind the prompt. A bare template is read behind a prompt
vector where k < l and behind text where k = l, which is a difference of its own; the cue takes it away.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForSeq2Seq

from dplearn import shelf
from dplearn.checks import refuse, whole
from dplearn.config import PromptConfig
from dplearn.experiments import records
from dplearn.loading import prompted
from dplearn.tasks import Task, load

TASKS = ("cb", "rte", "wic", "boolq")
COMMAND = "--data superglue"  # in a record, without the path of a machine


@torch.no_grad()
def word_log_probabilities(
    backbone,
    tokenizer,
    task: Task,
    split: str = "validation",
    *,
    texts: int = 32,
    length: int = 10,
    splits: Sequence[int] = (0, 5, 10),
    prompts: int = 5,
    cue: str = "",
    max_length: int = 128,
    batch_size: int = 8,
    seed: int = 0,
) -> Tensor:
    """Log-probabilities of the label words, over the whole vocabulary: (prompts P, splits K, texts N, labels C).

    Parameters
    ----------
    backbone : a decoder-only language model.
    tokenizer : its tokenizer.
    texts : the first N examples of the split.
    length : l, the number of vectors.
    splits : how many of the vectors, k in 0..l, stand before the text.
    prompts : P random prompts, as :func:`dplearn.prompted` starts them, drawn with ``seed``; the same at all splits.
    cue : what is kept behind the prompt (``answer_prefix`` of :meth:`Task.encode`).

    Raises
    ------
    ValueError : a split outside of 0..l, fewer than two splits, or a number below 1.
    """
    for name, value in (("texts", texts), ("prompts", prompts), ("batch_size", batch_size)):
        whole(name, value)
    if len(set(splits)) < 2 or not all(isinstance(k, int) and 0 <= k <= length for k in splits):
        refuse("splits", splits, f"two or more different integers in 0..{length}")
    generator, log_probabilities = torch.Generator().manual_seed(seed), []
    collate = DataCollatorForSeq2Seq(tokenizer)
    rows: list[dict] = []
    for _ in range(prompts):
        vectors = None
        for k in splits:
            config = PromptConfig(length=length, position=k)
            model = prompted(backbone, config, vectors=vectors, generator=generator).eval()
            vectors = model.prompt.vectors.detach()
            if not rows:
                words = task.word_ids(tokenizer, model)
                rows = task.encode(tokenizer, split, model, max_length=max_length, answer_prefix=cue)[:texts]
            for start in range(0, len(rows), batch_size):
                batch = collate(rows[start : start + batch_size]).to(model.device)
                del batch["labels"]
                logits = model(**batch).logits[:, -1].float()
                log_probabilities.append(logits.log_softmax(-1)[:, words].cpu())
    return torch.cat(log_probabilities).view(prompts, len(splits), len(rows), len(words))


def summary(scores: Tensor, labels: Sequence[int]) -> dict:
    """What the place changes and what could be won by choosing it, from :func:`word_log_probabilities` (P, K, N, C).

    change : mean absolute difference of log-probabilities between the first and the last split.  flips : share of
    answers that differ between them.  spread : standard deviation over texts, the scale of both.

    Cross-entropy over the label words, means over prompts: losses (of each split), best_fixed (the split with the
    smallest mean), random (mean over splits), oracle_task (the best split of each prompt), oracle_instance (of each
    text and prompt, optimistic: a minimum over noise) and cross_fitted (the split of each text chosen on the other
    prompts, scored on this one; None with one prompt).
    """
    first, last = scores[:, 0], scores[:, -1]
    targets = torch.as_tensor(list(labels))
    relative = scores.log_softmax(-1)
    losses = -relative.gather(3, targets.expand(scores.shape[:3])[..., None])[..., 0]  # (P, K, N)
    per_split, prompts = losses.mean((0, 2)), len(losses)
    crossed = None
    if prompts > 1:
        others = (losses.sum(0) - losses) / (prompts - 1)
        crossed = losses.gather(1, others.argmin(1, keepdim=True)).mean().item()
    figures = {
        "change": (first - last).abs().mean().item(),
        "flips": (first.argmax(-1) != last.argmax(-1)).float().mean().item(),
        "spread": scores.std(2, correction=0).mean().item(),
        "accuracy": (scores.argmax(-1) == targets).float().mean((0, 2)).tolist(),
        "losses": per_split.tolist(),
        "best_fixed": per_split.min().item(),
        "random": losses.mean().item(),
        "oracle_task": losses.mean(2).amin(1).mean().item(),
        "oracle_instance": losses.amin(1).mean().item(),
        "cross_fitted": crossed,
    }
    return {name: _rounded(value) for name, value in figures.items()}


def _rounded(value):
    if isinstance(value, list):
        return [round(one, 4) for one in value]
    return None if value is None else round(value, 4)


COLUMNS = ("change", "flips", "spread", "best_fixed", "oracle_task", "oracle_instance", "cross_fitted")


def main(arguments=None) -> None:
    """Measure all tasks, with and without the cue; print a row for each as it is there, and write the record."""
    parser = argparse.ArgumentParser(
        prog="python -m dplearn.experiments.untrained_places", description=__doc__
    )
    parser.add_argument(
        "--data", required=True, help="folder with SuperGLUE's files and FewGLUE's dev32.jsonl"
    )
    parser.add_argument("--backbone", default="smollm2-135m-instruct")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=("multirc", *TASKS))
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=128, help="most tokens of a text with its cue")
    parser.add_argument("--cue", default=" answer:")
    parser.add_argument("--out", type=Path, help="JSON record, written after each row")
    options = parser.parse_args(arguments)
    backbone, tokenizer = shelf.load(options.backbone)
    rows, splits = [], (0, 5, 10)
    count = len(options.tasks) * 2 * options.prompts * len(splits) * options.texts
    print(f"{count} texts to read; a model of 135M parameters takes .3 to 1 s for each on one core")
    print("task".ljust(16), "cue".ljust(9), *(column.rjust(15) for column in COLUMNS))
    for name in options.tasks:
        task: Any = load(f"superglue/{name}", path=options.data, validation="dev32.jsonl")
        for cue in ("", options.cue):
            start = time.perf_counter()
            shape = dict(texts=options.texts, prompts=options.prompts, max_length=options.max_length)
            scores = word_log_probabilities(backbone, tokenizer, task, splits=splits, cue=cue, **shape)
            labels = [example["label"] for example in task.examples("validation")[: options.texts]]
            row = {"task": task.name, "source": task.source, "backbone": options.backbone, "cue": cue}
            row |= {"splits": list(splits), **shape} | summary(scores, labels)
            row["seconds"] = round(time.perf_counter() - start, 1)
            rows.append(row)
            print(
                task.name.ljust(16), repr(cue).ljust(9), *(str(row[c]).rjust(15) for c in COLUMNS), flush=True
            )
            if options.out:
                records.save(options.out, rows, f"python -m dplearn.experiments.untrained_places {COMMAND}")


if __name__ == "__main__":
    main()
