"""Every text architecture of transformers: a prompt of words is exactly those words, or the model is refused by name.

For each row of the table in ``architectures.py`` a tiny random model gets a prompt whose vectors are its own rows of four
word ids, as prefix, postfix and around the text, with padding on both sides. It must answer as the plain model does on
each text alone with these words in it (``plain_answers.py``), or dplearn must refuse it with the reason. A dozen run always,
the others carry the marker ``slow``: ``make sweep`` runs all. Either prints how many came out how.

``architectures.json`` holds what was found with one version of transformers: what was exact there must stay exact.
"""

import json
import pathlib
import traceback

import pytest
import torch
from architectures import ARCHITECTURES, NotBuilt, build
from plain_answers import (
    NoRows,
    decoder_inputs,
    difference,
    ends,
    padded,
    reference,
    role_of,
    rows_of,
    splice,
    texts,
)

import dplearn as dp

# Models of other people warn of many things at their making; what they warn of is not tested here.
pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = {
    "seq2seq-t5",
    "seq2seq-bart",
    "seq2seq-marian",
    "seq2seq-fsmt",
    "causal-gpt2",
    "causal-llama",
    "causal-gemma3n_text",
    "causal-gemma4_text",
    "causal-opt",
    "causal-ctrl",
    "causal-bert-generation",
    "causal-recurrent_gemma",
    "classification-bert",
    "classification-modernbert",
    "classification-gpt2",
    "classification-canine",
}
RECORD = pathlib.Path(__file__).with_name("architectures.json")
WORDS = torch.tensor([11, 23, 37, 41])
SPLITS, SIDES = (4, 0, 2), ("right", "left")


def marked(rows):
    return [
        pytest.param(row, id=str(row), marks=[] if str(row) in QUICK else pytest.mark.slow) for row in rows
    ]


@pytest.mark.parametrize("architecture", marked(ARCHITECTURES))
def test_a_prompt_of_words_is_these_words_or_is_refused(architecture, record_property):
    status, detail = "wrong", ""
    try:
        model = build(architecture)
        status, detail = outcome(model, architecture.task)
    except NotBuilt as reason:
        status, detail = "not built", str(reason)
    finally:
        record_property("sweep", [str(architecture), status, detail])
    expected = recorded(architecture)
    assert status != "not built" or expected in ("not built", None), detail
    if status == "not built":
        pytest.skip(detail)
    assert expected in (None, "not built", "refused", status) or status == "exact", detail


@pytest.mark.parametrize("architecture", marked(row for row in ARCHITECTURES if row.task != "classification"))
def test_generation_with_a_prompt_of_words_is_the_plain_models(architecture):
    """Greedy decoding in float32 (a fully masked row of eager attention is not finite in float64)."""
    try:
        model = build(architecture).float()
        rows = rows_of(model, architecture.task, WORDS, tolerance=1e-4)
    except (NotBuilt, NoRows) as reason:
        pytest.skip(str(reason))
    role = role_of(model, architecture.task)
    questions = texts(eos=role == "encoder-decoder")
    ids, mask = padded(questions, "left" if role == "decoder" else "right")
    options = dict(max_new_tokens=3, do_sample=False, num_beams=1, eos_token_id=None, pad_token_id=0)
    try:
        prompted = dp.prompted(model, dp.PromptConfig(length=4, position=2), vectors=rows)
        got = prompted.generate(ids, mask, **options)
    except (TypeError, ValueError, NotImplementedError) as error:
        check_refusal(error, model)
        return
    for row, question in enumerate(questions):
        whole = splice(WORDS, question, 2, keep=int(role == "encoder-decoder" and ends(model, question)))[
            None
        ]
        plain = model.generate(whole, attention_mask=torch.ones_like(whole), **options)[0]
        want = plain if role == "encoder-decoder" else plain[whole.shape[1] :]
        assert got[row].tolist() == want.tolist()


def outcome(model, task):
    """How a model fares: "exact", "left refused" (padding on the left is refused) or "refused", and why.

    Anything else is an error: another answer, a crash, or a refusal that names no reason.
    """
    role = role_of(model, task)
    questions = texts(eos=role == "encoder-decoder")
    rows, reason = table_rows(model, task)
    refusals = {}
    for split in SPLITS:
        try:
            prompted = dp.prompted(model, dp.PromptConfig(length=4, position=split), vectors=rows)
        except (TypeError, ValueError) as error:
            return "refused", check_refusal(error, model)
        wanted = [reference(model, task, role, WORDS, question, split) for question in questions]
        check_sensitive(model, task, role, questions, split, wanted)
        for side in SIDES:
            ids, mask = padded(questions, side)
            try:
                with torch.no_grad():
                    logits = prompted(
                        input_ids=ids, attention_mask=mask, **decoder_inputs(task, len(ids))
                    ).logits
            except (TypeError, ValueError) as error:
                refusals[side] = check_refusal(error, model)
                continue
            assert len(logits) == len(questions)
            for got, want, real in zip(logits, wanted, mask.bool()):
                got = got[real] if task == "causal" and len(got) == len(real) else got
                assert difference(got, want) < tolerance(model), (
                    f"split {split}, padding on the {side}; {reason}"
                )
    assert "right" not in refusals, refusals
    return ("left refused", refusals["left"]) if refusals else ("exact", "")


def table_rows(model, task):
    """The words' vectors and None, or some of the right width and why there are none."""
    try:
        return rows_of(model, task, WORDS, tolerance(model)), None
    except NoRows as error:
        try:
            return model.get_input_embeddings()(WORDS).detach(), str(error)
        except Exception:  # canine has no table, others one of another kind
            return torch.randn(4, model.config.hidden_size), str(error)


def check_sensitive(model, task, role, questions, split, wanted):
    """The comparison can fail: words in another order, or another split, are another answer."""
    for question, want in zip(questions, wanted):
        for words, other in ((WORDS.roll(1), split), (WORDS, (split + 2) % 6)):
            assert difference(reference(model, task, role, words, question, other), want) > 1e-3


def check_refusal(error, model):
    """The error comes from dplearn itself, names the model's class, and says more than that; its text."""
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    assert pathlib.Path(where).is_relative_to(pathlib.Path(dp.__file__).parent), f"{where}: {error!r}"
    text, names = str(error), {type(model).__name__, type(model.base_model).__name__, model.config.model_type}
    assert any(name in text for name in names) and len(text) > 30, text
    return text


def tolerance(model):
    """Some layers of float64 models compute in float32."""
    return 1e-5 if model.dtype == torch.float64 else 1e-4


def recorded(architecture):
    """What was found with the version of transformers that runs here; None for another or for a new row."""
    import transformers

    record = json.loads(RECORD.read_text())
    if record["transformers"] != transformers.__version__:
        return None
    return record["status"].get(str(architecture))
