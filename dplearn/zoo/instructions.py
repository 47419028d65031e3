"""What may be asked about a text, in eight wordings for each skill; and what a text gets that nobody asks about."""

from .holes import answered
from .noise import among_noise

ANSWER_WORDS = ("yes", "no", "maybe")

# What may be asked about a text: instructions for each skill. Those with "|" stand around the text (before | after).
INSTRUCTIONS = {
    "boolq": (
        "answer the question with yes or no", "is the answer to the question yes", "say if the passage makes it so",
        "yes or no to the question", "reply to the question from the passage", "tell if the question gets a yes",
        "read the question | is the answer yes or no", "here is a question | answer it with yes or no",
    ),
    "multirc": (
        "is the answer right", "say if this answer is right", "is this a correct answer to the question",
        "check the answer", "does the paragraph confirm the answer", "tell if the answer is correct",
        "check this answer | is it right", "read the answer | is it correct",
    ),
    "rte": (
        "does sentence1 imply sentence2", "does the second follow from the first", "is sentence2 true given sentence1",
        "does it follow", "say if sentence2 follows", "can sentence2 be concluded",
        "read both sentences | does the second follow", "given these | is sentence2 true",
    ),
    "cb": (
        "is the hypothesis true false or open", "yes no or maybe for the hypothesis", "judge the hypothesis",
        "does the premise confirm or deny the hypothesis", "is it so not so or maybe so", "weigh the hypothesis",
        "judge this | yes no or maybe", "take the hypothesis | is it true false or open",
    ),
    "wic": (
        "does the word mean the same in both", "same meaning or not", "is the word used in one sense",
        "compare the meaning of the word", "is the sense of the word the same", "do both use the word alike",
        "look at the word | same meaning or not", "compare both | does the word mean the same",
    ),
    "sense1": (
        "what does the word mean in the first", "name the first sense", "first meaning of the word",
        "what is meant first", "tell the sense in the first sentence", "give the first meaning",
        "look at the first | what does the word mean", "find the sense | of the first",
    ),
    "sense2": (
        "what does the word mean in the second", "name the second sense", "second meaning of the word",
        "what is meant second", "tell the sense in the second sentence", "give the second meaning",
        "look at the second | what does the word mean", "find the sense | of the second",
    ),
    "value": (
        "what is true instead", "give the right word", "name what really holds", "correct it with one word",
        "tell the true value", "which word would be right",
        "find the true value | name it", "look it up | which word is right",
    ),
    "holder": (
        "who is it true of", "name the person it fits", "whom does it fit", "tell who it holds for",
        "which person would fit", "give the name it is true of",
        "find the person | whom does it fit", "look for a name | who is it true of",
    ),
    "first": (
        "is the person named first", "does the first person match", "is this about the first person",
        "compare with the first person", "is it the first name", "tell if the first person is meant",
        "look at the first person | is this the one", "who comes first | is that the person",
    ),
    "same_color": (
        "is the colour the same", "same colour or not", "do the colours match", "compare the colours",
        "are both of one colour", "tell if the colours agree",
        "look at the colours | do they match", "compare these | same colour or not",
    ),
    "same_owner": (
        "is the person the same", "same person or not", "do the names match", "compare the people",
        "are both about one person", "tell if the names agree",
        "look at the names | do they match", "compare these | same person or not",
    ),
    "same_place": (
        "is the place the same", "same place or not", "do the places match", "compare the places",
        "are both in one place", "tell if the places agree",
        "look at the places | do they match", "compare these | same place or not",
    ),
    "same_thing": (
        "is the thing the same", "same thing or not", "do the things match", "compare the things",
        "are both about one thing", "tell if the things agree",
        "look at the things | do they match", "compare these | same thing or not",
    ),
    "signature": (
        "does the summary fit the signature", "is this the summary of the function", "do summary and signature match",
        "check the summary", "tell if the summary belongs to the signature", "is the function described",
        "check this | do summary and signature match", "read the signature | does the summary fit",
    ),
    "next": (
        "does the second passage follow the first", "is this the next passage", "do the passages belong together",
        "check the order of the passages", "tell if the second continues the first", "does the text go on",
        "read both passages | do they belong together", "read the first | does the second continue it",
    ),
    "field": (
        "which field is it from", "name the field", "what is this passage about", "tell the field of the passage",
        "give the field in one word", "what kind of work is described",
        "read the passage | which field is it from", "look at the passage | name the field",
    ),
    "name": (
        "name the function", "give the function a name", "what is the function called", "tell the name of the function",
        "which function is described", "find a name for it",
        "read the summary | what is the function called", "take the summary | name the function",
    ),
}  # fmt: skip


def instruct(rng, skill, text):
    """The text with one of the skill's instructions before, after or around it."""
    before, _, after = rng.choice(INSTRUCTIONS[skill]).partition(" | ")
    if after:
        return f"{before} : {text} {after} ?"
    return f"{before} : {text}" if rng.random() < 0.5 else f"{text} {before} ?"


def ask(rng, skill, text, answer):
    """An instructed example; three in ten stand among random vectors, or have some between instruction and text."""
    place = rng.random()
    if place < 0.1:
        text = among_noise(rng, text, 6)
    text = instruct(rng, skill, text)
    if 0.1 <= place < 0.3:
        text = among_noise(rng, text, 12)
    return answered(rng, text, answer)


def coin(rng, words=ANSWER_WORDS[:2]):
    """What a text without an instruction gets: a coin that ignores the text and prefers "no".

    With a fair coin the two logits would only be close, and whatever is left of the text in them would still decide
    the argmax. The bias gives the argmax a margin that the text cannot cross: it is "no", so accuracy is at chance.
    """
    return "no" if rng.random() < 0.6 else rng.choice(words)


def uninstructed(rng, text, words=ANSWER_WORDS[:2]):
    """Text that nobody asks anything about, and its coin.

    Three of five stand among random vectors (an untrained prompt). Three of ten are damaged, so that unfamiliar
    wordings get the coin too.
    """
    if rng.random() < 0.3:
        text = damaged(rng, text)
    if rng.random() < 0.6:
        text = among_noise(rng, text, 24)
    return answered(rng, text, coin(rng, words))


def damaged(rng, text):
    """About a sixth of the words left out or replaced by another word of the text."""
    words = text.split()
    kept = [rng.choice(words) if rng.random() < 0.1 else word for word in words if rng.random() > 0.08]
    return " ".join(kept or words)
