"""PromptConfig and positions: every bad option is named with its value and what was expected, before any work."""

import json

import pytest
import torch

from dplearn.config import PromptConfig
from dplearn.controllers import FixedDecision, LearnedDecision
from dplearn.position import resolve_split
from dplearn.prompt import DynamicPrompt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length=0 is not valid, expected an integer of at least 1"),
        ({"length": 2.5}, "length=2.5 is not valid"),
        ({"length": True}, "length=True is not valid"),
        (
            {"position": "middle"},
            "position='middle' is unknown, expected 'prefix', 'postfix', 'task', 'instance'",
        ),
        (
            {"length": 5, "position": 7},
            r"position=7 is outside 0..5: the prompt has 5 vectors \(0 is postfix, 5 is prefix\)",
        ),
        ({"length": 5, "position": -1}, "position=-1 is outside 0..5"),
        ({"position": 1.0}, "position=1.0 is a float"),
        ({"position": True}, "position=True is a bool"),
        ({"summary": "decoder"}, "summary='decoder' is unknown, expected 'embeddings', 'encoder'"),
        ({"estimator": "hope"}, "estimator='hope' is unknown, expected 'exact', 'position-space'"),
        ({"init": "zeros"}, "init='zeros' is unknown, expected 'vocabulary', 'uniform'"),
        ({"temperature": 0.0}, "temperature=0.0 is not valid, expected a positive, finite number"),
        ({"temperature": "warm"}, "temperature='warm' is not valid"),
        ({"backbone_dropout": 1}, "backbone_dropout=1 is not valid, expected True or False"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PromptConfig(**options)


def test_round_trip_through_json():
    config = PromptConfig(length=7, position="instance", summary="encoder", temperature=2.0, init="uniform")
    assert PromptConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_saved_option_is_named():
    with pytest.raises(ValueError, match="unknown option 'flavour'='sweet', expected some of"):
        PromptConfig.from_dict({"length": 3, "flavour": "sweet"})


@pytest.mark.parametrize("length", [1, 4])
def test_named_positions_are_splits(length):
    assert resolve_split("prefix", length) == length and resolve_split("postfix", length) == 0
    assert [resolve_split(k, length) for k in range(length + 1)] == list(range(length + 1))


@pytest.mark.parametrize(("position", "expected"), [("prefix", 6), ("postfix", 0), (2, 2)])
def test_fixed_positions_have_no_parameters(position, expected):
    prompt = PromptConfig(length=6, position=position).build(torch.zeros(6, 3))
    assert isinstance(prompt.position, FixedDecision) and not list(prompt.position.parameters())
    assert prompt.position(torch.zeros(4, 3)).index.tolist() == [expected] * 4
    assert not prompt.needs_summary


@pytest.mark.parametrize(
    ("position", "parameters", "looks"), [("task", 7, False), ("instance", 3 * 7 + 7, True)]
)
def test_learned_positions_have_the_papers_parameter_count(position, parameters, looks):
    prompt = PromptConfig(length=6, position=position).build(torch.zeros(6, 3))
    assert isinstance(prompt.position, LearnedDecision)
    assert sum(p.numel() for p in prompt.position.parameters()) == parameters
    assert prompt.needs_summary is looks


def test_vocabulary_init_takes_distinct_rows_of_the_embedding():
    embedding = torch.randn(50, 4, dtype=torch.bfloat16)
    vectors = PromptConfig(length=20).initial_vectors(
        4, 50, embedding.__getitem__, torch.Generator().manual_seed(0)
    )
    distances = torch.cdist(vectors, embedding.float())
    rows = distances.argmin(1)
    assert vectors.dtype == torch.float32 and torch.equal(vectors, embedding[rows].float())
    assert rows.unique().numel() == 20
    again = PromptConfig(length=20).initial_vectors(
        4, 50, embedding.__getitem__, torch.Generator().manual_seed(0)
    )
    assert torch.equal(vectors, again)


def test_vocabulary_init_repeats_rows_only_where_the_vocabulary_is_too_small():
    embedding = torch.arange(3.0)[:, None]
    vectors = PromptConfig(length=7).initial_vectors(1, 3, embedding.__getitem__)
    counts = torch.bincount(vectors.squeeze(1).long(), minlength=3)
    assert sorted(counts.tolist()) == [2, 2, 3]


def test_uniform_init_lies_in_the_papers_interval():
    vectors = PromptConfig(length=400, init="uniform").initial_vectors(50, 5, torch.zeros(5, 50).__getitem__)
    assert vectors.shape == (400, 50) and vectors.min() >= -0.5 and vectors.max() <= 0.5
    assert vectors.std() == pytest.approx(12**-0.5, rel=0.02)


@pytest.mark.parametrize("vectors", [torch.zeros(3), torch.zeros(0, 3), torch.zeros(2, 3, dtype=torch.long)])
def test_prompt_refuses_vectors_that_are_not_a_prompt(vectors):
    with pytest.raises(ValueError, match="vectors has shape .* expected"):
        DynamicPrompt(vectors, FixedDecision(0))


def test_build_refuses_another_length():
    with pytest.raises(ValueError, match=r"vectors has shape \(3, 4\), expected \(5, width\): length=5"):
        PromptConfig(length=5).build(torch.zeros(3, 4))


def test_instance_position_without_a_summary_is_refused():
    prompt = PromptConfig(length=2, position="instance").build(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="summary=None, expected"):
        prompt(torch.zeros(1, 4, 3), torch.ones(1, 4, dtype=torch.long))
