"""What prompted image-text models spare changes nothing: logits and gradients with each shortcut on and off."""

import copy

import pytest
import tiny
import torch
from naive_clip import CLOSE, LABELS, LENGTH, MODELS, WORDS, given, gradients, make
from torch.testing import assert_close

import dplearn as dp
from dplearn.backbones.image_text import packing
from dplearn.backbones.image_text.texts import TextTower

TEXTS = {
    "alike at first": WORDS,
    "one": WORDS[:1],
    "identical": [[10, 11]] * 3,
    "prefixes of each other": [[10], [10, 11], [10, 11, 12], []],
    "nothing in common": [[10, 11], [12], [13, 14, 15]],
}
IN_FRONT = ["prefix", 1, "postfix"]
CHOICES = {
    "plain": {},
    "deep": {"depth": 3},
    "pool": {"vector": "task"},
    "deep pool": {"vector": "task", "depth": 3},
    "smaller": {"size": 2, "depth": 3},
    "by image": {"vector": "instance", "summary": "image"},
    "by image, deep": {"vector": "instance", "summary": "image", "depth": 3},
    "by image, smaller": {"vector": "instance", "summary": "image", "depth": 2, "size": 2},
}
ALL = ("truncate", "share", "classes")


def run(model, shortcuts, words=WORDS, seed=3, extra=3, train=True, **call):
    """Logits and gradients of one step. (A cross-entropy over classes that are alike has no gradient.)"""
    model.shortcuts = shortcuts
    model.train(train)
    torch.manual_seed(seed)
    texts = given(model.backbone, words, extra=extra)
    labels = LABELS % len(words)
    call = call or {"pixel_values": tiny.images().to(model.dtype)}
    output = model(labels=labels, **call, **texts)
    logits = output.logits_per_image
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    return logits, gradients(model, output.loss + (logits * weights).sum())


@pytest.fixture
def packed(monkeypatch):
    """The splits with which packed sequences were made."""
    seen, usual = [], TextTower._packed_features

    def record(self, placed, captions, split):
        seen.append(split)
        return usual(self, placed, captions, split)

    monkeypatch.setattr(TextTower, "_packed_features", record)
    return seen


def assert_alike(one, other, tolerance):
    assert_close(one[0], other[0], **tolerance)
    for name, gradient in one[1].items():
        assert_close(gradient, other[1][name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("words", TEXTS)
@pytest.mark.parametrize("position", IN_FRONT)
@pytest.mark.parametrize("choice", CHOICES)
def test_each_shortcut_gives_the_same_logits_and_gradients(choice, position, words, packed):
    model, words = make(position=position, **CHOICES[choice]), TEXTS[words]
    usual = run(model, (), words)
    assert not packed
    for shortcuts in [("truncate",), ("share",), ALL]:
        assert_alike(run(model, shortcuts, words), usual, CLOSE)
    assert usual[0].shape == (3, len(words))
    assert usual[1]["prompt.vectors"].abs().max() > 1e-4
    shared = len(words) > 1 and (position != "postfix" or words[0][:1] == words[1][:1])
    shared = shared and not (words == TEXTS["prefixes of each other"] and position == "postfix")
    assert bool(packed) == shared


@pytest.mark.parametrize("choice", ["deep", "by image, deep"])
@pytest.mark.parametrize("position", IN_FRONT)
def test_many_classes_take_several_sequences(choice, position, packed, monkeypatch):
    words = [[10, 11 + n % 7, 20 + n % 9][: 2 + n % 2] for n in range(23)]
    model = make(position=position, **CHOICES[choice])
    usual, calls = run(model, (), words), []
    once = TextTower.run
    for room, sequences in [(512, 1), (40, range(2, 23)), (4, [23])]:
        monkeypatch.setattr(packing, "PACKED", room)
        calls.clear()
        monkeypatch.setattr(
            TextTower, "run", lambda self, *a, **o: calls.append(a[0].shape[1]) or once(self, *a, **o)
        )
        assert_alike(run(model, ("share",), words), usual, CLOSE)
        assert len(calls) in (sequences if not isinstance(sequences, int) else [sequences])
        assert room == 4 or max(calls) <= max(room, 30) or room == 512
        monkeypatch.setattr(TextTower, "run", once)
    assert packed


@pytest.mark.parametrize(("position", "shared"), [("prefix", 5), (1, 3), ("postfix", 2)])
def test_what_texts_have_in_common_is_computed_once(position, shared, monkeypatch):
    """A start token, the vectors in front and one word; everything else of a text up to its end token is its own."""
    model, rows = make(position=position), []
    once = TextTower.run
    monkeypatch.setattr(
        TextTower, "run", lambda self, *a, **o: rows.append(a[0].shape[:2]) or once(self, *a, **o)
    )
    longest = max(map(len, WORDS)) + 2 + LENGTH
    for shortcuts, expected in [
        ((), (4, longest + 3)),
        (("truncate",), (4, longest)),
        (ALL, (1, shared + sum(len(words) + 2 + LENGTH - shared for words in WORDS))),
    ]:
        rows.clear()
        run(model, shortcuts)
        assert rows == [expected]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("choice", ["deep", "by image"])
def test_shortcuts_in_float32_and_with_either_attention(choice, attention, packed):
    backbone = tiny.clip(dtype=torch.float32, attn_implementation=attention)
    assert backbone.text_model.config._attn_implementation == attention
    model = make(backbone=backbone, position=1, **CHOICES[choice])
    usual = run(model, ())
    for shortcuts in [("truncate",), ("share",), ALL]:
        assert_alike(run(model, shortcuts), usual, dict(rtol=1e-5, atol=1e-5))
    assert packed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packed_sequences_in_half_precision_stay_near(dtype):
    model = make(backbone=tiny.clip(dtype=torch.float32), position=1, depth=3)
    usual = run(model, ())[0]
    half = make(backbone=tiny.clip(dtype=torch.float32).to(dtype), position=1, depth=3)
    found = run(half, ALL)[0]
    assert found.dtype == dtype and (found - usual).abs().max() < 0.1 * usual.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        found = run(model, ALL)[0]
    assert (found - usual).abs().max() < 0.1 * usual.abs().max()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "options", [{"position": "task"}, {"position": "instance"}, {"position": 1, "vector": "instance"}]
)
def test_texts_that_decide_for_themselves_share_nothing_and_keep_their_gradients(kind, options, packed):
    model = make(kind, **options)
    usual = run(model, ())
    assert_alike(run(model, ALL), usual, CLOSE)
    assert not packed
    if options == {"position": "task"}:  # in evaluation one split serves all
        assert_alike(run(model, ALL, train=False), run(model, (), train=False), CLOSE)
        assert bool(packed) == (kind == "clip")


def test_splits_that_are_drawn_for_all_texts_are_shared(packed):
    for summary, count in (("embeddings", 4), ("image", 0)):
        level = "task" if summary == "embeddings" else "instance"
        model = make(position=level, estimator="score-function", summary=summary)
        usual = run(model, ())
        packed.clear()
        assert_alike(run(model, ALL), usual, CLOSE)
        assert len(packed) <= count and (count == 0) == (not packed)


def test_a_learned_size_and_siglip_share_nothing(packed):
    for model in (make(size="task", estimator="score-function"), make("siglip"), make("siglip", depth=3)):
        assert_alike(run(model, ALL), run(model, ()), CLOSE)
    assert not packed


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "options", [{"position": 1, "depth": 3}, {"position": "task"}, {"vector": "instance", "summary": "image"}]
)
def test_features_of_images_instead_of_images(kind, options):
    model, pixels = make(kind, **options), tiny.images()
    embeds = model.image_features(pixels)
    assert not embeds.requires_grad
    for shortcuts in ((), ALL):
        usual = run(model, shortcuts)
        assert_alike(run(model, shortcuts, image_embeds=embeds), usual, CLOSE)
        assert_alike(
            run(model, shortcuts, image_embeds=embeds * 7), usual, CLOSE
        )  # as the backbone gives them
    examples = [{"pixel_values": image, "labels": label, "name": "x"} for image, label in zip(pixels, LABELS)]
    for size in (1, 2, 256):
        cached = model.cache_images(iter(examples), batch_size=size)
        assert [sorted(example) for example in cached] == [["image_embeds", "labels", "name"]] * 3
        assert_close(torch.stack([example["image_embeds"] for example in cached]), embeds, **CLOSE)
    assert "pixel_values" in examples[0]


# --- features of classes that are kept ---


class Counter:
    """How often the text tower ran."""

    def __init__(self, model):
        self.runs = 0
        model.backbone.text_model.final_layer_norm.register_forward_pre_hook(self.count)

    def count(self, *_):
        self.runs += 1


def classifier(kind="clip", **options):
    model = make(kind, position=1, **options)
    model.set_classes(*tiny.texts(WORDS, kind == "siglip"))
    return model, Counter(model)


@torch.no_grad()
def answer(model):
    return model(pixel_values=tiny.images().to(model.dtype)).logits


def fresh(model):
    """The same without anything kept."""
    other = copy.deepcopy(model)
    other.shortcuts = ()
    return answer(other)


@pytest.mark.parametrize("towers", ["text", "both", "coupled"])
@pytest.mark.parametrize("kind", MODELS)
def test_features_of_classes_are_computed_once_in_evaluation(kind, towers):
    model, counter = classifier(kind, towers=towers)
    one = answer(model)
    assert counter.runs == 1
    assert torch.equal(answer(model), one)
    assert torch.equal(model.classify(pixel_values=tiny.images()), model.adapter.family.probabilities(one))
    assert counter.runs == 1
    assert_close(fresh(model), one, **CLOSE)
    model(pixel_values=tiny.images())  # with gradients
    assert counter.runs == 2
    model.shortcuts = ("truncate",)
    answer(model), answer(model)
    assert counter.runs == 4


def step(model):
    optimizer = torch.optim.SGD(model.trainable_parameters().values(), lr=0.1)
    model(pixel_values=tiny.images().to(model.dtype), labels=LABELS).loss.backward()
    optimizer.step()


def load(model):
    model.load_state_dict({name: value.detach() * 2 for name, value in model.trainable_parameters().items()})


def write_data(model):
    model.train()
    model.prompt.vectors.data.mul_(2)  # as some optimizers do
    model.eval()


def other_prompt(model):
    config = dp.PromptConfig(length=LENGTH, position=1)
    model.add_prompt("other", config, vectors=torch.randn(LENGTH, tiny.WIDTH, dtype=torch.float64))
    model.use_prompt("other")
    model.prompt.double()


CHANGES = {
    "step": step,
    "load": load,
    "assign": lambda m: m.load_state_dict({"prompt.vectors": m.prompt.vectors.detach() * 2}, assign=True),
    "data": lambda m: setattr(m.prompt.vectors, "data", m.prompt.vectors.detach() * 2),
    "training": write_data,
    "prompt": other_prompt,
    "classes": lambda m: m.set_classes(*tiny.texts([[30], [31], [32], [33]])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_kept_features_go_when_what_they_depend_on_changes(change):
    model, _ = classifier()
    before = answer(model)
    CHANGES[change](model)
    after = answer(model)
    assert (after - before).abs().max() > 1e-3
    assert_close(after, fresh(model), **CLOSE)


@pytest.mark.parametrize("towers", ["text", "vision"])
def test_kept_features_follow_dtypes_and_autocast(towers):
    model, counter = classifier(backbone=tiny.clip(dtype=torch.float32), towers=towers)
    usual = answer(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert (answer(model) - usual).abs().max() < 0.1 * usual.abs().max()
        answer(model)
        assert counter.runs == 2
    assert_close(answer(model), usual, rtol=0, atol=0)
    model.double()
    assert answer(model).dtype == torch.float64
    assert_close(answer(model).float(), usual, rtol=0, atol=1e-5)
    model.bfloat16()
    assert answer(model).dtype == torch.bfloat16


def test_prompts_that_take_each_others_place_in_memory():
    model, _ = classifier(backbone=tiny.clip(dtype=torch.float32))
    for seed in range(20):
        torch.manual_seed(seed)
        model.add_prompt("one", dp.PromptConfig(length=LENGTH, position=1))
        model.use_prompt("one")
        kept = answer(model)
        assert_close(kept, fresh(model), rtol=0, atol=1e-5)
        model.use_prompt("default")
        model.remove_prompt("one")


def test_features_that_their_user_changed_in_place_are_not_used_again():
    model, counter = classifier()
    usual = answer(model)
    with torch.no_grad():
        model.text_features().mul_(100)
    assert_close(answer(model), usual, **CLOSE)
    assert counter.runs == 2


def test_sampling_in_evaluation_is_not_kept():
    model = make(position="task")
    model.set_classes(*tiny.texts(WORDS))
    model.prompt.position.chooser.sample_in_evaluation = True
    assert len({float(answer(model)[0, 0]) for _ in range(20)}) > 1


def test_nothing_is_kept_while_training():
    model, counter = classifier()
    model.train()
    answer(model), answer(model)
    assert counter.runs == 2
    model.eval()
    answer(model)
    model.train()
    for number in range(3):
        before = counter.runs
        step(model)
        assert counter.runs == before + 1, number


@pytest.mark.parametrize("inference", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", MODELS)
def test_texts_without_a_prompt_are_computed_once_in_training_too(kind, inference):
    model, counter = classifier(kind, towers="vision")
    with inference():
        answer(model)
    model.train()
    for _ in range(3):
        step(model)
    assert counter.runs == 1
    model.set_classes(*tiny.texts(WORDS[:3], kind == "siglip"))
    found = model(pixel_values=tiny.images()).logits
    assert found.shape == (3, 3) and counter.runs == 2
    texts = given(model.backbone, WORDS[1:])
    found = model(pixel_values=tiny.images(), **texts)  # others than the classes
    assert counter.runs == 3 and found.logits_per_image.shape == (3, 3)
    assert_close(model.text_features(**texts), found.text_embeds, **CLOSE)


def test_classes_are_no_part_of_a_checkpoint_and_move_with_the_model():
    model, _ = classifier()
    assert list(model.state_dict()) == ["_extra_state", "prompt.vectors"]
    usual = answer(model)
    moved = copy.deepcopy(model).to("meta")
    assert moved._classes.captions.input_ids.device.type == "meta"
    assert_close(answer(copy.deepcopy(model)), usual, **CLOSE)
    assert model.class_count == 4 and make().class_count is None
