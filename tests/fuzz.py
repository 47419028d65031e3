"""Fuzzing: random settings, damaged checkpoints and odd masks, for a given time; `make fuzz SECONDS=60`.

    python tests/fuzz.py --seconds 60                    prints the seed
    python tests/fuzz.py --seed 7 --target masks --case 12      one case again

Every case ends in one of two ways: it is refused (ValueError, TypeError or FileNotFoundError, in words), or what comes
out is what was meant. Anything else is wrong: another exception, an answer that differs in silence, a pickle that is
read, or a minute without an end. Exit status 1 where something was wrong.
"""

import argparse
import collections
import contextlib
import json
import pickle
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from functools import cache
from pathlib import Path

import tiny
import torch
from stored import edit
from test_insertion import naive_insert

import dplearn as dp
from dplearn import checkpoint
from dplearn.config import OPTIONS

REFUSALS = (ValueError, TypeError, FileNotFoundError)
PATIENCE = 60  # seconds for one case, which takes milliseconds


class Wrong(BaseException):
    """Not an Exception: nothing that is tested may catch it."""


def demand(condition, what):
    """``assert`` that nothing switches off and nothing catches."""
    if not condition:
        raise Wrong(what)


# --- settings ---

NUMBERS = (-1, 0, 1, 2, 3, 5, True, 2.0, float("nan"), float("inf"), 1e39, 10**400)
WORDS = (None, "", "task", "instance", "full", "prefix", "a\0b", [], {}, ("a", "b"), b"x")
GOOD = {
    "length": (1, 3, 6),
    "position": ("prefix", "postfix", "task", "instance", 0, 1, 3),
    "size": ("full", "task", "instance", 1, 2),
    "size_cost": (0.0, 0.5),
    "vector": ("single", "task", "instance"),
    "pool_size": (4, 1, 2),
    "mixing": ("softmax", "tanh", "hard"),
    "tasks": (None, ["a"], ("a", "b")),
    "summary": ("embeddings", "encoder"),
    "standardize": (True, False),
    "controller_init": ("zero", "uniform"),
    "estimator": ("score-function", "score-function-batch", "exact", "position-space", "straight-through"),
    "samples": (None, 2, 3),
    "temperature": (1.0, 0.3, 7),
    "init": ("vocabulary", "uniform", "normal"),
    "backbone_dropout": (False, True),
}


def some_options(random):
    """A few options, most of them with values that are allowed alone; now and then anything."""
    names = random.sample(list(OPTIONS), random.randint(1, 7))
    odd = random.random() < 0.3
    return {
        name: random.choice(GOOD.get(name, (*NUMBERS, *WORDS)) if not odd else NUMBERS + WORDS)
        for name in names
    }


def settings_case(random):
    """Refused by the name of an option, or the same after a way through JSON; every fifth also as a model."""
    options = some_options(random)
    try:
        config = dp.PromptConfig(**options)
    except ValueError as error:
        demand(any(name in str(error) for name in OPTIONS), f"{options} is refused without a name: {error}")
        return "refused"
    again = dp.PromptConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    demand(again == config, f"{config} came back as {again}")
    return "kept" if random.random() < 0.8 else model_case(config, random)


@cache
def backbone():
    return tiny.t5(dtype=torch.float32)


def answers(model, config):
    ids, mask = tiny.batch([5, 3])
    tasks = {} if config.tasks is None else {"task_ids": torch.tensor([len(config.tasks) - 1, 0])}
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, labels=torch.tensor([[5], [6]]), **tasks).logits


def model_case(config, random):
    """A model of these settings answers alike twice, and after it was saved and loaded."""
    try:
        torch.manual_seed(random.randrange(2**31))
        model = dp.prompted(backbone(), config).eval()
    except ValueError:
        return "refused"  # by this kind of backbone
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.normal_()
    wanted = answers(model, config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = dp.from_pretrained(folder, backbone()).eval()
    demand(loaded.prompt_config == config, f"{config} was loaded as {loaded.prompt_config}")
    demand(torch.equal(answers(model, config), wanted), f"{config}: another answer to the same question")
    demand(torch.equal(answers(loaded, config), wanted), f"{config}: another answer after loading")
    return "kept"


# --- checkpoints ---


@cache
def saved():
    """A folder with a checkpoint, and what it holds."""
    folder = Path(tempfile.mkdtemp(prefix="dplearn-"))
    torch.manual_seed(0)
    dp.prompted(backbone(), dp.PromptConfig(length=4, position="instance")).save_pretrained(folder)
    return folder, checkpoint.read(folder)


def truncate(path, random):
    path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size)])


def flip(path, random, bits=1):
    data = bytearray(path.read_bytes())
    for _ in range(bits):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def overwrite(path, random):
    data = bytearray(path.read_bytes())
    start = random.randrange(len(data))
    data[start : start + random.randint(1, 40)] = random.randbytes(random.randint(0, 40))
    path.write_bytes(data)


def replace(path, random):
    other = random.choice(
        [b"", pickle.dumps(collections.OrderedDict(a=1)), b"[1]", b"\xff" * 30, b"PK\x03\x04", b"{}"]
    )
    path.write_bytes(other)


def value_in_json(path, random):
    """Another value somewhere in the settings, without a new seal."""
    place = random.choice(["prompt", "backbone", "weights"])

    def change(document):
        name = random.choice(list(document[place]))
        document[place][name] = random.choice([None, 1, "task", [], 3.5])

    edit(path.parent, change, sealed=False)


DAMAGE = (
    truncate,
    flip,
    lambda path, random: flip(path, random, random.randint(2, 9)),
    overwrite,
    replace,
    value_in_json,
    lambda path, random: path.unlink(),
    lambda path, random: path.write_bytes(path.read_bytes() + random.randbytes(random.randint(1, 9))),
    lambda path, random: (path.parent / "model.bin").write_bytes(pickle.dumps(1)),
)


def loads(folder, wanted):
    """ "refused", or "kept" where the folder holds what was saved; anything else is wrong."""
    try:
        found = checkpoint.read(folder)
    except REFUSALS:
        return "refused"
    demand(
        found.options == wanted.options and found.backbone == wanted.backbone,
        f"other settings: {found.options}",
    )
    demand(found.tensors.keys() == wanted.tensors.keys(), f"other tensors: {list(found.tensors)}")
    demand(
        all(torch.equal(found.tensors[name], wanted.tensors[name]) for name in wanted.tensors),
        "other numbers",
    )
    return "kept"


@contextlib.contextmanager
def no_pickles():
    """Reading a pickle is wrong."""

    def refuse(*_, **__):
        raise Wrong("a pickle was read")

    readers = [(pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")]
    before = [getattr(*reader) for reader in readers]
    for reader in readers:
        setattr(*reader, refuse)
    try:
        yield
    finally:
        for reader, usual in zip(readers, before):
            setattr(*reader, usual)


def checkpoint_case(random):
    """One to three kinds of damage to a checkpoint's files."""
    source, wanted = saved()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "prompt"
        shutil.copytree(source, folder)
        for _ in range(random.randint(1, 3)):
            path = random.choice([path for path in folder.iterdir() if path.name != "README.md"] or [None])
            if path is not None:
                with contextlib.suppress(
                    AttributeError, KeyError, IndexError, ValueError, FileNotFoundError, TypeError
                ):
                    random.choice(DAMAGE)(path, random)  # a later one may find nothing left to damage
        with no_pickles():
            return loads(folder, wanted)


# --- masks ---


def mask_case(random):
    """Masks of every form: what ``insert`` takes, it places as the loop does; it takes every right mask."""
    batch, seq, length = random.randint(1, 4), random.randint(1, 7), random.randint(1, 5)
    first = [random.randint(0, seq) for _ in range(batch)]
    rows = [[int(start <= t < random.randint(start, seq)) for t in range(seq)] for start in first]
    mask = torch.tensor(rows)
    if random.random() < 0.3:
        mask = mask * random.choice([1, 2, -1])
    mask = mask.to(
        random.choice([torch.long, torch.int32, torch.uint8, torch.bool, torch.float32, torch.int8])
    )
    if random.random() < 0.1:
        mask = random.choice([mask.T, mask[:, :-1], mask[0], mask.unsqueeze(0)])
    split = torch.tensor([random.randint(0, length) for _ in range(batch)])
    size = torch.tensor([random.randint(0, length) for _ in range(batch)])
    keep = random.randint(0, 2)
    prompt, inputs = torch.randn(length, 3), torch.randn(batch, seq, 3)
    try:
        found = dp.insert(prompt, inputs, mask, split, size, keep_last=keep)
    except (ValueError, TypeError):
        demand(not is_right(mask, batch, seq), f"refused a right mask: {mask.dtype}, {mask.tolist()}")
        return "refused"
    demand(is_right(mask, batch, seq), f"took a wrong mask: {mask.dtype}, {mask.tolist()}")
    expected = naive_insert(prompt, inputs, mask, split.tolist(), size.tolist(), [keep] * batch)
    for name in found._fields:
        demand(
            torch.equal(getattr(found, name).to(inputs), getattr(expected, name).to(inputs)),
            f"{name}: {mask}",
        )
    return "kept"


def is_right(mask, batch, seq):
    """Bool or integer 0 and 1, (B, T), the real tokens of a row in one piece."""
    if mask.shape != (batch, seq) or mask.is_floating_point():
        return False
    pieces = ["".join(map(str, row)).strip("0") for row in mask.long().tolist()]
    return all("0" not in piece and set(piece) <= {"1"} for piece in pieces)


# --- the loop ---

TARGETS = {"settings": settings_case, "checkpoints": checkpoint_case, "masks": mask_case}


def one(target, seed, number):
    """The outcome of a case: "refused", "kept" or "wrong", and what is wrong with it."""

    def hangs(*_):
        raise Wrong(f"no end after {PATIENCE} seconds")

    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(PATIENCE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return TARGETS[target](random.Random(f"{seed} {target} {number}")), ""
    except (Exception, Wrong):
        return "wrong", traceback.format_exc(limit=-3)
    finally:
        signal.alarm(0)


def fuzz(seed, seconds=None, cases=None, targets=tuple(TARGETS)):
    """{target: Counter of outcomes} after so many seconds, or so many cases of each; what is wrong is printed."""
    counts, start, number = {target: collections.Counter() for target in targets}, time.monotonic(), 0
    while (cases is None or number < cases) and (seconds is None or time.monotonic() - start < seconds):
        for target in targets:
            outcome, problem = one(target, seed, number)
            counts[target][outcome] += 1
            if problem:
                print(f"--seed {seed} --target {target} --case {number}\n{problem}", file=sys.stderr)
        number += 1
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one")
    parser.add_argument("--target", choices=TARGETS, help="default: all of them in turn")
    parser.add_argument("--case", type=int, help="one case of --target again")
    given = parser.parse_args()
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    if given.case is not None:
        outcome, problem = one(given.target or "settings", seed, given.case)
        sys.exit(problem or print(outcome))
    print(f"seed {seed}")
    counts = fuzz(seed, given.seconds, targets=(given.target,) if given.target else tuple(TARGETS))
    print(f"{'':<12}{'cases':>8}{'refused':>9}{'kept':>7}{'wrong':>7}")
    for target, found in counts.items():
        print(f"{target:<12}{found.total():>8}{found['refused']:>9}{found['kept']:>7}{found['wrong']:>7}")
    sys.exit(int(any(found["wrong"] for found in counts.values())))


if __name__ == "__main__":
    main()
