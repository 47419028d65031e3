"""Several prompts on one backbone: each answers as if it were alone, and taking them off leaves the backbone as it was."""

import copy

import pytest
import tiny
import torch

import dplearn as dp

IDS, MASK = tiny.batch([6, 3, 8])
LABELS = torch.tensor([[5, 6], [7, 8], [9, 10]])
CONFIGS = {
    "default": dp.PromptConfig(length=4, position="instance"),
    "short": dp.PromptConfig(length=2, position="postfix"),
    "pool": dp.PromptConfig(length=3, vector="instance", pool_size=2),
}


def vectors_of(name):
    config, generator = CONFIGS[name], torch.Generator().manual_seed(len(name))
    return torch.randn(*config.shape, tiny.WIDTH, generator=generator)


@pytest.fixture
def model():
    torch.manual_seed(0)
    found = dp.prompted(tiny.t5(dtype=torch.float32), CONFIGS["default"], vectors=vectors_of("default"))
    for name in ("short", "pool"):
        found.add_prompt(name, CONFIGS[name], vectors_of(name))
    return found.eval()


def answer(model):
    return model(IDS, MASK, labels=LABELS).logits


def test_each_prompt_answers_as_if_it_were_alone(model, tmp_path):
    assert model.prompts == ("default", "short", "pool") and model.active_prompt == "default"
    for name in ("pool", "default", "short", "pool"):
        model.use_prompt(name)
        alone = dp.prompted(tiny.t5(dtype=torch.float32), CONFIGS[name], vectors=vectors_of(name)).eval()
        alone.prompt.load_state_dict(model.prompt.state_dict())
        assert model.active_prompt == name and model.prompt_config == CONFIGS[name]
        assert torch.equal(answer(model), answer(alone))
        assert set(model.state_dict()) == set(alone.state_dict())  # what a checkpoint of the Trainer holds
        model.save_pretrained(tmp_path / name)
        again = dp.from_pretrained(tmp_path / name, tiny.t5(dtype=torch.float32)).eval()
        assert torch.equal(answer(again), answer(model))


def test_only_the_prompt_in_use_is_trained(model):
    model.use_prompt("short")
    before = {name: copy.deepcopy(p[0].state_dict()) for name, p in model._prompts.items() if p is not None}
    model.train()
    optimiser = torch.optim.SGD(model.trainable_parameters().values(), lr=1.0)
    model(IDS, MASK, labels=LABELS).loss.backward()
    optimiser.step()
    assert not torch.equal(model.prompt.vectors, vectors_of("short"))
    for name, state in before.items():
        model.use_prompt(name)
        assert all(torch.equal(tensor, model.prompt.state_dict()[key]) for key, tensor in state.items())


def test_a_named_prompt_is_saved_and_loaded_without_using_it(model, tmp_path):
    model.save_pretrained(tmp_path, name="pool")
    model.load_prompt("again", tmp_path)
    assert model.active_prompt == "default"
    found = []
    for name in ("pool", "again"):
        model.use_prompt(name)
        found.append(answer(model))
    assert torch.equal(*found)


def test_prompts_at_rest_move_with_the_model(model):
    model.double()
    model.use_prompt("pool")
    assert model.prompt.vectors.dtype == torch.float64 and answer(model).dtype == torch.float64


def test_unloading_gives_the_backbone_back_as_it_was():
    backbone = tiny.t5(dropout=0.1).train()
    backbone.lm_head.weight.requires_grad_(False)
    wanted = [name for name, p in backbone.named_parameters() if p.requires_grad]
    weights = copy.deepcopy(backbone.state_dict())
    model = dp.prompted(backbone, CONFIGS["default"])
    model.gradient_checkpointing_enable()
    model(IDS, MASK, labels=LABELS).loss.backward()
    found = model.unload()
    assert found is backbone and all(module.training for module in backbone.modules())
    assert [name for name, p in backbone.named_parameters() if p.requires_grad] == wanted
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.state_dict().items())
    assert not any(module._forward_hooks for module in backbone.modules())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in backbone.modules())
    with pytest.raises(RuntimeError, match="this model was unloaded"):
        model(IDS, MASK, labels=LABELS)


def test_the_summary_counts_what_training_can_change(model):
    model.use_prompt("pool")
    text, width = str(model.summary()), tiny.WIDTH
    trained = 2 * 3 * width + 2 * (width + 1)  # the pool, and one linear layer with two outputs
    assert f"trained     {trained:,} parameters" in text and "also there: default, short" in text
    frozen = sum(p.numel() for p in model.backbone.parameters())
    assert f"frozen      {frozen:,} parameters" in text
    dead = dp.prompted(tiny.t5(), dp.PromptConfig(length=5, size=2))
    assert f"trained     {2 * width:,} parameters" in str(dead.summary())
    assert f"not in use  {3 * width:,} parameters" in str(dead.summary())


def test_the_summary_tells_the_size_of_the_checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert f"checkpoint  {size:,} bytes" in str(model.summary())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m.use_prompt("long"),
            r"name='long' is unknown, expected one of \['default', 'short', 'pool'\]",
        ),
        (lambda m: m.save_pretrained("nowhere", name="long"), "name='long' is unknown"),
        (lambda m: m.add_prompt("pool"), "name='pool' is taken"),
        (lambda m: m.add_prompt(""), "name='' is not valid, expected a string that is not empty"),
        (lambda m: m.remove_prompt("default"), "name='default' is in use"),
        (
            lambda m: m.add_prompt("wide", vectors=torch.zeros(20, 3)),
            r"vectors has shape \(20, 3\), expected",
        ),
    ],
)
def test_bad_names_are_named(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)
    assert model.prompts == ("default", "short", "pool")


def test_a_removed_prompt_is_gone(model):
    model.remove_prompt("short")
    assert model.prompts == ("default", "pool")
