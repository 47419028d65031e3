"""The report on decisions: every number against single inputs run by hand, one at a time and without padding."""

import json

import naive
import pytest
import tiny
import torch
from torch.nn.functional import cross_entropy, one_hot
from torch.testing import assert_close

import dplearn as dp
from dplearn.sampling import Choice

LENGTHS = [6, 3, 8, 5, 7, 4]
IDS, MASK = tiny.batch(LENGTHS, seed=1)
LABELS = torch.arange(12).view(6, 2) + 5
TYPES = [0, 1, 0, 1, 1, 0]


def batches(size=4, labels=True):
    for start in range(0, len(IDS), size):
        rows = slice(start, start + size)
        yield {"input_ids": IDS[rows], "attention_mask": MASK[rows]} | (
            {"labels": LABELS[rows]} if labels else {}
        )


def losses_at(model, splits, sizes=None, weights=None):
    """(N,) losses of inputs put together by hand, without a gradient."""
    length = model.prompt.length
    sizes = [length] * len(IDS) if sizes is None else sizes
    vectors = naive.contents(model, weights)
    vectors = [vectors] * len(IDS) if weights is None else vectors
    logits = naive.logits(model, IDS, MASK, LABELS, vectors, splits, sizes)
    return cross_entropy(logits.transpose(1, 2), LABELS, reduction="none").mean(1).detach()


@pytest.fixture(scope="module")
def model():
    return naive.prompted(position="instance")


def test_losses_at_every_split_are_those_of_inputs_by_hand(model):
    report = dp.decision_report(model, batches(), groups=TYPES, headroom=True, verbose=False)
    expected = torch.stack([losses_at(model, [k] * 6) for k in range(5)], 1)
    assert_close(report.losses, expected, rtol=1e-10, atol=1e-10)
    splits = naive.decide(model, IDS, MASK)["position"].argmax(1)
    assert torch.equal(report.chosen["position"], splits) and splits.unique().numel() > 1
    assert report.headroom.learned == pytest.approx(float(losses_at(model, splits.tolist()).mean()))
    found = report.decisions["position"]
    probabilities = naive.scores(model, "position", IDS, MASK).softmax(1)
    assert_close(report.probabilities["position"].double(), probabilities.detach(), rtol=1e-5, atol=1e-5)
    assert found.loss == pytest.approx(report.headroom.learned)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    dealt = losses_at(model, splits[order].tolist())
    assert found.shuffled == pytest.approx(float(dealt.mean()))
    assert found.learned is None  # it started at random, and nobody said how


def test_the_report_does_not_depend_on_batches_and_leaves_the_model_as_it_was(model):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reports = [dp.decision_report(model, batches(size), headroom=True, verbose=False) for size in (6, 1)]
    assert model.training and all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    model.eval()
    assert_close(*(report.losses for report in reports), rtol=1e-10, atol=1e-10)
    rows = [{n: v[0] for n, v in batch.items()} for batch in batches(1)]
    again = dp.decision_report(model, rows, batch_size=2, headroom=True, options=[4, 1], verbose=False)
    assert_close(again.losses, reports[0].losses[:, [4, 1]], rtol=1e-10, atol=1e-10)
    assert again.headroom.options == (4, 1)


def test_sizes_and_prompts_of_a_pool_are_tried_too():
    model = naive.prompted(size="instance", vector="task", mixing="hard")
    found = dp.decision_report(model, batches(), headroom="size", verbose=False)
    weights = naive.decide(model, IDS, MASK)["vector"]
    expected = torch.stack([losses_at(model, [4] * 6, [n] * 6, weights) for n in range(1, 5)], 1)
    assert_close(found.losses, expected, rtol=1e-10, atol=1e-10)
    assert set(found.decisions) == {"size", "vector"}
    sizes = naive.decide(model, IDS, MASK)["size"].argmax(1).tolist()
    pool = dp.decision_report(model, batches(), headroom="vector", verbose=False)
    each = [one_hot(torch.full((6,), k), 3).double() for k in range(3)]
    expected = torch.stack([losses_at(model, [4] * 6, sizes, w) for w in each], 1)
    assert_close(pool.losses, expected, rtol=1e-10, atol=1e-10)


def test_a_fixed_prompt_has_headroom_and_no_evidence():
    model = naive.prompted(position=2)
    report = dp.decision_report(model, batches(), headroom=True, verbose=False)
    assert report.decisions == {} and report.headroom.learned is None
    assert_close(report.losses[:, 2], losses_at(model, [2] * 6), rtol=1e-10, atol=1e-10)
    plain = dp.decision_report(model, batches())
    assert str(plain) == "nothing is decided: every part of the prompt is fixed"


def test_the_start_is_known_where_decisions_have_no_preference_and_else_from_an_earlier_report():
    zero = naive.prompted(position="instance", controller_init="zero")
    first = dp.decision_report(zero, batches(labels=False))
    found = first.decisions["position"]
    assert found.moved == 0 and found.learned is False and found.loss is None and found.changed == 0
    with torch.no_grad():
        zero.prompt.position.controller.linear.bias[1] = 9.0
    moved = dp.decision_report(zero, batches(labels=False)).decisions["position"]
    assert moved.learned and moved.changed == 1.0 and moved.counts == (0, 6, 0, 0, 0)
    again = dp.decision_report(zero, batches(labels=False), since=first).decisions["position"]
    assert again == moved
    with pytest.raises(
        ValueError, match=r"since has \(6, 5\) for 'position', expected a report of this model .*\(4, 5\)"
    ):
        dp.decision_report(
            zero, [next(batches())] * 1, batch_size=1, since=first, collate=lambda rows: rows[0]
        )


def test_a_loss_outside_gets_the_labels_and_the_model_does_not():
    loss = dp.LabelWordLoss(list(range(5, 17)))
    model = naive.prompted(position="instance")

    def spied(outputs, labels):
        assert outputs.get("loss") is None
        return loss.losses(outputs, labels)

    data = [b | {"decoder_input_ids": torch.zeros(len(b["labels"]), 2, dtype=torch.long)} for b in batches()]
    report = dp.decision_report(model, iter(data), loss=spied)
    index = report.chosen["position"]
    outputs = model(
        IDS, MASK, decoder_input_ids=torch.zeros(6, 2, dtype=torch.long), decisions={"position": index}
    )
    expected = cross_entropy(outputs.logits[:, -1, 5:17].float(), LABELS[:, -1] - 5)
    assert report.decisions["position"].loss == pytest.approx(expected.item(), rel=1e-6)


def test_words_figure_and_json(model, capsys):
    pytest.importorskip("matplotlib").use("agg")
    report = dp.decision_report(model, batches(), labels=TYPES, groups=TYPES, headroom=True)
    assert "headroom of the position: 5 options x 6 inputs, 10 batches to run" in capsys.readouterr().err
    assert json.loads(json.dumps(report.to_dict()))["headroom"]["decision"] == "position"
    text = str(report)
    for words in (
        "position: 5 options, 6 inputs: start not known",
        "told about labels",
        "best by group",
        "dealt to",
    ):
        assert words in text
    bars, curve = report.figure().axes
    heights = [bar.get_height() * 6 / 100 for bar in bars.patches]
    assert heights == pytest.approx(list(report.decisions["position"].counts))
    assert list(curve.lines[0].get_ydata()) == pytest.approx(list(report.headroom.means))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": [0, 1]}, r"labels=\[0, 1\] has shape \(2,\)"),
        ({"groups": [0.5] * 6}, "groups=.* expected integers of at least 0"),
        ({"headroom": "size"}, r"headroom='size'.*expected a decision .*\['position'\]"),
        ({"headroom": True, "options": [9]}, r"options=\[9\].*expected some of 0..4"),
        ({"options": [1]}, r"options=\[1\].*expected None without headroom"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_wrong_arguments_are_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        dp.decision_report(model, batches(), verbose=False, **options)


def test_data_that_does_not_do_is_refused(model):
    with pytest.raises(ValueError, match="data is empty"):
        dp.decision_report(model, [])
    with pytest.raises(ValueError, match="headroom needs losses, expected data with labels"):
        dp.decision_report(model, batches(labels=False), headroom=True)
    ragged = [
        {"input_ids": [5, 6, 1], "attention_mask": [1] * 3},
        {"input_ids": [5, 1], "attention_mask": [1] * 2},
    ]
    with pytest.raises(ValueError, match="the examples have different lengths: expected a collate"):
        dp.decision_report(model, ragged)
    with pytest.raises(TypeError, match="model is a T5ForConditionalGeneration, expected a PromptedModel"):
        dp.decision_report(naive.backbone(), batches())


# --- decisions that were made elsewhere, which the report rests on ---


@pytest.mark.parametrize("kind", ["t5", "llama", "bert", "vit"])
def test_a_given_split_is_that_of_a_prompt_fixed_there(kind):
    backbone = {"bert": tiny.bert}.get(kind, getattr(tiny, kind))()
    options = {"entry": "position-coded"} if kind == "vit" else {}
    torch.manual_seed(0)
    vectors = torch.randn(3, tiny.WIDTH)
    batch = {"input_ids": IDS, "attention_mask": MASK} if kind != "vit" else {"pixel_values": tiny.images()}
    batch |= {"decoder_input_ids": torch.zeros(6, 1, dtype=torch.long)} if kind == "t5" else {}
    for start in ("prefix", "instance"):
        made = dp.prompted(
            backbone, dp.PromptConfig(length=3, position=start, **options), vectors=vectors
        ).double()
        for k in range(4):
            fixed = dp.prompted(
                backbone, dp.PromptConfig(length=3, position=k, **options), vectors=vectors
            ).double()
            expected, found = fixed.eval()(**batch), made.eval()(**batch, decisions={"position": k})
            assert_close(found[0], expected[0], rtol=1e-10, atol=1e-10)


def test_given_decisions_of_single_instances_and_a_gradient_for_the_vectors_alone():
    model = naive.prompted(position="instance", size="task", estimator="score-function").train()
    splits, sizes = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 2, 3, 4, 2, 3])
    given = {"position": splits, "size": Choice(sizes)}
    output = model(IDS, MASK, labels=LABELS, decisions=given)
    assert_close(
        output.loss, losses_at(model, splits.tolist(), sizes.tolist()).mean(), rtol=1e-10, atol=1e-10
    )
    output.loss.backward()
    assert model.prompt.vectors.grad.abs().max() > 0
    assert all(p.grad is None for n, p in model.prompt.named_parameters() if n != "vectors")
    partly = model(IDS, MASK, labels=LABELS, decisions={"size": 2})
    assert set(partly.draws.index) == {"position"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"position": 5}, r"decisions\['position'\] holds 5..5, expected a number in 0..4"),
        ({"position": torch.zeros(2, dtype=torch.long)}, r"decisions\['position'\] has shape \(2,\)"),
        ({"position": torch.zeros(6)}, r"decisions\['position'\] has shape \(6,\)"),
        ({"size": 2}, r"decisions holds 'size', .*expected some of \['position'\]"),
        ({"place": 2}, r"decisions holds 'place'"),
    ],
)
def test_given_decisions_that_do_not_fit_are_refused(model, given, message):
    with pytest.raises(ValueError, match=message):
        model(IDS, MASK, labels=LABELS, decisions=given)


def test_a_causal_prefix_that_is_moved_behind_an_answer_is_refused():
    model = dp.prompted(tiny.llama(), dp.PromptConfig(length=2))
    with pytest.raises(ValueError, match="context_length=None and keep_last=None while labels are given"):
        model(IDS, MASK, labels=IDS, decisions={"position": 0})


# --- statistics of summaries before the training ---


def test_statistics_beforehand_are_those_of_all_inputs():
    model = naive.prompted(position="instance", vector="instance", controller_init="zero")
    model.fit_summaries(batches(), batch_size=1)
    summaries = torch.nn.functional.layer_norm(model.summarize(IDS, MASK), (tiny.WIDTH,))
    for part in (model.prompt.position, model.prompt.vector):
        found = part.controller.standardizer
        assert found.count == 6
        assert_close(found.mean, summaries.mean(0), rtol=1e-10, atol=1e-10)
        assert_close(found.variance, summaries.var(0, unbiased=False), rtol=1e-10, atol=1e-10)
    plain = naive.prompted(position="instance", standardize=False)
    plain.fit_summaries(batches())
    assert not [name for name in plain.state_dict() if "standardizer" in name]


def test_training_extends_the_statistics_and_evaluation_and_generation_do_not():
    model = naive.prompted(position="instance").train()
    statistics = model.prompt.position.controller.standardizer
    model.generate(IDS, MASK, max_new_tokens=2)
    model.eval()(IDS, MASK, labels=LABELS)
    assert statistics.count == 10
    model.train()(IDS, MASK, labels=LABELS)
    assert statistics.count == 16
