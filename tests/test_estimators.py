"""The estimators of a decision's gradient, each against an explicit expectation or an explicit mixture.

The expectation over splits is built by hand: one forward pass for each split of a fixed prompt, weighted with the
controller's probabilities, differentiated by autograd. The mixtures of the position-space estimator are built by hand
too, in the order [P; X], where moving a prompt changes position information and nothing else.
"""

import contextlib
import itertools
import math

import pytest
import tiny
import torch
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import dplearn as dp
from dplearn import estimators
from dplearn.backbones import Boundary, position_space
from dplearn.estimators import ESTIMATORS
from dplearn.sampling import Draws

LENGTH = 3
EXACT = {"rtol": 1e-9, "atol": 1e-11}
IDS, MASK = tiny.batch([6, 3, 8])
LABELS = {"t5": torch.tensor([[5, 6], [7, -100], [9, 10]])}


def make(backbone, position="instance", seed=0, **options):
    """A prompted model in training mode whose prompt is in float64."""
    torch.manual_seed(seed)
    config = dp.PromptConfig(length=LENGTH, position=position, **tiny.SAMPLED | options)
    shape = (*config.shape, tiny.WIDTH)
    model = dp.prompted(backbone, config, vectors=torch.randn(shape))
    model.prompt.double()
    return model.train()


def boundary(model):
    """Where the input ends that the prompt surrounds: in front of the last two tokens, which are the answer."""
    return {"keep_last": 2} if model.adapter.reads_answers else {}


def kept(model, ids, mask):
    """How many last tokens stay behind the prompt."""
    return boundary(model).get("keep_last", model.adapter.keep_last(ids, mask))


def losses_by_hand(model, labels, ids=IDS, mask=MASK):
    """(l+1, B) losses of every instance alone at every split, each a mean over the batch's label tokens times B."""
    vectors, config = model.prompt.vectors, dp.PromptConfig(length=LENGTH)
    found = []
    for k in range(LENGTH + 1):
        fixed = dp.prompted(model.backbone, config, vectors=vectors.detach().float())
        placed = dp.insert(vectors, model.adapter.embed(ids), mask, k, keep_last=kept(model, ids, mask))
        logits = fixed.backbone(inputs_embeds=placed.embeds, attention_mask=placed.mask, labels=labels).logits
        tokens = [
            torch.nn.functional.cross_entropy(row, wanted, ignore_index=-100, reduction="sum")
            for row, wanted in zip(logits, labels, strict=True)
        ]
        found.append(torch.stack(tokens) * len(ids) / (labels != -100).sum())
    return torch.stack(found)


def logits_of(model, ids=IDS, mask=MASK):
    summary = model.summarize(ids, mask)
    return model.prompt.position.controller(summary)


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.trainable_parameters().values()), allow_unused=True)


# ---- exact ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["task", "instance"])
def test_exact_is_autograd_through_the_expectation(position):
    model, labels = make(tiny.t5(), position, estimator="exact"), LABELS["t5"]
    loss = model(IDS, MASK, labels=labels).loss
    by_hand = (logits_of(model).softmax(-1).T * losses_by_hand(model, labels)).sum(0).mean()
    assert_close(loss, by_hand, **EXACT)
    for found, wanted in zip(gradients(model, loss), gradients(model, by_hand), strict=True):
        assert_close(found, wanted, **EXACT)


def test_a_sample_of_the_options_is_unbiased():
    """Over all orders the mean weight of an option is 1, and each instance tries different options."""
    logits = {"position": torch.randn(5000, 4, dtype=torch.float64)}
    draws = estimators.draw(logits, "exact", samples=2, generator=torch.Generator().manual_seed(0))
    index = draws.index["position"]
    assert index.shape == (2, 5000) and (index[0] != index[1]).all() and draws.weight == 2
    weight = draws.weight * torch.bincount(index.flatten(), minlength=4) / 5000
    assert_close(weight, torch.ones(4), rtol=0, atol=0.06)  # about four standard errors
    chances = logits["position"].log_softmax(-1)
    assert_close(draws.log_probs, chances.gather(1, index.T).T, **EXACT)
    losses = torch.rand(2, 5000, dtype=torch.float64)
    by_hand = 2 * (chances.exp().gather(1, index.T).T * losses).sum(0)
    assert_close(estimators.surrogate(losses, draws), by_hand, **EXACT)


def test_exact_enumerates_sizes_and_hard_vectors_too():
    """The size n costs nothing but its own forward pass: the expectation over true n-vector prompts."""
    torch.manual_seed(0)
    backbone, labels = tiny.t5(), LABELS["t5"]
    config = dp.PromptConfig(length=LENGTH, size="instance", estimator="exact", controller_init="uniform")
    model = dp.prompted(backbone, config, vectors=torch.randn(LENGTH, tiny.WIDTH)).train()
    model.prompt.double()
    loss = model(IDS, MASK, labels=labels).loss
    chances = model.prompt.size.controller(model.summarize(IDS, MASK)).softmax(-1)
    rows = []
    for n in range(LENGTH + 1):
        embeds, mask = model.adapter.embed(IDS), MASK
        if n:
            placed = dp.insert(model.prompt.vectors[:n], embeds, MASK, keep_last=1)
            embeds, mask = placed.embeds, placed.mask
        logits = backbone(inputs_embeds=embeds, attention_mask=mask, labels=labels).logits
        rows.append(estimators.instance_losses(logits, labels))
    by_hand = (chances.T * torch.stack(rows)).sum(0).mean()
    assert_close(loss, by_hand, **EXACT)
    for found, wanted in zip(gradients(model, loss), gradients(model, by_hand), strict=True):
        assert_close(found, wanted, **EXACT)


# ---- score function ---------------------------------------------------------------------------------------


def test_the_surrogate_has_the_mean_loss_and_the_leave_one_out_gradient():
    torch.manual_seed(0)
    logits = {
        name: torch.randn(3, n, dtype=torch.float64, requires_grad=True) for name, n in (("a", 4), ("b", 2))
    }
    draws = estimators.draw(logits, "score-function", samples=5)
    losses = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    value = estimators.surrogate(losses, draws)
    assert_close(value, losses.mean(0), **EXACT)
    found = torch.autograd.grad(value.sum(), [losses, *logits.values()], retain_graph=True)
    assert_close(found[0], torch.full_like(losses, 0.2), **EXACT)
    for name, gradient in zip(logits, found[1:], strict=True):
        by_hand = torch.zeros_like(logits[name])
        for b in range(3):
            for s in range(5):
                others = [losses[r, b].item() for r in range(5) if r != s]
                one_hot = torch.eye(logits[name].shape[1], dtype=torch.float64)[draws.index[name][s, b]]
                score = one_hot - logits[name][b].detach().softmax(-1)  # gradient of log pi
                by_hand[b] += (losses[s, b].item() - sum(others) / 4) * score / 5
        assert_close(gradient, by_hand, **EXACT)
    # Each instance's value has its own score alone, so that instances may be weighted.
    alone = torch.autograd.grad(estimators.surrogate(losses, draws)[1], list(logits.values()))
    assert all(gradient[[0, 2]].eq(0).all() and gradient[1].any() for gradient in alone)


@pytest.mark.parametrize("samples", [1, 2])
def test_over_all_outcomes_the_batch_baseline_gives_the_exact_gradient(samples):
    """Every outcome of all draws of three instances, weighted by its probability: the definition of unbiased."""
    torch.manual_seed(0)
    logits = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    table = torch.randn(3, 2, dtype=torch.float64) * 3 + torch.tensor([[0.0], [5.0], [-4.0]]).double()
    pi, mean = logits.detach().softmax(1), torch.zeros(3, 2, dtype=torch.float64)
    for outcome in itertools.product((0, 1), repeat=3 * samples):
        index = torch.tensor(outcome).view(samples, 3)
        log_p = logits.log_softmax(1).expand(samples, -1, -1).gather(2, index[..., None])[..., 0]
        draws = Draws({"position": index}, log_p, None, "score-function-batch")
        losses = table.expand(samples, -1, -1).gather(2, index[..., None])[..., 0]
        value = estimators.surrogate(losses, draws)
        assert_close(value, losses.mean(0), **EXACT)
        (estimate,) = torch.autograd.grad(value.sum(), logits)
        mean += pi.expand(samples, -1, -1).gather(2, index[..., None]).prod() * estimate
    (exact,) = torch.autograd.grad((logits.softmax(1) * table).sum(), logits)
    assert_close(mean, exact, **EXACT)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("batch", [2, 4])
def test_the_batch_baseline_is_the_mean_of_the_other_instances(batch, samples):
    torch.manual_seed(0)
    logits = torch.randn(batch, 3, dtype=torch.float64, requires_grad=True)
    draws = estimators.draw({"position": logits}, "score-function-batch", samples=samples)
    losses = torch.randn(samples, batch, dtype=torch.float64)
    (found,) = torch.autograd.grad(estimators.surrogate(losses, draws).sum(), logits)
    by_hand = torch.zeros_like(logits)
    for b in range(batch):
        others = [losses[s, other].item() for s in range(samples) for other in range(batch) if other != b]
        for s in range(samples):
            one_hot = torch.eye(3, dtype=torch.float64)[draws.index["position"][s, b]]
            score = one_hot - logits[b].detach().softmax(-1)
            by_hand[b] += (losses[s, b].item() - sum(others) / len(others)) * score / samples
    assert_close(found, by_hand, **EXACT)


def test_one_instance_is_compared_with_itself_or_not_at_all():
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    for samples in (1, 3):
        draws = estimators.draw({"position": logits}, "score-function-batch", samples=samples)
        losses = torch.arange(1.0, 1 + samples, dtype=torch.float64)[:, None].requires_grad_()
        alone = "learns nothing from a batch of one instance: take larger batches, samples=2"
        with pytest.warns(UserWarning, match=alone) if samples == 1 else contextlib.nullcontext() as told:
            value = estimators.surrogate(losses, draws)
        assert not told or told[0].filename != estimators.__file__  # tests/test_warnings.py: whose line it is
        found = torch.autograd.grad(value.sum(), [losses, logits], retain_graph=True)
        assert_close(found[0], torch.full_like(losses, 1 / samples), **EXACT)
        if samples == 1:
            assert found[1].eq(0).all()  # and not None: parallel training waits for every gradient
        else:
            (own,) = torch.autograd.grad(
                estimators.surrogate(losses, draws._replace(estimator="score-function")).sum(), logits
            )
            assert_close(found[1], own, **EXACT)


@pytest.mark.parametrize(
    "estimator, samples, texts", [("score-function", 4, 3), ("score-function-batch", 1, 1)]
)
def test_a_score_function_is_unbiased_within_its_error(estimator, samples, texts):
    """Many independent estimates of the same gradient against the exact one, in units of the standard error.

    The baseline of the batch meets copies of one text alone: between texts losses differ far more than between splits.
    """
    ids, mask, labels = IDS[:texts], MASK[:texts], LABELS["t5"][:texts]
    model = make(tiny.t5(), "task", estimator=estimator, samples=samples)
    (exact,) = torch.autograd.grad(
        (logits_of(model, ids, mask).softmax(-1).T * losses_by_hand(model, labels, ids, mask)).sum(0).mean(),
        [model.prompt.position.controller.logits],
    )
    copies = 480 // texts // samples  # rows of one batch are independent estimates, or nearly
    many = ids.repeat(copies, 1), mask.repeat(copies, 1), labels.repeat(copies, 1)
    model.prompt.position.chooser.generator = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(8):
        loss = model(many[0], many[1], labels=many[2]).loss
        estimates.append(torch.autograd.grad(loss, [model.prompt.position.controller.logits])[0])
    estimates = torch.stack(estimates)
    error = estimates.std(0) / len(estimates) ** 0.5
    assert ((estimates.mean(0) - exact).abs() < 4 * error + 1e-9).all()
    # And the check is not empty: the error is small enough to see a bias.
    assert error.max() < 0.3 * exact.abs().max()


def test_a_relaxed_sample_keeps_the_logits_that_it_was_drawn_from():
    logits = torch.randn(4, 3, requires_grad=True)
    choice = estimators.straight_through(logits, 0.5, torch.Generator().manual_seed(0))
    assert choice.logits is logits and torch.equal(choice.index, choice.weights.argmax(1))


def test_copies_keep_their_instance():
    value = torch.arange(3)
    assert estimators.repeat(value, 2, 3).tolist() == [0, 1, 2, 0, 1, 2]
    assert estimators.repeat(torch.tensor(3.0), 2, 3) == 3 and estimators.repeat("x", 2, 3) == "x"


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_draws_that_agree_run_once_and_count_each_time(kind, monkeypatch):
    """Eight draws of position and size: the backbone meets each decision of an instance once, and every output, loss
    and gradient is that of all copies."""
    backbone = getattr(tiny, kind)()
    model = make(backbone, size="instance", size_cost=0.1, estimator="score-function", samples=8)
    labels = (
        LABELS["t5"]
        if kind == "t5"
        else IDS.masked_fill(MASK.cumsum(1) <= MASK.sum(1, keepdim=True) - 2, -100)
    )
    model.fit_summaries(iter([{"input_ids": IDS, "attention_mask": MASK, **boundary(model)}]))
    met = []

    def step():
        torch.manual_seed(5)
        output = model(IDS, MASK, labels=labels, **boundary(model))
        return output, gradients(model, output.loss)

    run = type(model.adapter).run
    monkeypatch.setattr(
        type(model.adapter), "run", lambda self, placed, *rest: met.append(placed) or run(self, placed, *rest)
    )
    output, found = step()
    monkeypatch.setattr(type(output.draws), "distinct", lambda self: (torch.arange(24), torch.arange(24)))
    all_copies, expected = step()
    pairs = torch.stack([output.draws.index[name].flatten() for name in ("position", "size")])
    wanted = {(copy % 3, *pair) for copy, pair in enumerate(pairs.T.tolist())}
    once, each = met
    assert len(once.embeds) == len(wanted) < len(each.embeds) == 24
    assert_close(output.loss, all_copies.loss, **EXACT)
    assert_close(output.logits, all_copies.logits, **EXACT)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, rtol=1e-6, atol=1e-9)  # T5 adds squares up in float32


# ---- position space ---------------------------------------------------------------------------------------


def mixed_t5(model, weights, labels):
    """Losses with the encoder's relative bias mixed over splits, the tokens staying in the order [P; X; EOS; padding].

    Everything is spelled out: positions of each token at each split in loops, the bias of each pair from the table.
    """
    encoder, vectors = model.backbone.get_encoder(), model.prompt.vectors
    attention = encoder.block[0].layer[0].SelfAttention
    embeds = torch.cat([vectors.expand(len(IDS), -1, -1), model.adapter.embed(IDS)], 1)
    mask = torch.cat([torch.ones(len(IDS), LENGTH, dtype=torch.long), MASK], 1)
    total = embeds.shape[1]
    bias = torch.zeros(len(IDS), attention.n_heads, total, total, dtype=torch.float64)
    for b in range(len(IDS)):
        real = int(MASK[b].sum()) - 1  # EOS stays last
        for k in range(LENGTH + 1):
            at = [i if i < k else i + real for i in range(LENGTH)]
            at += [t + k if t < real else t + LENGTH for t in range(IDS.shape[1])]
            offset = torch.tensor(at)[None, :] - torch.tensor(at)[:, None]
            bucket = attention._relative_position_bucket(
                offset,
                True,
                attention.relative_attention_num_buckets,
                attention.relative_attention_max_distance,
            )
            bias[b] = bias[b] + weights[b, k] * attention.relative_attention_bias(bucket).permute(2, 0, 1)
    usual = attention.compute_bias
    attention.compute_bias = lambda *arguments, **options: bias
    try:
        states = encoder(inputs_embeds=embeds, attention_mask=mask)
    finally:
        attention.compute_bias = usual
    return model.backbone(encoder_outputs=states, attention_mask=mask, labels=labels).loss


def mixed_bert(model, weights, labels):
    """The same with position vectors: each token gets the mixture of the vectors of the places that it would have."""
    base, vectors = model.backbone.bert, model.prompt.vectors
    table = base.embeddings.position_embeddings.weight
    embeds = torch.cat([vectors.expand(len(IDS), -1, -1), model.adapter.embed(IDS)], 1)
    mask = torch.cat([torch.ones(len(IDS), LENGTH, dtype=torch.long), MASK], 1)
    mixed = torch.zeros_like(embeds)
    for b in range(len(IDS)):
        real = int(MASK[b].sum())
        for k in range(LENGTH + 1):
            at = [i if i < k else i + real for i in range(LENGTH)]
            at += [t + k if t < real else 0 for t in range(IDS.shape[1])]
            mixed[b] = mixed[b] + weights[b, k] * table[at]
    same = torch.zeros_like(mask)  # every row gets the vector of position 0, which is taken off again
    states = base(inputs_embeds=embeds + mixed - table[0], attention_mask=mask, position_ids=same)
    scores = model.backbone.cls(states.last_hidden_state[:, LENGTH:])
    return torch.nn.functional.cross_entropy(scores.transpose(1, 2), labels, ignore_index=-100)


def mixed_causal(model, weights, labels):
    """Position vectors (GPT-2) or rotary angles (Llama) and causal visibility mixed, the tokens in the order [P; X].

    The head reads the rows that it reads at the sampled split: for each token the one before the next.
    """
    base, vectors = model.backbone.base_model, model.prompt.vectors
    kept = (labels != -100).sum(1)
    embeds = torch.cat([vectors.expand(len(IDS), -1, -1), model.adapter.embed(IDS)], 1)
    total = embeds.shape[1]
    places = torch.zeros(len(IDS), LENGTH + 1, total, dtype=torch.long)
    for b in range(len(IDS)):
        question = int(MASK[b].sum() - kept[b])
        for k in range(LENGTH + 1):
            at = [i if i < k else i + question for i in range(LENGTH)]
            places[b, k] = torch.tensor(
                at + [t + k if t < question else t + LENGTH for t in range(IDS.shape[1])]
            )
    seen = (places.unsqueeze(2) <= places.unsqueeze(3)).double()  # (B, K, query, key)
    seen = torch.einsum("bk,bkqt->bqt", weights, seen)
    hidden = torch.cat([torch.zeros(len(IDS), LENGTH), 1 - MASK], 1).bool()
    mask = (
        (seen + position_space.HIDDEN).log().masked_fill(hidden.unsqueeze(1), torch.finfo(torch.float64).min)
    )
    zero = torch.zeros(len(IDS), total, dtype=torch.long)
    if hasattr(base, "wpe"):
        mixed = torch.einsum("bk,bkqd->bqd", weights, base.wpe.weight[places])
        states = base(
            inputs_embeds=embeds + mixed - base.wpe.weight[0],
            attention_mask=mask.unsqueeze(1),
            position_ids=zero,
        )
    else:
        usual = base.rotary_emb.forward
        tables = [table[0] for table in usual(embeds, torch.arange(total).unsqueeze(0))]
        angles = tuple(torch.einsum("bk,bkqd->bqd", weights, table[places]) for table in tables)
        base.rotary_emb.forward = lambda *arguments, **options: angles
        states = base(inputs_embeds=embeds, attention_mask=mask.unsqueeze(1), position_ids=zero)
        base.rotary_emb.forward = usual
    loss, chosen = 0, weights.argmax(1)
    for b in range(len(IDS)):
        order = places[b, chosen[b]].tolist()
        for t in range(IDS.shape[1]):
            if labels[b, t] != -100:
                row = order.index(order[LENGTH + t] - 1)  # the token that stands right before token t
                scores = model.backbone.lm_head(states.last_hidden_state[b, row])
                loss = loss + torch.nn.functional.cross_entropy(scores, labels[b, t])
    return loss / kept.sum()


def bert():
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return BertForMaskedLM(BertConfig(**sizes, initializer_range=0.4)).double().eval()


def gpt2():
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=1
    )
    return GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.4)).double().eval()


def llama():
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return (
        LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1, initializer_range=0.4)).double().eval()
    )


ANSWERS = IDS.masked_fill(
    (MASK == 0) | (MASK.cumsum(1) <= MASK.sum(1, keepdim=True) - 2), -100
)  # the last two tokens
CASES = {
    "t5": (tiny.t5, mixed_t5, LABELS["t5"]),
    "bert": (bert, mixed_bert, IDS.masked_fill(MASK == 0, -100)),
    "gpt2": (gpt2, mixed_causal, ANSWERS),
    "llama": (llama, mixed_causal, ANSWERS),
}
LOW = {"gpt2": 1e-5, "llama": 1e-5}  # a causal model's loss is computed in float32


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("position", ["task", "instance"])
def test_position_space_is_the_mixture_of_position_information(kind, position):
    """At the sampled one-hot the output is that of the inserted sequence; the gradient is autograd's of the mixture."""
    build, mixed, labels = CASES[kind]
    model = make(build(), position, estimator="position-space", temperature=0.7)
    model.prompt.position.chooser.generator = torch.Generator().manual_seed(1)
    output = model(IDS, MASK, labels=labels, **boundary(model))
    model.prompt.position.chooser.generator.manual_seed(1)
    choice = model.prompt.decide(model.summarize(IDS, MASK, **boundary(model)))["position"]
    chosen = {"position": choice._replace(weights=None), "size": dp.choice.Choice(torch.full((3,), LENGTH))}
    keep = kept(model, IDS, MASK)
    with torch.no_grad():
        given = {"input_ids": IDS, "attention_mask": MASK, "labels": labels}
        reading = model.adapter.read(given, Boundary(keep), model.prompt_config)
        placed = model.prompt(model.adapter.embed(IDS), MASK, None, keep, decisions=chosen)
        assert_close(output.logits, model.adapter.run(placed, reading).logits, rtol=0, atol=1e-12)
    by_hand = mixed(model, choice.weights, labels)
    assert_close(output.loss.double(), by_hand, rtol=0, atol=LOW.get(kind, 1e-12))
    loss = model.adapter.losses(output.logits, labels).mean()  # the model's own, in float64
    for found, wanted in zip(gradients(model, loss), gradients(model, by_hand), strict=True):
        assert_close(found, wanted, rtol=1e-8, atol=1e-11)
        assert found.abs().max() > 1e-6


def test_where_order_cannot_matter_position_space_has_no_drift():
    """T5 without relative biases: the exact gradient is 0; so is position space, while the paper's estimator drifts."""
    sizes = {}
    for name in ("exact", "position-space", "straight-through"):
        backbone = tiny.t5()
        with torch.no_grad():
            backbone.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.zero_()
        model = make(backbone, "task", estimator=name)
        loss = model(IDS, MASK, labels=LABELS["t5"]).loss
        (found,) = torch.autograd.grad(loss, [model.prompt.position.controller.logits])
        sizes[name] = found.abs().max().item()
    assert sizes["exact"] < 1e-12 and sizes["position-space"] < 1e-12 < 1e-4 < sizes["straight-through"], (
        sizes
    )


def test_a_size_is_learned_beside_the_position():
    model = make(tiny.t5(), estimator="position-space", size="instance")
    loss = model(IDS, MASK, labels=LABELS["t5"]).loss
    assert all(g is not None and g.abs().max() > 0 for g in gradients(model, loss))


# ---- the table, and losses of instances --------------------------------------------------------------------


def test_the_table_says_what_each_estimator_does():
    found = {
        n: (r.space, r.compares_losses, r.least_samples, r.usual_samples, r.joint, r.across_instances)
        for n, r in ESTIMATORS.items()
    }
    assert found == {
        "straight-through": ("tokens", False, 1, None, True, False),
        "position-space": ("positions", False, 1, None, True, False),
        "score-function": (None, True, 2, 4, True, False),
        "exact": (None, True, 1, None, False, False),
        "score-function-batch": (None, True, 1, 1, True, True),
    }
    assert all(row.words for row in ESTIMATORS.values())


def test_what_cannot_be_drawn_is_refused_by_name():
    logits = {"position": torch.zeros(2, 3), "size": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match="estimator='straight-through' is not valid, expected one of"):
        estimators.draw(logits, "straight-through")
    with pytest.raises(
        ValueError, match=r"logits=\['position', 'size'\] is not valid with 'exact', expected one dec"
    ):
        estimators.draw(logits, "exact")
    with pytest.raises(ValueError, match="expected at least one decision"):
        estimators.draw({}, "score-function")
    with pytest.raises(ValueError) as error:
        estimators.surrogate(torch.zeros(1, 2), Draws({}, torch.zeros(1, 2), None, "straight-through"))
    assert str(error.value) == (
        "draws.estimator='straight-through' is not valid, expected one of "
        "['score-function', 'exact', 'score-function-batch']"
    )


def test_options_without_a_factor_count_once_each():
    losses, chances = torch.randn(3, 2), torch.randn(2, 3).log_softmax(1)
    draws = Draws({}, chances.T, None, "exact")
    by_hand = [sum(losses[k, b] * chances[b, k].exp() for k in range(3)) for b in range(2)]
    assert_close(estimators.surrogate(losses, draws), torch.stack(by_hand))


def test_what_is_tried_where_nobody_says():
    assert estimators.draw({"position": torch.zeros(2, 3)}, "score-function-batch").log_probs.shape == (1, 2)
    assert estimators.draw({"position": torch.zeros(2, 3)}, "score-function").log_probs.shape == (4, 2)
    assert estimators.draw({"position": torch.zeros(2, 3)}, "exact").log_probs.shape == (3, 2)


def test_draws_are_made_where_the_logits_are_and_by_the_generator_alone():
    """The meta device stands for any other than the CPU: mixing them up is an error there."""
    for name in estimators.comparing_losses():
        drawn = estimators.draw({"position": torch.zeros(2, 4, device="meta")}, name, samples=2)
        assert drawn.index["position"].device.type == drawn.log_probs.device.type == "meta"
        usual = estimators.draw({"position": torch.zeros(2, 4, device="meta")}, name)
        assert usual.index["position"].device.type == "meta"
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            generator = torch.Generator().manual_seed(0)
            found.append(estimators.draw({"size": torch.zeros(30, 9)}, name, 2, generator).index["size"])
            assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(*found) and found[0].shape == (2, 30) and found[0].unique().numel() == 9
    choice = estimators.straight_through(torch.zeros(30, 9), 0.7, torch.Generator().manual_seed(0))
    again = estimators.straight_through(torch.zeros(30, 9), 0.7, torch.Generator().manual_seed(0))
    assert torch.equal(choice.index, again.index)


@pytest.mark.parametrize("estimator", ["score-function", "score-function-batch"])
def test_options_are_drawn_as_often_as_is_probable(estimator):
    chances, count = torch.tensor([0.05, 0.5, 0.15, 0.3]), 40_000
    logits = chances.log().expand(count // 2, -1)
    drawn = estimators.draw({"size": logits}, estimator, 2, torch.Generator().manual_seed(0)).index["size"]
    found = torch.bincount(drawn.flatten(), minlength=4) / count
    assert ((found - chances).abs() < 4 * (chances * (1 - chances) / count).sqrt()).all(), found


def test_exact_tries_no_more_options_than_there_are():
    drawn = estimators.draw({"size": torch.randn(3, 4)}, "exact", samples=9)
    assert drawn.index["size"].T.tolist() == [[0, 1, 2, 3]] * 3 and drawn.weight == 1
    some = estimators.draw({"size": torch.randn(50, 4)}, "exact", samples=3).index["size"]
    assert some.shape == (3, 50) and all(column.unique().numel() == 3 for column in some.T)


def test_parts_of_a_batch_are_picked_and_repeated_and_the_rest_is_left_alone():
    rows, other = torch.arange(6).view(3, 2), torch.arange(4)
    assert estimators.pick(rows, torch.tensor([2, 0]), 3).tolist() == [[4, 5], [0, 1]]
    assert estimators.repeat(rows, 2, 3).tolist() == rows.tolist() * 2
    number = torch.tensor(3)
    for value in (other, number, "text", None):
        assert estimators.pick(value, torch.tensor([0]), 3) is value
        assert estimators.repeat(value, 2, 3) is value
    asked = []

    class Numbers:
        """Instances that were drawn elsewhere."""

        def to(self, device):
            asked.append(device)
            return torch.tensor([1])

    assert estimators.pick(rows, Numbers(), 3).tolist() == [[2, 3]] and asked == [rows.device]
    moved = rows.to("meta")
    assert estimators.pick(moved, torch.tensor([2, 0]), 3).shape == (2, 2)
    assert estimators.repeat(moved, 2, 3).shape == (6, 2)


def test_losses_of_texts_of_tokens_and_of_the_next_token():
    torch.manual_seed(0)
    logits, labels = (
        torch.randn(3, 5, 7),
        torch.tensor([[1, 2, 3, 4, 5], [6, -100, 0, 1, -100], [-100, 2, 2, 2, 2]]),
    )
    for shift in (False, True):
        scores, wanted = (logits[:, :-1], labels[:, 1:]) if shift else (logits, labels)
        mean = torch.nn.functional.cross_entropy(scores.flatten(0, 1), wanted.flatten())
        found = estimators.instance_losses(logits, labels, shift)
        assert_close(found.mean(), mean)
        count = (wanted != -100).sum()
        for number in range(3):
            alone = torch.nn.functional.cross_entropy(scores[number], wanted[number], reduction="sum")
            assert_close(found[number], alone * 3 / count)
    texts, kinds = torch.randn(4, 3), torch.tensor([[0], [2], [1], [1]])
    expected = torch.nn.functional.cross_entropy(texts, kinds.flatten(), reduction="none")
    assert_close(estimators.instance_losses(texts, kinds), expected)
    nothing = estimators.instance_losses(logits, torch.full((3, 5), -100))
    assert nothing.tolist() == [0.0] * 3
    one = torch.full((3, 5), -100)
    one[1, 2] = 4
    alone = torch.nn.functional.cross_entropy(logits[1, 2:3], one[1, 2:3])
    assert_close(estimators.instance_losses(logits, one), torch.stack([0 * alone, 3 * alone, 0 * alone]))
    half = estimators.instance_losses(logits.bfloat16(), labels)
    assert half.dtype == torch.float32


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_row_that_is_not_finite_is_named(bad):
    logits = torch.zeros(4, 3)
    logits[2, 1] = logits[3, 0] = bad
    with pytest.raises(ValueError, match="logits of the size, row 2, are not finite: training has diverged"):
        estimators.draw({"position": torch.zeros(4, 3), "size": logits}, "score-function")


@pytest.mark.parametrize("column", [False, True])
def test_regression_losses_are_squares_instance_by_instance(column):
    scores, labels = torch.randn(5, 1), torch.randn(5)
    found = estimators.instance_losses(scores, labels[:, None] if column else labels)
    expected = [(scores[i, 0].item() - labels[i].item()) ** 2 for i in range(5)]
    assert_close(found, torch.tensor(expected))
    assert_close(found.mean(), torch.nn.functional.mse_loss(scores[:, 0], labels))


PROBLEMS = {
    "a number": (dict(num_labels=1), torch.tensor([0.5, -1.0, 2.0])),
    "a whole number": (dict(num_labels=1), torch.tensor([3, 1, 0])),
    "numbers": (dict(num_labels=3, problem_type="regression"), torch.arange(9.0).view(3, 3) - 4),
    "a class": (dict(num_labels=3), torch.tensor([2, 0, 1])),
    "a class that is missing": (dict(num_labels=3), torch.tensor([2, -100, 1])),
    "several": (dict(num_labels=3), torch.tensor([[1.0, 0, 1], [0, 0, 1], [0, 1, 0]])),
    "yes or no": (
        dict(num_labels=1, problem_type="multi_label_classification"),
        torch.tensor([[1.0], [0], [1]]),
    ),
}


@pytest.mark.parametrize("estimator", ["score-function", "exact"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_loss_that_is_compared_is_the_classifiers_own(problem, estimator):
    """Of a decision that is made, the surrogate is the loss that the model gives in evaluation."""
    options, labels = PROBLEMS[problem]
    model = make(tiny.bert(BertForSequenceClassification, **options), "task", estimator=estimator)
    with torch.no_grad():
        model.prompt.position.controller.logits.copy_(torch.tensor([0.0, 0.0, 0.0, 200.0]))
    found = model(IDS, MASK, labels=labels).loss
    plain = {"vectors": model.prompt.vectors, "config": dp.PromptConfig(length=LENGTH)}
    fixed = dp.prompted(model.backbone, **plain).double().eval()
    assert_close(found, fixed(IDS, MASK, labels=labels).loss, check_dtype=False)


class Weighted(BertForSequenceClassification):
    """Classes weigh 1, 5 and 10 in the model's own loss."""

    def forward(self, labels=None, **batch):
        output = super().forward(**batch)
        if labels is not None:
            weight = torch.tensor([1, 5, 10]).to(output.logits)
            output.loss = torch.nn.functional.cross_entropy(output.logits, labels, weight)
        return output


def test_a_loss_with_parts_of_its_own_is_not_replaced_by_a_plain_one():
    labels = torch.tensor([0, 1, 2])
    model = make(tiny.bert(Weighted, num_labels=3), estimator="score-function")
    one = model(IDS, MASK, labels=torch.tensor([1, 1, 1])).loss  # a mean has no weight of a single class
    assert one.isfinite()
    message = "compares losses of logits, whose mean is .* and the loss of Weighted is .* weights or parts"
    with pytest.raises(ValueError, match=message):
        model(IDS, MASK, labels=labels)
    model.loss_outside = True
    assert model(IDS, MASK, labels=labels).loss.isfinite()
    direct = make(tiny.bert(Weighted, num_labels=3), 2, estimator="straight-through")
    output = direct(IDS, MASK, labels=labels)
    weight = torch.tensor([1.0, 5, 10]).double()
    assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels, weight))


class Plain(BertForSequenceClassification):
    """Gives a dictionary."""

    kind = dict

    def forward(self, **batch):
        output = super().forward(**batch)
        return self.kind(output) if self.kind is dict else output.to_tuple()


class Nameless(Plain):
    """Gives a tuple."""

    kind = tuple


@pytest.mark.parametrize("options", [{}, {"size": "task", "size_cost": 0.1, "estimator": "straight-through"}])
def test_parts_of_a_prompt_are_added_to_a_dictionary_and_not_to_a_tuple(options):
    options = {"estimator": "score-function"} | options
    labels, found = torch.tensor([0, 1, 2]), []
    for kind in (BertForSequenceClassification, Plain):
        model = make(tiny.bert(kind, num_labels=3), "task", **options)
        torch.manual_seed(1)
        found.append(model(IDS, MASK, labels=labels))
    usual, plain = found
    assert type(plain) is dict and set(plain) == set(usual)
    assert_close(plain["loss"], usual.loss)
    assert_close(plain["logits"], usual.logits)
    model = make(tiny.bert(Nameless, num_labels=3), "task", **options)
    with pytest.raises(TypeError, match="the output of Nameless is a tuple, expected one with names"):
        model(IDS, MASK, labels=labels)


def test_a_count_of_items_that_the_estimator_would_not_use_is_refused():
    model = make(tiny.llama(), estimator="score-function")
    options = {"labels": IDS, "keep_last": 2, "num_items_in_batch": torch.tensor(9)}
    with pytest.raises(
        ValueError, match="num_items_in_batch=a tensor .* is not used with estimator='score-f"
    ):
        model(IDS, MASK, **options)
    model = make(tiny.llama(), "prefix", estimator="straight-through")
    plain = model(IDS, MASK, labels=IDS, keep_last=2).loss
    assert_close(model(IDS, MASK, **options).loss, plain * IDS[:, 1:].numel() / 9)


def test_losses_of_several_labels_are_means_over_the_labels_of_an_instance():
    scores, labels = torch.randn(5, 3), torch.randint(2, (5, 3)).float()
    expected = []
    for row, wanted in zip(scores.tolist(), labels.tolist()):
        each = [-math.log(1 / (1 + math.exp(-x if y else x))) for x, y in zip(row, wanted)]
        expected.append(sum(each) / 3)
    found = estimators.instance_losses(scores, labels)
    assert_close(found, torch.tensor(expected))
    assert_close(found.mean(), torch.nn.functional.binary_cross_entropy_with_logits(scores, labels))


class Losses(torch.nn.Module):
    """Surrogates from logits of tokens, as a module that torch.export takes."""

    def forward(self, logits, labels, log_probs):
        losses = estimators.instance_losses(logits.flatten(0, 1), labels.repeat(3, 1)).view(3, -1)
        return estimators.surrogate(losses, estimators.Draws({}, log_probs, None, "score-function"))


def test_losses_are_exported_for_any_batch():
    logits, labels = torch.randn(3, 4, 5, 7), torch.randint(7, (4, 5))
    labels[2, 3:] = -100
    log_probs = torch.randn(3, 4)
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = ({1: batch}, {0: batch}, {1: batch})
    exported = torch.export.export(Losses(), (logits, labels, log_probs), dynamic_shapes=shapes).module()
    for rows in ([0, 1, 2, 3], [2, 0], [1, 1, 2, 3, 0]):
        given = logits[:, rows], labels[rows], log_probs[:, rows]
        assert_close(exported(*given), Losses()(*given))


# ---- together with the rest of the package ----------------------------------------------------------------


@pytest.mark.parametrize("estimator", sorted(estimators.comparing_losses()))
def test_label_words_see_the_same_surrogate(estimator):
    """LabelWordLoss on the copies equals the model's own loss where the vocabulary is the label words alone."""
    model = make(tiny.t5(), estimator=estimator)
    model.prompt.position.chooser.generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([[5], [7], [5]])
    output = model(IDS, MASK, labels=labels)
    found = dp.LabelWordLoss(list(range(tiny.VOCABULARY)))(output, labels)
    assert_close(found, output.loss, rtol=1e-5, atol=1e-6)
    accumulated = dp.LabelWordLoss(list(range(tiny.VOCABULARY)))(output, labels, num_items_in_batch=6)
    assert_close(accumulated, output.loss / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", ["position-space", "score-function", "score-function-batch", "exact"])
def test_evaluation_is_the_same_argmax_for_all(estimator):
    model, usual = make(tiny.t5(), estimator=estimator), make(tiny.t5())
    usual.prompt.load_state_dict(model.prompt.state_dict())
    one, two = (m.eval()(IDS, MASK, labels=LABELS["t5"]) for m in (model, usual))
    assert torch.equal(one.logits, two.logits) and "draws" not in one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"estimator": "exact", "size": "task"},
            r"enumerates the options of one decision, expected one of \['position', 'size'\]",
        ),
        (
            {"estimator": "straight-through", "samples": 3},
            r"samples=3 has no use with estimator='straight-through', expected None",
        ),
        (
            {"estimator": "score-function", "samples": 1},
            r"samples=1 is not valid, expected an integer of at least 2",
        ),
        (
            {"estimator": "exact", "samples": True},
            r"samples=True is not valid, expected an integer of at least 1",
        ),
        ({"estimator": "magic"}, r"estimator='magic' is unknown, expected 'exact', 'position-space'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        dp.PromptConfig(position="task", **options)


def test_gradient_checkpointing_of_a_relative_bias_is_refused():
    model = make(tiny.t5(), estimator="position-space")
    model.gradient_checkpointing_enable()
    with pytest.raises(
        ValueError, match="estimator='position-space' does not work with gradient checkpointing"
    ):
        model(IDS, MASK, labels=LABELS["t5"])


def test_a_backbone_whose_positions_are_out_of_reach_is_refused():
    backbone = tiny.t5()
    backbone.encoder.block[0].layer[0].SelfAttention.has_relative_attention_bias = False
    with pytest.raises(ValueError, match="cannot be used: T5ForConditionalGeneration's encoder has neither"):
        make(backbone, estimator="position-space")
