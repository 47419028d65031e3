"""The benchmarks: goals are judged at their edges, the page shows what the record holds, options are checked."""

import ast
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from project import ROOT, tool
from torch.testing import assert_close

FOLDER = ROOT / "tests" / "benchmarks"
sys.path.insert(0, str(FOLDER))  # the folder is no package: its scripts find each other as scripts do

import bench_clip  # noqa: E402
import bench_vit  # noqa: E402
import goals  # noqa: E402
import measure  # noqa: E402
import run  # noqa: E402

PROVENANCE = dict(
    command="python tests/benchmarks/run.py --only models --pairs 9", date="2026-11-25", commit="abc1234", dplearn="0.1.0",
    python="3.11.7", torch="2.13.0", transformers="5.23.0", machine="x86_64", device="CPU, 1 thread", peft="0.21.2",
)  # fmt: skip


def made_up(figures, group="models", quick=False):
    row = {"group": group, "quick": quick, "seconds": 12.3, "provenance": PROVENANCE, "figures": figures}
    return {"provenance": PROVENANCE, "rows": [row]}


def lines_of(record, group="models"):
    """The table rows of a group's section, as lists of cells."""
    text = tool("benchmark_tables", "_ext").section(goals, group, record)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return text, [row for row in rows if row[0] not in ("Figure", ":--")]


@pytest.mark.parametrize(
    "value, goal, at_least, expected",
    [
        (1.05, 1.05, False, True),
        (math.nextafter(1.05, 2), 1.05, False, False),
        (15, 15, True, True),
        (math.nextafter(15, 0), 15, True, False),
        (0, 0, False, True),
        (1, 0, False, False),
        (math.nan, 1.05, False, False),
        (math.nan, 15, True, False),
        (math.inf, None, False, None),
    ],
)
def test_goals_are_judged_at_their_edges(value, goal, at_least, expected):
    assert goals.holds(value, goal, at_least) is expected


def test_figures_have_one_name_each_and_modules_exist():
    for group in (*goals.GROUPS.values(), goals.GPU_GROUP):
        names = [figure.name for figure in group.figures]
        words = [figure.words for figure in group.figures]
        assert len(set(names)) == len(names) and len(set(words)) == len(words)
        functions = [
            node.name
            for node in ast.parse((FOLDER / f"{group.module}.py").read_text()).body
            if isinstance(node, ast.FunctionDef)
        ]
        assert "measure" in functions


def test_the_page_has_a_place_for_every_group():
    text = (ROOT / "book" / "benchmarks.md").read_text()
    assert tool("benchmark_tables", "_ext").MARK.findall(text) == [*goals.GROUPS, "gpu"]


def test_ratio_is_that_of_the_pairs_and_collection_is_off(monkeypatch):
    import gc

    seconds, enabled = iter([9.0, 9.0, 2.0, 1.0, 6.0, 2.0, 8.0, 4.0]), []  # a pair to warm up, then three
    clock = [0.0]
    monkeypatch.setattr(measure.time, "process_time", lambda: clock[0])
    monkeypatch.setattr(measure, "_of_children", lambda: 0.0)  # other tests of this process may have had some

    def work():
        clock[0] += next(seconds)
        enabled.append(gc.isenabled())

    found = measure.time_in_turns(work, work, pairs=3)
    assert (found["value"], found["low"], found["high"], found["pairs"]) == (2.0, 2.0, 2.5, 3)
    assert found["ms"] == [6000.0, 2000.0] and found["best"] == 2.0
    assert enabled == [True] * 2 + [False] * 6 and gc.isenabled()


def test_report_keeps_verdicts_and_refuses_unknown_and_missing_figures(capsys):
    report = measure.Report("models")
    report.add("gpt2 instance/fixed", 1.06)
    report.add("gpt2 frozen", 0)
    assert [figure["holds"] for figure in report.figures] == [False, True]
    assert report.missed() == ["GPT-2: position per instance / fixed prompt"]
    assert "FAIL" in capsys.readouterr().out
    with pytest.raises(KeyError):
        report.add("no such figure", 1)
    with pytest.raises(RuntimeError, match="bert frozen.*bert instance"):
        report.check_complete()
    report.add("bert frozen", 0)
    report.skip("bert instance/fixed", "no BERT here")
    report.check_complete()


def test_table_shows_values_goals_and_what_was_not_run():
    figures = [
        {"name": "gpt2 instance/fixed", "value": 1.0349, "low": 1.01, "high": 1.2, "pairs": 9},
        {"name": "gpt2 frozen", "value": 2, "goal": 7, "holds": True},  # the stored verdict is not believed
        {"name": "bert instance/fixed", "skipped": "a | b"},
    ]
    text, rows = lines_of(made_up(figures))
    assert rows[0] == ["GPT-2: position per instance / fixed prompt", "1.03", "1.01 to 1.2", "≤ 1.05", "pass"]
    assert rows[1][1:] == ["2", "", "≤ 0", "fail"]
    assert rows[2][1:4] == [r"not run: a \| b", "", "≤ 1.05"] and rows[3][1] == "not run"
    assert "medians of 9 pairs" in text and "`abc1234`" in text and PROVENANCE["command"] in text


@pytest.mark.parametrize("record", [None, made_up([], group="steps")], ids=["no record", "another group"])
def test_without_a_record_all_figures_are_not_run(record):
    text, rows = lines_of(record)
    assert len(rows) == 4 and all(row[1] == "not run" for row in rows)
    assert text.endswith("No record of these figures ships with this version.")


def test_a_quick_run_is_not_judged():
    text, rows = lines_of(made_up([{"name": "gpt2 frozen", "value": 0}], quick=True))
    assert rows[1][-1] == "not judged" and "small shapes" in text


def test_figures_without_a_goal_are_folded_away_only_beside_others():
    extension = tool("benchmark_tables", "_ext")
    assert "{dropdown}" in extension.section(goals, "steps", None)
    assert "{dropdown}" not in extension.section(goals, "padding", None)


def test_the_page_is_filled_from_the_record_of_the_package(tmp_path):
    """The whole replacement, in a copy of the folders that the extension reads."""
    extension = tool("benchmark_tables", "_ext")
    for path in (extension.GOALS, extension.RECORD):
        (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / extension.GOALS).write_text((ROOT / extension.GOALS).read_text())
    (tmp_path / extension.RECORD).write_text(json.dumps(made_up([{"name": "bert frozen", "value": 0}])))
    noted = []
    app = SimpleNamespace(srcdir=tmp_path, env=SimpleNamespace(note_dependency=noted.append))
    source = ["before\n\n<!-- benchmarks: models -->\n\nafter <!-- benchmarks: models -->"]
    extension.insert_tables(app, extension.PAGE, source)
    assert "| BERT: frozen weights that got a gradient | 0 |" in source[0]
    assert source[0].startswith("before") and source[0].endswith("after <!-- benchmarks: models -->")
    assert [Path(path).name for path in noted] == ["goals.py", "benchmarks.json"]
    untouched = ["<!-- benchmarks: models -->"]
    extension.insert_tables(app, "book/other", untouched)
    assert untouched == ["<!-- benchmarks: models -->"]


def test_a_shipped_record_holds_known_groups_of_full_runs():
    path = ROOT / tool("benchmark_tables", "_ext").RECORD
    if not path.is_file():
        pytest.skip("the benchmarks were not recorded for this version")
    for row in json.loads(path.read_text())["rows"]:
        known = {figure.name for figure in goals.group(row["group"]).figures}
        assert not row["quick"] and {figure["name"] for figure in row["figures"]} <= known
        assert all(figure.get("pairs", 9) >= 9 for figure in row["figures"])


def test_the_script_for_a_gpu_runs_small_models_anywhere(tmp_path, capsys):
    import gpu

    out = tmp_path / "benchmarks.json"
    out.write_text(json.dumps(made_up([{"name": "bert frozen", "value": 0}])))
    gpu.main(["--tiny", "--out", str(out)])
    rows = {row["group"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == ["models", "gpu"] and rows["models"]["figures"][0]["value"] == 0
    found = {figure["name"]: figure for figure in rows["gpu"]["figures"]}
    assert list(found) and set(found) == {figure.name for figure in goals.GPU_GROUP.figures}
    skipped = {name for name, figure in found.items() if "skipped" in figure}
    assert skipped <= {name for name in found if name.endswith(("memory", "MFU"))}
    text, lines = lines_of({"rows": list(rows.values())}, "gpu")
    assert "not judged" in text and "gpu.py --minutes 7 --tiny" in text
    before = out.read_text()
    with pytest.raises(SystemExit):
        gpu.main(["--minutes", "soon", "--out", str(out)])
    gpu.main(["--tiny", "--minutes", "0", "--out", str(out)])
    figures = json.loads(out.read_text())["rows"][1]["figures"]
    assert out.read_text() != before and {figure.get("skipped") for figure in figures} == {"no time was left"}


def test_what_the_page_says_of_the_operators_share_is_in_the_record():
    """Milliseconds of seconds, at one shape, and the goals that were given up for it."""
    record = json.loads((ROOT / tool("benchmark_tables", "_ext").RECORD).read_text())
    figures = {(row["group"], f["name"]): f for row in record["rows"] for f in row["figures"]}
    operator = figures["insertion", "time operator/fixed_cat (8, 128, 20, 512)"]["ms"][0]
    step = figures["steps", "instance/fixed l=20"]["ms"][0]
    text = (ROOT / "book" / "benchmarks.md").read_text().replace("\n", " ")
    assert f"took {operator:.0f} ms for all of it, and {step / 1e3:.1f} s for a training step" in text


def test_without_a_gpu_the_page_says_not_run():
    text, lines = lines_of(None, "gpu")
    assert len(lines) == len(goals.GPU_GROUP.figures) and all(line[1] == "not run" for line in lines)


# --- the command line ---


def test_options_have_defaults():
    options = run.parse([])
    assert (options.only, options.pairs, options.out, options.quick) == (list(goals.GROUPS), 11, None, False)
    quick = run.parse(["--quick", "--only", "steps,insertion"])
    assert (quick.only, quick.pairs) == (["insertion", "steps"], 3)
    assert run.parse(["--estimators"]).only == ["estimators"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--quick", "--only", "insertoin"], "'insertoin' is unknown, expected some of insertion, steps"),
        (["--only", "steps,"], "'' is unknown"),
        (["--pairs", "0"], "expected at least 1"),
        (["--fast"], "unrecognized arguments"),
    ],
)
def test_wrong_options_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run.parse(arguments)
    assert message in capsys.readouterr().err


def test_the_recorded_command_names_no_file():
    options = run.parse(["--quick", "--only", "steps", "--out", "somewhere.json"])
    assert run.command(options, "steps") == "python tests/benchmarks/run.py --quick --only steps --pairs 3"


def test_a_run_keeps_the_rows_of_the_groups_that_it_leaves_out(tmp_path, monkeypatch, capsys):
    def measure_nothing(report, quick, pairs):
        for name in report.expected:
            report.add(name, 0.5)

    monkeypatch.setattr(run, "import_module", lambda name: SimpleNamespace(measure=measure_nothing))
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps(made_up([{"name": "gpt2 frozen", "value": 0}])))
    run.main(["--only", "length,padding", "--out", str(path)])
    record = json.loads(path.read_text())
    assert [row["group"] for row in record["rows"]] == ["models", "length", "padding"]
    assert record["rows"][0]["provenance"] == PROVENANCE
    assert record["rows"][1]["provenance"]["command"].endswith("--only length --pairs 11")
    assert str(tmp_path) not in path.read_text()
    assert "missed:\n  largest relative difference" in capsys.readouterr().out
    text, rows = lines_of(record, "length")
    assert rows[0][1:] == ["0.5", "", "≤ 0.6", "pass"] and "GPT-2" not in text


# --- what images and texts are compared with: written by hand, it must say the same as the package ---

EXACT = dict(rtol=0, atol=1e-12)


def assert_same_training(ours, theirs, batch, vectors, other_batch=None):
    """Loss, logits and the gradient of the vectors of two models that share them."""
    with torch.no_grad():
        ours.prompt.vectors.copy_(vectors)
        theirs.vectors.copy_(vectors)
    found, wanted = ours(**batch), theirs(**(other_batch or batch))
    found.loss.backward()
    wanted.loss.backward()
    assert_close(found.logits, wanted.logits, **EXACT)
    assert_close(found.loss, wanted.loss, **EXACT)
    assert_close(ours.prompt.vectors.grad.view_as(theirs.vectors), theirs.vectors.grad, **EXACT)
    assert theirs.vectors.grad.norm() > 1e-3


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("way, layers", [("prefix", 1), ("deep", bench_vit.SMALL.layers)])
def test_visual_prompt_tuning_by_hand_equals_ours(way, layers, double):
    shape = bench_vit.SMALL
    backbone, batch = bench_vit.make_vit(shape), bench_vit.make_batch(shape)
    ours = bench_vit.prompted(backbone, **bench_vit.ours(shape.layers)[way]).double()
    vectors = torch.randn(layers, bench_vit.LENGTH, shape.dim)
    theirs = bench_vit.HandWrittenVPT(backbone, vectors.clone())
    assert_same_training(ours, theirs, batch, vectors.view(ours.prompt.vectors.shape))


@pytest.fixture
def clip_setting(double):
    """A CLIP, its class names, and images."""
    shape, count = bench_clip.SMALL, 6
    texts, images = bench_clip.make_texts(count, shape.positions), bench_clip.make_images(shape, 3, count)
    return bench_clip.make_clip(shape), texts, images


@pytest.mark.parametrize("way", goals.CLIP_SHORTCUTS)
def test_coop_by_hand_equals_ours_with_each_saving(way, clip_setting):
    (clip, texts, images), ((shortcuts, keeps_images), _) = clip_setting, goals.CLIP_SHORTCUTS[way]
    ours = bench_clip.prompted(clip, texts, shortcuts).double()
    vectors = torch.randn(bench_clip.LENGTH, bench_clip.SMALL.text[0])
    theirs = bench_clip.HandWrittenCoOp(clip, vectors.clone(), texts)
    batch = bench_clip.cached(ours, images) if keeps_images else images
    assert_same_training(ours, theirs, batch, vectors, images)


def test_cocoops_loop_by_hand_equals_ours_with_all_savings(clip_setting):
    clip, texts, images = clip_setting
    options = {"vector": "instance", "summary": "image", "pool_size": bench_clip.POOL}
    ours = bench_clip.prompted(clip, texts, bench_clip.SHORTCUTS, **options).double()
    vectors = torch.randn(bench_clip.POOL, bench_clip.LENGTH, bench_clip.SMALL.text[0])
    theirs = bench_clip.HandWrittenCoCoOp(clip, vectors.clone(), texts)
    with torch.no_grad():  # ours also centres and scales what it looks at: the same mixture, the bias's
        for linear in (theirs.linear, ours.prompt.vector.controller.linear):
            linear.weight.zero_()
            linear.bias.copy_(torch.arange(float(bench_clip.POOL)))
    assert_same_training(ours, theirs, images, vectors)


def test_the_references_read_full_columns_and_class_names_differ_in_length(clip_setting):
    clip, texts, _ = clip_setting
    lengths = (texts == bench_clip.END).int().argmax(1) + 1  # start token, words, full stop, end token
    assert sorted(set(lengths.tolist())) == [4, 5, 6, 7]
    read = []
    clip.text_model.final_layer_norm.register_forward_hook(lambda *a: read.append(tuple(a[2].shape[:2])))
    room, vectors = bench_clip.SMALL.positions, torch.zeros(bench_clip.LENGTH, bench_clip.SMALL.text[0])
    bench_clip.HandWrittenCoOp(clip, vectors, texts).texts(vectors)
    for shortcuts in ((), ("truncate",), ("truncate", "share")):
        bench_clip.prompted(clip, texts, shortcuts).double().text_features()
    shared = 1 + bench_clip.LENGTH
    assert read[:3] == [(6, room), (6, room), (6, 7 + bench_clip.LENGTH)]
    assert read[3] == (1, shared + int((lengths - 1).sum()))


@pytest.mark.parametrize("group", ["vit", "clip"])
def test_every_figure_of_images_is_measured(group, monkeypatch, capsys):
    """A quick run whose clock stands still: each way makes its steps, and no frozen weight gets a gradient."""

    def once(first, second, pairs):
        first(), second()
        return {"value": 1.0}

    monkeypatch.setattr(measure, "time_in_turns", once)
    report = measure.Report(group, quick=True)
    {"vit": bench_vit, "clip": bench_clip}[group].measure(report, True, 1)
    report.check_complete()
    found = {figure["name"]: figure["value"] for figure in report.figures}
    assert found["frozen"] == 0
    assert all(value <= 1e-5 for name, value in found.items() if name.startswith("difference"))
