"""Position, size and vector together: every combination against one reference by hand, and each alone where others are off."""

import copy
import itertools

import naive
import pytest
import tiny
import torch
from naive import LENGTH, POOL
from torch.testing import assert_close

import dplearn as dp
from dplearn.choice import Chooser
from dplearn.config import DECISIONS, OPTIONS
from dplearn.controllers import Decision, FixedDecision, LearnedDecision, TaskController, Words
from dplearn.estimators import ESTIMATORS, draw
from dplearn.prompt import DynamicPrompt
from dplearn.sampling import Choice, Draws
from dplearn.vector import Mixture

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


def small(width=2, **options):
    """A prompt of random float64 vectors without a backbone."""
    config = dp.PromptConfig(length=LENGTH, **options)
    return config.build(torch.randn(*config.shape, width)).double()


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
    statistics = [f"standardizer.{name}" for name in ("count", "mean", "variance")]
    controllers = {"task": ["logits"], "instance": ["linear.weight", "linear.bias", *statistics]}
    names = ["vectors"] + [
        f"{part}.controller.{name}"
        for part, level in (("position", position), ("size", size), ("vector", vector))
        for name in controllers.get(level, [])
    ]
    saved, found = model.state_dict(), loaded.state_dict()
    # Changing a name breaks checkpoints.
    assert list(found) == list(saved) == ["_extra_state", *(f"prompt.{name}" for name in names)]
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
@pytest.mark.filterwarnings("ignore:gradients are computed in evaluation mode")
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
        with pytest.raises(ValueError) as error:
            prompt(inputs, mask)
        expected = "summary=None, expected a (batch, width) tensor: something is decided per input"
        assert str(error.value) == expected
        prompt = dp.PromptConfig(**options, **{part: "task"}).build(torch.zeros(shape))
        with pytest.raises(ValueError) as error:
            prompt(inputs, mask)
        expected = "task=None, expected task numbers (batch,): something is decided per task"
        assert str(error.value) == expected


def test_given_decisions_become_choices_and_the_others_are_made():
    prompt = small(
        position="task", size="task", vector="task", pool_size=POOL, controller_init="uniform"
    ).eval()
    summary, index = torch.zeros(5, 2), torch.tensor([0, 2, 1, 2, 0])
    made = prompt.decide(summary, given={"position": LENGTH, "vector": index})
    assert list(made) == ["position", "size", "vector"]
    assert made["position"] == (made["position"].index, None, None)
    assert made["position"].index.tolist() == [LENGTH] * 5 and made["position"].index.dtype == torch.int64
    best = [int(prompt.size.controller.logits.argmax())] * 5
    assert made["size"].index.tolist() == best and made["size"].logits.requires_grad
    weights = made["vector"].weights
    assert made["vector"].index.tolist() == index.tolist() and weights.dtype == prompt.vectors.dtype
    assert weights.tolist() == [[float(k == chosen) for k in range(POOL)] for chosen in index.tolist()]
    mixture = Choice(index, torch.rand(5, POOL))
    for name, option in (("vector", POOL - 1), ("vector", mixture), ("size", LENGTH), ("size", 0)):
        found = prompt.given({name: option}, 5, "cpu")
        assert list(found) == [name]
        assert found[name] == mixture if option is mixture else found[name].index.tolist() == [option] * 5
    first = prompt.given({"vector": 0}, 5, "cpu")["vector"].weights  # as wide as the pool, whichever is taken
    assert first.tolist() == [[1.0, *[0.0] * (POOL - 1)]] * 5
    assert made.keys() == prompt.decide(summary, given={}).keys()
    with pytest.raises(TypeError, match="^decisions is a int, expected a dictionary by name"):
        prompt.decide(summary, given=3)
    on_device = small(position=1).decide(torch.zeros(5, 2, device="meta"), given={"position": 2})
    assert {choice.index.device.type for choice in on_device.values()} == {"meta"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("position", LENGTH + 1, f"decisions['position'] holds {LENGTH + 1}..{LENGTH + 1}, expected a number in 0..{LENGTH}, "),
        ("size", LENGTH + 1, f"decisions['size'] holds {LENGTH + 1}..{LENGTH + 1}, expected a number in 0..{LENGTH}, "),
        ("vector", POOL, f"decisions['vector'] holds {POOL}..{POOL}, expected a number in 0..{POOL - 1}, "),
        ("position", torch.tensor([0, 1, 2]), f"decisions['position'] has shape (3,), expected a number in 0..{LENGTH}, "),
    ],
)  # fmt: skip
def test_a_given_decision_is_an_option_for_each_instance(name, value, message):
    prompt = small(position="task", size="task", vector="task", pool_size=POOL)
    with pytest.raises(ValueError) as error:
        prompt.decide(torch.zeros(5, 2), given={name: value})
    assert str(error.value) == message + "one for each of the 5 instances, or a Choice"


def test_what_can_be_given_is_named():
    for options, names in (
        ({}, ["position"]),
        ({"size": "task"}, ["position", "size"]),
        ({"size": 2, "vector": "task", "pool_size": POOL}, ["position", "vector"]),
    ):
        prompt = small(position=1, **options)
        takes = {name: prompt.takes(name) for name in ("position", "size", "vector", "order")}
        assert takes == {name: name in names for name in takes}
        with pytest.raises(ValueError) as error:
            prompt.decide(torch.zeros(5, 2), given={"order": 1})
        assert str(error.value) == (
            "decisions holds 'order', which this prompt does not decide for each instance, expected some of "
            f"{names}"
        )


def test_one_graph_under_compile():
    model = make("instance", "instance", "instance")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_close(compiled(IDS, MASK, labels=LABELS).logits, naive.answer(model, IDS, MASK, LABELS), **EXACT)


# --- sampling is asked for, or follows the mode ---


def bits(placed):
    """Every tensor of a prompted input, in order."""
    found = [placed.embeds, placed.mask, placed.input_positions, placed.prompt_positions, placed.penalty]
    for choice in placed.decisions.values():
        found += choice
    return [torch.zeros(0) if value is None else value for value in found]


@every_combination
@pytest.mark.parametrize("sampling", [False, True])
def test_sampling_gives_what_the_mode_gives_without_changing_it(position, size, vector, sampling):
    estimators = ["straight-through", "score-function"]
    for estimator, mixing in zip(estimators, ["softmax", "hard"]):
        options = {"mixing": mixing} if vector != "single" else {}
        model = make(position, size, vector, estimator=estimator, size_cost=2.0, **options)
        inputs, summary = model.backbone.get_input_embeddings()(IDS), model.summarize(IDS, MASK)
        found, start = [], copy.deepcopy(model.prompt.state_dict())
        for mode, asked in ((sampling, None), (not sampling, sampling)):
            model.prompt.load_state_dict(start)  # sampling extends the statistics of summaries
            model.prompt.train(mode)
            torch.manual_seed(3)
            found.append(bits(model.prompt(inputs, MASK, summary, 1, sampling=asked)))
            assert all(module.training is mode for module in model.prompt.modules())
        assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
        assert (found[0][4].numel() == 1) is (sampling and size in LEARNED)  # the cost on length


@pytest.mark.parametrize("size", ["full", 1, 2, "task"])
@pytest.mark.parametrize("position", ["prefix", "postfix", 1, 2, 3, "task", "instance"])
def test_whether_a_vector_can_follow_the_input(position, size):
    """By trying every split and size that there can be on a real insertion."""
    prompt = dp.PromptConfig(length=4, position=position, size=size).build(torch.randn(4, 3))
    splits = range(5) if position in LEARNED else [prompt.position.option]
    sizes = range(5) if size in LEARNED else [prompt.size.option]
    behind = False
    for split, n in itertools.product(splits, sizes):
        placed = dp.insert(prompt.vectors, torch.zeros(1, 2, 3), None, split, n)
        behind |= bool((placed.prompt_positions > placed.input_positions.max()).any())
    assert prompt.follows_input is behind


@pytest.mark.parametrize("depth", [1, 3])
def test_vectors_take_dtype_and_device_of_the_input(depth):
    prompt = dp.PromptConfig(length=2, position=1, depth=depth).build(
        torch.zeros(*[depth] * (depth > 1), 2, 4)
    )
    inputs = torch.empty(2, 3, 4, dtype=torch.bfloat16, device="meta")
    placed = prompt(inputs, torch.ones(2, 3, dtype=torch.long, device="meta"))
    for tensor in (placed.embeds, placed.deeper) if depth > 1 else (placed.embeds,):
        assert tensor.device.type == "meta" and tensor.dtype == torch.bfloat16


def test_one_layer_is_the_default_depth():
    prompt = DynamicPrompt(torch.randn(3, 4), FixedDecision(1))
    placed = prompt(torch.zeros(2, 5, 4), torch.ones(2, 5).long())
    assert (
        prompt.depth == 1 and placed.deeper is None and torch.equal(placed.embeds[1, 6:], prompt.vectors[1:])
    )
    with pytest.raises(ValueError, match=r"expected \(length, width\)"):
        DynamicPrompt(torch.randn(2, 3, 4), FixedDecision(1))


@pytest.mark.parametrize(
    ("shape", "depth", "pool", "expected"),
    [
        ((4,), 1, False, "(length, width) with length >= 1, floating point"),
        ((2, 3, 4), 1, False, "(length, width) with length >= 1, floating point"),
        ((0, 4), 1, False, "(length, width) with length >= 1, floating point"),
        ((3, 0), 1, False, "(length, width) with length >= 1, floating point"),
        ((3, 4), 1, True, "(pool, length, width) with length >= 1, floating point"),
        ((0, 3, 4), 1, True, "(pool, length, width) with length >= 1, floating point"),
        ((3, 4), 2, False, "(depth, length, width) with length >= 1, floating point, depth=2"),
        ((3, 3, 4), 2, False, "(depth, length, width) with length >= 1, floating point, depth=2"),
        ((2, 3, 4), 2, True, "(pool, depth, length, width) with length >= 1, floating point, depth=2"),
        ((2, 3, 3, 4), 2, True, "(pool, depth, length, width) with length >= 1, floating point, depth=2"),
        ((2, 3, 3, 4), 4, True, "(pool, depth, length, width) with length >= 1, floating point, depth=4"),
    ],
)  # fmt: skip
def test_vectors_of_another_shape_are_refused(shape, depth, pool, expected):
    mixture = Mixture(TaskController(2)) if pool else None
    with pytest.raises(ValueError) as error:
        DynamicPrompt(torch.zeros(shape), FixedDecision(1), vector=mixture, depth=depth)
    assert str(error.value) == f"vectors has shape {shape} and dtype torch.float32, expected {expected}"


def test_whole_numbers_are_no_vectors():
    with pytest.raises(ValueError) as error:
        DynamicPrompt(torch.ones(3, 4).long(), FixedDecision(1))
    assert str(error.value) == (
        "vectors has shape (3, 4) and dtype torch.int64, expected (length, width) with length >= 1, floating point"
    )


@pytest.mark.parametrize(
    ("shape", "depth"), [((1, 4), 1), ((3, 1), 1), ((2, 3, 4), 2), ((3, 1, 1), 3), ((1, 3, 4), 1), ((2, 2, 3, 4), 2)]
)  # fmt: skip
def test_what_is_not_said_of_a_prompt_is_off(shape, depth):
    """All vectors are in use, nothing costs, nothing else is decided; the vectors are a copy."""
    given, mixture = torch.randn(shape), Mixture(TaskController(shape[0]))
    pool = {"vector": mixture} if len(shape) > 2 + (depth > 1) else {}
    prompt = DynamicPrompt(given, FixedDecision(1), depth=depth, **pool)
    assert torch.equal(prompt.vectors, given) and prompt.vectors.requires_grad
    given.zero_()
    assert prompt.vectors.abs().min() > 0
    assert (prompt.length, prompt.width, prompt.depth) == (*shape[-2:], depth)
    assert isinstance(prompt.size, FixedDecision) and prompt.size.option == prompt.most == shape[-2]
    assert list(prompt.parts) == ["position", "size", *pool] and prompt.attached == {}
    learned = LearnedDecision(TaskController(shape[-2] + 1), Chooser())
    assert DynamicPrompt(torch.ones(shape), FixedDecision(1), learned, depth=depth, **pool).size_cost == 0


@pytest.mark.parametrize("size", ["full", 2, "task"])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_each_layer_has_its_own_vectors(depth, pool, size):
    options = {"vector": "instance", "pool_size": POOL, "controller_init": "uniform"} if pool else {}
    prompt = small(position=1, size=size, depth=depth, **options)
    summary, inputs = torch.randn(3, 2).double(), torch.zeros(3, 5, 2).double()
    decisions = prompt.decide(summary)
    rows = prompt.vectors.detach().view(-1, depth, LENGTH, 2)  # (K or 1, depth, l, d)
    expected = torch.zeros(3 if pool else 1, depth, LENGTH, 2).double()
    for b, layer in itertools.product(range(len(expected)), range(depth)):
        for k in range(len(rows)):
            expected[b, layer] += (decisions["vector"].weights[b, k].detach() if pool else 1) * rows[k, layer]
    expected = expected if pool else expected[0]
    assert_close(prompt.content(decisions), expected[..., 0, :, :], **EXACT)
    used = 2 if size == 2 else LENGTH
    assert_close(prompt.every_layer(decisions), expected[..., :used, :], **EXACT)
    placed = prompt(inputs, torch.ones(3, 5).long(), summary, decisions=decisions)
    for deeper in (prompt.deeper(decisions), placed.deeper):
        assert (
            deeper is None if depth == 1 else assert_close(deeper, expected[..., 1:, :, :], **EXACT) is None
        )
    entries = prompt.entries_in_use()["vectors"]
    assert isinstance(entries, int) and entries == rows[:, :, :used].numel()


# --- what is placed, against single insertions ---

# Two instances padded on the right and on the left and one without padding; a row's numbers tell which row it is.
PADDED = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
ROWS = torch.arange(15.0).view(3, 5, 1).expand(3, 5, 2).double()


def numbered(**options):
    """A prompt whose vectors are told apart by their numbers, while training."""
    prompt = small(**{"controller_init": "uniform"} | options).train()
    with torch.no_grad():
        prompt.vectors.copy_(torch.arange(100.0, 100 + LENGTH).unsqueeze(1).expand(LENGTH, 2))
    return prompt


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("sizes", [[1, 2, 0], [0, 0, 0], [LENGTH, 1, 2]])
def test_rows_that_no_instance_uses_are_dropped_in_evaluation(sizes, sampling):
    prompt, sizes = numbered(position=1, size="task"), torch.tensor(sizes)
    decisions = prompt.decide(ROWS, given={"size": sizes})
    placed = prompt(ROWS, PADDED, keep_last=1, decisions=decisions, sampling=sampling)
    expected = dp.insert(prompt.vectors, ROWS, PADDED, 1, sizes, keep_last=1)
    rows = 5 + (LENGTH if sampling else int(sizes.max()))
    assert torch.equal(placed.embeds, expected.embeds[:, :rows]) and placed.masked is True
    assert torch.equal(placed.mask, expected.mask[:, :rows]) and not expected.mask[:, rows:].any()
    assert torch.equal(placed.prompt_positions, expected.prompt_positions)


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("split", [0, 1, LENGTH])
def test_a_fixed_size_is_a_prompt_of_so_many_vectors(split, sampling):
    prompt = numbered(position=split, size=2)
    placed = prompt(ROWS, PADDED, sampling=sampling)  # without keep_last nothing stays behind the prompt
    expected = dp.insert(prompt.vectors[:2], ROWS, PADDED, min(split, 2))
    assert torch.equal(placed.embeds, expected.embeds) and torch.equal(placed.mask, expected.mask)
    assert placed.prompt_positions[:, :2].tolist() == expected.prompt_positions.tolist()
    assert placed.prompt_positions[:, 2:].tolist() == [[-1] * (LENGTH - 2)] * 3
    assert placed.masked is False and placed.moves is None and placed.penalty is None


@pytest.mark.parametrize("made", ["position", "size"])
def test_one_decision_given_leaves_the_other_its_gradient(made):
    """The gradient of the sum over all options of the other decision, each weighted and inserted by itself."""
    prompt = numbered(position="task", size="task", estimator="straight-through")
    option = torch.tensor([1, 3, 2])
    decisions = prompt.decide(ROWS, given={made: option})
    other = ({"position", "size"} - {made}).pop()
    placed = prompt(ROWS, PADDED, keep_last=1, decisions=decisions)
    weights, probe = decisions[other].weights, torch.randn(3, 5 + LENGTH, 2).double()
    total = 0.0
    for k in range(LENGTH + 1):
        split, size = (k, option) if made == "size" else (option, k)
        total += (
            weights[:, k].view(3, 1, 1)
            * dp.insert(prompt.vectors, ROWS, PADDED, split, size, keep_last=1).embeds
        )
    assert torch.equal(placed.embeds, total.detach())
    logits = prompt.parts[other].controller.logits
    found, expected = (
        torch.autograd.grad((each * probe).sum(), logits, retain_graph=True)[0]
        for each in (placed.embeds, total)
    )
    assert found.abs().max() > 1e-3
    assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("keep_last", [0, torch.tensor([1, 0, 2])])
@pytest.mark.parametrize("size", ["full", 2, "task"])
def test_moves_say_where_each_row_would_stand_at_every_split(size, keep_last):
    prompt = numbered(position="task", size=size, estimator="position-space")
    decisions = prompt.decide(ROWS, given={} if size != "task" else {"size": torch.tensor([1, 3, 2])})
    placed = prompt(ROWS, PADDED, keep_last=keep_last, decisions=decisions)
    vectors, sizes = prompt.vectors, None if size != "task" else decisions["size"].index
    vectors = vectors[:2] if size == 2 else vectors
    moves, options = placed.moves, len(vectors) + 1
    assert moves.rows.shape == (3, options, 5 + len(vectors)) and moves.first.tolist() == [[0], [1], [0]]
    chosen = decisions["position"].index.clamp(max=options - 1)
    for k in range(options):
        there = dp.insert(vectors, ROWS, PADDED, k, sizes, keep_last=keep_last).embeds[..., 0].tolist()
        for b, s in itertools.product(range(3), range(5 + len(vectors))):
            assert moves.rows[b, k, s] == there[b].index(placed.embeds[b, s, 0].item())
            assert k != chosen[b] or moves.rows[b, k, s] == s
    assert torch.equal(moves.weights, torch.eye(options).double()[chosen])
    # Splits of more vectors than there are all are the prefix; the rows themselves give the position no gradient.
    (found,) = torch.autograd.grad(
        moves.weights[:, -1].sum(), decisions["position"].weights, retain_graph=True
    )
    assert found.tolist() == [[0.0] * (options - 1) + [1.0] * (LENGTH + 2 - options)] * 3
    leaf = prompt.position.controller.logits
    assert torch.autograd.grad(placed.embeds.sum(), leaf, allow_unused=True) == (None,)


def test_moves_are_made_where_a_gradient_is_wanted_in_position_space():
    space = numbered(position="task", estimator="position-space")
    assert space(ROWS, PADDED).moves is not None
    assert space(ROWS, PADDED, sampling=False).moves is None
    with torch.no_grad():
        assert space(ROWS, PADDED).moves is None
    assert space(ROWS, PADDED, decisions=space.decide(ROWS, given={"position": 1})).moves is None
    assert numbered(position="task", estimator="straight-through")(ROWS, PADDED).moves is None


def test_a_learned_size_costs_what_its_distribution_says():
    prompt = numbered(position=1, size="task", size_cost=3.0)
    chances = prompt.size.controller.logits[0].softmax(0).tolist()
    mean = sum(n * chance for n, chance in enumerate(chances))
    expected = torch.tensor(3.0 * mean / LENGTH, dtype=torch.float64)
    assert_close(prompt(ROWS, PADDED).penalty, expected, **EXACT)
    decisions = prompt.decide(ROWS)
    assert_close(prompt.penalty(decisions), expected, **EXACT)
    assert prompt.penalty(decisions, False) is None and prompt(ROWS, PADDED, sampling=False).penalty is None
    assert prompt.penalty(prompt.decide(ROWS, given={"size": 2})) is None
    assert prompt.eval().penalty(decisions) is None and prompt(ROWS, PADDED).penalty is None
    assert_close(prompt.penalty(decisions, True), expected, **EXACT)
    prompt.size_cost = 0.0
    assert prompt.penalty(decisions, True) is None


# --- draws become decisions ---


@pytest.mark.parametrize("mixing", ["hard", "softmax"])
def test_draws_become_decisions_copy_by_copy(mixing):
    model = make("instance", "task", "instance", mixing=mixing, estimator="score-function").train()
    decisions = model.prompt.decide(model.summarize(IDS, MASK))
    names = model.prompt.samples()
    assert names == ["position", "size"] + (["vector"] if mixing == "hard" else [])
    draws = draw({name: decisions[name].logits for name in names}, "score-function", 3)
    tried = model.prompt.tried(decisions, draws)
    assert list(tried) == ["position", "size", "vector"]
    for name, choice in tried.items():
        for s, b in itertools.product(range(3), range(4)):
            index = draws.index[name][s, b] if name in names else decisions[name].index[b]
            assert choice.index[4 * s + b] == index
            if name == "vector":
                weights = torch.eye(POOL)[index] if mixing == "hard" else decisions[name].weights[b]
                assert torch.equal(choice.weights[4 * s + b].double(), weights.double())
        assert choice.index.shape == (12,) and choice.logits is None
        assert name == "vector" or choice.weights is None
    for number in range(3):
        for name, choice in model.prompt.tried(decisions, draws.only(number)).items():
            rows = slice(4 * number, 4 * number + 4)
            assert torch.equal(choice.index, tried[name].index[rows])
            assert name != "vector" or torch.equal(choice.weights, tried[name].weights[rows])


# --- more decisions ---


class Order(LearnedDecision):
    """A throw-away decision: the vectors in their order (0) or the other way round (1)."""

    def edit(self, vectors, choice):
        rows = choice.index.view(-1, *[1] * (vectors.ndim - (vectors.ndim > 2))) > 0
        return torch.where(rows, vectors.flip(-2), vectors)


@pytest.mark.parametrize("vector", VECTORS)
def test_another_decision_needs_no_change_of_the_prompt(vector):
    torch.manual_seed(0)
    base = make("instance", 3, vector, tasks=["a", "b", "c", "d"]).prompt
    order = Order(TaskController(2, tasks=4), Chooser()).double()
    with torch.no_grad():
        order.controller.logits.copy_(torch.tensor([[0, 1], [1, 0], [1, 0], [0, 1]]))
    prompt = DynamicPrompt(
        base.vectors, base.position, base.size, base.vector, others={"order": order}
    ).eval()
    inputs, summary, task = (
        torch.randn(4, 5, tiny.WIDTH).double(),
        torch.randn(4, tiny.WIDTH),
        torch.arange(4),
    )
    placed = prompt(inputs, torch.ones(4, 5).long(), summary, task=task)
    assert placed.decisions["order"].index.tolist() == [1, 0, 0, 1] and prompt.needs_task
    plain = base(inputs, torch.ones(4, 5).long(), summary, task=task)
    contents = base.content(plain.decisions).expand(4, LENGTH, -1)
    for b, turned in enumerate([True, False, False, True]):
        own = contents[b].flip(0) if turned else contents[b]
        split = int(placed.decisions["position"].index[b])
        expected = naive.sequence(own, inputs[b], inputs[b, :0], split, 3)
        assert torch.equal(placed.embeds[b], expected)
    assert prompt.entries_in_use()["order.controller.logits"] == 8
    assert "order.controller.logits" in prompt.state_dict()
    with pytest.raises(ValueError, match="others has the name 'length', which is taken"):
        DynamicPrompt(base.vectors, base.position, base.size, base.vector, others={"length": order})


def test_parts_that_decide_nothing_are_attached_with_their_group():
    base = make("task", "full", "instance").prompt
    names = {group: len(found) for group, found in base.parameters_by_group().items()}
    assert names == {"vectors": 1, "controllers": 3, "head": 0} and base.attached == {}
    images, head = torch.nn.ParameterDict({"vectors": torch.zeros(2)}), torch.nn.Linear(3, 2)
    base.attach("vision", images, "vectors")
    base.attach("head", head, "head")
    groups = base.parameters_by_group()
    assert list(groups) == ["vectors", "controllers", "head"]
    assert groups["vectors"] == [base.vectors, images["vectors"]] and len(groups["controllers"]) == 3
    assert groups["head"] == [head.weight, head.bias]
    assert base.attached == {"vision": images, "head": head} and base.head is head
    assert {"vision.vectors", "head.weight", "head.bias"} < set(base.state_dict())
    assert list(base.parts) == ["position", "size", "vector"]
    for name in ("head", "length", "position"):
        with pytest.raises(ValueError, match=f"name='{name}' is taken, expected another"):
            base.attach(name, head, "head")
    with pytest.raises(ValueError, match=r"group='heads' is unknown, expected one of \['vectors', 'contr"):
        base.attach("another", head, "heads")


def test_another_decision_is_registered_in_one_place(monkeypatch, tmp_path):
    """A row in the table, and it is built, learned, described, saved and loaded."""
    row = Decision(
        "in which order",
        lambda options, width, chooser: Order(TaskController(2), chooser()),
        lambda options: Words("task", "forwards or backwards"),
        sampled=lambda options: True,
    )
    forwards = make("prefix", "full", "single")
    vectors = forwards.prompt.vectors.detach().float()
    backwards = make("prefix", "full", "single", vectors=vectors.flip(0))
    losses = torch.stack([model(IDS, MASK, labels=LABELS).loss for model in (forwards, backwards)])
    monkeypatch.setitem(DECISIONS, "order", row)
    model = make("prefix", "full", "single", vectors=vectors, estimator="exact").train()
    logits = model.prompt.order.controller.logits
    expected = (logits[0].softmax(0) * losses.detach()).sum()
    loss = model(IDS, MASK, labels=LABELS).loss
    assert_close(loss, expected, **EXACT)
    assert_close(*(torch.autograd.grad(each, logits)[0] for each in (loss, expected)), **EXACT)
    assert "in which order task 2 forwards or backwards" in " ".join(str(model.summary()).split())
    model.save_pretrained(tmp_path)
    loaded = dp.from_pretrained(tmp_path, naive.backbone()).prompt.state_dict()
    assert torch.equal(loaded["order.controller.logits"].double(), logits.detach())
    with pytest.raises(ValueError, match=r"expected one of \['position', 'order'\] to be learned"):
        dp.PromptConfig(position="task", estimator="exact")


def test_every_decision_is_an_option_and_every_option_of_a_decision_is_described():
    assert list(DECISIONS) == list(make("task", "task", "task").prompt.parts) and set(DECISIONS) <= set(
        OPTIONS
    )
    for decision in DECISIONS.values():
        for level in LEARNED:
            config = dp.PromptConfig(position=level, size=level, vector=level, mixing="hard")
            assert decision.words(config).level == level and decision.sampled(config)
        assert not decision.sampled(dp.PromptConfig())


def test_a_table_of_estimators_is_all_that_a_prompt_asks(monkeypatch):
    """A throw-away estimator: both splits 0 and l for each input, with equal weight, whatever the logits."""

    def ends(log_p, samples, generator):
        (chances,) = log_p.values()
        index = torch.tensor([[0], [chances.shape[1] - 1]]).expand(2, chances.shape[0])
        return Draws({"position": index}, chances.gather(1, index.T).T, None, "ends")

    row = ESTIMATORS["exact"]._replace(
        draw=ends, surrogate=lambda losses, draws: losses.mean(0), least_samples=7
    )
    monkeypatch.setitem(ESTIMATORS, "ends", row)
    model = make("task", "full", "single", estimator="ends").train()
    losses = [make(end, "full", "single")(IDS, MASK, labels=LABELS).loss for end in ("postfix", "prefix")]
    assert_close(model(IDS, MASK, labels=LABELS).loss, sum(losses) / 2, **EXACT)
    for options, message in (
        ({"samples": 6}, "samples=6 is not valid, expected an integer of at least 7"),
        ({"size": "task"}, "estimator='ends' enumerates the options of one decision"),
    ):
        with pytest.raises(ValueError, match=message):
            dp.PromptConfig(position="task", estimator="ends", **options)


# --- export ---


class Deciding(torch.nn.Module):
    """What is decided and which vectors there are, as a module that torch.export takes."""

    def __init__(self, prompt):
        super().__init__()
        self.prompt = prompt

    def forward(self, summary):
        decisions = self.prompt.decide(summary)
        return [choice.index for choice in decisions.values()], self.prompt.every_layer(decisions)


@pytest.mark.parametrize(
    ("position", "size", "vector"), [("instance", "instance", "instance"), (2, 3, "task")]
)
def test_decisions_are_exported_for_any_batch(position, size, vector):
    module, summary = Deciding(make(position, size, vector).prompt.eval()), torch.randn(7, tiny.WIDTH)
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    with torch.no_grad():
        exported = torch.export.export(module, (summary[:4],), dynamic_shapes=shapes).module()
        for count in (2, 4, 7):
            found, expected = exported(summary[:count]), module(summary[:count])
            assert all(torch.equal(one, two) for one, two in zip(found[0], expected[0], strict=True))
            assert_close(found[1], expected[1], **EXACT)


class Placing(torch.nn.Module):
    """The rows of a prompted input, as a module that torch.export takes."""

    def __init__(self, prompt):
        super().__init__()
        self.prompt = prompt

    def forward(self, inputs, mask, summary):
        placed = self.prompt(inputs, mask, summary)
        return placed.embeds, placed.mask


@pytest.mark.parametrize(
    ("position", "size", "vector"), [("instance", "instance", "instance"), (2, 3, "task")]
)
def test_a_prompt_is_exported_for_any_batch(position, size, vector):
    prompt = make(position, size, vector).prompt.eval()
    inputs, mask = torch.randn(4, 6, tiny.WIDTH).double(), torch.ones(4, 6).long()
    mask[1, 4:] = 0
    batch, summary = torch.export.Dim("batch", min=2, max=64), torch.randn(4, tiny.WIDTH)
    with torch.no_grad():
        exported = torch.export.export(
            Placing(prompt), (inputs, mask, summary), dynamic_shapes=({0: batch}, {0: batch}, {0: batch})
        ).module()
        for rows in ([0, 1, 2, 3], [1, 0], [3, 1, 1, 0, 2, 3, 1]):
            embeds, found = exported(inputs[rows], mask[rows], summary[rows])
            placed = prompt(inputs[rows], mask[rows], summary[rows])
            count = placed.mask.shape[1]  # without export, rows that no instance uses are dropped
            assert torch.equal(embeds[:, :count], placed.embeds) and torch.equal(
                found[:, :count], placed.mask
            )
            assert not found[:, count:].any()
