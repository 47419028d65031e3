"""Streams of the small world: facts to recall, claims to judge, senses of words, and the tasks with instructions.

Dense streams carry many answers per sequence, which are recoverable only by binding (this is what makes binding
learnable in minutes). Instructed streams put an instruction before, after or around a task's bare text. The bare stream
answers by a coin.
"""

from ..tasks.world_scenes import join
from ..tasks.world_words import ASKING, FAMILIES, TELLING, WONDERING
from .holes import corrupt, filled
from .instructions import ANSWER_WORDS, ask, uninstructed


def recall(rng, rows):
    """ "a b c . d e f . | d <0> f . a b <1> ." - rows of three words, restated in another order with one hole each."""
    pieces: list = [f"{' '.join(row)} ." for row in rows] + ["|"]
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


def instructed(world, family, main=0.6):
    text, answers = bare_text(world, family)
    skill = skill_of(world.random, family, answers, main)
    return ask(world.random, skill, text, answers[skill])


def bare(world, family):
    """Text without an instruction: the answer is a coin, whatever the text says."""
    text, _ = bare_text(world, family)
    return uninstructed(world.random, text, ANSWER_WORDS[:2] if family != "cb" else ANSWER_WORDS)
