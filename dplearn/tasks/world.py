"""The small world: generated passages about people and things, and the tasks asked about them.

No third-party text is in here. A *scene* says who has which thing, of which colour, and where, when or in which mood
the person is. Five families follow the formats of the paper's five SuperGLUE tasks; two easy tasks ask for equality.

Why the tasks are fair: a wrong value always belongs to somebody else in the same passage, so the words of a passage
say nothing about the label. Only who-has-what (binding) does. `world/wic` is an exclusive-or of two cue sets.
Combinations of (person, colour, thing) are split by a hash: pretraining and train share one part, validation and test
have their own. Some people never occur in an instructed pretraining example, some wordings occur nowhere in training.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import cache

from dplearn.tasks.base import Task
from dplearn.tasks.world_scenes import World
from dplearn.tasks.world_words import (
    ASKING,
    DENYING,
    EXTRAS,
    FAMILIES,
    MENTIONING,
    NEW_PEOPLE,
    OWNING,
    PEOPLE,
    POOLS,
    SENSES,
    TAILS,
    TELLING,
    WONDERING,
)

SIZES = {"train": 2000, "validation": 500, "test": 1000, "test_entities": 500, "test_wordings": 500}

NAMES = tuple(f"world/{family}" for family in FAMILIES)


def build(family: str, split: str) -> tuple[dict, ...]:
    """The examples of one split: the labels as even as the size allows, order and content fixed by the names."""
    part = split if split in ("train", "validation") else "test"
    people = NEW_PEOPLE if split == "test_entities" else PEOPLE
    world = World(f"{family}/{split}", part, people, new_wordings=split == "test_wordings")
    count = len(FAMILIES[family][0])
    examples = []
    if family == "multirc":  # two candidate answers for each question
        for group in range(SIZES[split] // 2):
            case = world.case(2, True, ("thing", "colour", *EXTRAS))
            case["question"] = world.form(WONDERING[case["kind"]]).format(p=case["asked"]["person"])
            other = next(row for row in case["rows"] if row is not case["asked"])
            for label in world.random.sample((0, 1), 2):
                case["named"] = case["asked"] if label else other
                examples.append(world.multirc(label, case=case) | {"group": group})
    else:
        examples = [world.example(family, index % count) for index in range(SIZES[split])]
        world.random.shuffle(examples)
    for example in examples:
        del example["answers"]
    return tuple(examples)


def digest(examples) -> str:
    """The first 16 hex digits of the SHA-256 of the examples, to pin and to compare data."""
    text = json.dumps(examples, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def load(name: str) -> Task:
    """A task of the world, e.g. "world/rte". Splits: train, validation, test, test_entities, test_wordings.

    "test_entities" is about people that no instructed pretraining example names; "test_wordings" uses sentence forms
    that occur nowhere else. All splits but train use combinations of person, colour and thing kept from pretraining.
    """
    if name not in NAMES:
        raise ValueError(f"name={name!r}: expected one of {list(NAMES)}")
    family = name.removeprefix("world/")
    labels, words, template, metric = FAMILIES[family]
    splits = {split: build(family, split) for split in SIZES}
    source = f"generated small world, seeded, test data {digest(splits['test'])}"
    return Task(name, labels, words, template, splits, metric, source)


def vocabulary() -> Iterator[str]:
    """Every word that world text can contain (each is one token of the package's tokenizer)."""
    forms = [
        OWNING,
        DENYING,
        MENTIONING,
        *TAILS.values(),
        *TELLING.values(),
        *ASKING.values(),
        *WONDERING.values(),
    ]
    seen = dict.fromkeys((*PEOPLE, *NEW_PEOPLE, *SENSES, "yes", "no", "maybe"))
    for pool in POOLS.values():
        seen.update(dict.fromkeys(pool))
    for senses in SENSES.values():
        for name, cues in senses:
            seen.update(dict.fromkeys((name, *cues.split())))
    for form in (form for group in forms for form in group):
        seen.update(dict.fromkeys(word for word in form.split() if word.isalpha()))
    for _, _, template, _ in FAMILIES.values():
        seen.update(dict.fromkeys(word.strip(":") for word in template.split() if word.strip(":").isalpha()))
    yield from seen
