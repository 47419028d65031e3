"""Where the prompt stands, in words and as a module; names and numbers are tested with the settings (test_config.py)."""

import pytest
import torch

from dplearn.choice import Chooser
from dplearn.config import PromptConfig
from dplearn.controllers import FixedDecision, LearnedDecision
from dplearn.position import POSITION, build, in_words, resolve_split


@pytest.mark.parametrize(
    ("options", "level", "words"),
    [
        ({"position": "prefix"}, "fixed", "before the input (prefix)"),
        ({"position": 5}, "fixed", "before the input (prefix)"),
        ({"position": "postfix"}, "fixed", "after the input (postfix)"),
        ({"position": 0}, "fixed", "after the input (postfix)"),
        ({"position": 1}, "fixed", "around the input: the first 1 before it, the rest after it"),
        ({"position": 4}, "fixed", "around the input: the first 4 before it, the rest after it"),
        ({"position": 3, "size": 3}, "fixed", "before the input (prefix)"),
        ({"position": 3, "size": 4}, "fixed", "around the input: the first 3 before it, the rest after it"),
        (
            {"position": 4, "size": "task"},
            "fixed",
            "around the input: the first 4 before it, the rest after it",
        ),
        (
            {"position": "task", "size": "task"},
            "task",
            "a split in 0..5 (so many vectors before the input), learned for the task",
        ),
        (
            {"position": "instance", "size": 3},
            "instance",
            "a split in 0..3 (so many vectors before the input), decided for each input from the mean of its embeddings",
        ),
        (
            {"position": 2, "entry": "after-positions"},
            "fixed",
            "around the input: the first 2 before it, the rest after it, after the position embeddings",
        ),
        (
            {"position": "postfix", "entry": "before-positions"},
            "fixed",
            "after the input (postfix), before the position embeddings",
        ),
        (
            {"position": "prefix", "entry": "position-coded"},
            "fixed",
            "before the input (prefix), with positions of its own",
        ),
        (
            {"position": "prefix", "towers": "vision"},
            "fixed",
            "in the image, behind the patches, where no order matters",
        ),
        (
            {"position": "task", "towers": "vision"},
            "task",
            "in the image, behind the patches, where no order matters",
        ),
        ({"position": "postfix", "towers": "both"}, "fixed", "after the input (postfix)"),
    ],
)
def test_a_position_in_words(options, level, words):
    assert in_words(PromptConfig(length=5, **options)) == (level, words)


def test_a_position_as_a_module():
    fixed = build(PromptConfig(length=5, position=2), 7, Chooser)
    assert isinstance(fixed, FixedDecision) and fixed(torch.zeros(3, 7)).index.tolist() == [2, 2, 2]
    learned = build(PromptConfig(length=5, position="instance"), 7, Chooser)
    assert isinstance(learned, LearnedDecision) and learned.controller.linear.weight.shape == (6, 7)
    assert learned(torch.zeros(3, 7)).index.shape == (3,)
    shared = build(PromptConfig(length=5, position="task", tasks=["a", "b"]), 7, Chooser)
    assert shared.controller.logits.shape == (2, 6)


def test_what_is_known_of_the_decision():
    assert POSITION.title == "where" and POSITION.build is build and POSITION.words is in_words
    for position, learned in (("prefix", False), (3, False), ("task", True), ("instance", True)):
        assert POSITION.sampled(PromptConfig(length=5, position=position)) is learned


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (
            "middle",
            "position='middle' is unknown, expected 'prefix', 'postfix', 'task', 'instance' or a split in 0..5",
        ),
        (6, "position=6 is outside 0..5: the prompt has 5 vectors (0 is postfix, 5 is prefix)"),
        (-1, "position=-1 is outside 0..5: the prompt has 5 vectors (0 is postfix, 5 is prefix)"),
        (2.0, "position=2.0 is a float, expected a name or an integer split"),
        (None, "position=None is a NoneType, expected a name or an integer split"),
    ],
)
def test_no_position_is_refused_in_full_words(position, message):
    with pytest.raises(ValueError) as found:
        resolve_split(position, 5)
    assert str(found.value) == message
