"""Checkpoints: exact round trips, one error per kind of damage, and no stop that leaves half of one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch

import dplearn as dp
from dplearn import checkpoint

LENGTH = 4


def make(position="instance", backbone=None, **options):
    return dp.prompted(
        backbone or tiny.t5(dtype=torch.float32), dp.PromptConfig(length=LENGTH, position=position, **options)
    )


@pytest.fixture
def saved(tmp_path):
    make().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("position", ["prefix", "postfix", 2, "task", "instance"])
def test_round_trip_restores_every_tensor_and_option(tmp_path, position):
    model = make(position, temperature=0.7, summary="encoder")
    model.save_pretrained(tmp_path)
    again = dp.from_pretrained(tmp_path, tiny.t5(dtype=torch.float32))
    assert again.prompt_config == model.prompt_config
    assert model.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    ids, mask = tiny.batch([5, 3])
    labels = torch.tensor([[5], [6]])
    assert torch.equal(model(ids, mask, labels=labels).logits, again(ids, mask, labels=labels).logits)


def test_only_prompt_card_and_config_are_written(saved):
    names = sorted(path.name for path in saved.iterdir())
    assert names[0] == "README.md" and names[2] == "prompt_config.json" and len(names) == 3
    assert saved.joinpath(names[1]).stat().st_size < 2000  # the backbone has 10,000 parameters


def test_saving_again_replaces_the_old_checkpoint(saved):
    model = make("task")
    model.save_pretrained(saved)
    assert len(list(saved.iterdir())) == 3
    again = dp.from_pretrained(saved, tiny.t5(dtype=torch.float32))
    assert torch.equal(again.prompt.vectors, model.prompt.vectors)


def test_a_backbone_saved_in_a_folder_is_found_again(tmp_path):
    tiny.t5(dtype=torch.float32).save_pretrained(tmp_path / "backbone")
    from transformers import AutoModelForSeq2SeqLM

    model = make(backbone=AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "backbone"))
    model.save_pretrained(tmp_path / "prompt")
    again = dp.from_pretrained(tmp_path / "prompt")
    ids, mask = tiny.batch([5, 3])
    labels = torch.tensor([[5], [6]])
    assert torch.equal(model(ids, mask, labels=labels).logits, again(ids, mask, labels=labels).logits)


def edit(folder, change):
    path = folder / "prompt_config.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def weights(folder) -> Path:
    return next(folder.glob("prompt-*.safetensors"))


def rewrite(folder, tensors):
    """Put other tensors into a checkpoint, with a right hash."""
    document = json.loads((folder / "prompt_config.json").read_text())
    checkpoint.save(folder, tensors, document["prompt"], document["backbone"])


DAMAGE = {
    "no checkpoint": (
        lambda f: (f / "prompt_config.json").unlink(),
        FileNotFoundError,
        "holds no prompt_config.json, expected a folder",
    ),
    "truncated config": (
        lambda f: (f / "prompt_config.json").write_text('{"format": 1, '),
        ValueError,
        "prompt_config.json is damaged, expected JSON",
    ),
    "config of another kind": (
        lambda f: (f / "prompt_config.json").write_text("[1]"),
        ValueError,
        "holds a list, expected a JSON object",
    ),
    "newer format": (
        lambda f: edit(f, lambda d: d.update(format=99)),
        ValueError,
        "format=99, expected 2: it was written by another version",
    ),
    "missing part": (
        lambda f: edit(f, lambda d: d.pop("weights")),
        ValueError,
        "is incomplete, expected prompt, backbone and weights",
    ),
    "unknown option": (
        lambda f: edit(f, lambda d: d["prompt"].update(flavour="sweet")),
        ValueError,
        "unknown option 'flavour'='sweet'",
    ),
    "bad option": (
        lambda f: edit(f, lambda d: d["prompt"].update(position=17)),
        ValueError,
        "position=17 is outside 0..4",
    ),
    "truncated weights": (
        lambda f: weights(f).write_bytes(weights(f).read_bytes()[:-5]),
        ValueError,
        "is damaged or truncated",
    ),
    "one flipped bit": (
        lambda f: weights(f).write_bytes(
            bytes([weights(f).read_bytes()[0] ^ 1]) + weights(f).read_bytes()[1:]
        ),
        ValueError,
        "is damaged or truncated",
    ),
    "missing weights": (lambda f: weights(f).unlink(), ValueError, "there is no such file beside it"),
    "weights elsewhere": (
        lambda f: edit(f, lambda d: d["weights"].update(file="../../other.bin")),
        ValueError,
        "there is no such file beside it",
    ),
    "missing tensor": (
        lambda f: rewrite(f, {"vectors": torch.zeros(4, 16)}),
        ValueError,
        r"holds the tensors \['vectors'\], expected",
    ),
    "tensor of another length": (
        lambda f: rewrite(f, {"vectors": torch.zeros(3, 16)}),
        ValueError,
        r"expected shape \(4, 16\), found \(3, 16\)",
    ),
    "no vectors": (
        lambda f: rewrite(f, {"other": torch.zeros(3)}),
        ValueError,
        r"tensor 'vectors' .* found no such tensor",
    ),
    "another kind of backbone": (
        lambda f: edit(f, lambda d: d["backbone"].update(model_type="bart")),
        ValueError,
        "model_type='bart', this one has model_type='t5'",
    ),
    "wider backbone": (
        lambda f: edit(f, lambda d: d["backbone"].update(width=512)),
        ValueError,
        "width=512, this one has width=16",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(saved, case):
    damage, error, message = DAMAGE[case]
    damage(saved)
    with pytest.raises(error, match=message):
        dp.from_pretrained(saved, tiny.t5(dtype=torch.float32))


WRITER = """
import sys, torch
from dplearn import checkpoint
print("ready", flush=True)
for version in range(10_000):
    checkpoint.save(sys.argv[1], {"vectors": torch.full((2000, 100), float(version))}, {"version": version}, {})
"""


def test_a_killed_writer_leaves_the_old_or_the_new_checkpoint(tmp_path):
    """Kill a process that saves in a loop, at many moments; what lies there is always whole and of one version."""
    versions = []
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE) as first:
        first.stdout.readline()
        while not (tmp_path / checkpoint.CONFIG).exists():
            time.sleep(0.01)
        for moment in range(20):  # stop, read what lies there, go on
            time.sleep(0.003 + 0.0017 * moment)
            os.kill(first.pid, signal.SIGSTOP)
            saved = checkpoint.read(tmp_path)
            assert (saved.tensors["vectors"] == saved.options["version"]).all()
            versions.append(saved.options["version"])
            os.kill(first.pid, signal.SIGCONT)
        first.kill()
    saved = checkpoint.read(tmp_path)
    assert (saved.tensors["vectors"] == saved.options["version"]).all()
    assert versions == sorted(versions) and versions[-1] > versions[0]


def test_a_failed_write_leaves_the_old_checkpoint_and_no_debris(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    monkeypatch.setattr(checkpoint.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        make("task").save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
