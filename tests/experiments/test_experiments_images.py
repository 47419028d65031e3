"""Image tuning for the studies: the probe by hand, what each method trains, choices without the test split, records."""

import dataclasses
import json
import statistics
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from scipy import stats
from torch import nn
from torch.testing import assert_close

from dplearn import zoo
from dplearn.experiments import execution, fitting, image_text, images, jobs, records, runner, study, tables
from dplearn.experiments.fitting import Settings
from dplearn.experiments.store import Store
from dplearn.experiments.watching import Looks
from dplearn.model import PromptedModel
from dplearn.tasks.images import ImageSplit, ImageTask

WIDTH, CLASSES = tiny.WIDTH, 5
SETTINGS = Settings(steps=3, batch_size=8, learning_rate=0.01, controller_learning_rate=None)


class Processor:
    """Images of 8 x 8 pixels -> values from -1 to 1; counts what it was asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, images, return_tensors):
        self.calls += 1
        pixels = torch.from_numpy(np.array(images, dtype=np.float32)).permute(2, 0, 1)
        return {"pixel_values": (pixels / 127.5 - 1)[None]}


def task(sizes=(4, 2, 2), name="toy/places"):
    """Which of five places is bright? So many images of each class in train, validation and test."""
    generator, splits = np.random.default_rng(0), {}
    for split, size in zip(("train", "validation", "test"), sizes):
        labels = [i % CLASSES for i in range(CLASSES * size)]
        pixels = generator.integers(0, 120, (len(labels), 8, 8, 3), dtype=np.uint8)
        for number, label in enumerate(labels):
            pixels[number, label, :4] += 120
        splits[split] = ImageSplit(pixels, labels)
    names = tuple("abcde")
    return ImageTask(name, names, splits, "accuracy_mean_per_class", "made here")


def backbone(seed=0, **options):
    return tiny.vit(seed=seed, dtype=torch.float32, **options)


# --- the methods ---


def by_hand(method):
    """Numbers of trained parameters."""
    head, vectors, layers = CLASSES * WIDTH + CLASSES, images.LENGTH * WIDTH, 3
    return {
        "linear probe": head,
        "VPT-shallow": head + vectors,
        "VPT-deep": head + layers * vectors,
        "pool per instance": head + 4 * vectors + 4 * (WIDTH + 1),
        "one prompt as large as the pool": head + 4 * vectors,
        "prefix before positions": head + vectors,
        "postfix before positions": head + vectors,
        "position per instance before positions": head + vectors + (images.LENGTH + 1) * (WIDTH + 1),
        "position per instance, coded": head + vectors + (images.LENGTH + 1) * (WIDTH + 1),
        "full fine-tuning": sum(parameter.numel() for parameter in backbone().parameters()),
        "VPT-shallow, random layers": head + vectors,
    }[method]


@pytest.mark.parametrize("method", images.METHODS)
def test_each_method_trains_its_own_parameters_and_is_reproducible(method):
    rows = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        base = backbone()
        before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        model = images.build(method, base)
        row = images.fit(model, task(), Processor(), SETTINGS, seed)
        moved = {name for name, tensor in base.state_dict().items() if not torch.equal(before[name], tensor)}
        everything = {name for name, _ in base.named_parameters()}
        expected = {"classifier.weight", "classifier.bias"} if method == images.PROBE else set()
        # (A key's bias moves all scores of a query alike: its gradient is 0, up to rounding.)
        assert (
            moved == expected
            or method == images.FULL
            and moved >= {name for name in everything if "key.bias" not in name and "k_proj.bias" not in name}
        )
        assert row["trained_parameters"] == by_hand(method)
        assert row.pop("seconds") >= 0
        rows.append(row)
    assert rows[0] == rows[1] and rows[0]["losses"] != rows[2]["losses"] and len(rows[0]["losses"]) == 3
    assert set(rows[0]["scores"]) == {"validation", "test"} and rows[0]["settings"]["steps"] == 3
    assert ("positions" in rows[0]) == ("position per instance" in method)
    if isinstance(model, PromptedModel):
        assert rows[0]["config"] == model.prompt_config.to_dict() and model.prompt_config.head == "trained"
    json.dumps(rows)


def test_the_shares_of_positions_are_those_of_the_decisions():
    model = images.build("position per instance before positions", backbone())
    with torch.no_grad():  # decisions that differ between images
        model.prompt.position.controller.linear.weight.normal_(0, 10)
    data, processor = task(), Processor()
    row = images.fit(model, data, processor, Settings(steps=0), splits=("validation",))
    chosen = [
        int(model.decide(pixel_values=example["pixel_values"][None])["position"].index)
        for example in data.encode(processor, "validation")
    ]
    expected = [chosen.count(k) / len(chosen) for k in range(images.LENGTH + 1)]
    assert row["positions"] == {"validation": pytest.approx(expected, abs=1e-4)} and len(set(chosen)) > 1


def test_scores_are_those_of_one_image_at_a_time():
    model, data, processor = images.build("VPT-deep", backbone()), task(), Processor()
    row = images.fit(model, data, processor, Settings(steps=0))
    for split in ("validation", "test"):
        with torch.no_grad():
            found = [
                int(model(pixel_values=example["pixel_values"][None]).logits.argmax())
                for example in data.encode(processor, split)
            ]
        assert row["scores"][split] == data.score(split, found)
    assert row["losses"] == []


def test_a_set_that_is_too_large_is_encoded_as_it_is_read():
    """The limit is on bytes: at it all images are kept, one byte below it none is, and both give the same pixels."""
    data, calls = task(), []
    for spare in (0, -1):
        processor = Processor()
        size = len(data.examples("train")) * data.encode(processor, "train")[0]["pixel_values"].nbytes
        processor.calls = 0
        rows = data.encode(processor, "train", in_memory=size + spare)
        pixels = [torch.stack([row["pixel_values"] for row in rows]) for _ in range(2)]
        assert torch.equal(*pixels)
        calls.append(processor.calls)
    assert calls == [len(rows), 1 + 2 * len(rows)]


def test_each_image_is_encoded_once():
    processor, data = Processor(), task()
    images.fit(images.build("position per instance before positions", backbone()), data, processor, SETTINGS)
    assert processor.calls == sum(len(data.examples(split)) for split in ("train", "validation", "test"))


def test_one_step_of_the_probe_is_logistic_regression_by_hand():
    """Features, softmax, gradient and AdamW's first step in numpy."""
    base, data, processor = backbone(), task(), Processor()
    rows = list(data.encode(processor, "train"))
    pixels, labels = torch.stack([row["pixel_values"] for row in rows]), [row["labels"] for row in rows]
    with torch.no_grad():
        x = base.base_model(pixel_values=pixels).last_hidden_state[:, 0].double().numpy()
    weight, bias = (p.detach().double().numpy().copy() for p in base.classifier.parameters())
    scores = x @ weight.T + bias
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    loss = -np.log(shares[np.arange(len(labels)), labels]).mean()
    errors = (shares - np.eye(CLASSES)[labels]) / len(labels)
    gradient, model = (errors.T @ x, errors.sum(0)), images.build("linear probe", base)
    model(pixel_values=pixels, labels=torch.tensor(labels)).loss.backward()
    for parameter, wanted in zip(base.classifier.parameters(), gradient):
        assert_close(parameter.grad.double(), torch.from_numpy(wanted), rtol=1e-4, atol=1e-6)
    settings = Settings(
        steps=1, batch_size=len(rows), learning_rate=0.1, warmup=0, clip=1e9, controller_learning_rate=None
    )
    row = images.fit(model, data, processor, settings)
    assert row["losses"] == [pytest.approx(loss, abs=1e-4)]
    for parameter, start, g in zip(base.classifier.parameters(), (weight, bias), gradient):
        expected = start - 0.1 * g / (np.abs(g) + 1e-8)
        certain = torch.from_numpy(np.abs(g) > 1e-4)
        assert_close(parameter.double()[certain], torch.from_numpy(expected)[certain], rtol=0, atol=1e-4)
        assert certain.float().mean() > 0.9


def test_any_module_with_a_loss_and_logits_can_be_trained():
    class Bright(nn.Module):
        """Two outputs besides the loss: the logits come first."""

        def __init__(self):
            super().__init__()
            self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
            self.linear = nn.Linear(8 * 8 * 3, CLASSES)

        def forward(self, pixel_values, labels=None):
            logits = self.linear(pixel_values.flatten(1)) * self.frozen
            loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
            return {"loss": loss, "logits": logits, "more": logits.detach() * 0}

    model = Bright()
    row = images.fit(model, task((8, 2, 2)), Processor(), Settings(40, 8, 0.01, None))
    assert row["trained_parameters"] == sum(p.numel() for p in model.linear.parameters())
    assert row["scores"]["test"]["accuracy"] >= 0.8 and "config" not in row and row["seed"] == 0


def test_an_unknown_method_is_refused_with_a_list():
    with pytest.raises(
        ValueError, match="method='bias' is unknown, expected one of .'linear probe', 'VPT-sh"
    ):
        images.build("bias", backbone())


OF_TEXTS = {
    "optimizer": "adam",
    "schedule": "linear",
    "last_temperature": 0.1,
    "entropy_bonus": 0.1,
    "vectors_first": 5,
    "train_vectors": False,
    "init_words": "tell",
    "fit_summaries": True,
    "group_by_length": True,
}


def test_settings_that_runs_on_images_do_not_have_are_all_known():
    """Every setting is one of texts, or makes a difference to a run on images."""
    assert set(fitting.OF_TEXTS) == set(OF_TEXTS)
    named = {field.name for field in dataclasses.fields(Settings)} - set(OF_TEXTS)
    common = {"steps", "batch_size", "warmup", "clip", "bf16"}
    common |= {"accumulate", "evaluate_every", "keep", "noisy_evaluation"}
    assert named == common | {"learning_rate", "controller_learning_rate", "head_learning_rate"}


@pytest.mark.parametrize(("name", "value"), OF_TEXTS.items())
@pytest.mark.parametrize("way", ["tune", "fit", "image-text"])
def test_a_setting_without_an_effect_on_images_is_refused_before_any_work(way, name, value, monkeypatch):
    monkeypatch.setattr(zoo, "load", None)  # nothing is loaded
    settings, processor = dataclasses.replace(SETTINGS, **{name: value}), Processor()
    with pytest.raises(ValueError, match=f"{name}={value!r} has no effect on images, expected"):
        if way == "tune":
            images.tune("VPT-shallow", task(), settings)
        elif way == "fit":
            images.fit(images.build("VPT-shallow", backbone()), task(), processor, settings)
        else:
            image_text.tune("prefix", task(), settings)
    assert not processor.calls


def test_the_seed_of_a_run_is_that_of_the_noise_and_of_the_order(tmp_path):
    arguments = fitting.trainer_of(backbone(), SETTINGS, 7, str(tmp_path)).args
    assert (arguments.seed, arguments.data_seed) == (7, 7)


def test_all_trained_parts_have_one_rate():
    model = images.build("position per instance before positions", backbone())
    groups = images.optimizer_of(model, SETTINGS).param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.01, 0.0)] * 3
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.prompt.parameters()}


def rates(model, settings):
    """The rate of each trained parameter in the optimizer, by its name; no parameter stands in two groups."""
    groups = images.optimizer_of(model, settings).param_groups
    found = [(id(p), group["lr"]) for group in groups for p in group["params"]]
    assert len(dict(found)) == len(found)
    names = {name: id(p) for name, p in model.named_parameters() if id(p) in dict(found)}
    assert len(names) == len(found) and {id(p) for p in model.parameters() if p.requires_grad} == set(
        dict(found)
    )
    return {name: dict(found)[number] for name, number in names.items()}


@pytest.mark.parametrize("method", images.METHODS)
def test_heads_can_have_a_rate_of_their_own(method):
    """And nothing else has it; without one all is as it was."""
    model = images.build(method, backbone())
    usual = Settings(learning_rate=0.01, controller_learning_rate=0.02)
    prompted = isinstance(model, PromptedModel)
    for head, expected in ((None, 0.02 if prompted else 0.01), (0.5, 0.5)):
        found = rates(model, dataclasses.replace(usual, head_learning_rate=head))
        of_head = {name for name in found if "classifier" in name}
        assert len(of_head) == 2 and {found[name] for name in of_head} == {expected}
        for name in found.keys() - of_head:
            controller = prompted and not name.endswith("vectors")
            assert found[name] == (0.02 if controller else 0.01), name


def test_the_rate_of_a_head_is_that_of_its_steps():
    """A head that does not learn gives the untrained head's answers; the rate is not that of anything else."""
    model = images.build("VPT-shallow", backbone())
    head = {name: p.detach().clone() for name, p in model.prompt.head.named_parameters()}
    vectors = model.prompt.vectors.detach().clone()
    images.fit(model, task(), Processor(), dataclasses.replace(SETTINGS, head_learning_rate=1e-12))
    assert all(torch.allclose(head[n], p, atol=1e-9) for n, p in model.prompt.head.named_parameters())
    assert (model.prompt.vectors - vectors).abs().max() > 1e-3


@pytest.mark.parametrize("rate", [0, -0.1, float("nan"), "0.1", True])
def test_a_rate_of_heads_is_checked(rate):
    with pytest.raises(
        ValueError, match="head_learning_rate=.* is not valid, expected a positive, finite number"
    ):
        Settings(head_learning_rate=rate)


# --- what is seen of a run ---


def outcome(row):
    return row["losses"], row["scores"], row["cross_entropy"]


@pytest.mark.parametrize(
    "method", ["linear probe", "position per instance, coded", "pool per instance", "full fine-tuning"]
)
def test_a_run_that_is_watched_is_the_same_run(method):
    """Looked at often, seldom, and at a third too: the same losses, scores and weights."""
    rows, weights = [], []
    for looks in (Looks(3, 7, 5, True), Looks(1, 2, 2)):
        torch.manual_seed(1)
        model = images.build(method, backbone())
        rows.append(images.fit(model, task(), Processor(), SETTINGS, 1, looks=looks))
        weights.append(model.state_dict())
    assert outcome(rows[0]) == outcome(rows[1])
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert rows[0]["curves"]["steps"] == [0, 1, 2, 3] and rows[1]["curves"]["steps"] == [0, 3]
    assert rows[0]["at_a_third"].keys() == {"validation", "test"} and rows[1]["at_a_third"] is None
    learned = [name.removeprefix("entropy_") for name in rows[0]["curves"] if name.startswith("entropy_")]
    assert learned == list(rows[0].get("evidence", {"decisions": {}})["decisions"])
    assert bool(learned) == ("instance" in method)


@pytest.mark.parametrize("method", ["linear probe", "position per instance, coded", "full fine-tuning"])
def test_a_run_that_is_evaluated_is_the_same_run_and_keeps_its_best_weights(method):
    rows, weights = [], []
    settings = replace(SETTINGS, evaluate_every=1, noisy_evaluation=True)
    for each in (SETTINGS, settings, replace(settings, keep="best")):
        torch.manual_seed(1)
        model = images.build(method, backbone())
        rows.append(images.fit(model, task(), Processor(), each, 1))
        weights.append(model.state_dict())
    assert outcome(rows[0]) == outcome(rows[1])
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    found = rows[1]["evaluations"]
    assert found["steps"] == [1, 2, 3] and ("noisy" in found) == ("instance" in method)
    assert found["last"]["score"] == next(iter(rows[1]["scores"]["validation"].values()))
    assert found["best"]["score"] == next(iter(rows[2]["scores"]["validation"].values()))


def test_accumulated_images_make_the_step_of_a_whole_batch():
    weights = []
    for settings in (SETTINGS, replace(SETTINGS, batch_size=4, accumulate=2)):
        torch.manual_seed(1)
        model = images.build("VPT-shallow", backbone())
        images.fit(model, task(), Processor(), settings, 1)
        weights.append(dict(model.named_parameters()) | dict(model.named_buffers()))
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-5)


def test_curves_are_those_of_one_image_at_a_time_and_of_the_losses():
    torch.manual_seed(1)
    model, data, processor = images.build("position per instance, coded", backbone()), task(), Processor()
    row = images.fit(model, data, processor, SETTINGS, 1, looks=Looks(3, 1000, 1000))
    curves, found = row["curves"], row["evidence"]
    assert curves["loss"][0] is None and curves["loss"][1:] == pytest.approx(row["losses"], abs=1e-4)
    assert curves["score"][-1] == pytest.approx(row["scores"]["validation"]["accuracy"], abs=1e-4)
    losses, entropies, chosen = [], [], []
    for example in data.encode(processor, "validation"):
        pixels = example["pixel_values"][None]
        with torch.no_grad():
            output, decided = model(pixel_values=pixels), model.decide(pixel_values=pixels)["position"]
        losses.append(float(nn.functional.cross_entropy(output.logits, torch.tensor([example["labels"]]))))
        pi = decided.logits.softmax(-1)
        entropies.append(float(-(pi * pi.log()).sum()))
        chosen.append(int(decided.index))
    assert row["cross_entropy"]["validation"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert curves["cross_entropy"][-1] == pytest.approx(np.mean(losses), abs=1e-3)
    assert curves["entropy_position"][-1] == pytest.approx(np.mean(entropies), abs=1e-3)
    assert curves["entropy_position"][0] == pytest.approx(np.log(images.LENGTH + 1), abs=1e-4)
    assert found["split"] == "validation"
    decision = found["decisions"]["position"]
    assert decision["counts"] == [chosen.count(k) for k in range(images.LENGTH + 1)]
    assert decision["loss"] == pytest.approx(np.mean(losses), abs=1e-3) and decision["moved"] > 0


# --- the data of a run ---


@pytest.fixture
def small(monkeypatch):
    """A study of one small task, on a tiny backbone in the place of vit-mini; keeps which splits were encoded."""
    from dplearn import tasks

    seen, encode = [], ImageTask.encode

    def watched(self, processor, split, in_memory=False):
        seen.append(split)
        return encode(self, processor, split, in_memory)

    monkeypatch.setattr(ImageTask, "encode", watched)
    monkeypatch.setattr(tasks, "load", lambda name: task((6, 4, 4), name))
    execution._task.cache_clear()
    monkeypatch.setattr(zoo, "load", lambda name, num_labels: (backbone(num_labels=num_labels), Processor()))
    monkeypatch.setattr(
        zoo, "random_control", lambda name, seed, num_labels: backbone(seed, num_labels=num_labels)
    )
    monkeypatch.setattr(images, "SETTINGS", SETTINGS)
    yield seen
    execution._task.cache_clear()


def of_method(known, *methods):
    return [job for job in known if job.labels["method"] in methods and job.labels["task"] == "images/digits"]


def finished(jobs_of):
    """Rows for choices in which the middle rate is the best."""
    return {
        job.key: {
            "scores": {"validation": {"accuracy": float(job.spec["settings"]["learning_rate"] == 0.01)}}
        }
        for job in jobs_of
    }


def test_choice_runs_never_see_the_test_split(small):
    vit = study.read("vit")
    choices = of_method(jobs.jobs(vit, {}), "VPT-shallow")
    row = execution.run_job(choices[0].spec)
    assert set(small) == {"train", "validation"} and set(row["scores"]) == {"validation"}
    known = of_method(jobs.jobs(vit, finished(choices)), "VPT-shallow")
    report = next(job for job in known if job.purpose == "report")
    row = execution.run_job(report.spec)
    assert small.count("test") == 1 and set(row["scores"]) == {"test"}
    assert row["settings"]["learning_rate"] == 0.01 and row["seed"] == 1


class Inline:
    """Workers in this process, one run at a time."""

    count = 1

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future

    def close(self): ...


def test_a_killed_study_goes_on_where_it_was(tmp_path, small):
    """The process ends in the middle of the eighth of ten runs."""
    vit, ran, again = study.read("vit"), [], []

    def known(rows):
        found = of_method(jobs.jobs(vit, rows), "linear probe", "pool per instance")
        return [job for job in found if job.spec["seed"] in (101, 1, 2)]

    def killed(spec, options):
        if len(ran) == 7:
            raise KeyboardInterrupt
        ran.append(spec)
        return execution.run_job(spec, options)

    def going_on(spec, options):
        again.append(spec)
        return execution.run_job(spec, options)

    def start(work):
        runner.Runner(known, Store(tmp_path), Inline(), work, say=lambda text: None).run()

    with pytest.raises(KeyboardInterrupt):
        start(killed)
    before = dict(Store(tmp_path).rows())
    assert len(before) == 7  # one file for each run that ended
    start(going_on)
    rows = Store(tmp_path).rows()
    assert len(rows) == 10 and all(rows[key] == row for key, row in before.items())
    assert len(again) == 3 and not any(spec in ran for spec in again)
    start(going_on)
    assert len(again) == 3
    for group in records.by(jobs.labelled(vit, rows), "method").values():
        scores = {r["settings"]["learning_rate"]: r["scores"]["validation"]["accuracy"] for r in group[:3]}
        top = [rate for rate, score in scores.items() if score == max(scores.values())]
        best = 0.01 if 0.01 in top else min(top)
        assert [row["purpose"] for row in group] == ["choice"] * 3 + ["report"] * 2
        assert {row["settings"]["learning_rate"] for row in group[3:]} == {best}
        assert all(row["settings"]["controller_learning_rate"] is None for row in group)


def test_the_zoos_backbone_gets_a_fresh_head_and_the_control_fresh_layers(monkeypatch):
    seen = []
    monkeypatch.setattr(images, "build", lambda method, base: seen.append(base))
    monkeypatch.setattr(images, "fit", lambda *arguments: {})
    for method, seed in (("VPT-shallow", 1), ("VPT-shallow", 1), ("VPT-shallow", 2), (images.METHODS[-1], 1)):
        images.tune(method, task(), seed=seed)
    own = zoo.load("vit-mini")[0].base_model.state_dict()
    same = [all(torch.equal(own[k], v) for k, v in base.base_model.state_dict().items()) for base in seen]
    assert same == [True, True, True, False]
    heads = [base.classifier.weight for base in seen]
    assert [head.shape for head in heads] == [(CLASSES, own["layernorm.weight"].shape[0])] * 4
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    again = zoo.random_control("vit-mini", 1, num_labels=CLASSES).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in seen[3].state_dict().items())
    with pytest.raises(ValueError, match="num_labels=3: expected None, t5-mini has no classification head"):
        zoo.random_control("t5-mini", 1, num_labels=3)


# --- tables ---


def record():
    rows = []
    for method, scores in (("probe", (0.5, 0.6, 0.7)), ("prompt", (0.55, 0.7, 0.72)), ("once", (0.9,))):
        for seed, score in enumerate(scores):
            rows.append(
                {
                    "purpose": "report", "task": "t", "method": method, "seed": seed, "seconds": 2.0 + seed,
                    "trained_parameters": 1234, "settings": {"learning_rate": 0.1},
                    "scores": {"test": {"accuracy": score}},
                }
            )  # fmt: skip
    choice = rows[0] | {"purpose": "choice", "scores": {"validation": {"accuracy": 1.0}}}
    return [choice, *rows[::-1], rows[0] | {"task": "other"}]


def test_the_table_has_means_spreads_and_paired_differences():
    lines = {line.method: line for line in tables.lines_against(record(), "t", "probe")}
    assert list(lines) == ["once", "prompt", "probe"]
    gains = [0.05, 0.1, 0.02]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(gains), scale=stats.sem(gains))
    prompt = lines["prompt"]
    assert (prompt.runs, prompt.parameters, prompt.rates, prompt.seconds) == (3, 1234, (0.1,), 3.0)
    assert prompt.mean == pytest.approx(0.65666667) and prompt.spread == pytest.approx(
        statistics.stdev((0.55, 0.7, 0.72))
    )
    mean, half = prompt.difference
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert lines["probe"].difference is None and lines["once"].difference is None
    assert lines["once"].spread == 0 and records.paired(record()[1:2], record()[-2:-1]) == pytest.approx(
        [0.4]
    )
    text = tables.markdown(list(lines.values()), "probe").splitlines()
    assert len(text) == 5 and text[3].startswith(
        "| prompt | 1,234 | 65.7\u00a0±\u00a09.3 | +5.7\u00a0±\u00a0"
    )
    with pytest.raises(ValueError, match="baseline='none' has no runs on 't', expected one of"):
        tables.lines_against(record(), "t", "none")
