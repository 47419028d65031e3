"""Prompts in image-text models: towers, decisions, estimators, texts.

The reference is CoOp (Zhou et al. 2022), MaPLe (Khattak et al. 2023) and VPT (Jia et al. 2022) written out by hand
(:mod:`naive_clip`). Shortcuts and training have files of their own.
"""

import itertools
import warnings
from functools import partial

import pytest
import tiny
import torch
from naive_clip import (
    CLOSE,
    EXACT,
    LABELS,
    LENGTH,
    MODELS,
    WORDS,
    controller_logits,
    given,
    gradients,
    images_by_hand,
    make,
    make_differing,
    read_text,
    scores_by_hand,
    text_by_hand,
    text_rows,
    texts_by_hand,
    word_means,
)
from naive_vit import stacked
from torch.nn.functional import cross_entropy, gumbel_softmax
from torch.testing import assert_close

import dplearn as dp
from dplearn.estimators import Draws

PROMPT = [20, 21, 22]
ORDER_BLIND = "order-blindness theorem, chapter 04"


def logits_of(model, pixels=None, words=WORDS, **options):
    """(N, C), by giving the texts."""
    pixels = tiny.images() if pixels is None else pixels
    texts = given(model.backbone, words)
    return model(pixel_values=pixels, **texts, **options).logits_per_image


def assert_same_gradients(found, expected, moved=1e-4):
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert_close(gradient, expected[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
        assert gradient.abs().max() > moved, name


# --- 1: towers ---


@pytest.mark.parametrize("shortcuts", [(), ("truncate",), ("share",), ("truncate", "share", "classes")])
@pytest.mark.parametrize("split", range(LENGTH + 1))
@pytest.mark.parametrize("kind", MODELS)
def test_a_prompt_of_words_equals_the_model_on_texts_with_these_words(kind, split, shortcuts):
    backbone, images = MODELS[kind](), tiny.images()
    vectors = backbone.text_model.embeddings.token_embedding.weight[PROMPT].detach().clone()
    ids, mask = tiny.texts(WORDS, kind == "siglip", around=(split, PROMPT))
    with torch.no_grad():
        wanted = backbone(input_ids=ids, attention_mask=mask, pixel_values=images)
    model = dp.prompted(backbone, dp.PromptConfig(length=LENGTH, position=split), vectors=vectors).eval()
    model.shortcuts = shortcuts
    ids, mask = tiny.texts(WORDS, kind == "siglip", extra=2)
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask, pixel_values=images)
        model.set_classes(ids, mask)
        assert_close(model(pixel_values=images).logits, wanted.logits_per_image, **EXACT)
    for name in ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"):
        assert_close(found[name], wanted[name], **EXACT)
    assert type(found) is type(wanted)


@pytest.mark.parametrize("kind", MODELS)
def test_the_reference_without_a_prompt_is_the_backbone(kind):
    backbone, pixels = MODELS[kind](), tiny.images()
    wanted = backbone(pixel_values=pixels, **given(backbone))
    texts = texts_by_hand(backbone, torch.zeros(1, 0, tiny.WIDTH).double(), 0)
    images = images_by_hand(backbone, pixels)
    assert_close(texts, wanted.text_embeds, **EXACT)
    assert_close(images, wanted.image_embeds, **EXACT)
    assert_close(scores_by_hand(backbone, texts, images), wanted.logits_per_image, **EXACT)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("split", [0, 2, LENGTH])
@pytest.mark.parametrize("kind", MODELS)
def test_context_vectors_equal_coop_by_hand(kind, split, depth):
    model, pixels = make(kind, position=split, depth=depth), tiny.images()
    texts = texts_by_hand(model.backbone, stacked(model), split)
    expected = scores_by_hand(model.backbone, texts, images_by_hand(model.backbone, pixels))
    output = model(pixel_values=pixels, labels=LABELS, **given(model.backbone))
    assert_close(output.logits_per_image, expected, **EXACT)
    assert_close(output.text_embeds, texts, **EXACT)
    loss = cross_entropy(expected, LABELS)
    assert_close(output.loss, loss, **EXACT)
    found = gradients(model, output.loss)
    assert_same_gradients(found, gradients(model, loss))
    assert (found["prompt.vectors"].abs().amax(-1) > 1e-5).all()  # each vector of each layer has a part in it


def image_prompts(model):
    """(depth, l, width): what stands in the images."""
    towers, vectors = model.prompt_config.towers, stacked(model)
    if towers == "vision":
        return vectors
    if towers == "both":
        return model.prompt.vision.vectors
    return torch.stack(
        [v @ m.weight.T + m.bias for v, m in zip(vectors, model.prompt.vision.maps, strict=True)]
    )


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("towers", ["vision", "both", "coupled"])
@pytest.mark.parametrize("kind", MODELS)
def test_prompts_in_images_equal_vpt_and_maple_by_hand(kind, towers, depth):
    model, pixels = make(kind, towers=towers, depth=depth, position=1), tiny.images()
    prompts = torch.zeros(1, 0, tiny.WIDTH).double() if towers == "vision" else stacked(model)
    texts = texts_by_hand(model.backbone, prompts, 0 if towers == "vision" else 1)
    images = images_by_hand(model.backbone, pixels, image_prompts(model))
    expected = scores_by_hand(model.backbone, texts, images)
    output = model(pixel_values=pixels, labels=LABELS, **given(model.backbone))
    assert_close(output.image_embeds, images, **EXACT)
    assert_close(output.text_embeds, texts, **EXACT)
    assert_close(output.logits_per_image, expected, **EXACT)
    assert_same_gradients(
        gradients(model, output.loss), gradients(model, cross_entropy(expected, LABELS)), moved=1e-5
    )
    assert_close(model.image_features(pixels), images, **EXACT)
    assert_close(model.text_features(**given(model.backbone)), texts, **EXACT)


def test_each_image_prompt_has_parameters_of_its_own_kind():
    shapes = {
        towers: {n: tuple(p.shape) for n, p in make(towers=towers, depth=2).trainable_parameters().items()}
        for towers in ("text", "vision", "both", "coupled")
    }
    assert shapes["text"] == {"prompt.vectors": (2, LENGTH, 16)}
    assert shapes["vision"] == {"prompt.vectors": (2, LENGTH, 12)}
    assert shapes["both"] == {"prompt.vectors": (2, LENGTH, 16), "prompt.vision.vectors": (2, LENGTH, 12)}
    maps = {
        f"prompt.vision.maps.{n}.{name}": s
        for n in (0, 1)
        for name, s in (("weight", (12, 16)), ("bias", (12,)))
    }
    assert shapes["coupled"] == {"prompt.vectors": (2, LENGTH, 16)} | maps


@pytest.mark.parametrize("towers", ["text", "vision", "both", "coupled"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_fixed_size_equals_a_prompt_of_so_many_vectors(kind, towers):
    model = make(kind, length=5, size=2, towers=towers, depth=2, position=1)
    smaller = make(kind, length=2, towers=towers, depth=2, position=1)
    state = {
        name: value[:, :2] if name.endswith("vectors") else value
        for name, value in model.prompt.state_dict().items()
    }
    smaller.prompt.load_state_dict(state)
    assert_close(logits_of(model), logits_of(smaller), **EXACT)


@pytest.mark.parametrize("towers", ["vision", "both"])
def test_images_of_another_size_pass_their_interpolation_through(towers):
    backbone, pixels = tiny.clip(), tiny.images(2, side=12)
    model = make(backbone=backbone, towers=towers)
    features = model.backbone.get_image_features(pixels, interpolate_pos_encoding=True)
    usual = getattr(features, "pooler_output", features)
    with pytest.raises(ValueError, match="doesn't match model"):
        logits_of(model, pixels)
    found = model.image_features(pixels, interpolate_pos_encoding=True)
    assert (found - usual / usual.norm(dim=1, keepdim=True)).abs().max() > 0.01
    assert_close(
        logits_of(model, pixels, interpolate_pos_encoding=True),
        model.similarity(found, model.text_features(**given(backbone))),
        **EXACT,
    )
    with torch.no_grad():  # a prompt of which nothing is seen: no key reaches it
        bare = make(backbone=backbone, towers="text")
        wanted = usual / usual.norm(dim=1, keepdim=True)
        assert_close(bare.image_features(pixels, interpolate_pos_encoding=True), wanted, **EXACT)


# --- 2: decisions about texts ---

NAMES = ("cat", "dog", "cow", "hen")


def splits_by_hand(model, part="position"):
    """What is decided in evaluation, (1 or C,)."""
    return controller_logits(model, part, word_means(model.backbone)).argmax(1)


@pytest.mark.parametrize("options", [{}, {"tasks": NAMES}, {"position": "instance"}])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_learned_splits_in_evaluation_equal_a_loop_over_classes(kind, depth, options):
    options = {"position": "task", "estimator": "score-function"} | options
    shared = "tasks" not in options and options["position"] == "task"
    find = make if shared else partial(make_differing, splits_by_hand)
    model, pixels = find(kind, depth=depth, **options), tiny.images()
    model.set_classes(*tiny.texts(WORDS, kind == "siglip"))
    splits = splits_by_hand(model)
    assert len(splits) == (1 if shared else 4)
    texts = [
        text_by_hand(model.backbone, words, stacked(model), int(split))
        for words, split in zip(WORDS, splits.expand(4))
    ]
    expected = scores_by_hand(model.backbone, torch.stack(texts), images_by_hand(model.backbone, pixels))
    for _ in range(2):
        assert_close(model(pixel_values=pixels).logits, expected, **EXACT)
    assert model.decide()["position"].index.tolist() == splits.tolist()
    if "tasks" in options:
        with pytest.raises(ValueError, match="task_ids=None, expected one for each text"):
            logits_of(model)  # these texts are not said to be the classes
        assert_close(logits_of(model, task_ids=NAMES), expected, **EXACT)
        assert not torch.equal(logits_of(model, task_ids=[3, 2, 1, 0]), expected)
    else:
        assert_close(logits_of(model), expected, **EXACT)


def mixed_text(backbone, words, vectors, weights):
    """One text whose rows are mixed over all splits."""
    rows = [text_rows(backbone, words, vectors, k)[0] for k in range(len(vectors) + 1)]
    return read_text(backbone, sum(w * r for w, r in zip(weights, rows)), vectors[None], None)


@pytest.mark.parametrize("options", [{}, {"tasks": NAMES}, {"position": "instance"}])
@pytest.mark.parametrize("kind", MODELS)
def test_straight_through_is_the_gradient_of_the_mixture_of_sequences(kind, options):
    model, pixels = make(kind, **{"position": "task"} | options).train(), tiny.images()
    model.set_classes(*tiny.texts(WORDS, kind == "siglip"))
    torch.manual_seed(3)
    output = model(pixel_values=pixels, labels=LABELS)
    torch.manual_seed(3)
    found = controller_logits(model, "position", word_means(model.backbone).detach())
    weights = gumbel_softmax(found, hard=True)  # one draw for all, or one for each class
    assert len(weights) == (4 if options else 1)
    texts = [
        mixed_text(model.backbone, words, model.prompt.vectors, own)
        for words, own in zip(WORDS, weights.expand(4, -1))
    ]
    expected = scores_by_hand(model.backbone, torch.stack(texts), images_by_hand(model.backbone, pixels))
    assert_close(output.logits, expected, rtol=0, atol=1e-11)
    loss = cross_entropy(expected, LABELS)
    assert_same_gradients(gradients(model, output.loss), gradients(model, loss))


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("tasks", [None, NAMES])
def test_a_learned_size_equals_prompts_of_so_many_vectors(tasks, depth):
    level = "instance" if tasks is None else "task"
    find = partial(make_differing, partial(splits_by_hand, part="size"))
    model = find(size=level, position=1, tasks=tasks, depth=depth, estimator="score-function")
    model.set_classes(*tiny.texts(WORDS))
    pixels = tiny.images()
    images = images_by_hand(model.backbone, pixels)

    def expected(sizes):
        texts = [
            text_by_hand(model.backbone, words, stacked(model)[:, :n], min(1, n))
            for words, n in zip(WORDS, sizes)
        ]
        return scores_by_hand(model.backbone, torch.stack(texts), images)

    sizes = splits_by_hand(model, "size").tolist()
    assert_close(model(pixel_values=pixels).logits, expected(sizes), **EXACT)
    output = model.train()(pixel_values=pixels, labels=LABELS)
    drawn = output.draws.index["size"]  # (S, C)
    assert drawn.shape == (4, 4) and len(set(drawn.flatten().tolist())) > 1
    assert_close(output.logits, torch.cat([expected(row.tolist()) for row in drawn]), **EXACT)


def test_straight_through_for_a_size_is_the_gradient_of_the_mixture_of_sequences():
    model, pixels = make(size="task", position=1, size_cost=0.5).train(), tiny.images()
    model.set_classes(*tiny.texts(WORDS))
    torch.manual_seed(3)
    output = model(pixel_values=pixels, labels=LABELS)
    torch.manual_seed(3)
    found = controller_logits(model, "size")
    weights, vectors = gumbel_softmax(found, hard=True)[0], model.prompt.vectors
    size, texts = int(weights.argmax()), []
    padding = model.backbone.text_model.embeddings.token_embedding.weight[tiny.END]
    longest = max(map(len, WORDS))
    for words in WORDS:
        rows = 0.0
        for n in range(LENGTH + 1):
            own, _ = text_rows(model.backbone, words, vectors[:n], min(1, n))
            rest = [padding.expand(longest - len(words), -1), vectors[n:]]
            rows = rows + weights[n] * torch.cat([own, *rest])
        texts.append(read_text(model.backbone, rows, vectors[None], None, 1 + len(words) + size))
    images = images_by_hand(model.backbone, pixels)
    expected = scores_by_hand(model.backbone, torch.stack(texts), images)
    assert_close(output.logits, expected, **EXACT)
    share = (found.softmax(1)[0] * torch.arange(LENGTH + 1)).sum() / LENGTH
    loss = cross_entropy(expected, LABELS) + 0.5 * share
    assert_close(output.loss, loss, **EXACT)
    assert_close(output.penalty, 0.5 * share, **EXACT)
    assert_same_gradients(gradients(model, output.loss), gradients(model, loss))


def chosen_by_hand(model):
    return splits_by_hand(model, "vector")


def pool_weights(model, summaries, mixing):
    found = controller_logits(model, "vector", summaries)
    if mixing == "hard":
        return torch.nn.functional.one_hot(found.argmax(1), 2).double()
    return (found.tanh() if mixing == "tanh" else found).softmax(1)


@torch.no_grad()
def settle(model, pixels):
    """The statistics of summaries are those of this batch, which a training step on it then leaves as they are."""
    model.train()(pixel_values=pixels, **given(model.backbone))
    model.eval()


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("position", [1, "instance"])
@pytest.mark.parametrize("mixing", ["softmax", "tanh", "hard"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_pool_of_prompts_equals_a_loop_over_classes(kind, mixing, position, depth):
    options = dict(
        vector="instance", mixing=mixing, position=position, depth=depth, estimator="score-function"
    )
    model = make_differing(chosen_by_hand, kind, **options)
    pixels = tiny.images()
    settle(model, pixels)
    means, pool = word_means(model.backbone), model.prompt.vectors
    pool = pool if depth > 1 else pool[:, None]
    weights = pool_weights(model, means, mixing)
    splits = [1] * 4 if position == 1 else splits_by_hand(model).tolist()
    texts = [
        text_by_hand(model.backbone, words, w[0] * pool[0] + w[1] * pool[1], k)
        for words, w, k in zip(WORDS, weights, splits)
    ]
    expected = scores_by_hand(model.backbone, torch.stack(texts), images_by_hand(model.backbone, pixels))
    assert_close(logits_of(model, pixels), expected, **EXACT)
    assert (weights.std(0) > 0.01).all()
    if mixing != "hard" and position == 1:
        loss = cross_entropy(expected, LABELS)
        found = model.train()(pixel_values=pixels, labels=LABELS, **given(model.backbone)).loss
        assert_same_gradients(gradients(model, found), gradients(model, loss))


@pytest.mark.parametrize("kind", MODELS)
def test_a_summary_by_the_encoder_is_the_mean_of_the_last_states_of_the_words(kind):
    model = make(kind, position="instance", summary="encoder")
    texts, tower = given(model.backbone), model.backbone.text_model
    states = tower(**texts).last_hidden_state
    first = 0 if kind == "siglip" else 1
    expected = torch.stack([row[first : first + len(words)].mean(0) for row, words in zip(states, WORDS)])
    assert_close(model.summarize(**texts), expected, **EXACT)
    found = model.decide(**texts)["position"].index
    assert found.tolist() == controller_logits(model, "position", expected).argmax(1).tolist()


def test_evaluation_draws_nothing():
    model = make(position="instance", vector="instance", mixing="hard", size="instance")
    before = torch.get_rng_state()
    logits_of(model)
    assert torch.equal(torch.get_rng_state(), before)
    logits_of(model.train())
    assert not torch.equal(torch.get_rng_state(), before)
    before = torch.get_rng_state()
    texts = given(model.backbone)
    one = model.classify(pixel_values=tiny.images(), **texts)  # evaluation whatever the mode, which stays
    assert torch.equal(torch.get_rng_state(), before) and model.training
    assert_close(one, logits_of(model.eval()).softmax(1), **EXACT)


# --- 3: images that decide ---


def by_image(model, pixels, words=WORDS):
    """(N, C, p): each image's own split and mixture, one image and one text after the other."""
    backbone, config = model.backbone, model.prompt_config
    seen = images_by_hand(backbone, pixels)
    splits = [config.position] * len(pixels)
    if config.position == "instance":
        splits = controller_logits(model, "position", seen).argmax(1).tolist()
    pool, depth = model.prompt.vectors, config.depth
    prompts = [stacked(model)] * len(pixels)
    if config.vector == "instance":
        pool = pool if depth > 1 else pool[:, None]
        prompts = [w[0] * pool[0] + w[1] * pool[1] for w in pool_weights(model, seen, config.mixing)]
    return torch.stack([texts_by_hand(backbone, p, k, words) for p, k in zip(prompts, splits)])


IMAGE_DECIDES = [
    {"position": "instance"},
    {"position": 1, "vector": "instance"},
    {"position": "instance", "vector": "instance", "mixing": "hard"},
    {"position": "instance", "vector": "instance", "depth": 3, "estimator": "score-function"},
]


@pytest.mark.parametrize("options", IMAGE_DECIDES)
@pytest.mark.parametrize("kind", MODELS)
def test_images_that_decide_equal_a_loop_over_images(kind, options):
    pixels = tiny.images(5)

    def decided(model):
        part = "position" if options["position"] == "instance" else "vector"
        return controller_logits(model, part, images_by_hand(model.backbone, pixels)).argmax(1)

    model = make_differing(decided, kind, summary="image", **options)
    settle(model, pixels)
    texts = by_image(model, pixels)
    images = images_by_hand(model.backbone, pixels)
    output = model(pixel_values=pixels, **given(model.backbone))
    assert_close(output.text_embeds, texts, **EXACT)
    expected = scores_by_hand(model.backbone, texts, images)
    assert_close(output.logits_per_image, expected, **EXACT)
    assert_close(output.logits_per_text, expected.T, **EXACT)
    if options["position"] == "instance":
        assert torch.equal(model.decide(pixel_values=pixels)["position"].index, decided(model))
    # Neither order nor batch mates matter.
    assert_close(logits_of(model, pixels.flip(0)), expected.flip(0), **EXACT)
    alone = model(pixel_values=pixels[2:3], **given(model.backbone))
    assert_close(alone.logits_per_image, expected[2:3], **EXACT)
    assert_close(alone.text_embeds, texts[2:3], **EXACT)
    embeds = model.image_features(pixels)
    assert_close(model.text_features(image_embeds=embeds, **given(model.backbone)), texts, **EXACT)
    rows = model.insert_prompt(image_embeds=embeds, **given(model.backbone))
    assert len(rows.embeds) == 5 * 4
    if options["position"] == 1:
        labels = torch.arange(5) % 4
        found = model.train()(pixel_values=pixels, labels=labels, **given(model.backbone)).loss
        assert_same_gradients(gradients(model, found), gradients(model, cross_entropy(expected, labels)))


def test_straight_through_with_images_that_decide():
    model, pixels = make(summary="image", position="instance").train(), tiny.images()
    seen = images_by_hand(model.backbone, pixels).detach()
    torch.manual_seed(3)
    loss = model(pixel_values=pixels, labels=LABELS, **given(model.backbone)).loss
    torch.manual_seed(3)
    weights = gumbel_softmax(controller_logits(model, "position", seen), hard=True)
    texts = torch.stack(
        [
            torch.stack([mixed_text(model.backbone, words, model.prompt.vectors, own) for words in WORDS])
            for own in weights
        ]
    )
    expected = cross_entropy(scores_by_hand(model.backbone, texts, seen), LABELS)
    assert_same_gradients(gradients(model, loss), gradients(model, expected))


@pytest.mark.parametrize("summary", ["embeddings", "image"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_pool_of_image_prompts_is_mixed_by_the_image(kind, summary):
    model = make(kind, towers="vision", vector="instance", depth=2, summary=summary)
    pixels, tower = tiny.images(), model.backbone.vision_model
    if summary == "image":
        seen = images_by_hand(model.backbone, pixels)
    else:
        seen = tower.embeddings(pixels)[:, int(kind == "clip") :].mean(1)
    assert_close(model.summarize(pixel_values=pixels), seen, **EXACT)
    weights, pool = pool_weights(model, seen, "softmax"), model.prompt.vectors
    images = torch.cat(
        [
            images_by_hand(model.backbone, image[None], w[0] * pool[0] + w[1] * pool[1])
            for image, w in zip(pixels, weights)
        ]
    )
    none = torch.zeros(1, 0, tiny.WIDTH).double()
    expected = scores_by_hand(model.backbone, texts_by_hand(model.backbone, none, 0), images)
    assert_close(logits_of(model, pixels), expected, **EXACT)


# --- 4: estimators that compare losses ---


def losses_by_hand(model, pixels, words, labels):
    """(l + 1, N): the loss of each image at each split that all texts share."""
    images, found = images_by_hand(model.backbone, pixels), []
    for split in range(model.prompt.length + 1):
        texts = texts_by_hand(model.backbone, model.prompt.vectors[None], split, words)
        scores = scores_by_hand(model.backbone, texts, images)
        found.append(cross_entropy(scores, labels, reduction="none"))
    return torch.stack(found)


@pytest.mark.parametrize("summary", ["embeddings", "image"])
@pytest.mark.parametrize("kind", MODELS)
def test_the_exact_estimator_is_the_gradient_of_the_expected_loss(kind, summary):
    level = "instance" if summary == "image" else "task"
    model, pixels = make(kind, position=level, summary=summary, estimator="exact").train(), tiny.images()
    output = model(pixel_values=pixels, labels=LABELS, **given(model.backbone))
    seen = images_by_hand(model.backbone, pixels).detach()
    chances = controller_logits(model, "position", seen).softmax(1)  # (1 or N, l + 1)
    loss = (chances * losses_by_hand(model, pixels, WORDS, LABELS).T).sum(1).mean()
    assert_close(output.loss, loss, **EXACT)
    assert output.logits_per_image.shape == ((LENGTH + 1) * 3, 4)
    assert_same_gradients(gradients(model, output.loss), gradients(model, loss), moved=1e-5)


def mean_over_all_draws(model, monkeypatch, owners, **call):
    """The expectation of the score-function estimate with two draws: all pairs of joint options, weighted."""
    options = list(itertools.product(range(model.prompt.length + 1), repeat=owners))
    total = None
    for pair in itertools.product(options, repeat=2):
        index, weight = torch.tensor(pair), []

        def forced(logits, estimator, samples, generator, index=index, weight=weight):
            log_p = logits["position"].log_softmax(1)
            assert log_p.shape[0] == owners
            chosen = torch.stack([log_p.gather(1, row[:, None])[:, 0] for row in index])
            weight.append(chosen.detach().sum().exp())
            return Draws({"position": index}, chosen, None, "score-function")

        monkeypatch.setattr("dplearn.image_text.losses.draw", forced)
        found = gradients(model, model(**call).loss)
        part = {name: weight[0] * gradient for name, gradient in found.items()}
        total = part if total is None else {name: total[name] + part[name] for name in part}
    return total


def test_the_score_function_is_unbiased_where_each_class_decides(monkeypatch):
    words, labels, pixels = WORDS[:2], torch.tensor([1, 0, 1]), tiny.images()
    options = dict(length=2, position="task", tasks=["a", "b"], estimator="score-function", samples=2)
    model = make(**options).train()
    model.set_classes(*tiny.texts(words))
    found = mean_over_all_draws(model, monkeypatch, 2, pixel_values=pixels, labels=labels)
    chances, images = controller_logits(model, "position").softmax(1), images_by_hand(model.backbone, pixels)
    expected = 0.0
    for splits in itertools.product(range(3), repeat=2):
        texts = [
            text_by_hand(model.backbone, w, model.prompt.vectors[None], k) for w, k in zip(words, splits)
        ]
        scores = scores_by_hand(model.backbone, torch.stack(texts), images)
        chance = chances[0, splits[0]] * chances[1, splits[1]]
        expected = expected + chance * cross_entropy(scores, labels)
    assert_same_gradients(found, gradients(model, expected))


def test_one_draw_for_all_classes_together_is_refused_where_instances_are_compared():
    """It would have no gradient, whatever is trained; two draws are compared with each other."""
    call = dict(pixel_values=tiny.images(), labels=torch.tensor([1, 0, 1]))
    options = dict(length=2, position="task", tasks=["a", "b"], controller_init="uniform")
    found = {}
    for estimator in ("score-function-batch", "score-function"):
        model = make(**options, estimator=estimator, samples=2).train()
        model.set_classes(*tiny.texts(WORDS[:2]))
        torch.manual_seed(5)
        found[estimator] = gradients(model, model(**call).loss)
    assert_same_gradients(*found.values())
    model = make(**options, estimator="score-function-batch").train()
    model.set_classes(*tiny.texts(WORDS[:2]))
    with pytest.raises(
        ValueError, match="samples=None is not valid .* classes or pairs together, expected an int"
    ):
        model(**call)


@pytest.mark.parametrize("paired", [False, True])
def test_the_score_function_is_unbiased_where_each_image_decides(monkeypatch, paired):
    words, labels, pixels = WORDS[:2], torch.tensor([1, 0]), tiny.images(2)
    options = dict(length=1, position="instance", summary="image", estimator="score-function", samples=2)
    model = make(**options, spread=2.0).train()
    texts = given(model.backbone, words)
    loss = {"return_loss": True} if paired else {"labels": labels}
    found = mean_over_all_draws(model, monkeypatch, 2, pixel_values=pixels, **texts, **loss)
    seen = images_by_hand(model.backbone, pixels).detach()
    chances, expected = controller_logits(model, "position", seen).softmax(1), 0.0
    for splits in itertools.product(range(2), repeat=2):
        own = [texts_by_hand(model.backbone, model.prompt.vectors[None], k, words) for k in splits]
        scores = scores_by_hand(model.backbone, torch.stack(own), seen)
        pairs = torch.arange(2)
        cost = (cross_entropy(scores, pairs) + cross_entropy(scores.T, pairs)) / 2
        cost = cost if paired else cross_entropy(scores, labels)
        expected = expected + chances[0, splits[0]] * chances[1, splits[1]] * cost
    assert_same_gradients(found, gradients(model, expected))


def test_the_score_function_draws_one_split_for_all_texts():
    model, pixels = make(position="task", estimator="score-function", samples=3).train(), tiny.images()
    output = model(pixel_values=pixels, labels=LABELS, **given(model.backbone))
    drawn = output.draws.index["position"]
    assert drawn.shape == (3, 1)
    images = images_by_hand(model.backbone, pixels)
    expected = [
        scores_by_hand(model.backbone, texts_by_hand(model.backbone, stacked(model), int(k)), images)
        for k in drawn
    ]
    assert_close(output.logits_per_image, torch.cat(expected), **EXACT)
    assert output.draws.log_probs.shape == (3, 1)


@pytest.mark.parametrize(
    "options", [{"position": "instance"}, {"position": "task", "tasks": NAMES}, {"size": "instance"}]
)
def test_exact_is_refused_where_each_text_decides(options):
    with pytest.raises(ValueError, match="estimator='exact' is not valid here.*too many to enumerate"):
        make(estimator="exact", **options)


def test_exact_is_refused_for_the_loss_of_pairs_under_several_decisions():
    model = make(estimator="exact", position="instance", summary="image").train()
    texts = given(model.backbone, WORDS[:3])
    with pytest.raises(ValueError, match="return_loss=True with estimator='exact'.*expected labels, or"):
        model(pixel_values=tiny.images(), return_loss=True, **texts)
    assert (
        model(pixel_values=tiny.images(1), return_loss=True, **given(model.backbone, WORDS[:1])).loss
        is not None
    )


@pytest.mark.parametrize("kind", MODELS)
def test_position_space_is_refused(kind):
    with pytest.raises(
        ValueError, match="estimator='position-space' cannot be used: .*no position information"
    ):
        make(kind, position="task", estimator="position-space")


# --- 6: texts as they come ---

TEXT_PROMPTS = [{"position": 2}, {"position": "instance"}, {"vector": "instance", "depth": 3, "position": 0}]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("shortcuts", [(), ("truncate", "share", "classes")])
@pytest.mark.parametrize("options", TEXT_PROMPTS)
def test_padding_and_batch_mates_never_matter(options, shortcuts, old):
    model, pixels = make(backbone=tiny.clip(old=old), **options), tiny.images()
    model.shortcuts = shortcuts
    usual = logits_of(model, pixels)
    for extra, side in [(4, "right"), (0, "left"), (5, "left")]:
        texts = given(model.backbone, extra=extra, side=side)
        found = model(pixel_values=pixels, **texts).logits_per_image
        assert_close(found, usual, **EXACT)
        if side == "right":  # CLIP finds the end by itself
            del texts["attention_mask"]
            assert_close(model(pixel_values=pixels, **texts).logits_per_image, usual, **EXACT)
    alone = [logits_of(model, pixels, [words]) for words in WORDS]
    assert_close(torch.cat(alone, 1), usual, **EXACT)
    other = given(model.backbone, extra=3)
    padded = other["input_ids"].masked_fill(other["attention_mask"] == 0, 7)  # what padding is made of
    found = model(padded, pixels, other["attention_mask"]).logits_per_image
    assert_close(found, usual, **EXACT)


def test_padding_never_matters_while_training():
    """The gradient of a split, too: what stands behind the end token is not seen."""
    found = []
    for extra, side in [(0, "right"), (4, "right"), (2, "left")]:
        model = make(position="instance").train()
        model.shortcuts = ()
        torch.manual_seed(3)
        texts = given(model.backbone, extra=extra, side=side)
        found.append(gradients(model, model(pixel_values=tiny.images(), labels=LABELS, **texts).loss))
    for other in found[1:]:
        assert_same_gradients(other, found[0])


def test_a_configuration_with_the_old_end_token_reads_the_largest_number():
    backbone = tiny.clip(old=True)
    model = make(backbone=backbone, position=1)
    vectors = stacked(model)
    expected = scores_by_hand(
        backbone, texts_by_hand(backbone, vectors, 1), images_by_hand(backbone, tiny.images())
    )
    assert_close(logits_of(model), expected, **EXACT)
    words = [[2, 11, 2], [10, 2], [2, 14, 15, 16], [0, 17]]  # what the configuration calls special is a word
    expected = scores_by_hand(
        backbone, texts_by_hand(backbone, vectors, 1, words), images_by_hand(backbone, tiny.images())
    )
    assert_close(logits_of(model, words=words), expected, **EXACT)


def test_siglips_prompt_takes_the_place_of_padding():
    model = make("siglip", position=1)
    placed = model.insert_prompt(**given(model.backbone))
    assert placed.embeds.shape == (4, tiny.ROOM, tiny.WIDTH)
    for words, rows in zip(WORDS, placed.embeds):
        assert_close(rows, text_rows(model.backbone, words, model.prompt.vectors, 1)[0], **EXACT)


def test_the_rows_of_clips_prompt_are_where_insert_prompt_says():
    model = make(position=2, depth=2)
    placed = model.insert_prompt(**given(model.backbone))
    assert placed.prompt_positions.tolist() == [[1, 2, 3 + len(words)] for words in WORDS]
    for words, rows, mask in zip(WORDS, placed.embeds, placed.mask):
        wanted = text_rows(model.backbone, words, model.prompt.vectors[0], 2)[0]
        assert_close(rows[: len(wanted)], wanted, **EXACT)
        assert mask.tolist() == [1] * len(wanted) + [0] * (len(rows) - len(wanted))
    assert_close(placed.deeper, model.prompt.vectors[1:], **EXACT)


def test_the_longest_text_that_fits_and_one_more_word():
    most = tiny.ROOM - LENGTH
    for kind in MODELS:
        model = make(kind)
        room = most - 1 - (kind == "clip")
        texts = [[5 + i for i in range(room)], [10, 11]]
        found = logits_of(model, words=texts)
        expected = texts_by_hand(model.backbone, stacked(model), LENGTH, texts)
        images = images_by_hand(model.backbone, tiny.images())
        assert_close(found, scores_by_hand(model.backbone, expected, images), **EXACT)
        with pytest.raises(
            ValueError, match=rf"longest text has {most + 1} tokens, with 3 prompt vectors 25, .*24 pos"
        ):
            logits_of(model, words=[[5 + i for i in range(room + 1)], [10, 11]])
        with pytest.raises(ValueError, match="longest text has 22 tokens"):
            ids, mask = tiny.texts([[5 + i for i in range(room + 1)]], kind == "siglip")
            model.set_classes(ids, mask)


def rows(*texts):
    return torch.tensor(texts)


S, E = tiny.START, tiny.END


@pytest.mark.parametrize("given", [["a cat", "a dog"], {"input_ids": rows([S, 10, E])}])
@pytest.mark.parametrize("way", ["set_classes", "__call__"])
def test_captions_that_no_processor_has_seen_are_refused(way, given):
    model = dp.prompted(tiny.clip(), dp.PromptConfig(length=2))
    more = {"pixel_values": tiny.images(1)} if way == "__call__" else {}
    with pytest.raises(
        TypeError, match=r"input_ids is a (list|dict), expected a tensor: processor\(text=captions"
    ):
        getattr(model, way)(given, **more)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (rows([S, 10, 11]), None, "row 0 has no end token, or padding in front of it"),
        (rows([S, 10, E], [S, 10, 11]), None, "row 1 has no end token"),
        (rows([S, 10, 11, E]), rows([1, 1, 0, 1]), "row 0 has no end token, or padding in front of it"),
        (rows([S, 10, 11, E]), rows([0, 0, 0, 0]), "row 0 has no end token"),
        (rows([S, 10, E], [10, 11, E]), None, "rows with and without a start token, expected all or none"),
        (
            rows([S, 10, E])[0],
            None,
            r"input_ids has shape \(3,\) and dtype torch.int64, expected integers \(texts, ",
        ),
        (torch.rand(2, 3), None, r"input_ids has shape \(2, 3\) and dtype torch.float32"),
        (torch.zeros(0, 3).long(), None, r"input_ids has shape \(0, 3\)"),
        (
            rows([S, 10, E]),
            rows([1, 1]),
            r"attention_mask has shape \(1, 2\), expected \(1, 3\) as input_ids",
        ),
    ],
)
def test_texts_that_cannot_be_read_are_named(ids, mask, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        model(ids, tiny.images(), mask)
    with pytest.raises(ValueError, match=message):
        model.set_classes(ids, mask)
    assert model.class_count is None


def test_siglip_wants_its_padding_seen():
    model = make("siglip")
    ids, _ = tiny.texts(WORDS, True)
    with pytest.raises(
        ValueError, match="attention_mask hides tokens, expected none: SiglipModel is trained to see"
    ):
        model(ids, tiny.images(), (ids != tiny.EOS).long())
    assert torch.equal(model(ids, tiny.images(), torch.ones_like(ids)).logits_per_image, logits_of(model))


def test_texts_without_words_and_without_a_start_token():
    for kind in MODELS:
        model, words = make(kind, position=1), [[], [10, 11]]
        texts = texts_by_hand(model.backbone, stacked(model), 1, words)
        expected = scores_by_hand(model.backbone, texts, images_by_hand(model.backbone, tiny.images()))
        assert_close(logits_of(model, words=words), expected, **EXACT)
    model = make(position=1)
    found = model(rows([10, 11, E], [12, E, E]), tiny.images()).text_embeds
    table, vectors = model.backbone.text_model.embeddings.token_embedding.weight, model.prompt.vectors
    for own, words in zip(found, ([10, 11], [12])):
        sequence = torch.cat([vectors[:1], table[words], vectors[1:], table[[E]]])
        assert_close(own, read_text(model.backbone, sequence, vectors[None], None), **EXACT)


# --- 9: where order matters ---


@pytest.mark.parametrize("towers", ["vision", "both", "coupled"])
@pytest.mark.parametrize("kind", MODELS)
def test_the_order_of_image_vectors_changes_nothing(kind, towers):
    model, pixels = make(kind, towers=towers, depth=1), tiny.images()
    usual = model.image_features(pixels)
    vectors = model.prompt.vision.vectors if towers == "both" else model.prompt.vectors
    before = vectors.detach().clone()
    for order in itertools.permutations(range(LENGTH)):
        with torch.no_grad():
            vectors.copy_(before[..., list(order), :])
        assert_close(model.image_features(pixels), usual, **EXACT)
    with torch.no_grad():
        vectors[..., 0, 0] += 1  # not all entries: layer norms take that away
    assert (model.image_features(pixels) - usual).abs().max() > 1e-3


@pytest.mark.parametrize("level", ["task", "instance"])
def test_a_learned_position_of_an_image_prompt_gets_a_warning(level):
    with pytest.warns(
        UserWarning, match=f"position='{level}' has nothing to learn on CLIPModel.*{ORDER_BLIND}"
    ) as found:
        model = dp.prompted(tiny.clip(), dp.PromptConfig(length=LENGTH, position=level, towers="vision"))
    assert found[0].filename == __file__  # the caller's line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for towers in ("text", "both", "coupled"):
            model.add_prompt(towers, dp.PromptConfig(length=LENGTH, position=level, towers=towers))


@pytest.mark.parametrize("kind", MODELS)
def test_the_split_of_a_text_prompt_is_real(kind):
    found = [logits_of(make(kind, position=split)) for split in range(LENGTH + 1)]
    assert all((one - other).abs().max() > 1e-3 for one, other in itertools.combinations(found, 2))


# --- what cannot work says so ---


def pair(model, **options):
    return model(pixel_values=tiny.images(), **given(model.backbone), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 4}, r"depth=4 is too deep, expected 1\.\.3: CLIPModel's layers"),
        ({"entry": "before-positions"}, "entry='before-positions' is not for CLIPModel, expected None"),
        ({"size": "task", "towers": "vision"}, "size='task' is not valid here, expected 'full' or a number"),
        ({"size": "task", "towers": "coupled"}, "size='task' is not valid here"),
        (
            {"summary": "encoder", "towers": "vision"},
            "summary='encoder' is not valid here, expected 'embeddings'",
        ),
        ({"summary": "image", "towers": "both"}, "summary='image' is not valid here"),
        (
            {"vector": "instance", "towers": "coupled"},
            "vector='instance' is not valid here, expected 'single' or",
        ),
        ({"vector": "task", "tasks": ["a", "b"], "towers": "coupled"}, "vector='task' is not valid here"),
        (
            {"towers": "audio"},
            "towers='audio' is unknown, expected None, 'text', 'vision', 'both', 'coupled'",
        ),
    ],
)
def test_configurations_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_what_other_models_cannot_have():
    for options, message in [
        (
            {"towers": "both"},
            "towers='both' is for image-text models, expected None: ViTForImageClassification",
        ),
        ({"summary": "image"}, "summary='image' is for image-text models, expected 'embeddings'"),
    ]:
        with pytest.raises(ValueError, match=message):
            dp.prompted(tiny.vit(), dp.PromptConfig(length=LENGTH, **options))
        with pytest.raises(ValueError, match=message.replace("ViTForImageClassification", "BertModel")):
            dp.prompted(tiny.bert(), dp.PromptConfig(length=LENGTH, **options))
    with pytest.raises(ValueError, match="size='task' is not valid here"):
        make("siglip", size="task")
    with pytest.raises(
        TypeError,
        match="cannot take a prompt: .*model_type='clip_text_model' is not known as a model of texts",
    ):
        dp.prompted(type(tiny.clip().text_model)(tiny.clip().config.text_config))


@pytest.mark.parametrize(
    ("options", "call", "error", "message"),
    [
        ({}, lambda m: m(), ValueError, "expected one of pixel_values and image_embeds, got none"),
        (
            {},
            lambda m: pair(m, image_embeds=torch.zeros(3, 8)),
            ValueError,
            "pixel_values and image_embeds, got both",
        ),
        (
            {},
            lambda m: m(pixel_values=tiny.images()),
            ValueError,
            "input_ids=None, expected texts: give them, or set_",
        ),
        (
            {},
            lambda m: pair(m, labels=torch.tensor([0, 1])),
            ValueError,
            r"labels has shape \(2,\).*integers \(3,\)",
        ),
        ({}, lambda m: pair(m, labels=torch.rand(3)), ValueError, "labels has shape.*dtype torch.float32"),
        (
            {},
            lambda m: pair(m, return_loss=True),
            ValueError,
            "return_loss=True with 3 images and 4 texts, expected p",
        ),
        (
            {},
            lambda m: pair(m, return_loss=True, labels=LABELS),
            ValueError,
            "labels and return_loss=True, expected on",
        ),
        (
            {},
            lambda m: pair(m, output_attentions=True),
            TypeError,
            r"PromptedCLIP\.forward\(\) got an unexpected keyword argument 'output_attentions'",
        ),
        (
            {},
            lambda m: m.generate(),
            AttributeError,
            "'PromptedCLIPModel' object has no attribute 'generate'",
        ),
        (
            {},
            lambda m: m(image_embeds=torch.zeros(3, 9), **given(m.backbone)),
            ValueError,
            r"image_embeds has shape \(3, 9\), expected \(batch, 8\)",
        ),
        (
            {},
            lambda m: m(pixel_values=tiny.images()[0], **given(m.backbone)),
            ValueError,
            r"pixel_values has shape \(3, 8, 8\) and dtype torch.float64, expected floating point \(batch, 3, ",
        ),
        (
            {"towers": "vision"},
            lambda m: m(image_embeds=torch.zeros(3, 8), **given(m.backbone)),
            ValueError,
            "image_embeds cannot be used with towers='vision'",
        ),
        (
            {"towers": "both"},
            lambda m: m.cache_images([]),
            ValueError,
            "cache_images cannot be used with towers='both'",
        ),
        (
            {"towers": "vision"},
            lambda m: m.insert_prompt(),
            ValueError,
            "towers='vision' has no prompt in a text",
        ),
        (
            {"position": "instance", "summary": "image"},
            lambda m: m.text_features(**given(m.backbone)),
            ValueError,
            "pixel_values=None, expected images: they decide about the texts' prompt",
        ),
        (
            {},
            lambda m: setattr(m, "shortcuts", ["short"]),
            ValueError,
            r"shortcuts=\['short'\] is not valid, expected",
        ),
        (
            {},
            lambda m: setattr(m, "shortcuts", "share"),
            ValueError,
            "shortcuts='share' is not valid, expected some",
        ),
        (
            {"position": "task", "tasks": ["a", "b"]},
            lambda m: pair(m, task_ids=["a", "b", "c", "a"]),
            ValueError,
            r"task_ids holds 'c', expected some of \['a', 'b'\]",
        ),
        (
            {"position": "task", "tasks": ["a", "b"]},
            lambda m: pair(m, task_ids=[0, 1]),
            ValueError,
            r"task_ids has shape \(2,\) and dtype torch.int64, expected integers \(4,\)",
        ),
    ],
)
def test_calls_that_cannot_work_are_named(options, call, error, message):
    with pytest.raises(error, match=message):
        call(make(**options))
