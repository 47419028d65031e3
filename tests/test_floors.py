"""Floors of the package: a module imports from below only, lazily or for types too, so that there is no circle."""

import ast

import pytest
from project import ROOT

# From the ground up; modules and folders in one line stand side by side and do not import each other. The rooms above
# (theory, tasks, zoo, experiments) may use all of these.
FLOORS = [
    # mathematics, checks, files
    {"authors", "checks", "evidence", "offload", "progress", "version"},
    {"batches", "report", "files", "conventions", "insertion", "sampling", "fits"},
    {"estimators", "kept", "packaged"},
    {"shelf"},
    {"choice", "settings", "summaries"},
    # parts
    {"controllers", "options", "checkpoint"},
    {"length", "vector"},
    {"position"},
    {"prompt"},
    # what users write, and where it goes
    {"config"},
    {"backbones"},
    {"by_name", "card_hub", "fingerprint", "freezing", "hub"},
    {"card"},
    {"building", "caching"},
    {"named_prompts"},
    {"model"},
    {"image_text"},
    {"linear_probe", "loading", "reporting", "training"},
    {"interop"},
]
ABOVE = {"__init__", "__main__", "interactive", "plots", "theory", "tasks", "zoo", "experiments"}


def files_of(room):
    """The files of a module or of a folder."""
    folder = ROOT / "dplearn" / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


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
    for room in FLOORS[floor]:
        for path in files_of(room):
            above = set(imported(path)) - below - {room}
            assert not above, f"{path.name} imports {sorted(above)}"


def test_every_room_has_a_floor():
    rooms = {path.stem for path in (ROOT / "dplearn").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__pycache__"} == set().union(*FLOORS) | ABOVE
