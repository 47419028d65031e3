"""What llama-mini is pretrained on: streams of t5-mini's mixture and some of its own, as sequences read from the left.

A decoder-only model has no sentinels to fill: it reads a text up to the cue "<extra_id_0>" and then says the answer.
So a hole is filled in its place, cue first, and what it takes to know the answer has to stand before it. Streams whose
holes may come too early (restated rows and sentences) have versions here that hide the word said last.
"""

from __future__ import annotations

from ..tasks.world_words import COLOURS, FAMILIES, PEOPLE, POOLS, THINGS
from . import mixture
from .document_streams import long_words
from .holes import SENTINEL, filled
from .instructions import INSTRUCTIONS, instruct
from .world_streams import bare_text, recall_told

CUE = SENTINEL.format(0)
# What each equality is about.
FACTS = {"color": "colour", "owner": "person", "place": "place", "thing": "thing"}


def in_place(text: str, target: str) -> list[tuple[str, bool]]:
    """The sequence of a (text, target) with numbered sentinels: pieces (words, whether they are an answer).

    Each answer stands in its hole, behind the cue; where the text shows no sentinels, all stand at its end.

    >>> in_place("anna red <extra_id_0> . ben <extra_id_1>", "<extra_id_0> ball <extra_id_1> cup")
    [('anna red <extra_id_0>', False), ('ball', True), ('. ben <extra_id_0>', False), ('cup', True)]
    >>> in_place("red or blue ?", "<extra_id_0> no")
    [('red or blue ? <extra_id_0>', False), ('no', True)]
    """
    answers: list[list[str]] = []
    for word in target.split():
        if word == SENTINEL.format(len(answers)):
            answers.append([])
        else:
            answers[-1].append(word)
    pieces: list[tuple[str, bool]] = []
    words: list[str] = []
    given = 0
    for word in text.split():
        if given < len(answers) and word == SENTINEL.format(given):
            pieces += [(" ".join([*words, CUE]), False), (" ".join(answers[given]), True)]
            words, given = [], given + 1
        else:
            words.append(word)
    for answer in answers[given:]:
        pieces += [(" ".join([*words, CUE]), False), (" ".join(answer), True)]
        words = []
    return [*pieces, (" ".join(words), False)] if words else pieces


def recalled(rng, rows):
    """ "a b c . d e f . | f <0> d . a b <1> c <2> ." - rows, restated in another order, one word said and others asked.

    The words of a row stand in any order, so that what is asked may stand on either side of what is given.
    """
    pieces: list = [f"{' '.join(row)} ." for row in rows] + ["|"]
    for row in rng.sample(rows, len(rows)):
        words = list(row) if rng.random() < 0.5 else rng.sample(row, len(row))
        given = rng.choice((1, 1, 2))
        pieces += words[:given]
        pieces += [(None, word) for word in words[given : given + rng.choice((1, 2))]] + ["."]
    return filled(pieces)


def recall_short(world):
    """Short facts, "anna red ball .", restated: the first rung."""
    rows = world.scene(world.random.randint(2, 5))
    return recalled(world.random, [(row["person"], row["colour"], row["thing"]) for row in rows])


def said_last(rng, form):
    """Which of person and value a restated sentence hides: what it takes to know the answer stands before."""
    return max(("{p}", "{v}"), key=form.index)


def asked(world, family):
    """Several instructions behind one text of a family, each with its answer: many answers for one reading."""
    rng = world.random
    text, answers = bare_text(world, family)
    own = {"color": "same_color", "owner": "same_owner"}.get(family, family)
    skills = [own, *(skill for skill in answers if skill != own)]
    answers = {**answers, own: answers.get(own, answers.get(family))}
    pieces = [text]
    for skill in rng.sample(skills, rng.randint(1, len(skills))):
        pieces += behind(rng, skill, answers[skill])
    return filled(pieces)


def behind(rng, skill, answer):
    """One of the skill's instructions behind a text, and its answer."""
    return [f"{rng.choice(INSTRUCTIONS[skill]).replace(' |', '')} ?", (None, answer)]


def seen(mixer):
    """ "red <0> ball <1> red <2>" with no, no, yes: did the word stand before? Of the world or of the real text."""
    rng = mixer.random
    if rng.random() < 0.5:
        words = [word for pool in POOLS.values() for word in rng.sample(pool, 2)] + rng.sample(PEOPLE, 3)
    else:
        words = long_words(rng.choice(mixer.documents)["summary"]) or ["nothing"]
    return repeated(rng, words)


def seen_kind(mixer):
    """The same with words of one kind, which are closest to each other."""
    return repeated(mixer.random, mixer.random.sample(mixer.random.choice((COLOURS, THINGS)), 7))


def repeated(rng, words):
    """Some of the words one after the other, many of them more than once; asked whether each stood before."""
    rng.shuffle(words)
    pieces: list = []
    before: list[str] = []
    for _ in range(rng.randint(8, 14)):
        again = before and (rng.random() < 0.5 or not words)
        word = rng.choice(before) if again else words.pop()
        pieces += [word, (None, "yes" if word in before else "no")]
        before.append(word)
    return filled(pieces)


def two_rows(world):
    """Two facts with a place, "anna red ball barn . ben red cup barn .", and what they have in common."""
    wanted = {name: world.random.random() < 0.5 for name in FACTS}
    rows = world.two_facts(wanted)
    text = " ".join(f"{row['person']} {row['colour']} {row['thing']} {row['place']} ." for row in rows)
    return text, {name: "yes" if same else "no" for name, same in wanted.items()}


def equal_words(world):
    """Two short facts and what is equal in them, asked for by one word: the first rung of the equality tasks."""
    text, answers = two_rows(world)
    pieces = [text]
    for name in world.random.sample(list(answers), len(answers)):
        pieces += [f"{FACTS[name]} ?", (None, answers[name])]
    return filled(pieces)


def equal_lagging(world):
    """The same, asked for colours and things alone."""
    text, answers = two_rows(world)
    pieces = [text]
    for name in world.random.sample(("color", "thing"), 2):
        pieces += [f"{FACTS[name]} ?", (None, answers[name])]
    return filled(pieces)


def equal_short(world):
    """The same with instructions: one before, behind or around the facts, or several behind them."""
    rng = world.random
    text, answers = two_rows(world)
    if rng.random() < 0.4:
        name = rng.choice(list(answers))
        return filled([instruct(rng, f"same_{name}", text), (None, answers[name])])
    pieces = [text]
    for name in rng.sample(list(answers), rng.randint(2, 4)):
        pieces += behind(rng, f"same_{name}", answers[name])
    return filled(pieces)


def choose(mixer, families):
    return mixer.random.choice(tuple(families))


STREAMS = {
    "recall_short": lambda mixer: recall_short(mixer.everyone),
    "recall_told": lambda mixer: recall_told(mixer.everyone, said_last, most=None),
    **{name: mixture.STREAMS[name] for name in ("judge_short", "judge_told", "senses", *FAMILIES, "bare")},
    "seen": seen,
    "seen_kind": seen_kind,
    "equal_words": lambda mixer: equal_words(mixer.world),
    "equal_lagging": lambda mixer: equal_lagging(mixer.world),
    "equal_short": lambda mixer: equal_short(mixer.world),
    "asked_equal": lambda mixer: asked(mixer.world, choose(mixer, ("color", "owner"))),
    "asked": lambda mixer: asked(mixer.world, choose(mixer, ("boolq", "multirc", "rte", "cb", "wic"))),
}


class Mixer(mixture.Mixer):
    """Seeded examples of the streams here; arguments as of :class:`dplearn.zoo.mixture.Mixer`."""

    def example(self, stream):
        """One (text, target) of a stream in STREAMS."""
        return STREAMS[stream](self)
