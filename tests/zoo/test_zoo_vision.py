"""The icons and the two backbones pretrained on them: what is held out stays out, runs resume, shipped files work."""

import hashlib
import importlib
import json
import math
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dplearn import zoo
from dplearn.zoo import (
    augmentation,
    caption_tokenizer,
    icon_images,
    icons,
    run_folder,
    vision_models,
    vision_objectives,
    vision_pretraining,
    vision_probes,
    vision_recipes,
)
from dplearn.zoo.__main__ import main

SHIPPED = [name for name in vision_recipes.RECIPES if name in zoo.names()]


@pytest.fixture(scope="module")
def everything():
    return icons.catalogue()


@pytest.fixture(scope="module")
def some():
    """60 training icons of many classes, with their masks."""
    chosen = icons.icons("train")[::150][:60]
    return chosen, torch.from_numpy(icons.render_all(chosen, icon_images.RENDERED))


# --- icons: names, parts, splits -------------------------------------------------------------------------------------


def test_names_are_read_without_qt_and_once_for_each_glyph(everything):
    assert not any(module.startswith(("PyQt", "PySide", "qtpy", "qtawesome")) for module in sys.modules)
    assert len({(icon.font, icon.code) for icon in everything}) == len(everything) > 16_000
    assert {icon.font for icon in everything} == set(icons.FONTS)
    assert list(everything) == sorted(everything)


def test_the_parts_are_what_the_page_says(everything):
    # Written again from the names alone, without the module's functions.
    seen = defaultdict(list)
    for icon in everything:
        words = [word for name in (icon.name, *icon.aliases) for word in name.split("-")]
        held = any(word in (w, w + "s", w + "es") for word in words for w in icons.HELD_OUT_WORDS)
        part = icons.part_of(icon)
        assert (part == "classes") == held
        assert (part == "style") == (not held and icon.font == "phosphor")
        assert part != "icons" or icon.name.split("-")[0] in icons.KNOWN_WORDS
        seen[part].append(icon)
    assert set(seen) == set(icons.PARTS) and sum(map(len, seen.values())) == len(everything)
    drawings = {part: {icon.drawing for icon in found} for part, found in seen.items()}
    assert not drawings["train"] & drawings["validation"] and not drawings["train"] & drawings["icons"]
    trained = {word for icon in seen["train"] for word in icon.text.split()}
    assert not trained & set(icons.HELD_OUT_WORDS) and set(icons.KNOWN_WORDS) <= trained
    assert len(seen["train"]) > 9000


@pytest.mark.parametrize(
    "font, names, part",
    [
        ("remix", ["hand-heart-fill"], "classes"),  # the word stands anywhere
        ("codicon", ["light-bulb", "lightbulb"], "classes"),  # or in another name of the glyph
        ("material", ["two-keys"], "classes"),  # or as a plural
        ("phosphor", ["key"], "classes"),  # whatever the font
        ("phosphor", ["acorn-bold"], "style"),
        ("material", ["monkey"], "train"),  # but not within a word
    ],
)
def test_single_names_go_where_they_should(font, names, part):
    assert icons.part_of(icons.icon_of(font, 1, names)) == part


def test_weights_share_a_drawing():
    one, two = (icons.icon_of("phosphor", i, [name]) for i, name in enumerate(["hand-thin", "hand"]))
    assert one.drawing == two.drawing == "hand" and (one.style, two.style) == ("phosphor-thin", "phosphor")
    assert icons.icon_of("remix", 1, ["bold"]).words == ("bold",)  # a name that is only a weight keeps it
    assert icons.icon_of("remix", 1, ["text-bold"]).words == (
        "text",
        "bold",
    )  # bold is no weight of this font


@pytest.mark.parametrize(
    "parts, words", [(("icons", "style"), "KNOWN_WORDS"), (("classes",), "HELD_OUT_WORDS")]
)
def test_task_splits_separate_drawings_and_cover_every_class(parts, words):
    chosen = icons.icons(*parts, words=getattr(icons, words))
    splits = icons.task_splits(chosen)
    assert sum(map(len, splits.values())) == len(chosen)
    drawings = {split: {(icon.label, icon.drawing) for icon in found} for split, found in splits.items()}
    for one, two in [("train", "validation"), ("train", "test"), ("validation", "test")]:
        assert not drawings[one] & drawings[two]
    for found in splits.values():
        assert {icon.label for icon in found} == set(getattr(icons, words))
    assert icons.task_splits(reversed(chosen)) == splits
    assert 0.4 < len(drawings["train"]) / sum(map(len, drawings.values())) < 0.6


def test_base_and_new_classes_are_fixed_halves():
    base, new = icons.base_new(icons.KNOWN_WORDS)
    assert icons.base_new(reversed(icons.KNOWN_WORDS)) == (base, new)
    assert (
        " ".join(base[:8]) == "align archive arrow battery chart chat circle clock"
    )  # the same on every machine
    assert sorted(base + new) == sorted(icons.KNOWN_WORDS) and len(base) == len(new) == 20
    assert not set(icons.KNOWN_WORDS) & set(icons.HELD_OUT_WORDS)
    assert len(icons.HELD_OUT_WORDS) == len(set(icons.HELD_OUT_WORDS)) == 40


def test_bad_arguments_are_named(monkeypatch, everything):
    with pytest.raises(ValueError, match="part='test': expected one of"):
        icons.icons("test")
    with pytest.raises(ValueError, match="font='comic': expected one of"):
        icons.file_of("comic", "ttf")
    with pytest.raises(ValueError, match="size=4"):
        icons.render(everything[0], 4)
    with pytest.raises(ValueError, match="class 'a' has 2 drawings: expected at least 3"):
        icons.task_splits(icons.icon_of("remix", i, [f"a-{i}"]) for i in range(2))
    with pytest.raises(ValueError, match="task='words': expected one of"):
        vision_probes.probe_data("words", "vit-mini")
    monkeypatch.setattr(icons.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'dplearn\[experiments\]'"):
        icons.fonts_folder()


# --- icons: pictures -------------------------------------------------------------------------------------------------


def test_rendering_is_deterministic_and_fills_the_square(everything):
    chosen = everything[::400]
    first = icons.render_all(chosen)
    icons._font.cache_clear()
    assert np.array_equal(first, icons.render_all(chosen))
    for mask in first:
        box = Image.fromarray(mask).getbbox()
        assert max(box[2] - box[0], box[3] - box[1]) in (34, 35, 36)  # faint edges may round to nothing
        assert min(box) >= 2 and max(box) <= 38
    assert len({mask.tobytes() for mask in first}) > 0.95 * len(first)


def test_pictures_are_the_recorded_ones_with_the_pinned_packages(everything):
    versions = (icons.fonts_version(), importlib.metadata.version("pillow"))
    if versions != ("1.4.2", "13.0.0"):
        pytest.skip(f"recorded with QtAwesome 1.4.2 and Pillow 13.0.0, not {versions}")
    found = hashlib.sha256(icons.render_all(everything[::100]).tobytes()).hexdigest()
    assert found == "94650e399acb89b795391e0b8150d98187078d2d0ad94958f8d37007669ae810"


def test_paint_mixes_ink_and_paper():
    image = np.asarray(icons.paint(np.array([[0, 255, 51]], np.uint8), ink=(200, 0, 10), paper=(0, 100, 60)))
    assert image.tolist() == [[[0, 100, 60], [200, 0, 10], [40, 80, 50]]]


def test_augmentation_is_seeded_and_keeps_contrast(some):
    masks = some[1].repeat(4, 1, 1)
    one, two, other = (augmentation.augment(masks, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert one.shape == (240, 3, 28, 28) and one.min() >= -1 and one.max() <= 1
    assert torch.equal(one, two) and not torch.equal(one, other)
    brightness = one.mean(1)
    spread = brightness.flatten(1).quantile(0.98, dim=1) - brightness.flatten(1).quantile(0.02, dim=1)
    assert (spread > 0.25).float().mean() > 0.95
    grey = (one.std(1).mean((1, 2)) < 0.12).float().mean()
    assert 0.3 < grey < 0.7


def test_without_strength_the_icon_is_black_on_white_and_where_it_was(some):
    plain = augmentation.augment(some[1], torch.Generator().manual_seed(5), strength=0.0)
    reduced = torch.nn.functional.interpolate(some[1][:, None].float() / 255, (28, 28), mode="area")
    assert torch.equal(plain[:, 0], plain[:, 1]) and torch.equal(plain[:, 0], plain[:, 2])
    difference = (plain[:, :1] - (1 - 2 * reduced)).abs().mean((1, 2, 3))
    assert difference.mean() < 0.2 and (difference < plain.roll(1, 0).sub(plain).abs().mean((1, 2, 3))).all()


# --- recipes ---------------------------------------------------------------------------------------------------------

TINY = vision_recipes.Recipe("tiny", steps=5, decay=2, batch=16, warmup=2, easy=4, seed=3)


def test_the_rate_rises_stays_and_falls():
    recipe = vision_recipes.Recipe("x", steps=10, decay=4, batch=1, rate=2.0, warmup=2)
    assert [recipe.rate_at(step) for step in range(10)] == [1, 2, 2, 2, 2, 2, 2, 1.5, 1, 0.5]
    longer = replace(recipe, steps=20)
    assert [longer.rate_at(step) for step in range(7)] == [recipe.rate_at(step) for step in range(7)]
    assert [replace(recipe, easy=4).strength_at(step) for step in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
    assert replace(recipe, easy=0).strength_at(0) == 1


def test_every_epoch_sees_each_icon_once():
    epochs = [
        torch.cat([vision_recipes.rows_of(TINY, 4 * epoch + i, 64) for i in range(4)]) for epoch in range(3)
    ]
    assert all(sorted(epoch.tolist()) == list(range(64)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


@pytest.fixture(scope="module")
def tokenizer():
    return caption_tokenizer.build_tokenizer(sorted({icon.text for icon in icons.icons("train")}))


def objective(kind, some, tokenizer):
    chosen, masks = some
    if kind == "classify":
        return vision_objectives.Classify(
            [replace(icon, words=(f"class{i % 5}",)) for i, icon in enumerate(chosen)], masks, TINY
        )
    return vision_objectives.Contrast(chosen, masks, TINY, tokenizer)


@pytest.mark.parametrize("kind", ["classify", "contrast"])
def test_a_resumed_run_equals_an_uninterrupted_one(kind, some, tokenizer, tmp_path):
    held = {}
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir(), (tmp_path / "c").mkdir()
    whole = objective(kind, some, tokenizer)
    vision_pretraining.train(whole, tmp_path / "a", held, report_every=2)
    for stop in (3, None):
        parts = objective(kind, some, tokenizer)
        vision_pretraining.train(parts, tmp_path / "b", held, report_every=2, stop=stop)
    assert all(
        torch.equal(x, y) for x, y in zip(whole.model.parameters(), parts.model.parameters(), strict=True)
    )
    logs = [run_folder.losses_of(tmp_path / run) for run in "ab"]
    assert torch.tensor(1e-40) * 1 > 0  # training flushes denormals, for the whole process: not any more
    strip = [[{key: value for key, value in row.items() if key != "minutes"} for row in log] for log in logs]
    assert strip[0] == strip[1] and [row["step"] for row in strip[0]] == [2, 4, 5]
    # A run that forgets the optimizer's state ends elsewhere, so the comparison above can fail.
    broken = objective(kind, some, tokenizer)
    vision_pretraining.train(broken, tmp_path / "c", held, report_every=2, stop=3)
    state = torch.load(tmp_path / "c" / "checkpoint.pt", weights_only=True)
    torch.save(state | {"optimizer": state["optimizer"] | {"state": {}}}, tmp_path / "c" / "checkpoint.pt")
    broken = objective(kind, some, tokenizer)
    vision_pretraining.train(broken, tmp_path / "c", held, report_every=2)
    assert not all(torch.equal(x, y) for x, y in zip(whole.model.parameters(), broken.model.parameters()))


def test_the_contrastive_loss_is_the_naive_one(some, tokenizer, monkeypatch):
    chosen, masks = some
    recipe = replace(TINY, batch=24, easy=0)
    alike = [
        replace(icon, words=("arrow", "up" if i % 3 else "left")[: 1 + i % 2])
        for i, icon in enumerate(chosen)
    ]
    run = vision_objectives.Contrast(alike, masks, recipe, tokenizer)
    said = []
    monkeypatch.setattr(
        vision_objectives, "tokenize", lambda tok, texts: said.extend(texts) or _tokens(tok, texts)
    )
    run.model.eval()
    loss = run.loss(7)
    rows = vision_recipes.rows_of(recipe, 7, len(masks)).tolist()
    images = augmentation.augment(masks[rows], vision_recipes.generator_of(recipe, 7))
    tokens = tokenizer(said, padding=True, return_tensors="pt")
    scores = run.model(pixel_values=images, **tokens).logits_per_image.detach().double().numpy()
    frames = [text.split("{}") for text in caption_tokenizer.TEMPLATES]
    spoken = []
    for text in said:
        fits = [
            text[len(a) : len(text) - len(b)] for a, b in frames if text.startswith(a) and text.endswith(b)
        ]
        spoken.append(min(fits, key=len))
    match = np.array(
        [[float(caption in (alike[row].text, alike[row].words[0])) for caption in spoken] for row in rows]
    )
    assert match.diagonal().all() and 24 < match.sum() < 24 * 24
    total = 0.0
    for table, hits in ((scores, match), (scores.T, match.T)):
        for line, hit in zip(table, hits, strict=True):
            total -= sum((line[hit > 0] - np.log(np.exp(line).sum())) / hit.sum()) / 48
    assert loss.item() == pytest.approx(total, rel=1e-5)


def _tokens(tokenizer, texts):
    found = tokenizer(texts, padding=True, return_tensors="pt")
    return {key: found[key] for key in ("input_ids", "attention_mask")}


def test_the_tokenizer_is_the_same_in_every_process(tokenizer):
    code = (
        "import json; from dplearn.zoo import caption_tokenizer, icons; "
        "texts = sorted({icon.text for icon in icons.icons('train')}); "
        "print(json.dumps(caption_tokenizer.build_tokenizer(texts).get_vocab()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == tokenizer.get_vocab()


def test_merges_are_the_naive_ones():
    counts = {"banana": 3, "bandana": 2, "nab": 4, "aaaa": 1}
    words = {word: [*word[:-1], word[-1] + "</w>"] for word in counts}
    expected = []
    for _ in range(6):
        pairs = Counter()
        for word, parts in words.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += counts[word]
        best = sorted(pairs, key=lambda pair: (-pairs[pair], pair))[0]
        expected.append(best)
        for parts in words.values():
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = ["".join(best)]
                i += 1
    assert caption_tokenizer.learn_merges(counts, 6) == expected
    with pytest.raises(ValueError, match="room=99: the words give"):
        caption_tokenizer.learn_merges(counts, 99)


def test_the_tokenizer_is_clips_and_knows_no_held_out_word(tokenizer):
    assert len(tokenizer) == 2048 and tokenizer.bos_token_id == 2046 and tokenizer.eos_token_id == 2047
    for word in icons.KNOWN_WORDS:
        assert len(tokenizer.tokenize(word)) == 1, word
    words = {piece.removesuffix("</w>") for piece in tokenizer.get_vocab() if piece.endswith("</w>")}
    assert words & set(icons.HELD_OUT_WORDS) == {"bug", "key"}  # the ends of "debug" and "monkey"
    text = "arrow left - 24 caf\u00e9"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).replace(
        " ", ""
    ) == text.replace(" ", "")
    longest = max(icons.icons("train"), key=lambda icon: len(icon.text)).text
    assert (
        len(tokenizer(caption_tokenizer.TEMPLATES[-1].format(longest)).input_ids) <= vision_models.POSITIONS
    )


def test_pretraining_sees_the_part_train_only(tmp_path, monkeypatch):
    asked, seen = [], {}
    blank = lambda chosen, size: np.zeros((len(chosen), size, size), np.uint8)  # noqa: E731
    monkeypatch.setattr(icon_images, "render_all", blank)
    monkeypatch.setattr(icon_images, "icons", lambda part: asked.append(part) or icons.icons(part))
    monkeypatch.setattr(
        vision_pretraining, "train", lambda run, folder, held: seen.update(run=run, held=held)
    )
    monkeypatch.setattr(vision_pretraining.os, "environ", {})
    threads = torch.get_num_threads()
    vision_pretraining.pretrain("vit-mini", tmp_path)
    torch.set_num_threads(threads)
    assert asked == [
        "train",
        "validation",
        "icons",
        "style",
    ]  # the first is the objective's, the others are reports'
    counts = Counter(icon.label for icon in icons.icons("train"))
    assert seen["run"].labels == tuple(sorted(word for word, count in counts.items() if count >= 6))
    assert len(seen["run"].targets) == sum(counts[word] for word in seen["run"].labels)
    assert not set(seen["run"].labels) & set(icons.HELD_OUT_WORDS)
    assert all(icon.font == "phosphor" for icon in seen["held"]["style"][0])


def test_pretraining_does_not_overwrite_a_run(tmp_path, capsys):
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    assert main(["pretrain", "clip-mini", "--folder", str(tmp_path)]) == 2
    assert "--resume" in capsys.readouterr().err


# --- what ships ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded():
    return {name: zoo.load(name) for name in SHIPPED}


@pytest.fixture(scope="module")
def held_out(loaded):
    """{part: (icons of known words, masks)}, about 250 a part."""
    result = {}
    for part in ("icons", "style"):
        chosen = icons.icons(part, words=icons.KNOWN_WORDS)
        chosen = chosen[:: max(1, len(chosen) // 250)]
        result[part] = (chosen, torch.from_numpy(icons.render_all(chosen, icon_images.RENDERED)))
    return result


@pytest.mark.parametrize("name", SHIPPED)
def test_files_are_small_verified_and_match_the_card(name, loaded):
    folder = zoo.FOLDER / name
    zoo.verify(folder)
    weights = (folder / "model.safetensors").read_bytes()
    assert len(weights) < 4e6 and hashlib.sha256(weights).hexdigest() in zoo.card(name)
    model, processor = loaded[name]
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    last = json.loads((folder / "losses.json").read_text())[-1]
    assert last["step"] == vision_recipes.RECIPES[name].steps
    assert f"{last['loss']:.3f}" in zoo.card(name) and f"{last['samples']:,}" in zoo.card(name)
    for value in last["held_out"].values():
        assert f"{value:.3f}" in zoo.card(name)
    for task, scores in json.loads((folder / "probes.json").read_text()).items():
        assert scores["pretrained"] > max(scores["random"]) + 0.05, task
        for value in (scores["pretrained"], *scores["random"]):
            assert f"{value:.3f}" in zoo.card(name)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1"])
def test_the_processor_takes_any_image_and_needs_pillow_only(name, mode, loaded):
    images = loaded[name][1] if name == "vit-mini" else loaded[name][1].image_processor
    assert type(images).__name__.endswith("Pil")
    white = images(Image.new(mode, (50, 31), 255 if mode in "L1" else "white"), return_tensors="pt")[
        "pixel_values"
    ]
    assert white.shape == (1, 3, 28, 28) and torch.equal(white, torch.ones_like(white))
    black = images(Image.new(mode, (8, 8), 0 if mode in "L1" else "black"), return_tensors="pt")[
        "pixel_values"
    ]
    assert torch.equal(black, -torch.ones_like(black))


def naive_vit(weights, pixels, heads=4):
    """Logits of one image (3, 28, 28), straight from the file's tensors: patches by loops, attention by softmax."""
    w = {key: value.double() for key, value in weights.items()}

    def linear(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-12).sqrt() * w[name + ".weight"] + w[name + ".bias"]

    kernel = w["vit.embeddings.patch_embeddings.projection.weight"]
    p, rows = kernel.shape[-1], []
    for i in range(0, 28, p):
        for j in range(0, 28, p):
            patch = pixels[:, i : i + p, j : j + p].double()
            rows.append(
                (kernel * patch).sum((1, 2, 3)) + w["vit.embeddings.patch_embeddings.projection.bias"]
            )
    x = (
        torch.cat([w["vit.embeddings.cls_token"][0], torch.stack(rows)])
        + w["vit.embeddings.position_embeddings"][0]
    )
    layers = {
        key.split(".")[2 + key.startswith("vit.encoder")]
        for key in w
        if ".layer." in key or ".layers." in key
    }
    start = next(key for key in w if "layernorm_before" in key).split(".layer")[0]
    stem = start + (".layers." if any(".layers." in key for key in w) else ".layer.")
    keys = set(w)
    for i in sorted(layers, key=int):
        at = f"{stem}{i}."
        names = [
            key.removeprefix(at).removesuffix(".weight")
            for key in keys
            if key.startswith(at) and key.endswith(".weight")
        ]
        find = lambda *ends: at + next(n for n in names if n.endswith(ends))  # noqa: B023, E731
        y = norm(x, at + "layernorm_before")
        q, k, v = (
            linear(y, find(*ends)) for ends in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
        )
        size, mixed = q.shape[-1] // heads, []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            mixed.append(torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(size), -1) @ v[:, part])
        x = x + linear(torch.cat(mixed, -1), find("attention.output.dense", "o_proj"))
        y = linear(norm(x, at + "layernorm_after"), find("intermediate.dense", "fc1"))
        y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
        x = x + linear(y, at + next(n for n in names if n in ("output.dense", "mlp.fc2")))
    return linear(norm(x, "vit.layernorm")[0], "classifier")


@pytest.mark.skipif("vit-mini" not in SHIPPED, reason="vit-mini does not ship")
def test_a_forward_pass_of_vit_mini_equals_the_naive_one(held_out):
    from safetensors.torch import load_file

    model, images = zoo.load("vit-mini", torch.float64)
    pixels = images(icons.paint(held_out["icons"][1][0].numpy()), return_tensors="pt")["pixel_values"]
    model.set_attn_implementation("sdpa")
    found = model(pixel_values=pixels.double()).logits[0]
    weights = load_file(zoo.FOLDER / "vit-mini" / "model.safetensors")
    torch.testing.assert_close(found, naive_vit(weights, pixels[0]), rtol=1e-9, atol=1e-9)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found, naive_vit(weights, pixels[0].flip(-1)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("part", ["icons", "style"])
def test_held_out_icons_are_named_and_random_layers_know_nothing(name, part, loaded, held_out):
    model, processor = loaded[name]
    if name == "vit-mini":
        assert set(icons.KNOWN_WORDS) <= set(model.config.id2label.values())
    found = vision_probes.recall(model, processor, *held_out[part])
    control = vision_probes.recall(zoo.random_control(name, 1), processor, *held_out[part])
    assert found > 0.1 and control < 0.06  # one word for all gets 1 / 40
    recorded = json.loads((zoo.FOLDER / name / "probes.json").read_text())[f"recall, part {part}"]
    assert abs(found - recorded["pretrained"]) < 0.1  # here on a part of the icons only


def test_recall_counts_every_word_alike(some):
    class Always(torch.nn.Module):
        config = type("Config", (), {"model_type": "vit", "id2label": {0: "cloud", 1: "tag"}})

        def forward(self, pixel_values):
            return type("Output", (), {"logits": torch.tensor([[1.0, 0.0]]).expand(len(pixel_values), 2)})

    chosen = [replace(some[0][0], words=(word,)) for word in ("cloud", "cloud", "cloud", "tag")]
    assert vision_probes.recall(Always(), None, chosen, some[1][:4]) == 0.5


@pytest.mark.skipif("clip-mini" not in SHIPPED, reason="clip-mini does not ship")
def test_scores_of_clip_mini_are_scaled_cosines_and_padding_does_not_matter(loaded, held_out):
    model, processor = loaded["clip-mini"]
    pixels = icon_images.pixels_of("clip-mini", held_out["icons"][1][:3])
    texts = ["cloud", "a clean and simple icon with the name arrow left for a page or a button"]
    with torch.no_grad():
        scores = model(
            pixel_values=pixels, **processor.tokenizer(texts, padding=True, return_tensors="pt")
        ).logits_per_image
        image = vision_probes.features_of(model, pixels)
        for column, text in enumerate(texts):
            alone = processor.tokenizer([text], return_tensors="pt")
            vector = model.text_projection(model.text_model(**alone).pooler_output)[0]
            cosine = (image @ vector) / image.norm(dim=-1) / vector.norm()
            torch.testing.assert_close(
                scores[:, column], model.logit_scale.exp() * cosine, rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("name", SHIPPED)
def test_the_random_control_has_the_same_shape_and_other_weights(name, loaded):
    control, again = zoo.random_control(name, 3), zoo.random_control(name, 3)
    assert control.config.to_diff_dict().keys() >= {"model_type"}
    mine = dict(loaded[name][0].named_parameters())
    for (key, other), same in zip(control.named_parameters(), again.parameters(), strict=True):
        assert mine[key].shape == other.shape and torch.equal(other, same)
        assert not torch.equal(mine[key], other)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_commands_print_what_ships(name, capsys):
    assert main(["list"]) == 0 and name in capsys.readouterr().out
    assert main(["card", name]) == 0 and "What was not measured" in capsys.readouterr().out
    assert main(["check", name, "--quick"]) == 0 and "part style: 0." in capsys.readouterr().out


def test_a_linear_probe_finds_what_is_linear_and_nothing_in_noise():
    class Flat(torch.nn.Module):
        config = type("Config", (), {"model_type": "vit"})

        def vit(self, pixel_values):
            rows = pixel_values.flatten(1)[:, None, :8]
            return type("Output", (), {"last_hidden_state": rows})

    generator = torch.Generator().manual_seed(0)
    data = {}
    for split, count in (("train", 200), ("validation", 100), ("test", 300)):
        pixels = torch.randn(count, 3, 28, 28, generator=generator)
        data[split] = (pixels, (pixels[:, 0, 0, 0] > 0).long().numpy())
    assert vision_probes.probe(Flat(), data) > 0.9
    noise = {split: (pixels, np.roll(labels, 7)) for split, (pixels, labels) in data.items()}
    assert abs(vision_probes.probe(Flat(), noise) - 0.5) < 0.15
