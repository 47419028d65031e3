"""PromptConfig and positions: every bad option is named with its value and what was expected, before any work."""

import json
from dataclasses import replace

import numpy
import pytest
import torch

from dplearn.config import OPTIONS, PromptConfig, option_rows
from dplearn.controllers import FixedDecision, LearnedDecision
from dplearn.options import KINDS
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
        ({"tasks": 5}, "tasks=5 is not valid, expected a list of names"),
        ({"tasks": {"a", "b"}}, "tasks={.*} is not valid, expected a list of names: a set has no order"),
        (
            {"temperature": 1e39},
            r"temperature=1e\+39 is not valid, expected a positive, finite number that float32",
        ),
        (
            {"temperature": 10**400},
            "temperature=1000.* is not valid, expected a positive, finite number that float32",
        ),
        (
            {"temperature": 1e-38},
            "temperature=1e-38 is not valid, expected a positive, finite number that float32",
        ),
        ({"temperature": -1.0}, "temperature=-1.0 is not valid, expected a positive, finite number$"),
        (
            {"size_cost": 1e39},
            r"size_cost=1e\+39 is not valid, expected a finite number of at least 0 that float32",
        ),
        ({"pool_size": 8}, "pool_size=8 has no use with vector='single', expected 4, or vector='task'"),
        (
            {"mixing": "hard"},
            "mixing='hard' has no use with vector='single', expected 'softmax', or vector='task'",
        ),
        (
            {"insert": "after-positions", "entry": "after-positions"},
            "insert='after-positions' and entry are one",
        ),
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


@pytest.mark.parametrize("name", list(OPTIONS))
@pytest.mark.parametrize(
    "value", [numpy.arange(3), numpy.zeros((40, 40)), torch.ones(2), {"a": 1}, [[]]], ids=type
)
def test_an_array_is_refused_by_the_name_of_the_option(name, value):
    with pytest.raises(ValueError, match=f"^{name}=.*expected") as found:
        PromptConfig(**{"vector": "task", "estimator": "exact"} | {name: value})
    assert len(str(found.value)) < 250 and "\n" not in str(found.value)


# --- old names, old checkpoints ---


def test_the_old_name_of_entry_works_and_says_so():
    with pytest.warns(FutureWarning, match="insert=.* is called entry=.* now") as caught:
        config = PromptConfig(length=3, insert="before-positions")
    assert config == PromptConfig(length=3, entry="before-positions") and len(caught) == 1
    assert caught[0].filename == __file__
    assert config.insert == "before-positions" and "insert" not in config.to_dict()
    assert (
        replace(config, length=4).entry == "before-positions"
    )  # without a warning, which would be an error here


@pytest.mark.parametrize("entry", [None, "position-coded"])
def test_a_saved_option_of_the_old_name_is_read_in_silence(entry):
    old = PromptConfig(length=3).to_dict()
    del old["entry"]
    assert PromptConfig.from_dict(old | {"insert": entry}) == PromptConfig(length=3, entry=entry)


def test_saved_options_of_a_pool_without_one_are_read_as_if_they_were_not_there():
    old = PromptConfig(length=3).to_dict() | {"pool_size": 8, "mixing": "hard"}
    config = PromptConfig.from_dict(old)
    assert config == PromptConfig(length=3) == PromptConfig.from_dict(config.to_dict())
    assert old["pool_size"] == 8  # what was given stays as it is
    with pytest.raises(ValueError, match="pool_size=0 is not valid"):
        PromptConfig.from_dict(old | {"pool_size": 0})
    kept = PromptConfig.from_dict(old | {"vector": "task"})
    assert (kept.pool_size, kept.mixing) == (8, "hard")


def test_options_that_are_no_dictionary_are_refused():
    with pytest.raises(ValueError, match="options=None is not valid, expected a dictionary"):
        PromptConfig.from_dict(None)


# --- who serves what ---

SERVED = {  # by hand: what each kind of backbone refuses
    "text": {"depth": 2, "entry": "after-positions", "towers": "text", "summary": "image"},
    "vision": {"towers": "both", "summary": "image"},
    "image-text": {"entry": "position-coded"},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_kind_of_backbone_refuses_what_only_others_serve(kind):
    every = {name: value for options in SERVED.values() for name, value in options.items()}
    for name, value in every.items():
        config = PromptConfig(**{name: value})
        if name in SERVED[kind]:
            usual = PromptConfig().to_dict()[name]
            with pytest.raises(
                ValueError, match=f"^{name}={value!r} is for .*, expected {usual!r}: Some reads words"
            ):
                config.refuse_unserved(kind, "Some", "words")
        else:
            config.refuse_unserved(kind, "Some", "words")
    PromptConfig(position="task", summary="encoder", head="trained").refuse_unserved(kind, "Some", "words")


def test_the_table_of_options_has_a_row_for_each_with_its_default():
    rows, saved = option_rows(), PromptConfig().to_dict()
    assert [row[0] for row in rows] == list(saved) and all(len(row) == 5 and all(row) for row in rows)
    assert [row[1] for row in rows] == [repr(value) for value in saved.values()]
    kinds = {row[0]: row[3] for row in rows}
    assert kinds["length"] == "all" and kinds["depth"] == "vision, image-text" and kinds["entry"] == "vision"
    assert kinds["summary"] == "all; 'image': image-text"


# --- first values ---


def test_first_values_are_what_the_backbone_embeds():
    """The same ids for the same seed whatever the backbone does to rows; another shape is refused."""
    table, seen = torch.randn(50, 4), []

    def embed(ids):
        seen.append(ids)
        return 8 * table[ids] + 1

    vectors = PromptConfig(length=7, vector="task", pool_size=3).initial_vectors(
        4, 50, embed, torch.Generator().manual_seed(1)
    )
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))[:21]
    assert torch.equal(seen[0], order) and len(seen) == 1
    assert torch.equal(vectors, (8 * table[order] + 1).view(3, 7, 4))
    with pytest.raises(ValueError, match=r"embed returned the shape \(7, 3\), expected \(7, 4\)"):
        PromptConfig(length=7).initial_vectors(4, 50, lambda ids: table[ids, :3])
