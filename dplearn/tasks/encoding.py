"""How the examples of a text task become the inputs of a model: encoder-decoder, decoder-only or classifier.

`Task.encode` calls this. All forms share one way to shorten: what may be cut is cut at a word, the rest stays whole.
"""

import logging
import string
from collections.abc import Mapping, Sequence
from typing import Any

from dplearn.checks import refuse, shown

SEQ2SEQ, CAUSAL, CLASSIFIER = "seq2seq", "causal", "classifier"
logger = logging.getLogger("dplearn.tasks")


class Encoded(list):
    """The encoded examples of a split, a list of dicts, and how many of them had to be shortened: ``cut``."""

    cut: int = 0


def template_fields(template: str) -> tuple[str, ...]:
    """The field names of a format string, in order, each once.

    >>> template_fields("question: {question} answer: {answer}. text: {text}")
    ('question', 'answer', 'text')
    """
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    return tuple(dict.fromkeys(names))


def fill(name: str, template: str, example: Mapping) -> str:
    """A template with the text fields of an example; ``name`` is the task's, for the error."""
    fields = template_fields(template)
    missing = [field for field in fields if field not in example]
    if missing:
        raise ValueError(
            f"{name}: example with fields {sorted(example)} lacks {missing}: expected all fields "
            f"of the template, {list(fields)}"
        )
    return template.format_map({field: example[field] for field in fields})


def cut(text: str, length: int) -> str:
    """The longest start of `text` with at most `length` characters that does not end inside a word.

    A first word that is itself too long is cut inside, so that something of it is kept.

    >>> cut("a red ball", 9), cut("a red ball", 5), cut("unbelievable", 2)
    ('a red', 'a red', 'un')
    """
    if len(text) <= length:
        return text
    head = text[:length]
    inside_word = not text[length].isspace() and not head[-1:].isspace()
    if inside_word and len(head.split()) > 1:
        head = head.rsplit(maxsplit=1)[0]
    return head.rstrip()


def form_of(model: Any) -> str:
    """How a model, bare or with a prompt, reads a task: "seq2seq", "causal" or "classifier"; None: "seq2seq".

    Raises
    ------
    TypeError : it has neither a head for the next word nor one for the class of a whole text.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> size = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    >>> form_of(LlamaForCausalLM(LlamaConfig(**size)))
    'causal'
    """
    if model is None:
        return SEQ2SEQ
    from transformers.models.auto import modeling_auto as auto

    model = _plain(model)
    kinds = {parent.__name__ for parent in type(model).__mro__}
    if kinds & set(auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()):
        return CLASSIFIER
    generates = getattr(model, "can_generate", lambda: False)()
    if generates:
        return SEQ2SEQ if model.config.is_encoder_decoder else CAUSAL
    raise TypeError(
        f"model is a {type(model).__name__}, expected one that says the next word (...ForConditionalGeneration, "
        "...ForCausalLM) or classifies a text (...ForSequenceClassification)"
    )


def _plain(model: Any) -> Any:
    return model.backbone if _has_prompt(model) else model


def _has_prompt(model: Any) -> bool:
    from dplearn.model import PromptedModel

    return isinstance(model, PromptedModel)


def known_tokens(tokenizer: Any, text: str, what: str) -> list[int]:
    """The tokens of a label word or an answer prefix; an unknown token among them is an error."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids or tokenizer.unk_token_id in ids:
        raise ValueError(f"{what} {text!r} has tokens {ids}: expected text that this tokenizer knows")
    return ids


def word_id(tokenizer: Any, word: str, what: str, form: str) -> int:
    """The token that stands for a label word.

    Encoder-decoder: its first token. Decoder-only: the one token that is the word with the space before it, as it
    follows text; a word of several tokens is an error, since the first one alone may say something else.
    """
    if form == SEQ2SEQ:
        return known_tokens(tokenizer, word, what)[0]
    spaced = known_tokens(tokenizer, f" {word}", what)
    if len(spaced) == 1:
        return spaced[0]
    # SentencePiece puts a space of its own before every text, so there the bare word is the spaced one.
    bare = known_tokens(tokenizer, word, what)
    if len(bare) == 1 and tokenizer.convert_ids_to_tokens(bare)[0].startswith("▁"):
        return bare[0]
    raise ValueError(
        f"{what} {word!r} has {len(spaced)} tokens behind a space, "
        f"{tokenizer.convert_ids_to_tokens(spaced)}: expected a word that is one token of this tokenizer"
    )


def encode(task: Any, tokenizer: Any, split: str, model: Any, max_length: int, answer_prefix: str) -> Encoded:
    """The examples of a split for a model; see `Task.encode`."""
    examples, form = task.examples(split), form_of(model)
    _check_prefix(task, tokenizer, answer_prefix, form)
    answers = None if form == CLASSIFIER else [[i] for i in task.word_ids(tokenizer, model)]
    if answers is not None and form == SEQ2SEQ and answer_prefix:
        prefix = known_tokens(tokenizer, answer_prefix, "answer_prefix")
        answers = [prefix + answer for answer in answers]
    rows = Encoded(_inputs(task, tokenizer, examples, form, answer_prefix))
    for number, example in enumerate(examples):
        if len(rows[number]["input_ids"]) > max_length:
            rows[number] = _shorten(task, tokenizer, example, form, answer_prefix, max_length)
            rows.cut += 1
        rows[number]["labels"] = example["label"] if answers is None else list(answers[example["label"]])
    if form == CAUSAL and not _has_prompt(model):
        for row in rows:  # only a prompt has something that may stand before the cue
            del row["keep_last"]
    if rows.cut:
        logger.warning(
            "%s: %d of %d examples of %r had more than max_length=%d tokens and were cut",
            task.name, rows.cut, len(rows), split, max_length,
        )  # fmt: skip
    return rows


def _check_prefix(task: Any, tokenizer: Any, answer_prefix: str, form: str) -> None:
    fields = template_fields(answer_prefix)
    if form == CLASSIFIER and answer_prefix:
        refuse("answer_prefix", answer_prefix, "'': a classifier reads no word and no cue for one")
    if form == SEQ2SEQ and fields:
        refuse("answer_prefix", answer_prefix, "text without fields: an encoder-decoder starts with it")
    if form == CAUSAL and answer_prefix and not fields:
        known_tokens(tokenizer, answer_prefix, "answer_prefix")
    if form == CAUSAL and answer_prefix[-1:].isspace():
        refuse("answer_prefix", answer_prefix, "no space at its end: the label words bring theirs")
    unknown = [field for field in fields if field not in task.fields]
    if unknown:
        refuse("answer_prefix", answer_prefix, f"fields out of {list(task.fields)}")


def _inputs(task: Any, tokenizer: Any, examples: Sequence[Mapping], form: str, cue: str) -> list[dict]:
    """What the model reads of each example, all tokens of it."""
    if form == CLASSIFIER:
        parts = [[fill(task.name, part, e) for e in examples] for part in task.pair or (task.template,)]
        batch = tokenizer(*parts, verbose=False)
        return [{name: list(batch[name][i]) for name in batch} for i in range(len(examples))]
    rows = [list(ids) for ids in tokenizer([task.text(e) for e in examples], verbose=False)["input_ids"]]
    if form == SEQ2SEQ:
        return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows]
    cues: list[list[int]] = [[]] * len(rows)
    if cue:
        texts = [fill(task.name, cue, e) for e in examples]
        cues = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [
        {"input_ids": [*ids, *last], "attention_mask": [1] * (len(ids) + len(last)), "keep_last": len(last)}
        for ids, last in zip(rows, cues)
    ]


def _shorten(task: Any, tokenizer: Any, example: Mapping, form: str, cue: str, max_length: int) -> dict:
    """The inputs of one example, with the fields that may be cut at the largest number of characters that fits."""
    kept = template_fields(cue)
    fields = [field for field in task.cuttable or task.fields if field not in kept]

    def inputs(limit: int) -> Any:
        short = {**example, **{field: cut(example[field], limit) for field in fields}}
        return _inputs(task, tokenizer, [short], form, cue)[0]

    low, high = 0, max((len(example[field]) for field in fields), default=0)
    best = inputs(low)
    if len(best["input_ids"]) > max_length:
        emptied = f" with nothing in {', '.join(fields)}" if fields else ", of which nothing may be cut"
        raise ValueError(
            f"{task.name}: max_length={max_length}: expected at least {len(best['input_ids'])}, the tokens of the "
            f"example {shown(dict(example))}{emptied}"
        )
    while low + 1 < high:  # `low` fits, `high` does not: halve the gap
        middle = (low + high) // 2
        shortened = inputs(middle)
        if len(shortened["input_ids"]) <= max_length:
            low, best = middle, shortened
        else:
            high = middle
    return best
