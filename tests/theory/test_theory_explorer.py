"""The interactive figure: its numbers against plain Python, what it claims about three heads, and how it behaves.

The second half opens the HTML in a headless browser. It is skipped where there is none; with
DPLEARN_REQUIRE_BROWSER=1 that is a failure instead.
"""

import math
import re

import figures
import pytest
import torch
from figures import Elements, stored
from hypothesis import given, settings
from hypothesis import strategies as st
from project import ROOT

from dplearn.theory import explorer
from dplearn.theory.explorer import heads

LENGTH, ROWS = len(explorer.PROMPT), len(explorer.INPUTS)
LAST = ROWS - 1  # the readout
MINUS = "\N{MINUS SIGN}"


# ---- the numbers ------------------------------------------------------------------------------------------


def naive(head, prompt, inputs):
    """Gates and outputs of a head by loops over rows and keys: no torch, no code of the package."""
    gates, outputs = [], []
    for k in range(len(prompt) + 1):
        body, readout = list(inputs[:-1]), inputs[-1]
        sequence = [*prompt[:k], *body, *prompt[k:], readout]
        parts = ["before"] * k + ["input"] * len(body) + ["after"] * (len(prompt) - k) + ["input"]
        places = [*range(k, k + len(body)), len(sequence) - 1]
        gates.append([]), outputs.append([])
        for i in places:
            query = [sum(sequence[i][a] * explorer.QUERY[a][b] for a in range(2)) for b in range(2)]
            weights = []
            for j, row in enumerate(sequence):
                score = query[0] * row[0] + query[1] * row[1]
                if head == "relative bias":
                    score -= 0.5 * (i - j) if j < i else 0.2 * (j - i)
                weights.append(0.0 if head == "causal" and j > i else math.exp(score))
            total = math.fsum(weights)
            share = {
                part: math.fsum(w for w, p in zip(weights, parts) if p == part) / total for part in set(parts)
            }
            gates[-1].append([share.get(part, 0.0) for part in ("before", "input", "after")])
            outputs[-1].append(math.fsum(w * (x - y) for w, (x, y) in zip(weights, sequence)) / total)
    return gates, outputs


def exact(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def page():
    return explorer.markup()


@pytest.mark.parametrize("head", explorer.HEADS)
def test_embedded_numbers_equal_plain_python(page, head):
    [found] = [entry for entry in stored(page)["heads"] if entry["name"] == head]
    gates, outputs = naive(head, explorer.PROMPT, explorer.INPUTS)
    assert found["gates"] == [[[round(100 * share) for share in row] for row in rows] for rows in gates]
    assert found["outputs"] == [[round(value, 2) for value in rows] for rows in outputs]
    for k, row in enumerate(found["changes"]):
        for t, change in enumerate(row):
            true = outputs[k][t] - outputs[-1][t]
            assert abs(float(change.replace(MINUS, "-")) - true) <= 0.01  # both outputs are rounded first
            assert (change == "0") == (abs(true) < 1e-12)


@pytest.mark.parametrize("head", explorer.HEADS)
def test_no_number_is_near_a_rounding_edge(head):
    """Another CPU may differ by 1e-15; what is printed must not change for a difference a million times larger."""
    gates, outputs = map(exact, naive(head, explorer.PROMPT, explorer.INPUTS))
    for value in (100 * gates, 100 * outputs):
        assert (value.abs().frac() - 0.5).abs().min() > 1e-3
    # A share that is shown as 0 is 0, so that "exactly 0" can be read off.
    assert gates[gates > 0].min() > 0.01


vector = st.tuples(*[st.floats(-2, 2, allow_subnormal=False)] * 2)


@settings(max_examples=25, deadline=None)
@given(st.lists(vector, min_size=1, max_size=5), st.lists(vector, min_size=1, max_size=4))
def test_readings_equal_plain_python_for_any_vectors(prompt, inputs):
    for head in explorer.HEADS:
        read = explorer.readings(head, prompt, inputs)
        for found, expected in zip(read, map(exact, naive(head, prompt, inputs))):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@settings(max_examples=25, deadline=None)
@given(st.lists(vector, min_size=1, max_size=5), st.lists(vector, min_size=2, max_size=4))
def test_what_the_figure_says_holds_for_any_vectors(prompt, inputs):
    blind, causal = (
        explorer.readings("order-blind", prompt, inputs),
        explorer.readings("causal", prompt, inputs),
    )
    # Order-blind: outputs stay, and so does the sum of the prompt's two parts.
    assert blind.changes.abs().max() < 1e-12
    both = blind.gates[..., 0] + blind.gates[..., 2]
    assert (both - both[-1]).abs().max() < 1e-12
    # Causal: no input row sees the prompt after it; the readout, which is last, is as in the order-blind head.
    assert causal.gates[:, :-1, 2].count_nonzero() == 0
    torch.testing.assert_close(causal.gates[:, -1], blind.gates[:, -1], rtol=0, atol=1e-12)
    torch.testing.assert_close(causal.outputs[:, -1], blind.outputs[:, -1], rtol=0, atol=1e-12)


def test_what_the_figure_says_about_its_own_vectors():
    changes = {head: explorer.readings(head).changes[:-1].abs() for head in explorer.HEADS}
    assert changes["order-blind"].max() < 1e-12
    assert changes["relative bias"].min() > 0.01  # every output, at every split but k = l
    assert changes["causal"][:, :LAST].min() > 0.01 and changes["causal"][:, LAST].max() < 1e-12
    # The readout does see the prompt after the input, so the zeros above are not the mark of an empty segment.
    assert explorer.readings("causal").gates[:-1, LAST, 2].min() > 0.01


def test_a_bias_makes_the_blind_head_see(monkeypatch):
    """Negative control: with the smallest relative bias the order-blind head's outputs change."""
    monkeypatch.setattr(heads, "LEFT", 1e-3)
    monkeypatch.setattr(heads, "RIGHT", 0.0)
    changes = explorer.readings("relative bias").changes
    assert 1e-6 < changes[:-1].abs().max() < 1e-2


def test_tiny_changes_are_not_called_none(monkeypatch):
    monkeypatch.setattr(heads, "LEFT", 1e-6)
    monkeypatch.setattr(heads, "RIGHT", 0.0)
    data = explorer.numbers()["heads"]
    assert {change for row in data[0]["changes"] for change in row} == {"0"}
    assert {change for row in data[1]["changes"][:-1] for change in row} == {"+0.00"}


# ---- the page as text -------------------------------------------------------------------------------------


def test_page_is_whole_and_asks_nobody(page):
    elements = Elements(page)
    assert elements.open == []
    # Names of XML namespaces; nothing is fetched from them.
    addresses = set(re.findall(r"(?:\w+:)?//\w[^\s\"'`)]*", page))
    assert addresses == {"http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg"}
    assert not {"src", "href", "srcset", "data"} & {
        key for _, attributes in elements.found for key in attributes
    }
    assert not re.search(r"\bimport\b|\bfetch\b|url\(|XMLHttpRequest", page)


def test_page_is_the_same_every_time(page):
    assert explorer.markup() == page
    assert explorer.split_explorer().data == page
    assert str(explorer.split_explorer()) == "<IPython.core.display.HTML object>"
    assert len(page) < 40_000


def test_two_names_have_two_ids(page):
    other = explorer.markup("other")
    ids = [attributes["id"] for _, attributes in Elements(page + other).found if "id" in attributes]
    assert ids == ["split-explorer", "other"]
    assert 'getElementById("other")' in other and "NAME" not in other + page


def test_without_scripts_every_number_is_in_the_table(page):
    elements = Elements(page)
    tags = [tag for tag, _ in elements.found]
    assert ("details", {"open": None}) in elements.found and tags.count("table") == 1
    words = " ".join(elements.words)
    assert explorer.STILL in words
    for head in explorer.HEADS.values():
        assert head.title in words and head.notice in words
    rows = re.findall(r"<tr><th>([\w -]+)</th><td>(\d)</td><td>([^<]*)</td>(.*?)</tr>", page)
    table = {(name, int(k)): (order, cells) for name, k, order, cells in rows}
    assert len(table) == len(rows) == len(explorer.HEADS) * (LENGTH + 1)
    for head in stored(page)["heads"]:
        for k in range(LENGTH + 1):
            order, cells = table[head["name"], k]
            expected = [f"P{i + 1}" for i in range(LENGTH)]
            expected[k:k] = ["X1", "X2", "X3"]
            assert order.split() == [*expected, "R"]
            for t, cell in enumerate(re.findall(r"<td>(.*?)</td>", cells)):
                output = f"{head['outputs'][k][t]:.2f}".replace("-", MINUS)
                percent = " · ".join(map(str, head["gates"][k][t]))
                assert cell == f"{percent}<br>{output} ({head['changes'][k][t]})"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"name": "two words"}, "name='two words' is not an id"),
        ({"name": "7"}, "name='7' is not an id"),
        ({"start": 5}, "start=5 is not a split, expected an int from 0 to 4"),
        ({"start": True}, "start=True is not a split"),
        ({"prompt": [[1.0, 2.0, 3.0]]}, r"prompt has shape \(1, 3\), expected \(rows, 2\)"),
        ({"inputs": [1.0, 2.0]}, r"inputs has shape \(2,\), expected \(rows, 2\)"),
        ({"prompt": torch.empty(0, 2)}, r"prompt has shape \(0, 2\), .* rows >= 1"),
    ],
)
def test_bad_arguments_are_named(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        explorer.split_explorer(**arguments)


def test_unknown_head_is_named():
    with pytest.raises(ValueError, match="head='rotary' is unknown, expected one of 'order-blind', "):
        explorer.readings("rotary")


def test_stored_picture_is_the_one_that_the_code_draws():
    text = (ROOT / "book" / "_static" / "split-explorer.svg").read_text(encoding="utf8")
    assert text == explorer.picture(), "write explorer.picture() to book/_static/split-explorer.svg"
    assert 'viewBox="0 0 760 506"' in text and "M16 222H744" in text  # all of it is in the frame
    data = explorer.numbers()
    for head in data["heads"]:
        for k in (0, 2, 4):
            for output, change in zip(head["outputs"][k], head["changes"][k]):
                assert f">{output:.2f} ({change})<".replace("-", MINUS) in text


# ---- in a browser -----------------------------------------------------------------------------------------


class Opened(figures.Opened):
    """The split explorer in a browser."""

    def find(self, name="split-explorer"):
        return super().find(name)

    def values(self, name="split-explorer"):
        """The outputs as shown, one list per head."""
        texts = self.find(name).locator(".dpx-out span").all_inner_texts()
        return [texts[h * ROWS : (h + 1) * ROWS] for h in range(len(explorer.HEADS))]


@pytest.fixture
def opened(browser, page):
    opened = Opened(browser, page)
    yield opened
    opened.close()


def shown(head, k):
    return [f"{x:.2f} ({c})".replace("-", MINUS) for x, c in zip(head["outputs"][k], head["changes"][k])]


def test_keys_move_the_split_and_the_numbers(opened, page):
    heads = stored(page)["heads"]
    slider = opened.find().get_by_role("slider", name="Split k")
    slider.focus()
    keys = {"Home": 0, "ArrowRight": 1, "ArrowUp": 2, "End": 4, "ArrowLeft": 3}
    for key, k in keys.items():
        opened.page.keyboard.press(key)
        assert slider.input_value() == str(k)
        assert opened.values() == [shown(head, k) for head in heads]
        kind = {0: "postfix", 4: "prefix"}.get(k, "surround")
        assert slider.get_attribute("aria-valuetext") == f"k = {k}, {kind}"
        assert f"Split k = {k}, {kind}" in opened.find().locator("label").inner_text()


def test_order_blind_numbers_stay_and_the_others_move(opened):
    slider = opened.find().get_by_role("slider")
    slider.press("Home")
    blind, relative, causal = opened.values()
    texts = opened.find().locator(".dpx-count").all_inner_texts()
    assert texts == [f"0 of {ROWS} outputs changed", "4 of 4 outputs changed", "3 of 4 outputs changed"]
    slider.press("End")
    outputs = [[text.split()[0] for text in texts] for texts in opened.values()]
    then = [[text.split()[0] for text in texts] for texts in (blind, relative, causal)]
    assert outputs[0] == then[0]
    assert all(a != b for a, b in zip(outputs[1], then[1]))
    assert [a == b for a, b in zip(outputs[2], then[2])] == [False] * LAST + [True]
    assert set(opened.find().locator(".dpx-count").all_inner_texts()) == {"k = 4 is the reference"}


def test_boxes_and_bars_show_the_split(opened, page):
    heads = stored(page)["heads"]
    slider = opened.find().get_by_role("slider")
    for k in range(LENGTH + 1):
        slider.press("Home") if k == 0 else slider.press("ArrowRight")
        # The boxes by where they end up, read from their transforms and not from the middle of a transition.
        boxes = (
            opened.find()
            .locator(".dpx-control g")
            .evaluate_all(
                "gs => gs.map(g => [parseFloat(g.style.transform.slice(11)), g.textContent,"
                " g.querySelector('rect').getAttribute('class')])"
            )
        )
        boxes.sort()
        order = [f"P{i + 1}" for i in range(LENGTH)]
        order[k:k] = ["X1", "X2", "X3"]
        assert [text for _, text, _ in boxes] == [*order, "R"]
        assert [place for place, _, _ in boxes] == [46 * i for i in range(LENGTH + ROWS)]
        assert [kind for *_, kind in boxes] == (
            ["dpx-before"] * k + ["dpx-input"] * 3 + ["dpx-after"] * (LENGTH - k) + ["dpx-input"]
        )
        titles = opened.find().locator(".dpx-row > svg > title").all_text_contents()
        expected = [
            f"Row {name}, attention: {a} % prompt before, {b} % input, {c} % prompt after"
            for head in heads
            for name, (a, b, c) in zip(["X1", "X2", "X3", "R"], head["gates"][k])
        ]
        assert titles == expected
        widths = (
            opened.find()
            .locator(".dpx-row > svg")
            .evaluate_all(
                "bars => bars.map(bar => [...bar.querySelectorAll('rect')].map(r => parseFloat(r.getAttribute('width'))))"
            )
        )
        flat = [share for head in heads for share in head["gates"][k]]
        for width, share in zip(widths, flat):
            assert width == pytest.approx([100 * part / sum(share) for part in share])


def test_state_is_announced_in_words(opened, page):
    live = opened.find().locator("[aria-live=polite]")
    opened.find().get_by_role("slider").press("Home")
    relative = stored(page)["heads"][1]["changes"][0][LAST]
    text = live.inner_text()
    assert text.startswith("Output of the readout R at k = 0: order-blind") and text.count("(unchanged)") == 2
    assert f"(changed by {relative})" in text
    for role, count in (("img", 1 + ROWS * len(explorer.HEADS)), ("group", len(explorer.HEADS))):
        assert opened.find().get_by_role(role).count() >= count
    unnamed = (
        opened.find()
        .locator("svg[role=img]")
        .evaluate_all("all => all.filter(s => !s.querySelector(':scope > title').textContent).length")
    )
    assert unnamed == 0


def test_table_is_closed_by_the_script_and_can_be_opened(opened):
    table = opened.find().locator("table")
    still = opened.find().locator(".dpx-still")
    assert not table.is_visible() and not any(part.is_visible() for part in still.all())
    opened.find().locator("summary").click()
    assert table.is_visible()


def test_two_explorers_in_one_page_do_not_meet(browser, page):
    opened = Opened(browser, page + explorer.markup("other", start=0))
    before = opened.values()
    opened.find("other").get_by_role("slider").press("End")
    assert opened.values() == before
    assert opened.values("other") == [shown(head, LENGTH) for head in stored(page)["heads"]]
    opened.close()


def test_works_as_jupyterlab_inserts_it(browser, page):
    """The same output shown twice has the same id twice; each view must move by itself."""
    opened = Opened(browser, "")
    for _ in range(2):
        opened.in_jupyterlab(page)
    sliders = opened.page.get_by_role("slider")
    assert sliders.count() == 2
    # Without this mark JupyterLab takes the arrow keys for itself.
    assert all(slider.get_attribute("data-lm-suppress-shortcuts") for slider in sliders.all())
    sliders.nth(1).press("Home")
    assert [sliders.nth(i).input_value() for i in range(2)] == ["2", "0"]
    assert (
        opened.page.locator("[aria-live]").nth(0).inner_text()
        != opened.page.locator("[aria-live]").nth(1).inner_text()
    )
    opened.close()


def test_without_scripts_the_table_stands_open(browser, page):
    opened = Opened(browser, page, java_script_enabled=False)
    assert opened.find().locator("table").is_visible()
    assert opened.find().get_by_text(explorer.STILL).is_visible()
    assert opened.find().get_by_role("img", name="Three attention heads at three splits").is_visible()
    assert opened.page.get_by_role("slider").count() == 0
    opened.close()


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_motion_is_left_out_on_request(browser, page, motion):
    opened = Opened(browser, page, reduced_motion=motion)
    found = opened.find().locator("rect").first.evaluate("r => getComputedStyle(r).transitionDuration")
    assert ({float(part) for part in found.replace("s", "").split(",")} == {0.0}) == (motion == "reduce")
    opened.close()


def test_fits_a_phone_and_stacks_there(browser, page):
    for width, columns in ((390, 1), (1000, 3)):
        opened = Opened(browser, page, width=width)
        opened.find().locator("summary").click()  # the table scrolls in its own box
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        lefts = {head.bounding_box()["x"] for head in opened.find().locator(".dpx-head").all()}
        assert len(lefts) == columns
        opened.close()


def test_a_broken_script_is_seen(browser, page):
    """Negative control of the browser tests: an error and a request are noticed."""
    opened = Opened(browser, page.replace("const heads = root", "const heads = rot"))
    with pytest.raises(AssertionError):
        opened.close()
    opened = Opened(browser, page + '<img alt="none" src="http://example.org/a.png">')
    opened.page.wait_for_timeout(200)
    with pytest.raises(AssertionError):
        opened.close()
