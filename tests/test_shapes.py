"""What belongs to a batch beside its input has its number of instances, or an error says which does not."""

import pytest
import tiny
import torch
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaForSequenceClassification,
)

import dplearn as dp

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
MODELS = {
    "t5": tiny.t5,
    "bart": tiny.bart,
    "gpt2": tiny.gpt2,
    "llama": tiny.llama,
    "llama classifier": lambda: tiny.llama(LlamaForSequenceClassification, num_labels=3),
    "bert": lambda: tiny.bert(BertForMaskedLM),
    "bert classifier": lambda: tiny.bert(BertForSequenceClassification, num_labels=3),
    "bert tagger": lambda: tiny.bert(BertForTokenClassification, num_labels=3),
    "vit": tiny.vit,
}
OF_TOKENS = ("gpt2", "llama", "bert", "bert tagger")
DECODING = ("t5", "bart")


def ones(*shape):
    return torch.ones(shape, dtype=torch.long)


def good(kind):
    return ones(2, 3) if kind in DECODING else ones(2, 4) if kind in OF_TOKENS else ones(2)


def cases():
    for kind in MODELS:
        for rows in (1, 3):
            yield kind, "labels", ones(rows, *good(kind).shape[1:])
    for kind in OF_TOKENS:
        for wrong in (ones(2, 3), ones(2, 5), ones(4, 2), ones(2), torch.ones(2, 4)):
            yield kind, "labels", wrong
    for kind in DECODING:
        yield kind, "labels", ones(2)
        yield kind, "decoder_input_ids", ones(3, 3)
        yield kind, "decoder_input_ids", ones(2, 4)
        yield kind, "decoder_attention_mask", ones(3, 3)
        yield kind, "decoder_attention_mask", ones(2, 4)
    for kind in ("bert", "gpt2"):
        yield kind, "token_type_ids", ones(3, 4)
        yield kind, "token_type_ids", ones(2, 3)
        yield kind, "position_ids", ones(3, 4)
        yield kind, "position_ids", ones(1, 5)


def call(kind, options, **more):
    model = dp.prompted(MODELS[kind](), dp.PromptConfig(length=2, **options))
    batch = (
        {"pixel_values": tiny.images(2)}
        if kind == "vit"
        else {"input_ids": IDS, "attention_mask": ones(2, 4)}
    )
    batch |= {"keep_last": 1} if kind in ("gpt2", "llama") else {}
    return model.train()(**batch | {"labels": good(kind)} | more)


@pytest.mark.parametrize("sampled", [False, True], ids=["fixed", "sampled"])
@pytest.mark.parametrize("kind", MODELS)
def test_labels_of_more_classes_or_another_vocabulary_are_named(kind, sampled):
    """The last label: a causal language model does not predict the first token."""
    options = {"size": "task", "estimator": "score-function", "samples": 2} if sampled else {}
    for wrong in (5000, -7):
        labels = good(kind)
        labels.view(-1)[-1] = wrong
        low, high = min(wrong, 1), max(wrong, 1)
        with pytest.raises(ValueError, match=rf"labels holds {low}\.\.{high}.*, expected numbers of tokens"):
            call(kind, options, labels=labels)
    labels.view(-1)[-1] = -100
    assert call(kind, options, labels=labels).loss.isfinite()


def test_labels_of_more_texts_than_there_are_are_named():
    model = dp.prompted(tiny.clip(), dp.PromptConfig(length=2))
    ids, mask = tiny.texts([[5, 6], [7, 8]])
    given = {"pixel_values": tiny.images(2), "input_ids": ids, "attention_mask": mask}
    with pytest.raises(ValueError, match=r"labels holds 0\.\.2, expected numbers of tokens or classes"):
        model(**given, labels=torch.tensor([0, 2]))


def test_an_index_error_of_something_else_stays_what_it_is(monkeypatch):
    model = dp.prompted(tiny.t5(), dp.PromptConfig(length=2))

    def run(*arguments):
        raise IndexError("list index out of range")

    monkeypatch.setattr(model.adapter, "run", run)
    with pytest.raises(IndexError, match="^list index out of range$"):
        model(input_ids=IDS, labels=good("t5"))


@pytest.mark.parametrize("sampled", [False, True], ids=["fixed", "sampled"])
@pytest.mark.parametrize(("kind", "name", "wrong"), list(cases()))
def test_another_batch_or_length_is_refused_by_name(kind, name, wrong, sampled):
    options = {"size": "task", "estimator": "score-function", "samples": 2} if sampled else {}
    shape = str(tuple(wrong.shape)).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(
        ValueError, match=rf"^{name} has shape {shape} and dtype .*, expected (integers )?\([12], "
    ):
        call(kind, options, **{name: wrong})


@pytest.mark.parametrize("kind", MODELS)
def test_what_fits_is_taken(kind):
    more = {"decoder_attention_mask": ones(2, 3)} if kind in DECODING else {}
    more |= {"position_ids": torch.arange(4)[None]} if kind in OF_TOKENS else {}
    assert call(kind, {}, **more).loss.isfinite()


def test_as_many_labels_as_copies_are_labels_of_another_batch():
    """Two draws for each of two inputs: four labels would have been paired with the copies, whatever they were."""
    options = {"size": "task", "estimator": "score-function", "samples": 2}
    with pytest.raises(ValueError, match=r"labels has shape \(4, 3\) .*, expected integers \(2, seq\)"):
        call("t5", options, labels=ones(4, 3))


def test_labels_in_a_list_are_no_tensor():
    with pytest.raises(TypeError, match="labels is a list, expected a tensor"):
        call("t5", {}, labels=[[1, 2], [3, 4]])


def test_generation_starts_with_one_row_for_each_input():
    model = dp.prompted(tiny.t5(), dp.PromptConfig(length=2))
    with pytest.raises(
        ValueError, match=r"decoder_input_ids has shape \(3, 1\) .*, expected integers \(2, seq\)"
    ):
        model.generate(IDS, ones(2, 4), decoder_input_ids=ones(3, 1), max_new_tokens=2)
