"""The captions of clip-mini's pretraining, and the tokenizer that is trained on them."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch

from .vision_models import POSITIONS, VOCABULARY

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
TEMPLATES = (
    "{}",
    "an icon of {}",
    "a picture of {}",
    "{} , a small drawing",
    "this is a simple drawing that shows {}",
)


def learn_merges(counts: dict[str, int], room: int) -> list[tuple[str, str]]:
    """Byte-pair encoding of counted words: ``room`` merges, the most frequent pair first, ties in alphabetical order.

    The trainer of `tokenizers` orders ties differently in every process, so that a resumed run would exchange pieces.

    >>> learn_merges({"aab": 3, "ab": 2}, 2)
    [('a', 'b</w>'), ('a', 'ab</w>')]
    """
    parts = {word: [*word[:-1], word[-1] + "</w>"] for word in counts}
    frequency: Counter[tuple[str, str]] = Counter()
    holders: dict[tuple[str, str], set[str]] = defaultdict(set)

    def count(word, sign):
        for pair in zip(parts[word], parts[word][1:]):
            frequency[pair] += sign * counts[word]
            holders[pair].add(word)

    for word in parts:
        count(word, 1)
    merges: list[tuple[str, str]] = []
    while len(merges) < room:
        best = min(frequency, key=lambda pair: (-frequency[pair], pair), default=None)
        if best is None or frequency[best] <= 0:
            raise ValueError(f"room={room}: the words give {len(merges)} merges only")
        merges.append(best)
        for word in sorted(holders[best]):
            count(word, -1)
            old, new = parts[word], []
            while old:
                size = 2 if tuple(old[:2]) == best else 1
                new.append("".join(old[:size]))
                old = old[size:]
            parts[word] = new
            count(word, 1)
        del frequency[best]
    return merges


def build_tokenizer(texts: Sequence[str]):
    """A CLIP tokenizer (lower-case byte-level BPE, 2,048 pieces) trained on the names and the caption templates."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    backend, letters = CLIPTokenizer().backend_tokenizer, sorted(ByteLevel.alphabet())
    counts: Counter[str] = Counter()
    for text in (*texts, *[template.format("") for template in TEMPLATES] * 50):
        normal = backend.normalizer.normalize_str(text)
        counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
    # As in CLIP: letters, letters that end a word, merges in their order, and the two special tokens last.
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    merges = learn_merges(counts, VOCABULARY - 2 - len(pieces))
    pieces += ["".join(pair) for pair in merges]
    vocabulary = {name: i for i, name in enumerate(dict.fromkeys(pieces))}
    if len(vocabulary) != VOCABULARY - 2:
        raise ValueError(f"the names give {len(vocabulary)} pieces: expected {VOCABULARY - 2}")
    vocabulary |= {BOS: VOCABULARY - 2, EOS: VOCABULARY - 1}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=POSITIONS)


def tokenize(tokenizer, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask (B, T) of captions."""
    tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
