"""The commands of studies, on a small study with made-up runs: tables, verdicts, figures, publication, running again."""

import json
import math
import re
import shlex
import subprocess
import sys
from concurrent.futures import Future

import pytest
import torch
from test_study import TEXT, finished, read

from dplearn import zoo
from dplearn.experiments import (
    commands,
    execution,
    figures,
    jobs,
    known_rows,
    recorded,
    records,
    study,
    tables,
    verdicts,
)
from dplearn.experiments.__main__ import main
from dplearn.experiments.parts import Margins
from dplearn.experiments.records import headline
from dplearn.experiments.store import Store

STILL, MOVED = 0.02, 0.6
MADE = {"commit": "abc", "device": "CPU, 1 threads"}


def value(job):
    """Learned by score-function: five points better, with a little noise; straight-through did not learn."""
    noise = 0.002 * (job.spec["seed"] % 2)
    return {"learned, score-function": 0.75}.get(job.labels["method"], 0.7) + noise


def decided(moved):
    return {
        "options": 3, "inputs": 10, "entropy_first": 1.0986, "entropy": 0.4, "moved": moved, "changed": 0.5,
        "counts": [6, 4, 0], "used": 2, "share": 0.6, "cost": [0.25, 0.1], "learned": moved >= 0.1,
    }  # fmt: skip


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The study `try` with all of its runs, and a folder of records of its own."""
    path = tmp_path / "try.toml"
    one = read(tmp_path, TEXT.replace("seeds = [1, 2]", "seeds = [1, 2, 3, 4]"))
    store, by_key = Store(tmp_path / "runs" / "try"), {}
    rows = finished(one, value)
    for job in jobs.jobs(one, rows):
        by_key[job.key] = job
    for key, row in rows.items():
        job = by_key[key]
        row |= {"passes": 1, "seconds": 2.0, "wall_seconds": 4.0, "made": MADE, "steps_to_90": 5}
        row["curves"] = {
            "steps": [0, 10],
            "loss": [None, 1.0],
            "score": [0.2, 0.9],
            "cross_entropy": [2.0, 0.5],
        }
        row["at_a_third"] = {split: {"accuracy": 0.5} for split in job.spec["splits"]}
        row["config"] = {"position": job.spec["prompt"].get("position", "prefix")}
        if "learned" in job.labels["method"]:
            moved = STILL if "straight" in job.labels["method"] else MOVED
            row["evidence"] = {"split": "test", "decisions": {"position": decided(moved)}, "headroom": None}
            row["curves"]["entropy_position"] = [1.1, 0.4]
        store.add(key, row)
    monkeypatch.setattr(records, "FOLDER", tmp_path / "records")
    return path, tmp_path


def call(runs, verb, *more):
    path, folder = runs
    main([verb, str(path), "--runs", str(folder / "runs"), *more])


def record_beside(runs):
    return runs[0].with_suffix(".json")


def test_the_table_shows_scores_evidence_choices_and_cost(runs, capsys):
    call(runs, "table")
    text = capsys.readouterr().out.replace("\u00a0", " ")
    assert text.count("## ") == 4 and "## world/color, l = 2, t5-mini" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header = lines[0].strip("| ").split(" | ")
    row = next(line for line in lines if "learned, score-function" in line).strip("| ").split(" | ")
    cells = dict(zip(header, row, strict=True))
    assert cells["mean ± sd, %"] == "75.1 ± 0.1" and cells["minus best fixed split"] == "+5.0 ± 0.0"
    assert cells["verdict"] == "better by 5.0 ± 0.0" and cells["seeds"] == "4"
    assert cells["entropy of π"] == "1.10 → 0.40" and cells["moved"] == "0.60"
    assert cells["options used"] == "2.0 of 3" and cells["at the most used, %"] == "60"
    assert cells["dealt out, nats"] == "+0.250" and cells["steps to 90 %"] == "5 (4)"
    assert cells["at a third of the steps, %"] == "50.0" and cells["cross-entropy"] == "0.249"
    assert cells["chosen"] == "learning_rate 0.1 (edge), controller_learning_rate 0.03 (edge) of 4"
    best = next(line for line in lines if line.startswith("| best fixed split"))
    assert "method k = 1" in best or "method prefix" in best or "method k = 0" in best


@pytest.mark.parametrize("verb", ["table", "verdict"])
def test_each_line_comes_with_the_command_that_runs_it_again(runs, capsys, verb):
    """Each command stands for one known run; those of the best fixed split for the one that was best."""
    call(runs, verb)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if "--again" in line]
    path, folder = runs
    one = study.read(path)
    known = jobs.jobs(one, Store(folder / "runs" / "try").rows())
    meant = []
    for line in lines:
        words = shlex.split(line)
        assert words[:4] == ["python", "-m", "dplearn.experiments", "run"] and words[4] == str(path)
        said = dict(zip(words[5::2], words[6::2]))
        found = [
            job for job in known if job.matches([said["--only"]], [said["--condition"]], said["--purpose"])
        ]
        assert len(found) == 1 and found[0].spec["seed"] == 1 and found[0].purpose == "report"
        meant.append((found[0].labels["condition"], found[0].labels["task"], found[0].labels["method"]))
    cells = [(cell.condition.name, cell.task) for cell in one.cells()]
    learned = ["learned, straight-through", "learned, score-function"]
    for cell in cells:
        methods = [method for *where, method in meant if tuple(where) == cell]
        assert set(learned) <= set(methods)
        if verb == "table":  # those of the file, and once more the one that was best
            names = [
                m.name
                for m in one.methods_in(next(c for c in one.cells() if (c.condition.name, c.task) == cell))
            ]
            assert len(methods) == len(names) and set(methods) == set(names) - {"best fixed split"}


def test_verdicts_say_what_was_not_learned_not_run_and_by_which_evidence(runs, capsys):
    call(runs, "verdict")
    text = capsys.readouterr().out
    assert (
        "learned, score-function against best fixed split: better by 5.0 ± 0.0 (+5.0 ± 0.0 points, 4 seeds"
        in text
    )
    assert (
        "learned, straight-through against best fixed split: not learned: learned, straight-through: position moved by "
        "0.02 (total variation)" in text
    )
    assert (
        "position: entropy 1.10 → 0.40, moved 0.60, 2.0 of 3 options used, 60 % at one, 4 of 4 runs agree"
        in text
    )
    main(["verdict", "estimators-place", "--runs", str(runs[1] / "runs")])
    titles = "; ".join(cell.title for cell in study.read("estimators-place").cells())
    assert capsys.readouterr().out.rstrip().endswith(f"Not run, so left out: {titles}.")


@pytest.mark.parametrize("verb", ["table", "verdict"])
def test_methods_and_tables_that_were_not_run_are_named_first(runs, capsys, monkeypatch, verb):
    """Never a table that is short of a method, or of a whole task, without a word."""
    known = commands.labelled_rows
    lost = "world/rte?shots=8&draw=seed"
    monkeypatch.setattr(
        commands,
        "labelled_rows",
        lambda *given: [
            row
            for row in known(*given)
            if row["task"] != lost and not (row["method"] == "prefix" and row["purpose"] == "report")
        ],
    )
    call(runs, verb)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Not run"))
    one = study.read(runs[0])
    whole = [cell.title for cell in one.cells() if cell.task == lost]
    parts = [f"prefix in {cell.title}" for cell in one.cells() if cell.task != lost]
    assert line == f"Not run, so left out: {'; '.join(whole + parts)}."


def test_gains_are_set_against_the_probe_of_the_fixed_prompts(runs, capsys):
    """By hand for one table; a positive rank correlation where gains follow the probe."""
    path, folder = runs
    store = Store(folder / "runs" / "try")
    path.write_text(path.read_text().replace("[settings]", "headroom = true\n\n[settings]", 1))
    one = study.read(path)
    rows, place = {}, {}
    for cell_number, cell in enumerate(one.cells()):
        for method in one.methods_in(cell):
            place[cell.title, method.name] = cell_number

    def worth(job):
        number = place[f"{job.labels['task']}, {job.labels['condition']}, t5-mini", job.labels["method"]]
        return 0.5 + (0.1 * number if "learned" in job.labels["method"] else 0) + 0.001 * job.spec["seed"]

    rows = finished(one, worth)
    for job in jobs.jobs(one, rows):
        row = rows[job.key]
        number = place[f"{job.labels['task']}, {job.labels['condition']}, t5-mini", job.labels["method"]]
        row |= {"config": {"position": job.spec["prompt"].get("position", "prefix")}}
        row["evidence"] = {
            "decisions": {},
            "headroom": {"deviation": number + 1.0, "gain": [number * 2.0, 0.1]},
        }
        if number == 0:  # here the prompt is given, and nothing of it trained
            row["trained_parameters"] = 0
        store.add(job.key, row)
    main(["predict", str(path), "--runs", str(folder / "runs"), "--out", str(folder / "new" / "figure.png")])
    text = capsys.readouterr().out.replace("\u00a0", " ")
    lines = [line for line in text.splitlines() if "learned" in line and line.startswith("| try")]
    assert len(lines) == 4 * 2 and (folder / "new" / "figure.png").stat().st_size > 5000
    cells = [cell.strip() for cell in lines[2].strip("| ").split("|")]
    assert cells[0] == "try: world/rte?shots=8&draw=seed, l = 2, t5-mini"
    assert cells[3:5] == ["2.000", "+2.000"] and cells[5] == "+0.100 ± 0.000" and cells[6] == "4"
    assert [line.split("|")[2].strip() for line in lines] == ["given"] * 2 + ["trained"] * 6
    assert "rank correlation of headroom and gain over all 8 points: +1.00" in text
    assert "rank correlation of headroom and gain over the 6 points with trained prompts: +1.00" in text


def test_the_verdicts_of_a_table_are_one_family():
    def rows(method, scores, config=None, moved=None):
        evidence = {} if moved is None else {"evidence": {"decisions": {"position": decided(moved)}}}
        return [
            {"purpose": "report", "task": "t", "method": method, "seed": seed, "scores": {"test": {"a": score}}}
            | {"config": config or {"position": "prefix"}} | evidence
            for seed, score in enumerate(scores)
        ]  # fmt: skip

    learned = {"position": "instance"}
    record = [
        *rows("base", (0.5, 0.52, 0.51)), *rows("up", (0.6, 0.63, 0.6)), *rows("alike", (0.5, 0.53, 0.5)),
        *rows("unreported", (0.6, 0.6, 0.6), learned), *rows("still", (0.6, 0.6, 0.6), learned, STILL),
        rows("alone", (0.6,))[0] | {"seed": 9},
    ]  # fmt: skip
    names = ("up", "alike", "unreported", "still", "absent", "alone")
    pairs = [("base", name) for name in names] + [("still", "up")]
    found = {
        pair[1] if pair[0] == "base" else "over still": v
        for pair, v in tables.judged(record, "t", pairs, Margins(0.05, 0.1)).items()
    }
    kinds = {name: verdict.kind for name, verdict in found.items()}
    assert kinds == {
        "up": "better", "alike": "no difference", "unreported": "not tested", "still": "not learned",
        "absent": "not run", "alone": "not tested", "over still": "not learned",
    }  # fmt: skip
    gains = {
        name: [headline(a) - headline(b) for a, b in zip(record[i : i + 3], record[:3])]
        for i, name in ((3, "up"), (6, "alike"))
    }
    gains |= {"u": [0.1, 0.08, 0.09], "s": [0.1, 0.08, 0.09], "o": [0.0, 0.03, 0.0]}
    expected = verdicts.family(gains)
    assert found["up"].difference.level == pytest.approx(expected["up"].level)
    assert found["alike"].difference.half == pytest.approx(expected["alike"].half)
    assert found["absent"].sentence() == "not run: no runs of absent"
    assert found["alone"].sentence() == "not tested: alone and base have no seed in common"
    assert found["unreported"].sentence() == "not tested: unreported has no report on its decisions"


@pytest.mark.parametrize(
    "alike, kind", [(0, "better"), (1, "better"), (2, "not learned"), (3, "not learned")]
)
@pytest.mark.parametrize("level", ["instance", "task"])
def test_a_place_per_input_that_is_the_same_for_all_inputs_is_not_learned(alike, kind, level):
    """In most runs: a place per task is the same for all inputs by its nature."""

    def rows(method, scores, position):
        return [
            {
                "purpose": "report",
                "task": "t",
                "method": method,
                "seed": seed,
                "scores": {"test": {"a": score}},
            }
            | {"config": {"position": position}}
            for seed, score in enumerate(scores)
        ]

    decided_rows = rows("each", (0.6, 0.63, 0.6), level)
    for number, row in enumerate(decided_rows):
        share = 0.99 if number < alike else 0.98
        row["evidence"] = {"decisions": {"position": decided(MOVED) | {"share": share}}}
    record = rows("base", (0.5, 0.52, 0.51), "prefix") + decided_rows
    verdict = tables.judged(record, "t", [("base", "each")], Margins(0.05, 0.1))["base", "each"]
    assert verdict.kind == (kind if level == "instance" else "better")
    told = f"each: position is one for all inputs in {alike} of 3 runs"
    assert verdict.note == (told if level == "instance" and alike else "")


@pytest.mark.parametrize(
    "costs, by_cost, start, kind",
    [
        ((1.7, 2.0, 1.9), True, math.log(2), "better"),
        ((1.7, 2.0, 1.9), False, math.log(2), "not learned"),
        ((1.7, 2.0, 1.9), True, 0.5, "not learned"),  # it may have cost as much at its start
        ((0.1, -0.1, 0.2), True, math.log(2), "not learned"),
        ((-1.7, -2.0, -1.9), True, math.log(2), "not learned"),
    ],
)
def test_a_mixture_that_hardly_moved_is_learned_by_its_cost_where_that_was_fixed_before(
    costs, by_cost, start, kind
):
    rows = [
        {"purpose": "report", "task": "t", "method": "base", "seed": seed, "scores": {"test": {"a": 0.5}}}
        for seed in range(3)
    ]
    for seed, cost in enumerate(costs):
        found = decided(0.05) | {"cost": [cost, 0.1], "options": 2, "entropy_first": start, "share": 0.6}
        scores = {"test": {"a": 0.7 + 0.01 * seed}}
        rows.append(
            rows[seed] | {"method": "pool", "scores": scores, "evidence": {"decisions": {"vector": found}}}
        )
    limits = Margins(0.05, 0.1, by_cost)
    assert tables.judged(rows, "t", [("base", "pool")], limits)["base", "pool"].kind == kind


def test_a_published_record_gives_the_same_table_and_keeps_what_made_it(runs, capsys):
    call(runs, "table")
    before = capsys.readouterr().out
    call(runs, "publish")
    path, folder = runs
    written = json.loads(record_beside(runs).read_text())
    assert not (folder / "records").exists()  # a study of one's own leaves those of the package alone
    assert written["makers"] == [MADE] and {row["made"] for row in written["rows"]} == {0}
    assert all(("curves" in row) == (row["purpose"] == "report") for row in written["rows"])
    assert records.read(record_beside(runs))["rows"][0]["made"] == MADE
    main(["table", str(path), "--runs", str(folder / "elsewhere")])  # without the runs
    assert capsys.readouterr().out.partition("# try")[2] == before.partition("# try")[2]


def test_the_record_of_a_study_of_ones_own_is_read_as_the_book_reads_ours(runs, capsys):
    path, name = str(runs[0]), "learned, score-function"
    call(runs, "publish")
    table = recorded.table(path, "world/color", "l = 2")
    assert (table.score(name), table.seeds(name)) == ("75.1\u00a0±\u00a00.1", 4)  # 0.75 and 0.752, twice each
    assert [len(each.runs[name]) for each in recorded.all_tables(path)] == [4] * 4
    assert recorded.made(path).startswith(f"python -m dplearn.experiments run {path}\n")
    record = records.read(record_beside(runs))
    assert record["provenance"]["command"] == "python -m dplearn.experiments run try.toml"


def test_a_published_record_can_be_added_to(runs, capsys, monkeypatch):
    """`run --published` does what the record lacks and nothing else; `run` on an empty folder would do all."""
    path, folder = runs
    call(runs, "publish")
    here, rows = folder / "elsewhere", Store(folder / "runs" / "try").rows()
    record = json.loads(record_beside(runs).read_text())
    lost = next(row for row in record["rows"] if row["purpose"] == "report" and row["method"] == "prefix")
    record["rows"] = [
        row for row in record["rows"] if row["key"] != lost["key"]
    ]  # also as the best of a list
    record_beside(runs).write_text(json.dumps(record))
    capsys.readouterr()
    main(["plan", str(path), "--runs", str(here)])
    assert (
        f"{len(rows) - 1} of them done, {len(rows) - 1} in the published record alone"
        in capsys.readouterr().out
    )
    ran = []

    class Here:
        """Workers that do a run at once."""

        count = 1

        def __init__(self, jobs):
            pass

        def submit(self, work, spec, options):
            ran.append(spec)
            done = Future()
            done.set_result(rows[lost["key"]])
            return done

        def close(self):
            pass

    monkeypatch.setattr("dplearn.experiments.workers.Local", Here)
    main(["run", str(path), "--runs", str(here), "--published"])
    assert len(ran) == 1 and jobs.Job({}, ran[0]).key == lost["key"]
    assert Store(here / "try").rows().keys() == rows.keys()
    main(["run", str(path), "--runs", str(here), "--published"])
    assert len(ran) == 1 and "0 runs are taken" in capsys.readouterr().out


def test_a_row_runs_again_by_its_command_and_is_compared(runs, capsys, monkeypatch):
    ran = []

    def run_job(spec, options):
        ran.append(spec)
        return {"scores": {"test": {"accuracy": value(Job.matching(spec))}}}

    class Job:
        @staticmethod
        def matching(spec):
            rows = Store(runs[1] / "runs" / "try").rows()
            return next(job for job in jobs.jobs(study.read(runs[0]), rows) if job.spec == spec)

    monkeypatch.setattr(execution, "run_job", run_job)
    again = ("--only", "prefix/world/color/2", "--condition", "l = 2", "--purpose", "report", "--again")
    files = sorted((runs[1] / "runs" / "try").iterdir())
    call(runs, "run", *again)
    assert len(ran) == 1 and ran[0]["seed"] == 2 and "(as recorded)" in capsys.readouterr().out
    assert sorted((runs[1] / "runs" / "try").iterdir()) == files
    monkeypatch.setattr(execution, "run_job", lambda spec, options: {"scores": {"test": {"accuracy": 0.1}}})
    with pytest.raises(SystemExit, match="1"):
        call(runs, "run", *again)
    assert "(recorded {'test': {'accuracy': 0.7}})" in capsys.readouterr().out


def test_a_filter_that_is_given_again_adds_to_the_first(runs, capsys):
    """The second does not take the place of the first."""

    def known(*patterns: str) -> int:
        call(runs, "resume", "--purpose", "report", *(word for one in patterns for word in ("--only", one)))
        return int(re.findall(r"(\d+) runs are known", capsys.readouterr().out)[0])

    assert known("*/*/1", "*/*/2") == known("*/*/1") + known("*/*/2") > known("*/*/2")


def test_a_plan_counts_the_runs_of_widened_grids(runs, capsys, monkeypatch):
    """There are more of them than the file tells; when all are done, nothing is left, and not less than nothing."""
    monkeypatch.setattr(jobs, "count", lambda one: {"choice": 3, "report": 4})
    call(runs, "plan")
    text, done = capsys.readouterr().out, len(list((runs[1] / "runs" / "try").glob("*.json")))
    assert (
        f"3 choice runs and 4 report runs, {done - 7} more where grids were widened; {done} of them" in text
    )
    assert "about 0.0 hours" in text


def test_a_finished_study_says_so_and_plans_nothing(runs, capsys):
    call(runs, "plan")
    text = capsys.readouterr().out
    done = len(list((runs[1] / "runs" / "try").glob("*.json")))
    assert f"{done} of them done" in text and "about 0.0 hours" in text and "4.0 s a run" in text
    call(runs, "resume")
    assert f"{done} runs are known, {done} of them done" in capsys.readouterr().out


def test_figures_are_drawn(runs, capsys):
    pytest.importorskip("matplotlib").use("agg")
    call(runs, "figure", "--out", str(runs[1] / "figures"))
    names = {path.name for path in (runs[1] / "figures").iterdir()}
    assert len(names) == 5 and "try-conditions.svg" in names and "try-world-color-l-2-t5-mini.svg" in names
    told = capsys.readouterr().out.split()
    assert {path.rpartition("/")[2] for path in told} == names


# How each kind of file begins.
BEGINS = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}


@pytest.mark.parametrize("form", BEGINS)
def test_figures_have_the_format_that_is_asked_for_and_the_same_bytes_again(runs, form):
    pytest.importorskip("matplotlib").use("agg")
    made = []
    for number in range(2):
        folder = runs[1] / f"figures-{number}"
        call(runs, "figure", "--out", str(folder), "--format", form)
        made.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert made[0] == made[1] and len(made[0]) == 5
    for name, content in made[0].items():
        assert name.endswith(f".{form}") and content.startswith(BEGINS[form])
        assert b"CreationDate" not in content and b"<dc:date>" not in content


@pytest.mark.parametrize("names", [["a", "b"], [f"a method with a long name, number {n}" for n in range(17)]])
def test_a_figure_is_as_wide_as_a_page_and_its_legend_can_be_read(names):
    """Panels keep their height however many names there are, and the legend stands below all of them."""
    pytest.importorskip("matplotlib").use("agg")
    curve = {
        "steps": [0, 1],
        "score": [0.5, 1.0],
        "cross_entropy": [0.7, 0.1],
        "entropy_position": [0.6, 0.1],
    }
    figure = figures.curves({name: [{"curves": curve}] for name in names}, "a task")
    figure.canvas.draw()
    assert figure.get_figwidth() <= 6.3
    assert min(text.get_fontsize() for text in figure.legends[0].get_texts()) >= 9
    assert len(figure.legends) == 1 and len(figure.legends[0].get_texts()) == len(names)
    whole, box = figure.bbox, figure.legends[0].get_window_extent()
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0
    inside = [ax.get_tightbbox() for ax in figure.axes]
    assert len(inside) == 3 and all(panel.y0 >= box.y1 for panel in inside)
    assert all(ax.get_window_extent().height / figure.dpi > 1.9 for ax in figure.axes)
    assert all(panel.x1 <= whole.x1 + 1 and panel.y1 <= whole.y1 + 1 for panel in inside)


@pytest.mark.parametrize("name", ["predict", "predict.jpg", "folder.svg/predict"])
def test_a_figure_of_an_unknown_format_is_refused_before_the_work(name, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "_asked", lambda options: pytest.fail("the work began"))
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "--out", str(tmp_path / name)])
    assert "expected a name that ends in one of ['.svg', '.pdf', '.png']" in capsys.readouterr().err


def other_data(runs, seed):
    """One report of the first task read other data than the rest; gives its seed."""
    files = sorted((runs[1] / "runs" / "try").glob("*.json"))
    for path in files:
        row = json.loads(path.read_text())
        last = row["task"] == "world/color" and row["purpose"] == "report" and row["seed"] == seed
        path.write_text(json.dumps(row | {"data": "files, sha256 b" if last else "files, sha256 a"}))


@pytest.mark.parametrize("verb", ["table", "verdict", "figure"])
def test_runs_that_read_different_data_are_not_put_in_one_table(runs, capsys, verb):
    call(runs, "table")  # rows of before data had a name
    other_data(runs, seed=99)
    call(runs, "table")
    other_data(runs, seed=1)
    with pytest.raises(SystemExit, match="2"):
        call(runs, verb)
    told = capsys.readouterr().err
    assert "runs of task='world/color' read different data" in told
    assert "files, sha256 a; files, sha256 b" in told


def test_a_split_that_was_not_scored_is_named(runs, capsys):
    with pytest.raises(SystemExit, match="2"):
        call(runs, "table", "--split", "tset")
    assert "error: split='tset', expected one that was scored, of [" in capsys.readouterr().err


def test_a_study_with_the_name_of_one_that_ships_has_a_record_of_its_own(runs, capsys):
    """Copied from the package and changed, say: neither are the recorded runs its own, nor are they lost."""
    path = runs[0].with_name("position.toml")
    path.write_text(study.FOLDER.joinpath("position.toml").read_text())
    records.FOLDER.mkdir(exist_ok=True)
    kept = {"provenance": {}, "rows": [{"task": "world/color", "purpose": "report"}]}
    (records.FOLDER / "position.json").write_text(json.dumps(kept))
    main(["table", str(path), "--runs", str(runs[1] / "runs")])
    assert "Not run, so left out: world/color" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["publish", str(path), "--runs", str(runs[1] / "runs")])
    assert "position has no runs in" in capsys.readouterr().err
    assert json.loads((records.FOLDER / "position.json").read_text()) == kept


def test_a_file_that_is_no_record_is_not_written_over(runs, capsys):
    for content in ('{"title": "notes"}', "[1, 2]", "notes"):
        record_beside(runs).write_text(content)
        for verb in ("table", "publish"):
            with pytest.raises(SystemExit, match="2"):
                call(runs, verb)
            assert "try.json' is no record of a study, expected" in capsys.readouterr().err
        assert record_beside(runs).read_text() == content


def own_texts(folder, changed=False):
    """Six rows for training and three for the test, in the files and columns of RTE."""
    folder.mkdir(exist_ok=True)
    rows = [
        {"premise": f"number {i}", "hypothesis": "even", "label": ["entailment", "not_entailment"][i % 2]}
        for i in range(9)
    ]
    if changed:
        rows[0]["label"] = "not_entailment"
    for name, part in (("train", rows[:6]), ("val", rows[6:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def test_files_that_changed_since_the_first_runs_stop_a_study(tmp_path, capsys):
    """A label was corrected: the finished runs are of other data, and nothing of them depends on the file's name."""
    own_texts(tmp_path / "own")
    path, task = tmp_path / "own.toml", f"superglue/rte?path={tmp_path / 'own'}"
    method = '[[method]]\nname = "majority"\nkind = "majority"\n'
    path.write_text(
        f'title = "own"\nbackbones = ["t5-mini"]\ntasks = ["{task}"]\n[report]\nseeds = [1, 2]\n{method}'
    )
    one, given = study.read(path), ["--runs", str(tmp_path / "runs")]
    store = Store(tmp_path / "runs" / "own")
    first, second = jobs.jobs(one, {})
    store.add(first.key, execution.run_job(first.spec))
    known_rows.check_files(one, store.rows(), jobs.jobs(one, store.rows()))
    own_texts(tmp_path / "own", changed=True)
    with pytest.raises(SystemExit, match="2"):
        main(["run", str(path), *given])
    told = capsys.readouterr().err
    assert f"own: task={task!r} is now SuperGLUE RTE from local files, sha256" in told
    assert "expected what the finished runs have read" in told and len(list(store.folder.glob("*"))) == 1


def test_weights_that_changed_under_one_name_stop_a_study(tmp_path, capsys):
    """A model that was trained further in its folder: the finished runs are of another one."""
    folder, task = tmp_path / "model", "world/color"
    model, tokenizer = zoo.load("t5-mini")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = tmp_path / "own.toml"
    method = (
        '[[method]]\nname = "bare"\nkind = "no prompt"\n[[method]]\nname = "prefix"\nsettings.steps = 1\n'
    )
    path.write_text(
        f'title = "own"\nbackbones = ["{folder}"]\ntasks = ["{task}"]\n[report]\nseeds = [1, 2]\n{method}'
    )
    one, given = study.read(path), ["--runs", str(tmp_path / "runs")]
    store = Store(tmp_path / "runs" / "own")
    first, *_, last = jobs.jobs(one, {})
    row = execution.run_job(first.spec)
    assert row["weights"] == execution.weights_of(str(folder)) and execution.weights_of("t5-mini") is None
    store.add(first.key, row)
    known_rows.check_files(one, store.rows(), jobs.jobs(one, store.rows()))
    with torch.no_grad():
        model.get_input_embeddings().weight[5, 7] += 1e-3
    model.save_pretrained(folder)
    with pytest.raises(SystemExit, match="2"):
        main(["run", str(path), *given])
    told = capsys.readouterr().err
    assert f"own: backbone={str(folder)!r} is now sha256 " in told and f"have read, {row['weights']}" in told
    # (Runs of both models in one folder, as two machines may have left them.)
    store.add(last.key, row | {"weights": "sha256 other", "method": last.labels["method"]})
    for verb in ("table", "verdict"):
        with pytest.raises(SystemExit, match="2"):
            main([verb, str(path), *given])
        assert f"own: runs of backbone={str(folder)!r} read different weights" in capsys.readouterr().err


def test_files_that_cannot_be_read_are_named_once_before_any_run(tmp_path, capsys):
    """Not by each run in turn."""
    (tmp_path / "own").mkdir()
    path, task = tmp_path / "own.toml", f"superglue/rte?path={tmp_path / 'own'}"
    method = '[[method]]\nname = "majority"\nkind = "majority"\n'
    path.write_text(
        f'title = "own"\nbackbones = ["t5-mini"]\ntasks = ["{task}"]\n[report]\nseeds = [1, 2]\n{method}'
    )
    with pytest.raises(SystemExit, match="2"):
        main(["run", str(path), "--runs", str(tmp_path / "runs")])
    told = capsys.readouterr()
    assert told.err.count("error: ") == 1 and str(tmp_path / "own") in told.err and "FAILED" not in told.out
    assert [*(tmp_path / "runs").rglob("*.*")] == []
    path.write_text(path.read_text().replace("tasks = [", 'tasks = ["world/color", '))
    main(["run", str(path), "--runs", str(tmp_path / "runs"), "--only", "*/world/color/*", "--jobs", "1"])
    assert len([*(tmp_path / "runs").rglob("*.json")]) == 2  # what is not asked for is not read


@pytest.mark.parametrize(
    "task, words",
    [
        ("world/color?shot=2", "option 'shot' is unknown, expected some of ['shots', 'total', 'draw'"),
        ("world/colour", "name='world/colour': expected one of ["),
        ("own/texts", "name='own/texts': expected 'family/task' with a family out of"),
    ],
)
def test_an_unknown_task_or_option_is_named(task, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        execution.load_task(task)


def test_an_option_of_a_draw_is_none_of_the_family():
    """How many of each class are left to choose on; the fonts of icons are told their size by the family."""
    task = execution.load_task("images/digits?shots=3&draw=1&validation=2")
    assert len(task.examples("validation")) == 20 and execution.data_of(task).startswith(
        "scikit-learn's digits"
    )


def test_a_split_that_a_task_has_not_is_named():
    spec = {"task": "world/color", "splits": ["test", "tset"]}
    with pytest.raises(ValueError, match="'world/color' has no split 'tset', expected some of"):
        execution._splits(spec)
    assert execution._splits(spec | {"splits": ["test", "test_wordings"]}) == ["test", "test_wordings"]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"world/color": "world/colour"}, "error: name='world/colour': expected one of ["),
        ({'"t5-mini"': '"./none"'}, "error: name='./none': expected a folder"),
        ({'"t5-mini"': '"t5-minni"'}, "error: name='t5-minni': expected one of ["),
    ],
)
def test_a_plan_names_what_there_is_not(tmp_path, capsys, changes, words):
    text = TEXT
    for old, new in changes.items():
        text = text.replace(old, new)
    path = tmp_path / "try.toml"
    path.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        main(["plan", str(path), "--runs", str(tmp_path)])
    assert capsys.readouterr().err.startswith(words)


def test_a_folder_that_cannot_be_written_is_one_line(runs, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for words in (["figure", "--out"], ["run", "--only", "prefix", "--runs"]):
        with pytest.raises(SystemExit, match="2"):
            main(
                [words[0], str(runs[0]), "--runs", str(runs[1] / "runs"), *words[1:], str(tmp_path / "file")]
            )
        assert re.match(r"error: \[Errno \d+\] .*file", capsys.readouterr().err)


def test_errors_are_one_line_and_a_status(runs, capsys, tmp_path):
    for arguments, words in (
        (["show", "positions"], "error: study='positions' is unknown"),
        (["resume", "vit", "--runs", str(tmp_path / "none")], "error: vit was not begun in"),
        (["publish", "vit", "--runs", str(tmp_path / "none")], "error: vit has no runs in"),
        (
            ["figure", "estimators-place", "--runs", str(tmp_path / "none")],
            "error: estimators-place has no runs",
        ),
        (
            ["run", str(runs[0]), "--runs", str(runs[1] / "runs"), "--only", "nobody", "--again"],
            "error: no run matches",
        ),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert capsys.readouterr().err.startswith(words)
    with pytest.raises(SystemExit, match="1"):
        main(["run", str(runs[0]), "--runs", str(runs[1] / "runs"), "--only", "nobody"])
    assert "no run matches" in capsys.readouterr().out


def test_the_list_and_a_study_in_words(capsys, tmp_path):
    main(["list", "--runs", str(tmp_path)])
    text = capsys.readouterr().out
    lines, _, words = text.partition("\n\n")
    told = [line[:28].strip() for line in lines.splitlines()[::2]]
    assert all(f"{word}: " in words for word in ("choices", "reports", "published"))
    assert told == [
        each
        for name in study.names()
        for each in (name, *(f"{name} --scale {x}" for x in study.read(name).scales))
    ]
    assert "56 published" in text
    main(["show", "position"])
    text = capsys.readouterr().out
    assert (
        "learned per task: learning_rate in [0.1, 0.3]" in text and "16 choice runs, 40 report runs" in text
    )
    assert "not by the protocol" in text and text.endswith(study.read("position").text)
    assert set(commands.COMMANDS) == {
        "list",
        "show",
        "plan",
        "run",
        "resume",
        "table",
        "figure",
        "verdict",
        "predict",
        "publish",
    }


def test_a_study_without_a_test_split_is_read_on_its_own(tmp_path, capsys):
    """`decisions` looks for defaults, on validation alone."""
    for verb in ("table", "verdict"):
        main([verb, "decisions", "--runs", str(tmp_path)])
        text = capsys.readouterr().out
        assert "place/mixed" in text and "straight-through, annealed" in text
    cell = next(iter(study.read("decisions").cells()))
    rows = [row for row in records.load("decisions")["rows"] if row["condition"] == cell.condition.name]
    mean = sum(map(validated, group := [row for row in rows if row["method"] == "exact"])) / len(group)
    main(["table", "decisions", "--runs", str(tmp_path)])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| exact |"))
    assert f"| {100 * mean:.1f}\u00a0±" in line


def validated(row):
    """The headline on validation."""
    return headline(row, "validation")


@pytest.mark.parametrize("words", [["dplearn"], ["dplearn.zoo", "list"], ["dplearn.experiments", "list"]])
def test_a_reader_that_stops_reading_gets_no_traceback(words):
    """As `| head` does; without a buffer, so that the second line finds the pipe closed."""
    command = [sys.executable, "-u", "-m", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 0


def test_the_package_says_what_can_be_done():
    """Every command that `python -m dplearn` prints is one that its module has."""
    said = subprocess.run(
        [sys.executable, "-m", "dplearn"], capture_output=True, text=True, check=True
    ).stdout
    printed = re.findall(r"python -m dplearn\.(zoo|experiments) (\w+)", said)
    known = {"experiments": commands.COMMANDS, "zoo": ("list", "card", "check", "pretrain")}
    assert len(printed) >= 6 and all(verb in known[module] for module, verb in printed)
    assert f"torch {torch.__version__}" in said
