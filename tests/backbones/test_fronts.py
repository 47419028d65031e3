"""Inputs whose keys and values are kept: the answers, losses and gradients of the full pass, and never a stale one.

The right value is the plain model on the text with the prompt's words spliced in (tests/spliced.py), or the same model
without the shortcut.
"""

import copy
import json
import pickle

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
    BartConfig,
    BartForCausalLM,
    DataCollatorForSeq2Seq,
    DynamicCache,
    FalconMambaConfig,
    FalconMambaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    Trainer,
    TrainingArguments,
)

import dplearn as dp
from dplearn import kept as kept_inputs
from dplearn.kept import KeptInputs

# --- equal to the full pass ---


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_training_step_on_kept_inputs_is_that_of_the_spliced_text(kind, side):
    model, batch = model_of(kind), batch_of(side=side, extra=1)
    kept = model.cache_inputs(iter([batch]), verbose=False)
    assert len(kept) == 3
    seen = lengths_run(model)
    output, found = gradients(model, batch)
    assert seen == [1 + len(spliced.WORDS) + max(BEHIND)]
    assert output.logits.shape[:2] == (3, 1 + max(BEHIND))
    for number, (row, last) in enumerate(zip(ROWS, BEHIND)):
        wanted = spliced.causal_logits(model.backbone, row, 0, last)
        columns = output.logits[number, : last + 1]
        assert_close(columns[:last], wanted[len(row) - last - 1 : -1], **NEAR)
        assert_close(output.logits[number, -1], wanted[-1], **NEAR)
    vectors = model.prompt.vectors.detach().clone().requires_grad_()
    labels = [[-100] * (len(row) - last) + row[len(row) - last :] for row, last in zip(ROWS, BEHIND)]
    loss = spliced.causal_loss(model.backbone, ROWS, labels, 0, BEHIND, vectors)
    assert_close(output.loss.double(), loss, rtol=1e-5, atol=0)
    (wanted,) = torch.autograd.grad(loss, vectors)
    assert_close(found["prompt.vectors"], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "options",
    [
        {"size": "task", "estimator": "straight-through"},
        {"size": "instance", "size_cost": 0.5},
        {"size": "instance", "estimator": "exact"},
        {"size": 2},
        {"vector": "instance", "pool_size": 2},
        {"vector": "task", "pool_size": 2, "mixing": "hard"},
    ],
)
def test_what_is_decided_is_decided_alike(kind, options):
    torch.manual_seed(0)
    config = dp.PromptConfig(length=3, position="postfix", **{"controller_init": "uniform"} | options)
    model = dp.prompted(MODELS[kind](), config).double()
    batch = batch_of()
    model.fit_summaries(iter([batch]))
    model.cache_inputs(iter([batch]), verbose=False)
    assert_as_without(model, batch)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.integers(2, tiny.VOCABULARY - 1), min_size=3, max_size=9), min_size=1, max_size=4
    ),
    behind=st.lists(st.integers(0, 4), min_size=4, max_size=4),
    side=st.sampled_from(["left", "right"]),
    kind=st.sampled_from(sorted(MODELS)),
)
def test_any_batch_gives_what_it_gives_without(rows, behind, side, kind):
    behind = [min(last, len(row) - 2) for row, last in zip(rows, behind)]
    if not any(behind):
        behind[0] = 1
    model, batch = model_of(kind), batch_of(rows, behind, side)
    model.cache_inputs(iter([batch]), verbose=False)
    found, full = assert_as_without(model, batch)
    assert_close(found.logits[:, -1], full.logits[:, -1], **NEAR)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", MODELS)
def test_labels_of_the_input_itself_get_the_full_pass(kind, side):
    """As a collator for language modelling makes them: each token is to be predicted."""
    model, batch = model_of(kind), batch_of(side=side, extra=1)
    batch["labels"] = batch["input_ids"].masked_fill(
        batch["attention_mask"].cumsum(1) < 2, -100
    )  # but the first
    batch["labels"] = batch["labels"].masked_fill(batch["attention_mask"] == 0, -100)
    model.cache_inputs(iter([batch]), verbose=False)
    output, found = gradients(model, batch)
    vectors = model.prompt.vectors.detach().clone().requires_grad_()
    loss = spliced.causal_loss(model.backbone, ROWS, ROWS, 0, BEHIND, vectors)
    assert_close(output.loss.double(), loss, rtol=1e-5, atol=0)
    (wanted,) = torch.autograd.grad(loss, vectors)
    assert_close(found["prompt.vectors"], wanted, rtol=1e-4, atol=1e-6)


def test_labels_of_a_classifier_are_no_labels_of_tokens():
    """Several for each input, by chance as many as it has tokens."""
    backbone = tiny.llama(
        LlamaForSequenceClassification, num_labels=5, problem_type="multi_label_classification"
    )
    model = dp.prompted(backbone, dp.PromptConfig(length=3, position="postfix")).double()
    batch = batch_of([ROWS[0][:5]] * 2, [0, 0])
    assert batch["input_ids"].shape == (2, 5)
    batch |= {"labels": torch.tensor([[1.0, 0, 0, 1, 1], [0, 1, 0, 0, 0]]).double(), "keep_last": 0}
    model.cache_inputs(iter([batch]), verbose=False)
    assert_as_without(model, batch)


def test_a_classifier_reads_the_last_row():
    model = dp.prompted(
        tiny.llama(LlamaForSequenceClassification), dp.PromptConfig(length=3, position="postfix")
    )
    model.double()
    batch = batch_of() | {"labels": torch.tensor([0, 1, 1]), "keep_last": 0}
    model.cache_inputs(iter([batch]), verbose=False)
    seen = lengths_run(model)
    found, full = assert_as_without(model, batch)
    assert_close(found.logits, full.logits, **NEAR)
    assert seen == [4, 3 + max(map(len, ROWS))]


def test_the_trainer_gives_the_same_losses(tmp_path):
    data = [
        {"input_ids": row, "labels": [-100] * (len(row) - 1) + row[-1:], "context_length": len(row) - 1}
        for row in ROWS * 4
    ]
    losses, evaluated = [], []
    for kept in (True, False):
        torch.manual_seed(0)
        model = dp.prompted(tiny.llama(dtype=torch.float32), dp.PromptConfig(length=3, position="postfix"))
        collator = DataCollatorForSeq2Seq(spliced.tokenizer(), model)
        if kept:
            model.cache_inputs(data, collator, verbose=False)
        seen = lengths_run(model)
        arguments = TrainingArguments(
            str(tmp_path / str(kept)), max_steps=6, per_device_train_batch_size=4, logging_steps=1, use_cpu=True,
            learning_rate=0.05, report_to="none", disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=data, data_collator=collator)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert (max(seen) == 1 + 3 + 1) is kept
        evaluated.append(trainer.evaluate(data)["eval_loss"])
    assert_close(*map(torch.tensor, evaluated), rtol=1e-4, atol=0)
    assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=0)
    assert len(losses[0]) == 6


# --- generation ---


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}, {"do_sample": True}]
)
@pytest.mark.parametrize("last", [1, 2])
@pytest.mark.parametrize(
    "kind", sorted(set(MODELS) - {"gemma2"})
)  # it computes parts in float32, and is refused padding
def test_generation_goes_on_behind_kept_inputs(kind, last, options):
    model, (ids, mask) = model_of(kind), spliced.padded(ROWS, "left")
    options = {"do_sample": False, "max_new_tokens": 4, "keep_last": last} | options
    model.cache_inputs(iter([{"input_ids": ids, "attention_mask": mask, "keep_last": last}]), verbose=False)
    seen, found = lengths_run(model), []
    for shortcuts in (("inputs",), ()):
        model.shortcuts = shortcuts
        torch.manual_seed(0)
        found.append(model.generate(ids, mask, **options))
        ran = 1 + len(spliced.WORDS) + last in seen, ids.shape[1] + len(spliced.WORDS) in seen
        assert ran[1] is not bool(shortcuts) and (ran[0] or not shortcuts), seen
        seen.clear()
    assert torch.equal(*found)
    if not options["do_sample"] and "num_beams" not in options:
        for row, new in zip(ROWS, found[0].tolist()):
            assert new == spliced.continuation(model.backbone, row, 0, last)


def test_a_cache_of_ones_own_and_rows_of_different_number_take_the_full_pass():
    model, (ids, mask) = model_of(), spliced.padded(ROWS, "left")
    batch = {"input_ids": ids, "attention_mask": mask, "keep_last": torch.tensor(BEHIND)}
    model.cache_inputs(iter([batch]), verbose=False)
    seen = lengths_run(model)
    first = model.generate(**batch, do_sample=False, max_new_tokens=3)
    assert ids.shape[1] + len(spliced.WORDS) in seen
    own = model.generate(**batch, do_sample=False, max_new_tokens=3, past_key_values=DynamicCache())
    assert torch.equal(first, own)


# --- what takes the full pass ---


def test_named_prompts_in_turn_and_inputs_that_were_not_seen():
    model, batch = model_of(), batch_of()
    model.cache_inputs(iter([batch]), verbose=False)
    model.add_prompt("front", dp.PromptConfig(length=3, position="prefix"))
    model.add_prompt("behind", dp.PromptConfig(length=2, position="postfix"))
    model.double()
    seen, short = lengths_run(model), max(BEHIND)
    for name, rows in (("front", 10), ("behind", 3 + short), ("default", 4 + short)):
        model.use_prompt(name)
        assert_as_without(model, batch)
        assert seen[-2] == rows
    new = batch_of([[5, 9, 6, 20, 33], [40, 4, 9], [3, 3, 17, 21, 12, 9, 50]], [2, 1, 3])
    same_front = batch_of([[5, 9, 6, 7, 7], [40, 4, 9]], [2, 1])
    changed = batch_of([[5, 8, 6, 20, 33]], [2])
    other_end = batch_of(ROWS, [1, 1, 3])
    for each, kept in ((new, True), (same_front, True), (changed, False), (other_end, False)):
        assert_as_without(model, each)
        assert (seen[-2] < seen[-1]) is kept


@pytest.mark.parametrize("kind", MODELS)
def test_in_bfloat16_answers_are_near(kind):
    """As near as those of the model itself in another order of sums."""
    model, batch = model_of(kind), batch_of()
    exact = gradients(model, batch)[0].logits
    model.to(torch.bfloat16)
    outputs = []
    for shortcuts in (("inputs",), ("front",), ()):
        model.shortcuts = shortcuts
        if "inputs" in shortcuts:
            assert model.cache_inputs(batch, verbose=False).dtype == torch.bfloat16
        outputs.append(gradients(model, batch)[0].logits)
    kept, front, full = outputs
    noise = (full.double() - exact).abs().max()
    last = [len(row) - 1 for row in ROWS]
    assert (kept[:, -1].double() - exact[range(3), last]).abs().max() < 3 * noise
    assert (front.double() - exact).abs().max() < 3 * noise


def test_several_prompts_answer_to_one_input_that_ran_once():
    model, batch = model_of(), batch_of()
    del batch["labels"]
    model.add_prompt("other", dp.PromptConfig(length=2, position="postfix"))
    model.double()
    model.cache_inputs(iter([batch_of([ROWS[1]], [1])]), verbose=False)
    before = model.adapter.kept.digests
    for _ in range(2):
        seen, short = lengths_run(model), 1 + max(BEHIND)
        with torch.no_grad(), model.cache_inputs(batch, verbose=False) as kept:
            assert len(kept) == 3 and model.adapter.kept is kept
            front = max(len(row) - last - 1 for row, last in zip(ROWS, BEHIND))
            compared = [3 + short, 3 + max(map(len, ROWS))] if _ == 0 else []
            assert seen == [front, *compared]
            for name in ("default", "other", "default"):
                model.use_prompt(name)
                found = model(**batch, use_cache=False).logits[:, -1]
                model.shortcuts = ()
                full = model(**batch).logits
                model.shortcuts = ("inputs",)
                assert_close(found, full[range(3), [len(row) - 1 for row in ROWS]], **NEAR)
                assert seen[-2] == model.prompt.length + short
        assert model.adapter.kept.digests == before
    with model.cache_inputs(batch, dtype=torch.bfloat16, verbose=False) as other:
        assert model.adapter.kept is other and len(other) == 3
    assert model.adapter.kept.digests == before and model.adapter.kept.dtype == torch.float64


@pytest.mark.parametrize(
    "options", [{"use_cache": True}, {"output_hidden_states": True}, {"output_attentions": True}]
)
def test_a_call_that_wants_more_takes_the_full_pass(options):
    model, batch = model_of(), batch_of()
    model.cache_inputs(iter([batch]), verbose=False)
    model.backbone.set_attn_implementation("eager")
    with torch.no_grad():
        assert model(**batch, **options).logits.shape[1] == batch["input_ids"].shape[1]
        assert model(**batch).logits.shape[1] == 1 + max(BEHIND)
        del batch["labels"]
        assert model(**batch).past_key_values is not None
        assert model(**batch, use_cache=False).logits.shape[1] == 1 + max(BEHIND)
    assert (
        model.eval()(**batch).logits.shape[1] == batch["input_ids"].shape[1]
    )  # whether gradients are on or not


def test_weights_that_change_make_what_was_kept_worthless():
    model, batch = spliced.prompted(tiny.llama(), "postfix"), batch_of()
    kept = model.cache_inputs(iter([batch]), verbose=False)
    seen = lengths_run(model)
    with torch.no_grad():
        model.backbone.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    assert not kept.fresh
    found, _ = assert_as_without(model, batch)
    assert seen[0] == seen[1] == batch["input_ids"].shape[1] + 3
    again = model.cache_inputs(iter([batch]), verbose=False)
    assert again is not kept and again.fresh
    assert_as_without(model, batch)
    assert seen[-2] < seen[-1]


def test_a_wrong_key_would_be_seen(monkeypatch):
    """The check of the checks: with one key for all inputs the first batch is answered otherwise."""
    model, batch = model_of(), batch_of([[5, 9, 6, 7], [40, 4, 8, 3]], [1, 1])
    monkeypatch.setattr("dplearn.backbones.fronts.digest_of", lambda ids: "one")
    with pytest.raises(ValueError, match="answers otherwise on what is kept"):
        model.cache_inputs(iter([batch]), verbose=False)


# --- in files ---


def test_a_folder_is_used_again_and_tells_what_it_is_of(tmp_path, capsys):
    batch, folder = batch_of(), tmp_path / "kept"
    model = model_of()
    model.cache_inputs(iter([batch]), folder=folder)
    size = 2 * 2 * 16 * (2 + 1 + 3) * 8  # layers, keys and values, width, tokens, bytes
    assert (
        f"keeping {size / 2**20:,.1f} MB of 3 inputs in {str(folder)!r}; 0 are kept"
        in capsys.readouterr().out
    )
    again = model_of()
    seen = lengths_run(again)
    more = batch_of([*ROWS, [9, 9, 9]], [*BEHIND, 1])
    again.cache_inputs(iter([more]), folder=folder)
    assert "of 1 inputs in" in (said := capsys.readouterr().out) and "3 are kept already" in said
    assert seen[:2] == [1, 1]  # one to count the numbers of a token, then the new input alone
    assert_as_without(again, more)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors", ".safetensors"]
    other = spliced.prompted(tiny.llama(seed=1), "postfix")
    with pytest.raises(
        ValueError, match="holds inputs of a model with other values of .*expected those of this"
    ):
        other.cache_inputs(iter([batch]), folder=folder)
    with pytest.raises(
        ValueError, match=r"holds inputs of dtype torch.float64, expected .* in torch.bfloat16"
    ):
        again.cache_inputs(iter([batch]), folder=folder, dtype=torch.bfloat16)
    assert json.loads((folder / "kept.json").read_text())["dtype"] == "torch.float64"
    assert other.adapter.kept is None and len(again.adapter.kept) == 4


def test_a_shorter_dtype_is_near():
    model, batch = model_of(), batch_of()
    kept = model.cache_inputs(iter([batch]), dtype=torch.bfloat16, verbose=False)
    layers, mask = kept.layers([kept_inputs.digest_of(torch.tensor(ROWS[0][:2]))], torch.device("cpu"))
    assert layers[0].dtype == torch.float64 and mask.tolist() == [[1, 1]]
    assert torch.equal(layers[0], layers[0].bfloat16().double())
    found, full = assert_as_without(model, batch, rtol=0.2, atol=0.02)
    assert not torch.equal(found.logits[:, -1], full.logits[:, -1])


def test_several_inputs_are_padded_in_front():
    kept = KeptInputs(tiny.llama())
    one, two = torch.rand(2, 3, 4).double(), torch.rand(2, 1, 4).double()
    kept.add({"a": [one, one + 1], "b": [two, two + 1]})
    (keys, values), mask = kept.layers(["b", "a"], torch.device("cpu"))
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert torch.equal(keys[1], one) and torch.equal(keys[0, :, 2:], two) and not keys[0, :, :2].any()
    assert torch.equal(values[1], one + 1) and torch.equal(values[0, :, 2:], two + 1)


# --- refusals ---


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (tiny.t5, {}, "in T5ForConditionalGeneration every row of the input sees the prompt"),
        (tiny.bert, {}, "in BertModel every row of the input sees the prompt"),
        (tiny.vit, {"position": "prefix"}, "from_layer=1, expected a later layer"),
        (tiny.clip, {"position": 1}, "CLIPModel has images and texts, expected cache_images"),
        (tiny.llama, {"position": "prefix"}, "position='prefix', expected 'postfix'"),
        (tiny.llama, {"position": "instance"}, "position='instance', expected 'postfix'"),
        (tiny.llama, {"backbone_dropout": True}, "backbone_dropout=True, expected False"),
        (
            lambda: tiny.llama(LlamaModel),
            {},
            "LlamaModel gives the states of the input's own rows, expected a model",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(make, options, message):
    model = dp.prompted(make(), dp.PromptConfig(length=3, **{"position": "postfix"} | options))
    with pytest.raises(ValueError, match=f"cache_inputs: {message}"):
        model.cache_inputs(iter([]))


def test_inputs_without_ids_and_data_that_is_no_input_are_told_apart():
    model, batch = model_of(), batch_of()
    rows = model.backbone.get_input_embeddings()(batch["input_ids"]).detach()
    with pytest.raises(ValueError, match="cache_inputs: a batch has .*, expected input_ids"):
        model.cache_inputs(iter([{"inputs_embeds": rows, "keep_last": 1}]))
    model.cache_inputs(iter([batch | {"topic": ["a", "b", "c"]}]), verbose=False)  # a column beside
    assert len(model.adapter.kept) == 3


@pytest.mark.parametrize("last", [1, torch.tensor([1, 2, 1])])
def test_the_first_batch_is_compared_with_the_full_pass(monkeypatch, last):
    model, batch = model_of(), batch_of() | {"keep_last": last}
    layers = KeptInputs.layers

    def wrong(self, digests, device):
        found, mask = layers(self, digests, device)
        return [found[0] + 1, *found[1:]], mask

    monkeypatch.setattr(KeptInputs, "layers", wrong)
    with pytest.raises(ValueError, match="LlamaForCausalLM answers otherwise on what is kept"):
        model.cache_inputs(iter([batch]), verbose=False)
    assert model.adapter.kept is None


@pytest.mark.parametrize("folder", [None, "kept"])
def test_a_model_with_kept_inputs_can_be_copied(tmp_path, folder):
    model, batch = model_of(), batch_of()
    model.cache_inputs(iter([batch]), folder=folder and tmp_path / folder, verbose=False)
    assert_as_without(copy.deepcopy(model), batch)
    again = pickle.loads(pickle.dumps(model))
    assert_as_without(again, batch)
    again.adapter.kept.forget()
    assert again.adapter.kept is None and model.adapter.kept is not None


def test_models_without_position_ids_keep_batches_of_one_length():
    """Padding in front would move their positions: a batch of several lengths takes the full pass."""
    config = BartConfig(
        vocab_size=tiny.VOCABULARY, d_model=tiny.WIDTH, decoder_layers=2, decoder_attention_heads=2,
        decoder_ffn_dim=32, dropout=0.0, pad_token_id=tiny.PAD, eos_token_id=tiny.EOS, is_decoder=True,
        is_encoder_decoder=False,
    )  # fmt: skip
    bart = tiny.finish(BartForCausalLM, config, 0, torch.float64)
    torch.manual_seed(0)
    model = dp.prompted(bart, dp.PromptConfig(length=3, position="postfix")).double()
    assert not model.adapter.entry.takes_positions
    same = batch_of([[5, 9, 6, 20, 33], [40, 4, 8, 7, 7]], [2, 2])
    model.cache_inputs(iter([same]), verbose=False)
    model.cache_inputs(iter([batch_of()]), verbose=False)
    found, full = assert_as_without(model, same)
    assert found.logits.shape[1] == 3 < full.logits.shape[1]
    found, full = assert_as_without(model, batch_of())
    assert found.logits.shape[1] == full.logits.shape[1]


def test_a_recurrent_model_is_refused_by_name():
    config = FalconMambaConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=tiny.WIDTH, num_hidden_layers=2, state_size=4, pad_token_id=tiny.PAD,
        eos_token_id=tiny.EOS,
    )  # fmt: skip
    mamba = tiny.finish(FalconMambaForCausalLM, config, 0, torch.float64)
    model = dp.prompted(mamba, dp.PromptConfig(length=3, position="postfix"))
    with pytest.raises(ValueError, match="FalconMambaForCausalLM is not made of keys and values alone"):
        model.cache_inputs(iter([]))


@pytest.mark.parametrize("names", ["inputs", ["images"], ("inputs", "all")])
def test_unknown_shortcuts_are_named(names):
    with pytest.raises(
        ValueError, match=r"shortcuts=.* is not valid, expected some of \['inputs', 'prefix', 'front'\]"
    ):
        model_of().shortcuts = names


@pytest.mark.slow
@pytest.mark.parametrize("one_length", [False, True])
@pytest.mark.parametrize("architecture", [one for one in ARCHITECTURES if one.task != "seq2seq"], ids=str)
def test_every_architecture_keeps_its_inputs_or_says_why_not(architecture, one_length):
    """What is kept changes no loss and no gradient; the rest is refused, or takes the full pass."""
    try:
        model = dp.prompted(build(architecture), dp.PromptConfig(length=3, position="postfix"))
    except (NotBuilt, TypeError) as reason:
        pytest.skip(str(reason)[:200])
    if not model.adapter.causal:
        pytest.skip("an encoder")
    model.to(model.backbone.dtype)
    lengths = torch.tensor([4, 4, 4] if one_length else [7, 3, 6])
    ids = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = 0, 0
    answer = (torch.arange(9) >= lengths.unsqueeze(1)) & (mask > 0)
    labels = ids.where(answer, -100) if architecture.task == "causal" else torch.tensor([0, 1, 0])
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "context_length": lengths}
    try:
        model.cache_inputs(iter([batch]), verbose=False)
    except ValueError as reason:
        assert "is not made of keys and values alone" in str(reason)
        return
    near = 1e-6 if model.dtype == torch.float64 else 1e-4  # some models compute parts in float32
    found, full = assert_as_without(model, batch, rtol=1e-4, atol=near)
    if architecture.task == "causal":
        shorter = one_length or model.adapter.entry.takes_positions
        assert (found.logits.shape[1] < full.logits.shape[1]) is shorter


# --- for engines ---


@pytest.mark.parametrize("position", ["prefix", "postfix", 1, "instance"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_prompt_embeds_feed_the_bare_backbone(position, side):
    torch.manual_seed(0)
    config = dp.PromptConfig(length=3, position=position, size="task", **tiny.SAMPLED)
    model = dp.prompted(tiny.llama(), config).double().eval()
    ids, mask = spliced.padded(ROWS, side)
    found = model.prompt_embeds(ids, mask, keep_last=1)
    wanted = model.generate(ids, mask, keep_last=1, do_sample=False, max_new_tokens=4)
    for rows, row, new in zip(found, ROWS, wanted, strict=True):
        assert rows.shape[0] - len(row) == int(model.decide(ids, mask, keep_last=1)["size"].index[0])
        assert rows.dtype == torch.float64 and not rows.requires_grad
        answer = model.backbone.generate(inputs_embeds=rows[None], do_sample=False, max_new_tokens=4)
        assert answer[0].tolist() == new.tolist()
    with pytest.raises(
        ValueError, match="prompt_embeds of T5ForConditionalGeneration, expected a decoder-only"
    ):
        dp.prompted(tiny.t5(), dp.PromptConfig(length=3)).prompt_embeds(ids, mask)
