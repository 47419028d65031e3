"""How t5-mini is pretrained: stages, data-parallel processes, checkpoints, and the export to Hugging Face files.

One thread per process with averaged gradients is faster on a busy CPU than one process with many threads (no spinning
at barriers). Every block of batches is seeded by (seed, rank, block), so a resumed run sees the data it would have
seen. Everything is float32: bfloat16 is several times slower on processors without units for it.
"""

import hashlib
import json
import os
import random
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers import T5Config, T5ForConditionalGeneration
from transformers.activations import NewGELUActivation

from ..files import replacing, write
from .mixture import NOISE, STREAMS, Mixer

BLOCK = 8  # batches that are drawn together and sorted by length, to avoid padding
# glibc gives large buffers back after every operation by default; keeping them saves a third of the time.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}


@dataclass(frozen=True)
class Stage:
    """Some steps with one mixture; the learning rate goes linearly from the first to the second value."""

    steps: int
    rates: tuple[float, float]
    mixture: dict


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
SEED, BATCH = 1, 48
SHAPE = dict(d_model=128, d_kv=16, d_ff=448, num_layers=4, num_decoder_layers=2, num_heads=8)


def fresh_model(tokenizer_size=4096, seed=SEED, shape=SHAPE):
    """The architecture with freshly initialised weights; ``shape`` has the sizes that t5-mini's `SHAPE` has."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=tokenizer_size, feed_forward_proj="gated-gelu", dropout_rate=0.0, tie_word_embeddings=True,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, **shape,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    mimic(model)
    return model


def shape_of(config) -> dict:
    """The sizes of a model's config that `SHAPE` has: a fresh model of the same architecture is made of them."""
    return {key: getattr(config, key) for key in SHAPE}


@torch.no_grad()
def mimic(model):
    """A start that looks a little like a trained transformer ("mimetic initialisation", Trockman and Kolter 2023).

    Half of the encoder's heads start by looking at a neighbour (relative biases), the other half at equal words
    (keys are scaled queries). Attention in the decoder starts by looking for equal words and copying what it sees.
    """
    for head, bucket in enumerate((1, 17, 2, 18)):  # offsets -1, +1, -2, +2
        model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight[bucket, head] = 4.0
    model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight[0, 4:] = -3.0  # not oneself
    for block in model.encoder.block:
        look_for_equals(block.layer[0].SelfAttention, first_head=4)
    for block in model.decoder.block:
        cross = block.layer[1].EncDecAttention
        look_for_equals(cross, first_head=0)
        torch.nn.init.orthogonal_(cross.v.weight)
        cross.o.weight.copy_(cross.v.weight.T)


def look_for_equals(attention, first_head):
    """From this head on, keys are the scaled queries: equal inputs get the largest scores."""
    rows = slice(first_head * attention.key_value_proj_dim, None)
    attention.k.weight[rows] = attention.q.weight[rows] * attention.key_value_proj_dim**0.5


def parameter_groups(model):
    """AdamW moves every weight by about the learning rate, whatever its size, so large weights need larger rates.

    Attending by position needs relative biases of several units, which start near 0; embeddings start at 1.
    """
    named = dict(model.named_parameters())
    biases = [p for name, p in named.items() if "relative_attention_bias" in name]
    embeddings = [named["shared.weight"]]
    special = {id(p) for p in biases + embeddings}
    rest = [p for p in named.values() if id(p) not in special]
    return [
        {"params": rest, "factor": 1.0},
        {"params": biases, "factor": 20.0, "weight_decay": 0.0},
        {"params": embeddings, "factor": 3.0, "weight_decay": 0.0},
    ]


def collate(tokenizer, pairs):
    """(input, target) texts -> input_ids (B, T), attention_mask (B, T), labels (B, S) with -100 as padding."""
    inputs = tokenizer([text for text, _ in pairs], padding=True, return_tensors="pt")
    labels = tokenizer([target for _, target in pairs], padding=True, return_tensors="pt")
    hidden = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)
    return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "labels": hidden}


def embed(model, input_ids, noise_id, generator):
    """Input embeddings (B, T, d) with a random vector wherever the text has the mark of noise.

    What a prompt can look like before and after training: a row of the vocabulary, such a row moved by Gaussian noise,
    or noise alone, of half to eight times the spread of the embeddings; one kind and size for each sequence.
    """
    table = model.get_input_embeddings().weight
    noise = input_ids == noise_id
    rows = torch.randint(len(table), input_ids.shape, generator=generator)
    embeds = torch.nn.functional.embedding(torch.where(noise, rows, input_ids), table)
    kind = torch.rand(len(input_ids), 1, 1, generator=generator)
    size = 0.5 * 16 ** torch.rand(len(input_ids), 1, 1, generator=generator)
    random_vectors = torch.randn(embeds.shape, generator=generator) * table.detach().std(0) * size
    moved = random_vectors + embeds.detach() * (kind < 0.7)
    return torch.where(noise.unsqueeze(-1) & (kind > 0.4), moved, embeds)


def forward(model, batch, noise_id, seed):
    """The model's output for a batch of :func:`collate`, its noise drawn from ``seed``."""
    embeds = embed(model, batch["input_ids"], noise_id, torch.Generator().manual_seed(seed))
    return model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], labels=batch["labels"])


def fuse_activations(model):
    """The same GELU in one kernel instead of seven: a tenth of a step. The config stays, and so does the export."""
    for module in model.modules():
        if isinstance(getattr(module, "act", None), NewGELUActivation):
            module.act = torch.nn.GELU(approximate="tanh")


def plan(step, stages=STAGES):
    """(stage, learning rate) of a step."""
    last = total_steps(stages)
    for stage in stages:
        if step < stage.steps:
            low, high = stage.rates
            return stage, low + (high - low) * (step + 1) / stage.steps
        step -= stage.steps
    raise ValueError(f"step {step} is after the last stage: expected less than {last}")


def total_steps(stages=STAGES):
    return sum(stage.steps for stage in stages)


def block_of(number, rank, documents, tokenizer):
    """The batches of one block, for the stage of its first step: sorted by length, shuffled alike on all ranks."""
    stage, _ = plan(number * BLOCK)
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


def save_checkpoint(folder, model, optimiser, step, tokens, seconds):
    state = dict(
        model=model.state_dict(), optimiser=optimiser.state_dict(), step=step, tokens=tokens, seconds=seconds
    )
    with replacing(folder / "checkpoint.pt") as file:
        torch.save(state, file)


def load_checkpoint(folder, model, optimiser):
    """(step, tokens, seconds) of the checkpoint of a run folder, whose state is put in place; zeros without one."""
    if not (folder / "checkpoint.pt").exists():
        return 0, 0, 0.0
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"], state["tokens"], state["seconds"]


def report(folder, model, tokenizer, documents, figures, seconds):
    """Appends one line to the log: the figures, minutes so far and held-out accuracies; prints it too."""
    streams = [name for name in STREAMS if not name.startswith(("bare", "documents", "told_corrupt"))]
    record = figures | {"rate": round(figures["rate"], 6), "loss": round(figures["loss"], 4)}
    record |= {
        "minutes": round(seconds / 60, 2),
        "held_out": accuracies(model, tokenizer, documents, streams),
    }
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(record) + "\n")
    tqdm.write(json.dumps(record))


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
    noise_id = tokenizer.convert_tokens_to_ids(NOISE)
    model = fresh_model(len(tokenizer))
    fuse_activations(model)
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(
        parameter_groups(model), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    step, tokens, seconds = load_checkpoint(folder, model, optimiser)
    model.train()
    bar = tqdm(total=total_steps(), initial=step, disable=rank != 0, mininterval=10)
    began, losses, last = time.time() - seconds, [], total_steps()
    while step < last:
        for batch in block_of(step // BLOCK, rank, documents, tokenizer)[step % BLOCK :]:
            stage, rate = plan(step)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["factor"]
            loss = forward(model, batch, noise_id, zlib.crc32(f"{SEED}/{rank}/{step}".encode())).loss
            loss.backward()
            average_gradients(parameters, processes)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            step, tokens = step + 1, tokens + processes * int(batch["attention_mask"].sum())
            losses.append(loss.item())
            bar.update()
            if rank == 0 and (step % report_every == 0 or step == last):
                figures = dict(step=step, tokens=tokens, rate=rate, loss=sum(losses) / len(losses))
                report(folder, model, tokenizer, documents, figures, time.time() - began)
                save_checkpoint(folder, model, optimiser, step, tokens, time.time() - began)
                losses = []
            if step == last:
                break
    bar.close()
    if processes > 1:
        dist.destroy_process_group()


def write_documents(folder):
    """The entries of the pretraining libraries as folder/documents.json, once per run folder."""
    from ..tasks.documentation import PRETRAINING_LIBRARIES, extract

    if not (folder / "documents.json").exists():
        entries = [entry for library in PRETRAINING_LIBRARIES for entry in extract(library)]
        write(folder / "documents.json", json.dumps(entries).encode())


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


def losses_of(folder):
    """The log of a run: one record for each report."""
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def export(folder, target):
    """Writes a checkpoint as Hugging Face files (float16), with tokenizer, losses and the SHA-256 of each file."""
    from transformers import AutoTokenizer

    folder, target = Path(folder), Path(target)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return write_export(folder, target, fresh_model(len(tokenizer)), tokenizer)


def write_export(folder, target, model, tokenizer):
    """The files of an export: the weights of the run folder's checkpoint in a model of its kind; returns ``target``."""
    model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["model"])
    target.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(target)
    tokenizer.save_pretrained(target)
    write(target / "losses.json", (json.dumps(losses_of(folder), indent=0) + "\n").encode())
    write_hashes(target)
    return target


def write_hashes(target):
    """Records the SHA-256 of the files that `dplearn.zoo.load` reads."""
    files = sorted(path for path in target.iterdir() if path.suffix in (".json", ".safetensors"))
    kept = [path for path in files if path.name not in ("sha256.json", "gates.json")]
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}
    write(target / "sha256.json", (json.dumps(hashes, indent=2) + "\n").encode())
