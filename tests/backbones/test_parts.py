"""A causal model in two parts: the answers, losses and gradients of the pass over all rows at once, and less work.

The right value is the plain model on the text with the prompt's words spliced in (tests/spliced.py), or the same model
without the shortcut.
"""

import copy

import pytest
import spliced
import tiny
import torch
from architectures import ARCHITECTURES, NotBuilt, build
from decoders import (
    BEHIND,
    MODELS,
    NEAR,
    ROWS,
    assert_as_without,
    batch_of,
    gradients,
    lengths_run,
    model_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import (
    DynamicCache,
    FalconMambaConfig,
    FalconMambaForCausalLM,
    LlamaForSequenceClassification,
)

import dplearn as dp
from dplearn.backbones import parts

WIDTH = max(map(len, ROWS)) + len(spliced.WORDS)


@torch.no_grad()
def answers(model, shortcuts, **batch):
    model.shortcuts = shortcuts
    return model.eval()(**batch)


# --- vectors in front of every input ---


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("position", ["prefix", 1])
@pytest.mark.parametrize("kind", MODELS)
def test_a_prompt_in_front_runs_once(kind, position, side):
    model, batch = model_of(kind, position), batch_of(side=side)
    split = spliced.SPLITS[position]
    seen = lengths_run(model)
    with torch.no_grad():
        for _ in range(2):
            output = model(**batch)
    assert seen == [split, WIDTH - split, WIDTH - split]
    assert output.past_key_values.get_seq_length() == WIDTH
    for number, (row, last) in enumerate(zip(ROWS, BEHIND)):
        wanted = spliced.causal_logits(model.backbone, row, split, last)
        assert_close(output.logits[number][batch["attention_mask"][number] != 0], wanted, **NEAR)
    full = answers(model, (), **batch)
    assert_close(output.loss, full.loss, rtol=1e-5, atol=0)
    for found, wanted in zip(output.past_key_values.layers, full.past_key_values.layers, strict=True):
        assert_close(found.keys, wanted.keys, **NEAR)
        assert_close(found.values, wanted.values, **NEAR)


def test_what_is_kept_of_a_prefix_is_never_stale():
    model, batch = model_of(position="prefix"), batch_of()
    model.add_prompt("other", dp.PromptConfig(length=2, position="prefix"))
    model.double()
    seen, expected = lengths_run(model), []

    def check(new, rows):
        found = answers(model, ("prefix",), **batch)
        expected.extend([rows] * new + [rows and WIDTH - 3])
        assert seen == expected, "vectors ran once more, or once too seldom"
        full = answers(model, (), **batch)
        assert seen.pop() == WIDTH - 3 + rows
        assert_close(found.logits, full.logits, **NEAR)

    check(1, 3)
    check(0, 3)
    model.use_prompt("other")
    check(1, 2)
    model.use_prompt("default")
    check(0, 3)
    with torch.no_grad():
        model.prompt.vectors[1, 3] += 0.5
    check(1, 3)
    with torch.no_grad():
        next(iter(model.backbone.model.layers[0].parameters())).mul_(1.5)
    check(1, 3)
    next(iter(model.backbone.model.layers[0].parameters())).data += 0.1  # as some libraries merge an adapter
    check(1, 3)
    other = copy.deepcopy(model)
    assert_close(answers(other, ("prefix",), **batch).logits, answers(other, (), **batch).logits, **NEAR)


def test_a_wrong_key_would_be_seen(monkeypatch):
    model, batch = model_of(position="prefix"), batch_of()
    answers(model, ("prefix",), **batch)
    monkeypatch.setattr(parts, "_starts_with", lambda known, vectors: True)
    with torch.no_grad():
        model.prompt.vectors += 0.5
    found, full = (answers(model, shortcuts, **batch).logits for shortcuts in (("prefix",), ()))
    assert (found - full).abs().max() > 1e-3


def test_a_split_for_each_input_shares_what_all_have_in_front():
    model, batch = model_of(position="instance"), batch_of()
    for index, front in (
        (torch.tensor([3, 1, 2]), 1),
        (torch.tensor([2, 3, 2]), 2),
        (torch.tensor([3, 0, 1]), 0),
    ):
        seen = lengths_run(model)
        found = answers(model, ("prefix",), **batch, decisions={"position": index})
        assert seen[-1] == WIDTH - front
        assert_close(found.logits, answers(model, (), **batch, decisions={"position": index}).logits, **NEAR)
    assert sorted(len(known.vectors) for known in model.adapter.prefixes) == [1, 2]


@pytest.mark.parametrize("options", [{"vector": "instance", "pool_size": 2}, {"size": "instance"}])
def test_vectors_that_depend_on_the_input_take_the_full_pass(options):
    torch.manual_seed(1)
    config = dp.PromptConfig(length=3, position="prefix", controller_init="uniform", **options)
    model, batch = dp.prompted(tiny.llama(), config).double().eval(), batch_of()
    found = answers(model, ("prefix",), **batch)
    assert_close(found.logits, answers(model, (), **batch).logits, **NEAR)


def test_a_cache_goes_on_behind_a_known_prefix():
    model, batch = model_of(position="prefix"), batch_of()
    new, found = torch.tensor([[4, 8], [30, 2], [9, 9]]), []
    del batch["labels"]
    for shortcuts in (("prefix",), ()):
        cache = answers(model, shortcuts, **batch).past_key_values
        found.append(answers(model, shortcuts, input_ids=new, past_key_values=cache).logits)
    assert_close(*found, **NEAR)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
@pytest.mark.parametrize("rows", [ROWS, [ROWS[0], ROWS[0][::-1]]], ids=["padded", "even"])
@pytest.mark.parametrize("kind", sorted(set(MODELS) - {"gemma2"}))
def test_generation_goes_on_behind_a_known_prefix(kind, rows, options):
    model, (ids, mask) = model_of(kind, 2), spliced.padded(rows, "left")
    options = {"do_sample": False, "max_new_tokens": 4, "keep_last": 1} | options
    seen, found = lengths_run(model), []
    for shortcuts in (("prefix",), ("prefix",), ()):
        model.shortcuts = shortcuts
        torch.manual_seed(0)
        seen.clear()
        found.append(model.generate(ids, mask, **options))
        total = ids.shape[1] + len(spliced.WORDS)
        padded_window = kind == "mistral" and rows is ROWS
        assert (total - 2 in seen) is bool(shortcuts and not padded_window)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    if not options["do_sample"] and "num_beams" not in options:
        for row, new in zip(rows, found[0].tolist()):
            assert new == spliced.continuation(model.backbone, row, 2, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"past_key_values": DynamicCache},
        {"output_hidden_states": True, "return_dict_in_generate": True},
    ],
)
def test_other_ways_to_generate_begin_at_the_start(options):
    model, (ids, mask) = model_of(position="prefix"), spliced.padded([ROWS[0]])
    options = {name: value() if callable(value) else value for name, value in options.items()}
    seen = lengths_run(model)
    found = model.generate(ids, mask, do_sample=False, max_new_tokens=4, **options)
    assert seen[0] == ids.shape[1] + 3
    assert getattr(found, "sequences", found)[0].tolist() == spliced.continuation(model.backbone, ROWS[0], 3)


def test_generation_in_training_mode_keeps_a_prefix_without_dropout():
    model = spliced.prompted(tiny.llama(attention_dropout=0.5), "prefix", backbone_dropout=True).train()
    ids, mask = spliced.padded([ROWS[0]])
    for _ in range(2):
        assert model.generate(ids, mask, do_sample=False, max_new_tokens=4)[
            0
        ].tolist() == spliced.continuation(model.backbone.eval(), ROWS[0], 3)
        model.train()
    assert len(model.adapter.prefixes) == 1
    found = answers(model, ("prefix",), input_ids=ids, attention_mask=mask)
    assert_close(found.logits, answers(model, (), input_ids=ids, attention_mask=mask).logits, **NEAR)


# --- rows without a gradient ---

LONG = [row * 2 for row in ROWS]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_step_of_a_postfix_has_no_gradient_in_front(kind, side):
    model, batch = model_of(kind), batch_of([row * 4 for row in ROWS], side=side)
    front = min(4 * len(row) - last for row, last in zip(ROWS, BEHIND))
    total = 4 * max(map(len, ROWS)) + 3
    if 2 * front < total:
        batch = batch_of([row * 4 for row in ROWS[:1]] * 2, BEHIND[:2], side)
        front, total = 20 - max(BEHIND[:2]), 23
    seen = lengths_run(model)
    found, full = assert_as_without(model, batch, "front")
    assert seen == [front, total - front, total]
    assert_close(found.logits, full.logits, **NEAR)
    assert found.past_key_values.get_seq_length() == total


@pytest.mark.parametrize("options", [{"size_cost": 0.5}, {"estimator": "exact"}, {"samples": 6}])
@pytest.mark.parametrize("kind", MODELS)
def test_draws_share_the_front(kind, options):
    torch.manual_seed(0)
    config = dp.PromptConfig(length=3, position="postfix", size="instance", **options)
    model = dp.prompted(MODELS[kind](), config).double()
    rows = [ROWS[0] * 3, ROWS[2] * 2]
    batch, passes = batch_of(rows, [2, 1]), []
    parts.runs_in_parts(model.adapter)
    layer = next(m for n, m in model.adapter.entry.module.named_modules() if n in ("layers.0", "h.0"))
    layer.register_forward_pre_hook(
        lambda layer, values, named: passes.append(
            tuple((values[0] if values else named["hidden_states"]).shape[:2])
        ),
        with_kwargs=True,
    )
    assert_as_without(model, batch, "front")
    copies = passes[2][0]
    assert copies > 2
    assert passes == [(2, 13), (copies, 18 - 13), (copies, 18)]


def test_a_wrong_copy_would_be_seen(monkeypatch):
    config = dp.PromptConfig(length=3, position="postfix", size="instance", estimator="exact")
    model, batch = dp.prompted(tiny.llama(), config).double(), batch_of([ROWS[0] * 3, ROWS[2] * 2], [2, 1])
    picked = parts.Reading.picked
    monkeypatch.setattr(
        parts.Reading, "picked", lambda self, rows: picked(self, rows)._replace(copies=torch.zeros_like(rows))
    )
    with pytest.raises(AssertionError):
        assert_as_without(model, batch, "front")


@pytest.mark.parametrize("shortcut", ["front", "inputs"])
def test_weights_of_a_place_need_the_rows_of_the_input(shortcut):
    """Even where every input happens to have its prompt behind it."""
    model, batch = model_of(), batch_of([ROWS[0] * 3, ROWS[2] * 2], [2, 1])
    if shortcut == "inputs":
        model.cache_inputs(iter([batch]), verbose=False)
    config = dp.PromptConfig(length=3, position="instance", estimator="straight-through")
    model.add_prompt("learned", config)
    model.use_prompt("learned")
    model.double()
    with torch.no_grad():
        model.prompt.position.controller.linear.bias[0] = 6.0
        model.prompt.position.controller.linear.weight.normal_(std=0.1)
    seen = lengths_run(model)
    assert_as_without(model, batch, shortcut, rtol=1e-5, atol=0)
    assert len(seen) == 2 and seen[0] == seen[1]


def test_inputs_with_a_gradient_and_trained_layers_take_the_full_pass():
    model, batch = model_of(), batch_of([ROWS[0] * 3], [2])
    rows = model.backbone.get_input_embeddings()(batch.pop("input_ids")).detach().requires_grad_()
    seen = lengths_run(model)
    model.train()(inputs_embeds=rows, **batch).loss.backward()
    assert rows.grad.abs().max() > 0 and seen == [18]
    layer = next(model.backbone.model.layers.parameters()).requires_grad_()
    model(inputs_embeds=rows.detach(), **batch).loss.backward()
    assert layer.grad.abs().max() > 0 and seen == [18, 18]


def test_dropout_and_short_inputs_take_the_full_pass():
    model, batch = model_of(backbone_dropout=True), batch_of([ROWS[0] * 3], [2])
    seen = lengths_run(model)
    gradients(model, batch)
    assert seen == [18]
    model = model_of()
    seen = lengths_run(model)
    gradients(model, batch_of([ROWS[0]], [3]))
    assert seen == [8]


def test_a_classifier_reads_the_last_row():
    model = dp.prompted(
        tiny.llama(LlamaForSequenceClassification), dp.PromptConfig(length=3, position="postfix")
    ).double()
    batch = batch_of(LONG) | {"labels": torch.tensor([0, 1, 1]), "keep_last": 0}
    batch = {name: value[::2] if hasattr(value, "shape") else value for name, value in batch.items()}
    seen = lengths_run(model)
    found, full = assert_as_without(model, batch, "front")
    assert_close(found.logits, full.logits, **NEAR)
    assert seen == [10, 7, 17]


def test_a_recurrent_model_runs_at_once():
    config = FalconMambaConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=tiny.WIDTH,
        num_hidden_layers=1,
        state_size=4,
        intermediate_size=32,
    )
    model = dp.prompted(
        tiny.finish(FalconMambaForCausalLM, config, 0, torch.float64),
        dp.PromptConfig(length=3, position="prefix"),
    )
    assert not parts.runs_in_parts(model.adapter)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.integers(2, tiny.VOCABULARY - 1), min_size=7, max_size=13), min_size=1, max_size=4
    ),  # with a window of eight rows, what is behind longer padding has no value in any model
    behind=st.lists(st.integers(1, 4), min_size=4, max_size=4),
    position=st.sampled_from(["prefix", "postfix", 1, 2]),
    side=st.sampled_from(["left", "right"]),
    kind=st.sampled_from(sorted(MODELS)),
)
def test_any_batch_gives_what_it_gives_without(rows, behind, position, side, kind):
    behind = [min(last, len(row) - 2) for row, last in zip(rows, behind)]
    model, batch = model_of(kind, position), batch_of(rows, behind, side)
    found, full = assert_as_without(model, batch, "front")
    assert_close(found.logits, full.logits, **NEAR)
    found, full = (answers(model, shortcuts, **batch) for shortcuts in (("prefix",), ()))
    real = batch["attention_mask"] != 0
    assert_close(found.logits[real], full.logits[real], **NEAR)


@pytest.mark.slow
@pytest.mark.parametrize("position", ["prefix", "postfix"])
@pytest.mark.parametrize("architecture", [one for one in ARCHITECTURES if one.task != "seq2seq"], ids=str)
def test_every_architecture_answers_as_at_once(architecture, position):
    try:
        model = dp.prompted(build(architecture), dp.PromptConfig(length=3, position=position))
    except (NotBuilt, TypeError) as reason:
        pytest.skip(str(reason)[:200])
    if not model.adapter.causal:
        pytest.skip("an encoder")
    model.to(model.backbone.dtype)
    ids = torch.randint(5, 60, (3, 16), generator=torch.Generator().manual_seed(1))
    mask, lengths = torch.ones_like(ids), torch.tensor([14, 12, 13])
    ids[1, 14:], mask[1, 14:] = 0, 0
    answer = (torch.arange(16) >= lengths.unsqueeze(1)) & (mask > 0)
    labels = ids.where(answer, -100) if architecture.task == "causal" else torch.tensor([0, 1, 0])
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "context_length": lengths}
    near = 1e-6 if model.dtype == torch.float64 else 1e-4  # some models compute parts in float32
    if position == "prefix":
        found, full = (answers(model, shortcuts, **batch) for shortcuts in (("prefix",), ()))
        real = mask != 0 if architecture.task == "causal" else slice(None)
        assert_close(found.logits[real], full.logits[real], rtol=1e-4, atol=near)
        return
    try:
        model.shortcuts = ()
        gradients(model, batch)
    except (AssertionError, RuntimeError) as reason:
        pytest.skip(f"it does not train in evaluation mode: {str(reason)[:100]}")
    assert_as_without(model, batch, "front", rtol=1e-4, atol=near)


# --- encoder-decoders ---


def test_the_encoder_runs_once_for_all_new_tokens_and_once_for_draws_that_agree():
    model = dp.prompted(tiny.t5(), dp.PromptConfig(length=3, position="instance")).double()
    (ids, mask), passes = spliced.padded(ROWS), []
    model.backbone.get_encoder().register_forward_pre_hook(
        lambda encoder, values, named: passes.append(len(named["inputs_embeds"])), with_kwargs=True
    )
    model.generate(ids, mask, num_beams=2, max_new_tokens=5, min_new_tokens=5)
    assert passes == [3]
    with torch.no_grad():
        model.prompt.position.controller.linear.bias[1] = 50.0  # all draws agree
    model.train()(input_ids=ids, attention_mask=mask, labels=torch.tensor([[5], [7], [9]])).loss.backward()
    assert passes == [3, 3] and model.prompt.vectors.grad.abs().max() > 0
