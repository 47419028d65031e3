"""Position, size and vector together: every combination against one reference by hand, and each alone where others are off."""

import itertools

import naive
import pytest
import tiny
import torch
from naive import LENGTH, POOL
from torch.testing import assert_close

import dplearn as dp

EXACT = {"rtol": 1e-10, "atol": 1e-10}
LENGTHS = [6, 3, 8, 5]
IDS, MASK = tiny.batch(LENGTHS, seed=1, extra=1)
LABELS = torch.arange(8).view(4, 2) + 5
POSITIONS = ["prefix", "postfix", 2, "task", "instance"]
SIZES = ["full", 3, "task", "instance"]
VECTORS = ["single", "task", "instance"]
LEARNED = ["task", "instance"]
every_combination = pytest.mark.parametrize(
    ("position", "size", "vector"), list(itertools.product(POSITIONS, SIZES, VECTORS))
)


def make(position, size, vector, seed=0, **options):
    return naive.prompted(seed, position=position, size=size, vector=vector, **options)


# --- every combination ---


@every_combination
def test_evaluation_equals_the_sequence_put_together_by_hand(position, size, vector):
    model = make(position, size, vector)
    assert_close(model(IDS, MASK, labels=LABELS).logits, naive.answer(model, IDS, MASK, LABELS), **EXACT)


@every_combination
def test_training_gradients_are_those_of_the_mixture_of_all_sequences(position, size, vector):
    """Mixture over splits, sizes and the pool in token space, by dense autograd, at the same noise."""
    model = make(position, size, vector).train()
    torch.manual_seed(4)
    loss = model(IDS, MASK, labels=LABELS).loss
    loss.backward()
    torch.manual_seed(4)
    expected, gradients = naive.training_gradients(model, IDS, MASK, LABELS)
    assert_close(loss, expected, **EXACT)
    for name, parameter in model.trainable_parameters().items():
        assert parameter.grad.abs().max() > 1e-6, name
        assert_close(parameter.grad, gradients[name], rtol=1e-8, atol=1e-10)


@every_combination
def test_the_record_says_where_each_vector_stands_and_which_it_is(position, size, vector):
    model = make(position, size, vector).train()
    placed = model.insert_prompt(IDS, MASK)
    decisions = placed.decisions
    assert list(decisions) == ["position", "size"] + (["vector"] if vector != "single" else [])
    for name, option in (("position", position), ("size", size), ("vector", vector)):
        if name in decisions:
            assert (decisions[name].logits is not None) is (option in LEARNED)
    contents = naive.contents(model, decisions["vector"].weights if vector != "single" else None)
    for b, length in enumerate(LENGTHS):
        split, n = (int(decisions[name].index[b]) for name in ("position", "size"))
        front, body = min(split, n), length - 1  # the end token stays last
        rows = [*range(front), *range(front + body, n + body)]
        assert placed.prompt_positions[b].tolist() == rows + [-1] * (LENGTH - n)
        assert placed.mask[b].sum() == length + n
        own = contents if vector == "single" else contents[b]
        assert_close(placed.embeds[b, rows], own[:n], **EXACT)


@every_combination
def test_saving_and_loading_changes_no_bit(tmp_path, position, size, vector):
    model = make(position, size, vector, double=False)
    model.save_pretrained(tmp_path)
    loaded = dp.from_pretrained(tmp_path, naive.backbone()).eval()
    assert loaded.prompt_config == model.prompt_config
    controllers = {"task": ["logits"], "instance": ["linear.weight", "linear.bias"]}
    names = ["vectors"] + [
        f"{part}.controller.{name}"
        for part, level in (("position", position), ("size", size), ("vector", vector))
        for name in controllers.get(level, [])
    ]
    saved, found = model.state_dict(), loaded.state_dict()
    assert (
        list(found) == list(saved) == [f"prompt.{name}" for name in names]
    )  # changing a name breaks checkpoints
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    for training in (False, True):
        logits = []
        for each in (model, loaded):
            torch.manual_seed(2)
            logits.append(each.train(training)(IDS, MASK, labels=LABELS).logits)
        assert torch.equal(*logits)


# --- invariant 6: with two parts off or forced, the third is what it is alone ---


def force(part, option):
    """Make a learned decision always take one option: zero weights and a bias that no noise overturns."""
    with torch.no_grad():
        for parameter in part.controller.parameters():
            parameter.zero_()
        bias = part.controller.logits if hasattr(part.controller, "logits") else part.controller.linear.bias
        bias[..., option] = 60.0


def with_own_noise(part):
    if getattr(part, "chooser", None) is not None:
        part.chooser.generator = torch.Generator().manual_seed(7)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("level", LEARNED)
@pytest.mark.parametrize("kept", ["position", "size", "vector"])
def test_unified_with_two_parts_forced_is_the_third_alone(kept, level, training):
    fixed = {"position": 1, "size": LENGTH, "vector": 2}
    unified = make(**dict.fromkeys(fixed, level)).train(training)
    for part in set(fixed) - {kept}:
        force(unified.prompt.parts[part], fixed[part])
    options = {"position": fixed["position"], "size": "full", "vector": "single"} | {kept: level}
    alone = make(**options).train(training)
    with torch.no_grad():
        pool = unified.prompt.vectors
        alone.prompt.vectors.copy_(pool if kept == "vector" else pool[fixed["vector"]])
    alone.prompt.parts[kept].load_state_dict(unified.prompt.parts[kept].state_dict())
    outputs, gradients = [], []
    for model in (unified, alone):
        with_own_noise(model.prompt.parts[kept])
        outputs.append(model(IDS, MASK, labels=LABELS))
        named = {"vectors": model.prompt.vectors} | dict(model.prompt.parts[kept].named_parameters())
        found = torch.autograd.grad(outputs[-1].loss, named.values(), allow_unused=True)
        gradients.append(dict(zip(named, found)))
    assert_close(outputs[0].logits, outputs[1].logits, **EXACT)
    if kept != "vector":  # the other prompts of the pool get nothing
        rest = [k for k in range(POOL) if k != fixed["vector"]]
        assert gradients[0]["vectors"][rest].abs().max() < 1e-12
        gradients[0]["vectors"] = gradients[0]["vectors"][fixed["vector"]]
    for name, gradient in gradients[1].items():
        if gradient is None:  # evaluation decides by argmax
            assert gradients[0][name] is None and not training
        else:
            assert_close(gradients[0][name], gradient, rtol=1e-8, atol=1e-10)


# --- decisions made before ---


@pytest.mark.parametrize("training", [False, True])
def test_decisions_can_be_made_before_and_used_again(training):
    model = make("instance", "instance", "instance", mixing="hard").train(training)
    inputs, summary = model.backbone.get_input_embeddings()(IDS), model.summarize(IDS, MASK)
    decisions = model.prompt.decide(summary)
    state = torch.get_rng_state()
    first, second = (model.prompt(inputs, MASK, keep_last=1, decisions=decisions) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.decisions is decisions and torch.equal(first.embeds, second.embeds)
    for b, (body, end) in enumerate(naive.tokens(model, IDS, MASK)):
        split, n, k = (int(decisions[name].index[b]) for name in ("position", "size", "vector"))
        expected = naive.sequence(model.prompt.vectors[k], body, end, split, n)
        assert torch.equal(first.embeds[b, first.mask[b].bool()], expected)


def test_what_a_decision_needs_is_asked_for_by_name():
    inputs, mask = torch.zeros(2, 3, 5), torch.ones(2, 3).long()
    for part in ("position", "size", "vector"):
        shape = (POOL, LENGTH, 5) if part == "vector" else (LENGTH, 5)
        options = {"length": LENGTH, "tasks": ["a", "b"]} | ({"pool_size": POOL} if part == "vector" else {})
        prompt = dp.PromptConfig(**options, **{part: "instance"}).build(torch.zeros(shape))
        with pytest.raises(ValueError, match="summary=None, expected"):
            prompt(inputs, mask)
        prompt = dp.PromptConfig(**options, **{part: "task"}).build(torch.zeros(shape))
        with pytest.raises(ValueError, match="task=None, expected"):
            prompt(inputs, mask)


def test_one_graph_under_compile():
    model = make("instance", "instance", "instance")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_close(compiled(IDS, MASK, labels=LABELS).logits, naive.answer(model, IDS, MASK, LABELS), **EXACT)
