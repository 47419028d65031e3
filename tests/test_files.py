"""Writing files: whole or not at all, several writers at once, kills at any moment; reading: kinds and sizes first."""

import errno
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from dplearn import checkpoint, files
from dplearn.experiments import records

# Two processes save different checkpoints to one folder, again and again; a third one reads all the while.
WRITERS = """
import os, sys, torch
from dplearn import checkpoint
folder, turns, children = sys.argv[1], int(sys.argv[2]), []
for writer in range(2):
    if not (child := os.fork()):
        try:
            for turn in range(turns):
                value = float(2 * (turn % 5) + writer)
                checkpoint.save(folder, {"vectors": torch.full((200, 100), value)}, {"value": value}, {}, "# Card")
        except BaseException as error:
            print(f"writer {writer}: {error!r}", flush=True)
            os._exit(1)
        os._exit(0)
    children.append(child)
seen = set()
while children:
    children = [child for child in children if not os.waitpid(child, os.WNOHANG)[0]]
    if os.path.exists(os.path.join(folder, checkpoint.CONFIG)):
        saved = checkpoint.read(folder)
        assert (saved.tensors["vectors"] == saved.options["value"]).all()
        seen.add(saved.options["value"] % 2)
assert seen == {0.0, 1.0}
print(sorted(name.split("-")[0] for name in os.listdir(folder)))
"""

# One writer lives; others are killed at random moments, most of them in the middle of a save.
KILLS = """
import os, random, signal, sys, time, torch
from dplearn import checkpoint
folder, kills, random = sys.argv[1], int(sys.argv[2]), random.Random(0)

def write(writer, turns):
    for turn in range(turns):
        value = float(1000 * writer + turn)
        checkpoint.save(folder, {"vectors": torch.full((200, 100), value)}, {"value": value}, {}, "# Card")

def start(writer, turns):
    if child := os.fork():
        return child
    try:
        write(writer, turns)
    except BaseException as error:
        print(f"writer {writer}: {error!r}", flush=True)
        os._exit(1)
    os._exit(0)

write(0, 1)
living, debris = start(1, 4 * kills), 0
for writer in range(2, 2 + kills):
    child = start(writer, 10**9)
    time.sleep(random.uniform(0.001, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    saved = checkpoint.read(folder)
    assert (saved.tensors["vectors"] == saved.options["value"]).all()
    debris += any(name.startswith(".") for name in os.listdir(folder))
_, status = os.waitpid(living, 0)
assert status == 0
assert debris  # otherwise no kill came in the middle of a save, and this tests nothing
write(99, 1)
print(sorted(name.split("-")[0] for name in os.listdir(folder)))
"""
WHOLE = "['README.md', 'prompt', 'prompt_config.json']"


@pytest.mark.skipif(files.fcntl is None, reason="no locks and no fork on this system")
@pytest.mark.parametrize(("script", "count"), [(WRITERS, 60), (KILLS, 40)], ids=["two writers", "kills"])
def test_any_interleaving_of_writers_leaves_one_whole_checkpoint_and_nothing_else(script, count, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path, str(count)], capture_output=True, text=True, timeout=200
    )
    assert (done.returncode, done.stdout.strip()) == (0, WHOLE), done.stdout + done.stderr


def test_a_write_removes_what_killed_ones_left_and_no_file_of_somebody_else(tmp_path):
    left, mine = tmp_path / ".dplearn-0123456789abcdef.tmp", tmp_path / "notes.tmp"
    for path in (left, mine):
        path.write_text("half")
    files.write(tmp_path / "one.json", b"{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.tmp", "one.json"]


def test_a_checkpoint_removes_its_own_old_tensors_and_no_file_of_somebody_else(tmp_path):
    mine = tmp_path / "prompt-mine.safetensors"
    mine.write_bytes(b"kept")
    for value in (1.0, 2.0):
        checkpoint.save(tmp_path, {"vectors": torch.full((2, 3), value)}, {}, {})
    assert mine.read_bytes() == b"kept" and len(list(tmp_path.glob("prompt-*.safetensors"))) == 2


def test_without_locks_only_old_files_count_as_left_behind(tmp_path, monkeypatch):
    """A network file system without locks: a young file may be another writer's."""

    def refuses(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuses)
    young, old = (tmp_path / f".dplearn-{letter * 16}.tmp" for letter in "ab")
    for path in (young, old):
        path.write_text("half")
    os.utime(old, (time.time() - 2 * files.ABANDONED,) * 2)
    files.write(tmp_path / "one.json", b"{}")
    assert young.exists() and not old.exists()
    for value in (1.0, 2.0):
        checkpoint.save(tmp_path, {"vectors": torch.full((2, 3), value)}, {"value": value}, {})
    assert checkpoint.read(tmp_path).options == {"value": 2.0}
    assert len(list(tmp_path.glob("prompt-*.safetensors"))) == 2  # the old one may be about to be named


def test_a_writer_waits_for_another_one_and_not_for_ever(tmp_path, monkeypatch):
    order = []

    def second():
        files.write(tmp_path / "file", b"second")
        order.append("second")

    with files.locked(tmp_path) as has_lock:
        assert has_lock
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.05)
        order.append("first")
        monkeypatch.setattr(files, "PATIENCE", 0.0)
        with pytest.raises(TimeoutError, match="has been locked by another writer for 0 seconds"):
            files.write(tmp_path / "file", b"third")
        monkeypatch.undo()
    thread.join()
    assert order == ["first", "second"] and (tmp_path / "file").read_bytes() == b"second"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_has_the_rights_that_the_umask_gives(mask, tmp_path):
    before = os.umask(mask)
    try:
        files.write(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_alone(moment, tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    records.save(path, [{"value": 1}], command="first")
    before = path.read_bytes()

    def fails(*_):
        raise OSError("disk full")

    if moment == "write":
        with pytest.raises(OSError, match="disk full"), files.replacing(path) as file:
            file.write(b"half")
            fails()
    else:
        monkeypatch.setattr(files.os, moment, fails)
        with pytest.raises(OSError, match="disk full"):
            records.save(path, [{"value": 2}], command="second")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"record.json": before}


def pipe(path):
    os.mkfifo(path)


SPECIAL = {
    "a pipe": (pipe, "is a special file"),
    "a device": (lambda p: p.symlink_to("/dev/zero"), "is a special file"),
    "a loop": (lambda p: p.symlink_to(p), "cannot be read: OSError"),
    "a large file": (
        lambda p: os.truncate(os.open(p, os.O_CREAT | os.O_RDWR), 2**31),
        "has 2147483648 bytes",
    ),
    "deep lists": (lambda p: p.write_text("[" * 200_000), "is nested too deeply"),
    "deep objects": (lambda p: p.write_text('{"a":' * 200_000), "is nested too deeply"),
    "a long number": (lambda p: p.write_text("1" * 10_000), "is damaged, expected JSON"),
    "not UTF-8": (lambda p: p.write_bytes(b'{"a": "\xff"}'), "is damaged, expected JSON"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", SPECIAL)
def test_settings_that_are_no_such_file_are_refused_at_once(case, tmp_path):
    make, message = SPECIAL[case]
    make(tmp_path / checkpoint.CONFIG)
    with pytest.raises(ValueError, match=message):
        checkpoint.read(tmp_path)


def test_a_link_to_a_regular_file_is_followed(tmp_path):
    """The cache of a hub consists of links."""
    checkpoint.save(tmp_path / "blobs", {"vectors": torch.ones(2, 3)}, {"a": 1}, {})
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert checkpoint.read(tmp_path / "snapshot").options == {"a": 1}
