"""The commands that look for what the tests do not know: each finds nothing here, and something in broken code."""

import json
import time
import tomllib

import facts
import fuzz
import mutants
import pytest
import torch
from project import ROOT

import dplearn as dp
from dplearn import checkpoint

# --- fuzzing ---


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_fuzzing_finds_nothing_and_reaches_both_ends(target):
    found = fuzz.fuzz(seed=3, cases=60, targets=(target,))[target]
    assert found["wrong"] == 0 and found["refused"] > 5 and found["kept"] > 2 and found.total() == 60


def test_a_case_can_be_repeated():
    assert fuzz.one("masks", 5, 7) == fuzz.one("masks", 5, 7)
    outcomes = [[fuzz.one("settings", seed, number)[0] for number in range(30)] for seed in (1, 1, 2)]
    assert outcomes[0] == outcomes[1] != outcomes[2]


def test_it_sees_a_wrong_place_and_a_mask_refused_for_nothing(monkeypatch, capsys):
    insert = dp.insert

    def shifted(prompt, inputs, mask, split, size, keep_last):
        return insert(prompt, inputs, mask, (split + 1).clamp(max=len(prompt)), size, keep_last=keep_last)

    monkeypatch.setattr(dp, "insert", shifted)
    assert fuzz.fuzz(0, cases=20, targets=("masks",))["masks"]["wrong"] > 2
    assert "--seed 0 --target masks --case" in capsys.readouterr().err

    def refuses(*_, **__):
        raise ValueError("no")

    monkeypatch.setattr(dp, "insert", refuses)
    assert fuzz.fuzz(0, cases=20, targets=("masks",))["masks"]["wrong"] > 2


def test_it_sees_damage_that_is_not_found(monkeypatch):
    monkeypatch.setattr(checkpoint, "_read_weights", lambda path, weights: path.read_bytes())
    assert fuzz.fuzz(0, cases=120, targets=("checkpoints",))["checkpoints"]["wrong"] > 0


def test_it_sees_a_pickle_an_unexpected_error_and_a_case_without_an_end(monkeypatch):
    monkeypatch.setattr(checkpoint, "read", lambda folder: torch.load(folder / "model.bin"))
    assert "a pickle was read" in fuzz.one("checkpoints", 0, 0)[1]
    monkeypatch.setattr(dp, "insert", lambda *_, **__: 1 / 0)
    assert "ZeroDivisionError" in fuzz.one("masks", 0, 0)[1]
    monkeypatch.setattr(dp, "insert", lambda *_, **__: time.sleep(60))
    monkeypatch.setattr(fuzz, "PATIENCE", 1)
    assert "no end after 1 seconds" in fuzz.one("masks", 0, 0)[1]


def test_it_sees_settings_that_come_back_as_others(monkeypatch):
    monkeypatch.setattr(dp.PromptConfig, "to_dict", lambda self: {"length": self.length})
    assert fuzz.fuzz(0, cases=60, targets=("settings",))["settings"]["wrong"] > 2


# --- figures ---


@pytest.mark.parametrize("name", ["truncated", "flipped", "edited", "insertion", "full", "memory"])
def test_a_row_of_figures_tries_and_finds_nothing_wrong(name):
    tried, wrong = facts.FACTS[name][3](12)
    assert tried >= 12 and wrong == 0


@pytest.mark.parametrize("name", ["kills", "writers", "network", "decisions", "threads"])
def test_a_row_of_figures_with_processes_or_threads(name):
    tried, wrong = facts.FACTS[name][3](12)
    assert tried >= 12 and wrong == 0


def test_the_rows_see_what_is_wrong(monkeypatch):
    monkeypatch.setattr(checkpoint, "_read_weights", lambda path, weights: path.read_bytes())
    assert facts.flipped(12)[1] > 0
    monkeypatch.undo()
    save = checkpoint.save

    def careless(folder, *content):
        """In place: a failure leaves what is half written."""
        if (folder_of := fuzz.Path(folder)).exists():
            (folder_of / checkpoint.CONFIG).write_bytes(b"{")
        save(folder, *content)

    monkeypatch.setattr(checkpoint, "save", careless)
    assert facts.disk_full(4)[1] == 4
    monkeypatch.setattr(facts, "python", lambda *_, **__: None)
    assert facts.kills(1)[1] == facts.two_writers(2)[1] == facts.no_network(1)[1] == 1
    assert facts.decisions(6) == (6, 6)


def test_a_flip_of_a_decision_is_counted(monkeypatch):
    found = iter([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 6], [0, 1, 2, 3, 4, 5]])
    monkeypatch.setattr(facts, "python", lambda *_, **__: json.dumps(next(found)))
    assert facts.decisions(6) == (6, 1)


def test_tensors_that_stay_are_counted(monkeypatch):
    kept = []
    decide = facts.test_threads.decide
    monkeypatch.setattr(facts.test_threads, "decide", lambda *given: kept.append(decide(*given)))
    assert facts.memory(60)[1] >= 4


def test_one_tensor_that_grows_is_counted_in_bytes(monkeypatch):
    grows = torch.zeros(0)
    decide = facts.test_threads.decide

    def growing(*given):
        grows.resize_(len(grows) + 5)
        return decide(*given)

    monkeypatch.setattr(facts.test_threads, "decide", growing)
    assert facts.memory(60)[1] >= 20


def test_a_process_that_grows_without_tensors_is_counted_in_megabytes(monkeypatch):
    found = iter([(9, 400, 100 * 2**20), (9, 400, 111 * 2**20)])
    monkeypatch.setattr(facts, "alive_now", lambda: next(found))
    assert facts.memory(20)[1] == 6


# --- mutants ---


def row(**changes):
    survivor = {"name": "m_1", "function": "f", "before": "a", "after": "b", "why": None}
    return {"mutants": 50, "run": 25, "killed": 24, "survivors": [survivor | changes]}


def test_the_table_of_mutants_and_when_it_passes():
    assert mutants.line_of("choice", row()).split() == ["choice", "50", "25", "24", "1", "0", "96.0"]
    assert not mutants.passes({"choice": row()}) and mutants.passes({"choice": row(why="the same")})
    few = row(why="the same") | {"run": 26, "killed": 23}
    assert not mutants.passes({"choice": few})
    lines = list(mutants.lines_of({"choice": row(), "length": row(why="the same")}))
    assert lines[3].split() == ["all", "100", "50", "48", "2", "1", "96.0"]
    assert lines[4:] == ["\nchoice: f\n- a\n+ b"]


def test_a_sample_is_that_of_its_seed():
    every = list(range(100))
    assert mutants.draw(every, None, 0) == every == sorted(mutants.draw(every, 1000, 0))
    assert mutants.draw(every, 9, 1) == mutants.draw(every, 9, 1) != mutants.draw(every, 9, 2)


def test_the_record_of_mutants_is_about_the_modules_of_the_table_and_passes():
    table, rows = mutants.tested_by(), json.loads(mutants.RECORD.read_text())
    assert rows.keys() <= table.keys() and mutants.passes(rows)
    for module, tests in table.items():
        assert (ROOT / "dplearn" / f"{module}.py").is_file()
        for path, _, name in (entry.removeprefix("--deselect=").partition("::") for entry in tests):
            assert f"def {name}" in (ROOT / path).read_text() if name else (ROOT / path).is_file()
    for found in rows.values():
        assert found["killed"] + len(found["survivors"]) == found["run"] <= found["mutants"]
        assert found["run"] == min(found["mutants"], found["sample"] or found["mutants"])


def test_every_explanation_names_a_function_and_a_reason():
    for module, found in tomllib.loads(mutants.EQUIVALENT.read_text()).items():
        source = (ROOT / "dplearn" / f"{module}.py").read_text()
        for each in found:
            assert f"def {each['function'].split('.')[-1]}(" in source and len(each["why"]) > 10
            assert each["after"] not in source
