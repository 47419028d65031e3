"""Studies at full scale, run by their own command on stand-ins: every method that a chapter prints a command for."""

import json
import re
import subprocess
import sys

import pytest
import standins
from transformers import AutoModelForSeq2SeqLM

from dplearn.experiments import costs, jobs, study

SETS = ("vtab/dtd", "vtab/kitti", "fgvc/CUB_200_2011", "coop/oxford_pets", "coop/dtd")  # folders
MODELS = (
    "google/t5-small-lm-adapt",
    "google/t5-large-lm-adapt",
    "google/vit-base-patch16-224-in21k",
    "openai/clip-vit-base-patch16",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A machine that has fetched everything already, small."""
    folder = tmp_path_factory.mktemp("home")
    standins.fill(folder, MODELS)
    for name in SETS:
        family, _, key = name.partition("/")
        getattr(standins, family)(folder / family / key, 4)
    return folder


def run(home, *arguments, status=0, **variables):
    """The command as a process of its own, offline."""
    command = [sys.executable, "-m", "dplearn.experiments", *arguments]
    done = subprocess.run(
        command,
        cwd=home,
        env=standins.environment(home) | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


TRIED = [
    ("t5", "*/superglue/cb?total*/*", "google/t5-small*"),
    ("t5-authors", "*/superglue/multirc*/*", "google/t5-large*"),
    ("multi-task", "*", "google/t5-large*"),
    ("vit-decisions", "*/vtab/dtd*/*", "*"),
    ("clip-decisions", "*/coop/pets*/*", "*"),
]


@pytest.mark.parametrize(("name", "only", "backbone"), TRIED)
def test_every_method_of_a_full_study_runs_by_its_own_command(home, name, only, backbone):
    asked = ["--only", only, "--backbone", backbone]
    said = run(home, "run", name, "--scale", "full", "--try", "2", "--jobs", "1", *asked)
    (counts,) = re.findall(r"(\d+) of (\d+) runs end", said)
    full = study.read(name, "full")
    wanted = jobs.trials(full, lambda job: job.matches([only], backbone=[backbone]))
    assert counts[0] == counts[1] == str(len(wanted)) and len(wanted) >= 6
    assert not (home / "runs").exists()  # nothing is kept


PASSED_ON = {
    "VTAB": "cifar caltech101 dtd oxford_flowers102 oxford_iiit_pet svhn sun397 patch_camelyon eurosat resisc45 "
    "diabetic_retinopathy clevr_count clevr_dist dmlab kitti dsprites_loc dsprites_ori smallnorb_azi smallnorb_ele",
    "FGVC": "CUB_200_2011 nabirds OxfordFlower Stanford-dogs Stanford-cars",
    "COOP": "imagenet caltech-101 oxford_pets stanford_cars oxford_flowers food-101 fgvc_aircraft sun397 dtd eurosat "
    "ucf101",
}


def test_sets_lie_in_folders_called_as_they_are_passed_on():
    """VTAB-1k's one archive, VPT's note on its splits, CoOp's DATASETS.md."""
    found = {"VTAB": [], "FGVC": [], "COOP": []}
    for name in ("vit-decisions", "clip-decisions"):
        for task in study.read(name, "full").tasks:
            variable, folder = re.search(r"path=\$([A-Z]+)/([^&]+)", task).groups()
            found[variable].append(folder)
    assert {name: sorted(folders) for name, folders in found.items()} == {
        name: sorted(folders.split()) for name, folders in PASSED_ON.items()
    }


SMALL = [
    ("t5", "*/world/color/*"),
    ("t5-authors", "*/world/color/*"),
    ("ablations", "*"),
    ("vit-decisions", "*/images/icons-classes/*"),
    ("clip-decisions", "*"),
]


@pytest.mark.parametrize(("name", "only"), SMALL)
def test_every_method_of_the_same_study_runs_on_what_ships(tmp_path, name, only):
    """The command without `--scale`, as the chapters print it."""
    said = run(tmp_path, "run", name, "--try", "1", "--jobs", "1", "--only", only)
    (counts,) = re.findall(r"(\d+) of (\d+) runs end", said)
    wanted = jobs.trials(study.read(name), lambda job: job.matches([only]))
    assert counts[0] == counts[1] == str(len(wanted)) and len(wanted) >= 6


def test_every_method_of_the_study_on_a_real_model_runs_on_files_of_its_format(tmp_path):
    """FewGLUE's files, and a language model that ships in the place of the one that is fetched by pip."""
    for folder, labels in (
        ("CB", ("entailment", "contradiction", "neutral")),
        ("RTE", ("entailment", "not_entailment")),
    ):
        (tmp_path / folder).mkdir()
        for number, name in enumerate(("train", "dev32", "val")):
            rows = [
                {"premise": f"the ball is red {i} .", "hypothesis": f"it is red {number} .", "label": labels[i % len(labels)], "idx": i}
                for i in range(32 if name != "val" else 12)
            ]  # fmt: skip
            (tmp_path / folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = (study.FOLDER / "smollm2-place.toml").read_text()
    path = tmp_path / "real.toml"
    path.write_text(text.replace("smollm2-135m-instruct", "llama-mini"))
    said = run(tmp_path, "run", str(path), "--try", "2", "--jobs", "1", SUPERGLUE=tmp_path)
    (counts,) = re.findall(r"(\d+) of (\d+) runs end", said)
    wanted = jobs.trials(study.read(str(path)), lambda job: True)
    assert counts[0] == counts[1] == str(len(wanted)) and len(wanted) >= 11


def test_the_study_of_the_page_at_work_runs_on_own_texts(tmp_path):
    """As the page has it, with a model that is there; then its run is kept, told in a table and run again."""
    page = (study.FOLDER.parents[2] / "book" / "at-work.md").read_text(encoding="utf8")
    [text] = re.findall(r"```{code-block} toml\n(.*?)```", page, re.DOTALL)
    lines = [f"what a {('bad', 'good')[i % 2]} film number {i},{('no', 'yes')[i % 2]}" for i in range(40)]
    (tmp_path / "my-data").mkdir()
    (tmp_path / "my-data" / "train.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    (tmp_path / "own.toml").write_text(
        text.replace("./my-model", "t5-mini").replace("steps = 100", "steps = 2")
    )
    said = run(tmp_path, "run", "own.toml", "--try", "1", "--jobs", "1")
    assert "2 of 2 runs end" in said
    run(tmp_path, "run", "own.toml", "--only", "prefix/*/101", "--purpose", "choice")
    (row,) = [json.loads(file.read_text()) for file in (tmp_path / "runs" / "own").glob("*.json")][:1]
    assert row["data"].startswith("own texts, sha256 ") and set(row["scores"]) == {"validation"}


def test_a_study_of_own_images_runs(tmp_path):
    from PIL import Image

    for number in range(40):
        folder = tmp_path / "my-pictures" / ("dark", "light")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (60 + 120 * (number % 2) + number,) * 3).save(folder / f"{number}.png")
    (tmp_path / "own.toml").write_text(
        'title = "own"\nbackbones = ["vit-mini"]\ntasks = ["images/folder?path=my-pictures"]\n[settings]\nsteps = 2\n'
        "[report]\nseeds = [1]\n[grid.fixed]\nlearning_rate = [0.1]\n[choice]\nseeds = [101, 102, 103]\n"
        '[[method]]\nname = "VPT, shallow"\nkind = "images"\nprompt = { length = 2 }\n'
    )
    assert "1 of 1 runs end" in run(tmp_path, "run", "own.toml", "--try", "1", "--jobs", "1")


def test_a_full_study_is_stopped_resumed_and_published_as_any_other(home, tmp_path):
    """Real runs into the folder of the scale; the second time nothing is left to do."""
    text = (study.FOLDER / "vit-decisions.toml").read_text()
    path = tmp_path / "small.toml"
    path.write_text(
        re.sub(r"(?m)^steps = 1600", "steps = 2", text).replace(
            "looks = { points = 4", "looks = { points = 1"
        )
    )
    arguments = [str(path), "--scale", "full", "--runs", str(tmp_path / "runs"), "--purpose", "choice"]
    only = ["--only", "VPT, shallow/vtab/kitti_distance*/*"]
    assert "12 runs are known" not in run(home, "run", *arguments, *only)
    rows = list((tmp_path / "runs" / "small-full").glob("*.json"))
    assert len(rows) == 9
    assert f"{len(rows)} runs are known, {len(rows)} of them done" in run(home, "resume", *arguments, *only)


def test_a_plan_wants_neither_models_nor_data(tmp_path):
    """On a machine that has nothing: hours, memory and downloads all the same."""
    for name, *_ in TRIED:
        said = run(tmp_path, "plan", name, "--scale", "full", "--device", "a100")
        full = study.read(name, "full")
        assert all(backbone in said for backbone in full.backbones)
        (weights,) = re.findall(r"weights to fetch: ([\d.]+) GB", said)
        assert float(weights) == pytest.approx(costs.disk(full) / 1e9, abs=0.05) and float(weights) > 0


@pytest.mark.parametrize(
    ("name", "most"),
    [("t5", 80), ("t5-authors", 80), ("multi-task", 80), ("vit-decisions", 24), ("clip-decisions", 80)],
)
def test_no_run_wants_more_memory_than_the_study_says(name, most):
    """By arithmetic, weights and what waits for the backward pass; the file names the GPU."""
    full = study.read(name, "full")
    assert f"GPU of {most} GB" in full.text or name == "t5-authors"
    assert max(cost.memory for cost in costs.costs(full).values()) / 1e9 < 0.9 * most


def test_methods_of_others_have_as_many_vectors_as_ours():
    """At each scale, unless their table says another number."""
    for scale, length in ((None, 5), ("full", 20)):
        found = {job.labels["method"]: job.spec for job, _ in jobs.first_of_each(study.read("t5", scale))}
        assert found["prefix"]["prompt"]["length"] == length
        for method in ("P-tuning", "prefix tuning"):
            assert found[method]["peft"]["num_virtual_tokens"] == length
        assert "num_virtual_tokens" not in found["LoRA"]["peft"]


def test_the_head_of_t5_11_is_its_own(home, monkeypatch):
    """Its repository has a pickle with a head that is not the table of embeddings; transformers once tied the two."""
    import torch

    folder = home / "hub" / "models--google--t5-small-lm-adapt" / "snapshots" / standins.COMMIT
    model, weights = AutoModelForSeq2SeqLM.from_pretrained(folder), torch.load(folder / "pytorch_model.bin")
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])
    assert torch.equal(model.shared.weight, weights["shared.weight"])
    assert not model.config.scale_decoder_outputs
