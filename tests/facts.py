"""What stands and has to keep standing, as figures: how often it was tried, and how often it went wrong; `make facts`.

    python tests/facts.py                  all of it, some minutes
    python tests/facts.py --part 0.05      a twentieth of each count
    python tests/facts.py insertion kills  these rows

A row reuses what the tests use, with larger counts and a fixed seed. Exit status 1 where a row has something wrong.
"""

import argparse
import gc
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import fuzz
import test_files
import test_insertion
import test_settings
import test_threads
import torch
from stored import edit

import dplearn as dp
from dplearn import checkpoint

TESTS = Path(__file__).resolve().parent
SEED = 0


def python(code, *arguments, **variables):
    """The standard output of a script in a process of its own, or None where it fails (and says why)."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"} | variables,
    )
    if done.returncode:
        print(done.stdout[-500:], done.stderr[-1500:], file=sys.stderr)
    return None if done.returncode else done.stdout.strip()


def of_fuzz(target):
    def row(count):
        return count, fuzz.fuzz(SEED, cases=count, targets=(target,))[target]["wrong"]

    return row


def damaged(count, damage):
    """Damage a copy of the weights or the settings so many times; wrong: not found, or a model that differs."""
    source, wanted = fuzz.saved()
    wrong = 0
    for number in range(count):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for path in source.iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
            damage(folder, number)
            try:
                wrong += fuzz.loads(folder, wanted) != "refused"
            except fuzz.Wrong:
                wrong += 1
    return count, wrong


def truncated(count):
    """The settings, cut at every length (or at so many, evenly); the last byte ends the line and says nothing."""
    size = (fuzz.saved()[0] / checkpoint.CONFIG).stat().st_size - 1
    count = min(count, size)

    def cut(folder, number):
        path = folder / checkpoint.CONFIG
        path.write_bytes(path.read_bytes()[: number * size // count])

    return damaged(count, cut)


def flipped(count):
    """One bit of the weights."""

    def flip(folder, number):
        (path,) = folder.glob("prompt-*.safetensors")
        fuzz.flip(path, random.Random(number))

    return damaged(count, flip)


def edited(_):
    """Every edit of the settings that the tests know."""
    edits = list(test_settings.EDITS.values())
    source = tempfile.mkdtemp(prefix="dplearn-")
    dp.prompted(fuzz.backbone(), test_settings.CONFIG).save_pretrained(source)
    wrong = 0
    for change in edits:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for path in Path(source).iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
            edit(folder, change, sealed=False)
            try:
                checkpoint.read(folder)
                wrong += 1
            except ValueError:
                pass
    return len(edits), wrong


def insertions(count):
    """Random calls of all four ways to insert, values and gradients against the loop."""
    wrong, draw = 0, random.Random(SEED)
    for number in range(count):
        batch, seq, length = draw.randint(1, 4), draw.randint(1, 9), draw.randint(1, 6)
        case = test_insertion.make_case(
            batch,
            seq,
            length,
            dim=draw.randint(1, 4),
            shared=draw.random() < 0.5,
            padding=draw.choice(["left", "right", "both"]),
            keep_last=draw.randint(0, 2),
            sizes=draw.choice([None, [draw.randint(0, length) for _ in range(batch)]]),
            seed=number,
        )
        try:
            test_insertion.check_against_loop(case)
        except AssertionError:
            wrong += 1
    return count, wrong


def kills(count):
    """Writers killed in the middle of a save, beside one that lives; what lies there is read after each."""
    with tempfile.TemporaryDirectory() as folder:
        return count, int(python(test_files.KILLS, folder, count) != test_files.WHOLE)


def two_writers(count):
    """Saves of two processes to one folder, with a reader all the while."""
    with tempfile.TemporaryDirectory() as folder:
        return 2 * (count // 2), int(python(test_files.WRITERS, folder, count // 2) != test_files.WHOLE)


def disk_full(count):
    """A save for which there is no room, after 0 to all but one of its bytes: the old checkpoint stays, nothing else.

    (The system is told that files may not grow beyond this: writing fails in the same place as on a full disk.)
    """
    wrong, usual = 0, resource.getrlimit(resource.RLIMIT_FSIZE)
    for number in range(count):
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(folder, {"vectors": torch.zeros(20, 20)}, {"value": 0}, {}, "# Card")
            before = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
            most = max(map(len, before.values())) - 1
            resource.setrlimit(resource.RLIMIT_FSIZE, (number * most // max(count - 1, 1), usual[1]))
            try:
                checkpoint.save(folder, {"vectors": torch.ones(20, 20)}, {"value": 1}, {}, "# Card")
                wrong += 1  # it should not have found room
            except OSError:
                wrong += before != {path.name: path.read_bytes() for path in Path(folder).iterdir()}
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    return count, wrong


NO_NETWORK = """
import socket, sys
asked = []
def refuse(*arguments, **_):
    asked.append(arguments)
    raise OSError("no network")
for name in ("create_connection", "getaddrinfo", "gethostbyname"):
    setattr(socket, name, refuse)
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
import tempfile, torch
import dplearn as dp
for turn in range(int(sys.argv[1])):
    backbone, tokenizer = dp.zoo.load("t5-mini")
    model = dp.prompted(backbone, dp.PromptConfig(length=3, position="instance")).train()
    batch = tokenizer(["anna keeps a red ball ."], return_tensors="pt")
    model(**batch, labels=tokenizer(["red"], return_tensors="pt").input_ids).loss.backward()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        dp.from_pretrained(folder).generate(**batch, max_new_tokens=2)
print(len(asked))
"""


def no_network(count):
    """Load, train, save, load and generate where every way out is closed; wrong: attempts to get out."""
    found = python(NO_NETWORK, count)
    return count, 1 if found is None else int(found)


DECISIONS = """
import json, sys, torch
import dplearn as dp
torch.manual_seed(0)
backbone, tokenizer = dp.zoo.load("t5-mini")
config = dp.PromptConfig(length=8, position="instance", size="instance", vector="instance", mixing="hard")
model = dp.prompted(backbone, config).eval()
with torch.no_grad():
    for parameter in model.trainable_parameters().values():
        parameter.normal_()
words = "anna ben keeps has a the red blue ball cup in garden house . yes no".split()
draw = torch.Generator().manual_seed(1)
texts = [" ".join(words[i] for i in torch.randint(len(words), (9,), generator=draw)) for _ in range(int(sys.argv[1]))]
found = []
for start in range(0, len(texts), 50):
    choices = model.decide(**tokenizer(texts[start : start + 50], return_tensors="pt", padding=True))
    found += torch.stack([choice.index for choice in choices.values()], 1).flatten().tolist()
print(json.dumps(found))
"""


def decisions(count):
    """Decisions (three for each text) with two instruction sets times two numbers of threads; wrong: any that differs."""
    runs = [
        python(DECISIONS, count // 3, ATEN_CPU_CAPABILITY=cpu, OMP_NUM_THREADS=threads)
        for cpu in ("default", "avx2")
        for threads in ("1", "2")
    ]
    if None in runs:
        return count, count
    first, *others = map(json.loads, runs)
    if len(set(first)) < 5:
        raise SystemExit("these decisions hardly differ: they show nothing")
    return len(first), sum(one != two for other in others for one, two in zip(first, other, strict=True))


def memory(count):
    """What is alive after all of the batches and was not after a tenth of them: training, generating, deciding.

    Tensors; and where there are none more, bytes of those that are there, and megabytes of the process beyond a
    twentieth (what allocators keep for themselves goes up and down by less).
    """
    torch.manual_seed(SEED)
    model, _ = test_threads.training("t5")
    optimizer = torch.optim.SGD(model.trainable_parameters().values(), lr=0.01)
    batches, alive = test_threads.MAKERS["t5"][1], []
    for turn in range(count):
        model(**batches[turn % 2]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if turn % 10 == 0:
            test_threads.generate(model, batches[0])
            test_threads.decide(model, batches[1])
        if turn in (count // 10, count - 1):
            alive.append(alive_now())
    (tensors, held, process), (more_tensors, more_held, more_process) = alive
    grown = max(0, round((more_process - 1.05 * process) / 2**20))
    return count, max(0, more_tensors - tensors) or max(0, more_held - held) or grown


def alive_now():
    """(tensors, bytes in them, bytes of the process in memory)"""
    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    # Tensors of tracing, which other tests may leave, have no memory to ask for.
    plain = [one.untyped_storage() for one in tensors if type(one) in (torch.Tensor, torch.nn.Parameter)]
    storages = {storage.data_ptr(): storage.nbytes() for storage in plain}
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return len(tensors), sum(storages.values()), pages * os.sysconf("SC_PAGESIZE")


def two_threads(count):
    """Rounds in which two threads call one model at once, for every kind of model and call."""
    cases, wrong, usual = test_threads.CASES, 0, sys.getswitchinterval()
    rounds = max(1, count // len(cases))
    sys.setswitchinterval(1e-6)
    before, test_threads.ROUNDS = test_threads.ROUNDS, rounds
    try:
        for kind, name in cases:
            try:
                test_threads.test_two_threads_get_what_one_gets(kind, name, None)
            except AssertionError:
                wrong += 1
    finally:
        sys.setswitchinterval(usual)
        test_threads.ROUNDS = before
    return rounds * len(cases), wrong


# name: (what is tried, what counts as wrong, how often, the function).
FACTS = {
    "settings": ("random settings", "another error, or other settings after JSON", 6000, of_fuzz("settings")),
    "checkpoints": (
        "damaged checkpoints",
        "another model, another error, a pickle",
        2914,
        of_fuzz("checkpoints"),
    ),
    "truncated": ("settings cut short", "not found", 10**6, truncated),
    "flipped": ("flipped bits in weights", "not found", 600, flipped),
    "edited": ("edits of settings", "not found", 1, edited),
    "masks": ("random masks", "a wrong place, or refused for nothing", 3000, of_fuzz("masks")),
    "insertion": ("random insertions", "differs from the loop", 3000, insertions),
    "kills": ("kills while saving", "a broken folder", 150, kills),
    "writers": ("saves by two processes", "a broken folder", 300, two_writers),
    "full": ("saves without room", "the old one harmed, or debris", 64, disk_full),
    "network": ("ways from load to answer", "attempts to reach a network", 3, no_network),
    "decisions": ("decisions, 2 CPUs x 2 threads", "flips", 900, decisions),
    "memory": ("batches", "tensors, or bytes, more than before", 2000, memory),
    "threads": ("rounds of two threads", "another answer", 300, two_threads),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(FACTS)}; default all")
    parser.add_argument("--part", type=float, default=1.0, help="of each count")
    given = parser.parse_args()
    if unknown := set(given.rows) - set(FACTS):
        parser.error(f"unknown rows {sorted(unknown)}, expected some of {list(FACTS)}")
    failed = False
    print(f"{'tried':<32}{'times':>7}{'wrong':>7}  wrong means")
    for name in given.rows or FACTS:
        what, meaning, count, check = FACTS[name]
        tried, wrong = check(max(20, round(count * given.part)) if count >= 20 else count)
        failed |= wrong > 0
        print(f"{what:<32}{tried:>7}{wrong:>7}  {meaning}", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
