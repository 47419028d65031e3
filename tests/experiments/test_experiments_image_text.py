"""Studies on clip-mini: what each method trains, where it starts, which texts it is compared with, and the table."""

import json
import re
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

import dplearn as dp
from dplearn import zoo
from dplearn.experiments import execution, image_text, images, jobs, records, tables
from dplearn.experiments.fitting import Settings
from dplearn.experiments.study import read
from dplearn.experiments.watching import Looks
from dplearn.tasks.images import ImageSplit, ImageTask

SETTINGS = Settings(steps=2, batch_size=8, learning_rate=0.01, controller_learning_rate=None)
NAMES = ("arrow", "cat", "home", "star", "sun")  # the first three are the base classes
WIDTH, WORDS, JOINT = 96, 3, 96


def task():
    """Images in which one of five places is bright, with the names of icons."""
    generator, splits = np.random.default_rng(0), {}
    for split, size in (("train", 5), ("validation", 3), ("test", 4)):
        labels = [i % len(NAMES) for i in range(len(NAMES) * size)]
        pixels = generator.integers(0, 120, (len(labels), 28, 28, 3), dtype=np.uint8)
        for number, label in enumerate(labels):
            pixels[number, 5 * label : 5 * label + 4, :9] += 120
        splits[split] = ImageSplit(pixels, labels)
    source = "made here"
    return ImageTask("toy/names", NAMES, splits, "accuracy_mean_per_class", source, "an icon of {}")


def by_hand(method):
    """Numbers of trained parameters."""
    vectors, maps = WORDS * WIDTH, 3 * (WIDTH * WIDTH + WIDTH)
    pool = 4 * vectors + 4 * (WIDTH + 1)
    return {
        "zero-shot": 0,
        "linear probe": 3 * (JOINT + 1),
        "prefix": vectors,
        "middle": vectors,
        "postfix": vectors,
        "position per task": vectors + 4,
        "position per task, score-function": vectors + 4,
        "position per class": vectors + 4 * (WIDTH + 1),
        "pool per class": pool,
        "one prompt as large as the pool": 4 * vectors,
        "pool per image": pool,
        "prefix, all layers": 3 * vectors,
        "images": vectors,
        "images, all layers": 3 * vectors,
        "both, all layers": 6 * vectors,
        "coupled, all layers": 3 * vectors + maps,
        "full fine-tuning": sum(parameter.numel() for parameter in zoo.load("clip-mini")[0].parameters()),
        "prefix, random layers": vectors,
    }[method]


def zero_shot(split, names, template="an icon of {}"):
    """The model's own answers, computed with transformers alone."""
    model, processor = zoo.load("clip-mini")
    halves = task().base_to_new()
    pixels = torch.stack([row["pixel_values"] for row in halves.encode(processor, split)])
    texts = processor.tokenizer([template.format(name) for name in names], padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(pixel_values=pixels, **texts).logits_per_image.argmax(1).tolist(), halves


@pytest.mark.parametrize("method", image_text.METHODS)
def test_each_method_trains_its_own_parameters_and_is_reproducible(method, monkeypatch):
    loaded, load = [], zoo.load
    monkeypatch.setattr(zoo, "load", lambda name: loaded.append(load(name)) or loaded[-1])
    rows = [image_text.tune(method, task(), SETTINGS, seed) for seed in (1, 1, 2)]
    for row in rows:
        assert row.pop("seconds") >= 0
    assert rows[0] == rows[1] and rows[0]["trained_parameters"] == by_hand(method)
    if method != image_text.ZERO_SHOT:
        assert rows[0]["losses"] != rows[2]["losses"] and len(rows[0]["losses"]) == 2
    splits = {"validation", "test"} | ({"test_new"} if method != image_text.PROBE else set())
    assert set(rows[0]["scores"]) == splits and rows[0]["settings"]["learning_rate"] == 0.01
    assert ("positions" in rows[0]) == ("position" in method)
    fresh = load("clip-mini")[0].state_dict()
    untouched = all(torch.equal(fresh[name], tensor) for name, tensor in loaded[0][0].state_dict().items())
    assert untouched == (method != image_text.FULL)
    json.dumps(rows)


@pytest.mark.parametrize(
    "method",
    ["linear probe", "position per class", "pool per image", "coupled, all layers", "full fine-tuning"],
)
def test_a_run_that_is_watched_is_the_same_run(method):
    """Looked at often and, with the new classes, at a third of its steps, or seldom."""
    settings = replace(SETTINGS, steps=3)
    rows = [
        image_text.tune(method, task(), settings, 1, looks=looks)
        for looks in (Looks(3, 5, 5, True), Looks(1))
    ]
    for name in ("losses", "scores", "cross_entropy", "trained_parameters"):
        assert rows[0][name] == rows[1][name]
    assert (
        rows[0]["curves"]["steps"] == [0, 1, 2, 3]
        and rows[0]["at_a_third"].keys() == rows[0]["scores"].keys()
    )
    assert rows[0]["curves"]["loss"][1:] == pytest.approx(rows[0]["losses"], abs=1e-3)


@pytest.mark.parametrize("method", ["position per class", "images"])
def test_a_run_that_is_evaluated_is_the_same_run(method):
    settings = replace(SETTINGS, steps=3)
    looked = replace(settings, evaluate_every=1, noisy_evaluation=True)
    plain, row = (image_text.tune(method, task(), each, 1) for each in (settings, looked))
    for name in ("losses", "scores", "cross_entropy"):
        assert plain[name] == row[name]
    assert row["evaluations"]["steps"] == [1, 2, 3]
    assert row["evaluations"]["last"]["score"] == next(iter(row["scores"]["validation"].values()))
    assert ("noisy" in row["evaluations"]) == ("class" in method)


def test_decisions_are_reported_for_each_class_or_each_image(monkeypatch):
    """How far they moved and how they are spread, against the model's own decisions at the end."""
    made, usual = [], image_text.prompted
    monkeypatch.setattr(image_text, "prompted", lambda *a, **k: made.append(usual(*a, **k)) or made[-1])
    tokenizer = zoo.load("clip-mini")[1].tokenizer
    row = image_text.tune("position per class", task(), replace(SETTINGS, steps=4, learning_rate=0.1), 1)
    texts = tokenizer(list(NAMES[:3]), padding=True, return_tensors="pt")
    with torch.no_grad():
        decided = made[-1].eval().decide(**texts)["position"]
    pi, found = decided.logits.softmax(-1), row["evidence"]["decisions"]["position"]
    assert found["inputs"] == 3 and found["options"] == WORDS + 1
    assert found["counts"] == [decided.index.tolist().count(k) for k in range(WORDS + 1)]
    assert found["entropy"] == pytest.approx(float(-(pi * pi.log()).sum(1).mean()), abs=1e-3)
    even = torch.full_like(pi, 1 / (WORDS + 1))
    assert (
        found["moved"] == pytest.approx(float((pi - even).abs().sum(1).mean() / 2), abs=1e-3)
        and found["moved"] > 0
    )
    assert row["curves"]["entropy_position"][-1] == found["entropy"]
    row = image_text.tune("pool per image", task(), SETTINGS, 1)
    assert row["evidence"]["decisions"]["vector"]["inputs"] == 3 * 3  # validation images of base classes
    row = image_text.tune("position per task", task(), SETTINGS, 1)
    assert row["evidence"]["decisions"]["position"]["inputs"] == 3
    assert "evidence" not in image_text.tune("prefix", task(), SETTINGS, 1)


@pytest.mark.parametrize(
    "method", ["position per class", "pool per class", "pool per image", "position per task"]
)
def test_dealing_decisions_out_is_a_loop_over_turns_and_texts(method, monkeypatch):
    """The loss of images where each class, or image, has the decision of the one so many places before it."""
    made, usual, encoded = [], image_text.prompted, []
    monkeypatch.setattr(image_text, "prompted", lambda *a, **k: made.append(usual(*a, **k)) or made[-1])
    monkeypatch.setattr(image_text, "DEALS", 2)
    encode = dp.PromptedCLIP.cache_images
    monkeypatch.setattr(dp.PromptedCLIP, "cache_images", lambda *a: encoded.append(encode(*a)) or encoded[-1])
    settings = replace(SETTINGS, steps=6, learning_rate=0.1)
    row = image_text.tune(method, task(), settings, 1, splits=("validation",))
    model, rows = made[-1].eval(), encoded[0]  # the validation split is encoded first
    ids = zoo.load("clip-mini")[1].tokenizer(list(NAMES[:3]), padding=True, return_tensors="pt").input_ids
    embeds, labels = (torch.stack([torch.as_tensor(r[n]) for r in rows]) for n in ("image_embeds", "labels"))
    name = "vector" if "pool" in method else "position"
    by_image = method.endswith("image")
    with torch.no_grad():
        decided = model.decide(ids, **({"image_embeds": embeds} if by_image else {}))[name]
        count = len(embeds) if by_image else 3
        pick = (lambda i: i) if len(decided.index) > 1 else (lambda i: 0)

        def answer(image, turn):
            """Log-probabilities of one image, the text of one class after the other."""
            scores = []
            for text in range(3):
                owner = pick(((image if by_image else text) - turn) % count)
                given = {name: type(decided)(*(None if v is None else v[owner : owner + 1] for v in decided))}
                features = model.text_features(
                    ids[text : text + 1],
                    image_embeds=embeds[image : image + 1] if by_image else None,
                    decisions=given,
                )
                scores.append(model.similarity(embeds[image : image + 1], features.reshape(1, -1)))
            return torch.cat(scores, 1).double().log_softmax(1)[0]

        losses = {
            turn: [float(-answer(i, turn)[labels[i]]) for i in range(len(rows))] for turn in range(count)
        }
    turns = [1, 2] if not by_image else [1, 1 + (count - 1) // 2]
    found = row["evidence"]["decisions"][name]
    assert found["loss"] == pytest.approx(statistics.mean(losses[0]), abs=2e-4)
    dealt = [statistics.mean(losses[turn][i] for turn in turns) for i in range(len(rows))]
    assert found["shuffled"] == pytest.approx(statistics.mean(dealt), abs=2e-4)
    cost = [b - a for a, b in zip(losses[0], dealt)]
    assert found["cost"][0] == pytest.approx(statistics.mean(cost), abs=2e-4)
    assert (abs(found["cost"][0]) < 1e-4) == (method == "position per task")
    assert (found["information"] is not None) == by_image


def test_a_head_of_its_own_rate_is_the_probes():
    probe, whole = image_text.Probe(4, 3, 2.0), image_text.WholeModel(zoo.load("clip-mini")[0])
    settings = replace(SETTINGS, head_learning_rate=0.5)
    assert [g["lr"] for g in images.optimizer_of(probe, settings).param_groups] == [0.5]
    assert [g["lr"] for g in images.optimizer_of(whole, settings).param_groups] == [0.01]
    assert [g["lr"] for g in images.optimizer_of(probe, SETTINGS).param_groups] == [0.01]


@pytest.mark.parametrize(("split", "names"), [("test", NAMES[:3]), ("test_new", NAMES[3:])])
def test_zero_shot_is_the_models_own_answer(split, names):
    answers, halves = zero_shot(split, names)
    row = image_text.tune("zero-shot", task(), SETTINGS)
    assert row["scores"][split] == halves.score(split, answers)
    assert row["settings"]["steps"] == 0


@pytest.mark.parametrize("method", ["prefix", "images, all layers", "full fine-tuning"])
@pytest.mark.parametrize(("split", "names"), [("validation", NAMES[:3]), ("test_new", NAMES[3:])])
def test_before_the_first_step_a_prompt_of_the_words_is_zero_shot(method, split, names, monkeypatch):
    """A prompt in the images starts from noise, so there the texts are looked at."""
    seen = []
    if method == "images, all layers":
        usual = dp.PromptedCLIP.set_classes
        monkeypatch.setattr(
            dp.PromptedCLIP, "set_classes", lambda self, **texts: seen.append(texts) or usual(self, **texts)
        )
    row = image_text.tune(method, task(), Settings(steps=0), splits=(split,))
    answers, halves = zero_shot(split, names)
    if seen:
        tokenizer = zoo.load("clip-mini")[1].tokenizer
        wanted = tokenizer([f"an icon of {name}" for name in names], padding=True, return_tensors="pt")
        assert_close(seen[-1]["input_ids"], wanted.input_ids)
    else:
        assert row["scores"][split] == halves.score(split, answers)


def test_first_vectors_are_the_words_again_and_again():
    words = torch.arange(6.0).view(3, 2)
    single = image_text.first_vectors(dp.PromptConfig(length=3), words)
    assert torch.equal(single, words)
    long = image_text.first_vectors(dp.PromptConfig(length=6), words)
    assert_close(long, words.repeat(2, 1), rtol=0, atol=0.06)
    pool = image_text.first_vectors(dp.PromptConfig(length=3, vector="instance", pool_size=4), words)
    assert_close(pool, words.expand(4, 3, 2), rtol=0, atol=0.06)
    assert not torch.equal(pool[0], pool[1])
    deep = image_text.first_vectors(dp.PromptConfig(length=3, depth=3), words)
    assert torch.equal(deep[0], words) and 0 < deep[1:].abs().max() < 0.1
    assert image_text.first_vectors(dp.PromptConfig(length=3, towers="vision"), words) is None


def test_the_probe_is_a_linear_layer_on_unit_vectors():
    torch.manual_seed(0)
    probe, rows, labels = image_text.Probe(4, 3, 2.0), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    output = probe(image_embeds=rows, labels=labels)
    logits = 2.0 * rows @ probe.linear.weight.T + probe.linear.bias
    assert_close(output.logits, logits)
    assert_close(output.loss, -logits.log_softmax(1)[torch.arange(5), labels].mean())


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(ValueError, match="method='suffix' is unknown, expected one of"):
        image_text.tune("suffix", task())


def test_choice_runs_see_the_validation_images_of_base_classes_alone(monkeypatch):
    asked, encode = [], ImageTask.encode

    def watched(self, processor, split, in_memory=False):
        asked.append((split, len(self.class_names)))
        return encode(self, processor, split, in_memory)

    monkeypatch.setattr(ImageTask, "encode", watched)
    monkeypatch.setattr(dp.tasks, "load", lambda name: task())
    monkeypatch.setattr(image_text, "SETTINGS", SETTINGS)
    execution._task.cache_clear()
    known = jobs.jobs(read("clip"), {})
    for method in ("prefix", "linear probe", "full fine-tuning"):
        job = next(job for job in known if job.labels["method"] == method and job.purpose == "choice")
        assert set(execution.run_job(job.spec)["scores"]) == {"validation"}
    assert set(asked) == {("train", 3), ("validation", 3)}
    choices = [job for job in known if job.labels["method"] == "prefix"]
    rows = {job.key: {"scores": {"validation": {"accuracy": 0.5}}} for job in choices}
    reports = [job for job in jobs.jobs(read("clip"), rows) if job.labels["method"] == "prefix"]
    report = next(job for job in reports if job.purpose == "report")
    assert set(execution.run_job(report.spec)["scores"]) == {"test", "test_new"}
    execution._task.cache_clear()


def test_the_study_gives_every_method_a_choice_and_five_seeds():
    clip = read("clip")
    (cell,) = clip.cells()
    methods = {method.name: method for method in clip.methods_in(cell)}
    for name in image_text.METHODS:
        assert jobs.seeds_of(clip, methods[name]) == (1, 2, 3, 4, 5)
        rates = clip.grid_of(cell, methods[name]).get("learning_rate", [])
        assert len(rates) == {"zero-shot": 0}.get(name, 4)


def rows():
    found = []
    for method, pairs in {
        "zero-shot": [(0.5, 0.6), (0.5, 0.6)],
        "probe": [(0.8, None), (0.7, None)],
        "prompt": [(0.6, 0.5), (0.7, 0.4)],
    }.items():
        for seed, (base, new) in enumerate(pairs):
            scores = {"test": {"accuracy": base}} | ({} if new is None else {"test_new": {"accuracy": new}})
            found.append(
                {
                    "purpose": "report",
                    "task": "t",
                    "method": method,
                    "seed": seed,
                    "trained_parameters": 1234,
                    "scores": scores,
                }
            )
    return [*found[::-1], found[0] | {"purpose": "choice"}, found[0] | {"task": "other"}]


def test_the_table_of_base_and_new_classes():
    text = tables.base_to_new(rows(), "t", ("zero-shot", "probe", "prompt"), "zero-shot").splitlines()
    assert len(text) == 5
    assert (
        text[2]
        == "| zero-shot | 1,234 | 50.0\u00a0±\u00a00.0 | 60.0\u00a0±\u00a00.0 | 54.5\u00a0±\u00a00.0 |  |"
    )
    assert text[3].startswith("| probe | 1,234 | 75.0\u00a0±\u00a07.1 | – | – | +25.0\u00a0±\u00a0")
    means = [2 * 0.6 * 0.5 / 1.1, 2 * 0.7 * 0.4 / 1.1]
    half = stats.t.ppf(0.975, 1) * stats.sem([0.1, 0.2])
    wanted = f"{100 * statistics.mean(means):.1f}\u00a0±\u00a0{100 * statistics.stdev(means):.1f}"
    assert (
        text[4]
        == f"| prompt | 1,234 | 65.0\u00a0±\u00a07.1 | 45.0\u00a0±\u00a07.1 | {wanted} | +15.0\u00a0±\u00a0{100 * half:.1f} |"
    )


@pytest.mark.parametrize(
    ("study", "backbone", "methods"),
    [("vit", "vit-mini", images.METHODS), ("clip", "clip-mini", image_text.METHODS)],
)
def test_the_cards_tables_are_those_of_the_records(study, backbone, methods):
    record, card = records.load(study), zoo.card(backbone)
    rows = record["rows"]
    reports = [row for row in rows if row["purpose"] == "report"]
    assert {row["backbone"] for row in rows} == {backbone}
    assert {(row["method"], row["seed"]) for row in reports} == {
        (m, s) for m in methods for s in (1, 2, 3, 4, 5)
    }
    if study == "clip":
        assert tables.base_to_new(rows, "images/icons", methods, "zero-shot") in card
    else:
        for name in read("vit").tasks:
            lines = {line.method: line for line in tables.lines_against(rows, name, images.PROBE)}
            assert tables.markdown([lines[method] for method in methods], images.PROBE) in card
    assert record["provenance"]["command"] == f"python -m dplearn.experiments {study}"


CLAIMS = {
    "vit-mini": {
        "images/digits": {
            ("VPT-deep", "linear probe"): "+0.9 ± 0.6",
            ("VPT-deep", "full fine-tuning"): "-0.8 ± 0.6",
            ("pool per instance", "one prompt as large as the pool"): "-0.3 ± 1.0",
            ("pool per instance", "VPT-shallow"): "+0.4 ± 1.0",
            ("postfix before positions", "prefix before positions"): "+0.3 ± 0.6",
            ("position per instance before positions", "prefix before positions"): "-1.3 ± 0.8",
            ("position per instance, coded", "VPT-shallow"): "-0.3 ± 0.6",
        },
        "images/icons-classes": {
            ("pool per instance", "one prompt as large as the pool"): "+2.2 ± 2.4",
            ("pool per instance", "VPT-shallow"): "-0.3 ± 1.7",
            ("postfix before positions", "prefix before positions"): "+1.6 ± 3.1",
            ("position per instance before positions", "prefix before positions"): "-10.5 ± 5.2",
            ("position per instance, coded", "VPT-shallow"): "-1.5 ± 2.1",
        },
    },
    "clip-mini": {
        "images/icons": {
            ("position per task", "middle"): "-6.1 ± 2.7",
            ("position per task, score-function", "middle"): "-1.9 ± 3.8",
            ("position per class", "middle"): "-0.1 ± 3.9",
            ("pool per class", "one prompt as large as the pool"): "+6.8 ± 6.2",
            ("pool per class", "prefix"): "+2.8 ± 3.6",
            ("pool per image", "pool per class"): "-2.5 ± 4.2",
            ("both, all layers", "images, all layers"): "+3.7 ± 2.0",
            ("coupled, all layers", "both, all layers"): "-1.1 ± 2.5",
        }
    },
}


@pytest.mark.parametrize("backbone", CLAIMS)
def test_the_differences_in_the_cards_text_are_those_of_the_records(backbone):
    rows = records.load(backbone.removesuffix("-mini"))["rows"]
    card = zoo.card(backbone).replace("\u00a0", " ")
    prose = "\n".join(line for line in card.splitlines() if not line.startswith("|"))
    told = set()
    for name, pairs in CLAIMS[backbone].items():
        reports = [row for row in rows if row["purpose"] == "report" and row["task"] == name]
        groups = {method: group for (method,), group in records.by(reports, "method").items()}
        for (method, other), claim in pairs.items():
            mean, half = records.interval(records.paired(groups[method], groups[other], "test"))
            assert f"{100 * mean:+.1f} ± {100 * half:.1f}" == claim and claim in prose
            told.add(claim)
    assert set(re.findall(r"[+-][\d.]+ ± [\d.]+", prose)) == told  # no difference that is not computed here
