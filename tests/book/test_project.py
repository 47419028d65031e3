"""The project's files agree with each other: versions, environments, pins, and what a tracked file may hold."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from project import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# The extras that `make` installs (`make lab` and `make mutants` the last), with those that they name in turn.
INSTALLED = ("book", "test", "cluster", "experiments", "hub", "train", "lab", "mutants")


def name_of(text):
    """A distribution's name in the form in which two spellings compare equal."""
    return re.sub(r"[-_.]+", "-", text).lower()


def pins():
    """constraints.txt as {normalized name: version}."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line.strip() and not line.startswith("#")]
    return {name_of(name): version for name, version in pairs}


def requirements():
    """Every requirement that `make` asks pip for, by the place where it is written."""
    found = [("dependencies", line) for line in PROJECT["dependencies"]]
    found += [(extra, line) for extra in INSTALLED for line in EXTRAS[extra]]
    return [(where, Requirement(line)) for where, line in found if not line.startswith("dplearn[")]


def tracked_files():
    """The files that git tracks; a source archive without git has none, and the tests that need them are skipped."""
    run = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if run.returncode:
        pytest.skip("not a git checkout, so there is no list of tracked files")
    return [ROOT / name for name in run.stdout.split("\0") if name and (ROOT / name).is_file()]


def text_of(path):
    """The text of a file, or "" for a binary one."""
    try:
        return path.read_text(encoding="utf8")
    except UnicodeDecodeError:
        return ""


@pytest.mark.parametrize("where, requirement", requirements(), ids=str)
def test_every_requirement_is_pinned_within_its_range(where, requirement):
    version = pins().get(name_of(requirement.name))
    assert version is not None, f"{requirement.name} ({where}) has no pin in constraints.txt"
    assert requirement.specifier.contains(version, prereleases=True), (
        f"{requirement} ({where}) excludes {version}"
    )


def test_every_pin_is_for_the_first_python_that_the_package_takes():
    """pip on Python 3.11.2, Debian's, passes over what wants 3.11.5, and then finds no version that fits the pin."""
    least = next(part.version for part in SpecifierSet(PROJECT["requires-python"])) + ".0"
    found = {name_of(each.metadata["Name"]): each for each in metadata.distributions()}
    asked = {name: found[name].metadata.get("Requires-Python") for name in pins().keys() & found.keys()}
    assert len(asked) > 100
    newer = {name: text for name, text in asked.items() if text and least not in SpecifierSet(text)}
    assert newer == {}


def test_the_trainer_has_its_own_extra():
    """README.md and the page At work name it; it holds what the Trainer asks for, and the experiments include it."""
    from transformers.utils.import_utils import ACCELERATE_MIN_VERSION

    (needed,) = map(Requirement, EXTRAS["train"])
    assert needed.name == "accelerate" and not needed.specifier.contains("1.0")
    lowest = min(Version(part.version) for part in needed.specifier if part.operator == ">=")
    assert lowest >= Version(ACCELERATE_MIN_VERSION)
    assert "dplearn[train]" in EXTRAS["experiments"]
    assert not any(line.startswith("accelerate") for line in PROJECT["dependencies"])
    for page in ("README.md", "book/at-work.md"):
        assert 'pip install ".[train]"' in text_of(ROOT / page)


def test_extras_that_are_installed_name_extras_that_exist():
    named = {match for lines in EXTRAS.values() for match in re.findall(r"dplearn\[(\w+)\]", " ".join(lines))}
    assert named <= EXTRAS.keys() and named <= set(INSTALLED)


def test_the_installation_page_lists_every_extra_with_what_it_installs():
    rows = re.findall(
        r'^\| `pip install "\.\[(\w+)\]"` \| ([^|]+) \| ([^|]+) \|$', text_of(ROOT / "book/install.md"), re.M
    )
    assert {extra for extra, _, _ in rows} == EXTRAS.keys()
    for extra, _, installs in rows:
        asked = " ".join(EXTRAS[extra]).lower().replace("_", "-")
        names = [name_of(name) for name in re.split(r", | and ", installs)]
        known = [name for name in names if name in asked]
        assert known and (known == names or extra in ("book", "test")), f"{extra}: {set(names) - set(known)}"


def test_pins_fit_every_machine():
    for name, version in pins().items():
        assert not Version(version).local, f"{name}=={version}: a local version exists on one index only"
        assert not re.match(r"nvidia|triton|cuda", name), (
            f"{name}: which CUDA packages are needed is torch's choice"
        )


def test_environment_yml_is_in_step():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *packages, pip = environment["dependencies"]
    python = next(line for line in packages if line.startswith("python="))
    assert environment["name"] == PROJECT["name"]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python.split("=")[1] + ".0")
    assert pip["pip"] == ["-c constraints.txt", "-e .[book,test]"]
    # The Makefile asks for the same.
    assert '-c constraints.txt -e ".[book,test]"' in (ROOT / "Makefile").read_text()


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_changes_begin_with_this_version():
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "book" / "changelog.md").read_text(), re.MULTILINE)
    assert versions[0] == PROJECT["version"] and versions == sorted(versions, key=Version, reverse=True)


def test_every_deprecation_is_among_the_changes():
    """Each FutureWarning that the package gives names what to write; the page of changes has one line for each."""
    source = "".join(
        path.read_text() for path in (ROOT / "dplearn").rglob("*.py") if "experiments" not in path.parts
    )
    changes = (ROOT / "book" / "changelog.md").read_text()
    announced = re.findall(r"^\*\*Deprecated\*\*\n\n((?:- .*\n(?:  .*\n)*)+)", changes, re.MULTILINE)
    assert sum(block.count("\n- ") + 1 for block in announced) == source.count("FutureWarning")


def test_readme_commands_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md", "book/intro.md", "book/install.md"):
        used = set(
            re.findall(
                r"\bmake ([a-z-]+)\b",
                re.sub(r"(?s)[^`]*?(```.*?```|`[^`\n]*`)", r"\1\n", text_of(ROOT / name)),
            )
        )
        assert used <= targets, f"{name} names targets that the Makefile lacks: {sorted(used - targets)}"


# The parts are joined here, so that this file does not match itself.
MACHINE_PATH = re.compile(
    r"(?<![\w.:/*<])/(?:" + "|".join(["work", "tmp", "root", "home", "Users", "opt"]) + r")/[\w.]"
)
REGISTRY_HOST = re.compile("|".join(re.escape(".".join(parts)) for parts in [
    ("pypi", "org"), ("pythonhosted", "org"), ("download.pytorch", "org"), ("conda.anaconda", "org"),
]))  # fmt: skip


def test_no_tracked_file_names_a_machine():
    found = []
    for path in tracked_files():
        for number, line in enumerate(text_of(path).splitlines(), start=1):
            for pattern in (MACHINE_PATH, REGISTRY_HOST):
                if match := pattern.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}")
    assert not found, "\n".join(found[:20])


@pytest.mark.parametrize(
    "line, wrong",
    [
        ("open('" + "/".join(["", "work", "main", "x"]) + "')", True),
        ("see " + "/".join(["", "home", "ann", "data"]), True),
        ("https://example.org/home/page and notebooks/work/x", False),
        ("a / b, and/or, /usr/bin/chromium", False),
    ],
)
def test_machine_paths_are_recognized(line, wrong):
    assert bool(MACHINE_PATH.search(line)) is wrong


def test_shipped_weights_stay_small():
    size = sum(path.stat().st_size for path in tracked_files() if path.suffix == ".safetensors")
    assert size < 15e6, f"all weights together hold {size / 1e6:.1f} MB, expected less than 15 MB"


def imported_by(statement):
    """The top-level names of all modules that a fresh interpreter holds after the statement."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_import_is_light():
    # transformers itself imports some of these where they are installed; dplearn must not add to them.
    heavy = {
        "datasets",
        "sklearn",
        "matplotlib",
        "accelerate",
        "peft",
        "pandas",
        "scipy",
        "sympy",
        "tqdm",
        "IPython",
    }
    base = imported_by("import torch\nfrom transformers import PreTrainedModel, TrainerCallback")
    assert not (imported_by("import dplearn") - base) & heavy


def test_import_leaves_transformers_and_the_compiler_to_those_who_use_them():
    code = "import sys, dplearn; print(*(name in sys.modules for name in ('torch._dynamo', 'transformers')))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["False", "False"], run.stderr


def test_modules_that_mypy_checks_less_strictly_exist():
    for override in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]:
        for module in override["module"]:
            path = ROOT / module.removesuffix(".*").replace(".", "/")
            known = path.is_dir() or path.with_suffix(".py").is_file()
            assert known or not module.startswith("dplearn"), f"{module} in [tool.mypy] of pyproject.toml"
