"""The right value of a prompted text model: the plain model on the text with the prompt's words spliced in.

A prompt whose vectors are rows of the vocabulary is a prompt of words, so a prompted model must give what its backbone
gives for the longer text, one instance after the other, without padding. Nothing here calls the package but to make the
model that is tested.
"""

from functools import cache

import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

import dplearn as dp

WORDS = (41, 7, 29)
SPLITS = {"prefix": len(WORDS), "postfix": 0, 1: 1}
DECODERS = {"gpt2": cache(tiny.gpt2), "llama": cache(tiny.llama)}  # frozen, so that tests may share them


def prompted(backbone, position, **options):
    """A backbone with the prompt of the words, in evaluation mode."""
    config = dp.PromptConfig(length=len(WORDS), position=position, **options)
    vectors = backbone.get_input_embeddings()(torch.tensor(WORDS)).detach()
    return dp.prompted(backbone, config, vectors=vectors).eval()


def splice(row, split, behind=0):
    """Token ids of a text with its prompt, ``behind`` last tokens after it, and where each token of the text stands."""
    cut = len(row) - behind
    full = [*WORDS[:split], *row[:cut], *WORDS[split:], *row[cut:]]
    places = [split + t + (len(WORDS) - split if t >= cut else 0) for t in range(len(row))]
    return full, places


def embedded(backbone, vectors, row, split, behind=0):
    """The same as rows (1, S, d), for gradients with respect to the vectors (l, d)."""
    rows, cut = backbone.get_input_embeddings()(torch.tensor(row, dtype=torch.long)), len(row) - behind
    return torch.cat([vectors[:split], rows[:cut], vectors[split:], rows[cut:]])[None]


def predicting(places, total):
    """The rows whose logits are about the next token of the text, and the last row."""
    return [place - 1 for place in places[1:]] + [total - 1]


def causal_logits(backbone, row, split, behind=0, vectors=None):
    """(T, vocabulary): what a decoder-only model says about the token behind each token of the text."""
    full, places = splice(row, split, behind)
    if vectors is None:
        logits = backbone(input_ids=torch.tensor([full])).logits[0]
    else:
        logits = backbone(inputs_embeds=embedded(backbone, vectors, row, split, behind)).logits[0]
    return logits[predicting(places, len(full))]


def causal_loss(backbone, rows, labels, split, behind, vectors=None):
    """The mean over all labelled tokens of a batch. ``labels``: one list for each row, of its length."""
    losses = []
    for row, wanted, last in zip(rows, labels, behind, strict=True):
        logits = causal_logits(backbone, row, split, last, vectors)
        losses.append(
            cross_entropy(logits[:-1], torch.tensor(wanted[1:]), ignore_index=-100, reduction="none")
        )
        losses[-1] = losses[-1][torch.tensor(wanted[1:]) != -100]
    return torch.cat(losses).mean()


def continuation(backbone, row, split, behind=0, count=4):
    """The next ``count`` tokens by the backbone's own greedy generation."""
    ids = torch.tensor([splice(row, split, behind)[0]])
    out = backbone.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return out[0, ids.shape[1] :].tolist()


def padded(rows, side="right", fill=tiny.PAD, extra=0):
    """Token ids (or labels) of rows and their mask."""
    width = max(map(len, rows)) + extra
    ids, mask = torch.full((len(rows), width), fill), torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[number, where], mask[number, where] = torch.tensor(row, dtype=torch.long), 1
    return ids, mask


def tokenizer(side="right"):
    """A word-level tokenizer of the vocabulary of the tiny models: w3 .. w59."""
    words = ["<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(3, tiny.VOCABULARY))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side=side
    )
