"""PromptedModel on encoder-decoder backbones: the invariants of prompt tuning, against naive references and PEFT."""

import copy
import math
import warnings

import pytest
import tiny
import torch
import torch._dynamo.testing
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, ViTConfig, ViTForMaskedImageModeling

import dplearn as dp
from dplearn.estimators import ESTIMATORS, surrogate

LENGTH = 5
MODELS = {"t5": tiny.t5, "flan-t5": tiny.flan_t5, "bart": tiny.bart}
POSITIONS = ["prefix", "postfix", 2, "task", "instance"]
LABELS = torch.tensor([[5, 6], [7, 8], [9, 10]])


@pytest.fixture(params=MODELS)
def backbone(request):
    return MODELS[request.param]()


def make(backbone, position="prefix", seed=0, **options):
    """A prompted model whose random vectors have the scale of the embeddings, in the backbone's dtype."""
    torch.manual_seed(seed)
    config = dp.PromptConfig(length=LENGTH, position=position, **tiny.SAMPLED | options)
    model = dp.prompted(backbone, config, vectors=torch.randn(LENGTH, tiny.WIDTH))
    model.prompt.double()
    return model


def naive_logits(model, ids, mask, splits):
    """Logits of each instance alone, unpadded, its prompt concatenated by hand around the tokens before EOS."""
    vectors, embedding = model.prompt.vectors, model.backbone.get_input_embeddings()
    rows = []
    for row, (tokens, real, k) in enumerate(zip(ids, mask, splits, strict=True)):
        tokens = tokens[real.bool()]
        body = embedding(tokens)[None]
        cut = len(tokens) - int(tokens[-1] == tiny.EOS)
        embeds = torch.cat([vectors[None, :k], body[:, :cut], vectors[None, k:], body[:, cut:]], 1)
        rows.append(model.backbone(inputs_embeds=embeds, labels=LABELS[row : row + 1]).logits)
    return torch.cat(rows)


# --- invariant 1: every split is the concatenation that it names; a prefix is PEFT's prompt tuning ---


@pytest.mark.parametrize("k", range(LENGTH + 1))
@pytest.mark.parametrize("eos", [True, False])
def test_each_split_equals_concatenation_by_hand(backbone, k, eos):
    model = make(backbone, k)
    ids, mask = tiny.batch([6, 3, 8], eos=eos)
    logits = model(ids, mask, labels=LABELS).logits
    torch.testing.assert_close(logits, naive_logits(model, ids, mask, [k] * 3), rtol=1e-10, atol=1e-10)


def test_named_positions_equal_their_splits(backbone):
    ids, mask = tiny.batch([6, 3, 8])
    for name, k in (("prefix", LENGTH), ("postfix", 0)):
        named, fixed = (make(backbone, position)(ids, mask, labels=LABELS).logits for position in (name, k))
        assert torch.equal(named, fixed)


def test_a_prompt_without_end_token_comes_last(backbone):
    ids, mask = tiny.batch([4], eos=False)
    placed = make(backbone, "postfix").insert_prompt(ids, mask)
    assert placed.prompt_positions.tolist() == [[4, 5, 6, 7, 8]]
    ids[:, -1] = tiny.EOS
    placed = make(backbone, "postfix").insert_prompt(ids, mask)
    assert placed.prompt_positions.tolist() == [[3, 4, 5, 6, 7]] and placed.input_positions.tolist() == [
        [0, 1, 2, 8]
    ]


def test_prefix_equals_peft_prompt_tuning():
    from peft import PromptTuningConfig, get_peft_model

    ids, mask = tiny.batch([6, 3, 8])
    ours = make(tiny.t5())
    expected = ours(ids, mask, labels=LABELS)
    config = PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=LENGTH, num_transformer_submodules=1
    )
    theirs = get_peft_model(tiny.t5(), config).double().eval()
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(ours.prompt.vectors)
    found = theirs(input_ids=ids, attention_mask=mask, labels=LABELS)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=1e-12)
    found.loss.backward()
    expected.loss.backward()
    gradient = theirs.prompt_encoder["default"].embedding.weight.grad
    torch.testing.assert_close(gradient, ours.prompt.vectors.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("position", ["task", "instance"])
def test_a_learned_position_equals_the_fixed_prompt_at_the_split_it_decides(backbone, position):
    model = make(backbone, position)
    ids, mask = tiny.batch([6, 3, 8, 5, 5, 7], seed=3)
    labels = LABELS.repeat(2, 1)
    splits = model.decide(ids, mask)["position"].index
    logits = model(ids, mask, labels=labels).logits
    for row, k in enumerate(splits.tolist()):
        fixed = make(backbone, k)
        with torch.no_grad():
            fixed.prompt.vectors.copy_(model.prompt.vectors)
        one = fixed(ids[row : row + 1], mask[row : row + 1], labels=labels[row : row + 1]).logits
        torch.testing.assert_close(logits[row : row + 1], one, rtol=1e-10, atol=1e-10)


def test_instance_positions_differ_between_instances_and_task_positions_do_not(backbone):
    ids, mask = tiny.batch([6, 3, 8, 5, 5, 7, 4, 4], seed=3)
    assert make(backbone, "instance", seed=1).decide(ids, mask)["position"].index.unique().numel() > 1
    assert make(backbone, "task").decide(ids, mask)["position"].index.unique().numel() == 1


def test_training_gradient_is_that_of_the_mixture_of_inserted_sequences(backbone):
    """The whole chain in token space, by dense autograd: sum over splits of weight times concatenation."""
    model = make(backbone, "instance").train()
    ids, mask = tiny.batch([6, 6, 6])
    inputs = model.backbone.get_input_embeddings()(ids)
    body, end = inputs[:, :-1], inputs[:, -1:]
    torch.manual_seed(4)
    model(ids, mask, labels=LABELS).loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.trainable_parameters().items()}
    model.zero_grad()
    torch.manual_seed(4)
    choice = model.prompt.position(model.summarize(ids, mask))
    vectors = model.prompt.vectors.expand(3, -1, -1)
    candidates = [torch.cat([vectors[:, :k], body, vectors[:, k:], end], 1) for k in range(LENGTH + 1)]
    mixed = torch.einsum("bk,kbtd->btd", choice.weights.double(), torch.stack(candidates))
    model.backbone(inputs_embeds=mixed, labels=LABELS).loss.backward()
    assert set(found) == {
        "prompt.vectors",
        "prompt.position.controller.linear.weight",
        "prompt.position.controller.linear.bias",
    }
    for name, parameter in model.trainable_parameters().items():
        assert found[name].abs().max() > 0
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-7)  # weights are float32


# --- invariant 2: batch mates, the amount and the side of padding do not matter ---


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("summary", ["embeddings", "encoder"])
def test_an_instance_does_not_depend_on_its_batch_or_padding(position, summary):
    model = make(tiny.t5(), position, summary=summary)
    lengths = [6, 2, 9]
    ids, mask = tiny.batch(lengths)
    alone = torch.cat(
        [
            model(ids[i : i + 1, :n], mask[i : i + 1, :n], labels=LABELS[i : i + 1]).logits
            for i, n in enumerate(lengths)
        ]
    )
    for side in ("right", "left"):
        for extra in (0, 7):
            together = model(*tiny.batch(lengths, side=side, extra=extra), labels=LABELS).logits
            torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("position", POSITIONS)
def test_bart_does_not_depend_on_right_padding(position):
    model = make(tiny.bart(), position)
    ids, mask = tiny.batch([6, 2, 9])
    padded = model(*tiny.batch([6, 2, 9], extra=7), labels=LABELS).logits
    torch.testing.assert_close(model(ids, mask, labels=LABELS).logits, padded, rtol=1e-10, atol=1e-10)


# --- invariant 3: evaluation is deterministic ---


@pytest.mark.parametrize("position", ["task", "instance"])
def test_evaluation_draws_no_random_number_and_training_does(backbone, position):
    model, (ids, mask) = make(backbone, position), tiny.batch([6, 3, 8])
    state = torch.get_rng_state()
    first, second = (model(ids, mask, labels=LABELS).logits for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)
    model.train()
    splits = torch.cat([model.decide(ids, mask)["position"].index for _ in range(50)])
    assert splits.unique().numel() > 2


def test_generation_is_that_of_evaluation_and_keeps_the_mode(backbone):
    model, (ids, mask) = make(backbone, "instance"), tiny.batch([6, 3, 8])
    expected = model.generate(ids, mask, max_new_tokens=4, do_sample=False)
    model.train()
    for _ in range(5):
        assert torch.equal(model.generate(ids, mask, max_new_tokens=4, do_sample=False), expected)
    assert model.training and model.prompt.training and not model.backbone.training


def test_generation_equals_greedy_decoding_by_hand(backbone):
    model, (ids, mask) = make(backbone, 2), tiny.batch([6, 3, 8])
    with torch.no_grad():
        decoder = torch.full((3, 1), model.config.decoder_start_token_id)
        for _ in range(4):
            logits = model(ids, mask, decoder_input_ids=decoder).logits[:, -1]
            decoder = torch.cat([decoder, logits.argmax(-1, keepdim=True)], 1)
    found = model.generate(ids, mask, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    unfinished = (decoder[:, 1:] != tiny.EOS).all(1)  # min_new_tokens forbids the end token
    assert unfinished.any() and torch.equal(found[unfinished], decoder[unfinished])


# --- invariant 4: the backbone is frozen, in evaluation mode, and unchanged ---


def test_the_backbone_stays_in_evaluation_mode_unless_asked():
    ids, mask = tiny.batch([6, 3, 8])
    for dropout in (False, True):
        model = make(tiny.t5(dropout=0.5), backbone_dropout=dropout).train()
        first, second = (model(ids, mask, labels=LABELS).logits for _ in range(2))
        assert model.prompt.training and model.backbone.training is dropout
        assert torch.equal(first, second) is not dropout
        assert not model.eval().backbone.training


@pytest.mark.parametrize("position", POSITIONS)
def test_steps_change_the_prompt_and_not_one_bit_of_the_backbone(backbone, position):
    before = copy.deepcopy(backbone.state_dict())
    model = make(backbone, position).train()
    start = {name: parameter.detach().clone() for name, parameter in model.trainable_parameters().items()}
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    ids, mask = tiny.batch([6, 3, 8])
    for _ in range(3):
        model(ids, mask, labels=LABELS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = backbone.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert not any(
        torch.equal(start[name], parameter) for name, parameter in model.trainable_parameters().items()
    )


# --- invariant 7: what is trained is listed, and it is all that is saved ---


@pytest.mark.parametrize("position", POSITIONS)
def test_the_listed_parameters_are_those_that_want_gradients_and_those_in_the_state(backbone, position):
    model = make(backbone, position)
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    statistics = {name for name in model.state_dict() if ".standardizer." in name}
    assert len(statistics) == (3 if position == "instance" else 0)
    others = {"_extra_state"} | statistics  # its settings, and what summaries are standardized by
    assert wanted == set(model.trainable_parameters()) == set(model.state_dict()) - others


def test_loading_the_state_restores_the_prompt_and_strangers_are_refused():
    first, second = make(tiny.t5(), "instance", seed=0), make(tiny.t5(), "instance", seed=1)
    assert second.load_state_dict(first.state_dict()).missing_keys == []
    for name, parameter in second.trainable_parameters().items():
        assert torch.equal(parameter, first.trainable_parameters()[name])
    with pytest.raises(RuntimeError, match="prompt.position.controller"):
        second.load_state_dict({"prompt.vectors": first.prompt.vectors})
    with pytest.raises(RuntimeError, match="stranger"):
        second.load_state_dict(first.state_dict() | {"stranger": torch.zeros(1)})


def test_print_trainable_parameters_counts_each_parameter_once(capsys):
    model = make(tiny.t5(), "task")
    model.print_trainable_parameters()
    frozen = sum(p.numel() for p in {id(p): p for p in model.backbone.parameters()}.values())
    trained = LENGTH * tiny.WIDTH + LENGTH + 1
    expected = f"trainable params: {trained:,} || all params: {trained + frozen:,} || trainable%: {100 * trained / (trained + frozen):.4f}"
    assert capsys.readouterr().out.strip() == expected


# --- invariant 8 for the whole model: compile, autocast, checkpointing ---


@pytest.mark.filterwarnings("ignore:gradients are computed in evaluation mode")
@pytest.mark.parametrize("position", ["prefix", "instance"])
def test_one_graph_under_compile(position):
    model = make(tiny.t5(), position).eval()
    ids, mask = tiny.batch([6, 3, 8])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected, found = model(ids, mask, labels=LABELS), compiled(ids, mask, labels=LABELS)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(out.loss, model.prompt.vectors)[0] for out in (expected, found)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def with_the_draws_of(output, model, ids, mask):
    """The loss of a training step by an estimator that compares losses, put together from passes with fixed decisions."""
    draws, losses = output.draws, []
    (name,) = draws.index
    for options in draws.index[name]:
        logits = model(ids, mask, labels=LABELS, decisions={name: options}).logits
        losses.append(torch.nn.functional.cross_entropy(logits.mT, LABELS, reduction="none").mean(1))
    chances = model.decide(ids, mask)[name].logits.log_softmax(1)
    log_probs = torch.stack([chances.gather(1, options[:, None])[:, 0] for options in draws.index[name]])
    share = (chances.exp() @ torch.arange(LENGTH + 1.0).double() / LENGTH).mean()
    cost = model.prompt_config.size_cost * share
    return surrogate(torch.stack(losses), draws._replace(log_probs=log_probs)).mean() + cost


@pytest.mark.parametrize(
    ("estimator", "options"),
    [
        ("score-function", {"position": "instance"}),
        ("exact", {"size": "task", "size_cost": 0.5}),
        ("straight-through", {"size": "task", "size_cost": 0.5}),
    ],
)
def test_one_graph_trains_where_parts_of_the_loss_are_the_models_own(estimator, options):
    """Without a look at which draws agree, and with outputs that have a penalty or draws."""
    model = make(tiny.t5(), **options | {"estimator": estimator, "standardize": False}).train()
    ids, mask = tiny.batch([6, 3, 8])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.manual_seed(3)
    output = compiled(ids, mask, labels=LABELS)
    torch.manual_seed(3)
    compares = ESTIMATORS[estimator].compares_losses
    expected = (
        with_the_draws_of(output, model, ids, mask) if compares else model(ids, mask, labels=LABELS).loss
    )
    torch.testing.assert_close(output.loss, expected, rtol=1e-10, atol=0)
    for name, parameter in model.trainable_parameters().items():
        gradient = torch.autograd.grad(expected, parameter, retain_graph=True)[0]
        assert gradient.abs().max() > 1e-6, name
        found = torch.autograd.grad(output.loss, parameter, retain_graph=True)[0]
        torch.testing.assert_close(found, gradient, rtol=1e-8, atol=1e-10)


def test_a_new_temperature_does_not_compile_anew():
    model = make(tiny.t5(), "instance").train()
    ids, mask = tiny.batch([6, 3, 8])
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    counts = []
    for temperature in (1.0, 0.9, 0.8):
        model.set_temperature(temperature)
        compiled(ids, mask, labels=LABELS).loss.backward()
        counts.append(counter.frame_count)
    assert counts[0] > 0 and len(set(counts)) == 1


def test_bf16_autocast_trains_a_float32_prompt():
    model = make(tiny.t5(dtype=torch.float32), "instance").float().train()
    ids, mask = tiny.batch([6, 3, 8])
    torch.manual_seed(0)
    exact = model(ids, mask, labels=LABELS).loss
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, mask, labels=LABELS).loss
    loss.backward()
    assert all(
        p.grad.dtype == torch.float32 and p.grad.isfinite().all()
        for p in model.trainable_parameters().values()
    )
    torch.testing.assert_close(loss.float(), exact, rtol=0.05, atol=0.05)


def test_a_bfloat16_backbone_takes_a_float32_prompt():
    model = dp.prompted(
        tiny.t5(dtype=torch.bfloat16), dp.PromptConfig(length=LENGTH, position="instance")
    ).train()
    ids, mask = tiny.batch([6, 3, 8])
    model(ids, mask, labels=LABELS).loss.backward()
    assert model.prompt.vectors.dtype == torch.float32 and model.prompt.vectors.grad.abs().max() > 0


def test_gradient_checkpointing_gives_the_same_gradient():
    model = make(tiny.t5(), 2).train()
    ids, mask = tiny.batch([6, 3, 8])
    model(ids, mask, labels=LABELS).loss.backward()
    expected, model.prompt.vectors.grad = model.prompt.vectors.grad, None
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.backbone.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns that it switches the decoder's cache off
        model(ids, mask, labels=LABELS).loss.backward()
    torch.testing.assert_close(model.prompt.vectors.grad, expected, rtol=1e-10, atol=1e-12)


# --- summaries ---


@pytest.mark.parametrize("summary", ["embeddings", "encoder"])
def test_the_summary_is_the_masked_mean_and_can_be_computed_once(backbone, summary):
    model = make(backbone, "instance", summary=summary)
    ids, mask = tiny.batch([6, 3, 8])
    found = model.summarize(ids, mask)
    states = backbone.get_input_embeddings()(ids)
    if summary == "encoder":
        states = backbone.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    for row, length in enumerate([6, 3, 8]):
        torch.testing.assert_close(found[row], states[row, :length].mean(0), rtol=1e-10, atol=1e-10)
    assert not found.requires_grad
    expected = model(ids, mask, labels=LABELS).logits
    assert torch.equal(model(ids, mask, labels=LABELS, summary=found).logits, expected)


def test_the_encoders_summary_has_no_dropout_in_training():
    model = make(tiny.t5(dropout=0.3), "instance", summary="encoder", backbone_dropout=True).train()
    ids, mask = tiny.batch([6, 3, 8])
    assert torch.equal(model.summarize(ids, mask), model.summarize(ids, mask))
    assert model.backbone.training and model.backbone.encoder.block[0].training


def test_inputs_embeds_equal_input_ids_where_the_end_token_is_named(backbone):
    model = make(backbone, 2)
    ids, mask = tiny.batch([6, 3, 8])
    embeds = backbone.get_input_embeddings()(ids)
    one, other = (
        model.insert_prompt(ids, mask),
        model.insert_prompt(None, mask, inputs_embeds=embeds, keep_last=1),
    )
    assert torch.equal(one.embeds, other.embeds) and torch.equal(one.mask, other.mask)


# --- bad input ---


def an_image_model():
    return ViTForMaskedImageModeling(
        ViTConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            image_size=8,
            patch_size=4,
        )
    )


IDS, MASK = tiny.batch([6, 3, 8])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: dp.prompted(torch.nn.Linear(3, 3)),
            TypeError,
            "backbone=Linear .* expected a transformers PreTrainedModel",
        ),
        (
            lambda: dp.prompted(an_image_model()),
            TypeError,
            "expected a model that ends in one of .*, got ViTForMaskedImageModeling",
        ),
        (lambda: dp.prompted(AutoModel.from_config(tiny.t5().config)), TypeError, "T5Model has none"),
        (
            lambda: dp.prompted(tiny.t5(), dp.PromptConfig(length=3), vectors=torch.zeros(3, 99)),
            ValueError,
            r"vectors has shape \(3, 99\), expected \(3, 16\)",
        ),
        (
            lambda: dp.prompted(tiny.t5(), dp.PromptConfig(length=3), vectors=torch.zeros(4, 16)),
            ValueError,
            r"vectors has shape \(4, 16\), expected \(3, 16\): length=3",
        ),
        (
            lambda: dp.PromptedModel(
                tiny.t5(), dp.PromptConfig(length=3).build(torch.zeros(3, 9)), dp.PromptConfig(length=3)
            ),
            ValueError,
            "prompt has width 9, but T5ForConditionalGeneration has width 16",
        ),
        (
            lambda: dp.prompted(make(tiny.t5())),
            TypeError,
            "got dplearn.model.PromptedT5.*, which has a prompt: its add_prompt",
        ),
        (
            lambda: dp.prompted(get_peft_model(tiny.t5(), LoraConfig(target_modules=["q"]))),
            TypeError,
            r"got peft.peft_model.PeftModel: give its get_base_model\(\)",
        ),
        (
            lambda: dp.prompted(tiny.t5(), dp.PromptConfig(length=1), vectors=[[0.0] * 16]),
            TypeError,
            r"vectors is a list, expected a tensor \(1, 16\)",
        ),
        (
            lambda: dp.prompted(tiny.t5(), dp.PromptConfig(length=1), vectors=torch.full((1, 16), math.nan)),
            ValueError,
            "vectors has 16 values that are not finite, expected none",
        ),
        (
            lambda: make(tiny.t5())(IDS, MASK, labels=LABELS, decisions=3),
            TypeError,
            "decisions is a int, expected a dictionary by name",
        ),
        (lambda: make(tiny.t5())(), ValueError, "expected one of input_ids and inputs_embeds, got none"),
        (lambda: make(tiny.t5())("a text"), TypeError, "input_ids is a str, expected a tensor: tokenizer"),
        (
            lambda: make(tiny.t5())(IDS, MASK.tolist(), labels=LABELS),
            TypeError,
            "attention_mask is a list, expected a tensor",
        ),
        (
            lambda: make(tiny.t5())(IDS + 1000, MASK, labels=LABELS),
            ValueError,
            rf"input_ids holds 1\d\d\d, expected 0..{tiny.t5().config.vocab_size - 1}: the tokenizer",
        ),
        (lambda: make(tiny.bert())(-IDS - 1, MASK), ValueError, "input_ids holds -"),
        (
            lambda: make(tiny.bart())(IDS, MASK),
            ValueError,
            "labels=None and decoder_input_ids=None, expected one of them: the decoder of BartFor",
        ),
        (lambda: make(tiny.t5())(IDS, MASK, inputs_embeds=torch.zeros(3, 8, 16)), ValueError, "got both"),
        (
            lambda: make(tiny.t5())(IDS, MASK[:, :-1], labels=LABELS),
            ValueError,
            r"attention_mask has shape \(3, 7\), expected \(3, 8\)",
        ),
        (
            lambda: make(tiny.t5())(IDS, 1 - MASK.roll(4, 1), labels=LABELS),
            ValueError,
            "runs of real tokens, expected one",
        ),
        (lambda: make(tiny.t5())(IDS, 2 * MASK, labels=LABELS), ValueError, "mask holds values"),
        (
            lambda: make(tiny.t5())(IDS[0]),
            ValueError,
            r"input_ids has shape \(8,\) and dtype torch.int64, expected integers",
        ),
        (lambda: make(tiny.t5())(IDS / 2), ValueError, "input_ids has shape .* and dtype torch.float32"),
        (
            lambda: make(tiny.t5())(inputs_embeds=torch.zeros(3, 8, 9)),
            ValueError,
            r"inputs_embeds has shape \(3, 8, 9\), expected \(batch, seq, 16\)",
        ),
        (
            lambda: make(tiny.t5())(inputs_embeds=torch.zeros(3, 8, 16, dtype=torch.long)),
            TypeError,
            "inputs has dtype torch.int64",
        ),
        (
            lambda: make(tiny.t5(), "instance")(IDS, MASK, labels=LABELS, summary=torch.zeros(3, 4)),
            ValueError,
            r"summary has shape \(3, 4\), expected \(3, 16\)",
        ),
        (
            lambda: make(tiny.bart())(*tiny.batch([62, 3, 8]), labels=LABELS),
            ValueError,
            "input plus prompt have 67 positions, but max_position_embeddings=64",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
