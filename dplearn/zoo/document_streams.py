"""Streams of real text: span corruption and instructed self-supervised objectives on the pretraining libraries."""

from ..tasks.documentation import LIBRARY_WORDS
from .holes import corrupt, filled
from .instructions import ask, uninstructed
from .world_streams import recall


def recall_words(mixer):
    """The same with words of the real text: to look for equal words in an open vocabulary."""
    rng, words = mixer.random, []
    count = 3 * rng.randint(2, 4)
    for _ in range(1000):
        word = rng.choice(long_words(rng.choice(mixer.documents)["summary"]) or ["nothing"])
        if word not in words:
            words.append(word)
        if len(words) == count:
            break
    return recall(rng, [tuple(words[place : place + 3]) for place in range(0, len(words) - 2, 3)])


def signature_text(entry, summary):
    return f"signature: {entry['signature']} summary: {summary}"


def documents_corrupt(mixer):
    entry = mixer.random.choice(mixer.documents)
    texts = [*entry["passages"], signature_text(entry, entry["summary"])]
    return corrupt(mixer.random, mixer.random.choice(texts))


def signature(mixer):
    """Does the summary fit the signature? Wrong summaries are from the same library."""
    rng, entry = mixer.random, mixer.random.choice(mixer.documents)
    fits = rng.random() < 0.5
    other = entry if fits else rng.choice(mixer.by_library[entry["library"]])
    return ask(rng, "signature", signature_text(entry, other["summary"]), "yes" if fits else "no")


def name_words(entry):
    """The longer words of an entry's name, which its summary often repeats."""
    return {word for word in entry["signature"].split(" ( ")[0].split() if len(word) > 3}


def shares_words(entry, summary):
    return bool(name_words(entry) & set(summary.lower().replace(".", " ").split()))


def clear_pair(mixer):
    """(entry, summary, whether it is its own): the own summary repeats a word of the name, a wrong one repeats none."""
    rng = mixer.random
    fits = rng.random() < 0.5
    for _ in range(10_000):
        entry = rng.choice(mixer.documents)
        other = entry if fits else rng.choice(mixer.by_library[entry["library"]])
        if shares_words(entry, entry["summary"]) and shares_words(entry, other["summary"]) == fits:
            return entry, other["summary"], fits
    raise ValueError(
        f"documents: {len(mixer.documents)} entries give no clear pair, expected names with words of their own"
    )


def signature_clear(mixer):
    """An easier rung of `signature`."""
    entry, summary, fits = clear_pair(mixer)
    return ask(mixer.random, "signature", signature_text(entry, summary), "yes" if fits else "no")


def long_words(text):
    return [
        word
        for word in text.lower().replace(".", " ").replace(",", " ").split()
        if len(word) > 3 and word.isalpha()
    ]


def member(mixer):
    """A sentence of real text, then words: is each of them in it? Looking for equal words, in an open vocabulary."""
    rng = mixer.random
    inside: list[str] = []
    while not inside:
        entry, other = rng.choice(mixer.documents), rng.choice(mixer.documents)
        inside = long_words(entry["summary"])
    outside = [word for word in long_words(other["summary"]) if word not in inside] or ["nothing"]
    pieces = [entry["summary"], "|"]
    for _ in range(rng.randint(3, 6)):
        holds = rng.random() < 0.5
        pieces += [rng.choice(inside if holds else outside), "?", (None, "yes" if holds else "no")]
    return filled(pieces)


def signature_dense(mixer):
    """Several short pairs of a function's name and a summary, each judged at its sentinel."""
    pieces = []
    for _ in range(3):
        entry, summary, fits = clear_pair(mixer)
        name, short = entry["signature"].split(" ( ")[0], " ".join(summary.split()[:9])
        pieces += [f"signature: {name} summary: {short}", "?", (None, "yes" if fits else "no")]
    return filled(pieces)


def follows(mixer):
    """Does the second passage follow the first? Wrong ones are second passages of the same library."""
    rng, entry = mixer.random, mixer.random.choice(mixer.long_documents)
    fits = rng.random() < 0.5
    other = entry if fits else rng.choice(mixer.long_by_library[entry["library"]])
    place = rng.randrange(len(entry["passages"]) - 1)
    second = entry["passages"][place + 1] if fits else rng.choice(other["passages"][1:])
    text = f"first: {entry['passages'][place]} second: {second}"
    return ask(rng, "next", text, "yes" if fits else "no")


def passage_text(rng, entry):
    """One passage, without words that hold the name of its library."""
    words = rng.choice([entry["summary"], *entry["passages"]]).split()
    return "passage: " + " ".join(word for word in words if entry["library"] not in word.lower())


def field(mixer):
    """Which field of work is a passage about? The answer stands for the library it is from."""
    entry = mixer.random.choice(mixer.by_library[mixer.random.choice(tuple(mixer.by_library))])
    return ask(mixer.random, "field", passage_text(mixer.random, entry), LIBRARY_WORDS[entry["library"]])


def naming(mixer):
    """The name of a function, as words, from its summary."""
    entry = mixer.random.choice(mixer.documents)
    words = entry["signature"].split(" ( ")[0].split()[:3]
    return ask(mixer.random, "name", f"summary: {entry['summary']}", " ".join(words))


def bare_documents(mixer):
    """Real text without an instruction: a coin again."""
    rng = mixer.random
    entry, other = rng.choice(mixer.documents), rng.choice(mixer.documents)
    texts = (signature_text(entry, rng.choice((entry, other))["summary"]), passage_text(rng, entry))
    return uninstructed(rng, rng.choice(texts))
