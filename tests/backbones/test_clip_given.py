"""Decisions about a prompt in an image-text model that were made elsewhere, against fixed prompts and loops by hand."""

import pytest
import tiny
import torch
from naive_clip import (
    EXACT,
    LABELS,
    LENGTH,
    MODELS,
    WORDS,
    given,
    images_by_hand,
    make,
    scores_by_hand,
    text_by_hand,
    texts_by_hand,
)
from naive_vit import stacked
from torch.testing import assert_close

from dplearn.sampling import Choice

PLACES = torch.tensor([3, 0, 2, 1])  # of four classes


def with_classes(kind="clip", **options):
    model = make(kind, **options)
    model.set_classes(*tiny.texts(WORDS, kind == "siglip"))
    return model


@pytest.mark.parametrize(
    "options", [{}, {"position": "instance"}, {"position": "task", "depth": 3, "estimator": "exact"}]
)
@pytest.mark.parametrize("kind", MODELS)
def test_a_place_for_each_class_equals_a_loop_over_classes(kind, options):
    """Also where the prompt is fixed elsewhere, and where features of its own place are kept already."""
    model, pixels = with_classes(kind, **options), tiny.images()
    images, prompts = images_by_hand(model.backbone, pixels), stacked(model)
    texts = [text_by_hand(model.backbone, words, prompts, k) for words, k in zip(WORDS, PLACES.tolist())]
    own = model(pixel_values=pixels).logits
    for _ in range(2):
        found = model(pixel_values=pixels, decisions={"position": PLACES}).logits
        assert_close(found, scores_by_hand(model.backbone, torch.stack(texts), images), **EXACT)
        assert_close(model(pixel_values=pixels).logits, own, **EXACT)
    assert_close(model.text_features(decisions={"position": PLACES}), torch.stack(texts), **EXACT)
    assert model.insert_prompt(decisions={"position": PLACES}).decisions["position"].index.equal(PLACES)
    assert_close(model.classify(pixel_values=pixels, decisions={"position": PLACES}), chances(model, found))


def chances(model, scores):
    return scores.sigmoid() if model.backbone.config.model_type == "siglip" else scores.softmax(1)


@pytest.mark.parametrize("split", range(LENGTH + 1))
@pytest.mark.parametrize("kind", MODELS)
def test_one_place_for_all_equals_a_fixed_prompt(kind, split):
    model, pixels = with_classes(kind, position="instance"), tiny.images()
    texts = texts_by_hand(model.backbone, stacked(model), split)
    expected = scores_by_hand(model.backbone, texts, images_by_hand(model.backbone, pixels))
    for one in (split, Choice(torch.tensor([split])), Choice(torch.full((4,), split))):
        assert_close(model(pixel_values=pixels, decisions={"position": one}).logits, expected, **EXACT)


@pytest.mark.parametrize("options", [{}, {"position": "instance"}, {"vector": "instance"}])
@pytest.mark.parametrize("kind", MODELS)
def test_a_place_for_each_image_equals_a_loop_over_images(kind, options):
    """Where images decide, or would, the texts' places are theirs to give."""
    model, pixels = make(kind, summary="image", **options), tiny.images(4)
    images, places = images_by_hand(model.backbone, pixels), PLACES
    embeds = model.image_features(pixels)
    choices = {"position": places}
    if "vector" in options:
        weights = torch.tensor([[0.1, 0.9], [1.0, 0.0], [0.5, 0.5], [0.7, 0.3]], dtype=torch.float64)
        choices["vector"] = Choice(torch.zeros(4, dtype=torch.long), weights)
        pool = model.prompt.vectors
        prompts = [(w[0] * pool[0] + w[1] * pool[1])[None] for w in weights]
    else:
        prompts = [stacked(model)] * 4
    texts = torch.stack([texts_by_hand(model.backbone, p, k) for p, k in zip(prompts, places.tolist())])
    found = model(image_embeds=embeds, decisions=choices, **given(model.backbone))
    assert_close(found.text_embeds, texts, **EXACT)
    assert_close(found.logits_per_image, scores_by_hand(model.backbone, texts, images), **EXACT)
    one = {
        name: value[:1] if name == "position" else Choice(value.index[:1], value.weights[:1])
        for name, value in choices.items()
    }
    alone = model(image_embeds=embeds[:1], decisions=one, **given(model.backbone))
    assert_close(alone.logits_per_image, found.logits_per_image[:1], **EXACT)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("position", {"position": "task"}),
        ("position", {"position": "instance"}),
        ("size", {"size": "instance"}),
        ("vector", {"vector": "instance"}),
        ("vector", {"vector": "instance", "mixing": "hard", "summary": "image"}),
    ],
)
def test_what_is_decided_can_be_given_back(name, options):
    model, pixels = with_classes(**options), tiny.images()
    embeds = model.image_features(pixels)
    looks = {"image_embeds": embeds} if "summary" in options else {}
    decided = {name: model.decide(**looks)[name]}
    assert_close(
        model(image_embeds=embeds, decisions=decided).logits, model(image_embeds=embeds).logits, **EXACT
    )


@pytest.mark.parametrize("estimator", ["straight-through", "score-function"])
def test_given_places_are_not_drawn_and_vectors_alone_have_a_gradient(estimator):
    model, pixels = with_classes(position="instance", size="task", estimator=estimator).train(), tiny.images()
    sizes = torch.tensor([3, 3, 2, 3])
    given_all = {"position": PLACES, "size": sizes}
    output = model(pixel_values=pixels, labels=LABELS, decisions=given_all)
    images = images_by_hand(model.backbone, pixels)
    prompts = [stacked(model)[:, :size] for size in sizes.tolist()]
    texts = [
        text_by_hand(model.backbone, words, own, min(k, own.shape[1]))
        for words, own, k in zip(WORDS, prompts, PLACES.tolist())
    ]
    scores = scores_by_hand(model.backbone, torch.stack(texts), images)
    assert_close(output.loss, torch.nn.functional.cross_entropy(scores, LABELS), **EXACT)
    output.loss.backward()
    assert model.prompt.vectors.grad.abs().max() > 0
    assert all(p.grad is None for n, p in model.prompt.named_parameters() if n != "vectors")
    if estimator == "score-function":
        partly = model(pixel_values=pixels, labels=LABELS, decisions={"size": 2})
        assert set(partly.draws.index) == {"position"}


@pytest.mark.parametrize(
    ("options", "decisions", "message"),
    [
        ({}, {"position": 4}, r"decisions\['position'\] holds 4..4, expected a number in 0..3"),
        ({}, {"position": PLACES[:3]}, r"decisions\['position'\] has shape \(3,\).*each of the 4 instances"),
        ({}, {"size": 2}, r"decisions holds 'size', .*expected some of \['position'\]"),
        (
            {"towers": "vision", "vector": "instance"},
            {"position": 1},
            "decisions holds 'position' with towers='vision'",
        ),
    ],
)
def test_decisions_that_do_not_fit_are_refused(options, decisions, message):
    with pytest.raises(ValueError, match=message):
        with_classes(**options)(pixel_values=tiny.images(), decisions=decisions)
