"""Checkpoints: exact round trips, one error per kind of damage, and no stop that leaves half of one."""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from stored import edit, name_backbone

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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tensors_come_back_in_the_dtype_in_which_they_were_saved(tmp_path, dtype):
    """Vectors and controllers alike: a checkpoint in float64 used to come back with rounded controllers."""
    model = make("instance")
    model.prompt.to(dtype)
    model.save_pretrained(tmp_path)
    again = dp.from_pretrained(tmp_path, tiny.t5(dtype=torch.float32))
    for name, parameter in model.trainable_parameters().items():
        found = again.trainable_parameters()[name]
        assert found.dtype == dtype and found.requires_grad and torch.equal(found, parameter)


def test_a_checkpoint_holds_no_path_of_this_machine_and_says_that_it_needs_the_backbone(tmp_path):
    """A path from before, when it was recorded, still leads to the backbone."""
    tiny.t5(dtype=torch.float32).save_pretrained(tmp_path / "backbone")
    from transformers import AutoModelForSeq2SeqLM

    model = make(backbone=AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "backbone"))
    model.save_pretrained(tmp_path / "prompt")
    assert str(tmp_path) not in (tmp_path / "prompt" / "prompt_config.json").read_text()
    with pytest.raises(
        ValueError, match=r"cannot be loaded by name: expected from_pretrained\(folder, backbone"
    ):
        dp.from_pretrained(tmp_path / "prompt")
    name_backbone(tmp_path / "prompt", tmp_path / "backbone")
    again = dp.from_pretrained(tmp_path / "prompt")
    ids, mask = tiny.batch([5, 3])
    labels = torch.tensor([[5], [6]])
    assert torch.equal(model(ids, mask, labels=labels).logits, again(ids, mask, labels=labels).logits)


def weights(folder) -> Path:
    return next(folder.glob("prompt-*.safetensors"))


def rewrite(folder, tensors):
    """Put other tensors into a checkpoint, with a right hash."""
    document = json.loads((folder / "prompt_config.json").read_text())
    checkpoint.save(folder, tensors, document["prompt"], document["backbone"])


class Ran:
    """A pickle of this stops the tests when it is loaded."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was loaded')",)


def only_a_pickle(folder, name):
    weights(folder).unlink()
    (folder / "prompt_config.json").unlink()
    (folder / name).write_bytes(pickle.dumps(Ran()))


def name_weights(folder, name, data):
    """Put other weights in place, with a right hash."""
    (folder / name).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    weights = {"file": name, "sha256": digest, "bytes": len(data)}
    edit(folder, lambda document: document.update(weights=weights))


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
        "format=99, expected 4: it was written by another version",
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
    "another class of backbone": (
        lambda f: edit(f, lambda d: d["backbone"].update({"class": "T5EncoderModel"})),
        ValueError,
        "class='T5EncoderModel', this one has class='T5ForConditionalGeneration'",
    ),
    "another vocabulary": (
        lambda f: edit(f, lambda d: d["backbone"].update(vocabulary=61)),
        ValueError,
        "vocabulary=61, this one has vocabulary=60",
    ),
    "nothing about the backbone": (
        lambda f: edit(f, lambda d: d.update(backbone={})),
        ValueError,
        "model_type=None, this one has model_type='t5'",
    ),
    "wider vectors": (
        lambda f: rewrite(f, {"vectors": torch.zeros(4, 32)}),
        ValueError,
        r"tensor 'vectors' .* expected shape \(4, 16\), found \(4, 32\)",
    ),
    "vectors of integers": (
        lambda f: rewrite(f, {"vectors": torch.zeros(4, 16, dtype=torch.int64)}),
        ValueError,
        "tensor 'vectors' .* expected floating point, found torch.int64",
    ),
    "an older format": (
        lambda f: edit(f, lambda d: d.update(format=1)),
        ValueError,
        "format=1, expected 4: it was written by another version",
    ),
    "weights that are no safetensors, with a right hash": (
        lambda f: name_weights(f, "prompt-0.safetensors", b"\x80\x04N."),
        ValueError,
        "prompt-0.safetensors is damaged, expected safetensors",
    ),
    "weights in a pickle": (
        lambda f: name_weights(f, "prompt.bin", pickle.dumps(Ran())),
        ValueError,
        "names 'prompt.bin', expected a .safetensors file: pickles are never loaded",
    ),
    "a PEFT checkpoint": (
        lambda f: (weights(f).rename(f / "adapter_model.safetensors"), (f / checkpoint.CONFIG).unlink()),
        FileNotFoundError,
        "holds no prompt_config.json, expected a folder written by save_pretrained .*import_peft",
    ),
} | {
    f"only {name}": (
        lambda f, name=name: only_a_pickle(f, name),
        ValueError,
        f"holds '{name}' and no prompt_config.json: pickles are never loaded, they can run code",
    )
    for name in ("model.bin", "model.pt", "model.pth", "model.pkl", "model.pickle", "model.ckpt")
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(saved, case):
    damage, error, message = DAMAGE[case]
    damage(saved)
    backbone = tiny.t5(dtype=torch.float32)
    with pytest.raises(error, match=message):
        dp.from_pretrained(saved, backbone)
    assert all(parameter.requires_grad for parameter in backbone.parameters())  # it was not frozen


@pytest.mark.parametrize(
    "description",
    [
        {"name_or_path": ""},
        {"name_or_path": "somewhere", "class": "pipeline"},
        {"name_or_path": "somewhere", "class": "AutoModel"},
        {"name_or_path": "somewhere", "class": "NoSuchModel"},
    ],
)
def test_a_backbone_that_cannot_be_found_by_name_has_to_be_given(saved, description):
    edit(saved, lambda document: document["backbone"].update(description))
    kind = description.get("class", "T5ForConditionalGeneration")
    message = (
        f"class='{kind}' and name_or_path='{description['name_or_path']}', which cannot be loaded by name"
    )
    with pytest.raises(ValueError, match=message):
        dp.from_pretrained(saved)


# --- the card ---


def card_of(folder):
    """The front matter of a card, and the text behind it."""
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("google/flan-t5-small", "google/flan-t5-small"),
        ("gpt2", "gpt2"),
        ("123/456", "123/456"),  # would be a string in YAML anyway
        ("1e3", "1e3"),  # would be a number without quotes
        ("t5-mini", None),  # ships with the package
        ("", None),
        ("../somewhere/else", None),
        ("/".join(["", "srv", "models", "mine"]), None),
    ],
)
def test_the_card_names_the_backbone_where_it_has_a_name_that_others_can_use(tmp_path, name, base):
    backbone = tiny.t5(dtype=torch.float32)
    backbone.name_or_path = name
    make(backbone=backbone).save_pretrained(tmp_path)
    front, text = card_of(tmp_path)
    assert front.get("base_model") == base and ("base_model_relation" in front) == (base is not None)
    assert ('dp.from_pretrained("this-folder")' in text) == (base is not None or name == "t5-mini")
    assert "srv" not in f"{front}{text}" and "somewhere" not in f"{front}{text}"


def test_a_folder_of_this_machine_is_no_name_of_a_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "model").mkdir(parents=True)
    backbone = tiny.t5(dtype=torch.float32)
    backbone.name_or_path = "someone/model"
    make(backbone=backbone).save_pretrained(tmp_path / "prompt")
    front, text = card_of(tmp_path / "prompt")
    assert "base_model" not in front and "someone" not in f"{front}{text}"


def test_the_card_says_what_the_prompt_is(tmp_path):
    options = dict(size=3, vector="task", pool_size=2, tasks=["rte", "boolq"])
    model = make("instance", **options)
    model.save_pretrained(tmp_path)
    _, text = card_of(tmp_path)
    trained = (
        2 * 3 * 16 + (16 + 1) * 5 + 2 * 2
    )  # vectors in use, the split's linear layer, weights for two tasks
    for words in (
        "# A prompt for T5ForConditionalGeneration",
        "4 vectors of width 16",
        "- Where: a split in 0..3",
        "decided for each input from the mean of its embeddings.",
        "- How many: the first 3 of 4; 1 vector is not in use.",
        "- Which: a mixture (softmax) out of a pool of 2, learned for each task.",
        f"- Trained parameters: {trained} (32 more are not in use).",
        "- Tasks: 'rte', 'boolq'.",
        f"Written by dplearn {dp.__version__}.",
    ):
        assert words in text


def test_the_lines_of_code_in_a_card_load_the_prompt(tmp_path):
    model = make("task", backbone=dp.zoo.load("t5-mini")[0])
    model.save_pretrained(tmp_path)
    code = card_of(tmp_path)[1].split("```python\n")[1].split("```")[0]
    names = {}
    exec(code.replace("this-folder", str(tmp_path)), names)
    assert torch.equal(names["model"].prompt.vectors, model.prompt.vectors)


def test_a_card_is_renewed_and_a_text_of_ones_own_is_kept(saved):
    make("postfix").save_pretrained(saved)
    assert "- Where: after the input (postfix)." in (saved / "README.md").read_text()
    (saved / "README.md").write_bytes(b"My own words, not even in UTF-8: \xff")
    make("prefix").save_pretrained(saved)
    assert (saved / "README.md").read_bytes() == b"My own words, not even in UTF-8: \xff"
    assert dp.from_pretrained(saved, tiny.t5(dtype=torch.float32)).prompt_config.position == "prefix"


# --- a stop at any moment ---


WRITER = """
import sys, torch
from dplearn import checkpoint
print("ready", flush=True)
for version in range(10_000):
    tensors = {"vectors": torch.full((2000, 100), float(version))}
    checkpoint.save(sys.argv[1], tensors, {"version": version}, {}, f"# {version}")
"""


def test_a_killed_writer_leaves_the_old_or_the_new_checkpoint(tmp_path):
    """Kill a process that saves in a loop, at many moments; what lies there is always whole and of one version."""
    versions = []
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE) as first:
        try:
            first.stdout.readline()
            while not (tmp_path / checkpoint.CONFIG).exists():
                assert first.poll() is None
                time.sleep(0.01)
            end, moment = time.monotonic() + 60, 0
            # Stop, read what lies there, go on: 20 times, and until it has been seen to write something new.
            while moment < 20 or (versions[-1] == versions[0] and time.monotonic() < end):
                moment += 1
                time.sleep(0.003 + 0.0017 * moment)
                os.kill(first.pid, signal.SIGSTOP)
                saved = checkpoint.read(tmp_path)
                assert (saved.tensors["vectors"] == saved.options["version"]).all()
                versions.append(saved.options["version"])
                os.kill(first.pid, signal.SIGCONT)
        finally:
            first.kill()  # leaving the block waits for its end, and a stopped process never ends
    saved = checkpoint.read(tmp_path)
    assert (saved.tensors["vectors"] == saved.options["version"]).all()
    assert versions == sorted(versions) and versions[-1] > versions[0]


def test_the_same_prompt_is_the_same_bytes():
    """Its file is named by them: a prompt that is saved or sent again must not look like another one."""
    model = make("instance")
    written = [checkpoint.files(*model._checkpoint(model.active_prompt)) for _ in range(20)]
    assert all(each == written[0] for each in written)


def test_a_failed_write_leaves_the_old_checkpoint_and_no_debris(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    monkeypatch.setattr(checkpoint.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        make("task").save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_stop_before_each_step_leaves_the_old_or_the_new_checkpoint(tmp_path, monkeypatch):
    """The three files are renamed one after the other: tensors, card, JSON. Only the last one commits."""
    real, found = checkpoint.os.replace, []
    for stop in range(4):
        folder, count = tmp_path / str(stop), 0
        make("prefix").save_pretrained(folder)

        def replace(source, target, stop=stop):
            nonlocal count
            if count == stop:
                raise OSError("stopped")
            count += 1
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.os, "replace", replace)
            try:
                make("postfix").save_pretrained(folder)
            except OSError as error:
                assert str(error) == "stopped"
        found.append(dp.from_pretrained(folder, tiny.t5(dtype=torch.float32)).prompt_config.position)
        assert not list(folder.glob(".*.tmp"))
    assert found == ["prefix", "prefix", "prefix", "postfix"]


def test_a_reader_that_is_overtaken_by_a_writer_follows_it(saved, monkeypatch):
    """Between the JSON file and the tensors, another process saves: the tensors that JSON named are gone."""
    tensors, old = {"vectors": torch.full((4, 16), 7.0)}, json.loads((saved / checkpoint.CONFIG).read_text())
    real, overtaken = checkpoint.parse, []

    def parse(path, text):
        if not overtaken:
            overtaken.append(path)
            checkpoint.save(saved, tensors, old["prompt"] | {"position": "postfix"}, old["backbone"])
        return real(path, text)

    monkeypatch.setattr(checkpoint, "parse", parse)
    found = checkpoint.read(saved)
    assert overtaken and torch.equal(found.tensors["vectors"], tensors["vectors"])
    assert found.options["position"] == "postfix"
