"""The figures that a reader can move: what they compute, what they store, and that moving a control shows the right
numbers in a browser.

Browser tests are skipped where there is none; with DPLEARN_REQUIRE_BROWSER=1 that is a failure instead.
"""

import functools
import json
import math
import re

import pytest
import torch
from figures import Elements, Opened, stored
from project import ROOT

from dplearn.choice import gumbel_one_hot
from dplearn.experiments import records
from dplearn.interactive import heads, noise, page, picture, places, sources
from dplearn.theory.gumbel import softmax_jacobian

TEXTS, VECTORS, STEPS = ("one two", "three", "four five six"), ("p", "q"), (0, 10)
RIGHT = (0, 2, 1)
WORDS = ("red", "ball", "</s>")
LAYERS, HEADS = 2, 3


def chances():
    """π of two made-up trainings: (steps, texts, l + 1) each."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(STEPS), len(TEXTS), len(VECTORS) + 1)
    first = torch.full(shape, 1 / 3)
    return {"even": first, "trained": (3 * torch.randn(shape, generator=generator)).softmax(-1)}


def gates():
    """Made-up shares of attention (l + 1, layers, heads, T, 3): none before at k = 0, none behind at k = l."""
    generator = torch.Generator().manual_seed(1)
    shape = (len(VECTORS) + 1, LAYERS, HEADS, len(WORDS), 3)
    made = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1
    made[0, ..., 0], made[-1, ..., 2] = 0, 0
    return made / made.sum(-1, keepdim=True)


FIGURES = {
    "gumbel-explorer": noise.markup,
    "pool-explorer": lambda: sources.markup("pool"),
    "decisions-explorer": lambda: sources.markup("decisions"),
    "place-explorer": lambda: places.markup(TEXTS, RIGHT, chances(), STEPS, VECTORS),
    "head-explorer": lambda: heads.markup(gates(), WORDS, VECTORS),
}
MARKUPS = {name: make() for name, make in FIGURES.items()}


# ---- the frame ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_whole_asks_nobody_and_is_the_same_every_time(name):
    html = MARKUPS[name]
    elements = Elements(html)
    assert elements.open == [] and html == FIGURES[name]()
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert ids == [name] and "NAME" not in html and "OWN" not in html
    # Names of XML namespaces; nothing is fetched from them.
    assert set(re.findall(r"(?:\w+:)?//\w[^\s\"'`)]*", html)) <= {
        "http://www.w3.org/1999/xhtml",
        "http://www.w3.org/2000/svg",
    }
    assert not {"src", "href", "srcset", "data"} & {key for _, given in elements.found for key in given}
    assert not re.search(r"\bfetch\b|url\(|XMLHttpRequest", html)
    assert page.STILL in " ".join(elements.words)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("dial", "x", ("a",)), "kind='dial' is no control, expected one of 'slider', 'choice', 'buttons'"),
        (("slider", "x", ("a", "b"), 2), "start=2 is no value, expected an int from 0 to 1"),
        (("choice", "x", ("a", "b"), True), "start=True is no value"),
        (("buttons", "x", ("a", "b"), 1), r"steps=\(\) has no entry for each of the 2 buttons"),
    ],
)
def test_an_unfit_control_is_named(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        page.Control(*arguments)


@pytest.mark.parametrize("name", ["two words", "7", "", None, "ä"])
def test_an_unfit_name_is_named(name):
    with pytest.raises(ValueError, match="is not an id, expected a letter"):
        page.checked_name(name)


def test_words_in_a_figure_are_words_and_no_markup():
    """A text with a tag in it is shown as it is, in the picture and in the data."""
    html = places.markup(["</script><b>x", "y"], [0, 0], {"t": torch.full((1, 2, 2), 0.5)}, [0], ["<p>"])
    elements = Elements(html)
    assert elements.open == [] and "b" not in dict(elements.found) and html.count("</script>") == 2
    assert stored(html)["controls"][0]["texts"][0] == "1: </script><b>x"


def test_a_part_may_differ_in_its_slots_only():
    two = page.Control("choice", "x", ("a", "b"))
    fit = picture.Part(lambda slots, i: slots.text("ab"[i]), of=(0,))
    with pytest.raises(ValueError, match="part 1 changes beside its slots"):
        picture.figure("f", [two], [fit, picture.Part(lambda slots, i: "ab"[i], of=(0,))], "")


def test_a_slot_is_stored_for_the_controls_that_it_depends_on():
    controls = [page.Control("choice", label, ("a", "b", "c")) for label in "xy"]

    def draw(slots, i, j):
        return slots.text("constant") + slots.text(str(j)) + slots.bar(("before", 10 * i + j))

    [part] = stored(picture.figure("f", controls, [picture.Part(draw, of=(1, 0))], ""))["parts"]
    constant, second, both = part["slots"]
    assert constant == [[], "constant"]
    assert second == [[0], ["0", "1", "2"]]
    assert both == [[1, 0], [[[10 * i + j] for j in range(3)] for i in range(3)]]


def test_pieces_of_a_bar_follow_one_another():
    html = picture.Slots().bar(("before", 12.34), ("input", 50), ("after", 37.66))
    places_of = re.findall(r'class="dpx-(\w+)" x="([\d.]+)%" width="([\d.]+)%"', html)
    assert places_of == [("before", "0", "12.3"), ("input", "12.3", "50"), ("after", "62.3", "37.7")]


# ---- Gumbel-Softmax -------------------------------------------------------------------------------------------------


def test_the_noise_is_gumbels():
    made = torch.tensor([noise.gumbel(draw, 4) for draw in range(5000)], dtype=torch.float64).flatten()
    assert abs(made.mean() - 0.5772) < 4 * math.pi / math.sqrt(6 * 20_000)
    assert abs(made.var() - math.pi**2 / 6) < 0.06
    # The distribution function exp(-exp(-g)) of the noise is even on (0, 1), and neighbours have nothing in common.
    even = (-(-made).exp()).exp()
    ranks = even.sort().values - (torch.arange(20_000) + 0.5) / 20_000
    assert ranks.abs().max() < 1.63 / math.sqrt(20_000)  # Kolmogorov and Smirnov, 1 %
    assert abs(torch.corrcoef(torch.stack([even[:-1], even[1:]]))[0, 1]) < 4 / math.sqrt(20_000)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_a_draw_is_the_package_sample_with_that_noise(monkeypatch, temperature, scale):
    """`gumbel_one_hot` draws -ln E with E exponential; give it the E of the figure's noise."""
    scores, v = torch.tensor(noise.SCORES).double(), torch.tensor([1.0, -2.0, 0.5, 3.0]).double()
    for draw in (1, 2, 17):
        exponential = (-scale * torch.tensor([noise.gumbel(draw, 4)]).double()).exp()
        monkeypatch.setattr(torch.Tensor, "exponential_", functools.partialmethod(_filled, exponential))
        rows = scores[None].clone().requires_grad_()
        weights = gumbel_one_hot(rows, temperature, torch.Generator())
        soft, chosen = noise.sample(noise.SCORES, temperature, scale, draw)
        assert weights.argmax() == chosen
        # What flows back is the Jacobian of the soft sample.
        (slope,) = torch.autograd.grad(weights, rows, v[None])
        wanted = softmax_jacobian(torch.tensor(soft).double().log()) @ v / temperature
        torch.testing.assert_close(slope[0], wanted, rtol=1e-6, atol=1e-9)


def _filled(tensor, values, **_):
    return tensor.copy_(values)


def shares(scale, draws=2000):
    won = [noise.sample(noise.SCORES, 1.0, scale, draw).chosen for draw in range(1, draws + 1)]
    return torch.tensor([won.count(k) / draws for k in range(4)]).double()


def test_what_the_chapter_says_of_the_controls():
    scores = torch.tensor(noise.SCORES).double()
    for scale, wanted in ((1.0, scores.softmax(0)), (2.0, (scores / 2).softmax(0))):
        error = (wanted * (1 - wanted) / 2000).sqrt()
        assert ((shares(scale) - wanted).abs() < 4 * error).all()
    assert shares(0.0, 20)[2] == 1  # the largest score wins each draw
    for draw in range(1, 50):
        assert len({noise.sample(noise.SCORES, tau, 1.0, draw).chosen for tau in noise.TEMPERATURES}) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"scores": [1.0]}, "expected two to six finite numbers"),
        ({"scores": [1.0, math.inf]}, "expected two to six finite numbers"),
        ({"start": 0.3}, "start=0.3 is no temperature of the slider"),
    ],
)
def test_unfit_scores_are_named(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        noise.gumbel_explorer(**arguments)


# ---- decisions of trained models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", sources.FIGURES)
def test_the_record_is_of_the_run_that_it_names(which):
    """Trained again on another day it answers as it did; decisions are probabilities, and what is taken is the largest."""
    row = sources.recorded(which)
    study = records.load(row["study"])["rows"]
    wanted = {name: row[name] for name in ("task", "method", "seed", "backbone")} | {"purpose": "report"}
    [theirs] = [each for each in study if wanted.items() <= each.items()]
    assert row["accuracy"]["recorded"] == records.headline(theirs)
    assert abs(row["accuracy"]["again"] - row["accuracy"]["recorded"]) <= 0.01
    assert row["length"] == theirs["config"]["length"]
    for name, made in row["decisions"].items():
        rows = torch.tensor(made["probabilities"])
        assert rows.shape == (len(row["inputs"]), theirs["evidence"]["decisions"][name]["options"])
        assert (rows.sum(1) - 1).abs().max() < 0.003
        assert rows.argmax(1).tolist() == made["chosen"]
    for answers in row["answers"].values():
        for (word, most, right), given in zip(answers, row["inputs"], strict=True):
            assert 0 <= right <= most <= 1 and (word == given["answer"]) == (right == most)


def test_what_chapter_09_says_of_the_pool():
    row = sources.recorded("pool")
    colours = {
        "red",
        "blue",
        "green",
        "black",
        "white",
        "yellow",
        "brown",
        "purple",
        "pink",
        "grey",
        "golden",
    }

    def asked(source):
        return {answer in colours for answer, *_ in row["answers"][source]}

    assert asked("input 3") == asked("prompt 2 alone") == {True}
    assert asked("input 1") == asked("prompt 1 alone") == {False}
    assert row["answers"]["input 3"][0][0] == "golden"
    assert all(asked(f"prompt {n} alone") == {True, False} for n in (3, 4))
    assert max(max(weights) for weights in row["decisions"]["vector"]["probabilities"]) < 0.65
    hits = [sources.right_words(row, source) for source in (sources.OWN, "input 3", "input 1")]
    assert [int(re.search(r", (\d+) of the 12", words)[1]) for words in hits] == [12, 7, 5]


def of_chapter(notebook, call):
    """The HTML of a figure as it stands in a chapter."""
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf8"))["cells"]
    [cell] = [each for each in cells if f"{call}(" in "".join(each["source"]) and each["cell_type"] == "code"]
    return "".join(cell["outputs"][0]["data"]["text/html"])


def test_what_chapter_03_says_of_heads():
    data = stored(of_chapter("03_attention_with_prompts", "head_explorer"))

    def at(slot, *place):  # (split, layer, row)
        axes, values = slot
        for axis in axes:
            values = values[place[axis]]
        return values

    heads = [
        slot for slot in data["parts"][1]["slots"] if re.fullmatch(r"\d+ · \d+ · \d+", str(at(slot, 0, 0, 0)))
    ]

    def shares(head, *place):
        return [int(part) for part in at(heads[head - 1], *place).split(" · ")]

    layers = range(4)
    lost = {head: [shares(head, 0, n, 0)[2] - shares(head, 6, n, 0)[0] for n in layers] for head in (1, 2, 4)}
    assert [n + 1 for n in layers if lost[2][n] > 30] == [1, 3] and max(lost[4]) <= 0
    assert sum(shares(1, 6, n, 0)[0] <= 1 for n in layers) == 3
    end = [shares(1, 5, n, 7)[2] for n in layers]  # the vector before the end token
    assert (min(end), max(end)) == (83, 100)
    assert all(shares(1, 6, n, 7)[0] < end[n] / 2 for n in layers)


def test_what_chapter_07_says_of_trainings():
    html = of_chapter("07_position_per_instance", "place_explorer")
    chance, right = {}, {}
    for line in re.findall(r"<tr><th>([^<]*)</th>(.*?)</tr>", html):
        cells = re.findall(r"<td>(.*?)</td>", line[1])
        if len(cells) == 13:
            right.setdefault(line[0], []).append(int(cells[1].removeprefix("k = ")))
            chance.setdefault(line[0], []).append([float(cell.split(" · ")[0]) for cell in cells[2:]])
    good, collapsed, back = chance  # chances of k = 0 at the steps 0, 10, ... 100
    assert all(row[1:] == [1.0] * 10 for row in chance[collapsed])
    assert 1.0 > max(abs(chance[name][0][1] - 0.5) + 0.5 for name in (good, back))  # less certain of text 1
    parted = [row[1] for row in chance[good]]
    assert max(parted) > 0.9 and min(parted) < 0.4
    chosen = [0 if row[2] > 0.5 else 1 for row in chance[back]]
    assert sum(a != b for a, b in zip(chosen, right[back])) > 6
    assert min(row[1] for row in chance[back]) > 0.9  # at step 10 all texts go together
    ends = [0 if row[-1] > 0.5 else 1 for row in chance[back]]
    assert sum(a == b for a, b in zip(ends, right[back])) > 6


def test_what_chapter_12_says_of_the_decisions():
    row = sources.recorded("decisions")
    answers = [{row["answers"][source][n][0] for source in row["answers"]} for n in range(len(row["inputs"]))]
    assert [n + 1 for n, words in enumerate(answers) if len(words) > 1] == [6]
    assert all(0.3 < said[5][2] < 0.7 for said in row["answers"].values())
    assert set(row["decisions"]["position"]["chosen"]) == {0, 1, 2, 3, 4}
    assert set(row["decisions"]["size"]["chosen"]) == {1, 2, 4, 5}


def test_an_unknown_figure_is_named():
    with pytest.raises(ValueError, match="which='pools' is no figure, expected one of 'pool', 'decisions'"):
        sources.source_explorer("pools")


# ---- unfit numbers --------------------------------------------------------------------------------------------------


def test_unfit_chances_are_named():
    good = chances()["trained"]
    with pytest.raises(ValueError, match=r"trainings\['t'\] has shape \(2, 3, 2\), expected \(2, 3, 3\)"):
        places.place_explorer(TEXTS, RIGHT, {"t": good[..., :2]}, STEPS, VECTORS)
    with pytest.raises(ValueError, match=r"trainings\['t'\] has rows that are no chances"):
        places.place_explorer(TEXTS, RIGHT, {"t": 2 * good}, STEPS, VECTORS)
    with pytest.raises(
        ValueError, match=r"right=\(0, 3, 1\) has no split for each of 3 texts, expected 0 to 2"
    ):
        places.place_explorer(TEXTS, (0, 3, 1), {"t": good}, STEPS, VECTORS)


def test_unfit_gates_are_named():
    with pytest.raises(
        ValueError, match=r"gates has shape \(3, 2, 3, 3, 2\), expected \(3, layers, heads, 3, 3\)"
    ):
        heads.head_explorer(gates()[..., :2], WORDS, VECTORS)
    with pytest.raises(ValueError, match="gates has rows that do not sum to 1"):
        heads.head_explorer(2 * gates(), WORDS, VECTORS)


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(browser, request):
    opened = Opened(browser, MARKUPS[request.param])
    opened.figure = opened.find(request.param)
    yield opened
    opened.close()


def figure(name):
    return pytest.mark.parametrize("opened", [name], indirect=True)


def texts_of(opened, line=".dpx-line"):
    """The words of each line with a bar, without the marks."""
    lines = opened.figure.locator(f".dpx-part {line}:has(svg)")
    return [text.split() for text in lines.all_inner_texts()]


def widths_of(opened):
    return opened.figure.locator(".dpx-part svg.dpx-bar").evaluate_all(
        "bars => bars.map(bar => [...bar.children].map(r => parseFloat(r.getAttribute('width'))))"
    )


def move(opened, label, value):
    """Set a slider by its keys."""
    slider = opened.figure.get_by_role("slider", name=label)
    slider.press("Home")
    for _ in range(value):
        slider.press("ArrowRight")


def noise_shown(opened, tau, scale, draw):
    """Whether the figure shows torch's numbers for this temperature, scale of the noise and draw."""
    alpha = torch.tensor(noise.SCORES, dtype=torch.float64)
    g = torch.tensor([noise.gumbel(n, 4) for n in range(1, draw + 1)], dtype=torch.float64)
    noisy = alpha + noise.SCALES[scale] * g
    soft = (noisy[-1] / noise.TEMPERATURES[tau]).softmax(0)
    chosen, won = int(noisy[-1].argmax()), torch.bincount(noisy.argmax(1), minlength=4)
    pi, lines = alpha.softmax(0), texts_of(opened)
    for k, line in enumerate(lines):
        name = ["option", str(k), "✓"] if k == chosen else ["option", str(k)]
        assert line == [*name, f"{soft[k]:.2f}", f"{pi[k]:.2f}", f"{won[k] / draw:.2f}"]
    widths = torch.tensor(widths_of(opened))[:, 0].view(4, 2).double()
    torch.testing.assert_close(widths, 100 * torch.stack([soft, won / draw], 1), rtol=1e-6, atol=1e-6)
    marks = opened.figure.locator("[data-mark]").evaluate_all("all => all.map(one => one.dataset.mark)")
    assert marks == ["1" if k == chosen else "0" for k in range(4)]
    said = opened.figure.locator(".dpx-state[aria-live=polite]").inner_text()
    assert said.startswith(f"Draw {draw}: option {chosen} is chosen, its soft entry is {soft.max():.2f}.")


@figure("gumbel-explorer")
def test_temperature_noise_and_draws_show_the_numbers_of_torch(opened):
    tau, scale = noise.TEMPERATURES.index(1.0), noise.SCALES.index(1.0)
    noise_shown(opened, tau, scale, 1)
    for tau in (0, 7, 40):
        move(opened, "Temperature", tau)
        noise_shown(opened, tau, scale, 1)
    for draw in (2, 3, 4):
        opened.figure.get_by_role("button", name="Draw again").click()
        noise_shown(opened, tau, scale, draw)
    opened.figure.get_by_role("button", name="Draw 100 times").press("Enter")
    for scale in (0, 1, 8):
        move(opened, "Noise", scale)
        noise_shown(opened, tau, scale, 104)
    opened.figure.get_by_role("button", name="First draw").press("Space")
    noise_shown(opened, tau, scale, 1)
    slider = opened.figure.get_by_role("slider", name="Temperature")
    assert slider.get_attribute("aria-valuetext") == "10"


def pick(opened, label, number):
    opened.figure.get_by_role("combobox", name=label, exact=True).select_option(index=number)


@pytest.mark.parametrize(
    ("opened", "which"), [("pool-explorer", "pool"), ("decisions-explorer", "decisions")], indirect=["opened"]
)
def test_inputs_and_sources_show_the_record(opened, which):
    row = sources.recorded(which)
    names, inputs = list(row["answers"]), row["inputs"]
    for number, source in ((0, 0), (0, 3), (2, 3), (2, 0), (len(inputs) - 1, len(names))):
        pick(opened, "Input", number)
        pick(opened, "Decisions from", source)
        key = f"input {number + 1}" if source == 0 else names[source - 1]
        word, _, right = row["answers"][key][number]
        wanted = inputs[number]["answer"]
        assert opened.figure.locator(".dpx-quote").text_content() == inputs[number]["text"]
        given, own, numbers, lines = [], [], [], texts_of(opened)
        for name, made in row["decisions"].items():
            mine, options = made["probabilities"][number], len(made["probabilities"][0])
            if key.startswith("input "):
                used = made["probabilities"][int(key.split()[1]) - 1]
            else:
                alone = re.fullmatch(r"prompt (\d) alone", key)
                used = [float(k + 1 == int(alone[1])) if alone else 1 / options for k in range(options)]
            given, own = given + used, own + mine
            numbers += [f"{share:.2f}" for share in used]
            if name != "vector":
                taken = made["chosen"][int(key.split()[1]) - 1]
                start = len(numbers) - options
                assert [n - start for n in range(start, len(numbers)) if "✓" in lines[n]] == [taken]
        assert [line[-1] for line in lines] == [*numbers, f"{right:.2f}"]
        flat = [width for [width] in widths_of(opened)]
        assert flat[:-1:2] == pytest.approx([100 * share for share in given], abs=0.06)
        assert flat[1:-1:2] == pytest.approx([100 * share for share in own], abs=0.06)
        assert flat[-1] == pytest.approx(100 * right, abs=0.06)
        said = opened.figure.locator(".dpx-state[aria-live=polite]").inner_text()
        judged = "right" if word == wanted else "wrong"
        assert (
            f"the model answers {word}, which is {judged}. The probability of {wanted} is {right:.2f}."
            in said
        )
        hits = sum(row["answers"][key][n][0] == each["answer"] for n, each in enumerate(inputs))
        own_hits = sum(
            row["answers"][f"input {n + 1}"][n][0] == each["answer"] for n, each in enumerate(inputs)
        )
        count = own_hits if source == 0 else hits
        assert (
            f"{count} of the {len(inputs)} inputs"
            in opened.figure.locator(".dpx-right[aria-live=polite]").inner_text()
        )


@figure("pool-explorer")
def test_a_choice_moves_by_keys(opened):
    choice = opened.figure.get_by_role("combobox", name="Input", exact=True)
    choice.focus()
    opened.page.keyboard.press("ArrowDown")
    assert choice.input_value() == "1"
    assert opened.figure.locator(".dpx-quote").inner_text() == sources.recorded("pool")["inputs"][1]["text"]


@figure("place-explorer")
def test_sentence_training_and_step_show_the_place(opened):
    pi = chances()
    for text, training, step in ((0, 0, 0), (0, 1, 1), (1, 1, 1), (2, 1, 0), (2, 0, 1)):
        pick(opened, "Sentence", text)
        pick(opened, "Summaries", training)
        move(opened, "Training step", step)
        row = list(pi.values())[training][step, text]
        k = max(range(3), key=lambda i: (round(row[i].item(), 2), i))  # of equals the last
        words = [*VECTORS[:k], *TEXTS[text].split(), *VECTORS[k:]]
        assert opened.figure.locator(".dpx-quote").inner_text().split() == words
        wanted = []
        for split in range(3):
            tick, place = ["✓"] if split == k else [], ["right", "place"] if split == RIGHT[text] else []
            wanted.append(["k", "=", str(split), *tick, f"{row[split]:.2f}", *place])
        assert texts_of(opened) == wanted
        assert [width for [width] in widths_of(opened)] == pytest.approx((100 * row).tolist(), abs=0.51)
        said = opened.figure.locator(".dpx-state[aria-live=polite]").inner_text()
        assert said.startswith(f"After {STEPS[step]} steps: k = {k} is chosen")
        assert ("the right place" in said) == (k == RIGHT[text])
    pick(opened, "Summaries", 1)
    hits = sum(int(row.argmax()) == right for row, right in zip(pi["trained"][1], RIGHT))
    assert f"{hits} of the 3 sentences" in opened.figure.locator(".dpx-right[aria-live=polite]").inner_text()


@figure("head-explorer")
def test_split_layer_and_row_show_the_gates(opened):
    made = gates()
    for k, layer, row in ((1, 0, 0), (0, 0, 0), (0, 1, 2), (2, 1, 3), (2, 1, 0)):
        move(opened, "Split", k)
        pick(opened, "Layer", layer)
        pick(opened, "Rows that look", row)
        shown = made[k, layer].mean(1) if row == 0 else made[k, layer, :, row - 1]  # (heads, 3)
        percent = [[f"{100 * part:.0f}" for part in parts] for parts in shown.tolist()]
        assert texts_of(opened) == [
            ["head", str(n), a, "·", b, "·", c] for n, (a, b, c) in enumerate(percent, 1)
        ]
        for widths, parts in zip(widths_of(opened), percent, strict=True):
            assert sum(widths) == 100 and widths == pytest.approx([int(part) for part in parts], abs=1)
        order = [*VECTORS[:k], *WORDS[:-1], *VECTORS[k:], WORDS[-1]]
        assert opened.figure.locator(".dpx-quote").inner_text().split() == order
        most = int((1 - shown[:, 1]).argmax())
        words = f"Most on the prompt: head {most + 1}, {100 * (1 - shown[most, 1]):.0f} %."
        assert words in opened.figure.locator(".dpx-state[aria-live=polite]").inner_text()


@pytest.mark.parametrize("opened", FIGURES, indirect=True)
def test_every_control_has_a_name_and_room_for_a_finger(opened):
    controls = opened.figure.locator("input, select, button, summary").all()
    assert len(controls) >= 3
    for each in controls:
        box = each.bounding_box()
        assert box["height"] >= 24 and box["width"] >= 24
    unnamed = opened.figure.locator("input, select").evaluate_all(
        "all => all.filter(one => !one.labels.length).length"
    )
    assert unnamed == 0
    # Without this mark JupyterLab takes the arrow keys for itself.
    for each in opened.figure.locator("input, select, button").all():
        assert each.get_attribute("data-lm-suppress-shortcuts")
    assert (
        opened.figure.locator("svg:not([aria-hidden=true])").count() == 0
    )  # the numbers stand beside the bars
    # The table is folded away, and opens.
    table = opened.figure.locator("table")
    assert not table.is_visible() and not opened.figure.get_by_text(page.STILL).is_visible()
    opened.figure.locator("summary").press("Enter")
    assert table.is_visible()


def drag(opened, slider, ends=(0.5, 0.95)):
    """A finger on a slider, from one place of its width to another."""
    session, box = opened.page.context.new_cdp_session(opened.page), slider.bounding_box()
    at = [{"x": box["x"] + end * box["width"], "y": box["y"] + box["height"] / 2} for end in ends]
    for kind, points in (("Start", at[:1]), ("Move", at[1:]), ("End", [])):
        session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})


@pytest.mark.parametrize("name", FIGURES)
def test_a_finger_finds_every_control_and_moves_it(browser, name):
    """44 pixels, as WCAG 2.5.5 wants; a drag and a tap change what is shown, and the page stays as wide as the phone."""
    as_wide = '<meta name="viewport" content="width=device-width">'
    opened = Opened(browser, as_wide + MARKUPS[name], width=390, has_touch=True, is_mobile=True)
    figure = opened.find(name)
    for each in figure.locator("input, select, button, summary").all():
        box = each.bounding_box()
        assert box["height"] >= 44 and box["width"] >= 44
    for slider in figure.get_by_role("slider").all():
        slider.scroll_into_view_if_needed()
        before = figure.inner_text(), slider.get_attribute("aria-valuetext")
        drag(opened, slider)
        after = figure.inner_text(), slider.get_attribute("aria-valuetext")
        assert before[0] != after[0] and before[1] != after[1]
    for button in figure.get_by_role("button", name="Draw").all():
        before = figure.locator("[aria-live=polite]").inner_text()
        button.tap()
        assert figure.locator("[aria-live=polite]").inner_text() != before
    figure.locator("summary").tap()
    assert figure.locator("table").is_visible()
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    opened.close()


@pytest.mark.parametrize("name", FIGURES)
def test_without_scripts_and_on_paper_picture_and_table_stand(browser, name):
    """What stands there is what the script shows at first."""
    moving, still = Opened(browser, MARKUPS[name]), Opened(browser, MARKUPS[name], java_script_enabled=False)
    parts = [opened.find(name).locator(".dpx-part") for opened in (moving, still)]
    assert parts[0].all_inner_texts() == parts[1].all_inner_texts()
    assert (
        still.find(name).locator("table").is_visible()
        and still.find(name).get_by_text(page.STILL).is_visible()
    )
    assert still.find(name).locator("input, select, button").count() == 0
    assert still.find(name).locator(".dpx-part svg rect").first.is_visible()
    moving.page.emulate_media(media="print")
    moving.page.set_viewport_size({"width": 700, "height": 900})
    moving.find(name).locator("details").evaluate("details => (details.open = true)")
    assert moving.page.evaluate("document.documentElement.scrollWidth") <= 700
    assert not any(each.is_visible() for each in moving.find(name).locator("input, select, button").all())
    assert moving.find(name).locator(".dpx-part svg rect").first.is_visible()
    for opened in (moving, still):
        opened.close()


@pytest.mark.parametrize("name", FIGURES)
def test_fits_a_phone(browser, name):
    opened = Opened(browser, MARKUPS[name], width=390)
    opened.find(name).locator("summary").click()  # the table scrolls in its own box
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    opened.close()


@pytest.mark.parametrize("name", ["gumbel-explorer", "head-explorer"])
def test_two_views_of_one_output_do_not_meet(browser, name):
    opened = Opened(browser, "")
    for _ in range(2):
        opened.in_jupyterlab(MARKUPS[name])
    live = opened.page.locator("[aria-live=polite]")
    assert live.count() == 2 and live.nth(0).inner_text() == live.nth(1).inner_text()
    opened.page.get_by_role("slider").last.press("End")
    assert live.nth(0).inner_text() != live.nth(1).inner_text()
    opened.close()


def test_a_wrong_number_is_seen(browser):
    """Negative control of the browser tests: a script that forgets the temperature fails them."""
    broken = MARKUPS["gumbel-explorer"].replace("/ temperatures[tau]", "/ 1")
    assert broken != MARKUPS["gumbel-explorer"]
    opened = Opened(browser, broken)
    opened.figure = opened.find("gumbel-explorer")
    noise_shown(opened, noise.TEMPERATURES.index(1.0), noise.SCALES.index(1.0), 1)
    move(opened, "Temperature", 0)
    with pytest.raises(AssertionError):
        noise_shown(opened, 0, noise.SCALES.index(1.0), 1)
    opened.close()
