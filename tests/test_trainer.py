"""A stock Trainer trains what its user means: losses, gradients and generated answers equal those by hand.

The right value is that of the plain model on each text with the prompt's words spliced in (tests/spliced.py): gradients
are read off one step of plain descent at rate 1, losses off ``evaluate()``.
"""

from dataclasses import fields

import pytest
import spliced
import tiny
import torch
from datasets import Dataset
from spliced import DECODERS, SPLITS, WORDS
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    GenerationConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

import dplearn as dp

QUESTIONS = [[5, 9, 6], [40, 4, 8, 3, 21], [3, 17], [11, 12, 9, 50]]
ANSWERS = [[20, 33], [8], [31, 12, 7], [50, 3]]
ROWS = [question + answer for question, answer in zip(QUESTIONS, ANSWERS, strict=True)]
LABELS = [[-100] * len(question) + answer for question, answer in zip(QUESTIONS, ANSWERS, strict=True)]
BEHIND = [len(answer) for answer in ANSWERS]
EPSILON = 0.1


def arguments(folder, kind=TrainingArguments, **options):
    usual = dict(
        max_steps=1,
        per_device_train_batch_size=len(ROWS),
        per_device_eval_batch_size=len(ROWS),
        max_grad_norm=0.0,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
    )
    return kind(output_dir=str(folder), **usual | options)


def trainer_of(model, data, folder, collator, kind=Trainer, settings=None, **options):
    """A stock Trainer with plain descent at rate 1."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    args = arguments(
        folder, Seq2SeqTrainingArguments if kind is Seq2SeqTrainer else TrainingArguments, **settings or {}
    )
    return kind(
        model,
        args,
        train_dataset=data,
        eval_dataset=data,
        data_collator=collator,
        optimizers=(optimizer, schedule),
        **options,
    )


def gradient(trainer):
    """What one step subtracted from the prompt's vectors."""
    vectors = trainer.model.prompt.vectors
    before = vectors.detach().clone()
    trainer.train()
    return before - vectors.detach()


def by_hand(model, loss):
    """The loss of a function of the prompt's vectors, and its gradient."""
    vectors = model.prompt.vectors.detach().clone().requires_grad_()
    value = loss(vectors)
    return float(value.detach()), torch.autograd.grad(value, vectors)[0]


def assert_trained(trainer, loss):
    """``evaluate`` gives the loss by hand, and a step descends along its gradient. (Some sums are in float32.)"""
    value, slope = by_hand(trainer.model, loss)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(value, rel=1e-5)
    assert slope.abs().max() > 1e-3
    assert_close(gradient(trainer), slope, rtol=1e-4, atol=1e-6)


def next_token_loss(outputs, labels, num_items_in_batch=None):
    """A loss of the user's own, for ``compute_loss_func``."""
    logits, labels = outputs["logits"][:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    total = cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)


def smoothed(logits, labels):
    """Label smoothing by hand over rows (N, C) that all have a label."""
    log_p = logits.log_softmax(-1)
    return (1 - EPSILON) * -log_p.gather(1, labels[:, None]).mean() - EPSILON * log_p.mean()


def causal_by_hand(model, split, way="own", rows=ROWS, lists=LABELS, behind=BEHIND):
    """The loss as a function of the vectors."""
    if way != "smoothed":
        return lambda vectors: spliced.causal_loss(model.backbone, rows, lists, split, behind, vectors)

    def loss(vectors):
        logits, targets = [], []
        for row, wanted, last in zip(rows, lists, behind, strict=True):
            found, labels = (
                spliced.causal_logits(model.backbone, row, split, last, vectors)[:-1],
                torch.tensor(wanted[1:]),
            )
            logits.append(found[labels != -100])
            targets.append(labels[labels != -100])
        return smoothed(torch.cat(logits), torch.cat(targets))

    return loss


def conversations(**columns):
    """Questions with answers for decoder-only models, with a column that no model takes."""
    lengths = {"context_length": [len(question) for question in QUESTIONS]}
    return Dataset.from_dict(
        {"input_ids": ROWS, "labels": LABELS, "note": ["x"] * len(ROWS)} | lengths | columns
    )


WAYS = {
    "own": {},
    "outside": {"compute_loss_func": next_token_loss},
    "smoothed": {"settings": {"label_smoothing_factor": EPSILON}},
}


# ---- decoder-only --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("position", SPLITS)
@pytest.mark.parametrize("way", WAYS)
def test_whoever_computes_the_loss_the_prompt_stands_before_the_answer(kind, position, way, tmp_path):
    model, tokenizer = spliced.prompted(DECODERS[kind](), position), spliced.tokenizer()
    collator = DataCollatorForSeq2Seq(tokenizer, model)
    trainer = trainer_of(model, conversations(), tmp_path, collator, **WAYS[way])
    assert_trained(trainer, causal_by_hand(model, SPLITS[position], way))


@pytest.mark.parametrize("way", WAYS)
def test_the_side_of_the_padding_and_the_column_do_not_matter(way, tmp_path):
    model, tokenizer = spliced.prompted(DECODERS["llama"](), 1), spliced.tokenizer("left")
    data = conversations().remove_columns("context_length").add_column("keep_last", BEHIND)
    trainer = trainer_of(model, data, tmp_path, DataCollatorForSeq2Seq(tokenizer, model), **WAYS[way])
    assert_trained(trainer, causal_by_hand(model, 1, way))


# The Trainer leaves the first token of a text out of its count where the model's loss shifts labels; by the class of
# GPT-2 it does not see that, with a prompt or without.
@pytest.mark.parametrize(
    ("kind", "way"), [("llama", way) for way in WAYS] + [("gpt2", "own"), ("gpt2", "smoothed")]
)
def test_labels_that_are_the_input_train_a_prefix(kind, way, tmp_path):
    """As PEFT would; the first token of a text is no target."""
    model, tokenizer = spliced.prompted(DECODERS[kind](), "prefix"), spliced.tokenizer()
    data = Dataset.from_dict({"input_ids": ROWS, "labels": ROWS})
    trainer = trainer_of(model, data, tmp_path, DataCollatorForSeq2Seq(tokenizer, model), **WAYS[way])
    assert_trained(trainer, causal_by_hand(model, len(WORDS), way, lists=ROWS, behind=[0] * len(ROWS)))


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_that_the_prompt_could_follow_is_an_error(way, tmp_path):
    model, tokenizer = spliced.prompted(DECODERS["gpt2"](), "postfix"), spliced.tokenizer()
    data = Dataset.from_dict({"input_ids": ROWS, "labels": LABELS})
    trainer = trainer_of(model, data, tmp_path, DataCollatorForSeq2Seq(tokenizer, model), **WAYS[way])
    with pytest.raises(ValueError, match="context_length.*keep_last"):
        trainer.train()


@pytest.mark.parametrize(
    ("kind", "position"), [("llama", "prefix"), ("llama", "postfix"), ("gpt2", "postfix")]
)
def test_accumulated_token_counts_make_the_large_batch(kind, position, tmp_path):
    """Batches of different numbers of labels: each token counts alike, and the first of a text is no target."""
    model, tokenizer = spliced.prompted(DECODERS[kind](), position), spliced.tokenizer()
    if position == "prefix":
        data, lists, behind = Dataset.from_dict({"input_ids": ROWS, "labels": ROWS}), ROWS, [0] * len(ROWS)
    else:
        data, lists, behind = conversations(), LABELS, BEHIND
    settings = dict(per_device_train_batch_size=1, gradient_accumulation_steps=len(ROWS))
    collator = DataCollatorForSeq2Seq(tokenizer, model)
    trainer = trainer_of(
        model, data, tmp_path, collator, settings=settings, compute_loss_func=next_token_loss
    )
    _, slope = by_hand(model, causal_by_hand(model, SPLITS[position], lists=lists, behind=behind))
    assert_close(gradient(trainer), slope, rtol=1e-4, atol=1e-6)


def test_texts_can_be_grouped_by_length(tmp_path):
    model, tokenizer = spliced.prompted(DECODERS["gpt2"](), 1), spliced.tokenizer()
    new = "train_sampling_strategy" in {field.name for field in fields(TrainingArguments)}
    settings = {"train_sampling_strategy": "group_by_length"} if new else {"group_by_length": True}
    collator, data = DataCollatorForSeq2Seq(tokenizer, model), conversations()
    trainer = trainer_of(model, data, tmp_path, collator, settings=settings, processing_class=tokenizer)
    assert trainer._get_train_sampler(trainer.train_dataset).lengths == list(map(len, ROWS))
    assert_trained(trainer, causal_by_hand(model, 1))


# ---- columns -------------------------------------------------------------------------------------------------------


PAIRS = [[5, 9, 6, 20], [40, 4, 8, 3, 21, 7], [3, 17, 30]]
TYPES = [[0, 0, 1, 1], [0, 0, 0, 1, 1, 1], [0, 1, 1]]


def bert_rows(backbone, row, types, split, vectors):
    """(T, d): BERT's last states of a text's own tokens; prompt vectors are of type 0."""
    full, places = spliced.splice(row, split)
    kinds = torch.zeros(1, len(full), dtype=torch.long)
    kinds[0, places] = torch.tensor(types)
    embeds = spliced.embedded(backbone, vectors, row, split)
    return backbone.bert(inputs_embeds=embeds, token_type_ids=kinds).last_hidden_state[0, places]


@pytest.mark.parametrize("position", SPLITS)
def test_pairs_of_texts_keep_their_types(position, tmp_path):
    backbone, tokenizer = tiny.bert(BertForSequenceClassification, num_labels=3), spliced.tokenizer()
    model = spliced.prompted(backbone, position)
    data = Dataset.from_dict(
        {"input_ids": PAIRS, "token_type_ids": TYPES, "label": [0, 2, 1], "note": ["x"] * 3}
    )

    def loss(vectors, pairs=TYPES):
        states = [
            bert_rows(backbone, row, types, SPLITS[position], vectors)
            for row, types in zip(PAIRS, pairs, strict=True)
        ]
        logits = torch.cat([backbone.classifier(backbone.bert.pooler(rows[None])) for rows in states])
        return cross_entropy(logits, torch.tensor([0, 2, 1]))

    alike = loss(model.prompt.vectors, [[0] * len(row) for row in PAIRS])
    assert (loss(model.prompt.vectors) - alike).abs() > 1e-3  # types matter
    assert_trained(trainer_of(model, data, tmp_path, DataCollatorWithPadding(tokenizer)), loss)


@pytest.mark.parametrize("position", SPLITS)
def test_a_question_answering_head_gets_its_loss(position, tmp_path):
    backbone, rows = tiny.bert(BertForQuestionAnswering), [row[:3] for row in PAIRS]
    model, tokenizer = spliced.prompted(backbone, position), spliced.tokenizer()
    kinds, starts, ends = [[0, 1, 1], [0, 0, 1], [0, 0, 0]], [1, 0, 2], [2, 1, 2]
    columns = dict(input_ids=rows, token_type_ids=kinds, start_positions=starts, end_positions=ends)

    def loss(vectors):
        states = [
            bert_rows(backbone, row, types, SPLITS[position], vectors)
            for row, types in zip(rows, kinds, strict=True)
        ]
        start, end = backbone.qa_outputs(torch.stack(states)).unbind(-1)
        return (cross_entropy(start, torch.tensor(starts)) + cross_entropy(end, torch.tensor(ends))) / 2

    trainer = trainer_of(model, Dataset.from_dict(columns), tmp_path, DataCollatorWithPadding(tokenizer))
    start, end = trainer.predict(trainer.eval_dataset).predictions
    assert start.shape == end.shape == (3, 3)
    assert_trained(trainer, loss)


# ---- collators -----------------------------------------------------------------------------------------------------


def test_the_collator_asks_only_an_encoder_decoder_for_decoder_inputs():
    features = [{"input_ids": row, "labels": row} for row in ROWS]
    for make in (tiny.gpt2, tiny.llama, lambda: tiny.bert(BertForSequenceClassification)):
        backbone = make()
        model = spliced.prompted(backbone, "prefix")
        found = DataCollatorForSeq2Seq(spliced.tokenizer(), model)([dict(one) for one in features])
        wanted = DataCollatorForSeq2Seq(spliced.tokenizer(), backbone)([dict(one) for one in features])
        assert set(found) == set(wanted) == {"input_ids", "attention_mask", "labels"}
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    backbone = tiny.t5()
    model = spliced.prompted(backbone, "prefix")
    found = DataCollatorForSeq2Seq(spliced.tokenizer(), model)(features)
    shifted = backbone.prepare_decoder_input_ids_from_labels(labels=found["labels"])
    assert torch.equal(found["decoder_input_ids"], shifted)


# ---- encoder-decoders ----------------------------------------------------------------------------------------------


def t5_by_hand(model, split, way):
    backbone, ends = model.backbone, [[*question, tiny.EOS] for question in QUESTIONS]

    def loss(vectors):
        logits = [
            backbone(
                inputs_embeds=spliced.embedded(backbone, vectors, row, split, behind=1),
                labels=torch.tensor([answer]),
            ).logits[0]
            for row, answer in zip(ends, ANSWERS, strict=True)
        ]
        targets = torch.tensor(sum(ANSWERS, []))
        return (smoothed if way == "smoothed" else cross_entropy)(torch.cat(logits), targets)

    return loss


def decoded_loss(outputs, labels, num_items_in_batch=None):
    total = cross_entropy(
        outputs["logits"].flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)


def answered():
    return Dataset.from_dict({"input_ids": [[*row, tiny.EOS] for row in QUESTIONS], "labels": ANSWERS})


@pytest.mark.parametrize("position", SPLITS)
@pytest.mark.parametrize("way", WAYS)
def test_an_encoder_decoder_is_trained_as_by_hand(position, way, tmp_path):
    model, tokenizer = spliced.prompted(tiny.t5(), position), spliced.tokenizer()
    options = {"compute_loss_func": decoded_loss} if way == "outside" else WAYS[way]
    trainer = trainer_of(model, answered(), tmp_path, DataCollatorForSeq2Seq(tokenizer, model), **options)
    assert_trained(trainer, t5_by_hand(model, SPLITS[position], way))


def predicted(trainer, count, **options):
    found = trainer.predict(trainer.eval_dataset, max_new_tokens=count, do_sample=False, **options)
    return found.predictions, found.metrics["test_loss"]


@pytest.mark.parametrize("position", SPLITS)
def test_a_seq2seq_trainer_generates_with_t5(position, tmp_path):
    backbone, tokenizer, split = tiny.t5(), spliced.tokenizer(), SPLITS[position]
    model = spliced.prompted(backbone, position)
    trainer = trainer_of(
        model,
        answered(),
        tmp_path,
        DataCollatorForSeq2Seq(tokenizer, model),
        kind=Seq2SeqTrainer,
        settings={"predict_with_generate": True},
        processing_class=tokenizer,
    )
    found, loss = predicted(trainer, 5)
    for row, tokens in zip(QUESTIONS, found, strict=True):
        full = torch.tensor([spliced.splice([*row, tiny.EOS], split, behind=1)[0]])
        wanted = backbone.generate(full, max_new_tokens=5, do_sample=False)[0].tolist()
        assert tokens.tolist()[: len(wanted)] == wanted and set(tokens[len(wanted) :]) <= {tiny.PAD}
    assert loss == pytest.approx(by_hand(model, t5_by_hand(model, split, "own"))[0], rel=1e-5)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_seq2seq_trainer_generates_with_a_decoder_only_model(kind, tmp_path):
    """New tokens behind the whole input, whatever its labels; the generation config may come from the arguments."""
    backbone, tokenizer = tiny.gpt2() if kind == "gpt2" else tiny.llama(), spliced.tokenizer("left")
    model = spliced.prompted(backbone, "prefix")
    trainer = trainer_of(
        model,
        Dataset.from_dict({"input_ids": ROWS, "labels": LABELS}),
        tmp_path,
        DataCollatorForSeq2Seq(tokenizer, model),
        kind=Seq2SeqTrainer,
        settings={
            "predict_with_generate": True,
            "generation_config": GenerationConfig(max_new_tokens=4, do_sample=False, pad_token_id=tiny.PAD),
        },
        processing_class=tokenizer,
    )
    assert model.generation_config is backbone.generation_config
    assert backbone.generation_config.max_new_tokens == 4
    found = trainer.predict(trainer.eval_dataset)
    wanted = [spliced.continuation(backbone, row, len(WORDS)) for row in ROWS]
    assert found.predictions[:, :4].tolist() == wanted
    value = by_hand(model, causal_by_hand(model, len(WORDS), behind=[0] * len(ROWS)))[0]
    assert found.metrics["test_loss"] == pytest.approx(value, rel=1e-5)


# ---- the prompt's own part of a loss -------------------------------------------------------------------------------


COSTLY = dict(size="task", size_cost=50.0)


def costly(**options):
    torch.manual_seed(0)
    return dp.prompted(tiny.t5(), dp.PromptConfig(length=3, **tiny.SAMPLED | options))


@pytest.mark.parametrize("options", [COSTLY, {"position": "task", "estimator": "score-function"},
                                     {"position": "instance", "estimator": "exact"}])  # fmt: skip
@pytest.mark.parametrize("way", ["outside", "smoothed"])
def test_a_loss_outside_that_would_lack_the_prompts_part_is_refused(options, way, tmp_path):
    model, tokenizer = costly(**options), spliced.tokenizer()
    settings = {"compute_loss_func": decoded_loss} if way == "outside" else WAYS[way]
    trainer = trainer_of(model, answered(), tmp_path, DataCollatorForSeq2Seq(tokenizer, model), **settings)
    with pytest.raises(ValueError, match="loss_outside"):
        trainer.train()


@pytest.mark.parametrize("inside", [True, False])
def test_the_cost_of_a_size_is_in_every_loss(inside):
    """By hand: the cost of the expected size, ``size_cost * E[n] / l``, beside the cross-entropy of the sample."""
    model = costly(**COSTLY).train()
    with torch.no_grad():
        model.prompt.size.controller.logits.copy_(torch.tensor([[0.5, -1.0, 0.0, 1.0]]))
    ids, mask = spliced.padded([[*row, tiny.EOS] for row in QUESTIONS])
    words = torch.tensor([[7], [3], [7], [11]])
    decoder = torch.full_like(words, tiny.PAD)
    expected = model.prompt.size.controller.logits.softmax(1) @ torch.arange(4.0) / 3 * 50.0
    torch.manual_seed(1)
    if inside:
        output = model(ids, mask, labels=words)
        wanted = cross_entropy(output.logits[:, 0], words[:, 0]) + expected
        assert_close(output.loss, wanted[0], rtol=1e-5, atol=0, check_dtype=False)
        return
    model.loss_outside = True
    output = model(ids, mask, decoder_input_ids=decoder)
    loss = dp.LabelWordLoss([7, 3, 11])
    wanted = cross_entropy(output.logits[:, 0][:, [7, 3, 11]].float(), torch.tensor([0, 1, 0, 2])) + expected
    assert_close(loss(output, words), wanted[0], rtol=1e-5, atol=0, check_dtype=False)


@pytest.mark.parametrize("estimator", ["score-function", "exact"])
def test_label_words_train_the_estimators_that_compare_losses(estimator, tmp_path):
    model, tokenizer = costly(position="task", estimator=estimator), spliced.tokenizer()
    model.loss_outside = True
    data = Dataset.from_dict(
        {"input_ids": [[*row, tiny.EOS] for row in QUESTIONS], "labels": [[7], [3], [7], [11]]}
    )
    logits = model.prompt.position.controller.logits
    trainer = trainer_of(
        model,
        data,
        tmp_path,
        DataCollatorForSeq2Seq(tokenizer, model),
        compute_loss_func=dp.LabelWordLoss([7, 3, 11]),
    )
    start, vectors = logits.detach().clone(), model.prompt.vectors.detach().clone()
    losses = []
    with torch.no_grad():  # the exact gradient of the expected loss: every split at its chance
        for split in range(4):
            fixed = dp.prompted(
                model.backbone, dp.PromptConfig(length=3, position=split), vectors=vectors
            ).eval()
            ids, mask = spliced.padded([[*row, tiny.EOS] for row in QUESTIONS])
            out = fixed(ids, mask, decoder_input_ids=torch.full((4, 1), tiny.PAD)).logits[:, 0][:, [7, 3, 11]]
            losses.append(cross_entropy(out, torch.tensor([0, 1, 0, 2])))
    chances, losses = start[0].softmax(0), torch.stack(losses)
    wanted = chances * (losses - (chances * losses).sum())
    trainer.train()
    moved = start - logits.detach()
    if estimator == "exact":
        assert_close(moved[0].double(), wanted.double(), rtol=1e-4, atol=1e-6)
    assert moved.abs().max() > 1e-4 and abs(float(moved.sum())) < 1e-5


# ---- other habits of the Trainer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny.gpt2, tiny.llama, tiny.t5])
def test_noise_on_the_embeddings_is_taken_away_again(make, tmp_path):
    """NEFTune adds its noise to embeddings in training mode alone, and a frozen backbone stays in evaluation."""
    backbone, tokenizer = make(), spliced.tokenizer()
    model = spliced.prompted(backbone, "prefix")
    data = answered() if make is tiny.t5 else Dataset.from_dict({"input_ids": ROWS, "labels": LABELS})
    collator = DataCollatorForSeq2Seq(tokenizer, model)
    trainer = trainer_of(model, data, tmp_path, collator, settings={"neftune_noise_alpha": 5})
    table = backbone.get_input_embeddings()
    if make is tiny.t5:
        _, slope = by_hand(model, t5_by_hand(model, len(WORDS), "own"))
    else:
        _, slope = by_hand(model, causal_by_hand(model, len(WORDS), behind=[0] * len(ROWS)))
    assert_close(gradient(trainer), slope, rtol=1e-4, atol=1e-6)
    assert not table._forward_hooks and not hasattr(table, "neftune_noise_alpha")
