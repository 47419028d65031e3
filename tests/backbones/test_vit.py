"""Prompts in vision transformers.

The reference is visual prompt tuning written out by hand (tests/naive_vit.py). The package may put the prompt elsewhere
and must find every row again.
"""

import copy
import inspect
import json
import math
import warnings
from functools import partial

import pytest
import tiny
import torch
from naive_vit import (
    CASES,
    PATCH,
    Case,
    embedded,
    layers_of,
    on_first,
    rows_by_hand,
    stacked,
    through_layers,
    vpt_by_hand,
)
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Trainer,
    TrainingArguments,
    ViTForMaskedImageModeling,
    ViTModel,
)

import dplearn as dp
from dplearn.backbones.deep import replace_rows

LENGTH = 3
EXACT = dict(rtol=0, atol=1e-12)
LABELS = torch.tensor([1, 4, 0])
# What learned positions are for; where order cannot matter the package warns.
REAL = dict(entry="before-positions")
ORDER_BLIND = "order-blindness theorem, chapter 04"


CLASSIFIERS = ["vit", "deit", "dinov2"]


def hides_rows(name):
    """Whether this version of transformers can mask rows in a class."""
    return "attention_mask" in inspect.signature(CASES[name].make().base_model.forward).parameters


def make(case, length=LENGTH, **options):
    """A prompted model in float64 whose vectors have the scale of the embedded patches."""
    config = dp.PromptConfig(length=length, **tiny.SAMPLED | options)
    model = dp.prompted(case.make(), config, vectors=torch.randn(*config.shape, tiny.WIDTH)).double()
    with torch.no_grad():  # decisions that differ between images
        for name, parameter in model.prompt.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(5)
    return model


# --- the reference ---


def by_reading_order(case, backbone, pixels, prompt, k, table):
    """Special tokens, then the prompt around the patches, each with the next row of a table of positions (1, S, d)."""
    rows, special = rows_by_hand(backbone, pixels), case.special
    before, after = (part.expand(len(rows), -1, -1) for part in (prompt[:k], prompt[k:]))
    states = torch.cat([rows[:, :special], before, rows[:, special:], after], 1)
    states = states + table[:, : states.shape[1]]
    for layer in layers_of(backbone):
        states = layer(states)
    states = backbone.base_model.layernorm(states)
    own = [*range(special), *range(special + k, special + k + rows.shape[1] - special)]
    return case.head(backbone, states[:, own])


def taller_table(case, backbone, rows, columns):
    """The model's own positions for an image of so many rows and columns of patches."""
    width, embeddings = tiny.WIDTH, backbone.base_model.embeddings
    image = torch.zeros(1, case.special + rows * columns, width, dtype=torch.float64)
    return embeddings.interpolate_pos_encoding(image, rows * PATCH, columns * PATCH)


def assert_fields(output, expected, atol=1e-12):
    for name, wanted in expected.items():
        assert_close(
            output[name], wanted, rtol=0, atol=atol
        )  # a row of the prompt too many has another shape


# --- 1: VPT, shallow and deep, wherever the prompt stands ---


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_every_split_equals_vpt_by_hand(name, depth):
    case, pixels = CASES[name], tiny.images()
    for k in range(LENGTH + 1):
        model = make(case, position=k, depth=depth)
        expected = vpt_by_hand(case, model.backbone, pixels, stacked(model))
        output = model(pixel_values=pixels)
        assert_fields(output, expected)
        assert type(output) is type(model.backbone(pixel_values=pixels))


@pytest.mark.parametrize("name", CASES)
def test_the_reference_without_a_prompt_is_the_backbone(name):
    case, pixels = CASES[name], tiny.images()
    backbone = case.make()
    none = torch.zeros(1, 0, tiny.WIDTH, dtype=torch.float64)
    assert_fields(backbone(pixel_values=pixels), vpt_by_hand(case, backbone, pixels, none))


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_loss_and_gradients_equal_those_by_hand(name, depth):
    case, pixels = CASES[name], tiny.images()
    model = make(case, position=1, depth=depth)
    model(pixel_values=pixels, labels=LABELS).loss.backward()
    vectors = stacked(model).detach().clone().requires_grad_()
    logits = vpt_by_hand(case, model.backbone, pixels, vectors)["logits"]
    cross_entropy(logits, LABELS).backward()
    found = model.prompt.vectors.grad if depth > 1 else model.prompt.vectors.grad[None]
    assert_close(found, vectors.grad, **EXACT)
    assert (found.abs().amax((1, 2)) > 1e-3).all()  # every layer's prompt has a part in it
    assert_close(model(pixel_values=pixels, labels=LABELS).loss, cross_entropy(logits, LABELS), **EXACT)


def test_the_pooler_reads_the_class_token_and_not_a_prompt_vector():
    """A prompt concatenated in front of everything puts a prompt vector where the pooler looks."""
    case, pixels = CASES["vit-base"], tiny.images()
    model = make(case, position="prefix")
    backbone, vectors = model.backbone, model.prompt.vectors

    def in_front(module, arguments, output):
        return torch.cat([vectors.expand(len(output), -1, -1), output], 1)

    handle = backbone.embeddings.register_forward_hook(in_front)
    trap = backbone(pixel_values=pixels)
    handle.remove()
    output = model(pixel_values=pixels)
    assert_close(output.last_hidden_state, trap.last_hidden_state[:, LENGTH:], **EXACT)
    assert_close(output.pooler_output, backbone.pooler(output.last_hidden_state), **EXACT)
    assert (output.pooler_output - trap.pooler_output).abs().max() > 0.1


def test_the_rows_of_the_prompt_are_where_insert_prompt_says():
    model, pixels = make(CASES["deit"], position=2, depth=2), tiny.images()
    placed = model.insert_prompt(pixel_values=pixels)
    rows = embedded(model.backbone, pixels)
    assert_close(placed.embeds.gather(1, placed.input_positions[..., None].expand_as(rows)), rows, **EXACT)
    assert placed.input_positions.tolist() == [[0, 1, 4, 5, 6, 7]] * 3
    assert placed.prompt_positions.tolist() == [[2, 3, 8]] * 3
    assert_close(placed.embeds[:, [2, 3, 8]], model.prompt.vectors[0].expand(3, -1, -1), **EXACT)
    assert placed.mask.tolist() == [[1] * 9] * 3
    assert torch.equal(placed.deeper, model.prompt.vectors[1:])


def test_replaced_rows_and_their_gradient():
    states = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    vectors = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([[0, 3, -1], [4, 1, 2]])
    found, expected = replace_rows(states, vectors, rows), []
    for b in range(2):
        chosen = {int(row): i for i, row in enumerate(rows[b])}
        expected += [torch.stack([vectors[chosen[s]] if s in chosen else states[b, s] for s in range(5)])]
    weights = torch.randn(2, 5, 4, dtype=torch.float64)
    assert torch.equal(found, torch.stack(expected))
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), (states, vectors)),
        torch.autograd.grad((torch.stack(expected) * weights).sum(), (states, vectors)),
    ):
        assert_close(one, other, **EXACT)


def from_layer_by_hand(case, backbone, pixels, prompts, first):
    """The prompts (depth, l, d) stand in the states from layer ``first`` on, counted from 1."""
    states, layers = embedded(backbone, pixels), layers_of(backbone)
    for layer in layers[: first - 1]:
        states = layer(states)
    for number, layer in enumerate(layers[first - 1 :]):
        if number < len(prompts):
            fresh = prompts[number].expand(len(states), -1, -1)
            rest = states[:, case.special + (number and prompts.shape[1]) :]
            states = torch.cat([states[:, : case.special], fresh, rest], 1)
        states = layer(states)
    rows = backbone.base_model.layernorm(states)
    return case.head(
        backbone, torch.cat([rows[:, : case.special], rows[:, case.special + prompts.shape[1] :]], 1)
    )


@pytest.mark.parametrize(("first", "depth"), [(2, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("name", CASES)
def test_a_prompt_from_a_later_layer_on_equals_one_by_hand(name, first, depth):
    case, pixels = CASES[name], tiny.images()
    model = make(case, depth=depth, from_layer=first)
    expected = from_layer_by_hand(case, model.backbone, pixels, stacked(model), first)
    assert_fields(model(pixel_values=pixels), expected)
    wanted = torch.autograd.grad(expected[next(iter(expected))].square().sum(), model.prompt.vectors)
    output = model.train()(pixel_values=pixels)
    found = torch.autograd.grad(output[next(iter(expected))].square().sum(), model.prompt.vectors)
    assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"depth": 2}, {"vector": "instance", "pool_size": 2}])
@pytest.mark.parametrize("name", ["vit", "deit", "dinov2", "vit-base"])
def test_kept_images_spare_the_layers_in_front_and_change_nothing(name, options, tmp_path):
    case, pixels = CASES[name], tiny.images(4)
    runs, folder = [], tmp_path / "kept"
    model = make(case, from_layer=2, **options)
    inside = next(layers_of(model.backbone)[0].children())
    inside.register_forward_pre_hook(lambda module, values: runs.append(len(values[0])))

    def gradients(shortcuts):
        model.shortcuts = shortcuts
        model.train().prompt.zero_grad()
        output = model(pixel_values=pixels)
        output[0].square().sum().backward()
        return output[0], [p.grad.clone() for p in model.prompt.parameters() if p.grad is not None]

    kept = model.cache_inputs({"pixel_values": pixels[:3]}, folder=folder, verbose=False)
    assert len(kept) == 3
    model.cache_inputs({"pixel_values": pixels[2:]}, folder=folder, verbose=False)
    assert len(model.adapter.kept) == 4
    runs.clear()
    found = gradients(("inputs",))
    assert runs == []
    full = gradients(())
    assert runs == [4]
    assert_close(found, full, rtol=1e-9, atol=1e-12)


def test_images_with_more_than_pixels_are_not_kept():
    case, pixels = CASES["vit"], tiny.images()
    model, runs = make(case, from_layer=2), []
    next(layers_of(model.backbone)[0].children()).register_forward_pre_hook(lambda *values: runs.append(1))
    kept = model.cache_inputs({"pixel_values": pixels}, verbose=False)
    more = {"pixel_values": pixels, "interpolate_pos_encoding": True}
    runs.clear()
    assert_close(model(**more).logits, model(pixel_values=pixels).logits) and runs == [1]
    model.cache_inputs(more, verbose=False)
    assert len(kept) == len(pixels) and model.adapter.kept is kept


def test_what_is_kept_of_an_image_is_never_stale():
    case, pixels = CASES["vit"], tiny.images()
    model = make(case, from_layer=2)
    model.cache_inputs({"pixel_values": pixels}, verbose=False)
    model.add_prompt("later", dp.PromptConfig(length=2, from_layer=3))
    model.add_prompt("first", dp.PromptConfig(length=2))
    model.double()

    def check(images=pixels):
        found = []
        for shortcuts in (("inputs",), ()):
            model.shortcuts = shortcuts
            found.append(model(pixel_values=images).logits)
        assert_close(*found, rtol=0, atol=1e-12)

    for name in model.prompts:
        model.use_prompt(name)
        check()
    model.use_prompt("default")
    check(pixels + 0.1)
    check(pixels.flip(0))
    with torch.no_grad():
        next(layers_of(model.backbone)[0].parameters()).mul_(1.5)
    check()


def test_a_wrong_key_of_an_image_would_be_seen(monkeypatch):
    model = make(CASES["vit"], from_layer=2)
    monkeypatch.setattr("dplearn.backbones.vit.digest_of", lambda pixels: "one")
    with pytest.raises(ValueError, match="answers otherwise on what is kept"):
        model.cache_inputs({"pixel_values": tiny.images()}, verbose=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "cache_inputs: from_layer=1, expected a later layer"),
        ({"from_layer": 2, "backbone_dropout": True}, "cache_inputs: backbone_dropout=True, expected False"),
    ],
)
def test_images_that_cannot_be_kept_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(CASES["vit"], **options).cache_inputs({"pixel_values": tiny.images()})


def test_layers_that_are_not_there_and_positions_in_front_of_the_first_are_refused():
    with pytest.raises(
        ValueError, match=r"from_layer=3 with depth=2 is too deep, expected the last layer, 4, .*1\.\.3"
    ):
        make(CASES["vit"], from_layer=3, depth=2)
    with pytest.raises(
        ValueError, match="from_layer=2 is not valid with entry='before-positions', expected 1"
    ):
        dp.PromptConfig(from_layer=2, entry="before-positions")
    with pytest.raises(ValueError, match="from_layer=2 is for images, expected 1"):
        dp.prompted(tiny.t5(), dp.PromptConfig(from_layer=2))
    encoder = make(CASES["vit"], from_layer=2, vector="instance", pool_size=2, summary="encoder")
    pixels = tiny.images()
    states = embedded(encoder.backbone, pixels)
    for layer in layers_of(encoder.backbone):
        states = layer(states)
    wanted = encoder.backbone.base_model.layernorm(states)[:, 1:].mean(1)
    assert_close(encoder.summarize(pixel_values=pixels), wanted, rtol=0, atol=1e-12)


# --- 2: where order cannot matter, and where it can ---


@pytest.mark.parametrize(
    "options", [{"entry": "after-positions"}, {"depth": 3}, {"vector": "task", "pool_size": 2}]
)
@pytest.mark.parametrize("name", CASES)
def test_behind_the_position_embeddings_all_splits_give_the_same_output(name, options):
    case, pixels, found = CASES[name], tiny.images(), []
    first = None
    for k in range(LENGTH + 1):
        model = make(case, position=k, **options)
        first = first or model
        model.prompt.load_state_dict(first.prompt.state_dict())
        found.append(model(pixel_values=pixels)[0])
    assert all((one - found[0]).abs().max() < 1e-12 for one in found)


@pytest.mark.parametrize("name", CASES)
def test_in_front_of_them_the_prompt_and_the_patches_follow_the_taller_grid(name):
    case, pixels, found = CASES[name], tiny.images(), []
    vectors = torch.randn(LENGTH, tiny.WIDTH, dtype=torch.float64)
    for k in range(LENGTH + 1):
        model = make(case, position=k, **REAL)
        model.prompt.load_state_dict({"vectors": vectors})
        table = taller_table(case, model.backbone, 4, 2)  # four patches and three vectors in rows of two
        expected = by_reading_order(case, model.backbone, pixels, model.prompt.vectors, k, table)
        # DINOv2 interpolates its own table in float32.
        assert_fields(model(pixel_values=pixels), expected, atol=1e-5 if "dinov2" in name else 1e-12)
        found.append(model(pixel_values=pixels)[0])
    assert all((one - other).abs().max() > 0.01 for one, other in zip(found, found[1:]))


def test_the_place_in_front_of_the_positions_is_not_undone_by_other_vectors():
    """Other vectors can undo what the split does to the prompt's own positions, not what it does to the patches'."""
    case, pixels = CASES["vit"], tiny.images(1)
    one, other = make(case, position=0, **REAL), make(case, position=3, **REAL)
    table = taller_table(case, one.backbone, 4, 2)[0, 1:]
    with torch.no_grad():  # the same rows enter at both splits
        other.prompt.vectors.copy_(one.prompt.vectors + table[4:7] - table[0:3])
    rows = [m.insert_prompt(pixel_values=pixels).embeds[0] for m in (one, other)]
    assert_close(rows[0][5:8], rows[1][1:4], **EXACT)
    assert (rows[0][1:5] - rows[1][4:8]).abs().max() > 0.1
    assert (one(pixel_values=pixels).logits - other(pixel_values=pixels).logits).abs().max() > 0.01


@pytest.mark.parametrize("k", [0, 2, 4])
def test_images_of_another_shape_pass_their_interpolation_through(k):
    """Two rows of three patches on a square table, as the model itself interpolates it."""
    case, pixels = CASES["vit"], tiny.images(2, side=12)[:, :, :8]
    model = make(case, 4, position=k)
    with pytest.raises(ValueError, match="doesn't match model"):
        model(pixel_values=pixels)
    table = taller_table(case, model.backbone, 2, 3)
    states = rows_by_hand(model.backbone, pixels) + table
    first = model.prompt.vectors.expand(2, -1, -1)
    expected = through_layers(
        case, model.backbone, torch.cat([states[:, :1], first, states[:, 1:]], 1), first[:1], 4
    )
    assert_fields(model(pixel_values=pixels, interpolate_pos_encoding=True), expected)
    placed = model.insert_prompt(pixel_values=pixels, interpolate_pos_encoding=True)
    assert placed.embeds.shape == (2, 1 + 4 + 6, tiny.WIDTH)
    real = make(case, 4, position=k, **REAL)
    table = taller_table(case, real.backbone, 4, 3)  # six patches and four vectors in rows of three
    expected = by_reading_order(case, real.backbone, pixels, real.prompt.vectors, k, table)
    assert_fields(real(pixel_values=pixels, interpolate_pos_encoding=True), expected)


def test_dinov2_takes_images_of_other_sizes_as_it_does_by_itself():
    case, pixels = CASES["dinov2"], tiny.images(2, side=12)
    model = make(case)
    table = taller_table(case, model.backbone, 3, 3)
    states = rows_by_hand(model.backbone, pixels) + table
    first = model.prompt.vectors.expand(2, -1, -1)
    expected = through_layers(
        case, model.backbone, torch.cat([states[:, :1], first, states[:, 1:]], 1), first[:1], LENGTH
    )
    for options in ({}, {"interpolate_pos_encoding": True}):
        assert_fields(model(pixel_values=pixels, **options), expected)


@pytest.mark.parametrize("level", ["task", "instance"])
def test_a_learned_position_where_order_cannot_matter_gets_a_warning(level):
    with pytest.warns(UserWarning, match=f"position='{level}' has nothing to learn.*{ORDER_BLIND}") as found:
        dp.prompted(tiny.vit(), dp.PromptConfig(length=LENGTH, position=level))
    assert found[0].filename == __file__  # the caller's line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = dp.prompted(tiny.vit(), dp.PromptConfig(length=LENGTH, position=2))
        model.add_prompt("real", dp.PromptConfig(length=LENGTH, position=level, **REAL))
    with pytest.warns(UserWarning, match=ORDER_BLIND):
        model.add_prompt("void", dp.PromptConfig(length=LENGTH, position=level))


# --- 3: the four estimators of a split ---


def void(case, **options):
    """A learned position where order cannot matter."""
    with pytest.warns(UserWarning, match=ORDER_BLIND):
        return make(case, **options).train()


def split_gradient(model, pixels):
    model.zero_grad()
    torch.manual_seed(3)
    model(pixel_values=pixels, labels=LABELS).loss.backward()
    return model.prompt.position.controller.logits.grad


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_where_order_cannot_matter_only_straight_through_moves_the_split(name):
    case, pixels = CASES[name], tiny.images()
    assert split_gradient(void(case, position="task"), pixels).abs().max() > 1e-3  # spurious
    for estimator in ("score-function", "exact"):
        model = void(case, position="task", estimator=estimator)
        assert split_gradient(model, pixels).abs().max() < 1e-13
    model = void(case, position="task", estimator="position-space")
    assert split_gradient(model, pixels).tolist() == [[0.0] * (LENGTH + 1)]
    assert model.prompt.vectors.grad.abs().max() > 1e-3


def losses_of_splits(case, model, pixels, labels):
    table, vectors = taller_table(case, model.backbone, 4, 2), model.prompt.vectors
    found = []
    for k in range(LENGTH + 1):
        logits = by_reading_order(case, model.backbone, pixels, vectors, k, table)["logits"]
        found.append(cross_entropy(logits, labels, reduction="none"))
    return torch.stack(found, 1)  # (B, l + 1)


@pytest.mark.parametrize("name", ["vit", "deit"])
def test_the_exact_estimator_is_the_gradient_of_the_expected_loss(name):
    case, pixels = CASES[name], tiny.images()
    model = make(case, position="task", estimator="exact", **REAL).train()
    found = split_gradient(model, pixels)
    logits = model.prompt.position.controller.logits.detach().clone().requires_grad_()
    losses = losses_of_splits(case, model, pixels, LABELS)
    (logits.softmax(1) * losses.detach()).sum(1).mean().backward()
    assert_close(found, logits.grad, **EXACT)
    assert found.abs().max() > 1e-3


def test_the_score_function_is_its_formula_on_the_splits_that_it_drew():
    case, pixels = CASES["vit"], tiny.images()
    model = make(case, position="task", estimator="score-function", samples=3, **REAL).train()
    found = split_gradient(model, pixels)
    torch.manual_seed(3)
    draws = model(pixel_values=pixels, labels=LABELS).draws
    losses = losses_of_splits(case, model, pixels, LABELS).detach()
    logits = model.prompt.position.controller.logits.detach().clone().requires_grad_()
    total = 0.0
    for b in range(3):
        drawn = [int(draws.index["position"][s, b]) for s in range(3)]
        for s in range(3):
            rest = sum(losses[b, drawn[r]] for r in range(3) if r != s) / 2
            total = total + (losses[b, drawn[s]] - rest) * logits.log_softmax(1)[0, drawn[s]] / 9
    total.backward()
    assert_close(found, logits.grad, **EXACT)
    assert found.abs().max() > 1e-3


def states_at(case, model, pixels, k):
    """The rows that enter the layers at a split, in physical order, and the order of tokens in them."""
    rows, vectors, special = rows_by_hand(model.backbone, pixels), model.prompt.vectors, case.special
    before, after = (part.expand(len(rows), -1, -1) for part in (vectors[:k], vectors[k:]))
    return torch.cat([rows[:, :special], before, rows[:, special:], after], 1)


def answer(case, model, states, k):
    for layer in layers_of(model.backbone):
        states = layer(states)
    states = model.backbone.base_model.layernorm(states)
    special = case.special
    return case.head(model.backbone, states[:, [*range(special), *range(special + k, special + k + 4)]])


@pytest.mark.parametrize("estimator", ["straight-through", "position-space"])
@pytest.mark.parametrize("name", ["vit", "deit"])
def test_mixtures_of_splits_have_the_gradient_of_the_dense_mixture(name, estimator):
    """One image at a time. Straight-through mixes whole sequences; position-space mixes each token's positions."""
    case, pixels = CASES[name], tiny.images(1)
    model = make(case, position="task", estimator=estimator, **REAL).train()
    torch.manual_seed(3)
    choice = model.prompt.position(torch.zeros(1, 1))
    k, weights = int(choice.index), choice.weights.detach().clone().requires_grad_()
    table, special = taller_table(case, model.backbone, 4, 2), case.special
    if estimator == "straight-through":
        every = [states_at(case, model, pixels, j) for j in range(LENGTH + 1)]
        states = sum(weights[0, j] * every[j] for j in range(LENGTH + 1)) + table[:, : every[0].shape[1]]
    else:
        names = [("S", i) for i in range(special)], [("P", i) for i in range(LENGTH)], range(4)
        orders = [
            names[0] + names[1][:j] + [("X", t) for t in names[2]] + names[1][j:] for j in range(LENGTH + 1)
        ]
        mixed = [
            sum(weights[0, j] * table[0, orders[j].index(token)] for j in range(LENGTH + 1))
            for token in orders[k]
        ]
        states = states_at(case, model, pixels, k) + torch.stack(mixed)
    cross_entropy(answer(case, model, states, k)["logits"], LABELS[:1]).backward()
    model.zero_grad()
    torch.manual_seed(3)
    loss = model(pixel_values=pixels, labels=LABELS[:1]).loss
    again = model.prompt.position
    loss.backward()
    # Through the same relaxation of the same noise: the gradient of the logits is the weights' times its Jacobian.
    torch.manual_seed(3)
    logits = again.controller.logits.grad.clone()
    again.controller.logits.grad = None
    again(torch.zeros(1, 1)).weights.backward(weights.grad)
    assert_close(logits, again.controller.logits.grad, **EXACT)
    assert logits.abs().max() > 1e-4


@pytest.mark.parametrize("estimator", ["score-function", "exact", "position-space"])
def test_deep_prompts_and_a_learned_position_compose(estimator):
    case, pixels = CASES["vit"], tiny.images()
    model = make(case, position="task", depth=3, estimator=estimator, **REAL)
    split = int(model.prompt.position.controller.logits.argmax())
    table = taller_table(case, model.backbone, 4, 2)
    vectors, rows = stacked(model), rows_by_hand(model.backbone, pixels)
    order = [1 + i if i < split else 5 + i for i in range(LENGTH)]  # rows of the table that the vectors get
    patches = rows[:, 1:] + table[:, 1 + split : 5 + split]
    first = (vectors[0] + table[0, order]).expand(3, -1, -1)
    states = torch.cat([rows[:, :1] + table[:, :1], first, patches], 1)
    expected = through_layers(case, model.backbone, states, vectors, LENGTH)
    assert_fields(model(pixel_values=pixels), expected)
    assert split_gradient(model.train(), pixels).abs().max() > 1e-4
    assert (model.prompt.vectors.grad.abs().amax((1, 2)) > 1e-3).all()


# --- 3b: positions for the prompt alone ---

CODED = dict(entry="position-coded")


def coded_states(case, model, pixels, k, table, vectors=None):
    """The rows that enter the layers: patches where they always are, vectors with the position of their row."""
    vectors, special = model.prompt.vectors if vectors is None else vectors, case.special
    rows = rows_by_hand(model.backbone, pixels) + model.backbone.base_model.embeddings.position_embeddings
    patches, length = rows.shape[1] - special, len(vectors)
    places = [special + i if i < k else special + patches + i for i in range(length)]
    held = (vectors + table[0, places]).expand(len(rows), -1, -1)
    return torch.cat([rows[:, :special], held[:, :k], rows[:, special:], held[:, k:]], 1)


@pytest.mark.parametrize("k", range(LENGTH + 1))
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_coded_vectors_get_the_positions_of_their_rows(name, k):
    case, pixels = CASES[name], tiny.images()
    model = make(case, position=k, **CODED)
    table = taller_table(case, model.backbone, 4, 2)
    expected = answer(case, model, coded_states(case, model, pixels, k, table), k)
    # DINOv2 interpolates its own table in float32.
    atol = 1e-5 if name == "dinov2" else 1e-12
    assert_fields(model(pixel_values=pixels), expected, atol=atol)
    # No more than VPT with other vectors.
    plain = make(case, position=0)
    places = [case.special + i if i < k else case.special + 4 + i for i in range(LENGTH)]
    with torch.no_grad():
        plain.prompt.vectors.copy_(model.prompt.vectors + table[0, places])
    assert_fields(model(pixel_values=pixels), {"logits": plain(pixel_values=pixels).logits}, atol=atol)


def test_the_place_of_a_coded_prompt_is_real():
    case, pixels = CASES["vit"], tiny.images()
    model, others = make(case, position=0, **CODED), []
    for k in range(LENGTH + 1):
        other = make(case, position=k, **CODED)
        other.prompt.load_state_dict(model.prompt.state_dict())
        others.append(other(pixel_values=pixels).logits)
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(others) for b in others[:i])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(case, position="instance", **CODED)


@pytest.mark.parametrize("size", ["full", 2])
@pytest.mark.parametrize("estimator", ["straight-through", "position-space"])
@pytest.mark.parametrize("name", ["vit", "deit"])
def test_mixtures_of_coded_prompts_have_the_gradient_of_the_dense_mixture(name, estimator, size):
    """Straight-through mixes whole sequences with their codes; position-space mixes the codes of each vector."""
    case, pixels = CASES[name], tiny.images(1)
    model = make(case, position="task", estimator=estimator, size=size, **CODED).train()
    vectors = model.prompt.vectors[: LENGTH if size == "full" else size]
    length, special = len(vectors), case.special
    table = taller_table(case, model.backbone, 2 + (length + 1) // 2, 2)  # rows of two
    torch.manual_seed(3)
    weights = model.prompt.position(torch.zeros(1, 1)).weights.detach().clone().requires_grad_()
    split = min(int(weights.argmax()), length)
    every = [coded_states(case, model, pixels, min(j, length), table, vectors) for j in range(LENGTH + 1)]
    if estimator == "straight-through":
        states = sum(weights[0, j] * every[j] for j in range(LENGTH + 1))
    else:

        def code(i, j):
            return table[0, special + i if i < j else special + 4 + i]

        mixed = [
            sum(weights[0, j] * code(i, min(j, length)) for j in range(LENGTH + 1)) for i in range(length)
        ]
        rows = [special + i if i < split else special + 4 + i for i in range(length)]
        states = every[split].detach().clone()
        for row, i in zip(rows, range(length)):
            states = states + torch.nn.functional.one_hot(torch.tensor(row), states.shape[1])[:, None] * (
                mixed[i] - mixed[i].detach()
            )
    for layer in layers_of(model.backbone):
        states = layer(states)
    states = model.backbone.base_model.layernorm(states)
    own = [*range(special), *range(special + split, special + split + 4)]
    cross_entropy(case.head(model.backbone, states[:, own])["logits"], LABELS[:1]).backward()
    model.zero_grad()
    torch.manual_seed(3)
    model(pixel_values=pixels, labels=LABELS[:1]).loss.backward()
    torch.manual_seed(3)
    position = model.prompt.position
    found = position.controller.logits.grad.clone()
    position.controller.logits.grad = None
    position(torch.zeros(1, 1)).weights.backward(weights.grad)
    assert_close(found, position.controller.logits.grad, **EXACT)
    assert found.abs().max() > 1e-4


@pytest.mark.parametrize("estimator", ["exact", "score-function"])
def test_coded_prompts_take_the_estimators_that_try_splits(estimator):
    case, pixels = CASES["vit"], tiny.images()
    model = make(case, position="task", estimator=estimator, **CODED).train()
    torch.manual_seed(3)
    output = model(pixel_values=pixels, labels=LABELS)
    output.loss.backward()
    table, logits = taller_table(case, model.backbone, 4, 2), output.logits.view(-1, 3, 5)
    for number, splits in enumerate(output.draws.index["position"]):
        for image, k in enumerate(splits.tolist()):
            states = coded_states(case, model, pixels[image : image + 1], k, table)
            wanted = answer(case, model, states, k)["logits"][0]
            assert_close(logits[number, image], wanted, **EXACT)
    found = model.prompt.position.controller.logits.grad
    assert found.abs().max() > 1e-4
    if estimator == "exact":
        scores = model.prompt.position.controller.logits.detach().clone().requires_grad_()
        expected = 0.0
        for k in range(LENGTH + 1):
            states = coded_states(case, model, pixels, k, table)
            expected = expected + scores.softmax(1)[0, k] * cross_entropy(
                answer(case, model, states, k)["logits"], LABELS
            )
        expected.backward()
        assert_close(found, scores.grad, **EXACT)


def test_coded_prompts_compile_and_do_not_see_their_batch():
    case, pixels = CASES["vit"], tiny.images(4)
    model = make(case, position="instance", vector="instance", pool_size=2, **CODED)
    together = model(pixel_values=pixels).logits
    alone = torch.cat([model(pixel_values=image[None]).logits for image in pixels])
    assert_close(together, alone, **EXACT)
    model.train()
    labels = torch.arange(4)
    torch.manual_seed(3)
    model(pixel_values=pixels, labels=labels).loss.backward()
    usual = {name: p.grad.clone() for name, p in model.trainable_parameters().items()}
    model.zero_grad()
    torch.manual_seed(3)
    torch.compile(model, backend="aot_eager", fullgraph=True)(
        pixel_values=pixels, labels=labels
    ).loss.backward()
    for name, parameter in model.trainable_parameters().items():
        assert_close(parameter.grad, usual[name], **EXACT)
        assert usual[name].abs().max() > 1e-6


# --- 4: pools, sizes, summaries ---


@pytest.mark.parametrize("depth", [1, 3])
def test_a_pool_mixes_all_layers_with_the_same_weights(depth):
    case, pixels = CASES["vit"], tiny.images()
    model = make(case, vector="instance", pool_size=2, depth=depth)
    linear, found = model.prompt.vector.controller.linear, []
    for image in pixels:
        summary = embedded(model.backbone, image[None])[0, 1:].mean(0)
        normal = (summary - summary.mean()) / (summary.var(correction=0) + 1e-5).sqrt()
        share = (linear.weight @ normal + linear.bias).softmax(0)
        prompts = share[0] * model.prompt.vectors[0] + share[1] * model.prompt.vectors[1]
        prompts = prompts if depth > 1 else prompts[None]
        found.append(vpt_by_hand(case, model.backbone, image[None], prompts)["logits"])
    assert_close(model(pixel_values=pixels).logits, torch.cat(found), **EXACT)
    assert (model.decide(pixel_values=pixels)["vector"].weights.std(0) > 0.01).all()


@pytest.mark.parametrize("options", [{}, {"depth": 3}, REAL, {"depth": 2, "position": 1} | REAL])
def test_a_fixed_size_equals_a_prompt_of_so_many_vectors(options):
    case, pixels = CASES["vit"], tiny.images()
    model, smaller = make(case, 5, size=2, **options), make(case, 2, **options)
    with torch.no_grad():
        smaller.prompt.vectors.copy_(model.prompt.vectors[..., :2, :])
    assert_close(model(pixel_values=pixels).logits, smaller(pixel_values=pixels).logits, **EXACT)
    model(pixel_values=pixels, labels=LABELS).loss.backward()
    assert (model.prompt.vectors.grad[..., 2:, :] == 0).all()
    assert (model.prompt.vectors.grad[..., :2, :].abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("depth", [1, 3])
def test_a_learned_size_equals_a_prompt_of_so_many_vectors(name, depth):
    case, pixels = CASES[name], tiny.images(6)
    if not hides_rows(name):
        pytest.skip("this version of transformers has no mask for this class")
    model = make(case, size="instance", depth=depth, estimator="score-function", position=1)
    sizes = model.decide(pixel_values=pixels)["size"].index
    assert len(set(sizes.tolist())) > 1
    expected = [
        vpt_by_hand(case, model.backbone, image[None], stacked(model)[:, :n])["logits"]
        for image, n in zip(pixels, sizes)
    ]
    assert_close(model(pixel_values=pixels).logits, torch.cat(expected), **EXACT)
    model.train()  # every copy has a size of its own; unused vectors stay in the batch and are masked
    labels = torch.arange(6) % 5
    output = model(pixel_values=pixels, labels=labels)
    drawn = output.draws.index["size"].flatten()
    assert len(set(drawn.tolist())) > 1
    several = pixels.repeat(4, 1, 1, 1)
    expected = [
        vpt_by_hand(case, model.backbone, image[None], stacked(model)[:, :n])["logits"]
        for image, n in zip(several, drawn)
    ]
    assert_close(output.logits, torch.cat(expected), **EXACT)
    if depth == 1:
        model = make(case, size="task").train()
        model(pixel_values=pixels, labels=labels).loss.backward()
        assert model.prompt.size.controller.logits.grad.abs().max() > 1e-4


@pytest.mark.parametrize("entry", [None, "before-positions"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_summaries_are_means_over_the_patches_without_the_prompt(name, entry):
    case, pixels = CASES[name], tiny.images()
    for summary in ("embeddings", "encoder"):
        model = make(case, vector="instance", pool_size=2, summary=summary, entry=entry)
        states = embedded(model.backbone, pixels)
        if summary == "encoder":
            for layer in layers_of(model.backbone):
                states = layer(states)
            states = model.backbone.base_model.layernorm(states)
        found = model.summarize(pixel_values=pixels)
        assert_close(found, states[:, case.special :].mean(1), **EXACT)
        usual = model(pixel_values=pixels).logits
        assert torch.equal(usual, model(pixel_values=pixels, summary=found).logits)
        assert not torch.equal(usual, model(pixel_values=pixels, summary=found.flip(0)).logits)


# --- 5: training, saving, batches ---


@pytest.mark.parametrize("options", [{}, {"depth": 3}, {"position": "task"} | REAL])
def test_an_image_does_not_see_its_batch(options):
    case, pixels = CASES["vit"], tiny.images(4)
    model = make(case, vector="instance", pool_size=2, **options)
    together = model(pixel_values=pixels).logits
    alone = torch.cat([model(pixel_values=image[None]).logits for image in pixels])
    assert_close(together, alone, **EXACT)


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        return {"pixel_values": tiny.images(8, dtype=torch.float32)[i], "labels": i % 5, "file": "left out"}


@pytest.mark.parametrize(
    "options", [{}, {"depth": 3}, {"position": "instance", "vector": "task", "pool_size": 2} | REAL]
)
def test_the_trainer_changes_the_prompt_and_not_one_bit_of_the_backbone(options, tmp_path):
    torch.manual_seed(5)
    backbone = tiny.vit(dtype=torch.float32)
    before = copy.deepcopy(backbone.state_dict())
    model = dp.prompted(backbone, dp.PromptConfig(length=LENGTH, **tiny.SAMPLED | options))
    start = {name: value.detach().clone() for name, value in model.trainable_parameters().items()}
    arguments = TrainingArguments(
        tmp_path / "run",
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=0.1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        include_for_metrics=["inputs"],
    )

    def seen(prediction):
        return {"images": len(prediction.inputs), "sum": float(prediction.inputs.sum())}

    trainer = Trainer(model, arguments, train_dataset=Images(), eval_dataset=Images(), compute_metrics=seen)
    assert math.isfinite(trainer.train().training_loss)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all((value != start[name]).any() for name, value in model.trainable_parameters().items())
    assert (model.prompt.vectors != start["prompt.vectors"]).any(-1).all()  # each vector of each layer
    metrics = trainer.evaluate()
    assert metrics["eval_images"] == 8
    assert math.isclose(metrics["eval_sum"], float(tiny.images(8, dtype=torch.float32).sum()), abs_tol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"depth": 2, "vector": "instance", "pool_size": 2},
        {"position": "instance", "estimator": "position-space", "depth": 3} | REAL,
    ],
)
def test_a_saved_prompt_comes_back_with_the_same_answers(options, tmp_path):
    case, pixels = CASES["deit"], tiny.images()
    model = make(case, **options)
    model.save_pretrained(tmp_path)
    loaded = dp.from_pretrained(tmp_path, case.make()).eval()
    assert loaded.prompt_config == model.prompt_config
    assert torch.equal(loaded(pixel_values=pixels).logits, model(pixel_values=pixels).logits)
    described = json.loads((tmp_path / "prompt_config.json").read_text())["backbone"]
    assert described["patch"] == [3, PATCH, PATCH] and described["width"] == tiny.WIDTH


def test_a_prompt_of_another_backbone_is_refused(tmp_path):
    make(CASES["vit"], depth=3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"patch=\[3, 4, 4\], this one has patch=\[3, 2, 2\]"):
        dp.from_pretrained(tmp_path, tiny.vit(patch_size=2))
    with pytest.raises(ValueError, match="model_type='vit', this one has model_type='deit'"):
        dp.from_pretrained(tmp_path, tiny.deit())
    with pytest.raises(ValueError, match=r"depth=3 is too deep, expected 1\.\.2"):
        with pytest.warns(UserWarning, match="other weights"):
            dp.from_pretrained(tmp_path, tiny.vit(num_hidden_layers=2))


def test_the_card_and_the_summary_tell_the_depth_and_the_place(tmp_path):
    model = make(CASES["vit"], position=0, depth=2, **REAL)
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "fresh vectors in each of the first 2 layers" in text
    assert "after the input (postfix), before the position embeddings" in text
    assert "2 x 3 x 16" in model.summary() and "before the position embeddings" in model.summary()
    make(CASES["vit"]).save_pretrained(tmp_path)
    assert "layers" not in (tmp_path / "README.md").read_text()


def test_prompts_of_different_kinds_share_a_backbone():
    case, pixels = CASES["vit"], tiny.images()
    kinds = {"deep": {"depth": 3}, "real": {"position": 1} | REAL, "default": {}}
    singles = {name: make(case, **options) for name, options in kinds.items()}
    model = singles["default"]
    usual = model(pixel_values=pixels).logits
    for name in ("deep", "real"):
        model.add_prompt(name, singles[name].prompt_config, vectors=singles[name].prompt.vectors.detach())
    for name in ("real", "deep", "default"):
        model.use_prompt(name)
        expected = usual if name == "default" else singles[name](pixel_values=pixels).logits
        assert torch.equal(model(pixel_values=pixels).logits, expected)


def test_the_first_vectors_are_those_of_vpt():
    backbone = tiny.vit()
    bound = math.sqrt(6 / (3 * PATCH * PATCH + tiny.WIDTH))
    vectors = dp.prompted(backbone, dp.PromptConfig(length=200, depth=2)).prompt.vectors
    assert vectors.shape == (2, 200, tiny.WIDTH) and vectors.dtype == torch.float32
    assert 0.99 * bound < vectors.abs().max() <= bound and abs(vectors.mean()) < 0.02
    vectors = dp.prompted(backbone, dp.PromptConfig(length=200, init="uniform")).prompt.vectors
    assert 0.49 < vectors.abs().max() <= 0.5
    vectors = dp.prompted(backbone, dp.PromptConfig(length=200, init="normal")).prompt.vectors
    assert 0.019 < vectors.std() < 0.021 and vectors.abs().max() > 0.05


# --- 6: dropout, recomputation, compilation, half precision ---


def test_the_backbone_is_left_as_it_was_found():
    case, pixels = CASES["vit"], tiny.images()
    model = make(case, depth=3, vector="instance", pool_size=2, summary="encoder", **REAL)
    before = copy.deepcopy(model.backbone.state_dict())
    usual = model.backbone(pixel_values=pixels).logits
    model(pixel_values=pixels)
    with pytest.raises(
        ValueError, match="labels holds 1..99.*Target 99 is out of bounds"
    ):  # an error inside the model's own loss, with all changes in place
        model(pixel_values=pixels, labels=torch.tensor([1, 2, 99]))
    assert not any("forward" in vars(module) for module in model.backbone.modules())
    assert torch.equal(model.backbone(pixel_values=pixels).logits, usual)
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())


def test_dropout_is_the_prompts_too_and_leaves_summaries_alone():
    case = Case(partial(tiny.vit, hidden_dropout_prob=0.5), on_first)
    model, pixels = make(case, vector="instance", pool_size=2, backbone_dropout=True).train(), tiny.images()
    embeddings = model.backbone.vit.embeddings
    assert embeddings.dropout.training
    assert torch.equal(model.summarize(pixel_values=pixels), model.summarize(pixel_values=pixels))
    entered = []
    handle = layers_of(model.backbone)[0].register_forward_pre_hook(lambda m, a: entered.append(a[0]))
    model(pixel_values=pixels)
    handle.remove()
    zeros = (entered[0] == 0).double().mean((0, 2))  # of each row: special token, prompt, patches
    assert zeros.shape == (8,) and ((zeros > 0.2) & (zeros < 0.8)).all()
    assert embeddings.dropout.training
    model.eval()
    assert torch.equal(model(pixel_values=pixels).logits, model(pixel_values=pixels).logits)


def test_recomputed_activations_give_the_same_gradients():
    case, pixels, found = CASES["vit"], tiny.images(), []
    reference = make(case, depth=3, backbone_dropout=True).train()
    for recompute in (False, True):
        model = make(case, depth=3, backbone_dropout=True).train()  # rates are 0: training mode alone
        model.prompt.load_state_dict(reference.prompt.state_dict())
        if recompute:
            model.gradient_checkpointing_enable()
            layer = layers_of(model.backbone)[0]
            assert layer.training and layer.gradient_checkpointing
            if "__call__" in vars(type(layer).__mro__[1]):
                with pytest.raises(ValueError, match="needs a newer transformers"):
                    model(pixel_values=pixels, labels=LABELS)
                return
        runs = []
        for layer in layers_of(model.backbone):
            layer.layernorm_before.register_forward_pre_hook(lambda module, _, runs=runs: runs.append(module))
        model(pixel_values=pixels, labels=LABELS).loss.backward()
        assert len(runs) == 3 * (1 + recompute)
        found.append(model.prompt.vectors.grad)
    assert_close(found[0], found[1], **EXACT)


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 3, "vector": "instance", "pool_size": 2},
        {"position": "task", "estimator": "position-space"} | REAL,
    ],
)
def test_one_compiled_graph_gives_the_same_answers(options):
    model, pixels = make(CASES["vit"], **options), tiny.images()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_close(compiled(pixel_values=pixels).logits, model(pixel_values=pixels).logits, **EXACT)


@pytest.mark.parametrize("entry", [None, "before-positions"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_half_precision_stays_near(name, entry):
    case = CASES[name]
    model = make(case, depth=2, position=1, entry=entry)
    half = dp.prompted(case.make().bfloat16(), model.prompt_config)
    with torch.no_grad():
        half.prompt.vectors.copy_(model.prompt.vectors)
    expected = model(pixel_values=tiny.images()).logits
    found = half(pixel_values=tiny.images().float()).logits
    assert found.dtype == torch.bfloat16 and half.prompt.vectors.dtype == torch.float32
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


# --- 7: what cannot work says so ---


def clip_vision():
    size = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    return CLIPVisionModel(CLIPVisionConfig(**size, image_size=8, patch_size=4))


def deep(**options):
    return dp.PromptConfig(length=LENGTH, depth=2, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.generate(pixel_values=tiny.images()), NotImplementedError, "does not generate"),
        (lambda m: m(tiny.images()), ValueError, "reads images: expected pixel_values=..., got input_ids"),
        (lambda m: m(), ValueError, "reads images: expected pixel_values=..., got none"),
        (
            lambda m: m(pixel_values=tiny.images(), attention_mask=torch.ones(3, 5)),
            ValueError,
            "got attention_mask",
        ),
        (
            lambda m: m(pixel_values=tiny.images()[0]),
            ValueError,
            r"pixel_values has shape \(3, 8, 8\) and dtype torch.float64, expected floating point \(batch, 3, ",
        ),
        (
            lambda m: m(pixel_values=torch.zeros(1, 3, 8, 8, dtype=torch.uint8)),
            ValueError,
            "dtype torch.uint8, expected floating",
        ),
        (
            lambda m: m(pixel_values=tiny.images(), summary=torch.zeros(3, 4)),
            ValueError,
            r"summary has shape \(3, 4\), expected \(3, 16\)",
        ),
        (lambda m: m.add_prompt("x", deep(size=0)), ValueError, "size=0 is outside 1..3"),
        (
            lambda m: m.add_prompt("x", dp.PromptConfig(depth=4)),
            ValueError,
            r"depth=4 is too deep, expected 1\.\.3: ViTForImageClassification's layers",
        ),
        (
            lambda m: m.add_prompt("x", deep(), vectors=torch.zeros(3, 16)),
            ValueError,
            r"vectors has shape \(3, 16\), expected \(2, 3, 16\)",
        ),
        (
            lambda m: deep().build(torch.zeros(3, 16)),
            ValueError,
            r"vectors has shape \(3, 16\), expected \(2, 3, width\).*depth=2",
        ),
        (
            lambda m: dp.DynamicPrompt(torch.zeros(3, 3, 16), m.prompt.position, depth=2),
            ValueError,
            r"shape \(3, 3, 16\).*expected \(depth, length, width\).*depth=2",
        ),
        (
            lambda m: dp.PromptConfig(depth=0),
            ValueError,
            "depth=0 is not valid, expected an integer of at least 1",
        ),
        (
            lambda m: dp.PromptConfig(entry="inside"),
            ValueError,
            "entry='inside' is unknown, expected None, 'after-positions', 'before-positions'",
        ),
        (
            lambda m: dp.PromptConfig(size="task", **REAL),
            ValueError,
            "size='task' is not valid with entry='before-positions', expected 'full' or a number",
        ),
        (
            lambda m: deep(position="task", estimator="straight-through"),
            ValueError,
            "estimator='straight-through' is not valid with depth=2 and position='task', "
            "expected 'score-function' or 'exact' or 'score-function-batch', or 'position-space'",
        ),
        (
            lambda m: deep(size="instance", estimator="position-space"),
            ValueError,
            "estimator='position-space' is not valid with depth=2 and size='instance', "
            "expected 'score-function' or 'exact' or 'score-function-batch'$",
        ),
        (
            lambda m: dp.prompted(tiny.t5(), deep()),
            ValueError,
            "depth=2 is for images and image-text models, expected 1: T5ForConditionalGeneration reads text",
        ),
        (
            lambda m: dp.prompted(tiny.bert(), dp.PromptConfig(**REAL)),
            ValueError,
            "entry='before-positions' is for images, expected None: BertModel reads text",
        ),
        (
            lambda m: dp.prompted(tiny.bert())(pixel_values=tiny.images()),
            ValueError,
            "pixel_values is for images, but BertModel reads text",
        ),
        (
            lambda m: dp.prompted(tiny.bert()).decide(torch.ones(1, 3).long(), interpolate_pos_encoding=True),
            ValueError,
            "interpolate_pos_encoding is for images, but BertModel reads text",
        ),
        (
            lambda m: dp.prompted(clip_vision()),
            TypeError,
            r"one of the vision transformers \['deit', 'dinov2', ",
        ),
        (
            lambda m: dp.prompted(tiny.vit(ViTForMaskedImageModeling)),
            TypeError,
            "expected a model that ends in one of .*, got ViTForMaskedImageModeling",
        ),
    ],
)
def test_what_cannot_work_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(make(CASES["vit"]))


def test_a_size_needs_a_mask(monkeypatch):
    backbone = tiny.vit()
    with monkeypatch.context() as patch:
        patch.setattr(ViTModel, "forward", lambda self, pixel_values: None)
        with pytest.raises(ValueError, match="size='task' hides vectors behind a mask.*takes none"):
            dp.prompted(backbone, dp.PromptConfig(length=LENGTH, size="task"))
