"""Scenes of the small world: who has what, told in sentences, and one example of each family about it.

A *scene* says who has which thing, of which colour, and where, when or in which mood the person is.
"""

import random
import zlib

from dplearn.tasks.world_words import (
    ASKING,
    COLOURS,
    DENYING,
    EXTRAS,
    FAMILIES,
    MENTIONING,
    OWNING,
    PEOPLE,
    POOLS,
    SENSES,
    TAILS,
    TELLING,
    THINGS,
    WONDERING,
    YES_NO,
)


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
        return self.with_answers(
            {"question": question, "passage": join(case["sentences"]), "label": label}, "boolq", case
        )

    def multirc(self, label, size=2, case=None):
        case = case or self.case(size, label == 1, ("thing", "colour", *EXTRAS))
        question = case.setdefault(
            "question", self.form(WONDERING[case["kind"]]).format(p=case["asked"]["person"])
        )
        answer = case["named"][case["kind"]]
        fields = {"question": question, "answer": answer, "passage": join(case["sentences"]), "label": label}
        return self.with_answers(fields, "multirc", case)

    def rte(self, label, size=2):
        case = self.case(size, label == 0)
        hypothesis = self.form(TELLING[case["kind"]]).format(**self.words(case)) + " ."
        return self.with_answers(
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
        return self.with_answers(
            {"hypothesis": hypothesis, "premise": join(case["sentences"]), "label": label}, "cb", case
        )

    def with_answers(self, fields, family, case):
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


def join(sentences):
    """Sentences as one passage, each closed by a full stop."""
    return " ".join(sentence + " ." for sentence in sentences)
