"""Several tasks on one prompt: a mixed batch equals each task alone, and a new task leaves the others as they were."""

import json

import naive
import pytest
import tiny
import torch
from naive import LENGTH, POOL
from torch.testing import assert_close

import dplearn as dp

EXACT = {"rtol": 1e-10, "atol": 1e-10}
NAMES = ["boolq", "rte", "wic"]
IDS, MASK = tiny.batch([6, 3, 8, 5, 7, 4], seed=1)
LABELS = torch.arange(12).view(6, 2) + 5
MIXED = [2, 0, 1, 1, 2, 0]
KINDS = {
    "position": {"position": "task"},
    "size": {"size": "task"},
    "vector": {"vector": "task"},
    "hard vector": {"vector": "task", "mixing": "hard"},
    "all": {"position": "task", "size": "task", "vector": "task"},
    "task and instance": {"position": "task", "size": "instance", "vector": "instance"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind, tasks=tuple(NAMES), seed=0, **options):
    """A model whose tasks differ in what they decide."""
    model = naive.prompted(seed, tasks=tasks, **KINDS[kind], **options)
    with torch.no_grad():
        for part in model.prompt.parts.values():
            logits = getattr(getattr(part, "controller", None), "logits", None)
            if logits is not None:
                logits += 2 * torch.eye(3, logits.shape[1])[: len(logits)]
    return model


def alone(model, kind, task):
    """The model of one task, made without names, with that task's logits."""
    single = naive.prompted(**KINDS[kind])
    state = {
        name: tensor[task : task + 1] if name.endswith("controller.logits") else tensor
        for name, tensor in model.state_dict().items() if name != "_extra_state"
    }  # fmt: skip
    single.load_state_dict(state)
    return single


# --- mixed batches ---


@every_kind
def test_a_mixed_batch_equals_each_task_alone(kind):
    model = make(kind)
    together = model(IDS, MASK, labels=LABELS, task_ids=torch.tensor(MIXED))
    assert_close(together.logits, naive.answer(model, IDS, MASK, LABELS, MIXED), **EXACT)
    for task in range(3):
        rows = [row for row, number in enumerate(MIXED) if number == task]
        one = alone(model, kind, task)(IDS[rows], MASK[rows], labels=LABELS[rows])
        assert_close(together.logits[rows], one.logits, **EXACT)
    other = model(IDS, MASK, labels=LABELS, task_ids=torch.zeros(6).long()).logits
    assert not torch.allclose(together.logits, other, atol=1e-3)  # the tasks do differ


@every_kind
def test_gradients_of_a_mixed_batch_are_those_of_the_mixture_by_hand(kind):
    model, two = make(kind).train(), [0, 2, 2, 0, 0, 2]
    torch.manual_seed(4)
    loss = model(IDS, MASK, labels=LABELS, task_ids=torch.tensor(two)).loss
    loss.backward()
    torch.manual_seed(4)
    expected, gradients = naive.training_gradients(model, IDS, MASK, LABELS, two)
    assert_close(loss, expected, **EXACT)
    for name, parameter in model.trainable_parameters().items():
        assert_close(parameter.grad, gradients[name], rtol=1e-8, atol=1e-10)
        if name.endswith("controller.logits"):
            assert not parameter.grad[1].any() and parameter.grad[[0, 2]].any(1).all()


@every_kind
def test_generation_takes_the_task_of_each_instance(kind):
    model, options = make(kind), {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    together = model.generate(IDS, MASK, task_ids=MIXED, **options)
    for task in range(3):
        rows = [row for row, number in enumerate(MIXED) if number == task]
        assert torch.equal(
            together[rows], alone(model, kind, task).generate(IDS[rows], MASK[rows], **options)
        )


@every_kind
def test_decisions_are_those_of_the_named_tasks(kind):
    model = make(kind)
    expected = naive.decide(model, IDS, MASK, MIXED)
    decided = model.decide(IDS, MASK, task_ids=[NAMES[task] for task in MIXED])
    for part, choice in decided.items():
        assert torch.equal(choice.index, expected[part].argmax(1))


# --- names and numbers ---


def test_names_and_numbers_are_the_same():
    model = make("all")
    expected = model(IDS, MASK, labels=LABELS, task_ids=torch.tensor(MIXED)).logits
    mixture = [NAMES[task] if row % 2 else task for row, task in enumerate(MIXED)]
    for form in ([NAMES[task] for task in MIXED], MIXED, tuple(MIXED), mixture, torch.tensor(MIXED).int()):
        assert torch.equal(model(IDS, MASK, labels=LABELS, task_ids=form).logits, expected)


@pytest.mark.parametrize(
    ("task_ids", "message"),
    [
        (None, "task_ids=None, expected one of"),
        (["rte"] * 5 + ["cb"], r"task_ids holds 'cb', expected some of \['boolq', 'rte', 'wic'\]"),
        ([0, 1, 2, 3, 0, 0], r"task_ids holds 0..3, expected 0..2: \['boolq', 'rte', 'wic'\]"),
        ([0, 1, 2, -1, 0, 0], "task_ids holds -1..2, expected 0..2"),
        ([0, 1], r"task_ids has shape \(2,\) and dtype torch.int64, expected integers \(6,\)"),
        (torch.zeros(6), r"task_ids has shape \(6,\) and dtype torch.float32"),
        (torch.zeros(6, 1).long(), r"task_ids has shape \(6, 1\)"),
    ],
)
def test_bad_task_ids_are_named(task_ids, message):
    model = make("position")
    for call in (model, model.generate, model.decide):
        options = {"labels": LABELS} if call is model else {}
        with pytest.raises(ValueError, match=message):
            call(IDS, MASK, task_ids=task_ids, **options)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], r"tasks=\[\] is not valid, expected a list of names"),
        ("rte", "tasks='rte' is not valid, expected a list of names"),
        (["rte", ""], "expected a list of names"),
        (["rte", 3], "expected a list of names"),
        (["rte", "wic", "rte"], r"tasks=\['rte', 'wic', 'rte'\] is not valid, expected names that differ"),
    ],
)
def test_bad_names_are_named(tasks, message):
    with pytest.raises(ValueError, match=message):
        dp.PromptConfig(tasks=tasks)


# --- adding a task ---


@every_kind
def test_a_new_task_gets_its_own_rows_and_changes_nothing_else(kind):
    model = make(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objects = dict(model.trainable_parameters())
    expected = model(IDS, MASK, labels=LABELS, task_ids=MIXED).logits
    model.add_task("cb")
    assert model.prompt_config.tasks == (*NAMES, "cb")
    assert torch.equal(model(IDS, MASK, labels=LABELS, task_ids=MIXED).logits, expected)
    after = model.state_dict()
    assert list(after) == list(before)
    for name, tensor in before.items():
        if name == "_extra_state":  # the settings, with the new name in them
            assert not torch.equal(after[name], tensor)
        elif name.endswith("controller.logits"):
            assert after[name].shape == (4, tensor.shape[1]) and torch.equal(after[name][:3], tensor)
            assert -0.5 <= after[name][3].min() < after[name][3].max() <= 0.5  # as the first ones start
        else:  # vectors, pool and controllers that look at the input are shared
            assert torch.equal(after[name], tensor)
            assert model.trainable_parameters().get(name) is objects.get(name)
    for form in (["cb"] * 6, [3] * 6):
        found = model(IDS, MASK, labels=LABELS, task_ids=form).logits
        assert torch.equal(found, alone(model, kind, 3)(IDS, MASK, labels=LABELS).logits)


def test_a_new_task_can_be_trained_without_moving_the_others():
    model = make("all")
    model.add_task("cb")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()(IDS, MASK, labels=LABELS, task_ids=["cb"] * 6).loss.backward()
    named = model.trainable_parameters()
    torch.optim.SGD([p for name, p in named.items() if name != "prompt.vectors"], lr=1.0).step()
    for name, parameter in named.items():
        if name != "prompt.vectors":
            assert torch.equal(parameter[:3], before[name][:3]) and not torch.equal(
                parameter[3], before[name][3]
            )


def test_a_model_without_names_has_one_task_called_default():
    model = naive.prompted(position="task")
    expected = model(IDS, MASK, labels=LABELS).logits
    for form in ([0] * 6, ["default"] * 6):
        assert torch.equal(model(IDS, MASK, labels=LABELS, task_ids=form).logits, expected)
    model.add_task("rte")
    assert model.prompt_config.tasks == ("default", "rte")
    assert torch.equal(model(IDS, MASK, labels=LABELS, task_ids=["default"] * 6).logits, expected)
    with pytest.raises(ValueError, match="task_ids=None, expected one of"):
        model(IDS, MASK, labels=LABELS)


@pytest.mark.parametrize("name", ["rte", "", 3])
def test_a_task_with_a_bad_name_changes_nothing(name):
    model = make("all")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="expected (names that differ|a list of names)"):
        model.add_task(name)
    assert model.prompt_config.tasks == tuple(NAMES)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


# --- what is shared ---


def test_controllers_that_look_at_the_input_are_shared_by_all_tasks():
    options = {"position": "instance", "size": "instance", "vector": "instance"}
    shared, single = naive.prompted(tasks=NAMES, **options), naive.prompted(**options)
    assert {n: p.shape for n, p in shared.trainable_parameters().items()} == {
        n: p.shape for n, p in single.trainable_parameters().items()
    }
    expected = single(IDS, MASK, labels=LABELS).logits
    for task_ids in (None, MIXED, ["wic"] * 6):
        assert torch.equal(shared(IDS, MASK, labels=LABELS, task_ids=task_ids).logits, expected)
    assert shared.prompt.needs_task is False


@pytest.mark.parametrize("count", [1, 3])
def test_each_task_costs_one_row_in_each_task_level_decision(count):
    model = naive.prompted(tasks=NAMES[:count], **KINDS["all"])
    trained = sum(parameter.numel() for parameter in model.trainable_parameters().values())
    assert trained == POOL * LENGTH * tiny.WIDTH + count * (2 * (LENGTH + 1) + POOL)
    assert model.prompt.needs_task is (count > 1)


# --- saving ---


def test_names_make_a_round_trip_through_json():
    config = dp.PromptConfig(tasks=NAMES, position="task")
    assert json.loads(json.dumps(config.to_dict()))["tasks"] == NAMES
    assert dp.PromptConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@every_kind
def test_a_saved_model_knows_its_tasks_also_the_added_one(tmp_path, kind):
    model = make(kind, double=False)
    model.add_task("cb")
    model.save_pretrained(tmp_path)
    loaded = dp.from_pretrained(tmp_path, naive.backbone()).eval()
    assert loaded.prompt_config == model.prompt_config and loaded.prompt_config.tasks == (*NAMES, "cb")
    task_ids = ["cb", "rte", "boolq", "wic", "cb", "rte"]
    logits = [each(IDS, MASK, labels=LABELS, task_ids=task_ids).logits for each in (model, loaded)]
    assert torch.equal(*logits)
