"""How many vectors are in use: n of l equals a true prompt of n vectors; what a size costs; the gradient of its logits."""

import naive
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import LENGTH
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

import dplearn as dp
from dplearn.choice import Choice
from dplearn.estimators import ESTIMATORS
from dplearn.length import expected_share, in_words, resolve_size

EXACT = {"rtol": 1e-10, "atol": 1e-10}
LENGTHS = [6, 3, 8, 5, 7, 4]
IDS, MASK = tiny.batch(LENGTHS, seed=1)
LABELS = torch.arange(12).view(6, 2) + 5
LEVELS = ["task", "instance"]


def with_sizes(level, seed=0, **options):
    """A model whose size is learned; the instances of the batch above decide for three sizes or more."""
    model = naive.prompted(seed, size=level, **options)
    if level == "instance":
        with torch.no_grad():
            model.prompt.size.controller.linear.weight.normal_(0, 0.5)
            model.prompt.size.controller.linear.bias.zero_()
    return model


def test_the_share_is_computed_where_the_logits_are():
    """The meta device stands for any other than the CPU."""
    share = expected_share(Choice(None, None, torch.zeros(2, 5, device="meta", dtype=torch.float64)))
    assert share.device.type == "meta" and share.dtype == torch.float64


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("task", ("task", "0 to 5, learned for the task")),
        ("instance", ("instance", "0 to 5, decided for each input from the mean of its embeddings")),
        ("full", ("fixed", "all 5")),
        (4, ("fixed", "the first 4 of 5; 1 vector is not in use")),
        (2, ("fixed", "the first 2 of 5; 3 vectors are not in use")),
    ],
)
def test_a_size_in_words(size, words):
    assert in_words(dp.PromptConfig(length=5, size=size)) == words


# --- names ---


@pytest.mark.parametrize("length", [1, 5])
def test_names_and_numbers_are_sizes(length):
    assert resolve_size("full", length) == length
    assert [resolve_size(n, length) for n in range(1, length + 1)] == list(range(1, length + 1))
    assert [resolve_size(level, length) for level in LEVELS] == [None, None]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("half", "size='half' is unknown, expected 'full', 'task', 'instance' or a number in 1..5"),
        (0, "size=0 is outside 1..5: the prompt has 5 vectors"),
        (6, "size=6 is outside 1..5"),
        (-1, "size=-1 is outside 1..5"),
        (2.0, "size=2.0 is a float, expected a name or an integer"),
        (True, "size=True is a bool"),
        (None, "size=None is a NoneType"),
    ],
)
def test_bad_sizes_are_named(size, message):
    for call in (lambda: resolve_size(size, 5), lambda: dp.PromptConfig(length=5, size=size)):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("cost", [-0.1, float("nan"), float("inf"), "dear", True])
def test_bad_costs_are_named(cost):
    with pytest.raises(
        ValueError, match=f"size_cost={cost!r} is not valid, expected a finite number of at least 0"
    ):
        dp.PromptConfig(size="task", size_cost=cost)


# --- n of l vectors are a prompt of n vectors ---


@pytest.mark.parametrize("position", ["prefix", "postfix", 2, LENGTH - 1])
@pytest.mark.parametrize("n", range(1, LENGTH + 1))
def test_a_fixed_size_is_a_true_shorter_prompt(position, n):
    model = naive.prompted(position=position, size=n)
    split = {"prefix": LENGTH, "postfix": 0}.get(position, position)
    vectors = model.prompt.vectors[:n].detach()
    expected = naive.logits(model, IDS, MASK, LABELS, [vectors] * 6, [min(split, n)] * 6, [n] * 6)
    assert_close(model(IDS, MASK, labels=LABELS).logits, expected, **EXACT)
    short = naive.prompted(length=n, position=min(split, n), vectors=vectors)
    assert torch.equal(model(IDS, MASK, labels=LABELS).logits, short(IDS, MASK, labels=LABELS).logits)
    model(IDS, MASK, labels=LABELS).loss.backward()
    short(IDS, MASK, labels=LABELS).loss.backward()
    assert torch.equal(model.prompt.vectors.grad[:n], short.prompt.vectors.grad)
    assert not model.prompt.vectors.grad[n:].any()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("position", ["prefix", "postfix", 2])
@pytest.mark.parametrize("level", LEVELS)
def test_a_learned_size_is_a_true_shorter_prompt(level, position, training):
    model = with_sizes(level, position=position).train(training)
    naive.settle(model, IDS, MASK)
    for side, extra in (("right", 0), ("left", 3)):
        ids, mask = tiny.batch(LENGTHS, seed=1, side=side, extra=extra)
        torch.manual_seed(3)
        placed = model.insert_prompt(ids, mask)
        torch.manual_seed(3)  # the same sizes again
        logits = model(ids, mask, labels=LABELS).logits
        sizes = placed.decisions["size"].index.tolist()
        assert len(set(sizes)) > (2 if training or level == "instance" else 0)
        splits = placed.decisions["position"].index.tolist()
        expected = naive.logits(model, ids, mask, LABELS, [model.prompt.vectors] * 6, splits, sizes)
        assert_close(logits, expected, **EXACT)
        # The batch is as long as its longest prompt in evaluation; in training the unused vectors stay, masked.
        rows = ids.shape[1] + (LENGTH if training else max(sizes))
        assert placed.embeds.shape == (6, rows, tiny.WIDTH) and placed.mask.shape == (6, rows)
        assert placed.mask.sum(1).tolist() == [length + n for length, n in zip(LENGTHS, sizes)]
        in_use = torch.arange(LENGTH) < placed.decisions["size"].index[:, None]
        assert torch.equal(placed.prompt_positions >= 0, in_use)


def test_a_prompt_of_no_vectors_is_no_prompt():
    model = naive.prompted(size="task", position=2)
    with torch.no_grad():
        model.prompt.size.controller.logits[0, 0] = 9.0
    assert model.insert_prompt(IDS, MASK).embeds.shape == (6, *IDS.shape[1:], tiny.WIDTH)
    expected = model.backbone(input_ids=IDS, attention_mask=MASK, labels=LABELS).logits
    assert_close(model(IDS, MASK, labels=LABELS).logits, expected, **EXACT)


def test_positions_of_unused_vectors_are_minus_one_for_a_fixed_size_too():
    placed = naive.prompted(size=2, position=1).insert_prompt(IDS[:1], MASK[:1])
    # P_1, five tokens, P_2, the end token, padding
    assert placed.prompt_positions.tolist() == [[0, 6, -1, -1]]


@pytest.mark.parametrize("level", LEVELS)
def test_an_instance_does_not_depend_on_its_batch_or_padding(level):
    model = with_sizes(level, position="instance")
    alone = [
        model(IDS[i : i + 1, :n], MASK[i : i + 1, :n], labels=LABELS[i : i + 1]).logits
        for i, n in enumerate(LENGTHS)
    ]
    for side in ("right", "left"):
        together = model(*tiny.batch(LENGTHS, seed=1, side=side, extra=5), labels=LABELS).logits
        assert_close(together, torch.cat(alone), **EXACT)


def test_generation_is_that_of_a_true_shorter_prompt():
    model = with_sizes("instance", position=1)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    found = model.generate(IDS, MASK, **options)
    for i, n in enumerate(model.decide(IDS, MASK)["size"].index.tolist()):
        embeds = naive.sequence(model.prompt.vectors, *naive.tokens(model, IDS, MASK)[i], 1, n)
        expected = model.backbone.generate(inputs_embeds=embeds[None], **options)
        assert torch.equal(found[i : i + 1], expected)


def test_size_of_all_vectors_is_the_full_prompt():
    full, all_of_them = (naive.prompted(position=2, size=size) for size in ("full", LENGTH))
    assert torch.equal(full(IDS, MASK, labels=LABELS).logits, all_of_them(IDS, MASK, labels=LABELS).logits)


# --- the gradient of the logits ---


@given(
    length=st.integers(1, 5),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    split=st.integers(0, 5),
    temperature=st.floats(0.3, 3),
    seed=st.integers(0, 999),
)
@settings(max_examples=40)
def test_gradient_of_the_size_is_the_softmax_jacobian_times_the_loss_of_each_size(
    length, lengths, split, temperature, seed
):
    """For a loss linear in the rows that are in use, whose value at each size is known by hand."""
    split = min(split, length)
    options = {"length": length, "position": split, "size": "task", "temperature": temperature}
    noise = torch.Generator().manual_seed(seed)
    prompt = (
        dp.PromptConfig(**tiny.SAMPLED | options)
        .build(torch.randn(length, 3, dtype=torch.float64), noise)
        .train()
    )
    width = max(lengths)
    inputs, mask = torch.randn(len(lengths), width, 3).double(), torch.zeros(len(lengths), width).long()
    for row, real in enumerate(lengths):
        mask[row, :real] = 1
    placed = prompt(inputs, mask)
    probe = torch.randn(placed.embeds.shape).double() * placed.mask.unsqueeze(2)
    (placed.embeds * probe).sum().backward()

    logits, expected = prompt.size.controller.logits.detach(), torch.zeros(length + 1)
    draws = torch.empty(len(lengths), length + 1).exponential_(generator=torch.Generator().manual_seed(seed))
    for row, real in enumerate(lengths):
        soft = ((logits[0] - draws[row].log()) / temperature).softmax(0)
        assert int(placed.decisions["size"].index[row]) == int(soft.argmax())
        x, p = inputs[row], prompt.vectors.detach()
        losses = torch.stack(
            [
                (torch.cat([naive.sequence(p, x[:real], x[real:], split, n), p[n:]]) * probe[row]).sum()
                for n in range(length + 1)
            ]
        ).float()
        expected += (torch.diag(soft) - torch.outer(soft, soft)) @ losses / temperature
    assert_close(prompt.size.controller.logits.grad[0], expected, rtol=1e-4, atol=1e-4)


# --- the cost of a size ---


@given(batch=st.integers(1, 4), length=st.integers(1, 6), seed=st.integers(0, 999))
def test_expected_share_and_its_gradient_equal_a_loop(batch, length, seed):
    logits = torch.randn(
        batch, length + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    logits.requires_grad_()
    share = expected_share(Choice(torch.zeros(batch).long(), None, logits))
    share.backward()
    mean, gradient = 0.0, torch.zeros_like(logits)
    for b, row in enumerate(logits.detach().exp()):
        chances = row / row.sum()
        expected = sum(n * chance for n, chance in enumerate(chances))
        mean += expected / length / batch
        for n, chance in enumerate(chances):  # dE/d alpha_n = p_n (n - E)
            gradient[b, n] = chance * (n - expected) / length / batch
    assert_close(share, mean, rtol=1e-12, atol=1e-12)
    assert_close(logits.grad, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("position", ["prefix", "instance"])
@pytest.mark.parametrize("level", LEVELS)
def test_the_cost_is_added_to_the_loss_and_to_the_gradient_of_the_size_alone(level, position):
    cost, results = 0.7, []
    for size_cost in (0.0, cost):
        model = with_sizes(level, position=position, size_cost=size_cost).train()
        torch.manual_seed(2)  # the same sample
        output = model(IDS, MASK, labels=LABELS)
        output.loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.trainable_parameters().items()}
        results.append((output.loss.detach(), gradients, output))
    (plain, without, free), (dear, with_cost, charged) = results
    logits = naive.scores(model, "size", IDS, MASK).float()
    chances = logits.exp() / logits.exp().sum(1, keepdim=True)
    penalty = cost * sum(n * chances[:, n] for n in range(LENGTH + 1)).mean() / LENGTH
    assert_close(dear - plain, penalty.detach().double(), rtol=1e-6, atol=1e-6)
    assert "penalty" not in free and torch.equal(charged["penalty"] + plain, dear)
    named = {n: p for n, p in model.trainable_parameters().items() if n.startswith("prompt.size")}
    for name, gradient in zip(named, torch.autograd.grad(penalty, named.values())):
        assert gradient.abs().max() > 1e-3
        assert_close(with_cost[name] - without[name], gradient, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(with_cost[name], without[name]) for name in without if name not in named)


def test_the_cost_counts_only_in_training_and_only_where_a_size_is_learned():
    for size in ("instance", "task", 2, "full"):
        dear, free = (naive.prompted(size=size, size_cost=cost) for cost in (5.0, 0.0))
        for training in (False, True):
            outputs = []
            for model in (dear, free):
                torch.manual_seed(1)
                outputs.append(model.train(training)(IDS, MASK, labels=LABELS))
            charged = training and size in LEVELS
            assert ("penalty" in outputs[0]) is charged
            assert torch.equal(outputs[0].loss, outputs[1].loss) is not charged


def test_label_word_loss_adds_the_cost_and_divides_it_like_the_loss():
    """A batch of six at once, or as four and two: the same value and gradient, on the logits of words and of sizes."""
    words, labels = [7, 3, 11], torch.tensor([[9, 7], [9, 3], [9, 11], [9, 3], [9, 7], [9, 7]])
    answers = torch.randn(6, 2, 20, dtype=torch.float64, requires_grad=True)
    sizes = torch.randn(6, LENGTH + 1, dtype=torch.float64, requires_grad=True)

    def loss(rows, **options):
        penalty = 0.7 * expected_share(Choice(rows, None, sizes[rows]))
        return dp.LabelWordLoss(words)({"logits": answers[rows], "penalty": penalty}, labels[rows], **options)

    chances = sizes.softmax(1)
    penalty = 0.7 * sum(n * chances[:, n] for n in range(LENGTH + 1)).mean() / LENGTH
    rows, targets = torch.arange(6), torch.tensor([0, 1, 2, 1, 0, 0])
    by_hand = torch.nn.functional.cross_entropy(answers[:, 1, words].float(), targets) + penalty
    expected = torch.autograd.grad(by_hand, [answers, sizes])
    accumulated = sum(loss(part, num_items_in_batch=torch.tensor(12)) for part in (rows[:4], rows[4:]))
    for total in (loss(rows), accumulated):
        assert_close(total, by_hand, rtol=1e-6, atol=1e-6, check_dtype=False)
        for gradient, wanted in zip(torch.autograd.grad(total, [answers, sizes]), expected):
            assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)


class Examples(torch.utils.data.Dataset):
    """Sixteen inputs of one length, their label word and the decoder's input."""

    ids, mask = tiny.batch([6] * 16, seed=5)

    def __len__(self):
        return 16

    def __getitem__(self, i):
        label = [[7], [3], [11]][int(self.ids[i, 0]) % 3]
        return dict(
            input_ids=self.ids[i], attention_mask=self.mask[i], labels=label, decoder_input_ids=[tiny.PAD]
        )


@pytest.mark.parametrize("own_loss", [False, True])
def test_the_trainer_accumulates_the_cost_like_the_loss(tmp_path, monkeypatch, own_loss):
    """One step of gradient descent on 16 examples, at once or in four parts, moves the size's logits as by hand."""

    def without_noise(logits, temperature, generator):
        soft = logits.softmax(-1)
        hard = torch.nn.functional.one_hot(soft.argmax(-1), soft.shape[1]).to(soft)
        return Choice(soft.argmax(-1), hard - soft.detach() + soft, logits)

    row = ESTIMATORS["straight-through"]._replace(sample=without_noise)
    monkeypatch.setitem(ESTIMATORS, "straight-through", row)

    def model():
        prompted = naive.prompted(size="instance", size_cost=3.0, standardize=False).train()
        prompted.loss_outside = not own_loss  # LabelWordLoss adds the cost
        return prompted

    moved = []
    for batch_size, accumulate in ((16, 1), (4, 4)):
        prompted = model()
        weight = prompted.prompt.size.controller.linear.weight
        optimizer, start = (
            torch.optim.SGD(prompted.trainable_parameters().values(), lr=1.0),
            weight.detach().clone(),
        )
        settings = dict(report_to="none", disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False)
        arguments = TrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=batch_size, max_grad_norm=0.0,
            gradient_accumulation_steps=accumulate, **settings,
        )  # fmt: skip
        constant = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        words = dp.LabelWordLoss([7, 3, 11])
        Trainer(
            prompted, arguments, train_dataset=Examples(), optimizers=(optimizer, constant),
            compute_loss_func=None if own_loss else words,
        ).train()  # fmt: skip
        moved.append(start - weight.detach())

    by_hand, rows = model(), [Examples()[i] for i in range(16)]
    batch = {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
    logits = by_hand(**batch).logits[:, -1]
    targets = torch.tensor([[7, 3, 11].index(int(label)) for label in batch["labels"]])
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 0])
    if not own_loss:
        loss = torch.nn.functional.cross_entropy(logits[:, [7, 3, 11]], targets)
    chances = naive.scores(by_hand, "size", batch["input_ids"], batch["attention_mask"]).softmax(1)
    share = sum(n * chances[:, n] for n in range(LENGTH + 1)).mean() / LENGTH
    (expected,) = torch.autograd.grad(loss + 3.0 * share, by_hand.prompt.size.controller.linear.weight)
    for found in moved:
        assert_close(found, expected, rtol=1e-6, atol=1e-8)
