"""The studies of the book as lists of jobs, and the runner that works through them.

A job is a plain dict: what to train on what, with which seed and settings. Its result is a row of a record. Choices
(learning rates) are made by runs with `purpose="choice"`, which never look at the test split.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from dplearn.experiments import records

WORLD = ("world/boolq", "world/multirc", "world/rte", "world/cb", "world/wic")
DOCS = ("docs/library", "docs/signature", "docs/next")
SEEDS = (1, 2, 3, 4, 5)
CHOICE_SEEDS = (101,)


def _job(
    method: str, task: str, seed: int, purpose: str = "report", backbone: str = "t5-mini", **settings
) -> dict:
    return {
        "method": method,
        "task": task,
        "seed": seed,
        "purpose": purpose,
        "backbone": backbone,
        **settings,
    }


FULL_RATES = (5e-4, 1e-3, 2e-3)  # of AdamW on all weights
DOCS_STEPS = 150  # real text is harder: a longer budget, the same for all methods on it


def gates() -> list[dict]:
    """Is t5-mini a backbone on which prompt tuning means something? The table of `python -m dplearn.zoo check`."""
    both, full = ("prefix", "prefix, random layers"), "full fine-tuning"
    world = ("world/color", *WORLD)
    tasks = (*world, "world/owner", *DOCS)
    jobs = [_job(method, task, 0) for task in tasks for method in ("bag of words", "no prompt")]
    jobs += [_job("MiniLM probe", task, 0) for task in DOCS]
    jobs += [_job("prefix, untrained", task, seed, steps=0) for task in tasks for seed in SEEDS]
    jobs += [_job(method, task, seed) for task in world for seed in SEEDS for method in both]
    jobs += [_job(full, task, 101, "choice", learning_rate=rate) for task in world for rate in FULL_RATES]
    jobs += [_job(full, task, seed, learning_rate="chosen") for task in world for seed in SEEDS]
    jobs += [_job(method, task, seed, steps=DOCS_STEPS) for task in DOCS for seed in SEEDS for method in both]
    return jobs


POSITIONS = {"prefix": "prefix", "postfix": "postfix", "surround": 10, "learned per task": "task"}
POSITION_TASKS = ("world/color", "docs/signature")
RATES = (0.1, 0.3)


def position() -> list[dict]:
    """Chapter 05: prefix, postfix, an even surround and a position learned per task, in the same budget.

    Each method chooses its learning rate per task on the validation split, with a seed of its own. `world/color` is a
    task on which an untrained prompt is at chance: four questions fit each of its texts.
    """
    choices = [
        _job(method, task, seed, "choice", learning_rate=rate)
        for task in POSITION_TASKS for method in POSITIONS for rate in RATES for seed in CHOICE_SEEDS
    ]  # fmt: skip
    reports = [
        _job(method, task, seed, learning_rate="chosen")
        for seed in SEEDS for task in POSITION_TASKS for method in POSITIONS
    ]  # fmt: skip
    return choices + reports


ESTIMATED = {
    f"per instance, {name}": name for name in ("straight-through", "position-space", "score-function")
}
# What study `position` chose on validation for a learned position.
ESTIMATED_RATES = {"world/color": 0.3, "docs/signature": 0.1}


def estimators() -> list[dict]:
    """Which estimator should be the default? A position per instance learned with each, in the same number of steps.

    Scores on validation decide; those on test are reported beside them. "exact" costs 25 times a step and is not run.
    """
    return [
        _job(method, task, seed, learning_rate=rate, splits=["validation", "test"])
        for task, rate in ESTIMATED_RATES.items() for seed in SEEDS for method in ESTIMATED
    ]  # fmt: skip


IMAGE_TASKS = ("images/digits", "images/icons-classes")
IMAGE_RATES = (3e-3, 1e-2, 3e-2)  # of AdamW on prompts, controllers and heads
IMAGE_FULL_RATES = (3e-4, 1e-3, 3e-3)  # of AdamW on all weights


def vit() -> list[dict]:
    """Chapter 12: prompts with a trained head on vit-mini, a linear probe, full fine-tuning, and two controls.

    Each method chooses its learning rate per task on the validation split, among three, with a seed of its own. All
    see every training image; a seed draws the fresh head, the prompt and the order of the images.
    """
    from dplearn.experiments.images import FULL, METHODS

    def job(method, task, seed, purpose="report", **settings):
        return _job(method, task, seed, purpose, "vit-mini", **settings)

    choices = [
        job(method, task, seed, "choice", learning_rate=rate)
        for task in IMAGE_TASKS for method in METHODS
        for rate in (IMAGE_FULL_RATES if method == FULL else IMAGE_RATES) for seed in CHOICE_SEEDS
    ]  # fmt: skip
    reports = [
        job(method, task, seed, learning_rate="chosen")
        for seed in SEEDS for task in IMAGE_TASKS for method in METHODS
    ]  # fmt: skip
    return choices + reports


CLIP_TASK = "images/icons"
CLIP_RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # of AdamW on prompts, controllers and the probe
CLIP_FULL_RATES = (3e-5, 1e-4, 3e-4, 1e-3)  # of AdamW on all weights


def clip() -> list[dict]:
    """Chapter 13: prompts in the texts, in the images and in both on clip-mini, zero-shot, a probe, full fine-tuning.

    All methods learn from the base classes, and each chooses its learning rate on their validation split, with a seed
    of its own. A seed draws the first values of what is trained and the order of the images.
    """
    from dplearn.experiments.image_text import FULL, METHODS, ZERO_SHOT

    def job(method, seed, purpose="report", **settings):
        return _job(method, CLIP_TASK, seed, purpose, "clip-mini", **settings)

    choices = [
        job(method, seed, "choice", learning_rate=rate)
        for method in METHODS if method != ZERO_SHOT
        for rate in (CLIP_FULL_RATES if method == FULL else CLIP_RATES) for seed in CHOICE_SEEDS
    ]  # fmt: skip
    reports = [
        job(method, seed, **({} if method == ZERO_SHOT else {"learning_rate": "chosen"}))
        for seed in SEEDS for method in METHODS
    ]  # fmt: skip
    return choices + reports


STUDIES = {"gates": gates, "position": position, "estimators": estimators, "vit": vit, "clip": clip}


def chosen_rate(rows: list[dict], job: dict) -> float:
    """The learning rate with the best mean validation score among the choice runs of this job's method and task; the
    smallest of equals."""
    scores: dict[float, list[float]] = {}
    for row in rows:
        if row["purpose"] == "choice" and (row["method"], row["task"]) == (job["method"], job["task"]):
            scores.setdefault(row["settings"]["learning_rate"], []).append(
                records.headline(row, "validation")
            )
    if not scores:
        raise ValueError(
            f"no choice runs for method={job['method']!r} on task={job['task']!r}, expected some before {job}"
        )
    return max(sorted(scores), key=lambda rate: sum(scores[rate]) / len(scores[rate]))


def run_job(job: dict) -> dict:
    """Run one job in this process; returns its row."""
    from dplearn import tasks, zoo
    from dplearn.config import PromptConfig
    from dplearn.experiments import tuning

    task = tasks.load(job["task"])
    reported = [split for split in ("test", "test_wordings") if split in task.splits]
    splits = ["validation"] if job["purpose"] == "choice" else job.get("splits", reported)
    method, seed = job["method"], job["seed"]
    given = {name: job[name] for name in ("learning_rate", "bf16", "steps") if name in job}
    if isinstance(task, tasks.ImageTask):
        from dplearn.experiments import image_text, images

        if job["backbone"] == "clip-mini":
            splits = splits if job["purpose"] == "choice" else ["test", "test_new"]
            settings = replace(image_text.SETTINGS, **given)
            return job | image_text.tune(method, task, settings, seed, splits)
        settings = replace(images.SETTINGS, **given)
        return job | images.tune(method, task, settings, seed, splits, job["backbone"])
    if method in ("bag of words", "MiniLM probe"):
        probe = tuning.bag_of_words if method == "bag of words" else tuning.minilm_probe
        return job | probe(task, splits)
    backbone, tokenizer = zoo.load(job["backbone"])
    options = {"splits": splits, "answer_prefix": zoo.ANSWER_PREFIX}
    if method == "no prompt":
        row = tuning.zero_shot(backbone, tokenizer, task, **options)
    elif method == "full fine-tuning":
        settings = tuning.Settings(**{"learning_rate": 5e-4} | given)
        row = tuning.fine_tune(backbone, tokenizer, task, settings, seed, **options)
    else:
        if method.endswith("random layers"):
            backbone = zoo.random_control(job["backbone"], seed)
        if method in ESTIMATED:
            config = PromptConfig(length=20, position="instance", estimator=ESTIMATED[method])
        else:
            config = PromptConfig(length=20, position=POSITIONS[method.split(",")[0]])
        row = tuning.tune_prompt(backbone, tokenizer, task, config, tuning.Settings(**given), seed, **options)
    return job | row


def _start(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def run(jobs: list[dict], path: str | os.PathLike, workers: int = 1, bf16: bool = False) -> None:
    """Run the jobs that the record at ``path`` does not hold yet; the record is rewritten after each.

    ``bf16`` sets the precision of matrix products in training (see :class:`~dplearn.experiments.tuning.Settings`).
    """
    from dplearn.zoo.pretraining import KEEP_MEMORY

    os.environ.update(KEEP_MEMORY)  # read by the worker processes when they start
    path = Path(path)
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    done = {_key(row) for row in rows}
    pending = [job for job in jobs if _key(job) not in done]
    print(f"{len(jobs)} runs, {len(jobs) - len(pending)} done before", flush=True)
    context = multiprocessing.get_context("spawn")  # forked copies of a torch process can hang
    for stage in ("choice", "report"):
        batch = [job | {"bf16": bf16} for job in pending if job["purpose"] == stage]
        batch = [
            job | {"learning_rate": chosen_rate(rows, job)} if job.get("learning_rate") == "chosen" else job
            for job in batch
        ]
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(1,)) as pool:
            for future in as_completed([pool.submit(run_job, job) for job in batch]):
                rows.append(future.result())
                records.save(path, sorted(rows, key=_key))
                print(_line(rows[-1]), f"[{len(rows)}/{len(jobs)}]", flush=True)


def _key(job: dict) -> tuple:
    """What makes a run this run; a report's learning rate follows from the choices and is left out."""
    rate = job.get("learning_rate", 0) if job["purpose"] == "choice" else 0
    return (job["purpose"], job["task"], job["method"], rate, job["seed"])


def _line(row: dict) -> str:
    scores = ", ".join(f"{split} {records.headline(row, split):.3f}" for split in row["scores"])
    name = f"{row['purpose']:7} {row['task']:16} {row['method']:24} seed {row['seed']}"
    return f"{name}: {scores} ({row.get('seconds', 0)} s)"
