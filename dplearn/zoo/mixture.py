"""What t5-mini is pretrained on: seeded streams of (input text, target text), one per skill, and how they are mixed.

Dense streams carry many answers per sequence (this is what makes binding learnable in minutes); instructed streams put
an instruction before, after or around a task's bare text; the bare stream answers by a coin, so that without an
instruction the model is at chance by construction. A prompt that was never trained is no instruction either: bare text
often stands among random vectors (the mark NOISE), and so does, less often, instructed text.
"""

import random
import zlib

from ..tasks.documentation import LIBRARY_WORDS
from ..tasks.world import ASKING, FAMILIES, NEW_PEOPLE, PEOPLE, TELLING, WONDERING, World, join
from .instructions import instruct

SENTINEL = "<extra_id_{}>"
NOISE = SENTINEL.format(
    31
)  # a mark in a text; pretraining puts a random vector there (never the sentinel itself)
ANSWER_WORDS = ("yes", "no", "maybe")


def answered(rng, text, answer):
    """(input, target) with the answer at the first sentinel; the input shows the sentinel half of the time."""
    shown = f" {SENTINEL.format(0)}" if rng.random() < 0.3 else ""
    return text + shown, f"{SENTINEL.format(0)} {answer}"


def among_noise(rng, text, most):
    """The text with 1..most random vectors before, after or around it, as a prompt that was never trained."""
    count = rng.randint(1, most)
    before = rng.choice((0, count, rng.randint(0, count)))
    return " ".join([NOISE] * before + [text] + [NOISE] * (count - before))


def filled(pieces):
    """Joins text pieces and ("?", answer) holes into (input, target) with numbered sentinels."""
    inputs, target = [], []
    for piece in pieces:
        if isinstance(piece, tuple):
            mark = SENTINEL.format(len(target))
            target.append(f"{mark} {piece[1]}")
            inputs.append(mark)
        else:
            inputs.append(piece)
    return " ".join(inputs), " ".join(target)


# Dense streams: the answers are recoverable only by binding.


def recall(rng, rows):
    """ "a b c . d e f . | d <0> f . a b <1> ." - rows of three words, restated in another order with one hole each."""
    pieces = [f"{' '.join(row)} ." for row in rows] + ["|"]
    for row in rng.sample(rows, len(rows)):
        hidden = rng.randrange(3)
        shown = [place for place in range(3) if place != hidden]
        if rng.random() < 0.3:  # show one word only
            shown = [rng.choice(shown)]
        pieces += [
            (None, row[place]) if place == hidden else row[place] for place in sorted([hidden, *shown])
        ]
        pieces.append(".")
    return filled(pieces)


def recall_short(world):
    """ "anna red ball . ben blue cup . | ben <0> cup . anna red <1> ." - the first rung."""
    rows = world.scene(world.random.randint(2, 5))
    return recall(world.random, [(row["person"], row["colour"], row["thing"]) for row in rows])


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


def value_or_person(rng, form):
    """Which of the two a restated sentence hides: mostly the value."""
    return "{p}" if rng.random() < 0.25 else "{v}"


def recall_told(world, hide=value_or_person, most=2):
    """The facts in sentences, then restated in other words and another order with values masked.

    hide : as :func:`value_or_person`.  most : kinds of facts that are restated of one row; None: all that are told.
    """
    rng = world.random
    extra = rng.choice((None, "place", "mood", "time"))
    rows = world.scene(rng.randint(2, 4), extra)
    pieces = [join(world.tell(rows, extra))]
    for row in rng.sample(rows, len(rows)):
        kinds = [kind for kind in ("thing", "colour", extra) if kind]
        for kind in rng.sample(kinds, rng.randint(1, most or len(kinds))):
            pieces += restated(world, row, kind, hide)
    return filled(pieces)


def restated(world, row, kind, hide=value_or_person):
    """One value of a row: as a statement, a wh-question or a who-question, with the value or the person masked."""
    rng = world.random
    if rng.random() < 0.4:
        return [world.form(WONDERING[kind]).format(p=row["person"]), (None, row[kind])]
    form = world.form(TELLING[kind])
    hidden = hide(rng, form)
    words = {"{p}": row["person"], "{v}": row[kind]}
    return [(None, words[w]) if w == hidden else words.get(w, w) for w in form.split()] + ["."]


def verdict(rng, holds, asked, kind, correct):
    """The hole after a claim: "? yes" or "? no", or with `correct` "! yes" or the value that would be right.

    Giving the right value is the bridge from recall to judgement.
    """
    if correct:
        return ["!", (None, "yes" if holds else asked[kind])]
    return ["?", (None, "yes" if holds else "no")]


def judge_short(world):
    """Short facts, then several short claims, each judged (or corrected) at its sentinel."""
    rng, rows = world.random, world.scene(world.random.randint(2, 4))
    pieces = [f"{row['person']} {row['colour']} {row['thing']} ." for row in rows] + ["|"]
    correct = rng.random() < 0.4
    for _ in range(rng.randint(3, 5)):
        holds, kind = rng.random() < 0.5, rng.choice(("colour", "thing"))
        asked, named = world.pair(rows, kind, holds)
        pieces += [asked["person"], named[kind], *verdict(rng, holds, asked, kind, correct)]
    return filled(pieces)


def judge_told(world):
    """Facts in sentences, then several questions or claims, each judged (or corrected) at its sentinel."""
    rng = world.random
    extra = rng.choice((None, "place", "mood", "time"))
    rows = world.scene(rng.randint(2, 3), extra)
    pieces = [join(world.tell(rows, extra))]
    correct = rng.random() < 0.4
    for _ in range(rng.randint(2, 4)):
        holds, kind = rng.random() < 0.5, rng.choice([kind for kind in ("thing", "colour", extra) if kind])
        asked, named = world.pair(rows, kind, holds)
        words = dict(p=asked["person"], v=named[kind])
        if rng.random() < 0.3:
            claim = world.form(WONDERING[kind]).format(p=asked["person"]) + " " + named[kind]
        elif rng.random() < 0.5:
            claim = world.form(TELLING[kind]).format(**words)
        else:
            claim = world.form(ASKING[kind]).format(**words).removesuffix(" ?")
        pieces += [claim, *verdict(rng, holds, asked, kind, correct)]
    return filled(pieces)


def judge_open(world):
    """Several claims about facts of which one is not told for one person: yes, no or maybe."""
    rng = world.random
    kind = rng.choice(("colour", "place", "mood", "time"))
    rows = world.scene(3, kind if kind != "colour" else None)
    silent = rng.choice(rows)
    silent.pop(kind)
    pieces = [join(world.tell(rows, kind))]
    for _ in range(rng.randint(2, 4)):
        answer = rng.choice(("yes", "no", "maybe"))
        asked, named = world.pair(rows, kind, answer == "yes")
        asked = silent if answer == "maybe" else asked
        claim = world.form(TELLING[kind]).format(p=asked["person"], v=named[kind])
        pieces += [claim, "?", (None, answer)]
    return filled(pieces)


def judge_denied(world):
    """Several claims about a mood that is told of some people and denied of others."""
    rng = world.random
    rows = world.scene(rng.randint(2, 3), "mood", same=True)
    pieces = [join(world.tell(rows, "mood"))]
    for row in rng.sample(rows, len(rows)):
        form = world.form(TELLING["mood"] if rng.random() < 0.5 else ASKING["mood"])
        claim = form.format(p=row["person"], v=row["mood"]).removesuffix(" ?")
        pieces += [claim, "?", (None, "no" if row["denied"] else "yes")]
    return filled(pieces)


def senses(world):
    """Ambiguous words in sentences; the senses are asked at once or after both sentences. For the wic family."""
    rng, pieces = world.random, []
    for _ in range(rng.randint(1, 3)):
        example = world.wic(rng.randrange(2))
        one, two, same = ((None, example["answers"][key]) for key in ("sense1", "sense2", "wic"))
        if rng.random() < 0.4:
            pieces += [example["sentence1"], one, example["sentence2"], two]
            if rng.random() < 0.7:
                pieces += ["same ?", same]
        else:
            pieces += [example["sentence1"], example["sentence2"], f"word: {example['word']}"]
            asked = [("first ?", one), ("second ?", two), ("same ?", same)]
            for question in rng.sample(asked, rng.randint(1, 3)):
                pieces += question
    return filled(pieces)


def corrupt(rng, text, share=0.2):
    """T5's span corruption on words: about `share` of the words in spans of one to three."""
    words, pieces, position = text.split(), [], 0
    while position < len(words):
        span = rng.choice((1, 1, 2, 3))
        if rng.random() < share / 1.75 and not (pieces and isinstance(pieces[-1], tuple)):
            pieces.append((None, " ".join(words[position : position + span])))
            position += span
        else:
            pieces.append(words[position])
            position += 1
    if not any(isinstance(piece, tuple) for piece in pieces):
        pieces[-1] = (None, pieces[-1])
    return filled(pieces)


def told_corrupt(world):
    """Plain span corruption on a world passage (people outside instructed examples occur here)."""
    extra = world.random.choice((None, "place", "mood", "time"))
    rows = world.scene(world.random.randint(2, 4), extra)
    return corrupt(world.random, join(world.tell(rows, extra)))


def bare_text(world, family, label=None):
    labels, _, template, _ = FAMILIES[family]
    label = world.random.randrange(len(labels)) if label is None else label
    example = world.example(family, label)
    return template.format(**example), example["answers"]


def skill_of(rng, family, answers, main=0.6):
    """The instruction to give: the family's own skill most of the time, else one of the others that fit."""
    own = {"color": "same_color", "owner": "same_owner"}.get(family, family)
    others = [skill for skill in answers if skill != own]
    return own if not others or rng.random() < main else rng.choice(others)


def ask(rng, skill, text, answer):
    """An instructed example; three in ten stand among random vectors, or have some between instruction and text."""
    place = rng.random()
    if place < 0.1:
        text = among_noise(rng, text, 6)
    text = instruct(rng, skill, text)
    if 0.1 <= place < 0.3:
        text = among_noise(rng, text, 12)
    return answered(rng, text, answer)


def instructed(world, family, main=0.6):
    text, answers = bare_text(world, family)
    skill = skill_of(world.random, family, answers, main)
    return ask(world.random, skill, text, answers[skill])


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


def bare(world, family):
    """Text without an instruction: the answer is a coin, whatever the text says."""
    text, _ = bare_text(world, family)
    return uninstructed(world.random, text, ANSWER_WORDS[:2] if family != "cb" else ANSWER_WORDS)


# Real text: span corruption and instructed self-supervised objectives on the pretraining libraries.


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
    inside = []
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


class Mixer:
    """Seeded examples of every stream.

    documents: entries of the pretraining libraries (see tasks.documentation). part: the part of the world's
    combinations to use; "validation" also takes the held-out 5 % of the documents.
    """

    def __init__(self, seed, documents, part="train"):
        self.random = random.Random(seed)
        self.world = World(self.random.random(), part)
        self.everyone = World(self.random.random(), part, PEOPLE + NEW_PEOPLE)
        for world in (self.world, self.everyone):
            world.random = self.random
        self.documents = [entry for entry in documents if held_out(entry) == (part != "train")]
        self.long_documents = [entry for entry in self.documents if len(entry["passages"]) > 1]
        self.by_library, self.long_by_library = {}, {}
        for entry in self.documents:
            self.by_library.setdefault(entry["library"], []).append(entry)
        for entry in self.long_documents:
            self.long_by_library.setdefault(entry["library"], []).append(entry)

    def example(self, stream):
        """One (input, target) of a stream in STREAMS."""
        return STREAMS[stream](self)

    def draw(self, weights, count):
        """`count` examples of a weighted mixture {stream: weight}."""
        chosen = self.random.choices(list(weights), list(weights.values()), k=count)
        return [self.example(stream) for stream in chosen]


def held_out(entry):
    return zlib.crc32(entry["summary"].encode()) % 20 == 0


STREAMS = {
    "recall_short": lambda mixer: recall_short(mixer.everyone),
    "recall_words": recall_words,
    "recall_told": lambda mixer: recall_told(mixer.everyone),
    "judge_short": lambda mixer: judge_short(mixer.world),
    "judge_told": lambda mixer: judge_told(mixer.world),
    "judge_open": lambda mixer: judge_open(mixer.world),
    "judge_denied": lambda mixer: judge_denied(mixer.world),
    "senses": lambda mixer: senses(mixer.world),
    "told_corrupt": lambda mixer: told_corrupt(mixer.everyone),
    **{family: lambda mixer, family=family: instructed(mixer.world, family) for family in FAMILIES},
    "bare": lambda mixer: bare(mixer.world, mixer.random.choice(tuple(FAMILIES))),
    "documents_corrupt": documents_corrupt,
    "signature": signature,
    "signature_clear": signature_clear,
    "signature_dense": signature_dense,
    "member": member,
    "next": follows,
    "field": field,
    "naming": naming,
    "bare_documents": bare_documents,
}
