"""How t5-mini is pretrained: its stages, in data-parallel processes.

One thread per process with averaged gradients is faster on a busy CPU than one process with many threads (no spinning
at barriers). Every block of batches is seeded by (seed, rank, block), so a resumed run sees the data it would have
seen. Everything is float32: bfloat16 is several times slower on processors without units for it.
"""

import json
import os
import random
import time
import zlib
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from .mixture import STREAMS, Mixer
from .noise import NOISE
from .run_folder import (
    KEEP_MEMORY,
    append_log,
    load_checkpoint,
    save_checkpoint,
    write_documents,
    write_export,
)
from .stages import BLOCK, Stage, plan, total_steps
from .t5_model import SEED, collate, forward, fresh_model, fuse_activations, parameter_groups

# First binding, in short rows; half of the rows are of words from an open vocabulary.
SHORT = dict(recall_short=36, recall_words=20, recall_told=22, judge_short=10, senses=5, color=4, owner=3)
# Then binding in sentences, with claims judged at sentinels; a first look at the instructed tasks and at real text.
SENTENCES = dict(
    recall_short=4,
    recall_words=7,
    recall_told=22,
    judge_short=15,
    judge_told=20,
    member=8,
    senses=7,
    boolq=3,
    multirc=3,
    rte=3,
    cb=2,
    wic=2,
    color=1,
    owner=1,
    bare=1,
    documents_corrupt=2,
    field=1,
)
# Binding is there: the instructed tasks, real text, and the coin where nothing is asked.
TASKS = dict(
    boolq=7,
    multirc=7,
    rte=8,
    cb=9,
    wic=9,
    color=3,
    owner=3,
    bare=10,
    bare_documents=3,
    recall_told=7,
    recall_words=3,
    judge_short=2,
    judge_told=8,
    judge_open=8,
    judge_denied=4,
    senses=6,
    told_corrupt=1,
    documents_corrupt=3,
    member=7,
    signature=2,
    signature_dense=8,
    signature_clear=5,
    next=1,
    field=5,
    naming=3,
)
# The equality questions lag behind: more of them, to the end.
EQUAL = TASKS | dict(color=8, owner=7)
LAST = EQUAL | dict(
    boolq=6, multirc=6, rte=7, cb=8, wic=8, bare=13, bare_documents=4, recall_told=4, recall_words=2, judge_short=1,
    judge_told=5, judge_open=6, judge_denied=2, senses=5, documents_corrupt=2, member=5, signature=8,
    signature_dense=9, signature_clear=7, next=3, field=6,
)  # fmt: skip
STAGES = (
    Stage(200, (0.0, 1e-3), SHORT),
    Stage(1200, (1e-3, 1e-3), SHORT),
    Stage(1600, (1e-3, 1e-3), SENTENCES),
    Stage(250, (1e-3, 1e-3), TASKS),
    Stage(350, (1e-3, 1e-3), EQUAL),
    Stage(200, (1e-3, 1e-3), LAST),
    Stage(800, (1e-3, 5e-5), LAST),
)

BATCH = 48


def block_of(number, rank, documents, tokenizer):
    """The batches of one block, for the stage of its first step: sorted by length, shuffled alike on all ranks."""
    stage, _ = plan(number * BLOCK, STAGES)
    mixer = Mixer(f"{SEED}/{rank}/{number}", documents)
    pairs = sorted(mixer.draw(stage.mixture, BATCH * BLOCK), key=lambda pair: len(pair[0].split()))
    batches = [collate(tokenizer, pairs[i : i + BATCH]) for i in range(0, len(pairs), BATCH)]
    random.Random(number).shuffle(batches)
    return batches


@torch.no_grad()
def accuracies(model, tokenizer, documents, streams=tuple(STREAMS), count=64, seed=0):
    """Held-out accuracy of the answer tokens of each stream (teacher forced; sentinels and </s> are not counted)."""
    noise_id = tokenizer.convert_tokens_to_ids(NOISE)
    first_word = noise_id + 1  # NOISE is the last sentinel
    model.eval()
    result = {}
    for stream in streams:
        mixer = Mixer(f"held-out/{seed}", documents, "validation")
        batch = collate(tokenizer, [mixer.example(stream) for _ in range(count)])
        hits = forward(model, batch, noise_id, seed).logits.argmax(-1) == batch["labels"]
        result[stream] = round(hits[batch["labels"] >= first_word].float().mean().item(), 3)
    model.train()
    return result


def average_gradients(parameters, processes):
    """All-reduces the gradients as one vector."""
    if processes == 1:
        return
    flat = torch.cat([p.grad.reshape(-1) for p in parameters])
    dist.all_reduce(flat)
    flat /= processes
    offset = 0
    for p in parameters:
        p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
        offset += p.numel()


def report(folder, model, tokenizer, documents, figures, seconds):
    """Appends one line to the log: the figures, minutes so far and held-out accuracies; prints it too."""
    streams = [name for name in STREAMS if not name.startswith(("bare", "documents", "told_corrupt"))]
    record = figures | {"rate": round(figures["rate"], 6), "loss": round(figures["loss"], 4)}
    record |= {
        "minutes": round(seconds / 60, 2),
        "held_out": accuracies(model, tokenizer, documents, streams),
    }
    append_log(folder, record)


def train(rank, processes, folder, report_every=125):
    """One process of the run. Continues from folder/checkpoint.pt if it is there; rank 0 reports and saves."""
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    folder = Path(folder)
    if processes > 1:
        meeting = f"file://{folder.resolve()}/meeting-{os.getppid()}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    documents = json.loads((folder / "documents.json").read_text())
    model = fresh_model(len(tokenizer))
    fuse_activations(model)
    optimizer = torch.optim.AdamW(
        parameter_groups(model), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    progress = {"step": 0, "tokens": 0, "seconds": 0.0} | load_checkpoint(folder, model, optimizer)
    step, tokens, last = progress["step"], progress["tokens"], total_steps(STAGES)
    model.train()
    bar = tqdm(total=last, initial=step, disable=rank != 0, mininterval=10)
    began, losses = time.time() - progress["seconds"], []
    while step < last:
        for batch in block_of(step // BLOCK, rank, documents, tokenizer)[step % BLOCK :]:
            losses.append(advance(model, optimizer, batch, tokenizer, rank, processes, step))
            step, tokens = step + 1, tokens + processes * int(batch["attention_mask"].sum())
            bar.update()
            if rank == 0 and (step % report_every == 0 or step == last):
                rate, seconds = plan(step - 1, STAGES)[1], time.time() - began
                figures = dict(step=step, tokens=tokens, rate=rate, loss=sum(losses) / len(losses))
                report(folder, model, tokenizer, documents, figures, seconds)
                save_checkpoint(folder, model, optimizer, step=step, tokens=tokens, seconds=seconds)
                losses = []
            if step == last:
                break
    bar.close()
    if processes > 1:
        dist.destroy_process_group()


def advance(model, optimizer, batch, tokenizer, rank, processes, step) -> float:
    """One step of training; returns the loss of this process's batch."""
    _, rate = plan(step, STAGES)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    noise_id, parameters = tokenizer.convert_tokens_to_ids(NOISE), list(model.parameters())
    loss = forward(model, batch, noise_id, zlib.crc32(f"{SEED}/{rank}/{step}".encode())).loss
    loss.backward()
    average_gradients(parameters, processes)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def prepare(folder):
    """Tokenizer and documents, once per run folder."""
    from .tokenizer import build

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_documents(folder)
    if not (folder / "tokenizer").exists():
        build().save_pretrained(folder / "tokenizer")


def pretrain(folder, processes=2):
    """Runs all stages in `processes` processes; the run folder holds tokenizer, documents, checkpoint and log."""
    os.environ.update(KEEP_MEMORY, TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    prepare(folder)
    torch.multiprocessing.spawn(train, (processes, str(folder)), nprocs=processes)


def export(folder, target):
    """Writes a checkpoint as Hugging Face files (float16), with tokenizer, losses and the SHA-256 of each file."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "tokenizer")
    return write_export(folder, target, fresh_model(len(tokenizer)), tokenizer)
