"""The authors' variants by name: equal to their formulas where these are right, without the defects where they are not.

The formulas are spelled out here from a description of the published code (Xianjun-Yang/DPT, commit ec14f44), with
loops and in its own convention: index j counts the vectors AFTER the input, j = 0 is the prefix, and the prompt is
rotated. No line of that code is used. Left out: a variant with a prompt of its own for each position
(soft_ins_pos_adaptive_new), and two that stop at the first batch. What is wrong or different there, and where it is
tested:

 1 noise at evaluation ......................... test_evaluation_has_no_noise
 2 rotated order, reversed index ............... test_the_order_of_the_vectors_is_kept
 3 pooling over padding ........................ test_padding_does_not_reach_the_controller
 4 ReLU on logits .............................. test_no_logit_is_dead
 5 -1e20 for vectors that are not in use ....... test_an_unused_vector_..., test_masking_..., test_half_precision_...
 6 dropout in the frozen model while training .. test_the_frozen_model_stays_in_evaluation_mode
 7 the whole model in the state ................ test_only_the_prompt_is_in_the_state
 8 gradients kept in evaluation, hard-coded .cuda(), flags that are always true: no test, for there is no evaluation
   loop and no command line here; test_project.py looks for names of machines
 9 loops over instances, a second full pass .... test_the_decoder_runs_once; test_insertion.py counts the operations
10 given vectors skip the controllers, a graph
   tensor replaces the parameter ............... test_a_used_model_can_be_copied_and_started_from_given_vectors
11 a decoder-only model's first l rows stripped. test_scores_of_a_decoder_only_model_are_those_of_its_tokens
12 cannot be imported elsewhere ................ no test of its own: every test here imports the package
 - one sample for the whole batch .............. test_each_instance_of_a_batch_samples_its_own_position
"""

import copy
import pickle

import naive
import pytest
import tiny
import torch
from torch import nn
from torch.nn.functional import gumbel_softmax, one_hot
from torch.testing import assert_close

import dplearn as dp
from dplearn.authors import AUTHORS

EXACT = {"rtol": 1e-10, "atol": 1e-10}
LENGTH, LEARNED = 4, ("task", "instance")
IDS, MASK = tiny.batch([6] * 5, seed=1)
LABELS = torch.arange(10).view(5, 2) + 5


def ours(name, seed=0, backbone=None, length=LENGTH, **options):
    """A variant by name, with random vectors at the scale of embeddings, and controllers that tell inputs apart."""
    config = dp.PromptConfig.authors(name, length=length, **options)
    backbone = tiny.t5() if backbone is None else backbone
    torch.manual_seed(seed)
    model = dp.prompted(backbone, config, vectors=torch.randn(*config.shape, tiny.WIDTH))
    with torch.no_grad():
        for parameter_name, parameter in model.trainable_parameters().items():
            parameter.mul_(4 if parameter_name.endswith("linear.weight") else 1)
    model.prompt.to(backbone.dtype)
    return model.eval()


# --- their formulas ---


def embedded_batch(model):
    return model.backbone.get_input_embeddings()(IDS)


def assemble(prompt, embedded, weights, end):
    """sum_j w_j [P_j+1..P_l ; X before the end token ; P_1..P_j ; end token, padding]; j = 0 is [P ; X]."""
    total = weights[0] * torch.cat([prompt, embedded])
    for j in range(1, len(weights)):
        total = total + weights[j] * torch.cat([prompt[j:], embedded[:end], prompt[:j], embedded[end:]])
    return total


def shorten(prompt, weights):
    """sum_j z_j [P_1..P_j ; -1e20 for the others]."""
    unused = torch.full_like(prompt, -1e20)
    return sum(weight * torch.cat([prompt[:j], unused[j:]]) for j, weight in enumerate(weights))


def mean_state(model, ids, mask):
    """Mean of the encoder's last hidden states over all rows of the batch, padding too; from a pass of the whole model."""
    decoder = torch.zeros(len(ids), 1).long()
    output = model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder)
    return output.encoder_last_hidden_state.mean(1)


class Theirs(nn.Module):
    """Their position per instance: the model is a part of the template, and every pass samples."""

    def __init__(self, plm, length=LENGTH):
        super().__init__()
        self.plm = plm.requires_grad_(False)
        self.prompt = nn.Parameter(torch.randn(length, tiny.WIDTH, dtype=plm.dtype))
        self.controller = nn.Linear(tiny.WIDTH, length + 1, dtype=plm.dtype)

    def scores(self, ids, mask):
        return self.controller(mean_state(self.plm, ids, mask)).relu()

    def forward(self, ids, mask, labels):
        weights = gumbel_softmax(self.scores(ids, mask), hard=True, dim=1)
        embedded = self.plm.get_input_embeddings()(ids)
        rows = [assemble(self.prompt, x, w, int(m.sum()) - 1) for x, w, m in zip(embedded, weights, mask)]
        real = torch.cat([torch.ones(len(ids), len(self.prompt)).long(), mask], 1)
        return self.plm(inputs_embeds=torch.stack(rows), attention_mask=real, labels=labels)


def theirs(seed=0, **options):
    torch.manual_seed(seed)
    return Theirs(tiny.t5(**options)).eval()


def passes(model, count=6):
    """Logits of the same batch, several times: (count, B, L, vocabulary)."""
    with torch.no_grad():
        return torch.stack([model(IDS, MASK, labels=LABELS).logits for _ in range(count)])


# --- the variants by name ---


def test_an_unknown_name_is_named_and_all_names_are_listed():
    with pytest.raises(
        ValueError, match=r"name='adap_all' is unknown, expected one of \['adap_pos', 'adap_ins_pos', "
    ):
        dp.PromptConfig.authors("adap_all")


def test_options_replace_those_of_a_variant():
    config = dp.PromptConfig.authors("adap_ins_vec", length=7, summary="embeddings", pool_size=2)
    assert config == dp.PromptConfig(
        length=7,
        vector="instance",
        mixing="tanh",
        pool_size=2,
        summary="embeddings",
        standardize=False,
        **tiny.SAMPLED,
    )


@pytest.mark.parametrize(
    ("name", "parameters", "init"),
    [
        ("adap_pos", 20_501, "vocabulary"),
        ("adap_ins_pos", 42_005, "vocabulary"),
        ("adap_ins_len", 42_005, "vocabulary"),  # theirs has 21,525 more, whose output is not used
        ("adap_ins_vec", 86_020, "vocabulary"),
        ("adap_ins_vec_pos", 107_545, "uniform"),
        ("adap_pos_ins_vec", 86_041, "uniform"),
    ],
)
def test_variants_have_the_number_of_parameters_and_the_start_of_theirs(name, parameters, init):
    config = dp.PromptConfig.authors(name)
    prompt = config.build(torch.zeros(*config.shape, 1024))
    assert sum(parameter.numel() for parameter in prompt.parameters()) == parameters
    assert (config.init, config.summary, config.estimator, config.temperature) == (
        init,
        "encoder",
        "straight-through",
        1,
    )


def scores_by_hand(model, part):
    """Logits of a decision on the batch without padding, from their summary, normalised as here, and without the ReLU."""
    named, name = model.trainable_parameters(), f"prompt.{part}.controller"
    if f"{name}.logits" in named:
        return named[f"{name}.logits"].expand(len(IDS), -1)
    state = mean_state(model.backbone, IDS, MASK)
    state = state - state.mean(1, keepdim=True)
    state = state / (state.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return state @ named[f"{name}.linear.weight"].T + named[f"{name}.linear.bias"]


@pytest.mark.parametrize("name", AUTHORS)
def test_each_variant_equals_its_formula(name):
    """In evaluation. Their prompt is rotated back, so that its vectors stand in our order; a size is a shorter prompt."""
    model, rows, indices = ours(name), [], []
    config = model.prompt_config
    learned = [part for part in ("position", "size", "vector") if getattr(config, part) in LEARNED]
    scores = {part: scores_by_hand(model, part) for part in learned}
    for i, x in enumerate(model.backbone.get_input_embeddings()(IDS)):
        prompt, j = model.prompt.vectors, 0
        if "vector" in learned:
            row = scores["vector"][i]
            weights = (row.tanh() if name == "adap_ins_vec" else row).softmax(0)
            prompt = sum(weights[k] * prompt[k] for k in range(4))
        if "size" in learned:
            prompt = prompt[: int(scores["size"][i].argmax())]
        if "position" in learned:
            j = LENGTH - int(scores["position"][i].argmax())
        weights = one_hot(torch.tensor(j), len(prompt) + 1)
        embeds = assemble(prompt.roll(j, 0), x, weights, len(x) - 1)
        rows.append(model.backbone(inputs_embeds=embeds[None], labels=LABELS[i : i + 1]).logits)
        indices.append([int(scores[part][i].argmax()) for part in learned])
    assert_close(model(IDS, MASK, labels=LABELS).logits, torch.cat(rows), **EXACT)
    assert name == "adap_pos" or len({tuple(index) for index in indices}) > 1  # inputs do differ


@pytest.mark.parametrize("j", range(LENGTH + 1))
def test_their_index_j_is_our_split_of_the_rotated_prompt(j):
    """Logits, and the gradient of the prompt, at every index and with padding."""
    ids, mask = tiny.batch([6, 3, 8, 5, 4], seed=1, extra=2)
    plm = tiny.t5()
    prompt = torch.randn(LENGTH, tiny.WIDTH, dtype=torch.float64, requires_grad=True)
    weights = one_hot(torch.tensor(j), LENGTH + 1)
    embedded = plm.get_input_embeddings()(ids)
    rows = [assemble(prompt, x, weights, int(m.sum()) - 1) for x, m in zip(embedded, mask)]
    real = torch.cat([torch.ones(len(ids), LENGTH).long(), mask], 1)
    expected = plm(inputs_embeds=torch.stack(rows), attention_mask=real, labels=LABELS)
    expected.loss.backward()
    model = ours("adap_pos", position=LENGTH - j)
    with torch.no_grad():
        model.prompt.vectors.copy_(prompt.roll(-j, 0))
    found = model(ids, mask, labels=LABELS)
    found.loss.backward()
    assert_close(found.logits, expected.logits, **EXACT)
    assert_close(model.prompt.vectors.grad.roll(j, 0), prompt.grad, **EXACT)


# --- what is wrong or different there, row by row ---


def test_evaluation_has_no_noise():
    noisy = passes(theirs().eval())
    assert noisy.std(0).max() > 0.05
    for name in AUTHORS:
        model, state = ours(name), torch.get_rng_state()
        quiet = passes(model)
        assert torch.equal(quiet, quiet[:1].expand_as(quiet)) and torch.equal(torch.get_rng_state(), state)


def test_the_order_of_the_vectors_is_kept():
    """With one vector behind the input, theirs is P_2 P_3 P_4 X P_1 and ours is P_1 P_2 P_3 X P_4."""
    prompt, x = torch.arange(1.0, 5).view(4, 1), torch.tensor([[0.0], [9.0]])  # 9: the end token
    rotated = assemble(prompt, x, one_hot(torch.tensor(1), 5), 1)
    kept = dp.insert(prompt, x[None], split=3, keep_last=1).embeds
    assert rotated.flatten().tolist() == [2, 3, 4, 0, 1, 9] and kept.flatten().tolist() == [1, 2, 3, 0, 4, 9]
    model = ours("adap_pos", position=3)
    rows = [assemble(model.prompt.vectors, x, one_hot(torch.tensor(1), 5), 5) for x in embedded_batch(model)]
    logits = model.backbone(inputs_embeds=torch.stack(rows), labels=LABELS).logits
    assert (logits - model(IDS, MASK, labels=LABELS).logits).abs().max() > 0.1


def test_padding_does_not_reach_the_controller():
    template, model = theirs(), ours("adap_ins_pos")
    batches = [tiny.batch([6, 3, 8, 5], seed=1, extra=extra) for extra in (0, 100)]
    moved = [template.controller(mean_state(template.plm, *batch)) for batch in batches]
    assert (moved[0] - moved[1]).abs().max() > 0.1
    same = [model.decide(*batch)["position"].logits for batch in batches]
    assert_close(*same, **EXACT)


def test_no_logit_is_dead():
    """A ReLU gives no gradient where all logits are negative, for ever; and ties at 0 on the way there."""
    template, model = theirs(), ours("adap_ins_pos").train()
    assert (template.scores(IDS, MASK) == 0).double().mean() > 0.2
    for controller in (template.controller, model.prompt.position.controller.linear):
        with torch.no_grad():
            controller.bias.fill_(-100.0)
    template(IDS, MASK, LABELS).loss.backward()
    assert not template.controller.weight.grad.any() and template.prompt.grad.any()
    model(IDS, MASK, labels=LABELS).loss.backward()
    assert (model.prompt.position.controller.linear.weight.grad.abs().amax(1) > 1e-6).all()


@pytest.mark.parametrize("n", [0, 2])
def test_an_unused_vector_leaves_no_trace(n):
    """A row of -1e20 becomes a key of value zero that still draws attention; here n vectors are a prompt of n vectors."""
    plm = tiny.t5(dtype=torch.float32)
    model = ours("adap_ins_len", backbone=plm)
    with torch.no_grad():
        model.prompt.size.controller.linear.weight.zero_()
        model.prompt.size.controller.linear.bias.copy_(9.0 * one_hot(torch.tensor(n), LENGTH + 1))
        x, prompt = embedded_batch(model), model.prompt.vectors
        filled = shorten(prompt, one_hot(torch.tensor(n), LENGTH + 1)).expand(len(x), -1, -1)
        short, long = (
            plm(inputs_embeds=torch.cat([vectors.expand(len(x), -1, -1), x], 1), labels=LABELS).logits
            for vectors in (prompt[:n], filled)
        )
        found = model(IDS, MASK, labels=LABELS).logits
    assert (long - short).abs().max() > 0.1
    assert_close(found, short, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_size_leaves_room_for_that_of_the_prompt():
    """The norm of theirs is about 1e18, so that clipping it to 1 leaves the prompt where it is."""
    plm = tiny.t5(dtype=torch.float32)
    model = ours("adap_ins_len", backbone=plm).train()
    prompt = nn.Parameter(model.prompt.vectors.detach().clone())
    controller = nn.Linear(tiny.WIDTH, LENGTH + 1)
    with torch.no_grad():
        controller.bias[LENGTH - 1] += 2  # most samples use all vectors but one
    weights = gumbel_softmax(controller(mean_state(plm, IDS, MASK)).relu(), hard=True)
    rows = [torch.cat([shorten(prompt, w), x]) for w, x in zip(weights, embedded_batch(model))]
    plm(inputs_embeds=torch.stack(rows), labels=LABELS).loss.backward()
    model(IDS, MASK, labels=LABELS).loss.backward()
    left = []
    for vectors, others in ((prompt, controller), (model.prompt.vectors, model.prompt.size)):
        norm = nn.utils.clip_grad_norm_([vectors, *others.parameters()], 1.0)
        left.append((float(norm), float(vectors.grad.norm())))
    (their_norm, their_step), (our_norm, our_step) = left
    assert not their_norm < 1e12 and not their_step > 1e-9  # nan and inf are no better
    assert our_norm < 100 and our_step > 1e-3


def test_masking_holds_because_unused_vectors_stand_at_the_end():
    """A masked gap between prompt and input moves T5's relative positions; the same gap behind everything does not."""
    model = naive.prompted(length=LENGTH, size="task")
    with torch.no_grad():
        model.prompt.size.controller.logits[0, 2] = 60.0  # decides against any noise
    x, prompt = embedded_batch(model), model.prompt.vectors.expand(len(IDS), -1, -1)
    short = model.backbone(inputs_embeds=torch.cat([prompt[:, :2], x], 1), labels=LABELS).logits
    real = torch.cat([torch.tensor([1, 1, 0, 0]).expand(len(IDS), -1), MASK], 1)
    gap = model.backbone(inputs_embeds=torch.cat([prompt, x], 1), attention_mask=real, labels=LABELS).logits
    assert (gap - short).abs().max() > 0.01
    model.train()  # unused vectors stay in the batch, masked
    assert model.insert_prompt(IDS, MASK).embeds.shape[1] == IDS.shape[1] + LENGTH
    assert_close(model(IDS, MASK, labels=LABELS).logits, short, **EXACT)


def test_half_precision_stays_finite():
    prompt, x = torch.randn(LENGTH, 3), torch.randn(2, 5, 3)
    assert shorten(prompt, one_hot(torch.tensor(2), LENGTH + 1)).half().isinf().any()
    model = dp.PromptConfig.authors("adap_ins_len", length=LENGTH).build(prompt)
    placed = model(x.half(), torch.ones(2, 5).long(), torch.randn(2, 3))
    assert placed.embeds.dtype == torch.float16 and placed.embeds.isfinite().all()


def test_the_frozen_model_stays_in_evaluation_mode():
    template = Theirs(tiny.t5(dropout=0.3)).train()
    assert template.plm.training
    noise = [mean_state(template.plm, IDS, MASK) for _ in range(2)]
    assert (noise[0] - noise[1]).abs().max() > 0.01  # the controller sees another input at every pass
    model = ours("adap_ins_vec", backbone=tiny.t5(dropout=0.3)).train()
    assert not any(module.training for module in model.backbone.modules())
    assert torch.equal(model.summarize(IDS, MASK), model.summarize(IDS, MASK))
    assert torch.equal(*passes(model, 2))  # a soft mixture samples nothing


def test_only_the_prompt_is_in_the_state():
    template, model = theirs(), ours("adap_ins_pos")
    mine = {"prompt", "controller.weight", "controller.bias"}
    assert len(set(template.state_dict()) - mine) == len(template.plm.state_dict()) > 40
    controller = "prompt.position.controller.linear"
    saved = set(model.state_dict()) - {"_extra_state"}  # the settings travel with them
    assert saved == {"prompt.vectors", f"{controller}.weight", f"{controller}.bias"}
    assert saved == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", AUTHORS)
def test_the_decoder_runs_once(name):
    """Their summary comes from a pass of the whole model; here from the encoder alone, and none where it is given."""

    def count(model, plm, **options):
        runs = {"encoder": 0, "decoder": 0}

        def counter(part):
            return lambda *_: runs.update({part: runs[part] + 1})

        handles = [getattr(plm, part).register_forward_hook(counter(part)) for part in runs]
        model(IDS, MASK, labels=LABELS, **options)
        for handle in handles:
            handle.remove()
        return runs

    template, model = theirs(), ours(name)
    looks = name != "adap_pos"
    assert count(template, template.plm) == {"encoder": 2, "decoder": 2}
    assert count(model, model.backbone) == {"encoder": 2 if looks else 1, "decoder": 1}
    summary = model.summarize(IDS, MASK)
    assert count(model, model.backbone, summary=summary) == {"encoder": 1, "decoder": 1}


@pytest.mark.parametrize("name", AUTHORS)
def test_a_used_model_can_be_copied_and_started_from_given_vectors(name):
    vectors = torch.randn(*dp.PromptConfig.authors(name, length=LENGTH).shape, tiny.WIDTH)
    model = dp.prompted(tiny.t5(), dp.PromptConfig.authors(name, length=LENGTH), vectors=vectors).train()
    parameter = model.prompt.vectors
    model(IDS, MASK, labels=LABELS).loss.backward()
    assert model.prompt.vectors is parameter and torch.equal(parameter, vectors)
    assert all(p.grad.abs().max() > 0 for p in model.trainable_parameters().values())  # controllers are there
    for again in (copy.deepcopy(model.prompt), pickle.loads(pickle.dumps(model.prompt))):
        assert all(
            torch.equal(p, q) for p, q in zip(again.parameters(), model.prompt.parameters(), strict=True)
        )
    used = nn.Module()
    used.vectors = vectors.requires_grad_() * 1  # what an attribute holds that a forward pass has overwritten
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(used)


@pytest.mark.parametrize("k", range(LENGTH + 1))
def test_scores_of_a_decoder_only_model_are_those_of_its_tokens(k):
    """Cutting the first l rows off is right for a prefix alone: behind a split prompt, tokens stand elsewhere."""
    plm = tiny.gpt2()
    model = ours("adap_pos", backbone=plm, position=k)
    vectors = model.prompt.vectors.expand(len(IDS), -1, -1)
    embeds = torch.cat([vectors[:, :k], plm.get_input_embeddings()(IDS), vectors[:, k:]], 1)
    logits = plm(inputs_embeds=embeds).logits
    # The scores behind a token are those before the next one; behind the last token they are those behind all rows.
    own = [*range(k, k + IDS.shape[1] - 1), embeds.shape[1] - 1]
    assert_close(model(IDS, MASK).logits, logits[:, own], **EXACT)
    stripped = logits[:, LENGTH:]
    assert torch.equal(stripped, logits[:, own]) is (k == LENGTH)


def test_each_instance_of_a_batch_samples_its_own_position():
    """Theirs repeats one sample of the task's position for the whole batch, so that its gradient varies more."""
    ids, mask = tiny.batch([4] * 200)
    splits = ours("adap_pos").train().decide(ids, mask)["position"].index
    assert splits.unique().numel() == LENGTH + 1
