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
import random
import zlib
from collections.abc import Iterator
from functools import cache

from dplearn.tasks.base import Task

COLOURS = tuple("red blue green black white yellow brown purple pink grey golden silver".split())
THINGS = tuple(
    "ball cup book lamp hat coat key drum kite rope box bag clock chair bowl knife plate ring scarf flute pen shoe"
    " spoon basket bottle brush candle coin comb doll fan flag hammer jar ladder mirror needle net pot wheel".split()
)
PLACES = tuple(
    "garden kitchen attic barn cellar market school station harbour tower mill church forest park hall office shop"
    " tent stable meadow".split()
)
MOODS = tuple("happy sad angry calm tired proud afraid bored hungry thirsty".split())
TIMES = tuple("dawn noon dusk midnight breakfast lunch dinner sunset".split())
PEOPLE = tuple(
    "anna ben cara dan eva finn gina hugo iris jack kate leo mia nick olga paul quinn rosa sam tina ugo vera walt xena"
    " yan zoe adam bella carl dora emil fay gus hana ivan jane karl lena max nora otto pia ralf sara tom uma vic wanda"
    " amir bruno clara david elsa frank greta henry ida jonas kim luis marta nils oscar peter rita simon tara ulf"
    " viola willy alma boris celia doris ezra fiona george helen igor julia kurt lara mona noah olive pedro".split()
)
NEW_PEOPLE = tuple(
    "rena stefan thea urban violet werner yves zelda albert berta conrad edith felix gloria".split()
)
POOLS = {"colour": COLOURS, "thing": THINGS, "place": PLACES, "mood": MOODS, "time": TIMES}
EXTRAS = ("place", "mood", "time")

# Sentence forms: the last one or two of each list are held out (used only in the split "test_wordings").
OWNING = (
    "{p} has a {c} {o}",
    "{p} keeps a {c} {o}",
    "a {c} {o} belongs to {p}",
    "the {c} {o} is owned by {p}",
    "{p} holds the {c} {o}",
    "there is a {c} {o} that {p} owns",
    "{p} carries a {c} {o}",
    "with {p} is a {c} {o}",
)
TELLING = {
    "thing": (
        "{p} has a {v}",
        "a {v} belongs to {p}",
        "{p} keeps a {v}",
        "the {v} is owned by {p}",
        "{p} carries a {v}",
    ),
    "colour": (
        "{p} has something {v}",
        "what {p} has is {v}",
        "something {v} belongs to {p}",
        "{p} carries something {v}",
    ),
    "place": (
        "{p} is in the {v}",
        "{p} stays in the {v}",
        "in the {v} is {p}",
        "{p} waits in the {v}",
        "the {v} is where {p} is",
    ),
    "mood": ("{p} is {v}", "{p} feels {v}", "{v} is how {p} feels", "{p} seems {v}"),
    "time": ("{p} came at {v}", "at {v} {p} came", "{v} is when {p} came", "{p} arrived at {v}"),
}
TAILS = {"place": ("{s} in the {v}", "in the {v} {s}"), "time": ("{s} at {v}", "at {v} {s}")}
DENYING = ("{p} is not {v}", "{p} does not feel {v}", "not {v} is how {p} feels", "{p} does not seem {v}")
ASKING = {
    "thing": (
        "does {p} have the {v} ?",
        "is the {v} with {p} ?",
        "does the {v} belong to {p} ?",
        "is {p} the owner of the {v} ?",
    ),
    "colour": (
        "does {p} have something {v} ?",
        "is the thing of {p} {v} ?",
        "is it something {v} that {p} has ?",
        "is {p} with something {v} ?",
    ),
    "place": (
        "is {p} in the {v} ?",
        "does {p} stay in the {v} ?",
        "is the {v} where {p} is ?",
        "does {p} wait in the {v} ?",
    ),
    "mood": ("is {p} {v} ?", "does {p} feel {v} ?", "is {v} how {p} feels ?", "does {p} seem {v} ?"),
    "time": (
        "did {p} come at {v} ?",
        "was it at {v} that {p} came ?",
        "is {v} when {p} came ?",
        "did {p} arrive at {v} ?",
    ),
}
WONDERING = {
    "thing": (
        "what does {p} have ?",
        "which thing belongs to {p} ?",
        "what is with {p} ?",
        "what does {p} carry ?",
    ),
    "colour": (
        "what colour is the thing of {p} ?",
        "which colour has {p} ?",
        "what colour does {p} have ?",
        "which colour is with {p} ?",
    ),
    "place": ("where is {p} ?", "in which place is {p} ?", "where does {p} stay ?", "where does {p} wait ?"),
    "mood": ("how does {p} feel ?", "how is {p} ?", "in which mood is {p} ?", "how does {p} seem ?"),
    "time": (
        "when did {p} come ?",
        "at which time did {p} come ?",
        "when was it that {p} came ?",
        "when did {p} arrive ?",
    ),
}

# Ambiguous words: two senses, each with a name and six cues.
SENSES = {
    "bank": (
        ("ground", "water shore boat fish mud reeds"),
        ("money", "loan cash vault cheque teller account"),
    ),
    "bat": (("animal", "cave wings fur roof insects moth"), ("tool", "game pitch team player wicket helmet")),
    "spring": (
        ("season", "blossom april rain seeds birds nest"),
        ("metal", "wire mattress steel bounce toy coil"),
    ),
    "seal": (
        ("animal", "ice whale beach flippers waves rocks"),
        ("paper", "wax letter envelope stamp document king"),
    ),
    "crane": (
        ("animal", "marsh feathers eggs lake beak heron"),
        ("tool", "bricks builder concrete hook cargo scaffold"),
    ),
    "pitcher": (
        ("vessel", "lemonade milk juice tray glass cream"),
        ("sport", "inning batter stadium coach umpire mound"),
    ),
    "mouse": (
        ("animal", "cheese cat hole tail trap whiskers"),
        ("tool", "screen keyboard cable click desk laptop"),
    ),
    "organ": (
        ("body", "heart doctor blood surgeon nurse kidney"),
        ("music", "pipes hymn choir pedals concert tune"),
    ),
    "pupil": (
        ("child", "teacher lesson exam class homework chalk"),
        ("body", "eye lens vision light lashes glare"),
    ),
    "trunk": (
        ("tree", "bark branch leaves roots oak squirrel"),
        ("box", "luggage car tyre journey driver motor"),
    ),
    "match": (
        ("fire", "flame smoke stove fuse torch ash"),
        ("sport", "goal score referee league fans whistle"),
    ),
    "palm": (
        ("body", "finger thumb wrist skin fist sweat"),
        ("tree", "island coconut sand desert dates oasis"),
    ),
}
MENTIONING = (
    "{p} saw the {w} and the {x}",
    "near the {x} {p} found the {w}",
    "the {w} and the {x} pleased {p}",
    "{p} spoke of the {x} and the {w}",
    "the {x} made {p} think of the {w}",
    "{p} drew the {w} beside the {x}",
)

SIZES = {"train": 2000, "validation": 500, "test": 1000, "test_entities": 500, "test_wordings": 500}
YES_NO = ("no", "yes")
# name -> (labels, words, template, metric); the label order and templates follow the paper's scripts.
FAMILIES = {
    "boolq": (("no", "yes"), ("no", "yes"), "hypothesis: {question} premise: {passage}", "accuracy"),
    "multirc": (
        ("wrong", "right"),
        ("no", "yes"),
        "question: {question} answer: {answer}. paragraph: {passage}",
        "f1a_em",
    ),
    "rte": (
        ("entailment", "not_entailment"),
        ("yes", "no"),
        "sentence1: {premise} sentence2: {hypothesis}",
        "accuracy",
    ),
    "cb": (
        ("entailment", "contradiction", "neutral"),
        ("yes", "no", "maybe"),
        "hypothesis: {hypothesis} premise: {premise}",
        "accuracy_f1",
    ),
    "wic": (("different", "same"), ("no", "yes"), "{sentence1} {sentence2} word: {word}", "accuracy"),
    "color": (
        ("different", "same"),
        ("no", "yes"),
        "sentence1: {sentence1} sentence2: {sentence2}",
        "accuracy",
    ),
    "owner": (
        ("different", "same"),
        ("no", "yes"),
        "sentence1: {sentence1} sentence2: {sentence2}",
        "accuracy",
    ),
}

NAMES = tuple(f"world/{family}" for family in FAMILIES)


def part_of(*words: str) -> str:
    """Which part a combination belongs to: 8 of 10 "train", 1 "validation", 1 "test". Stable across machines."""
    slot = zlib.crc32(" ".join(words).encode()) % 10
    return {8: "validation", 9: "test"}.get(slot, "train")


class World:
    """A seeded source of scenes, sentences and questions.

    part: which (person, colour, thing) combinations may occur. people: who may occur.
    new_wordings: use the held-out sentence forms (only those) instead of the usual ones.
    """

    def __init__(self, seed, part="train", people=PEOPLE, new_wordings=False):
        self.random, self.part, self.people, self.new_wordings = (
            random.Random(seed),
            part,
            people,
            new_wordings,
        )

    def form(self, forms):
        """One sentence form; the last quarter of each list is held out."""
        cut = len(forms) - max(1, len(forms) // 4)
        return self.random.choice(forms[cut:] if self.new_wordings else forms[:cut])

    def scene(self, size, extra=None, same=False):
        """People with distinct things, colours and extras: [{"person", "thing", "colour", extra}, ...].

        With `same`, extra is a mood word that all share, and "denied" says for whom it does not hold.
        """
        draw = self.random.sample
        rows = []
        pools = {kind: draw(POOLS[kind], len(POOLS[kind])) for kind in ("colour", "thing", extra) if kind}
        for person in draw(self.people, size):
            row = {"person": person}
            for colour in pools["colour"]:
                thing = next(
                    (t for t in pools["thing"][:12] if part_of(person, colour, t) == self.part), None
                )
                if thing:
                    row.update(colour=colour, thing=thing)
                    break
            if "thing" not in row:  # nothing free for this person: draw the whole scene again (rare)
                return self.scene(size, extra, same)
            pools["colour"].remove(row["colour"])
            pools["thing"].remove(row["thing"])
            if extra:
                row[extra] = pools[extra][0] if same else pools[extra].pop()
            rows.append(row)
        if same:
            signs = [index % 2 == 0 for index in range(size)]
            self.random.shuffle(signs)
            for row, sign in zip(rows, signs, strict=True):
                row["denied"] = sign
        return rows

    def state(self, kind, row, denied=False):
        """One sentence that says the value of this kind, e.g. "anna feels happy"."""
        forms = DENYING if denied else TELLING[kind]
        return self.form(forms).format(p=row["person"], v=row[kind])

    def own(self, row):
        """The owning sentence; without a colour where the scene does not say it."""
        if "colour" not in row:
            return self.state("thing", row)
        return self.form(OWNING).format(p=row["person"], c=row["colour"], o=row["thing"])

    def tell(self, rows, extra=None, shuffle=True):
        """The scene as sentences. An extra is a tail of the owning sentence or a sentence of its own."""
        sentences = []
        for row in self.random.sample(rows, len(rows)) if shuffle else rows:
            first = self.own(row)
            if extra in row and extra in TAILS and self.random.random() < 0.5:
                sentences.append(self.random.choice(TAILS[extra]).format(s=first, v=row[extra]))
                continue
            told = [first]
            if extra in row:
                told.append(self.state(extra, row, row.get("denied", False)))
            sentences += told if self.random.random() < 0.5 else told[::-1]
        return sentences

    def pair(self, rows, kind, holds):
        """(who is asked about, whose value is named): the same row if it holds, else two rows."""
        asked, other = self.random.sample([row for row in rows if kind in row], 2)
        return (asked, asked) if holds else (asked, other)

    def case(self, size, holds, kinds=("thing", "colour", *EXTRAS, "denial")):
        """A scene, its sentences and one yes/no matter about it.

        Returns {"rows", "sentences", "kind", "asked", "named", "denied", "holds", "first"}.
        """
        kind = self.random.choice(kinds)
        if kind == "denial":
            rows = self.scene(size, "mood", same=True)
            asked = self.random.choice([row for row in rows if row["denied"] != holds])
            sentences = self.tell(rows, "mood")
            return dict(rows=rows, sentences=sentences, kind="mood", asked=asked, named=asked, same=True)
        extra = kind if kind in EXTRAS else self.random.choice((None, None, *EXTRAS))
        rows = self.scene(size, extra)
        asked, named = self.pair(rows, kind, holds)
        return dict(
            rows=rows, sentences=self.tell(rows, extra), kind=kind, asked=asked, named=named, same=False
        )

    def words(self, case):
        return dict(p=case["asked"]["person"], v=case["named"][case["kind"]])

    # One example of each family. "answers" holds what other instructions would get for the same text.

    def boolq(self, label, size=2):
        case = self.case(size, label == 1)
        question = self.form(ASKING[case["kind"]]).format(**self.words(case))
        return self.finish(
            {"question": question, "passage": join(case["sentences"]), "label": label}, "boolq", case
        )

    def multirc(self, label, size=2, case=None):
        case = case or self.case(size, label == 1, ("thing", "colour", *EXTRAS))
        question = case.setdefault(
            "question", self.form(WONDERING[case["kind"]]).format(p=case["asked"]["person"])
        )
        answer = case["named"][case["kind"]]
        fields = {"question": question, "answer": answer, "passage": join(case["sentences"]), "label": label}
        return self.finish(fields, "multirc", case)

    def rte(self, label, size=2):
        case = self.case(size, label == 0)
        hypothesis = self.form(TELLING[case["kind"]]).format(**self.words(case)) + " ."
        return self.finish(
            {"premise": join(case["sentences"]), "hypothesis": hypothesis, "label": label}, "rte", case
        )

    def cb(self, label, size=3):
        """Yes, no or maybe: one person of the passage always lacks the kind in question (maybe asks about them)."""
        kind = self.random.choice(("colour", *EXTRAS))
        rows = self.scene(size, kind if kind in EXTRAS else None)
        silent = self.random.choice(rows)
        silent.pop(kind)
        asked, named = self.pair(rows, kind, label == 0)
        case = dict(rows=rows, sentences=self.tell(rows, kind), kind=kind, named=named, same=label == 2)
        case["asked"] = silent if label == 2 else asked
        hypothesis = self.form(TELLING[kind]).format(**self.words(case)) + " ."
        return self.finish(
            {"hypothesis": hypothesis, "premise": join(case["sentences"]), "label": label}, "cb", case
        )

    def finish(self, fields, family, case):
        """Adds the answers to every instruction that fits this text."""
        word = FAMILIES[family][1][fields["label"]]
        people = [row["person"] for row in case["rows"]]
        first = min(people, key=lambda name: " ".join(case["sentences"]).split().index(name))
        answers = {family: word, "first": YES_NO[first == case["asked"]["person"]]}
        if not case["same"]:
            answers["value"] = case["asked"][case["kind"]]
            answers["holder"] = case["named"]["person"]
        return fields | {"answers": answers}

    def wic(self, label):
        word = self.random.choice(tuple(SENSES))
        while True:
            one = self.random.randrange(2)
            two = one if label == 1 else 1 - one
            cues = [self.random.choice(SENSES[word][sense][1].split()) for sense in (one, two)]
            if cues[0] != cues[1] and part_of(word, *cues) == self.part:
                break
        sentences = [
            self.form(MENTIONING).format(p=self.random.choice(self.people), w=word, x=cue) + " ."
            for cue in cues
        ]
        answers = {"wic": YES_NO[label], "sense1": SENSES[word][one][0], "sense2": SENSES[word][two][0]}
        return {
            "sentence1": sentences[0],
            "sentence2": sentences[1],
            "word": word,
            "label": label,
            "answers": answers,
        }

    def equal(self, about, label):
        """Two facts about one or two people: same colour? same owner? same place? each independently a coin."""
        wanted = {name: self.random.random() < 0.5 for name in ("color", "owner", "place", "thing")} | {
            about: label == 1
        }
        rows = self.two_facts(wanted)
        sentences = []
        for row in rows:
            place = self.random.choice(TAILS["place"])
            sentences.append(place.format(s=self.own(row), v=row["place"]) + " .")
        answers = {f"same_{name}": YES_NO[same] for name, same in wanted.items()}
        return {"sentence1": sentences[0], "sentence2": sentences[1], "label": label, "answers": answers}

    def two_facts(self, wanted):
        """Two rows with a place; ``wanted``: {"color", "owner", "place", "thing"} -> whether they are equal in it."""
        fact = None
        while fact is None:
            rows = self.scene(2, "place")
            fact = self.second_fact(rows[0], wanted)
        if wanted["place"]:
            rows[1]["place"] = rows[0]["place"]
        rows[1].update(fact)
        return rows

    def second_fact(self, first, wanted, tries=200):
        """Person, colour and thing of a second fact, equal to the first's where wanted (None: not found)."""
        pools = {"owner": ("person", self.people), "color": ("colour", COLOURS), "thing": ("thing", THINGS)}
        for _ in range(tries):
            fact = {
                key: first[key] if wanted[name] else self.random.choice(pool)
                for name, (key, pool) in pools.items()
            }
            in_part = part_of(fact["person"], fact["colour"], fact["thing"]) == self.part
            if in_part and all((fact[key] == first[key]) == wanted[name] for name, (key, _) in pools.items()):
                return fact
        return None

    def example(self, family, label):
        """One example of a family with this label: text fields, "label", "answers"."""
        if family in ("color", "owner"):
            return self.equal(family, label)
        return getattr(self, family)(label)


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


def join(sentences):
    """Sentences as one passage, each closed by a full stop."""
    return " ".join(sentence + " ." for sentence in sentences)


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
