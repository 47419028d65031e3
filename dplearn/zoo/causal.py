"""How llama-mini is pretrained: a decoder-only model that reads a text and a cue and says the answer.

What it shares with t5-mini is in :mod:`dplearn.zoo.stages`, :mod:`dplearn.zoo.noise` and
:mod:`dplearn.zoo.run_folder`. One process with one thread; every block of batches is seeded by its number, so a
resumed run sees the data that it would have seen.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from pathlib import Path

import torch
from tokenizers import processors
from tqdm import tqdm
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from ..shelf import folder_of, load
from .causal_mixture import CUE, STREAMS, Mixer, in_place
from .noise import NOISE, embed_with_noise
from .run_folder import (
    KEEP_MEMORY,
    append_log,
    load_checkpoint,
    save_checkpoint,
    write_documents,
    write_export,
)
from .stages import BLOCK, Stage, plan, total_steps

NAME = "llama-mini"
# Did this word stand before? Then: are two facts equal in what one word asks for?
WORDS = dict(seen=20, equal_words=44)
# The same with the instructions, in short rows and in sentences; a first look at restating facts.
EQUAL = dict(seen=4, equal_words=12, equal_short=24, asked_equal=8, color=5, owner=5, recall_short=6)
# Restating facts and judging claims: what belongs together.
BINDING = dict(
    recall_short=16, recall_told=10, judge_short=8, seen=2, equal_short=8, asked_equal=8, color=4, owner=4, bare=4,
)  # fmt: skip
# Colours and things lag behind people and places: their words stand closer together. More of them.
COLOURS = dict(
    seen_kind=9, equal_lagging=16, equal_short=8, asked_equal=5, color=10, owner=2, recall_short=8, senses=2, bare=4,
)  # fmt: skip
# The instructed tasks, and the coin where nothing is asked.
TASKS = dict(
    seen_kind=3, equal_lagging=5, equal_short=6, asked_equal=6, color=9, owner=4, recall_short=8, recall_told=2,
    judge_short=2, senses=4, wic=2, asked=1, boolq=1, multirc=1, rte=1, cb=1, bare=8,
)  # fmt: skip
STAGES = (
    Stage(48, (0.0, 2e-3), WORDS),
    Stage(352, (2e-3, 2e-3), WORDS),
    Stage(600, (2e-3, 2e-3), EQUAL),
    Stage(200, (2e-3, 2e-3), BINDING),
    Stage(600, (2e-3, 2e-3), EQUAL),
    Stage(200, (2e-3, 2e-3), BINDING),
    Stage(600, (2e-3, 2e-3), COLOURS),
    Stage(1000, (2e-3, 5e-5), TASKS),
)
SEED, BATCH, PARTS = 1, 64, 4
HELD_OUT = 48  # examples of each stream for a line of the log
READ, READ_WEIGHT = 0.12, 0.25  # the share of the text's own tokens that are predicted too, and their weight
SHAPE = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4)
# First sizes: the standard deviation of embeddings and their common first coordinate; what heads add to a token, what
# those add that copy, and queries and keys that look for words.
SPREAD, COMMON, WRITTEN, COPIED, LOOKING = 0.088, 0.27, 0.1, 0.3, 1.8


def fresh_model(tokenizer_size=4096, seed=SEED):
    """The architecture with freshly initialised weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer_size, num_key_value_heads=SHAPE["num_attention_heads"], max_position_embeddings=512,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0, **SHAPE,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    mimic(model)
    return model


@torch.no_grad()
def mimic(model):
    """A start that looks a little like a trained transformer, as t5-mini has one: heads that look for what came before.

    In the first layer two heads look one and two tokens back and two look for an earlier equal word. Two of the second
    look for the tokens one and two behind an earlier equal word and copy them ("induction heads"), two more start from
    the word in front. Two of the third look one token back and hand on what those found, to the cue behind a word.
    All embeddings share a first coordinate, so that rotary angles alone can decide where a head looks.
    """
    table = model.get_input_embeddings().weight
    table.normal_(std=SPREAD)
    table[:, 0] = COMMON
    size, width = model.model.layers[0].self_attn.head_dim, table.shape[1]
    first, second, third, *rest = (layer.self_attn for layer in model.model.layers)
    for attention in (first, second, third, *rest):
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight.normal_(std=width**-0.5)
        attention.o_proj.weight.normal_(std=WRITTEN * width**-0.5)
        for rows in heads_of(attention)[::2]:
            attention.k_proj.weight[rows] = attention.q_proj.weight[rows]
    written = [directions(size, width) for _ in range(2)]
    for steps, (rows, target) in enumerate(zip(heads_of(first), written), start=1):
        look_back(first, rows, steps, 1.4)
        first.o_proj.weight[:, rows] = WRITTEN * target.T
    for rows in heads_of(first)[2:]:
        look_for_equals(first, rows)
    own = [first.v_proj.weight[rows].clone() for rows in heads_of(first)]
    queries, keys = (own[0], own[1], written[0], written[0]), (written[0], written[1], own[0], written[1])
    for rows, query, key, read in zip(heads_of(second), queries, keys, own):
        turn = torch.nn.init.orthogonal_(torch.empty(size, size)) * LOOKING
        second.q_proj.weight[rows], second.k_proj.weight[rows] = turn @ query, turn @ key
        for attention in (second, third):
            attention.v_proj.weight[rows] = read
            attention.o_proj.weight[:, rows] = COPIED * read.T
    for rows in heads_of(third)[:2]:
        look_back(third, rows, 1, 2.5, reads=False)


@torch.no_grad()
def take_words(model):
    """Starts the embeddings from t5-mini's (the tokens are the same), centred and of the spread that is wanted here."""
    table = load("t5-mini")[0].get_input_embeddings().weight
    table = table - table.mean(0)
    mine = model.get_input_embeddings().weight
    mine[:, 1:] = (table * SPREAD / table.std())[:, 1:]


def heads_of(attention):
    """The rows (of o_proj: columns) of each head."""
    size = attention.head_dim
    return [slice(start, start + size) for start in range(0, len(attention.q_proj.weight), size)]


def directions(size, width):
    """Random orthonormal rows (size, width)."""
    return torch.nn.init.orthogonal_(torch.empty(size, width))


def look_back(attention, rows, steps, strength, reads=True):
    """Makes the head of these rows look `steps` tokens back; with `reads` its values are orthonormal.

    A constant query (a, 0) in each pair of rotated coordinates meets a key that is turned by `steps` angles: the
    product is largest for the key that stands `steps` before.
    """
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[rows].normal_(std=0.1 * projection.weight.shape[1] ** -0.5)
    turn_constant(attention, rows, steps, strength, pairs=5)
    if reads:
        attention.v_proj.weight[rows] = directions(attention.head_dim, attention.v_proj.weight.shape[1])


def look_for_equals(attention, rows):
    """Makes the head of these rows look for an equal word (slow rotations) and not at the word itself (fast ones)."""
    projection = LOOKING * directions(attention.head_dim, attention.q_proj.weight.shape[1])
    projection[torch.arange(attention.head_dim) % (attention.head_dim // 2) < 4] = 0
    attention.q_proj.weight[rows] = attention.k_proj.weight[rows] = projection
    turn_constant(attention, rows, 0, 1.6, pairs=3)
    attention.k_proj.weight[rows, 0] *= -1
    attention.v_proj.weight[rows] = directions(attention.head_dim, attention.v_proj.weight.shape[1])
    attention.o_proj.weight[:, rows] = (
        WRITTEN * directions(attention.head_dim, attention.v_proj.weight.shape[1]).T
    )


def turn_constant(attention, rows, steps, strength, pairs):
    """Query and key from the common coordinate that agree most `steps` apart, in the fastest rotating pairs."""
    places = torch.arange(attention.head_dim // 2)
    turned = steps * 10_000.0 ** (-places / len(places))
    sizes = torch.where(places < pairs, strength, 0.0)
    attention.q_proj.weight[rows, 0] = torch.cat([sizes, torch.zeros_like(sizes)])
    attention.k_proj.weight[rows, 0] = torch.cat([sizes * turned.cos(), sizes * turned.sin()])


def parameter_groups(model):
    """Weight decay for matrices other than the embeddings."""
    table = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.ndim > 1 and p is not table]
    rest = [p for p in model.parameters() if p.ndim == 1 or p is table]
    return [{"params": matrices, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]


def build_tokenizer():
    """The tokenizer of t5-mini without an end token behind the text: what comes next is the cue, or a prompt."""
    tokenizer = AutoTokenizer.from_pretrained(folder_of("t5-mini"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    return tokenizer


def collate(tokenizer, pairs):
    """(text, target) pairs -> input_ids, answers (both (B, T)): answers are the tokens to say, elsewhere -100.

    Padding is on the right, where nothing that counts can see it. Each sequence ends with an end token, to be said.
    """
    sequences = [in_place(text, target) for text, target in pairs]
    texts = [words for pieces in sequences for words, _ in pieces]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    rows, marks = [], []
    for pieces in sequences:
        ids, said = [], []
        for _, answer in pieces:
            tokens = next(encoded)
            ids += tokens
            said += [answer] * len(tokens)
        rows.append(torch.tensor([*ids, tokenizer.eos_token_id]))
        marks.append(torch.tensor([*said, True]))
    pad = torch.nn.utils.rnn.pad_sequence
    input_ids = pad(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    answers = input_ids.masked_fill(~pad(marks, batch_first=True, padding_value=False), -100)
    return {"input_ids": input_ids, "answers": answers}


def predict(model, batch, noise_id, generator, where):
    """Logits (N, vocabulary) at the N positions (b, t) with where[b, t], each for the token behind it."""
    embeds = embed_with_noise(model, batch["input_ids"], noise_id, generator)
    states = model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    return model.lm_head(states[:, :-1][where[:, 1:]])


def read_at(input_ids, answers, unread, generator):
    """Which tokens of the text to predict beside the answers: a random share, no marks and no padding; bool (B, T)."""
    drawn = torch.rand(input_ids.shape, generator=generator) < READ
    return drawn & (answers == -100) & ~torch.isin(input_ids, torch.tensor(unread))


def loss_of(model, batch, tokenizer, seed):
    """(loss, mean loss of the answers) of a batch; its noise and the tokens to predict are drawn from ``seed``."""
    ids, answers = batch["input_ids"], batch["answers"]
    generator = torch.Generator().manual_seed(seed)
    noise_id, cue_id = tokenizer.convert_tokens_to_ids([NOISE, CUE])
    read = read_at(ids, answers, [tokenizer.pad_token_id, noise_id, cue_id], generator)
    said = answers != -100
    where = read | said
    where[:, 0] = False
    losses = torch.nn.functional.cross_entropy(
        predict(model, batch, noise_id, generator, where), ids[where], reduction="none"
    )
    saying = said[where]
    answering = losses[saying].mean()
    return answering + READ_WEIGHT * losses[~saying].sum() / max(int((~saying).sum()), 1), answering.detach()


def block_of(number, documents, tokenizer):
    """The batches of one block, for the stage of its first step, each in `PARTS` parts of like lengths.

    Every batch holds all streams of the stage: batches of one length, and so of one stream, learned far worse.
    """
    stage, _ = plan(number * BLOCK, STAGES)
    mixer, batches, size = Mixer(f"{NAME}/{SEED}/{number}", documents), [], BATCH // PARTS
    for _ in range(BLOCK):
        pairs = mixer.draw(stage.mixture, BATCH)
        pairs.sort(key=lambda pair: len(pair[0].split()) + len(pair[1].split()))
        batches.append([collate(tokenizer, pairs[i : i + size]) for i in range(0, BATCH, size)])
    return batches


@torch.no_grad()
def accuracies(model, tokenizer, documents, streams=tuple(STREAMS), count=None, seed=0):
    """Held-out accuracy of the answer tokens of each stream (true answers stand before; end tokens are left out)."""
    noise_id = tokenizer.convert_tokens_to_ids(NOISE)
    model.eval()
    result = {}
    for stream in streams:
        mixer = Mixer(f"held-out/{seed}", documents, "validation")
        batch = collate(tokenizer, [mixer.example(stream) for _ in range(count or HELD_OUT)])
        ids, answers = batch["input_ids"], batch["answers"]
        where = (answers != -100) & (answers != tokenizer.eos_token_id)
        logits = predict(model, batch, noise_id, torch.Generator().manual_seed(seed), where)
        result[stream] = round((logits.argmax(-1) == ids[where]).float().mean().item(), 3)
    model.train()
    return result


def report(folder, model, tokenizer, documents, figures):
    """Appends one line to the log, the figures and held-out accuracies, and prints it."""
    streams = [name for name in STREAMS if name != "bare"]
    record = figures | {"held_out": accuracies(model, tokenizer, documents, streams)}
    append_log(folder, record)


def prepare(folder):
    """Tokenizer and documents, once per run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_documents(folder)
    if not (folder / "tokenizer").exists():
        build_tokenizer().save_pretrained(folder / "tokenizer")


def pretrain(folder):
    """Runs all stages; the run folder holds tokenizer, documents, checkpoint and log, and a run goes on from there.

    In a process of its own: the C library reads how it is to keep memory when a process starts.
    """
    os.environ.update(KEEP_MEMORY, TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    prepare(Path(folder))
    torch.multiprocessing.spawn(train, (str(folder),), nprocs=1)


def train(rank, folder, report_every=200):
    """The process of a run (the first, and only, of its `rank`)."""
    folder = Path(folder)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    documents = json.loads((folder / "documents.json").read_text())
    model = fresh_model(len(tokenizer)).train()
    take_words(model)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=1e-3, betas=(0.9, 0.98), fused=True)
    progress = {"step": 0, "tokens": 0, "seconds": 0.0} | load_checkpoint(folder, model, optimizer)
    step, tokens = progress["step"], progress["tokens"]
    began, losses, last = time.time() - progress["seconds"], [], total_steps(STAGES)
    bar = tqdm(total=last, initial=step, mininterval=10)
    while step < last:
        for batch in block_of(step // BLOCK, documents, tokenizer)[step % BLOCK :]:
            _, rate = plan(step, STAGES)
            losses.append(advance(model, optimizer, batch, tokenizer, rate, step))
            step += 1
            tokens += sum(int((part["input_ids"] != tokenizer.pad_token_id).sum()) for part in batch)
            bar.update()
            if step % report_every == 0 or step == last:
                seconds = time.time() - began
                mean = [round(sum(values) / len(values), 4) for values in zip(*losses)]
                figures = dict(step=step, tokens=tokens, rate=round(rate, 6), loss=mean[0], answers=mean[1])
                report(folder, model, tokenizer, documents, figures | {"minutes": round(seconds / 60, 2)})
                save_checkpoint(folder, model, optimizer, step=step, tokens=tokens, seconds=seconds)
                losses = []
            if step == last:
                break
    bar.close()


def advance(model, optimizer, parts, tokenizer, rate, step):
    """One step of training at a learning rate on the parts of a batch; returns (loss, loss of the answers)."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    counts = [int((part["answers"] != -100).sum()) for part in parts]
    losses = torch.zeros(2)
    for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
        loss, answering = loss_of(model, part, tokenizer, zlib.crc32(f"{SEED}/{step}/{number}".encode()))
        share = count / sum(counts)
        (share * loss).backward()
        losses += share * torch.stack([loss.detach(), answering])
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return losses.tolist()


def export(folder, target):
    """Writes a checkpoint as Hugging Face files (float16), with tokenizer, losses and the SHA-256 of each file."""
    tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "tokenizer")
    model = fresh_model(len(tokenizer))
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return write_export(folder, target, model, tokenizer)
