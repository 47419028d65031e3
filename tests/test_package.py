"""Wheel and source archive, each installed in an environment of its own that sees no repository: what ships works there.

`make package` runs it. What dplearn needs (torch, transformers, ...) is that of the environment in which the tests run,
so that nothing is downloaded.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from project import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SMOKE = '''
"""Every backbone that ships: load, attach a prompt, forward, save, load, the same answer."""
import sys
from pathlib import Path

import torch

import dplearn as dp

inside = Path(sys.prefix)
assert inside in Path(dp.__file__).parents, dp.__file__
assert (Path(dp.__file__).parent / "py.typed").is_file()


def batch_for(name, helper):
    if name == "vit-mini":
        return {"pixel_values": torch.rand(2, 3, 28, 28)}
    if name == "clip-mini":
        return helper.tokenizer(["a key", "a bug"], return_tensors="pt", padding=True) | {
            "pixel_values": torch.rand(2, 3, 28, 28)
        }
    batch = helper(["anna keeps a red ball .", "ben has a cup ."], return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    if name != "llama-mini":
        batch["labels"] = helper(["red", "cup"], return_tensors="pt").input_ids
    return batch


for name in dp.zoo.shipped():
    backbone, helper = dp.zoo.load(name)
    model = dp.prompted(backbone, dp.PromptConfig(length=3)).eval()
    batch = batch_for(name, helper)
    output = "logits_per_image" if name == "clip-mini" else "logits"
    with torch.no_grad():
        before = model(**batch)[output]
        model.save_pretrained(name)
        after = dp.from_pretrained(name).eval()(**batch)[output]
    assert before.isfinite().all() and torch.equal(before, after), name
    print("works", name)
'''


def run(command, folder, **options):
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, timeout=900, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The two archives, built from a copy of the tracked files: the wheel out of the source archive, as pip would."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if names.returncode:
        pytest.skip("not a git checkout: there is no list of the files that belong to it")
    source = tmp_path_factory.mktemp("source")
    for name in filter(None, names.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source], out)
    (wheel,), (archive,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": archive}


def packaged(path):
    """The files of the package in an archive, by their path in the package."""
    if path.suffix == ".whl":
        names = zipfile.ZipFile(path).namelist()
    else:
        names = [name.partition("/")[2] for name in tarfile.open(path).getnames() if not name.endswith("/")]
    return {name for name in names if name.startswith("dplearn/") and Path(name).suffix}


def test_both_hold_all_that_is_tracked_in_the_package(archives):
    """Weights, tokenizers, cards, records and studies travel with the code, and the mark that it has types."""
    listed = subprocess.run(
        ["git", "ls-files", "dplearn"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = {name for name in listed.stdout.split("\n") if (ROOT / name).is_file() and Path(name).suffix}
    for path in archives.values():
        assert packaged(path) == tracked
    assert "dplearn/py.typed" in tracked


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def installed(request, archives, tmp_path_factory):
    """(the interpreter of an environment in which one of the two is installed, an empty folder, what it is run with)."""
    folder = tmp_path_factory.mktemp(request.param)
    run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], folder)
    python = folder / "env" / "bin" / "python"
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    # A path in a .pth file is searched last, and .pth files in it (an editable dplearn's) are not read.
    (site / "what_dplearn_needs.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    outside = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    # --ignore-installed: what stands in the other environment is left alone.
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--ignore-installed", "--disable-pip-version-check"]
    run([*command, archives[request.param]], folder, env=outside)
    (folder / "empty").mkdir()
    return python, folder / "empty", outside


def test_every_backbone_that_ships_works(installed):
    import dplearn as dp

    python, folder, outside = installed
    said = run([python, "-I", "-c", SMOKE], folder, env=outside)
    assert said.splitlines() == [f"works {name}" for name in dp.zoo.shipped()]


COMMANDS = {
    "dplearn": ("-m dplearn", "python -m dplearn.zoo"),
    "zoo": ("-m dplearn.zoo list", "t5-mini"),
    "experiments": ("-m dplearn.experiments list", "position"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_the_command_line_works(case, installed):
    python, folder, outside = installed
    command, words = COMMANDS[case]
    assert words in run([python, "-I", *command.split()], folder, env=outside)
