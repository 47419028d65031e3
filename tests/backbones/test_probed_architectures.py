"""Whatever a prompt can be put in, the probe of a split's effect measures: architectures against the plain model.

The prompt is four words, so that the plain model on the text with these words spliced into it (``plain_answers.py``)
says how much its answer changes from split to split. A dozen architectures run always, all others that are served carry
the marker ``slow``.
"""

import pytest
import torch
from architectures import ARCHITECTURES, NotBuilt, build
from plain_answers import NoRows, decoder_inputs, padded, reference, role_of, rows_of, texts

from dplearn.theory import position_sensitivity

# Models of other people warn of many things at their making; what they warn of is not tested here.
pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = {
    "seq2seq-t5gemma",  # encoders that answer a prompted model alone, and not rows that are handed over
    "seq2seq-switch_transformers",
    "seq2seq-bart",
    "causal-llama4_text",  # the base model is inside of another one
    "causal-rembert-as-decoder",  # a head with a layer of its own in front
    "causal-cohere",  # logits are scaled behind the head
    "causal-gemma2",  # and bent
    "causal-bloom",  # no position ids
    "causal-ctrl",  # scales its rows in place
    "causal-mamba",  # no attention
    "causal-bert",  # an answer for each token
    "classification-eurobert",  # heads that pool by the mask
    "classification-nomic_bert",  # no pooler module, a tensor as the last states
    "classification-gpt2",
}
WORDS, LENGTH = torch.tensor([11, 23, 37, 41]), 4


def plain_changes(model, task, questions):
    """The largest relative change of the plain model's answers from those at the prefix, and that of each split."""
    role, answers = role_of(model, task), []
    for split in range(LENGTH + 1):
        told = [reference(model, task, role, WORDS, question, split) for question in questions]
        # A decoder of language answers with what comes next.
        answers.append(
            torch.cat([one[-1:] if task == "causal" and role == "decoder" else one for one in told])
        )
    return [float((now - answers[-1]).norm() / answers[-1].norm()) for now in answers]


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(row, id=str(row), marks=[] if str(row) in QUICK else pytest.mark.slow)
        for row in ARCHITECTURES
    ],
)
def test_the_answer_changes_as_that_of_the_plain_model(architecture):
    try:
        model, task = build(architecture), architecture.task
        prompt = rows_of(model, task, WORDS, 1e-5 if model.dtype == torch.float64 else 1e-4)
    except (NotBuilt, NoRows) as reason:
        pytest.skip(str(reason))
    questions = texts(eos=role_of(model, task) == "encoder-decoder")
    ids, mask = padded(questions, "right")
    batch = dict(input_ids=ids, attention_mask=mask, **decoder_inputs(task, len(ids)))
    try:
        found = position_sensitivity(model, **batch, prompt=prompt, draws=1)
    except TypeError as reason:
        assert "cannot take a prompt" in str(reason) and str(architecture) not in QUICK
        pytest.skip(str(reason))
    wanted = plain_changes(model, task, questions)
    assert found.full.readout == pytest.approx(max(wanted), rel=1e-4, abs=1e-6)
    assert max(wanted) > 1e-3 and min(wanted[:-1]) < max(wanted)  # the comparison can fail
