"""Prompted image-text models in the tools around them: training, checkpoints, pipelines, compilation, retrieval."""

import copy
import inspect
import math
import pickle
import re

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
    given,
    gradients,
    make,
)
from PIL import Image
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments, pipeline

import dplearn as dp
from dplearn import zoo

TOWERS = ["text", "vision", "both", "coupled"]
CLASSES = ["cat", "dog", "house", "arrow", "star"]


def small(kind="clip", towers="text", **options):
    """In float32, as in real training, with classes set."""
    torch.manual_seed(5)
    backbone = MODELS[kind](dtype=torch.float32)
    model = dp.prompted(backbone, dp.PromptConfig(length=LENGTH, towers=towers, **tiny.SAMPLED | options))
    model.set_classes(*tiny.texts(WORDS, kind == "siglip"))
    return model


class Examples(torch.utils.data.Dataset):
    def __init__(self, cached=None):
        pixels = tiny.images(8).float()
        self.items = [
            {"pixel_values": image, "labels": i % 4, "file": "left out"} for i, image in enumerate(pixels)
        ]
        self.items = self.items if cached is None else cached.cache_images(self.items, batch_size=3)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def arguments(folder, **options):
    usual = dict(
        max_steps=4, per_device_train_batch_size=4, learning_rate=0.1, report_to=[], use_cpu=True, seed=1
    )
    return TrainingArguments(folder, **usual | {"save_strategy": "no", "disable_tqdm": True} | options)


# --- 7: what is trained, saved and loaded ---


@pytest.mark.parametrize("options", [{"depth": 3}, {"vector": "task", "pool_size": 2, "position": 1}])
@pytest.mark.parametrize("towers", TOWERS)
@pytest.mark.parametrize("kind", MODELS)
def test_training_changes_the_prompt_and_not_one_bit_of_the_backbone(kind, towers, options):
    model = small(kind, towers, **options).train()
    before = copy.deepcopy(model.backbone.state_dict())
    start = {name: value.detach().clone() for name, value in model.trainable_parameters().items()}
    optimizer = torch.optim.SGD(model.trainable_parameters().values(), lr=0.1)
    for _ in range(2):
        model(pixel_values=tiny.images().float(), labels=LABELS).loss.backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert all((value != start[name]).any() for name, value in model.trainable_parameters().items())
    assert set(model.state_dict()) == {*model.trainable_parameters(), "_extra_state"}
    assert not any("forward" in vars(module) for module in model.backbone.modules())


def test_the_backbone_is_left_as_it_was_found_after_an_error(monkeypatch):
    model = make("siglip", towers="coupled", depth=3)
    usual = model.backbone(pixel_values=tiny.images(), **given(model.backbone)).logits_per_image

    def fails(*_, **__):
        raise ArithmeticError

    for tower in (model.backbone.text_model, model.backbone.vision_model):
        with monkeypatch.context() as patch:
            patch.setattr(tower.encoder.layers[2].mlp, "forward", fails)
            with pytest.raises(ArithmeticError):
                model(pixel_values=tiny.images(), **given(model.backbone))
    assert not any("forward" in vars(module) for module in model.backbone.modules())
    found = model.backbone(pixel_values=tiny.images(), **given(model.backbone)).logits_per_image
    assert torch.equal(found, usual)


KINDS_OF_PROMPTS = [
    {"towers": "text", "position": "instance", "vector": "task"},
    {"towers": "text", "position": "instance", "summary": "image"},
    {"towers": "vision", "depth": 3},
    {"towers": "vision", "vector": "instance", "summary": "image"},
    {"towers": "both", "depth": 2, "size": 2},
    {"towers": "coupled", "depth": 2, "position": "task", "estimator": "exact"},
]


@pytest.mark.parametrize("options", KINDS_OF_PROMPTS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_saved_prompt_comes_back_with_the_same_answers(kind, options, tmp_path):
    model, pixels = make(kind, **options), tiny.images()
    model.save_pretrained(tmp_path)
    loaded = dp.from_pretrained(tmp_path, MODELS[kind]()).eval()
    assert loaded.prompt_config == model.prompt_config and loaded.class_count is None
    call = {"pixel_values": pixels} | given(model.backbone)
    assert torch.equal(loaded(**call).logits_per_image, model(**call).logits_per_image)
    model.load_prompt("again", tmp_path)
    model.use_prompt("again")
    assert torch.equal(loaded(**call).logits_per_image, model(**call).logits_per_image)
    assert "Traceback" not in model.summary()


@pytest.mark.parametrize("towers", TOWERS)
def test_a_backbone_is_found_by_its_name(towers, tmp_path):
    backbone, processor = zoo.load("clip-mini")
    model = dp.prompted(backbone, dp.PromptConfig(length=LENGTH, towers=towers)).eval()
    model.save_pretrained(tmp_path)
    loaded = dp.from_pretrained(tmp_path)
    pixels = torch.rand(2, 3, 28, 28)
    texts = processor.tokenizer(CLASSES, padding=True, return_tensors="pt")
    one, other = (m(pixel_values=pixels, **texts).logits_per_image for m in (model, loaded))
    assert type(loaded) is type(model) and torch.equal(one, other)


@pytest.mark.parametrize("towers", TOWERS)
def test_a_prompt_of_another_backbone_is_refused(towers, tmp_path):
    make(towers=towers, depth=3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type='clip', this one has model_type='siglip'"):
        dp.from_pretrained(tmp_path, tiny.siglip())
    for name, size in (
        ("vision_width", dict(tiny.VISION, hidden_size=16)),
        ("patch", dict(tiny.VISION, patch_size=2)),
    ):
        other = type(tiny.clip())(
            type(tiny.clip().config)(
                text_config=tiny.clip().config.text_config.to_dict(), vision_config=size, projection_dim=8
            )
        )
        with pytest.raises(ValueError, match=f"trained for a backbone with {name}=.*, this one has {name}="):
            dp.from_pretrained(tmp_path, other)
    wider = tiny.clip().config.text_config.to_dict() | {"hidden_size": 32}
    other = type(tiny.clip())(
        type(tiny.clip().config)(text_config=wider, vision_config=tiny.VISION, projection_dim=8)
    )
    with pytest.raises(ValueError, match="trained for a backbone with width=16, this one has width=32"):
        dp.from_pretrained(tmp_path, other)


CARDS = {
    "text": ("3 vectors of width 16", "Where: around the input", None, 48),
    "vision": (
        "3 vectors of width 12",
        "Where: in the image, behind the patches, where no order matters.",
        None,
        36,
    ),
    "both": ("3 vectors of width 16", "- In the image: vectors of its own for one layer.", 36, 84),
    "coupled": (
        "3 vectors of width 16",
        "- In the image: a linear map of the text vectors for one layer.",
        204,
        252,
    ),
}


@pytest.mark.parametrize("towers", CARDS)
def test_the_card_and_the_summary_tell_where_the_prompt_stands(towers, tmp_path):
    vectors, place, image, trained = CARDS[towers]
    model = make(towers=towers, position=1)
    model.save_pretrained(tmp_path)
    card, summary = (tmp_path / "README.md").read_text(), model.summary()
    assert vectors in card and place in card and f"Trained parameters: {trained}." in card
    row = re.search(r"^image +(\d+)  ", summary, re.MULTILINE)
    assert ("- In the image:" in card) == (image is not None) and (row and int(row[1])) == image
    assert f"trained     {trained} parameters" in summary
    model = make(position="instance", summary="image")
    assert "decided for each image from the model's view of it" in model.summary()


def test_an_image_summary_of_another_width_is_refused_by_name(tmp_path):
    make(position="instance", summary="image").save_pretrained(tmp_path)
    config = tiny.clip().config
    other = type(tiny.clip())(
        type(config)(
            text_config=config.text_config.to_dict(),
            vision_config=config.vision_config.to_dict(),
            projection_dim=6,
        )
    )
    with pytest.raises(
        ValueError, match=r"tensor 'position.controller.linear.weight'.* expected shape \(4, 6\)"
    ):
        dp.from_pretrained(tmp_path, other)


def test_prompts_of_all_towers_share_a_backbone():
    singles = {towers: make(towers=towers, depth=2, position=1) for towers in TOWERS}
    model = dp.prompted(tiny.clip(), dp.PromptConfig(length=2)).double().eval()
    model.set_classes(*tiny.texts(WORDS))
    usual = model(pixel_values=tiny.images()).logits
    for towers, single in singles.items():
        model.add_prompt(towers, single.prompt_config, vectors=single.prompt.vectors.detach())
        model.use_prompt(towers)
        model.prompt.double()
        model.prompt.load_state_dict(single.prompt.state_dict())
    with torch.no_grad():
        for towers in (*TOWERS, *reversed(TOWERS), "default"):
            model.use_prompt(towers)
            found = model(pixel_values=tiny.images()).logits
            if towers == "default":
                assert_close(found, usual, **CLOSE)
            else:
                wanted = singles[towers](pixel_values=tiny.images(), **given(model.backbone))
                assert_close(found, wanted.logits_per_image, **CLOSE)


def test_a_prompt_of_another_width_is_refused():
    with pytest.raises(
        ValueError, match=r"vectors has shape \(3, 16\), expected \(3, 12\).*CLIPModel has width 12"
    ):
        dp.prompted(tiny.clip(), dp.PromptConfig(length=3, towers="vision"), vectors=torch.zeros(3, 16))
    with pytest.raises(ValueError, match=r"vectors has shape \(3, 12\), expected \(2, 3, 16\)"):
        dp.prompted(
            tiny.clip(), dp.PromptConfig(length=3, towers="both", depth=2), vectors=torch.zeros(3, 12)
        )


def test_unload_gives_the_backbone_back():
    backbone = tiny.clip().train()
    backbone.logit_scale.requires_grad_(False)
    model = make(backbone=backbone, towers="coupled", depth=2).train()
    model(pixel_values=tiny.images(), labels=LABELS, **given(backbone)).loss.backward()
    model.gradient_checkpointing_enable()
    assert model.unload() is backbone and backbone.training
    frozen = [name for name, p in backbone.named_parameters() if not p.requires_grad]
    assert frozen == ["logit_scale"] and not backbone.is_gradient_checkpointing
    with pytest.raises(RuntimeError, match="this model was unloaded"):
        model(pixel_values=tiny.images(), **given(backbone))


def test_the_first_vectors():
    backbone = tiny.clip()
    table = backbone.text_model.embeddings.token_embedding.weight.float()
    for towers in ("text", "both", "coupled"):
        vectors = dp.prompted(backbone, dp.PromptConfig(length=5, towers=towers)).prompt.vectors
        assert all((table == row).all(1).any() for row in vectors)
    bound = math.sqrt(6 / (3 * 4 * 4 + 12))
    for towers in ("vision", "both"):
        prompt = (
            dp.prompted(backbone, dp.PromptConfig(length=200, towers=towers)).prompt
            if towers == "vision"
            else (dp.prompted(tiny.clip(), dp.PromptConfig(length=20, depth=3, towers=towers)).prompt.vision)
        )
        assert 0.9 * bound < prompt.vectors.abs().max() <= bound
    vectors = dp.prompted(
        backbone, dp.PromptConfig(length=200, towers="vision", init="normal")
    ).prompt.vectors
    assert 0.015 < vectors.std() < 0.025


def test_vectors_of_images_are_in_the_group_of_vectors():
    groups = dp.parameter_groups(make(towers="both", position="task"), 0.3, 0.01)
    assert [(len(group["params"]), group["lr"]) for group in groups] == [(2, 0.3), (1, 0.01)]
    groups = dp.parameter_groups(make(towers="coupled"), 0.3, 0.01)
    assert [(len(group["params"]), group["lr"]) for group in groups] == [(1, 0.3), (2, 0.01)]


# --- what it shares with other prompted models, and what it does not have ---


@pytest.mark.parametrize("kind", MODELS)
def test_arguments_have_one_order_that_of_the_backbone(kind):
    model = make(kind)
    methods = (model.forward, model.classify, model.insert_prompt, model.decide, model.summarize)
    shared = ["input_ids", "pixel_values", "attention_mask", "image_embeds", "task_ids"]
    theirs = list(inspect.signature(model.backbone.forward).parameters)
    for method in methods:
        names = list(inspect.signature(method).parameters)
        count = 4 if method == model.summarize else 5
        assert names[:count] == shared[:count] and names[:3] == theirs[:3]
    for method, usual in (
        (model.text_features, "get_text_features"),
        (model.image_features, "get_image_features"),
    ):
        first = list(inspect.signature(getattr(model.backbone, usual)).parameters)[0]
        names = list(inspect.signature(method).parameters)
        assert names[0] == first and [name for name in shared if name in names] == [
            name for name in names if name in shared
        ]
    given_by_place = (*given(model.backbone).values(),)
    call = (given_by_place[0], tiny.images(), *given_by_place[1:])
    named = dict(pixel_values=tiny.images(), **given(model.backbone))
    assert torch.equal(model(*call).logits_per_image, model(**named).logits_per_image)
    assert torch.equal(model.classify(*call), model.classify(**named))
    assert torch.equal(model.insert_prompt(*call).embeds, model.insert_prompt(**named).embeds)


def test_it_is_no_text_model_and_has_nothing_to_generate():
    model = make()
    assert not isinstance(model, dp.PromptedModel) and not hasattr(model, "generate")
    assert type(model).__name__ == "PromptedCLIPModel" and isinstance(model, dp.PromptedCLIP)
    with pytest.raises(
        TypeError, match="model is a PromptedCLIPModel, expected a PromptedModel that reads a text or an"
    ):
        dp.decision_report(model, [])


@pytest.mark.parametrize("towers", TOWERS)
def test_a_model_that_is_pickled_or_copied_keeps_its_class_and_answers(towers):
    model = make(towers=towers, depth=2)
    model.set_classes(*tiny.texts(WORDS))
    usual = model(pixel_values=tiny.images()).logits
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(other) is type(model)
        assert torch.equal(other(pixel_values=tiny.images()).logits, usual)


@pytest.mark.parametrize("options", [{}, {"summary": "image"}, {"towers": "vision", "vector": "instance"}])
def test_summaries_are_standardized_over_examples_with_other_columns(options):
    options = options if "vector" in options else options | {"position": "instance"}
    model, pixels = make(**options), tiny.images(5)
    part = model.prompt.parts["vector" if "vector" in options else "position"]
    batch = {"pixel_values": pixels, "labels": torch.zeros(5).long(), "file": ["left out"] * 5}
    model.fit_summaries(iter([batch | given(model.backbone)]))
    seen = model.summarize(pixel_values=pixels, **given(model.backbone))
    normal = torch.nn.functional.layer_norm(seen, seen.shape[1:])
    assert_close(part.controller.standardizer.mean, normal.mean(0), **EXACT)
    assert_close(part.controller.standardizer.variance, normal.var(0, correction=0), **EXACT)
    with pytest.raises(TypeError, match=r"file is not an argument of CLIPModel\.forward, nor of a prompt"):
        model.summarize(**batch)


@pytest.mark.parametrize("kind", MODELS)
def test_texts_without_a_prompt_ask_for_no_image_that_decides(kind):
    model = make(kind, towers="vision", vector="instance")
    texts = given(model.backbone)
    usual = model.backbone(pixel_values=tiny.images(), **texts).text_embeds
    assert_close(model.text_features(**texts), usual, **EXACT)


def test_features_of_images_of_any_length_have_one_summary():
    model = make(position="instance", summary="image")
    embeds = model.image_features(tiny.images())
    assert_close(model.summarize(image_embeds=7 * embeds), embeds, **EXACT)


@pytest.mark.parametrize("dropout", [False, True])
def test_classifying_while_training_changes_nothing(dropout):
    model = make(backbone_dropout=dropout, position="task").train()
    model.set_classes(*tiny.texts(WORDS))
    adapter = model.adapter
    probabilities = model.classify(pixel_values=tiny.images())
    assert model.adapter is adapter and adapter.model is model.backbone
    assert adapter.texts.tower is model.backbone.text_model and model.training
    assert model.backbone.text_model.training == dropout
    model.prompt.vectors.data.mul_(2)  # as some optimizers do: nothing was kept that knows of it
    found = model.classify(pixel_values=tiny.images())
    assert (found - probabilities).abs().max() > 1e-4
    assert_close(found, model.eval().classify(pixel_values=tiny.images()), **EXACT)


# --- 8: the Trainer ---


def correct(prediction):
    assert prediction.predictions.shape == (8, 4)
    return {"correct": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


@pytest.mark.parametrize(
    ("towers", "options"),
    [
        ("text", {"position": "task"}),
        ("text", {"position": "instance", "summary": "image"}),
        ("text", {"size": "task", "size_cost": 0.1, "estimator": "score-function"}),
        ("vision", {"depth": 3}),
        ("both", {}),
        ("coupled", {"depth": 2, "position": "task", "estimator": "exact"}),
    ],
)
@pytest.mark.parametrize("kind", ["clip"])
def test_the_trainer_trains_a_classifier_of_images(kind, towers, options, tmp_path):
    model = small(kind, towers, **options)
    before = copy.deepcopy(model.backbone.state_dict())
    start = {name: value.detach().clone() for name, value in model.trainable_parameters().items()}
    trainer = Trainer(
        model,
        arguments(tmp_path, max_steps=6, learning_rate=0.02),
        train_dataset=Examples(),
        eval_dataset=Examples(),
        compute_metrics=correct,
    )
    assert math.isfinite(trainer.train().training_loss)
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert all((value != start[name]).any() for name, value in model.trainable_parameters().items())
    metrics = trainer.evaluate()
    model.eval()
    pixels, labels = tiny.images(8).float(), torch.arange(8) % 4
    with torch.no_grad():
        expected = model(pixel_values=pixels, labels=labels)
    assert metrics["eval_loss"] == pytest.approx(float(expected.loss), abs=1e-4)
    assert metrics["eval_correct"] == float((expected.logits.argmax(1) == labels).double().mean())


def test_the_trainer_on_features_of_images_takes_the_same_steps(tmp_path):
    found = []
    for cached in (False, True):
        model = small(position="task")
        data = Examples(model if cached else None)
        assert ("image_embeds" in data[0]) == cached
        trainer = Trainer(
            model, arguments(tmp_path), train_dataset=data, eval_dataset=data, compute_metrics=correct
        )
        trainer.train()
        found.append((trainer.evaluate()["eval_loss"], model.prompt.vectors.detach().clone()))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert_close(found[0][1], found[1][1], rtol=0, atol=1e-5)


def test_a_resumed_run_is_the_run_that_did_not_stop(tmp_path):
    options = dict(save_strategy="steps", save_steps=2)
    straight = small(towers="coupled", position="task", depth=1)
    Trainer(straight, arguments(tmp_path / "a", **options), train_dataset=Examples()).train()
    resumed = small(towers="coupled", position="task", depth=1)
    trainer = Trainer(resumed, arguments(tmp_path / "b", **options), train_dataset=Examples())
    trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for name, value in straight.trainable_parameters().items():
        assert torch.equal(resumed.trainable_parameters()[name], value), name


def test_the_trainer_goes_back_to_the_best_prompt(tmp_path):
    model = small(position=1)
    options = dict(save_strategy="steps", eval_strategy="steps", save_steps=2, eval_steps=2, max_steps=6)
    # Training makes the loss smaller; "the best" is the largest here, so that it is not the last.
    best = dict(load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True)
    trainer = Trainer(
        model, arguments(tmp_path, **options | best), train_dataset=Examples(), eval_dataset=Examples()
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 3 and losses.index(max(losses)) < 2
    assert trainer.evaluate()["eval_loss"] == pytest.approx(max(losses), abs=1e-6)


def test_a_loss_function_of_ones_own_sees_the_draws_of_a_training_step():
    model = make(position="task", estimator="exact").train()
    output = model(pixel_values=tiny.images(), **given(model.backbone))
    assert output.loss is None and output.draws.log_probs.shape == (LENGTH + 1, 1)
    assert output.logits_per_image.shape == (3 * (LENGTH + 1), 4)


# --- clip-mini, its processor, pipelines ---


@pytest.fixture(scope="module")
def icons():
    """Pictures of simple shapes; what they show does not matter here."""
    generator = torch.Generator().manual_seed(0)
    pixels = (torch.rand(4, 40, 40, 3, generator=generator) * 255).byte().numpy()
    return [Image.fromarray(picture) for picture in pixels]


def in_words(position, context="an icon of"):
    """clip-mini with a prompt that starts as these words."""
    backbone, processor = zoo.load("clip-mini")
    ids = processor.tokenizer(context, add_special_tokens=False)["input_ids"]
    vectors = backbone.text_model.embeddings.token_embedding.weight[ids].detach().clone()
    config = dp.PromptConfig(length=len(ids), position=position)
    return dp.prompted(backbone, config, vectors=vectors).eval(), processor


def test_a_prompt_of_the_words_an_icon_of_is_the_zero_shot_classifier(icons):
    model, processor = in_words("prefix")
    full = processor(
        text=[f"an icon of {name}" for name in CLASSES], images=icons, padding=True, return_tensors="pt"
    )
    bare = processor(text=CLASSES, padding=True, return_tensors="pt")
    pixels = full["pixel_values"]
    with torch.no_grad():
        wanted = model.backbone(**full)
        found = model(pixel_values=pixels, **bare)
        assert_close(found.logits_per_image, wanted.logits_per_image, rtol=0, atol=1e-4)
        assert_close(found.text_embeds, wanted.text_embeds, rtol=0, atol=1e-5)
        assert_close(found.image_embeds, wanted.image_embeds, rtol=0, atol=1e-5)
        model.set_classes(**bare)
        assert_close(model(pixel_values=pixels).logits, wanted.logits_per_image, rtol=0, atol=1e-4)
        assert_close(
            model.classify(pixel_values=pixels), wanted.logits_per_image.softmax(1), rtol=0, atol=1e-5
        )
        # Retrieval: texts for an image, images for a text.
        texts, images = model.text_features(**bare), model.image_features(pixels)
        ranks = model.similarity(images, texts).argsort(1, descending=True)
        assert torch.equal(ranks, wanted.logits_per_image.argsort(1, descending=True))
        ranks = model.similarity(images, texts).T.argsort(1, descending=True)
        assert torch.equal(ranks, wanted.logits_per_text.argsort(1, descending=True))


def test_a_prompted_model_works_in_the_zero_shot_pipeline(icons):
    model, processor = in_words("prefix", "a drawing of")
    with torch.no_grad():
        model.prompt.vectors.add_(torch.randn_like(model.prompt.vectors) * 0.05)
    task = "zero-shot-image-classification"
    parts = dict(tokenizer=processor.tokenizer, image_processor=processor.image_processor, device="cpu")
    found = pipeline(task, model=model, **parts)(icons, candidate_labels=CLASSES, hypothesis_template="{}")
    inputs = processor(text=CLASSES, images=icons, padding=True, return_tensors="pt")
    wanted = model.classify(**inputs)
    for row, scores in zip(found, wanted, strict=True):
        assert [entry["label"] for entry in row] == [CLASSES[i] for i in scores.argsort(descending=True)]
        assert [entry["score"] for entry in row] == pytest.approx(
            sorted(scores.tolist(), reverse=True), abs=1e-5
        )
    plain = pipeline(task, model=model.backbone, **parts)(
        icons, candidate_labels=CLASSES, hypothesis_template="{}"
    )
    assert plain[0][0]["score"] != pytest.approx(found[0][0]["score"], abs=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_the_loss_of_pairs_is_the_backbones_own(kind):
    backbone, prompt = MODELS[kind](), [20, 21, 22]
    vectors = backbone.text_model.embeddings.token_embedding.weight[prompt].detach().clone()
    model = dp.prompted(backbone, dp.PromptConfig(length=3, position=1), vectors=vectors)
    pixels, words = tiny.images(3), WORDS[:3]
    ids, mask = tiny.texts(words, kind == "siglip", around=(1, prompt))
    wanted = backbone(input_ids=ids, attention_mask=mask, pixel_values=pixels, return_loss=True)
    for train in (False, True):
        found = model.train(train)(pixel_values=pixels, return_loss=True, **given(backbone, words))
        assert_close(found.loss, wanted.loss, **EXACT)
        assert_close(found.logits_per_image, wanted.logits_per_image, **EXACT)
    scores = wanted.logits_per_image
    assert_close(
        model.classify(pixel_values=pixels, **given(backbone, words)),
        scores.softmax(1) if kind == "clip" else scores.sigmoid(),
        **EXACT,
    )


# --- half precision, recomputation, compilation ---


@pytest.mark.parametrize("towers", TOWERS)
@pytest.mark.parametrize("kind", MODELS)
def test_half_precision_and_autocast_stay_near(kind, towers):
    model = small(kind, towers, depth=2, position=1)
    pixels = tiny.images().float()
    expected = model(pixel_values=pixels, labels=LABELS)
    near = 0.1 * expected.logits.abs().max()
    half = small(kind, towers, depth=2, position=1)
    half.backbone.bfloat16()
    half.prompt.load_state_dict(model.prompt.state_dict())
    output = half(pixel_values=pixels, labels=LABELS)
    assert output.logits.dtype == torch.bfloat16 and half.prompt.vectors.dtype == torch.float32
    assert (output.logits - expected.logits).abs().max() < near
    output.loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().max() > 0 for p in half.prompt.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        output = model(pixel_values=pixels, labels=LABELS)
    assert (output.logits - expected.logits).abs().max() < near
    output.loss.backward()
    assert all(p.grad.abs().max() > 0 for p in model.prompt.parameters())


@pytest.mark.parametrize("towers", TOWERS)
@pytest.mark.parametrize("kind", MODELS)
def test_recomputed_activations_give_the_same_gradients(kind, towers):
    found = []
    for recompute in (False, True):
        model = make(kind, towers=towers, depth=1, backbone_dropout=True).train()  # rates are 0
        if recompute:
            model.gradient_checkpointing_enable()
        runs = []
        for tower in (model.backbone.text_model, model.backbone.vision_model):
            for layer in tower.encoder.layers:
                layer.layer_norm1.register_forward_pre_hook(lambda module, _, runs=runs: runs.append(module))
        loss = model(pixel_values=tiny.images(), labels=LABELS, **given(model.backbone)).loss
        forward = len(runs)
        found.append(gradients(model, loss))
        assert (len(runs) > forward) == recompute
    for name, gradient in found[0].items():
        assert_close(gradient, found[1][name], **CLOSE)


COMPILED = [
    ("clip", {"position": 1, "depth": 2}),
    ("clip", {"position": "instance", "vector": "task"}),
    ("clip", {"position": "instance", "summary": "image"}),
    ("clip", {"towers": "vision"}),
    ("clip", {"towers": "coupled", "depth": 2}),
    ("siglip", {"position": "task"}),
    ("siglip", {"towers": "both"}),
]


@pytest.mark.parametrize(("kind", "options"), COMPILED)
def test_one_compiled_graph_trains_and_answers_alike(kind, options):
    model = make(kind, **options)
    model.set_classes(*tiny.texts(WORDS, kind == "siglip"))
    pixels = tiny.images()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(pixel_values=pixels).logits, model(pixel_values=pixels).logits, **EXACT)
    model.train()
    found = []
    for called in (compiled, model):
        torch.manual_seed(3)
        found.append(gradients(model, called(pixel_values=pixels, labels=LABELS).loss))
    for name, gradient in found[0].items():
        assert_close(gradient, found[1][name], **CLOSE)
        assert gradient.abs().max() > 1e-6
