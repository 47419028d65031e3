"""Several prompts on one backbone: each answers as if it were alone, and taking them off leaves the backbone as it was."""

import copy

import pytest
import tiny
import torch

import dplearn as dp

IDS, MASK = tiny.batch([6, 3, 8])
LABELS = torch.tensor([[5, 6], [7, 8], [9, 10]])
CONFIGS = {
    "default": dp.PromptConfig(length=4, position="instance", controller_init="uniform"),
    "short": dp.PromptConfig(length=2, position="postfix"),
    "pool": dp.PromptConfig(length=3, vector="instance", pool_size=2, controller_init="uniform"),
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
    optimizer = torch.optim.SGD(model.trainable_parameters().values(), lr=1.0)
    model(IDS, MASK, labels=LABELS).loss.backward()
    optimizer.step()
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


def test_switching_back_gives_the_same_module_and_the_same_answer(model):
    first, expected = model.prompt, answer(model)
    model.use_prompt("pool")
    assert model.prompt is not first and not torch.equal(answer(model), expected)
    model.use_prompt("default")
    assert model.prompt is first and torch.equal(answer(model), expected)
    model.use_prompt("default")  # it is in use already
    assert model.prompt is first and model.prompts == ("default", "short", "pool")


def test_a_prompt_that_is_put_to_use_takes_the_mode_of_the_model():
    """Each prompt has its own say about the backbone's dropout."""
    model = dp.prompted(tiny.t5(dropout=0.5), CONFIGS["short"])
    model.add_prompt("noisy", dp.PromptConfig(length=2, backbone_dropout=True))
    model.train()
    for name, noisy in (("noisy", True), ("default", False), ("noisy", True)):
        model.use_prompt(name)
        assert model.prompt.training and model.backbone.training is noisy
    model.eval()
    model.use_prompt("default")
    assert not model.prompt.training and not model.backbone.training


def test_a_new_task_and_a_temperature_belong_to_the_prompt_in_use():
    config = dp.PromptConfig(length=2, position="task")
    model = dp.prompted(tiny.t5(), config)
    model.add_prompt("other", config)
    model.add_task("new")
    model.set_temperature(0.25)
    for name, tasks, temperature in (("other", None, 1.0), ("default", ("default", "new"), 0.25)):
        model.use_prompt(name)
        assert model.prompt_config.tasks == tasks
        assert len(model.prompt.position.controller.logits) == (2 if tasks else 1)
        assert model.prompt.position.chooser.temperature == temperature


def test_generation_and_decisions_are_those_of_the_prompt_in_use(model):
    alone = dp.prompted(tiny.t5(dtype=torch.float32), CONFIGS["short"], vectors=vectors_of("short")).eval()
    model.use_prompt("short")
    options = dict(max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True)
    found, expected = (one.generate(IDS, MASK, **options).logits for one in (model, alone))
    assert all(torch.equal(*pair) for pair in zip(found, expected))
    assert model.decide(IDS, MASK)["position"].index.tolist() == [0, 0, 0]


def test_a_copy_of_the_model_has_prompts_of_its_own(model):
    copied = copy.deepcopy(model)
    copied.use_prompt("short")
    with torch.no_grad():
        copied.prompt.vectors.fill_(0)
    model.use_prompt("short")
    assert torch.equal(model.prompt.vectors, vectors_of("short")) and copied.prompts == model.prompts


def test_a_compiled_model_answers_with_the_prompt_in_use(model):
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for name in ("default", "short", "default"):
        model.use_prompt(name)
        found = compiled(IDS, MASK, labels=LABELS).logits
        torch.testing.assert_close(found, answer(model), rtol=1e-5, atol=1e-5)


def test_a_prompt_that_the_backbone_cannot_serve_is_refused_when_it_is_added():
    model = dp.prompted(tiny.t5(), CONFIGS["short"])
    model.adapter.refuses_position_space = lambda: "for a test"
    config = dp.PromptConfig(length=2, position="task", estimator="position-space")
    with pytest.raises(ValueError, match="estimator='position-space' cannot be used: for a test"):
        model.add_prompt("other", config)
    assert model.prompts == ("default",)


def test_a_checkpoint_of_another_backbone_is_refused_when_it_is_loaded(model, tmp_path):
    dp.prompted(tiny.bart(dtype=torch.float32), CONFIGS["short"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type='bart', this one has model_type='t5'"):
        model.load_prompt("other", tmp_path)
    with pytest.raises(ValueError, match="name='pool' is taken"):
        model.load_prompt("pool", tmp_path)
    assert model.prompts == ("default", "short", "pool")


BACKBONES = {"t5": tiny.t5, "bart": tiny.bart, "gpt2": tiny.gpt2, "llama": tiny.llama, "bert": tiny.bert}


def state_of(backbone):
    """All that a prompt could leave behind: flags, modes, hooks, replaced methods, settings, weights."""
    modules = dict(backbone.named_modules())
    kinds = [name for name in vars(torch.nn.Module()) if name.endswith("hooks")]
    return {
        "wanted": [name for name, p in backbone.named_parameters() if p.requires_grad],
        "training": [name for name, module in modules.items() if module.training],
        "hooks": [len(getattr(module, kind)) for module in modules.values() for kind in kinds],
        "checkpointing": [n for n, m in modules.items() if getattr(m, "gradient_checkpointing", False)],
        "methods": [n for n, m in modules.items() if {"forward", "compute_bias"} & set(vars(m))],
        "config": backbone.config.to_dict(),
        "weights": {name: tensor.tolist() for name, tensor in backbone.state_dict().items()},
    }


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("estimator", ["straight-through", "position-space"])
def test_unloading_gives_the_backbone_back_as_it_was(kind, estimator):
    """Some parameters frozen, some modules in another mode: all of it is there again after training and a switch."""
    backbone = BACKBONES[kind]().train()
    names = [name for name, _ in backbone.named_parameters()]
    for name in names[::3]:
        backbone.get_parameter(name).requires_grad_(False)
    next(module for module in backbone.modules() if isinstance(module, torch.nn.Embedding)).eval()
    before = state_of(backbone)
    assert 0 < len(before["wanted"]) < len(names) and len(before["training"]) > 1
    model = dp.prompted(backbone, dp.PromptConfig(length=3, position="instance", estimator=estimator)).train()
    model.add_prompt("other", dp.PromptConfig(length=2, backbone_dropout=True))
    for name in ("default", "other"):
        model.use_prompt(name)
        given = {"labels": LABELS} if kind in ("t5", "bart") else {}
        given |= {"keep_last": 1} if kind in ("gpt2", "llama") else {}
        output = model(IDS, MASK, **given)
        output[0].sum().backward()
    torch.optim.SGD(model.trainable_parameters().values(), lr=1.0).step()
    assert state_of(backbone) != before  # frozen, and in another mode
    assert model.unload() is backbone and state_of(backbone) == before
    again = dp.prompted(backbone, CONFIGS["short"])
    assert again.unload() is backbone and state_of(backbone) == before


@pytest.mark.parametrize("times", [1, 2])
def test_unloading_turns_off_the_checkpointing_that_came_through_the_model(times):
    backbone = tiny.t5()
    before = state_of(backbone)
    model = dp.prompted(backbone, CONFIGS["short"]).train()
    for _ in range(times):
        model.gradient_checkpointing_enable()
    assert state_of(backbone)["checkpointing"] and sum(state_of(backbone)["hooks"]) > 0
    assert model.unload() is backbone and state_of(backbone) == before


def test_unloading_leaves_what_was_set_before_the_model():
    backbone = tiny.t5()
    backbone.gradient_checkpointing_enable()
    backbone.lm_head.register_forward_hook(lambda *_: None)
    before = state_of(backbone)
    assert before["checkpointing"] and sum(before["hooks"]) > 1
    model = dp.prompted(backbone, CONFIGS["short"])
    model.gradient_checkpointing_enable()
    model.unload()
    assert state_of(backbone) == before


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m(IDS, MASK, labels=LABELS),
        lambda m: m.generate(IDS, MASK),
        lambda m: m.save_pretrained("nowhere"),
        lambda m: m.summary(),
        lambda m: m.unload(),
        lambda m: m.device,
        lambda m: m.config,
    ],
)
def test_an_unloaded_model_says_so(model, call):
    model.unload()
    with pytest.raises(RuntimeError, match="this model was unloaded: its backbone is free; make a new one"):
        call(model)


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
        (lambda m: m.add_prompt(3), "name=3 is not valid, expected a string that is not empty"),
        (lambda m: m.remove_prompt("long"), "name='long' is unknown, expected one of"),
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
