"""The tokenizer of t5-mini: lower-case unigram pieces with T5's conventions, trained on the pretraining text.

Every word of the small world, of the instructions and of the answers is one piece, so that label words have distinct
first tokens. Punctuation stands alone, digits too; pad 0, </s> 1, <unk> 2, then the sentinels <extra_id_0>...
"""

import json
import string

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ..tasks.documentation import LIBRARY_WORDS, PRETRAINING_LIBRARIES, extract
from ..tasks.world import vocabulary
from .instructions import INSTRUCTIONS

SENTINELS = 32
SPECIAL = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in range(SENTINELS))]


def pipeline(model):
    """A `tokenizers` pipeline around a model: lower case, single spaces, punctuation and digits alone."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Metaspace(prepend_scheme="always"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer


def fixed_words():
    """Words that must be one piece each."""
    instructions = (text for group in INSTRUCTIONS.values() for text in group)
    words = [word for text in instructions for word in text.split() if word.isalnum()]
    frame = "signature summary first second passage sentence hypothesis premise paragraph question answer word".split()
    return list(dict.fromkeys((*vocabulary(), *words, *frame, *LIBRARY_WORDS.values())))


def documentation_text():
    """The pretraining part of the real text."""
    for library in PRETRAINING_LIBRARIES:
        for entry in extract(library):
            yield entry["signature"]
            yield from dict.fromkeys((entry["summary"], *entry["passages"]))


def build(size=4096):
    """Trains the tokenizer and wraps it for transformers (save_pretrained makes it loadable by AutoTokenizer)."""
    trainee = pipeline(models.Unigram())
    words = [word for word in fixed_words() if word.isalpha()] + [*string.punctuation, *string.digits]
    trainer = trainers.UnigramTrainer(vocab_size=size, show_progress=False)
    trainee.train_from_iterator(documentation_text(), trainer)
    learned = [tuple(piece) for piece in json.loads(trainee.to_str())["model"]["vocab"]]
    best = max(score for _, score in learned if score < 0) + 1.0  # a whole word beats any split of it
    pieces = [(name, 0.0) for name in SPECIAL] + [("\u2581" + word, best) for word in words]
    known = {name for name, _ in pieces}
    pieces += [(name, score) for name, score in learned if name not in known and name != "<unk>"][
        : size - len(pieces)
    ]
    return wrapped(pieces, SPECIAL)


def wrapped(pieces: list[tuple[str, float]], special: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of these pieces and their scores for transformers, with T5's conventions; ``special`` are its special
    tokens, of which the pieces begin with <pad>, </s> and <unk>."""
    tokenizer = pipeline(models.Unigram(pieces, unk_id=special.index("<unk>")))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", special.index("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=special[3:], model_max_length=512, clean_up_tokenization_spaces=False,
    )  # fmt: skip
