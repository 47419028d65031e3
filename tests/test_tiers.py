"""No test gets lost between the commands, and no test is skipped for a reason that nobody wrote down."""

import ast
import re
import shlex
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import skips
import tiers
from _pytest.mark.expression import Expression
from project import ROOT

OPTIONS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]


def choice(arguments):
    """The last -m of a command: what pytest goes by. The default is that of pyproject.toml."""
    found = [value for name, value in zip(arguments, arguments[1:]) if name == "-m" and value != "pytest"]
    return found[-1] if found else choice(OPTIONS["addopts"])


def of_make(target):
    """The -m of a target of the Makefile."""
    (recipe,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return choice(shlex.split(recipe.replace("$(", "(")))


def chosen(expression, collected):
    """The ids that ``pytest -m expression`` runs, out of {id: tier}."""
    compiled = Expression.compile(expression)
    return {
        nodeid
        for nodeid, tier in collected.items()
        if compiled.evaluate(lambda name, tier=tier: name == tier)
    }


@pytest.fixture
def collected(request):
    """{id: tier} of all that this run collected, before -m chose: everything, where no path was named."""
    return request.config.stash[tiers.COLLECTED]


def test_what_plain_pytest_runs_and_what_is_marked_are_all_tests(collected):
    every = set(collected)
    default, marked = chosen(choice([]), collected), {nodeid for nodeid, tier in collected.items() if tier}
    assert default | marked == every and not default & marked
    slow = {nodeid for nodeid, tier in collected.items() if tier == "slow"}
    assert chosen(of_make("test-package"), collected) == every - slow
    assert chosen(of_make("fast"), collected) == default
    assert (
        chosen(of_make("sweep"), collected) == chosen(of_make("sweep") + " or thorough", collected) == every
    )
    assert chosen(of_make("test-site"), collected) == every - slow


def test_the_expressions_choose_as_they_read():
    collected = {"a": None, "b": "thorough", "c": "slow"}
    assert chosen(choice([]), collected) == {"a"}
    assert chosen(of_make("test-package"), collected) == {"a", "b"}
    assert chosen(of_make("sweep"), collected) == {"a", "b", "c"}
    assert chosen(choice(["-m", "pytest", "-m", "slow"]), collected) == {"c"}


def test_every_entry_of_the_table_matches_a_test(collected, request):
    if {Path(path).name for path in request.config.args} == set(OPTIONS["testpaths"]):  # no path was named
        assert not [start for start in tiers.THOROUGH if not any(one.startswith(start) for one in collected)]
    assert len(set(tiers.THOROUGH)) == len(tiers.THOROUGH)


def test_a_test_of_the_table_is_marked_and_one_that_says_slow_stays_slow():
    marks = {}

    def item(nodeid, *names):
        marks[nodeid] = list(names)
        return SimpleNamespace(
            nodeid=nodeid,
            add_marker=marks[nodeid].append,
            get_closest_marker=lambda name: name if name in marks[nodeid] else None,
        )

    config = SimpleNamespace(stash={})
    start = tiers.THOROUGH[0]
    tiers.mark(
        config,
        [item(f"{start}::test_it"), item(f"{start}::test_long", "slow"), item("tests/other.py::test_it")],
    )
    assert list(config.stash[tiers.COLLECTED].values()) == ["thorough", "slow", None]


# --- skips ---


def calls_of_skip(tree):
    """Every call that skips: (the function's name, its reason or None where it gives none)."""
    for node in ast.walk(tree):
        name = getattr(getattr(node, "func", None), "attr", None)
        if name not in ("skip", "skipif", "importorskip") or ast.unparse(node.func).startswith("report."):
            continue
        given = [word.value for word in node.keywords if word.arg == "reason"]
        yield name, (given or (node.args[:1] if name == "skip" else []) or [None])[0]


def test_every_skip_gives_a_reason():
    """importorskip names the package by itself; a bare mark or an empty text would say nothing."""
    found = 0
    for path in (ROOT / "tests").rglob("*.py"):
        tree = ast.parse(path.read_text())
        for name, reason in calls_of_skip(tree):
            found += 1
            assert name == "importorskip" or (
                reason is not None and ast.unparse(reason) not in ("''", '""')
            ), path
        bare = [node for node in ast.walk(tree) if ast.unparse(node) in ("pytest.mark.skip", "unittest.skip")]
        assert path.name == "test_tiers.py" or not bare, f"{path}: a mark without a reason"
    assert found > 10


def test_reasons_with_fixed_words_have_their_row():
    for path in (ROOT / "tests").rglob("test_*.py"):
        for _, reason in calls_of_skip(ast.parse(path.read_text())):
            if isinstance(reason, ast.Constant):
                assert skips.explained("tests/test_x.py::test_y", reason.value), (path, reason.value)


@pytest.mark.parametrize(
    ("nodeid", "reason", "known"),
    [
        ("tests/a.py::test_a", "no browser: none of chromium is installed", True),
        ("tests/a.py::test_a", "could not import 'gguf': No module named 'gguf'", True),
        ("tests/a.py::test_a", "the extra `cluster` is not installed", True),
        ("tests/backbones/test_architectures.py::test_a[base-blt]", "it is four models in one", True),
        ("tests/backbones/test_architectures.py::test_a[base-blt]", "", False),
        ("tests/backbones/test_vit.py::test_a[x]", "it is four models in one", False),
        ("tests/a.py::test_a", "later", False),
        ("tests/a.py::test_a", "", False),
    ],
)
def test_a_reason_is_known_or_not(nodeid, reason, known):
    assert bool(skips.explained(nodeid, reason)) is known


def test_the_table_counts_by_reason_and_a_run_with_an_unknown_one_fails():
    def run(*pairs):
        reports = [
            SimpleNamespace(nodeid=nodeid, longrepr=("f", 1, f"Skipped: {why}")) for nodeid, why in pairs
        ]
        reporter = SimpleNamespace(stats={"skipped": reports})
        plugins = SimpleNamespace(get_plugin=lambda name: reporter)
        session = SimpleNamespace(config=SimpleNamespace(pluginmanager=plugins), exitstatus=0)
        skips.check(session)
        return skips.table(skips.skipped(reporter)), session.exitstatus

    known = ("tests/a.py::test_a", "not a git checkout, so"), ("tests/a.py::test_b", "not a git checkout, so")
    lines, status = run(*known)
    assert lines == ["    2  not a git checkout, so  [a clone instead of an archive]"] and status == 0
    lines, status = run(*known, ("tests/a.py::test_c", "later"))
    assert "UNEXPLAINED" in lines[1] and lines[1].startswith("    1  later") and status == 1
