"""Tasks on which the place of a prompt decides the answer, with the right place known for every input.

A text says who has what and where: "anna keeps a red ball in the garden ." The backbone `place-mini`
(:mod:`dplearn.zoo.place`) reads the word "tell" BEFORE such a text as a question for the colour and the same word
BEHIND it as one for the owner; with the word on both sides, or without it, it answers either by a coin. The word
"where" asks for the place wherever it stands. So a prompt of copies of "tell" is right at exactly one split.

=============  ======================================================================================
``place/fixed``  the colour is wanted of all texts: one split is right for all
``place/mixed``  the place named tells which is wanted: a fixed split is right for half of the texts
``place/xor``    the exclusive-or of two words, the thing and the place, tells it: no word alone does
``place/names``  an arbitrary half of the names tells it
``place/none``   the place named is wanted of all texts (the word is "where"): every split is right
=============  ======================================================================================

The *type* of an example is 0 where the prompt belongs before the text (the colour is wanted) and 1 where it belongs
behind it (the owner). No text contains its type as a word, and both types are equally frequent (except in
``place/fixed``). In ``place/none`` types are dealt out as in ``place/mixed``, and nothing hangs on them.

How hard the type is for a rule that sees a mean of embeddings: ``mixed`` and ``names`` are linear in it. ``xor`` is
not: its texts come in fours, two things by two places with everything else alike, so that no word alone changes the
odds. A linear rule is right for three of four at most, and one that is fitted by cross-entropy stays at chance.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import product

from dplearn.checks import is_whole, refuse, shown
from dplearn.tasks.base import Task
from dplearn.tasks.world import digest
from dplearn.tasks.world_scenes import World, part_of
from dplearn.tasks.world_words import COLOURS, PEOPLE, PLACES, TAILS, THINGS

WORD, ANYWHERE = "tell", "where"  # what asks by its place, and what asks the same wherever it stands
BEFORE, BEHIND = 0, 1  # the types of an example
# The answer words of every task: all that can be asked, so that a model which does not know what is asked is wrong.
ANSWERS = COLOURS + PEOPLE + PLACES
SIZES = {"train": 2000, "validation": 500, "test": 1000, "test_wordings": 500}


def _half(words: Sequence[str], seed: str) -> frozenset[str]:
    """An arbitrary half of some words, the same on every machine."""
    generator = random.Random(seed)
    keys = {word: generator.random() for word in words}
    return frozenset(sorted(words, key=keys.__getitem__)[: len(words) // 2])


# The words whose texts are of type BEHIND, each an arbitrary half of its pool.
PLACES_BEHIND = _half(PLACES, "places")
THINGS_BEHIND = _half(THINGS, "things")
NAMES_BEHIND = _half(PEOPLE, "names")


# What a type hangs on: a row of the world -> one truth value for each word that has a say.
_CUES: dict[str, Callable[[Mapping], tuple[bool, ...]]] = {
    "fixed": lambda row: (),
    "mixed": lambda row: (row["place"] in PLACES_BEHIND,),
    "xor": lambda row: (row["thing"] in THINGS_BEHIND, row["place"] in PLACES_BEHIND),
    "names": lambda row: (row["person"] in NAMES_BEHIND,),
    "none": lambda row: (row["place"] in PLACES_BEHIND,),
}
NAMES = tuple(f"place/{kind}" for kind in _CUES)


def _kind(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"name={shown(name)}: expected one of {list(NAMES)}")
    return name.removeprefix("place/")


def prompt_word(name: str) -> str:
    """The word whose copies are the given prompt of a task.

    >>> prompt_word("place/mixed"), prompt_word("place/none")
    ('tell', 'where')
    """
    return ANYWHERE if _kind(name) == "none" else WORD


def right_splits(name: str, example_type: int, length: int) -> tuple[int, ...]:
    """The splits k at which a prompt of ``length`` copies of the task's word asks for what is wanted.

    k vectors stand before the text and ``length - k`` behind it, so the colour is asked at k = ``length`` and the
    owner at k = 0. In ``place/none`` all splits are right.

    Raises
    ------
    ValueError : no task of that name, a type that is not 0 or 1, or a length below 1.

    >>> right_splits("place/mixed", BEFORE, 4), right_splits("place/mixed", BEHIND, 4), right_splits("place/none", 0, 2)
    ((4,), (0,), (0, 1, 2))
    """
    kind = _kind(name)
    if not is_whole(example_type) or example_type not in (BEFORE, BEHIND):
        refuse("example_type", example_type, "0 (the prompt belongs before) or 1 (behind)")
    if not is_whole(length, 1):
        refuse("length", length, "an integer of at least 1")
    if kind == "none":
        return tuple(range(length + 1))
    return (length,) if example_type == BEFORE else (0,)


def share_right(name: str, types: Iterable[int], splits: Iterable[int], length: int) -> float:
    """The share of inputs whose split is a right one.

    ``types`` are those of the examples (`types_of`) and ``splits`` the chosen ones in the same order, for example
    ``model.decide(**batch)["position"].index``: integers or tensors of them.

    >>> share_right("place/mixed", [0, 0, 1, 1], [2, 0, 0, 1], length=2)
    0.5
    """
    types, splits = ([int(value) for value in values] for values in (types, splits))
    if len(types) != len(splits) or not types:
        raise ValueError(
            f"splits has {len(splits)} values and types {len(types)}: expected one of each per input, and an input"
        )
    for split in splits:
        if not 0 <= split <= length:
            refuse("splits", split, f"splits in 0..{length}")
    hits = sum(split in right_splits(name, kind, length) for kind, split in zip(types, splits))
    return hits / len(types)


def types_of(task: Task, split: str) -> list[int]:
    """The type of every example of a split, in order: the labels of a report on decisions."""
    return [example["type"] for example in task.examples(split)]


def sentence(world: World, row: Mapping) -> str:
    """A row of a scene as a text with its place.

    >>> row = {"person": "anna", "colour": "red", "thing": "ball", "place": "garden"}
    >>> sentence(World(2), row)
    'anna has a red ball in the garden .'
    """
    return world.random.choice(TAILS["place"]).format(s=world.own(row), v=row["place"]) + " ."


def _drawn(world: World, kind: str, size: int) -> Iterator[tuple[Mapping, str]]:
    """Rows with their texts; both values of a word that tells the type are equally frequent."""
    cue = _CUES[kind]
    for number in range(size):
        row = world.scene(1, "place")[0]
        while cue(row) and cue(row) != (number % 2 == 1,):
            row = world.scene(1, "place")[0]
        yield row, sentence(world, row)


def _fours(world: World, size: int) -> Iterator[tuple[Mapping, str]]:
    """Rows with their texts in fours: two things by two places, everything else alike, so that no word tells a type."""
    draw = world.random
    for _ in range(size // 4):
        things: list[str] = []
        while not things:
            row = world.scene(1, "place")[0]
            places = [
                draw.choice([p for p in PLACES if (p in PLACES_BEHIND) == sign]) for sign in (False, True)
            ]
            free = [t for t in THINGS if part_of(row["person"], row["colour"], t) == world.part]
            sides = [[t for t in free if (t in THINGS_BEHIND) == sign] for sign in (False, True)]
            things = [draw.choice(side) for side in sides] if all(sides) else []
        forms = draw.getstate()
        for thing, place in product(things, places):
            draw.setstate(forms)  # the same sentence form for all four
            told = row | {"thing": thing, "place": place}
            yield told, sentence(world, told)


def build(kind: str, split: str) -> tuple[dict, ...]:
    """The examples of one split; both types are equally frequent (all are of type 0 in "fixed")."""
    part = split if split in ("train", "validation") else "test"
    world = World(f"place/{kind}/{split}", part, new_wordings=split == "test_wordings")
    cues = _CUES[kind]
    rows = _fours(world, SIZES[split]) if kind == "xor" else _drawn(world, kind, SIZES[split])
    examples = []
    for row, text in rows:
        example_type = sum(cues(row)) % 2
        asked = "place" if kind == "none" else ("colour", "person")[example_type]
        examples.append({"text": text, "label": ANSWERS.index(row[asked]), "type": example_type, **row})
    world.random.shuffle(examples)
    return tuple(examples)


@cache
def load(name: str) -> Task:
    """A task by name, e.g. "place/mixed". Splits: train, validation, test, test_wordings.

    Combinations of person, colour and thing are kept apart between train, validation and test, as in the world, and
    the pretraining of `place-mini` sees those of train only. "test_wordings" uses sentence forms that occur nowhere
    else.

    An example has, beside "text" and "label", its "type" (0 or 1) and the facts that its text states: "person",
    "colour", "thing" and "place". Which splits are right for it: :func:`right_splits`. (Many answer
    words are always wrong, so ``few_shot``, which draws examples of every label, refuses.)

    >>> example = load("place/mixed").splits["test"][0]
    >>> sorted(example)
    ['colour', 'label', 'person', 'place', 'text', 'thing', 'type']
    """
    kind = _kind(name)
    splits = {split: build(kind, split) for split in SIZES}
    source = f"generated small world, seeded, test data {digest(splits['test'])}"
    return Task(name, ANSWERS, ANSWERS, "{text}", splits, "accuracy", source)
