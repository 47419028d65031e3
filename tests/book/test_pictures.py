"""The pictures that the book draws from records: every value is the record's, in the drawing and in the words."""

import json
import math
import re
import sys
from html import unescape

import pytest
from project import ROOT

sys.path.insert(0, str(ROOT / "book" / "_ext"))
import pictures  # noqa: E402

from dplearn.experiments import recorded  # noqa: E402

RATIOS = {
    (row["group"], figure["name"]): figure.get("value")
    for row in json.loads((ROOT / pictures.RECORDS / "benchmarks.json").read_text())["rows"]
    for figure in row["figures"]
}


@pytest.mark.parametrize(("name", "wanted"), [("steps", pictures.STEPS), ("spared", pictures.SPARED)])
def test_bars_have_the_values_of_the_record_and_reach_from_one_to_them(name, wanted):
    html = pictures.DRAWN[name](ROOT)
    lines = re.findall(
        r'"label">(.*?)</span>.*?left:([\d.]+)%;width:([\d.]+)%.*?"one" style="left:([\d.]+)%.*?"value">(.*?)<',
        html,
    )
    assert [unescape(label) for label, *_ in lines] == list(wanted)
    scales = []
    for (_, left, width, one, value), key in zip(lines, wanted.values()):
        ratio = RATIOS[key]
        assert value == f"{ratio:.2f}"
        start, end = float(left), float(left) + float(width)
        assert float(one) == pytest.approx(start if ratio >= 1 else end, abs=0.11)
        if abs(math.log(ratio)) > 0.3:
            scales.append((end - start) / abs(math.log(ratio)))
    assert max(scales) - min(scales) < 0.5  # one logarithmic scale
    words = unescape(re.search(r'aria-label="(.*?)"', html)[1])
    assert all(f"{label} {RATIOS[key]:.2f}" in words for label, key in wanted.items())


def test_points_are_the_means_of_the_gates():
    html = pictures.gates(ROOT)
    tables = [
        table
        for study in ("gates", "gates-llama")
        for table in recorded.all_tables(study)
        if "prefix" in table.lines
    ]
    assert html.count('<div class="line">') == len(tables)
    for table in tables:
        key = f"{table.cell.backbone}, {table.cell.task}"
        line = re.search(rf'"label">{key}</span>(.*?)</div>', html)[1]
        found = dict(re.findall(r'"dot (\w+)" style="left:([\d.]+)%', line))
        behind = float(found["prompt"]) - float(found["random"])  # as the caption says
        assert abs(behind) < 2 if "docs/library" in key else behind > 20
        assert found == {
            short: f"{100 * table.lines[name].mean:.1f}"
            for name, short in pictures.SHOWN.items() if name in table.lines
        }  # fmt: skip


def test_every_mark_of_a_page_is_a_picture_and_every_picture_is_on_a_page():
    marks = []
    for page in pictures.PAGES:
        text = (ROOT / f"{page}.md").read_text(encoding="utf8")
        found = pictures.MARK.findall(text)
        assert found
        marks += found
    assert sorted(marks) == sorted(pictures.DRAWN)


def test_a_missing_record_draws_nothing(tmp_path):
    assert [pictures.DRAWN[name](tmp_path) for name in ("steps", "spared", "gates")] == ["", "", ""]
