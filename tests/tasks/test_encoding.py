"""How tasks become inputs of decoder-only models and classifiers: cues, label words behind a space, pairs, shortening."""

import logging
from dataclasses import replace
from functools import cache

import pytest
import tiny
import torch
from nli import TEXT, bert, byte_level, pair_tokenizer, task
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    BertForMaskedLM,
    BertModel,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
)

import dplearn as dp
from dplearn.tasks.encoding import form_of


@cache
def llama():
    return tiny.llama(vocab_size=len(byte_level()), dtype=torch.float32)


def prompted(position="postfix", length=3):
    return dp.prompted(llama(), dp.PromptConfig(length=length, position=position))


# --- which form -------------------------------------------------------------------------------------------------------


def test_the_form_follows_from_the_model():
    assert form_of(None) == form_of(tiny.t5()) == "seq2seq"
    assert form_of(llama()) == form_of(prompted()) == form_of(tiny.gpt2()) == "causal"
    assert form_of(bert()) == "classifier"


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_a_model_that_cannot_answer_is_refused(kind):
    with pytest.raises(TypeError, match=f"model is a {kind.__name__}, expected one that says the next word"):
        task().encode(pair_tokenizer(), "train", bert(kind))


# --- decoder-only -----------------------------------------------------------------------------------------------------


def test_a_decoder_only_row_is_text_then_cue_and_the_word_has_a_space():
    tokenizer, cue = byte_level(), " answer:"
    rows = task().encode(tokenizer, "train", prompted(), answer_prefix=cue)
    for row, example in zip(rows, task().splits["train"], strict=True):
        text = f"premise: {example['premise']} hypothesis: {example['hypothesis']} answer:"
        assert tokenizer.decode(row["input_ids"]) == text
        assert tokenizer.decode(row["input_ids"][-row["keep_last"] :]) == cue
        assert (
            tokenizer.decode(row["labels"]) == [" no", " yes"][example["label"]] and len(row["labels"]) == 1
        )
        assert row["attention_mask"] == [1] * len(row["input_ids"])
        # What follows the text in one piece is the same token.
        assert (
            tokenizer(f"{text} {task().words[example['label']]}")["input_ids"]
            == row["input_ids"] + row["labels"]
        )


def test_a_bare_model_gets_no_keep_last_and_takes_the_batch():
    rows = task().encode(byte_level(), "train", llama(), answer_prefix=" answer:")
    assert set(rows[0]) == {"input_ids", "attention_mask", "labels"}
    batch = DataCollatorForSeq2Seq(byte_level())(list(rows))
    assert batch["labels"].shape == (2, 1)
    llama()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


@pytest.mark.parametrize("position", ["prefix", "postfix", 1])
def test_the_cue_stays_behind_the_prompt_and_the_loss_reads_it(position):
    """A batch of rows of several lengths: the same scores as by hand, one row at a time, vectors put in their place."""
    model, tokenizer = prompted(position), byte_level()
    rows = task().encode(tokenizer, "train", model, answer_prefix=" answer:")
    words = task().word_ids(tokenizer, model)
    batch = DataCollatorForSeq2Seq(tokenizer)(list(rows))
    labels = batch.pop("labels")
    loss = dp.LabelWordLoss(words)
    with torch.no_grad():
        output = model.eval()(**batch)
    split = {"prefix": 3, "postfix": 0}.get(position, position)
    table, vectors = llama().get_input_embeddings(), model.prompt.vectors
    for row, scores in zip(rows, loss.word_logits(output.logits), strict=True):
        ids = torch.tensor(row["input_ids"])
        front, cue = table(ids[: -row["keep_last"]]), table(ids[-row["keep_last"] :])
        with torch.no_grad():
            by_hand = llama()(inputs_embeds=torch.cat([vectors[:split], front, vectors[split:], cue])[None])
        torch.testing.assert_close(scores, by_hand.logits[0, -1, words], rtol=1e-4, atol=1e-5)
    assert loss.targets(labels).tolist() == [1, 0]


def test_a_cue_with_fields_keeps_as_many_tokens_as_each_example_has():
    data, tokenizer = task(template="premise: {premise} ({hypothesis})"), byte_level()
    rows = data.encode(tokenizer, "train", prompted(), answer_prefix=" hypothesis: {hypothesis} answer:")
    for row, example in zip(rows, data.splits["train"], strict=True):
        kept = f" hypothesis: {example['hypothesis']} answer:"
        assert row["keep_last"] == len(tokenizer(kept)["input_ids"])
        assert tokenizer.decode(row["input_ids"]).endswith(kept)
    assert len({row["keep_last"] for row in rows}) == 2


def test_a_word_of_several_tokens_is_named():
    with pytest.raises(ValueError, match=r"made/nli: word 'perhaps' has \d+ tokens behind a space"):
        task(words=("no", "perhaps")).encode(byte_level(), "train", llama())


def test_sentencepiece_words_carry_their_space():
    """The metaspace of Llama 2: a space is put before every text, so " yes" has two tokens and "yes" is the word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=90, special_tokens=["<pad>"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    ids = task().word_ids(tokenizer, llama())
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁no", "▁yes"]


# --- classifiers ------------------------------------------------------------------------------------------------------


def test_a_classifier_reads_a_pair_and_the_index():
    rows = task().encode(pair_tokenizer(), "train", bert())
    words = "[CLS] a dog ran home [SEP] a dog ran [SEP]".split()
    assert pair_tokenizer().convert_ids_to_tokens(rows[0]["input_ids"]) == words
    assert rows[0]["token_type_ids"] == [0] * 6 + [1] * 4 and rows[0]["labels"] == 1
    batch = DataCollatorWithPadding(pair_tokenizer())(list(rows))
    output = bert()(**batch)
    assert output.logits.shape == (2, 2) and batch["labels"].tolist() == [1, 0]
    assert dp.prompted(bert(), dp.PromptConfig(length=2))(**batch).logits.shape == (2, 2)


def test_without_a_pair_it_reads_the_template():
    data = task(pair=(), template="{premise} {hypothesis}")
    (first, _) = data.encode(pair_tokenizer(), "train", bert())
    assert pair_tokenizer().decode(first["input_ids"]) == "[CLS] a dog ran home a dog ran [SEP]"
    assert set(first["token_type_ids"]) == {0}


# --- shortening -------------------------------------------------------------------------------------------------------

LONG = {"premise": "a dog ran home " * 20, "hypothesis": "a cat ran", "label": 0}


@pytest.mark.parametrize("model", ["causal", "classifier"])
def test_only_what_may_be_cut_is_cut_and_it_is_told(model, caplog):
    data = replace(task(), splits={"train": [LONG, *task().splits["train"]]})
    tokenizer = {"causal": byte_level(), "classifier": pair_tokenizer()}[model]
    who, cue = {"causal": (prompted(), " answer:"), "classifier": (bert(), "")}[model]
    with caplog.at_level(logging.WARNING, "dplearn.tasks"):
        rows = data.encode(tokenizer, "train", who, max_length=24, answer_prefix=cue)
    assert rows.cut == 1 and len(rows) == 3 and len(rows[0]["input_ids"]) in range(20, 25)
    assert (
        "made/nli: 1 of 3 examples of 'train' had more than max_length=24 tokens and were cut" in caplog.text
    )
    text = tokenizer.decode(rows[0]["input_ids"])
    if model == "causal":
        assert text.startswith("premise: a dog ran home a") and text.endswith(
            " hypothesis: a cat ran answer:"
        )
        assert tokenizer.decode(rows[0]["input_ids"][-rows[0]["keep_last"] :]) == " answer:"
    else:
        assert text.startswith("[CLS] a dog ran home a") and text.endswith("[SEP] a cat ran [SEP]")
        assert len(rows[0]["token_type_ids"]) == len(rows[0]["input_ids"])


def test_the_question_is_never_cut_even_if_it_is_longer():
    data = replace(
        task(), splits={"train": [{"premise": "a dog", "hypothesis": "ran home " * 9, "label": 0}]}
    )
    with pytest.raises(ValueError, match=r"max_length=12: expected at least \d+"):
        data.encode(byte_level(), "train", llama(), max_length=12)


def test_nothing_is_said_where_nothing_is_cut(caplog):
    assert task().encode(byte_level(), "train", llama()).cut == 0 and not caplog.text


# --- few-shot sets of a fixed size ------------------------------------------------------------------------------------


def test_few_shot_in_all_takes_whole_groups_and_a_fixed_set_as_it_is():
    examples = [{"premise": f"{i}", "hypothesis": "h", "label": i % 2, "group": i // 3} for i in range(12)]
    grouped = task(metric="f1a_em", splits={"train": examples})
    small = grouped.few_shot(total=2, seed=1)
    groups = [example["group"] for example in small.splits["train"]]
    assert len(groups) == 6 and len(set(groups)) == 2 and groups == sorted(groups)
    assert small.source.endswith("train: 2 in all, seed 1")
    assert list(grouped.few_shot(total=4, seed=5).splits["train"]) == examples
    plain = task(splits={"train": examples})
    assert len(plain.few_shot(total=5).splits["train"]) == 5
    draws = {
        tuple(e["premise"] for e in plain.few_shot(total=5, seed=seed).splits["train"]) for seed in range(6)
    }
    assert len(draws) > 3


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: task(cuttable=("text",)), r"cuttable=\('text',\): expected fields of the template"),
        (lambda: task(pair=("{premise}", "{text}")), "pair=.*: expected at most two format strings"),
        (lambda: task(pair=("none",)), "pair=.*: expected at most two format strings"),
        (lambda: task(pair=("{premise}",) * 3), "pair=.*: expected at most two format strings"),
        (lambda: task().few_shot(), "per_label=None and total=None: expected one of them"),
        (lambda: task().few_shot(1, total=1), "per_label=1 and total=1: expected one of them"),
        (lambda: task().few_shot(total=0), "total=0: expected an integer of at least 1"),
        (lambda: task().few_shot(total=3), "total=3: expected at most 2, the examples of train"),
        (lambda: task().encode(byte_level(), "train", llama(), answer_prefix="answer: "), "no space at its end"),
        (lambda: task().encode(byte_level(), "train", llama(), answer_prefix=" {text}"), "expected fields out of"),
        (lambda: task().encode(byte_level(), "train", answer_prefix=" {premise}"), "text without fields"),
        (lambda: task().encode(pair_tokenizer(), "train", bert(), answer_prefix="a"), "a classifier reads no word"),
        (lambda: task().word_ids(pair_tokenizer(), bert()), "model is a classifier: expected one that answers"),
    ],
)  # fmt: skip
def test_a_bad_call_says_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
