"""What a run records besides its scores: curves, decisions, right splits; and the settings of a run, one by one."""

import math

import pytest
import tiny
import torch
from test_experiments import WORDS, task, tokenizer
from transformers import BertForSequenceClassification

import dplearn as dp
from dplearn.experiments import evaluations, execution, fitting, records, runs, tables, tuning
from dplearn.experiments.runs import some
from dplearn.experiments.watching import Looks

SETTINGS = {"steps": 6, "batch_size": 8, "learning_rate": 0.1}
INSTANCE = dp.PromptConfig(length=2, position="instance")


def tuned(config=INSTANCE, seed=1, backbone=None, splits=("validation", "test"), data=None, **more):
    settings = {name: more.pop(name) for name in list(more) if name in fitting.Settings.__dataclass_fields__}
    backbone = tiny.t5(dtype=torch.float32) if backbone is None else backbone
    data = task() if data is None else data
    settings = fitting.Settings(**SETTINGS | settings)
    return tuning.tune_prompt(backbone, tokenizer(), data, config, settings, seed, splits, **more)


def outcome(row):
    return row["losses"], row["scores"], row["cross_entropy"]


@pytest.mark.parametrize("estimator", ["straight-through", "score-function"])
def test_a_run_that_is_watched_is_the_same_run(estimator):
    """Looking often, seldom, or at a third too changes nothing but what is seen."""
    config = dp.PromptConfig(length=2, position="instance", estimator=estimator)
    rows = [tuned(config, looks=looks) for looks in (Looks(6, 20, 30, True), Looks(1, 5, 7))]
    assert outcome(rows[0]) == outcome(rows[1])
    assert rows[0]["curves"]["steps"] == list(range(7)) and rows[1]["curves"]["steps"] == [0, 6]
    assert rows[0]["at_a_third"].keys() == {"validation", "test"} and rows[1]["at_a_third"] is None
    third = tuned(config, steps=2, looks=Looks(1))
    assert rows[0]["at_a_third"] == third["scores"]


def test_a_backbone_and_an_encoding_that_are_used_again_give_the_same_run():
    """As in a worker, which keeps them: a prompt leaves nothing behind."""
    backbone, data, tok, kept = tiny.t5(dtype=torch.float32), task(), tokenizer(), {}

    def encode(split, model):
        return kept.setdefault(split, data.encode(tok, split, model))

    configs = [dp.PromptConfig(length=2, position="task", estimator="score-function"), INSTANCE]
    fresh = [tuned(config) for config in configs]
    again = [tuned(config, backbone=backbone, encode=encode) for config in (*configs, *configs[:1])]
    assert [outcome(row) for row in again] == [outcome(fresh[0]), outcome(fresh[1]), outcome(fresh[0])]


def test_curves_start_untrained_and_end_with_what_the_run_became():
    row = tuned(looks=Looks(points=6, subset=1000))
    untrained = tuned(steps=0)
    curves = row["curves"]
    assert curves["score"][0] == pytest.approx(untrained["scores"]["validation"]["accuracy"], abs=1e-4)
    assert curves["score"][-1] == pytest.approx(row["scores"]["validation"]["accuracy"], abs=1e-4)
    assert curves["cross_entropy"][-1] == pytest.approx(row["cross_entropy"]["validation"], abs=1e-3)
    assert curves["entropy_position"][0] == pytest.approx(math.log(3), abs=1e-4)
    assert curves["loss"][0] is None and curves["loss"][1:] == pytest.approx(row["losses"], abs=1e-3)
    found = row["evidence"]
    assert found["split"] == "validation" and found["decisions"]["position"]["inputs"] == 30
    assert found["decisions"]["position"]["entropy"] == pytest.approx(
        curves["entropy_position"][-1], abs=1e-3
    )
    assert sum(found["decisions"]["position"]["counts"]) == 30


@pytest.mark.parametrize("make", [tiny.gpt2, tiny.llama])
def test_a_decoder_only_model_learns_from_answers_of_one_token(make):
    """The Trainer counts no label there; a loss divided by that count was infinite."""
    config = dp.PromptConfig(length=2, position="instance")
    backbone = make(seed=1, dtype=torch.float32)
    row = tuned(
        config, backbone=backbone, answer_prefix="b g", steps=20, batch_size=60, optimizer="adam", warmup=0
    )
    assert all(math.isfinite(loss) for loss in row["losses"]) and row["losses"][-1] < row["losses"][0]
    still = tuned(config, backbone=backbone, answer_prefix="b g", steps=1, batch_size=60, learning_rate=1e-9)
    untrained = tuned(config, backbone=backbone, answer_prefix="b g", steps=0, splits=("train", "test"))
    assert (
        abs(still["losses"][0] - untrained["cross_entropy"]["train"]) < 0.5
    )  # one batch of all, places sampled


def test_cross_entropy_is_that_of_the_label_words():
    backbone, tok, data = tiny.t5(dtype=torch.float32), tokenizer(), task()
    row, losses = tuning.zero_shot(backbone, tok, data), []
    for example in data.encode(tok, "test"):
        with torch.no_grad():
            logits = backbone(
                input_ids=torch.tensor([example["input_ids"]]), labels=torch.tensor([example["labels"]])
            ).logits[0, -1, [4, 3]]
        losses.append(-logits.log_softmax(-1)[[4, 3].index(example["labels"][-1])])
    assert row["cross_entropy"]["test"] == pytest.approx(float(torch.stack(losses).mean()), abs=1e-4)


def test_headroom_is_the_loss_at_every_split():
    row = tuned(headroom=True, train_vectors=False)
    room = row["evidence"]["headroom"]
    assert room["decision"] == "position" and room["options"] == [0, 1, 2]
    for split, mean in zip((0, 1, 2), room["means"], strict=True):
        fixed = tuned(dp.PromptConfig(length=2, position=split), train_vectors=False)
        assert mean == pytest.approx(fixed["cross_entropy"]["validation"], abs=2e-3)


def test_a_prompt_can_be_given_and_left_alone():
    """The rows of words of the vocabulary, again and again; where nothing else is learned, there are no steps."""
    config, seen = dp.PromptConfig(length=3), []
    backbone = tiny.t5(dtype=torch.float32)
    usual = tuning.prompted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "prompted", lambda *a, **k: seen.append(usual(*a, **k)) or seen[-1])
        row = tuned(config, backbone=backbone, init_words="a b", train_vectors=False)
        learned = tuned(backbone=backbone, init_words="a b", train_vectors=False)
    table = backbone.get_input_embeddings().weight
    assert torch.equal(seen[0].prompt.vectors, table[[WORDS.index(w) for w in "aba"]])
    assert (row["trained_parameters"], row["settings"]["steps"], row["losses"]) == (0, 0, [])
    assert torch.equal(seen[1].prompt.vectors, table[[WORDS.index(w) for w in "ab"]])
    assert learned["trained_parameters"] == 3 * (tiny.WIDTH + 1)
    assert learned["evidence"]["decisions"]["position"]["moved"] > 0
    with pytest.raises(
        ValueError, match="init_words='zebra' has tokens .*expected words that this tokenizer knows"
    ):
        tuned(config, init_words="zebra")


def test_vectors_first_leaves_decisions_as_they_began():
    still = tuned(vectors_first=6)["evidence"]["decisions"]["position"]
    late = tuned(vectors_first=5)["evidence"]["decisions"]["position"]
    assert still["moved"] == 0 and late["moved"] > 0
    entropies = tuned(vectors_first=3, looks=Looks(points=6))["curves"]["entropy_position"]
    assert entropies[:4] == [entropies[0]] * 4 and entropies[4] != entropies[0]


def test_the_bonus_keeps_the_entropy_up_and_is_no_part_of_the_recorded_loss():
    config = dp.PromptConfig(length=2, position="task", controller_init="uniform")
    options = {"controller_learning_rate": 0.3, "optimizer": "adam", "warmup": 0, "train_vectors": False}
    plain, bonus = (tuned(config, entropy_bonus=factor, steps=15, **options) for factor in (0.0, 50.0))
    ends = [row["evidence"]["decisions"]["position"]["entropy"] for row in (plain, bonus)]
    assert ends[1] > max(ends[0], 0.99 * math.log(3))
    assert bonus["curves"]["loss"][1] == pytest.approx(plain["curves"]["loss"][1], abs=0.05)


def test_summaries_can_be_fitted_before_the_first_step():
    seen, usual = [], tuning.prompted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "prompted", lambda *a, **k: seen.append(usual(*a, **k)) or seen[-1])
        for fitted in (True, False):
            tuned(fit_summaries=fitted, steps=0)
    counts = [int(model.prompt.position.controller.standardizer.count) for model in seen]
    assert counts == [60, 0]


def test_batches_of_like_length_have_less_padding(monkeypatch):
    usual, data, shares = tuning.prompted, task(), {True: [], False: []}

    def encode(split, model):
        """Inputs of one, five, ... times the usual length."""
        names = ("input_ids", "attention_mask")
        rows = enumerate(data.encode(tokenizer(), split, model))
        return [row | {name: row[name] * (1 + 4 * (number % 5)) for name in names} for number, row in rows]

    def seen(*arguments, **options):
        model = usual(*arguments, **options)

        def look(module, values, batch):
            if module.training:
                shares[grouped].append(float(batch["attention_mask"].float().mean()))

        model.register_forward_pre_hook(look, with_kwargs=True)
        return model

    monkeypatch.setattr(tuning, "prompted", seen)
    for grouped in (False, True):
        tuned(encode=encode, group_by_length=grouped, batch_size=4)
    assert len(shares[True]) == len(shares[False]) == 6
    assert sum(shares[True]) / 6 > 0.7 > 0.6 > sum(shares[False]) / 6, shares


@pytest.mark.parametrize(
    ("name", "first", "expected"),
    [("constant", 2.0, [2.0, 2.0]), ("linear", 2.0, [2.0, 0.5]), ("exponential", 1.0, [1.0, 0.5])],
)
def test_temperatures_start_at_that_of_the_prompt(name, first, expected):
    temperatures = fitting.Settings(steps=10, schedule=name, last_temperature=0.5).temperatures(first)
    assert [temperatures(0), temperatures(10)] == expected


def test_optimizers_have_the_rates_of_vectors_and_decisions():
    model = dp.prompted(tiny.t5(dtype=torch.float32), INSTANCE)
    for name, kind in (("adam", torch.optim.Adam), ("adafactor", fitting.Adafactor)):
        settings = fitting.Settings(optimizer=name, learning_rate=0.2, controller_learning_rate=0.01)
        optimizer = settings.optimizer_of(model)
        assert type(optimizer) is kind and [group["lr"] for group in optimizer.param_groups] == [0.2, 0.01]
    classifier = dp.prompted(
        tiny.bert(BertForSequenceClassification, dtype=torch.float32),
        dp.PromptConfig(length=2, head="trained", position="task"),
    )
    for rate, expected in ((None, 0.01), (0.7, 0.7)):
        settings = fitting.Settings(0, 1, 0.2, 0.01, head_learning_rate=rate)
        groups = settings.optimizer_of(classifier).param_groups
        found = {id(p): group["lr"] for group in groups for p in group["params"]}
        for name, parameter in classifier.trainable_parameters().items():
            wanted = (
                expected if name.startswith("prompt.head.") else 0.2 if name.endswith("vectors") else 0.01
            )
            assert found.pop(id(parameter)) == wanted, name
        assert not found
    for wrong in (
        {"optimizer": "sgd"},
        {"schedule": "cosine"},
        {"entropy_bonus": -1.0},
        {"vectors_first": -1},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            fitting.Settings(**wrong)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1),
        ({"position": "instance"}, 4),
        ({"position": "instance", "estimator": "straight-through"}, 1),
        ({"position": "instance", "estimator": "score-function", "samples": 7}, 7),
        ({"position": "task", "estimator": "exact"}, 6),
        ({"position": "prefix", "estimator": "exact"}, 1),
        ({"vector": "instance", "mixing": "hard", "pool_size": 3, "estimator": "exact"}, 3),
    ],
)
def test_passes_are_the_options_that_an_estimator_tries(options, expected):
    assert tuning.passes(dp.PromptConfig(length=5, **options)) == expected


def test_the_right_splits_of_place_tasks_are_counted():
    spec = {
        "backbone": "place-mini", "task": "place/fixed", "kind": "prompt", "seed": 1, "purpose": "report",
        "prompt": {"length": 1, "position": "prefix"}, "splits": ["validation"],
        "settings": {"init_words": "tell", "train_vectors": False},
    }  # fmt: skip
    row = execution.run_job(spec)
    assert row["right_split"] == {"validation": 1.0} and row["scores"]["validation"]["accuracy"] > 0.95
    behind = execution.run_job(spec | {"prompt": {"length": 1, "position": "postfix"}})
    assert behind["right_split"] == {"validation": 0.0} and behind["scores"]["validation"]["accuracy"] < 0.1
    assert (
        row["made"]["torch"] == torch.__version__ and row["peak_memory_mb"] > 100 and row["wall_seconds"] > 0
    )
    assert runs.share_right_of(task()) is None and "right_split" not in tuned(steps=0)


def test_a_task_is_named_with_its_options(monkeypatch, tmp_path):
    few = execution.load_task("world/rte?shots=4&draw=1")
    other = execution.load_task("world/rte?shots=4&draw=2")
    assert [len(each.examples("train")) for each in (few, other)] == [8, 8]
    assert few.examples("train") != other.examples("train")
    assert len(execution.load_task("world/rte?total=5").examples("train")) == 5
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    with pytest.raises(ValueError, match="expected the variable NO_SUCH_FOLDER to be set"):
        execution.load_task("superglue/cb?path=$NO_SUCH_FOLDER")
    monkeypatch.setenv("NO_SUCH_FOLDER", str(tmp_path / "nothing"))
    with pytest.raises((ValueError, FileNotFoundError), match="nothing"):
        execution.load_task("superglue/cb?path=$NO_SUCH_FOLDER")


def test_some_are_spread_evenly():
    assert some(range(100), 4) == [0, 25, 50, 75] and some(range(3), 4) == [0, 1, 2]


# --- scores of the whole validation split on the way ---

EVERY = {"steps": 7, "evaluate_every": 2, "noisy_evaluation": True}
# Its answers change from step to step, and with the noise.
LIVELY = {"learning_rate": 0.3, "optimizer": "adam", "warmup": 0}
SPLITS = dp.PromptConfig(length=4, position="instance")
HARD = dp.PromptConfig(length=2, position="instance", vector="instance", mixing="hard", pool_size=2)


def lively(config=SPLITS, **more):
    return tuned(config, backbone=tiny.t5(seed=5, dtype=torch.float32), **LIVELY | more)


@pytest.fixture
def models(monkeypatch):
    """The models that are trained, as they are in the end."""
    seen, usual = [], tuning.prompted
    monkeypatch.setattr(tuning, "prompted", lambda *a, **k: seen.append(usual(*a, **k)) or seen[-1])
    return seen


def parts_of(model):
    return {name: value.clone() for name, value in model.prompt.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("estimator", ["straight-through", "score-function"])
def test_a_run_that_is_evaluated_is_the_same_run(estimator, models):
    config = dp.PromptConfig(length=4, position="instance", estimator=estimator)
    plain = lively(config, steps=7)
    rows = [lively(config, **EVERY), lively(config, steps=7, evaluate_every=7, keep="last")]
    for row, model in zip(rows, models[1:], strict=True):
        assert outcome(row) == outcome(plain) and row["curves"] == plain["curves"]
        assert equal(parts_of(model), parts_of(models[0]))
    assert "evaluations" not in plain
    assert rows[1]["evaluations"]["steps"] == [7] and "noisy" not in rows[1]["evaluations"]


def test_evaluations_are_scores_of_runs_that_stop_there(models):
    row = lively(**EVERY)
    found = row["evaluations"]
    assert found["steps"] == [2, 4, 6, 7]
    for step, score in zip(found["steps"], found["score"], strict=True):
        assert score == lively(steps=step)["scores"]["validation"]["accuracy"]
    for name in ("score", "noisy"):
        assert found["best"][name] == max(found[name]) and found["last"][name] == found[name][-1]
        assert found["best_step"][name] == found["steps"][found[name].index(max(found[name]))]
    assert found["kept_step"] == 7 and found["last"]["score"] == row["scores"]["validation"]["accuracy"]
    assert len(set(found["score"])) > 2 and found["noisy"] != found["score"]
    for chooser in evaluations.choosers_of(models[0]):
        assert not chooser.sample_in_evaluation and chooser.generator is None


@pytest.mark.parametrize("config", [SPLITS, HARD])
def test_noisy_scores_are_those_of_a_loop_by_hand(config, models):
    """Decisions that are sampled, one batch after the other, from a generator of the seed and the step."""
    found = lively(config, seed=5, **EVERY)["evaluations"]
    data, tok = task(), tokenizer()
    rows = sorted(data.encode(tok, "validation"), key=lambda row: len(row["input_ids"]))
    labels = torch.tensor([[4, 3].index(row["labels"][-1]) for row in rows])
    differ = 0
    for step, noisy, score in zip(found["steps"], found["noisy"], found["score"], strict=True):
        lively(config, seed=5, steps=step)
        model = models[-1].eval()
        generator = torch.Generator().manual_seed(1_000_003 * 5 + step)
        for chooser in model.prompt.choosers().values():
            chooser.sample_in_evaluation, chooser.generator = True, generator
        batch = tok.pad([{"input_ids": row["input_ids"]} for row in rows], return_tensors="pt")
        starts = torch.full((len(rows), 1), tiny.PAD)
        with torch.no_grad():
            logits = model(**batch, decoder_input_ids=starts).logits[:, -1, [4, 3]]
        assert noisy == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
        differ += noisy != score
    assert differ  # the noise does something


@pytest.mark.parametrize(("seed", "step"), [(1, 4), (2, 4), (5, 6)])
def test_the_best_weights_are_those_of_the_first_best_score(seed, step, models):
    row = lively(seed=seed, keep="best", **EVERY | {"steps": 9})
    found = row["evaluations"]
    best = found["steps"][found["score"].index(max(found["score"]))]
    assert found["kept_step"] == best == found["best_step"]["score"]
    assert row["scores"]["validation"]["accuracy"] == found["best"]["score"]
    stopped = lively(seed=seed, steps=best)
    assert equal(parts_of(models[0]), parts_of(models[1])) and outcome(row)[1:] == outcome(stopped)[1:]
    assert row["evidence"] == stopped["evidence"]  # of the weights that are kept
    assert best == step  # neither the first nor the last, and with seed 5 as good as later ones
    lively(seed=seed, steps=9)
    assert not equal(parts_of(models[0]), parts_of(models[2]))


def test_other_methods_are_evaluated_too():
    settings = fitting.Settings(**SETTINGS | EVERY | {"keep": "best", "learning_rate": 1e-2})
    row = tuning.fine_tune(tiny.t5(dtype=torch.float32), tokenizer(), task(), settings, 1)
    found = row["evaluations"]
    assert found["steps"] == [2, 4, 6, 7] and "noisy" not in found
    assert row["scores"]["validation"]["accuracy"] == found["best"]["score"] == max(found["score"])
    prefix = tuned(dp.PromptConfig(length=2), **EVERY)["evaluations"]
    assert "noisy" not in prefix and len(prefix["score"]) == 4
    assert "evaluations" not in tuned(train_vectors=False, config=dp.PromptConfig(length=2), **EVERY)


@pytest.mark.parametrize(
    ("make", "cue"), [(tiny.t5, ""), (tiny.t5, "b g"), (tiny.llama, "b g"), (tiny.llama, "")]
)
@pytest.mark.parametrize("bonus", [0.0, 2.0])
def test_half_batches_make_the_step_of_a_whole_one(make, cue, bonus, models):
    """Losses, gradients and the bonus are means over all examples of a step. (At each position: its draws differ.)"""
    config = dp.PromptConfig(length=2, position="task", estimator="exact")
    backbone = make(dtype=torch.float32)
    given = dict(config=config, backbone=backbone, answer_prefix=cue, entropy_bonus=bonus, steps=4, clip=0.05)
    whole = tuned(batch_size=12, **given)
    halves = tuned(batch_size=6, accumulate=2, **given)
    for name, value in parts_of(models[0]).items():
        torch.testing.assert_close(parts_of(models[1])[name], value, rtol=1e-3, atol=1e-4)
    assert halves["losses"] == pytest.approx(whole["losses"], rel=1e-3)
    assert halves["curves"]["loss"][1:] == pytest.approx(whole["curves"]["loss"][1:], rel=1e-3)
    single = tuned(batch_size=6, **given)
    assert single["losses"] != pytest.approx(whole["losses"], rel=1e-3)


@pytest.mark.parametrize(("make", "cue", "count"), [(tiny.t5, "", 60), (tiny.llama, "b g", 52)])
def test_the_last_step_of_an_epoch_may_be_smaller(make, cue, count, models):
    """Of 60 examples it has passes of eight and of four, of 52 one pass of four (where no label token is counted)."""
    backbone = make(dtype=torch.float32)
    given = dict(steps=4, clip=100.0, warmup=0, optimizer="adam", answer_prefix=cue, data=task(count))
    for sizes in ({"batch_size": 8, "accumulate": 2}, {"batch_size": 16}):
        tuned(dp.PromptConfig(length=2), backbone=backbone, **sizes, **given)
    torch.testing.assert_close(models[0].prompt.vectors, models[1].prompt.vectors, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"accumulate": 0}, "accumulate=0 is not valid, expected an integer of at least 1"),
        ({"evaluate_every": -1}, "evaluate_every=-1 is not valid"),
        ({"evaluate_every": 5, "keep": "first"}, "keep='first' is unknown, expected 'last', 'best'"),
        ({"keep": "best"}, "keep='best' has no use with evaluate_every=0, expected 'last', or steps"),
        ({"noisy_evaluation": True}, "noisy_evaluation=True has no use with evaluate_every=0"),
        (
            {"evaluate_every": 5, "noisy_evaluation": 1},
            "noisy_evaluation=1 is not valid, expected True or False",
        ),
    ],
)
def test_settings_of_evaluations_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        fitting.Settings(**wrong)


def made_up(method, seed, best, last, noisy=None, **more):
    found = {"best": {"score": best}, "last": {"score": last}}
    if noisy is not None:
        found["best"]["noisy"] = noisy
    row = {
        "method": method,
        "task": "t",
        "seed": seed,
        "purpose": "report",
        "scores": {"test": {"accuracy": last}},
    }
    return row | {"evaluations": found} | more


def test_prices_are_means_over_seeds():
    rows = [
        made_up("learned", 1, 0.8, 0.7, 0.85),
        made_up("learned", 2, 0.9, 0.6, 0.8),
        made_up("fixed", 1, 0.5, 0.5),
        made_up("learned", 3, 1.0, 0.0, purpose="choice"),
        made_up("learned", 3, 1.0, 0.0, task="another"),
        {name: value for name, value in made_up("old", 1, 1, 1).items() if name != "evaluations"},
    ]
    found = tables.prices(rows, "t")
    assert found.keys() == {"learned", "fixed"}
    assert found["learned"] == (2, pytest.approx(0.2), pytest.approx(-0.025))
    assert found["fixed"] == (1, 0.0, None)
    text = tables.full(tables.lines_against(rows, "t", "fixed"), {}, "fixed")
    head, _, *lines = [line.split(" | ") for line in text.splitlines()]
    column = head.index("best minus last evaluation, %")
    assert [line[column] for line in lines] == ["+20.0", "+0.0", ""]
    assert [line[head.index("best noisy minus best, %")] for line in lines] == ["-2.5", "", ""]


def test_records_of_before_have_no_prices_and_tables_all_the_same():
    rows = records.load("position")["rows"]
    name = rows[0]["task"]
    assert tables.prices(rows, name) == {}
    lines = tables.lines_against(rows, name, None)
    assert all(line.price is None for line in lines)
    assert "evaluation" not in tables.full(lines, {}, None)
