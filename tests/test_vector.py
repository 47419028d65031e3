"""Which vectors the prompt has: mixtures of a pool against loops, the hard choice of one prompt, and their gradients."""

import math

import naive
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import LENGTH, POOL
from torch.testing import assert_close

import dplearn as dp
from dplearn.choice import Chooser
from dplearn.controllers import InstanceController, TaskController
from dplearn.sampling import Choice
from dplearn.vector import MIXINGS, VECTOR, Mixture, mix, mixture_weights

EXACT = {"rtol": 1e-10, "atol": 1e-10}
IDS, MASK = tiny.batch([6, 3, 8, 5, 7, 4], seed=1)
LABELS = torch.arange(12).view(6, 2) + 5
LEVELS = ["task", "instance"]


def with_pool(level, mixing, seed=0, **options):
    """A model with a pool; in the batch above, instances differ in the prompt that weighs most."""
    model = naive.prompted(seed, vector=level, mixing=mixing, **options)
    if level == "instance":
        with torch.no_grad():
            model.prompt.vector.controller.linear.weight.normal_(0, 0.5)
            model.prompt.vector.controller.linear.bias.zero_()
    return model


# --- plain functions ---


@given(batch=st.integers(1, 4), pool=st.integers(1, 5), scale=st.floats(0, 30), seed=st.integers(0, 999))
def test_weights_equal_a_loop(batch, pool, scale, seed):
    logits = scale * torch.randn(
        batch, pool, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    for mixing, squash in (("softmax", float), ("tanh", math.tanh)):
        found = mixture_weights(logits, mixing)
        for b, row in enumerate(logits.tolist()):
            total = sum(math.exp(squash(value)) for value in row)
            expected = torch.tensor([math.exp(squash(value)) / total for value in row], dtype=torch.float64)
            assert_close(found[b], expected, rtol=1e-12, atol=1e-12)


def test_tanh_keeps_every_prompt_of_the_pool_in_use():
    weights = mixture_weights(torch.tensor([[1e4, -1e4, 0.0]], dtype=torch.float64), "tanh")[0]
    assert_close(weights.max() / weights.min(), torch.tensor(math.e**2, dtype=torch.float64), **EXACT)
    assert mixture_weights(torch.tensor([[1e4, -1e4, 0.0]]), "softmax")[0].tolist() == [1, 0, 0]


@given(
    batch=st.integers(1, 4), pool=st.integers(1, 4), length=st.integers(1, 4), dim=st.integers(1, 4),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_a_mixture_and_its_gradient_equal_a_loop(batch, pool, length, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    prompts, weights, probe = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((pool, length, dim), (batch, pool), (batch, length, dim))
    )
    prompts.requires_grad_(), weights.requires_grad_()
    found = mix(prompts, weights)
    (found * probe).sum().backward()
    for b in range(batch):
        expected = torch.zeros(length, dim, dtype=torch.float64)
        for k in range(pool):
            expected += weights[b, k].item() * prompts[k].detach()
            assert_close(weights.grad[b, k], (probe[b] * prompts[k].detach()).sum(), **EXACT)
        assert_close(found[b].detach(), expected, **EXACT)
    for k in range(pool):
        assert_close(prompts.grad[k], sum(weights[b, k].detach() * probe[b] for b in range(batch)), **EXACT)


def test_weights_take_the_precision_of_the_pool():
    assert mix(torch.ones(2, 3, 4, dtype=torch.bfloat16), torch.full((5, 2), 0.5)).dtype == torch.bfloat16


@pytest.mark.parametrize("mixing", ["softmax", "tanh"])
@pytest.mark.parametrize("sampling", [None, False, True])
def test_the_index_of_a_mixture_is_its_heaviest_prompt(mixing, sampling):
    controller = TaskController(5, tasks=40)
    torch.nn.init.normal_(controller.logits)
    choice = Mixture(controller, mixing)(torch.zeros(40, 1), torch.arange(40), sampling)
    rows = controller.logits.tolist()
    assert choice.index.tolist() == [max(range(5), key=lambda k, row=row: row[k]) for row in rows]


def test_a_hard_choice_samples_where_it_is_asked_to():
    controller = TaskController(5, init="uniform")
    hard = Mixture(controller, "hard", Chooser()).train()
    best = controller.logits.argmax().item()
    assert hard(torch.zeros(60, 1), None, False).index.unique().tolist() == [best]
    assert hard.eval()(torch.zeros(60, 1), None, True).index.unique().numel() > 1
    assert hard.train()(torch.zeros(60, 1), None, False).weights.requires_grad is False


def test_the_choice_of_a_mixture_holds_what_it_was_made_of():
    """Weights and logits of the instances' own tasks, in float32 at least."""
    controller = TaskController(3, tasks=2).bfloat16()
    torch.nn.init.normal_(controller.logits)
    logits = controller.logits.float()[[1, 0, 1, 1]]
    choice = Mixture(controller, "tanh")(torch.zeros(4, 1), torch.tensor([1, 0, 1, 1]))
    assert torch.equal(choice.logits, logits) and torch.equal(choice.weights, logits.tanh().softmax(1))
    chosen = Mixture(controller, "hard", Chooser()).eval()(torch.zeros(4, 1), torch.tensor([1, 0, 1, 1]))
    assert torch.equal(chosen.logits, logits) and torch.equal(chosen.weights, torch.eye(3)[logits.argmax(1)])
    tried = Mixture(controller, "softmax").tried(choice, torch.tensor([2, 0]))
    assert torch.equal(tried.index, torch.tensor([2, 0]))
    assert torch.equal(tried.weights, torch.eye(3)[[2, 0]]) and tried.weights.dtype == logits.dtype


@pytest.mark.parametrize("mixing", ["softmax", "hard"])
def test_summaries_are_learned_from_while_training_or_sampling(mixing):
    controller = InstanceController(4, 3)
    mixture = Mixture(controller, mixing, Chooser() if mixing == "hard" else None)
    for training, sampling, seen in ((True, None, 5), (False, None, 5), (False, True, 10), (True, False, 10)):
        mixture.train(training)(torch.randn(5, 4), None, sampling)
        assert int(controller.standardizer.count) == seen


@pytest.mark.parametrize("depth", [None, 2])
def test_each_instance_gets_its_own_mixture_in_every_layer(depth):
    shape = (3, 4, 2) if depth is None else (3, depth, 4, 2)
    pool, weights = torch.randn(shape).double(), torch.rand(5, 3).double()
    mixture = Mixture(TaskController(3))
    found = mixture.edit(pool, Choice(weights.argmax(1), weights))
    assert found.shape == (5, *shape[1:])
    for b in range(5):
        assert_close(found[b], sum(weights[b, k] * pool[k] for k in range(3)), **EXACT)


def test_a_choice_between_one_prompt_is_none():
    for pool, used in ((1, 0), (2, 2), (3, 3)):
        assert Mixture(TaskController(pool)).entries_in_use() == {"controller.logits": used}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ("single", "one prompt")),
        ({"vector": "task"}, ("task", "a mixture (softmax) out of a pool of 3, learned for the task")),
        ({"vector": "task", "tasks": ["a", "b"], "mixing": "tanh"}, ("task", "a mixture (tanh) out of a pool of 3, learned for each task")),
        ({"vector": "instance", "mixing": "hard"}, ("instance", "one prompt out of a pool of 3, decided for each input from the mean of its embeddings")),
    ],
)  # fmt: skip
def test_the_vectors_in_words(options, words):
    pool = {"pool_size": 3} if options else {}
    assert VECTOR.words(dp.PromptConfig(**options, **pool)) == words


@pytest.mark.parametrize("mixing", MIXINGS)
def test_a_pool_is_weighed_by_what_the_options_say(mixing):
    made = []

    def chooser():
        made.append(Chooser())
        return made[-1]

    config = dp.PromptConfig(vector="instance", pool_size=3, mixing=mixing, controller_init="uniform")
    mixture = VECTOR.build(config, 7, chooser)
    assert mixture.controller.linear.weight.shape == (3, 7) and mixture.controller.linear.weight.any()
    assert mixture.mixing == mixing and mixture.looks_at_input
    assert (mixture.chooser, len(made)) == ((made[0], 1) if mixing == "hard" else (None, 0))
    task = VECTOR.build(dp.PromptConfig(vector="task", pool_size=3, tasks=["a", "b"]), 7, chooser)
    assert task.controller.logits.shape == (2, 3)
    assert VECTOR.build(dp.PromptConfig(), 7, chooser) is None


# --- on a backbone ---


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mixing", MIXINGS)
def test_evaluation_equals_the_mixture_made_by_hand(level, mixing):
    model = with_pool(level, mixing, position=1)
    state = torch.get_rng_state()
    logits = model(IDS, MASK, labels=LABELS).logits
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(logits, naive.answer(model, IDS, MASK, LABELS), **EXACT)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mixing", ["softmax", "tanh"])
def test_a_soft_mixture_draws_no_noise_in_training(level, mixing):
    model = with_pool(level, mixing, standardize=False)
    expected, state = model(IDS, MASK, labels=LABELS).logits, torch.get_rng_state()
    assert torch.equal(model.train()(IDS, MASK, labels=LABELS).logits, expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_a_hard_choice_is_exactly_one_prompt_of_the_pool(level, training):
    model = with_pool(level, "hard").train(training)
    naive.settle(model, IDS, MASK)
    torch.manual_seed(5)
    decisions = model.decide(IDS, MASK)
    chosen, content = decisions["vector"].index, model.prompt.content(decisions)
    assert chosen.unique().numel() > 1 or (level == "task" and not training)
    if not training:
        assert torch.equal(chosen, naive.scores(model, "vector", IDS, MASK).argmax(1))
    assert torch.equal(decisions["vector"].weights, torch.eye(POOL)[chosen].double())
    assert torch.equal(content, model.prompt.vectors[chosen])
    torch.manual_seed(5)
    logits = model(IDS, MASK, labels=LABELS).logits
    for row, k in enumerate(chosen.tolist()):
        single = naive.prompted(vectors=model.prompt.vectors[k].detach()).train(training)
        one = single(IDS[row : row + 1], MASK[row : row + 1], labels=LABELS[row : row + 1]).logits
        assert_close(logits[row : row + 1], one, **EXACT)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mixing", MIXINGS)
def test_training_gradient_is_that_of_the_mixture_written_out(level, mixing):
    """For "hard" this is the straight-through estimator: one-hot weights, with the softmax's gradient."""
    model = with_pool(level, mixing, position=1, temperature=0.5).train()
    torch.manual_seed(4)
    loss = model(IDS, MASK, labels=LABELS).loss
    loss.backward()
    torch.manual_seed(4)
    weights = naive.decide(model, IDS, MASK, sample=True)["vector"]
    assert mixing != "hard" or (weights.detach().sort(1).values[:, -1] == 1).all()
    rows, width = [], int(MASK.sum(1).max()) + LENGTH
    for i, (body, end) in enumerate(naive.tokens(model, IDS, MASK)):
        vectors = sum(weights[i, k] * model.prompt.vectors[k] for k in range(POOL))
        rows.append(torch.cat([vectors[:1], body, vectors[1:], end]))
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    embeds = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    expected = model.backbone(inputs_embeds=embeds, attention_mask=real, labels=LABELS).loss
    assert_close(loss, expected, **EXACT)
    named = model.trainable_parameters()
    for (name, parameter), gradient in zip(named.items(), torch.autograd.grad(expected, named.values())):
        assert gradient.abs().max() > 1e-4, name
        assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-10)


def test_a_pool_of_one_is_a_single_prompt():
    vectors = torch.randn(LENGTH, tiny.WIDTH)
    single = naive.prompted(vectors=vectors, position=1)
    for mixing in MIXINGS:
        pool = naive.prompted(
            vectors=vectors[None], position=1, vector="instance", pool_size=1, mixing=mixing
        )
        assert torch.equal(pool(IDS, MASK, labels=LABELS).logits, single(IDS, MASK, labels=LABELS).logits)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mixing", MIXINGS)
def test_an_instance_does_not_depend_on_its_batch_or_padding(level, mixing):
    model, lengths = with_pool(level, mixing), [6, 3, 8, 5, 7, 4]
    alone = [
        model(IDS[i : i + 1, :n], MASK[i : i + 1, :n], labels=LABELS[i : i + 1]).logits
        for i, n in enumerate(lengths)
    ]
    for side in ("right", "left"):
        together = model(*tiny.batch(lengths, seed=1, side=side, extra=5), labels=LABELS).logits
        assert_close(together, torch.cat(alone), **EXACT)


# --- initial values, sizes, errors ---


def test_every_row_of_the_pool_is_another_row_of_the_vocabulary():
    embedding = torch.randn(50, 4)
    vectors = dp.PromptConfig(length=6, vector="task", pool_size=8).initial_vectors(
        4, 50, embedding.__getitem__
    )
    rows = torch.cdist(vectors.flatten(0, 1), embedding).argmin(1)
    assert vectors.shape == (8, 6, 4) and torch.equal(vectors.flatten(0, 1), embedding[rows])
    assert rows.unique().numel() == 48


def test_uniform_prompts_of_the_pool_differ():
    vectors = dp.PromptConfig(length=6, vector="task", pool_size=8, init="uniform").initial_vectors(
        4, 9, torch.zeros(9, 4).__getitem__
    )
    assert vectors.min() >= -0.5 and vectors.max() <= 0.5
    assert vectors.flatten(1).unique(dim=0).shape[0] == 8 and vectors.std() == pytest.approx(
        12**-0.5, rel=0.1
    )


@given(
    length=st.integers(1, 5), pool=st.integers(1, 5), dim=st.integers(1, 5), tasks=st.integers(1, 3),
    mixing=st.sampled_from(MIXINGS),
)  # fmt: skip
@settings(max_examples=20)
def test_a_pool_trains_the_parameters_that_it_should(length, pool, dim, tasks, mixing):
    for level, controller in (("task", tasks * pool), ("instance", pool * dim + pool)):
        names = [f"t{i}" for i in range(tasks)]
        config = dp.PromptConfig(length=length, vector=level, pool_size=pool, mixing=mixing, tasks=names)
        prompt = config.build(torch.zeros(pool, length, dim))
        assert sum(p.numel() for p in prompt.parameters()) == pool * length * dim + controller


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: dp.PromptConfig(vector="token"),
            "vector='token' is unknown, expected 'single', 'task', 'instance'",
        ),
        (
            lambda: dp.PromptConfig(mixing="max"),
            "mixing='max' is unknown, expected 'softmax', 'tanh', 'hard'",
        ),
        (lambda: dp.PromptConfig(pool_size=0), "pool_size=0 is not valid, expected an integer of at least 1"),
        (lambda: Mixture(TaskController(2), "max"), "mixing='max' is unknown"),
        (
            lambda: Mixture(TaskController(2), "hard"),
            "^chooser=None does not fit mixing='hard': expected one for 'hard' alone$",
        ),
        (lambda: Mixture(TaskController(2), "tanh", Chooser()), "does not fit mixing='tanh'"),
        (
            lambda: dp.PromptConfig(length=2, vector="task", pool_size=3).build(torch.zeros(2, 5)),
            r"vectors has shape \(2, 5\), expected \(3, 2, width\): length=2, vector='task'",
        ),
        (
            lambda: dp.prompted(
                tiny.t5(), dp.PromptConfig(length=2, vector="task"), vectors=torch.zeros(2, 16)
            ),
            r"vectors has shape \(2, 16\), expected \(4, 2, 16\)",
        ),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
