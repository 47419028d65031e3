"""Studies as files: what they expand to, what they refuse, which values are chosen, and what a key depends on."""

import json
import re
from pathlib import Path

import pytest

from dplearn.experiments import jobs, records, study
from dplearn.experiments.parts import Cell

TEXT = """
title = "a try"
backbones = ["t5-mini"]
tasks = ["world/color", "world/rte?shots=8&draw=seed"]
splits = ["test"]
baseline = "best fixed split"
comparisons = [["prefix", "learned, *"]]

[settings]
steps = 10

[choice]
seeds = [101, 102, 103]

[report]
seeds = [1, 2]

[grid.fixed]
learning_rate = [0.1, 0.2, 0.3, 0.4]
[grid.learned]
learning_rate = [0.1, 0.3]
controller_learning_rate = [0.03, 0.1]

[[condition]]
name = "l = {length}"
each.length = [2, 4]

[[method]]
name = "prefix"

[[method]]
name = "k = {position}"
each.position = { evenly = 3 }

[[method]]
name = "best fixed split"
kind = "best of"
of = ["prefix", "k = *"]

[[method]]
name = "learned, {estimator}"
prompt.position = "task"
each.estimator = ["straight-through", "score-function"]

[[method]]
name = "longer"
settings.steps = "4x"
tasks = ["world/color"]
conditions = ["l = 2"]
"""

ON_IMAGES = """
title = "images"
backbones = ["vit-mini"]
tasks = ["toy/places"]
[choice]
seeds = [101, 102, 103]
[report]
seeds = [1, 2]
[grid.fixed]
learning_rate = [0.1, 0.2]
[[method]]
name = "one prompt as large as the pool"
kind = "KIND"
"""


def read(tmp_path, text=TEXT, name="try"):
    path = tmp_path / f"{name}.toml"
    path.write_text(text)
    return study.read(path)


def score_rows(all_jobs, value):
    """Rows for the jobs, with ``value(job)`` as every score."""
    return {
        job.key: {
            "task": job.spec["task"].partition("?")[0], "seed": job.spec["seed"], "purpose": job.purpose,
            "settings": {"learning_rate": job.spec["settings"].get("learning_rate", 0.3)},
            "scores": {split: {"accuracy": value(job)} for split in job.spec["splits"]},
            "cross_entropy": {split: 1 - value(job) for split in job.spec["splits"]},
            "trained_parameters": 1, "backbone": "t5-mini",
        }
        for job in all_jobs
    }  # fmt: skip


def finished(one, value):
    """The rows of a study that was run to its end."""
    rows = {}
    for _ in range(9):
        known = jobs.jobs(one, rows)
        if all(job.key in rows for job in known):
            return rows
        rows |= score_rows([job for job in known if job.key not in rows], value)
    raise AssertionError("it has no end")


def test_a_file_expands_to_cells_and_methods(tmp_path):
    one = read(tmp_path)
    cells = list(one.cells())
    assert [(cell.condition.name, cell.task) for cell in cells] == [
        (condition, task) for condition in ("l = 2", "l = 4") for task in one.tasks
    ]
    names = [method.name for method in one.methods_in(cells[0])]
    learned = ["learned, straight-through", "learned, score-function"]
    assert names == ["prefix", "k = 0", "k = 1", "k = 2", "best fixed split", *learned, "longer"]
    assert [m.name for m in one.methods_in(cells[2])][1:4] == ["k = 0", "k = 2", "k = 4"]
    options = {method.name: one.options(cells[0], method) for method in one.methods_in(cells[0])}
    assert options["k = 1"] == ({"length": 2, "position": 1}, {"steps": 10})
    assert options["learned, score-function"][0]["estimator"] == "score-function"
    assert options["longer"][1]["steps"] == 40
    assert one.pairs(cells[1])[-2:] == [("prefix", name) for name in learned]
    best = "best fixed split"  # which is not compared with those out of which it is chosen
    assert one.pairs(cells[1])[:-2] == [(best, name) for name in learned]
    assert one.pairs(cells[0])[:3] == [(best, name) for name in (*learned, "longer")]


def test_every_method_has_as_many_choice_runs_and_reports_wait_for_their_choices(tmp_path):
    one = read(tmp_path)
    known = jobs.jobs(one, {})
    assert {job.purpose for job in known} == {"choice"} and jobs.count(one) == {
        "choice": len(known),
        "report": 50,
    }
    counts = records.by([dict(job.labels) for job in known], "condition", "task", "method")
    assert {len(group) for group in counts.values()} == {4 * 3}
    prefix = [job for job in known if job.labels["method"] == "prefix"]
    rows = score_rows(prefix, lambda job: 0.5)
    reports = [job for job in jobs.jobs(one, rows) if job.purpose == "report"]
    assert {job.labels["method"] for job in reports} == {"prefix"} and len(reports) == 2 * 2 * 2
    assert {job.spec["seed"] for job in reports} == {1, 2}
    few = [job for job in reports if "rte" in job.labels["task"]]
    assert {(job.spec["task"], job.spec["seed"]) for job in few} == {
        (f"world/rte?shots=8&draw={seed}", seed) for seed in (1, 2)
    }
    assert {job.labels["task"] for job in few} == {"world/rte?shots=8&draw=seed"}
    assert all(job.spec["splits"] == ["validation"] for job in known)


def test_the_best_value_on_validation_is_used_and_ties_go_to_the_middle(tmp_path):
    one = read(tmp_path)
    for best, expected in ((0.4, 0.4), (None, 0.2)):
        rows = finished(one, lambda job: 0.9 if job.spec["settings"].get("learning_rate") == best else 0.5)  # noqa: B023
        reports = [row for row in jobs.labelled(one, rows) if row["purpose"] == "report"]
        chosen = {row["chosen"]["learning_rate"] for row in reports if row["method"] == "prefix"}
        assert chosen == {expected}
        edges = {tuple(row["edges"]) for row in reports if row["method"] == "prefix"}
        assert edges == {("learning_rate",) if best else ()}
    axes = {"a": [1, 2, 3], "b": [1, 2, 3]}
    scores = [(point, 1.0) for point in jobs.points_of(axes)]
    assert jobs.best_point(axes, scores) == {"a": 2, "b": 2}
    assert jobs.best_point(axes, scores[:2]) == {"a": 1, "b": 2}


def test_a_choice_at_the_edge_widens_the_grid(tmp_path):
    one = read(tmp_path, TEXT.replace("seeds = [101, 102, 103]", "seeds = [101, 102, 103]\nwiden = 2"))

    def value(job):  # the best rate lies far above the grid
        return 0.5 + job.spec["settings"].get("learning_rate", 0) / 10

    rows = finished(one, value)
    reports = [row for row in jobs.labelled(one, rows) if row["purpose"] == "report"]
    (prefix,) = {
        (row["chosen"]["learning_rate"], row["tries"]) for row in reports if row["method"] == "prefix"
    }
    assert prefix == (pytest.approx(0.4 * (4 / 3) ** 2, rel=1e-3), 6)  # twice beyond 0.3, 0.4
    assert all("learning_rate" in row["edges"] for row in reports if row["method"] == "prefix")


def test_choices_can_be_shared_by_tasks_and_conditions(tmp_path):
    text = TEXT.replace(
        "seeds = [101, 102, 103]", 'seeds = [101, 102, 103]\ntasks = ["world/color"]\nconditions = ["l = 4"]'
    )
    one = read(tmp_path, text.replace('conditions = ["l = 2"]', ""))
    known = jobs.jobs(one, {})
    assert {
        (job.labels["task"], job.labels["condition"]) for job in known if job.labels["method"] == "prefix"
    } == {("world/color", "l = 4")}
    rows = finished(one, lambda job: job.spec["settings"].get("learning_rate", 0))
    assert {row["task"] for row in jobs.labelled(one, rows) if row["purpose"] == "report"} == set(one.tasks)


def test_the_best_fixed_split_is_chosen_on_validation_alone(tmp_path):
    """On test another one is better: it must not be taken."""
    one = read(tmp_path)

    def value(job):
        method, report = job.labels["method"], job.purpose == "report"
        return {"k = 0": 0.9 if report else 0.6, "k = 1": 0.55 if report else 0.8}.get(method, 0.5)

    rows = [row for row in jobs.labelled(one, finished(one, value)) if row["condition"] == "l = 2"]
    best = [row for row in rows if row["method"] == "best fixed split" and row["task"] == "world/color"]
    assert [row["seed"] for row in best] == [1, 2] and all(
        row["scores"]["test"]["accuracy"] == 0.55 for row in best
    )
    assert {row["chosen"]["method"] for row in best} == {"k = 1"} and {row["tries"] for row in best} == {16}


def test_the_best_fixed_split_is_that_of_its_own_table_where_rates_are_chosen_elsewhere(tmp_path):
    """Rates are chosen on world/color, where the prefix is best; in the other table k = 0 is."""
    one = read(tmp_path, TEXT.replace("[choice]", '[choice]\ntasks = ["world/color"]'))

    def value(job):
        wins = "prefix" if job.labels["task"] == "world/color" else "k = 0"
        return 0.9 if job.labels["method"] == wins else 0.5

    rows = list(jobs.labelled(one, finished(one, value)))
    best = {(row["task"], row["chosen"]["method"]) for row in rows if row["method"] == "best fixed split"}
    assert best == {("world/color", "prefix"), ("world/rte?shots=8&draw=seed", "k = 0")}


def test_a_key_is_what_the_result_depends_on_and_nothing_else(tmp_path):
    known = jobs.jobs(read(tmp_path), {})
    keys = {job.key for job in known}
    words = TEXT.replace('title = "a try"', 'title = "b"').replace("l = {length}", "length {length}")
    renamed = read(tmp_path, words.replace('"l = 2"', '"length 2"').replace("k = ", "split "), "other")
    assert {job.key for job in jobs.jobs(renamed, {})} == keys
    longer = jobs.jobs(read(tmp_path, TEXT.replace("steps = 10", "steps = 11")), {})
    assert not {job.key for job in longer} & keys
    assert len(keys) == len(known) == len({str(job) for job in known})
    json.dumps([dict(job.spec) for job in known])


def test_filters_and_commands_name_the_same_runs(tmp_path):
    one = read(tmp_path)
    known = jobs.jobs(one, finished(one, lambda job: 0.5))
    found = [job for job in known if job.matches(["k = 1/world/color/2"], ["l = 2"], "report")]
    (job,) = found
    words = "--only 'k = 1/world/color/2' --condition 'l = 2' --purpose report --again"
    assert job.command() == f"python -m dplearn.experiments run {tmp_path / 'try.toml'} {words}"
    shipped = jobs.jobs(study.read("position"), {})[0]
    assert shipped.command().startswith("python -m dplearn.experiments run position --only ")
    assert {job.labels["method"] for job in known if job.matches(["prefix"])} == {"prefix"}
    assert {job.spec["seed"] for job in known if job.matches(["/*/2"])} == {2}
    several = [job for job in known if job.matches(["prefix/*/2", "k = 1/*/1"], ["l = 2"], "report")]
    assert {(job.labels["method"], job.spec["seed"]) for job in several} == {("prefix", 2), ("k = 1", 1)}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title = ", "titel = ", "try: 'titel' is unknown, expected some of"),
        ('title = "a try"', "", "try: 'title' is missing"),
        ("steps = 10", "stops = 10", "settings: 'stops' is unknown, expected some of .'steps'"),
        ("steps = 10", "steps = 10\nkeep = 'best'", "method 'prefix' in .*keep='best' has no use with evaluate_every=0"),
        ("seeds = [1, 2]", "seeds = [1, 101]", "no seed in both"),
        ("seeds = [101, 102, 103]", "seeds = [101]", "choice.seeds=.101,., expected at least 3"),
        ("learning_rate = [0.1, 0.2, 0.3, 0.4]", "learning_rate = [0.1, 0.2]", "try .*expected equally many"),
        ("learning_rate = [0.1, 0.3]", "learning_rate = [0.3, 0.1]", "expected numbers from small to large"),
        ('position = "task"', 'position = "tusk"', "method 'learned, straight-through' in .*position='tusk' is unknown"),
        ('name = "longer"', 'name = "prefix"', "two methods are called 'prefix'"),
        ('name = "longer"', 'name = "a/b"', "expected a name, without '/'"),
        ('name = "longer"', 'name = ""', "expected a name, without '/'"),
        ('name = "longer"', 'name = "longer"\nseeds = [1, 101]', "method 'longer': seeds=.*expected none of the choices"),
        ('name = "longer"', 'name = "{longer"\neach.samples = [1, 2]', "name='{longer': expected '}'"),
        ('name = "longer"', 'name = "longer"\nkind = "images"', "'images', expected a task of texts for this kind"),
        ('of = ["prefix", "k = *"]', 'of = ["perfix"]', "of=.'perfix'., expected some of"),
        ('"learned, *"', '"lernt, *"', "comparisons has .'prefix', 'lernt, .'., expected a baseline and a method"),
        ("[choice]", '[[condition]]\nname = "l = 2"\nprompt.length = 2\n[choice]', "two tables are '.*l = 2.*'"),
        ("evenly = 3", "evenly = 1", "each.position=.'evenly': 1., expected a list of values, 'all', or"),
        ('name = "longer"', 'name = "longer"\nkind = "shorter"', "kind='shorter', expected one of"),
        ('baseline = "best fixed split"', 'baseline = "nobody"', ".'nobody'. is compared with and is no method"),
        ("each.length = [2, 4]", "each.lenth = [2, 4]", "each.lenth is neither an option of a prompt nor"),
        ("{estimator}", "{estimate}", "name='learned, {estimate}' has {estimate}"),
        ('of = ["prefix", "k = *"]', "", "expected 'of', a list of methods"),
        ("[settings]", "[settings", "try.toml is no TOML"),
        ('conditions = ["l = 2"]', 'conditions = ["l = 3"]', "method 'longer' runs in no table"),
        ("[choice]", '[choice]\ntasks = ["world/colour"]', "choice.tasks has 'world/colour', expected some of"),
        ("[settings]\nsteps = 10", "[settings]", "steps='4x', expected a number: the study has no steps for all"),
        ('name = "prefix"', 'name = "prefix"\ngrid = "none such"', "has no grid 'none such', expected one of"),
    ],
)  # fmt: skip
def test_what_a_file_says_wrong_is_refused_with_the_place(tmp_path, old, new, message):
    assert old in TEXT
    with pytest.raises(ValueError, match=message):
        read(tmp_path, TEXT.replace(old, new, 1))


def test_a_prompt_on_a_task_of_images_is_told_its_kind(tmp_path):
    text = ON_IMAGES.replace("toy/places", "images/digits").replace(
        'kind = "KIND"', 'prompt.position = "prefix"'
    )
    with pytest.raises(
        ValueError, match="images/digits, vit-mini: kind='prompt', expected kind 'images' or 'image-text'"
    ):
        read(tmp_path, text)


@pytest.mark.parametrize("kind", ["images", "image-text"])
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[choice]", 'cue = "x"\n[choice]', "cue='x' has no effect"),
        ("[choice]", "max_length = 9\n[choice]", "max_length=9 has no effect"),
        ("[choice]", "headroom = true\n[choice]", "headroom=True has no effect"),
        ("[choice]", "[prompt]\npool_size = 4\n[choice]", ".*'pool_size': 4.* has no effect"),
        ("[choice]", "[settings]\noptimizer = 'adam'\n[choice]", "optimizer='adam' has no effect"),
        ("[choice]", '[[condition]]\ncue = "x"\n[choice]', "cue='x' has no effect"),
        ("[choice]", "[[condition]]\nprompt.depth = 2\n[choice]", ".*'depth': 2.* has no effect"),
        ("kind =", "control = 'random layers'\nkind =", "control='random layers' has no effect"),
        ("kind =", "settings.entropy_bonus = 0.5\nkind =", "entropy_bonus=0.5 has no effect"),
        ("learning_rate = ", "vectors_first = [0, 5]\nlearning_rate = ", "vectors_first=5 has no effect"),
        ("learning_rate = ", "entropy_bonus = [0, 0.5]\nlearning_rate = ", "entropy_bonus=0.5 has no effect"),
        ("learning_rate = ", "depth = [2, 4]\nlearning_rate = ", ".*'depth': 2.* has no effect"),
    ],
)  # fmt: skip
def test_what_a_run_on_images_would_pass_over_is_refused(tmp_path, kind, old, new, message):
    text = ON_IMAGES.replace("KIND", kind)
    assert read(tmp_path, text).title == "images" and old in text
    with pytest.raises(ValueError, match=f"try: method 'one prompt.*' in toy/places.*: {message} on images"):
        read(tmp_path, text.replace(old, new, 1))


@pytest.mark.parametrize("kind", ["images", "image-text"])
@pytest.mark.parametrize("where", ["[prompt]", "[grid.fixed]"])
def test_a_prompt_in_images_can_be_described_by_its_options(tmp_path, kind, where):
    """What a study fixes or tries reaches the run; what has no prompt is named, whatever the study says of prompts."""
    text = ON_IMAGES.replace("KIND", kind).replace("one prompt as large as the pool", "an own prompt")
    text += '[[method]]\nname = "linear probe"\nkind = "KIND"\ngrid = "none"\n'.replace("KIND", kind)
    if where == "[grid.fixed]":
        text = text.replace("learning_rate = [0.1, 0.2]", "length = [4]") + "\n"
        text = text.replace(
            'name = "an own prompt"', 'name = "an own prompt"\nprompt.entry = "before-positions"'
        )
    else:
        text = text.replace("[choice]", "[prompt]\nlength = 4\n[choice]")
    ran = [job.spec for job in jobs.jobs(read(tmp_path, text), {})]
    assert any("prompt" in spec for spec in ran)
    for spec in ran:
        assert spec["prompt"]["length"] == 4 if "prompt" in spec else spec["named"] == "linear probe"
    assert all("prompt" not in job.spec for job in jobs.jobs(study.read("vit"), {}))
    with pytest.raises(ValueError, match="length=0"):
        read(tmp_path, text.replace("length = 4", "length = 0").replace("length = [4]", "length = [0]"))
    with pytest.raises(
        ValueError, match="expected options of a prompt, or one of the names .*'linear probe'"
    ):
        read(
            tmp_path, ON_IMAGES.replace("KIND", kind).replace("one prompt as large as the pool", "none such")
        )


SCALED = (
    TEXT
    + """
[scale.full]
about = "wants a GPU"
backbones = ["google/t5-small-lm-adapt"]
settings.steps = 20000
report.seeds = [7]
[[scale.full.condition]]
name = "l = 2"
prompt.length = 20
"""
)


def test_a_study_at_another_scale_has_the_entries_of_the_scale_in_the_place_of_its_own(tmp_path):
    path = tmp_path / "try.toml"
    path.write_text(SCALED)
    own, full = study.read(path), study.read(path, "full")
    assert own.scales == full.scales == ("full",) and own.about == "" and full.about == "wants a GPU"
    plain = read(tmp_path, TEXT, "plain")
    assert {job.key for job in jobs.jobs(own, {})} == {job.key for job in jobs.jobs(plain, {})}
    assert (full.name, full.source) == ("try-full", f"{path} --scale full")
    assert full.backbones == ("google/t5-small-lm-adapt",) and full.tasks == own.tasks
    assert [one.prompt for one in full.conditions] == [{"length": 20}] and full.seeds == (7,)
    assert full.settings == {"steps": 20000} and full.grid == own.grid and full.choice == own.choice
    with pytest.raises(ValueError, match=r"try: scale='larger', expected one of \['full'\]"):
        study.read(path, "larger")
    assert f"run {path} --scale full --only" in next(iter(jobs.jobs(full, {}))).command()


def test_the_best_of_several_needs_choice_seeds(tmp_path):
    text = TEXT.replace("seeds = [101, 102, 103]", "seeds = []").replace(
        'title = "a try"', 'title = "a"\nexempt = "a look"'
    )
    path = tmp_path / "one.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r'choice.seeds=\[\] and a method "best of", expected choice seeds'):
        study.read(path)


def test_an_unknown_study_is_refused_with_a_list():
    with pytest.raises(ValueError, match="study='positions' is unknown, expected one of .*'position'"):
        study.read("positions")


# --- the files that ship ---


@pytest.mark.parametrize("name", study.names())
def test_every_study_that_ships_keeps_to_the_protocol_or_says_why_not(name):
    one = study.read(name)
    known = jobs.jobs(one, {})
    assert len({job.key for job in known}) == len(known)
    assert not set(one.seeds) & set(one.choice.seeds)
    if not one.exempt:
        assert len(one.choice.seeds) >= 3 and len(one.seeds) >= 5 and one.baseline
        assert one.verdict.margin > 0
    counts = {}
    for cell in one.cells():
        tries = {
            len(jobs.points_of(one.grid_of(cell, m))) for m in one.methods_in(cell) if m.kind != "best of"
        }
        counts[cell.title] = tries - {1}
    assert all(len(tries) <= 1 for tries in counts.values())


@pytest.mark.parametrize("name", ["gates", "gates-llama", "position", "estimators", "vit", "clip"])
def test_the_files_of_recorded_studies_are_what_was_recorded(name):
    """Every run of the record is one of the file's, with the same purpose, seed and rate, and the reverse."""
    one, rows = study.read(name), records.load(name)["rows"]
    axis = "learning_rate"

    def place(method, task, seed, purpose, rate):
        return method, task, seed, purpose, rate if purpose == "choice" else None

    wanted = {
        place(row["method"], row["task"], row["seed"], row["purpose"], row.get("settings", {}).get(axis))
        for row in rows
    }
    found = [
        place(
            job.labels["method"],
            job.labels["task"],
            job.spec["seed"],
            "choice",
            job.spec["settings"].get(axis),
        )
        for job in jobs.jobs(one, {})
        if job.purpose == "choice"
    ]
    for cell in one.cells():
        for method in one.methods_in(cell):
            found += [
                place(method.name, cell.task, seed, "report", None) for seed in jobs.seeds_of(one, method)
            ]
    assert sorted(found, key=str) == sorted(wanted, key=str)


@pytest.mark.parametrize("name", ["gates", "gates-llama", "position", "estimators"])
def test_the_prompts_and_settings_of_recorded_studies_are_those_of_the_record(name):
    """But for options that came later, and for defaults that the files pin to what they were."""
    one = study.read(name)
    rows = {
        (row["method"], row["task"]): row for row in records.load(name)["rows"] if row["purpose"] == "report"
    }
    for cell in one.cells():
        for method in one.methods_in(cell):
            row = rows[method.name, cell.task]
            prompt, settings = one.options(cell, method)
            if "config" in row:
                known = {option: value for option, value in prompt.items() if option in row["config"]}
                assert known.items() <= row["config"].items()
            chosen = {"learning_rate"} if one.grid_of(cell, method) else set()
            if "settings" in row:
                assert {k: v for k, v in settings.items() if k not in chosen}.items() <= row[
                    "settings"
                ].items()


def test_the_named_methods_of_images_are_those_of_their_modules():
    from dplearn.experiments import image_text, images

    for name, module in (("vit", images), ("clip", image_text)):
        (cell, *_) = study.read(name).cells()
        assert {method.name for method in study.read(name).methods_in(cell)} == set(module.METHODS)


def test_a_cell_is_named_by_what_it_has():
    assert Cell("t5-mini", study.Condition("l = 2"), "world/color").title == "world/color, l = 2, t5-mini"
    assert Cell("t5-mini", study.Condition(), "world/color").title == "world/color, t5-mini"


@pytest.mark.parametrize(
    "old, new, words",
    [
        ('backbones = ["t5-mini"]', 'backbones = "t5-mini"', "backbones='t5-mini', expected a list of names"),
        (
            'tasks = ["world/color"]',
            'tasks = "world/*"',
            "method 'longer': tasks='world/\\*', expected a list",
        ),
        ('conditions = ["l = 2"]', 'conditions = "*"', "method 'longer': conditions='\\*', expected a list"),
        ('of = ["prefix", "k = *"]', 'of = "k = *"', "'best fixed split': of='k = \\*', expected a list"),
        ('"world/rte?shots=8&draw=seed"', '"world/color"', "expected a list of names that differ"),
        ("seeds = [1, 2]", "seeds = [1, 1, 2]", r"report: seeds=\[1, 1, 2\], expected .* that differ"),
        ("seeds = [1, 2]", "seeds = 3", "report: seeds=3, expected a list of integers"),
        ("seeds = [1, 2]", "", "report: 'seeds' is missing"),
        ("seeds = [101, 102, 103]", "seeds = [101, 102, 103, 103]", "choice: seeds=.* that differ"),
        (
            "seeds = [101, 102, 103]",
            "seeds = [101, 102, 103]\nwiden = true",
            "choice: widen=True is not valid",
        ),
        ('[["prefix", "learned, *"]]', '["prefix"]', r"comparisons=\['prefix'\], expected a list of pairs"),
        ('title = "a try"', "title = 3", "title=3, expected a string"),
        ("[settings]", 'headroom = "yes"\n[settings]', "headroom='yes' is not valid, expected True or False"),
        ("[settings]", "max_length = 0\n[settings]", "max_length=0 is not valid"),
        ("[settings]\nsteps = 10", "settings = 10", "settings=10, expected a table"),
        ("[grid.fixed]", "[verdict]\nmargin = '1'\n[grid.fixed]", "verdict: margin='1' is not valid"),
        ("steps = 10", 'steps = "10"', "steps='10', expected a number, or how many times"),
        ('"4x"', '"x4"', "method 'longer': steps='x4', expected a number, or how many times"),
        ("steps = 10", "steps = 10\nbatch_size = 0", "batch_size=0 is not valid"),
        ("steps = 10", "steps = 10\nclip = -1", "clip=-1 is not valid"),
        ("[0.1, 0.2, 0.3, 0.4]", '["a", "b", "c", "d"]', "learning_rate='a' is not valid"),
    ],
)
def test_an_entry_of_another_kind_is_refused(tmp_path, old, new, words):
    """A string is a list of letters to Python: of "world/*" the last one would be a pattern that fits every task."""
    assert old in TEXT
    with pytest.raises(ValueError, match=words):
        read(tmp_path, TEXT.replace(old, new, 1))


def test_one_method_is_a_list_of_tables_too(tmp_path):
    head = TEXT[: TEXT.index("[[condition]]")]
    with pytest.raises(ValueError, match=r"method=.*, expected one or more tables, each \[\[method\]\]"):
        read(tmp_path, head + '[method]\nname = "prefix"\n')


def test_a_path_that_is_no_file_is_said_to_be_none(tmp_path):
    with pytest.raises(ValueError, match="expected the path of a .toml file: there is no such file"):
        study.read(tmp_path / "none.toml")


def test_the_study_of_the_page_at_work_is_one(tmp_path):
    """Its file is read as it stands; the names of its model and data are those of nobody."""
    page = Path(__file__).parents[2].joinpath("book", "at-work.md").read_text(encoding="utf8")
    [text] = re.findall(r"```{code-block} toml\n(.*?)```", page, re.DOTALL)
    one = read(tmp_path, text, "own")
    assert [method.name for method in one.methods] == ["prefix", "place per input"]
    assert jobs.count(one) == {"choice": 18, "report": 20}
