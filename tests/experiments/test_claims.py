"""The table of claims against the command that prints verdicts, and its rule against cases by hand."""

import re
from types import SimpleNamespace

import pytest

from dplearn.experiments import claims, commands
from dplearn.experiments.verdicts import KINDS, Difference, Verdict

ALL = {name: claims.findings(sources) for name, sources in claims.CLAIMS.items()}


def case(*kinds, mean=0.5):
    gain = Difference(0.1, 0.05, 3, 0.02, 0.05, 0.01)
    other = SimpleNamespace(mean=mean)
    return [SimpleNamespace(verdict=Verdict(kind, gain, 0.01), other=other) for kind in kinds]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ((), "not tested"),
        (("cannot tell", "not learned", "not run", "not tested"), "not tested"),
        (("no difference", "cannot tell"), "not reproduced"),
        (("worse",), "not reproduced"),
        (("better", "no difference", "cannot tell"), "observed"),
        (("better", "worse"), "mixed"),
    ],
)
def test_what_findings_allow_to_say(kinds, expected):
    found = case(*kinds)
    assert claims.standing(found) == expected
    assert claims.counts(found) == {kind: kinds.count(kind) for kind in KINDS}


def test_where_nothing_could_be_won_nothing_follows():
    assert claims.standing(case("no difference", mean=1.0)) == "not tested"
    assert claims.standing(case("no difference", mean=1.0) + case("better")) == "observed"


@pytest.mark.parametrize(
    "source", [source for sources in claims.CLAIMS.values() for source in sources], ids=str
)
def test_each_source_names_comparisons_that_its_study_has(source):
    assert claims.findings([source])


def test_no_comparison_is_counted_twice_and_no_control_is_counted():
    for found in ALL.values():
        keys = [(each.source.study, each.cell.title, each.method, each.source.baseline) for each in found]
        assert len(keys) == len(set(keys)) and not {each.cell.task for each in found} & set(claims.CONTROLS)


@pytest.mark.parametrize(
    "name", sorted({source.study for sources in claims.CLAIMS.values() for source in sources})
)
def test_findings_are_the_verdicts_that_the_command_prints(name, tmp_path, capsys):
    """By the printed text: the verdict of the same study, table, method and baseline."""
    commands.verdict(SimpleNamespace(study=name, scale=None, runs=tmp_path))
    printed, title = {}, None
    for line in capsys.readouterr().out.splitlines():
        if head := re.fullmatch(r"(\S.*) \(margin .*\)", line):
            title = head[1]
        elif said := re.fullmatch(r"  (\S.*) against (.*?): (.*)", line):
            printed[title, said[1], said[2]] = said[3]
    for found in ALL.values():
        for each in found:
            key = each.cell.title, each.method, each.source.baseline
            if each.source.study == name and key in printed:
                assert printed[key].startswith(each.verdict.sentence())
            elif each.source.study == name:
                assert each.verdict.kind == "not run"
