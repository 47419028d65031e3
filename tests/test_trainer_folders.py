"""Folders that transformers.Trainer writes: they hold a state dict alone, and its settings travel as one more tensor."""

import os

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import dplearn as dp
from dplearn import checkpoint


class Data(Dataset):
    """Eight inputs with a word as their answer."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        ids, mask = tiny.batch([5], seed=index)
        return dict(input_ids=ids[0], attention_mask=mask[0], labels=torch.tensor([3 + index, 1]))


def make(**options):
    torch.manual_seed(1)
    return dp.prompted(
        tiny.t5(dtype=torch.float32), dp.PromptConfig(**dict(length=4, position="postfix", size=3) | options)
    )


def trainer(model, folder, **options):
    usual = dict(
        max_steps=4, save_steps=2, logging_steps=1, learning_rate=0.1, per_device_train_batch_size=4,
        report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="steps",
    )  # fmt: skip
    return Trainer(model, TrainingArguments(str(folder), **usual | options), train_dataset=Data())


def answer(model):
    ids, mask = tiny.batch([5, 3])
    with torch.no_grad():
        return model.eval()(ids, mask, labels=torch.tensor([[5], [6]])).logits


@pytest.mark.parametrize("options", [{}, {"position": "instance", "vector": "task", "pool_size": 2}])
def test_a_folder_of_save_model_loads_as_the_prompt_that_it_holds(options, tmp_path):
    model = make(**options)
    run = trainer(model, tmp_path / "run", save_strategy="no")
    run.train()
    run.save_model(str(tmp_path / "saved"))
    assert sorted(os.listdir(tmp_path / "saved")) == ["model.safetensors", "training_args.bin"]
    again = dp.from_pretrained(tmp_path / "saved", tiny.t5(dtype=torch.float32))
    assert again.prompt_config == model.prompt_config
    assert torch.equal(answer(again), answer(model))
    other = make(position="prefix")
    other.load_prompt("saved", tmp_path / "saved")
    other.use_prompt("saved")
    assert torch.equal(answer(other), answer(model))


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path):
    half, rest, constant = make(), make(), make()
    trainer(half, tmp_path / "half", max_steps=2, lr_scheduler_type="constant").train()
    trainer(constant, tmp_path / "constant", lr_scheduler_type="constant").train()
    run = trainer(rest, tmp_path / "half", lr_scheduler_type="constant")
    run.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-2"))
    assert run.state.global_step == 4
    assert torch.equal(rest.prompt.vectors, constant.prompt.vectors)
    assert not torch.equal(rest.prompt.vectors, half.prompt.vectors)
    again = dp.from_pretrained(tmp_path / "half" / "checkpoint-4", tiny.t5(dtype=torch.float32))
    assert torch.equal(answer(again), answer(rest))


def test_another_prompt_does_not_take_up_a_state_that_means_something_else(tmp_path):
    state = make().state_dict()
    make(temperature=0.5, estimator="exact").load_state_dict(state)
    with pytest.raises(ValueError, match="saved with position='postfix', this prompt has position='prefix'"):
        make(position="prefix").load_state_dict(state)


def write_state(folder, state):
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "training_args.bin").write_bytes(b"a pickle")


WRONG = {
    "no settings": (lambda s: s.pop("_extra_state"), ValueError, "holds the tensors of a prompt without its settings"),
    "no prompt": (lambda s: (s.clear(), s.update(weight=torch.ones(2))), ValueError, "holds 'training_args.bin' and no prompt_config.json"),
    "settings of another kind": (lambda s: s.update(_extra_state=torch.ones(3)), ValueError, "holds no settings of a prompt"),
    "damaged settings": (
        lambda s: s.update(_extra_state=s["_extra_state"][:-9].clone()), ValueError, "is damaged, expected JSON",
    ),
    "edited settings": (
        lambda s: s.update(_extra_state=torch.tensor(list(bytes(s["_extra_state"].tolist()).replace(b"postfix", b"prefix")), dtype=torch.uint8)),
        ValueError, "was changed after it was written",
    ),
    "not finite": (lambda s: s["prompt.vectors"].fill_(torch.nan), ValueError, "NaN or infinite"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_such_a_folder_is_named(case, tmp_path):
    change, error, message = WRONG[case]
    state = {name: tensor.detach().clone() for name, tensor in make().state_dict().items()}
    change(state)
    write_state(tmp_path / "saved", state)
    with pytest.raises(error, match=message):
        dp.from_pretrained(tmp_path / "saved", tiny.t5(dtype=torch.float32))


@pytest.mark.parametrize("options", [{}, {"position": "instance", "vector": "task", "pool_size": 2}])
def test_a_flipped_bit_anywhere_in_the_data_is_found(options, tmp_path):
    """Every 7th byte, and one of its bits: of vectors, controllers, statistics and settings alike."""
    write_state(
        tmp_path / "saved", {name: each.clone() for name, each in make(**options).state_dict().items()}
    )
    path = tmp_path / "saved" / "model.safetensors"
    data, found = path.read_bytes(), 0
    start = 8 + int.from_bytes(data[:8], "little")
    for place in range(start, len(data), 7):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="model.safetensors"):
            checkpoint.read(tmp_path / "saved")
        found += 1
    assert found > 200
    path.write_bytes(data)
    assert checkpoint.read(tmp_path / "saved").options["length"] == 4


def test_tensors_that_were_edited_on_purpose_go_through_a_model(tmp_path):
    state = make().state_dict()
    state["prompt.vectors"] = state["prompt.vectors"] / 2
    write_state(tmp_path / "saved", state)
    with pytest.raises(
        ValueError, match="another SHA-256 than its settings record.*give these tensors to load_state_dict"
    ):
        checkpoint.read(tmp_path / "saved")
    model = make()
    model.load_state_dict(state)
    model.save_pretrained(tmp_path / "again")
    again = dp.from_pretrained(tmp_path / "again", tiny.t5(dtype=torch.float32))
    assert torch.equal(again.prompt.vectors, make().prompt.vectors / 2)


def test_the_folder_of_a_backbone_is_no_checkpoint_and_its_weights_are_not_read(tmp_path, monkeypatch):
    tiny.t5().save_pretrained(tmp_path)
    monkeypatch.setattr(checkpoint, "read_tensors", lambda *_: pytest.fail("the weights were read"))
    with pytest.raises(FileNotFoundError, match="holds no prompt_config.json, expected a folder written by"):
        dp.from_pretrained(tmp_path, tiny.t5())
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="model.safetensors is damaged, expected safetensors"):
        dp.from_pretrained(tmp_path, tiny.t5())


def test_a_prompt_that_was_saved_as_a_checkpoint_too_is_read_from_there(tmp_path):
    write_state(tmp_path / "saved", {name: tensor.detach() for name, tensor in make().state_dict().items()})
    make(position=2).save_pretrained(tmp_path / "saved")
    assert dp.from_pretrained(tmp_path / "saved", tiny.t5(dtype=torch.float32)).prompt_config.position == 2


def test_the_state_has_one_tensor_beside_the_parameters(tmp_path):
    model = make()
    save_file(model.state_dict(), tmp_path / "state.safetensors")
    state = load_file(tmp_path / "state.safetensors")
    assert set(state) == {*model.trainable_parameters(), "_extra_state"}
    assert len(state["_extra_state"]) < 5000
