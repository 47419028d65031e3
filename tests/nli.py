"""A made task about pairs of sentences, with the tokenizers and the small BERT that read it, for tests."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from dplearn.tasks import Task

TEXT = ["answer: yes", "answer: no", "yes", "no", "premise: a dog ran home. hypothesis: a dog ran."] * 9


@cache
def byte_level():
    """A byte-level BPE tokenizer as GPT-2 and Llama 3 have it: a word with a space before it is another token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<pad>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


@cache
def pair_tokenizer():
    """[CLS] a [SEP] b [SEP] with segment numbers, as BERT has it; one token per known word."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"a b c dog cat ran home wet rain it".split()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_input_names=names
    )


def task(**changes):
    train = [
        {"premise": "a dog ran home", "hypothesis": "a dog ran", "label": 1},
        {"premise": "it ran", "hypothesis": "a cat ran home", "label": 0},
    ]
    fields = dict(
        name="made/nli",
        labels=("no", "yes"),
        words=("no", "yes"),
        template="premise: {premise} hypothesis: {hypothesis}",
        splits={"train": train},
        metric="accuracy",
        source="made here",
        cuttable=("premise",),
        pair=("{premise}", "{hypothesis}"),
    )
    return Task(**{**fields, **changes})


@cache
def bert(kind=BertForSequenceClassification):
    config = BertConfig(
        vocab_size=14,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=2,
    )
    return kind(config).eval()
