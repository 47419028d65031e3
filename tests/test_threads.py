"""Two threads on one model get what one thread gets, and one that generates leaves another's training alone.

The interpreter changes threads as often as it can, so that nothing which one call sets for a moment can hide.
"""

import sys
import threading
from functools import cache

import pytest
import spliced
import tiny
import torch
from torch.nn.functional import cross_entropy
from transformers import BertForSequenceClassification

import dplearn as dp
from dplearn.choice import Chooser

ROUNDS = 6
TEXTS = spliced.padded([[5, 9, 6, 20, 33], [40, 4, 8]]), spliced.padded([[7, 31, 12], [3, 3, 17, 21, 50]])
IMAGES = tiny.images(2, seed=1), tiny.images(2, seed=2)


def texts_of(ids, mask):
    return {"input_ids": ids, "attention_mask": mask}


def captions():
    ids, mask = tiny.texts([[5, 6, 7], [9, 8]])
    return {"input_ids": ids, "attention_mask": mask}


MAKERS = {
    "t5": (tiny.t5, [texts_of(*text) | {"labels": torch.tensor([[8, 30], [4, 9]])} for text in TEXTS]),
    "gpt2": (tiny.gpt2, [texts_of(*text) for text in TEXTS]),
    "llama": (tiny.llama, [texts_of(*text) for text in TEXTS]),
    "bert": (lambda: tiny.bert(BertForSequenceClassification), [texts_of(*text) for text in TEXTS]),
    "vit": (tiny.vit, [{"pixel_values": images} for images in IMAGES]),
    "clip": (tiny.clip, [captions() | {"pixel_values": images} for images in IMAGES]),
}


@cache
def model_of(kind):
    """A model with a decision for each instance where that can matter; the vectors are large, so that all does."""
    torch.manual_seed(0)
    pooled = kind in ("vit", "clip")  # there a position cannot matter, or is shared
    decided = {"vector": "instance", "pool_size": 2} if pooled else {"position": "instance"}
    model = dp.prompted(MAKERS[kind][0](), dp.PromptConfig(length=3, init="normal", **decided)).eval()
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.normal_(0, 1)
    return model


def forward(model, batch):
    output = model(**batch)
    name = "logits_per_image" if "logits_per_image" in output else "logits"
    return output[name].detach()


def generate(model, batch):
    batch = {name: value for name, value in batch.items() if name != "labels"}
    return model.generate(**batch, max_new_tokens=3, do_sample=False, pad_token_id=tiny.PAD)


def decide(model, batch):
    batch = {name: value for name, value in batch.items() if name != "labels"}
    return torch.cat([
        (choice.index if choice.weights is None else choice.weights).flatten().double()
        for choice in model.decide(**batch).values()
    ])  # fmt: skip


CALLS = {"forward": forward, "generate": generate, "decide": decide}
CASES = [
    (kind, name) for kind in MAKERS for name in CALLS if name != "generate" or kind in ("t5", "gpt2", "llama")
]


@pytest.fixture
def restless():
    """The shortest interval between changes of threads."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def together(*functions):
    """Run functions in threads of their own, started at once; returns what each returned, and raises what one raised."""
    results, errors, start = [None] * len(functions), [], threading.Barrier(len(functions))

    def run(number, function):
        start.wait()
        try:
            results[number] = function()
        except BaseException as error:  # for the main thread to raise
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_two_threads_get_what_one_gets(kind, name, restless):
    model, batches, call = model_of(kind), MAKERS[kind][1], CALLS[name]
    alone = [call(model, batch) for batch in batches]
    assert name == "decide" or alone[0].shape != alone[1].shape or not torch.equal(*alone)
    found = together(*(lambda batch=batch: [call(model, batch) for _ in range(ROUNDS)] for batch in batches))
    for wanted, several in zip(alone, found, strict=True):
        for one in several:
            torch.testing.assert_close(one, wanted, rtol=0, atol=1e-12)
    for wanted, batch in zip(alone, batches, strict=True):  # nothing stayed behind
        torch.testing.assert_close(call(model, batch), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", MAKERS)
def test_different_calls_in_two_threads_and_the_backbone_between_them(kind, restless):
    """One thread asks the prompted model, the other the model without a prompt, which must stay without one."""
    model, (batch, other) = model_of(kind), MAKERS[kind][1]
    plain = dict(other)
    wanted, bare = forward(model, batch), forward(model.backbone, plain)
    chosen = decide(model, other)
    found = together(
        lambda: [forward(model, batch) for _ in range(ROUNDS)],
        lambda: [(forward(model.backbone, plain), decide(model, other)) for _ in range(ROUNDS)],
    )
    for one in found[0]:
        torch.testing.assert_close(one, wanted, rtol=0, atol=1e-12)
    for one, decision in found[1]:
        torch.testing.assert_close(one, bare, rtol=0, atol=1e-12)
        torch.testing.assert_close(decision, chosen, rtol=0, atol=0)


def modes(model):
    return [module.training for module in model.modules()]


def training(kind, steps=8, seen=None):
    """A fresh model, and a loop that trains its decisions and returns the losses."""
    make, batches = MAKERS[kind]
    torch.manual_seed(0)
    config = dp.PromptConfig(
        length=3, position="instance", summary="encoder", backbone_dropout=True, **tiny.SAMPLED
    )
    model = dp.prompted(make(), config).train()
    for module in model.modules():
        if isinstance(module, Chooser):
            module.generator = torch.Generator().manual_seed(7)  # the global one is shared by all threads
    said = {"keep_last": 1} if kind in ("gpt2", "llama") else {}

    def loop():
        optimizer, losses = torch.optim.SGD(model.trainable_parameters().values(), lr=0.1), []
        for step in range(steps):
            if seen is not None:
                seen.append(modes(model))
            output = model(**batches[step % 2], **said)
            loss = output.loss
            if loss is None:
                scores = output.logits if kind == "bert" else output.logits[:, -1]
                loss = cross_entropy(scores, torch.tensor([1, 0]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    return model, loop


@pytest.mark.parametrize("kind", ["t5", "gpt2", "llama", "bert"])
def test_a_thread_that_generates_leaves_a_training_run_alone(kind, restless):
    """Modes stay, and the losses are those of a run alone; the other thread's answers are its own too."""
    _, lone = training(kind)
    wanted, seen = lone(), []
    model, loop = training(kind, seen=seen)
    before, batch = modes(model), MAKERS[kind][1][1]
    assert any(before)

    def ask():
        found = []
        while len(found) < 4 or (len(seen) < 8 and len(found) < 200):
            # (A decision in training mode would take from the noise of the training run.)
            found.append(generate(model, batch) if kind != "bert" else model.summarize(**batch))
        return found

    losses, answers = together(loop, ask)
    torch.testing.assert_close(losses, wanted, rtol=0, atol=1e-12)
    assert len(set(wanted.tolist())) == len(wanted) and len(answers) >= 4
    assert all(one == before for one in seen) and modes(model) == before
