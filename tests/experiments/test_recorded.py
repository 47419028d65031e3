"""Recorded tables against numbers that are taken from the files by hand."""

import json
import statistics
from pathlib import Path

import pytest

import dplearn
from dplearn.experiments import recorded, records

RECORDS = Path(dplearn.__file__).parent / "experiments" / "records"


def by_hand(study, task, method, condition=""):
    """Scores on test by seed, from the file as it is."""
    rows = json.loads((RECORDS / f"{study}.json").read_text())["rows"]
    return {
        row["seed"]: row["scores"]["test"]["accuracy"]
        for row in rows
        if (row["task"], row["method"], row["purpose"], row["condition"])
        == (task, method, "report", condition)
    }


def test_scores_and_differences_are_those_of_the_file():
    table = recorded.table("estimators-place", "place/mixed", "given")
    for method in ("prefix", "per instance, score-function"):
        mine = by_hand("estimators-place", "place/mixed", method, "given")
        mean, spread = statistics.mean(mine.values()), statistics.stdev(mine.values())
        assert table.score(method) == f"{100 * mean:.1f}\u00a0±\u00a0{100 * spread:.1f}"
        assert table.rows()[method]["mean ± sd, %"] == table.score(method)
        assert table.seeds(method) == len(mine)

    learned, fixed = "per instance, score-function", "best fixed split"
    first, second = (by_hand("estimators-place", "place/mixed", name, "given") for name in (learned, fixed))
    gain = statistics.mean(first[seed] - second[seed] for seed in first)
    assert table.told(learned, fixed).startswith(f"better by {100 * gain:.1f} ± ")
    assert table.rows()[learned][f"against {fixed}"] == table.told(learned)


def test_a_method_without_a_score_on_the_split_is_left_out():
    base, new = (
        recorded.table("clip-decisions", "images/icons", split=split) for split in ("test", "test_new")
    )
    assert "linear probe" in base.lines and "linear probe" not in new.lines


@pytest.mark.parametrize("asked", [("no/such",), ("place/mixed", "no such"), ("place/mixed",)])
def test_a_table_that_a_study_does_not_have_is_refused(asked):
    with pytest.raises(ValueError, match="estimators-place.*expected one of.*place/mixed, given"):
        recorded.table("estimators-place", *asked)


def test_a_column_that_a_table_does_not_have_is_refused():
    with pytest.raises(ValueError, match="names='speed', expected columns.*mean ± sd"):
        recorded.table("instance", "docs/signature").rows("speed")


@pytest.mark.parametrize("study", ["t5", "smollm2-place", "gates", "pool"])
def test_the_seeds_of_a_record_are_those_of_its_methods_and_not_of_baselines_without_luck(study):
    reported = [
        row
        for row in json.loads((RECORDS / f"{study}.json").read_text())["rows"]
        if row["purpose"] == "report"
    ]
    first = min(
        row["seed"] for row in reported if row["method"].startswith(("prefix", "one prompt")) and row["seed"]
    )
    last = max(row["seed"] for row in reported)
    assert recorded.made(study).splitlines()[1].endswith(f" · seeds {first} to {last}")


@pytest.mark.parametrize(("seeds", "words"), [({"a": [4], "b": [4]}, "seed 4"), ({}, "no reports")])
def test_a_record_of_one_seed_or_none_has_words(monkeypatch, seeds, words):
    record = records.read(RECORDS / "instance.json")
    rows = [{"purpose": "report", "method": name, "seed": seed} for name in seeds for seed in seeds[name]]
    monkeypatch.setattr(records, "read", lambda path: record | {"rows": rows})
    assert recorded.made("instance").splitlines()[1].endswith(f" · {words}")


def test_what_was_not_run_says_so(monkeypatch):
    monkeypatch.setattr(records, "read", lambda path: None)
    assert recorded.made("instance").splitlines() == ["python -m dplearn.experiments run instance", "not run"]
    table = recorded.table("instance", "docs/signature")
    assert (table.lines, table.rows(), table.runs, table.seeds("prefix")) == ({}, {}, {}, 0)
    assert {verdict.kind for verdict in table.verdicts.values()} == {"not run"}


def test_verdicts_in_nats_are_those_of_paired_differences_of_the_file():
    table = recorded.table("instance", "docs/signature")
    learned, fixed = "per instance, score-function", "best fixed split"
    first, second = (
        {row["seed"]: row["cross_entropy"]["test"] for row in table.runs[name]} for name in (learned, fixed)
    )
    saved = statistics.mean(second[seed] - first[seed] for seed in first)  # nats; fewer are better
    told = table.in_nats()[fixed, learned]
    assert f"{saved:+.2f} ± " in told or f" by {abs(saved):.2f} ± " in told
    assert told.startswith("worse") <= (saved < 0) and told.startswith("better") <= (saved > 0)


@pytest.mark.parametrize("study", ["clip", "clip-decisions", "vit-decisions"])
def test_runs_on_images_have_the_passes_of_their_estimator(study):
    """Older rows have none, and the option of before that one of them is told by: no warning, and the right number."""
    for table in recorded.all_tables(study):
        for method, line in table.lines.items():
            config = table.runs[method][0].get("config") or {}
            drawn = config.get("estimator") == "score-function" and config["position"] in ("task", "instance")
            wanted = (config.get("samples") or 4) if drawn else 1
            assert line.passes == wanted, method
