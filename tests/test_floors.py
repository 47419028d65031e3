"""Floors of the package: a module imports from below only, lazily or for types too, so that there is no circle."""

import ast

import pytest
from project import ROOT

# From the ground up; modules in one line stand side by side and do not import each other.
FLOORS = [
    {"checks", "insertion", "sampling"},
    {"estimators"},
    {"choice"},
    {"controllers", "options"},
    {"length", "vector"},
    {"position"},
    {"prompt"},
    {"config"},
]


def imported(path):
    """Modules of the package that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} has a relative import"
            names = [
                f"{node.module}.{alias.name}" if node.module == "dplearn" else node.module
                for alias in node.names
            ]
        yield from (name.split(".")[1] for name in names if name.startswith("dplearn."))


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_a_module_imports_from_below_only(floor):
    below = set().union(*FLOORS[:floor])
    for module in FLOORS[floor]:
        above = set(imported(ROOT / "dplearn" / f"{module}.py")) - below
        assert not above, f"{module} imports {sorted(above)}"
