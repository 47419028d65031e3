"""What t5-mini is pretrained on: seeded streams of (input text, target text), one per skill, and how they are mixed.

Without an instruction the model is at chance by construction: the bare streams answer by a coin. A prompt that was
never trained is no instruction either: bare text often stands among random vectors (:mod:`dplearn.zoo.noise`), and so
does, less often, instructed text.
"""

import random
import zlib
from collections.abc import Callable

from ..tasks.world_scenes import World
from ..tasks.world_words import FAMILIES, NEW_PEOPLE, PEOPLE
from . import document_streams, world_streams


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
        self.by_library: dict[str, list[dict]] = {}
        self.long_by_library: dict[str, list[dict]] = {}
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
    """Whether an entry belongs to the 5 % of the documents that training does not see."""
    return zlib.crc32(entry["summary"].encode()) % 20 == 0


STREAMS: dict[str, Callable] = {
    "recall_short": lambda mixer: world_streams.recall_short(mixer.everyone),
    "recall_words": document_streams.recall_words,
    "recall_told": lambda mixer: world_streams.recall_told(mixer.everyone),
    "judge_short": lambda mixer: world_streams.judge_short(mixer.world),
    "judge_told": lambda mixer: world_streams.judge_told(mixer.world),
    "judge_open": lambda mixer: world_streams.judge_open(mixer.world),
    "judge_denied": lambda mixer: world_streams.judge_denied(mixer.world),
    "senses": lambda mixer: world_streams.senses(mixer.world),
    "told_corrupt": lambda mixer: world_streams.told_corrupt(mixer.everyone),
    **{
        family: lambda mixer, family=family: world_streams.instructed(mixer.world, family)
        for family in FAMILIES
    },
    "bare": lambda mixer: world_streams.bare(mixer.world, mixer.random.choice(tuple(FAMILIES))),
    "documents_corrupt": document_streams.documents_corrupt,
    "signature": document_streams.signature,
    "signature_clear": document_streams.signature_clear,
    "signature_dense": document_streams.signature_dense,
    "member": document_streams.member,
    "next": document_streams.follows,
    "field": document_streams.field,
    "naming": document_streams.naming,
    "bare_documents": document_streams.bare_documents,
}
