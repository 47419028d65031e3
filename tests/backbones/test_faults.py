"""Faults that gave a wrong number without a word, each with its right value: caches, cross-attention, packed texts,
rotary angles that stretch, poolers, outputs as tuples.

The right value is the plain model on the text with the prompt's words spliced in (tests/spliced.py).
"""

import copy

import pytest
import spliced
import tiny
import torch
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
    BertForPreTraining,
    BertForSequenceClassification,
    DynamicCache,
)

import dplearn as dp

ROWS = [[5, 9, 6, 20, 33], [40, 4, 8, 11, 12]]
IDS, NEXT = torch.tensor(ROWS), torch.tensor([[7], [8]])
DECODERS = {"gpt2": tiny.gpt2, "llama": tiny.llama}
EXACT = {"rtol": 0, "atol": 1e-10}

# ---- caches ----


@torch.no_grad()
def cached(kind, rows=ROWS, **said):
    model = spliced.prompted(DECODERS[kind](), 1)
    ids, mask = spliced.padded(rows)
    return model, model(ids, mask, use_cache=True, **said).past_key_values


def ruin_by_order(cache):
    cache.reorder_cache(torch.tensor([1, 0]))


def ruin_by_crop(cache):
    cache.crop(-2)


def ruin_by_growth(cache):
    for layer in cache.layers:
        layer.keys, layer.values = (torch.cat([t, t[:, :, :1]], 2) for t in (layer.keys, layer.values))


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("ruin", [ruin_by_order, ruin_by_crop, ruin_by_growth])
def test_a_cache_that_somebody_else_changed_is_refused(kind, ruin):
    """Its mask belongs to other rows: a reordered one answered as the first order."""
    model, cache = cached(kind, [ROWS[0], ROWS[1][:3]])
    ruin(cache)
    with pytest.raises(
        ValueError, match="past_key_values holds . rows that are not as a prompted model left them"
    ):
        model(NEXT, past_key_values=cache)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_copy_of_a_cache_is_continued_as_the_cache(kind):
    model, cache = cached(kind, [ROWS[0], ROWS[1][:3]])
    for tokens in (NEXT, NEXT + 9):
        twin = copy.deepcopy(cache)
        with torch.no_grad():
            wanted, found = (model(tokens, past_key_values=each).logits for each in (cache, twin))
        assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("given", [True, False])
def test_positions_that_the_user_gives_are_honoured_behind_a_cache(kind, given):
    """They count input tokens, so they move up by the vectors; without them the count goes on where it was."""
    start = 10
    model, cache = cached(kind, position_ids=torch.arange(5)[None] + start)
    found = []
    for step in range(2):
        said = {"position_ids": torch.tensor([[start + 5 + step]])} if given else {}
        found.append(model(NEXT + step, past_key_values=cache, **said).logits[:, 0])
    for number, row in enumerate(ROWS):
        full = spliced.splice(row, 1)[0] + [NEXT[number, 0].item(), NEXT[number, 0].item() + 1]
        positions = torch.arange(len(full))[None] + start
        wanted = model.backbone(torch.tensor([full]), position_ids=positions).logits[0, -2:]
        assert_close(torch.stack([each[number] for each in found]), wanted, **EXACT)


@pytest.mark.parametrize("kind", DECODERS)
def test_what_a_prompt_takes_does_not_reach_the_backbone_behind_a_cache(kind):
    model, cache = cached(kind, keep_last=1)
    wanted = model(NEXT, past_key_values=copy.deepcopy(cache)).logits
    found = model(NEXT, past_key_values=cache, keep_last=1, task_ids=["default", "default"]).logits
    assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_cache_that_was_given_is_continued_whatever_the_output_is(kind):
    model, cache = cached(kind)
    own = DynamicCache()
    model(IDS, past_key_values=own, return_dict=False)
    # (One of the two was filled in parts, behind the prompt: another order of sums.)
    assert_close(model(NEXT, past_key_values=own).logits, model(NEXT, past_key_values=cache).logits, **EXACT)


@pytest.mark.parametrize("kind", DECODERS)
def test_generate_refuses_a_cache_that_holds_something(kind):
    """It put the prompt in again, behind the cached one."""
    model, cache = cached(kind)
    with pytest.raises(ValueError, match="past_key_values holds 8 rows, expected an empty cache"):
        model.generate(torch.cat([IDS, NEXT], 1), past_key_values=cache, max_new_tokens=2)


# ---- what else has as many rows as the input ----


@pytest.mark.parametrize("rows", [4, 5, 6])
def test_cross_attention_sees_its_own_rows_whatever_their_number(rows):
    """The input has 5 tokens; 5 rows of an encoder were moved as if they were tokens (1.0 and 2.6 off)."""
    model = spliced.prompted(tiny.gpt2(add_cross_attention=True), 1)
    seen = torch.randn(2, rows, tiny.WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = model(IDS, torch.ones_like(IDS), encoder_hidden_states=seen).logits
    for number, row in enumerate(ROWS):
        full, places = spliced.splice(row, 1)
        wanted = model.backbone(torch.tensor([full]), encoder_hidden_states=seen[number : number + 1]).logits[
            0
        ]
        assert_close(found[number], wanted[spliced.predicting(places, len(full))], **EXACT)


@pytest.mark.parametrize("kind", DECODERS)
def test_packed_texts_are_refused(kind):
    model, positions = spliced.prompted(DECODERS[kind](), "prefix"), torch.tensor([[0, 1, 2, 0, 1]])
    with pytest.raises(ValueError, match="position_ids start again inside of a row"):
        model(IDS, position_ids=positions)
    left = torch.tensor([[0, 0, 0, 1, 2]])
    model(
        IDS, torch.tensor([[0, 0, 1, 1, 1]] * 2), position_ids=left
    )  # padding with a mask is no second text


# ---- what modules note on themselves ----


@pytest.mark.parametrize("way", ["generate", "position-space"])
def test_rotary_angles_that_stretch_are_those_of_a_short_text_again_after_a_long_one(way):
    """A view took the note of the reach with it, so short texts kept the stretched angles (0.27 and 0.11 off)."""
    stretching = dict(rope_type="dynamic", factor=2.0, rope_theta=10000.0)
    backbone = tiny.llama(max_position_embeddings=16, rope_parameters=stretching)
    options = {"backbone_dropout": True} if way == "generate" else {"position": "task", "estimator": way}
    model = dp.prompted(
        backbone, dp.PromptConfig(length=3, **{"controller_init": "uniform"} | options)
    ).eval()
    long, short = torch.arange(3, 33)[None], torch.arange(3, 8)[None]
    before = model(short).logits
    model.train()
    if way == "generate":
        model.generate(long, max_new_tokens=2, do_sample=False)
    else:
        model(long, keep_last=0)
    assert_close(model.eval()(short).logits, before, rtol=0, atol=0)


# ---- outputs ----


def pooled_encoder(kind):
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    config = AutoConfig.for_model(kind, max_position_embeddings=64, **sizes, **tiny.SMALL)
    return AutoModel.from_config(config).double().eval()


@pytest.mark.parametrize(
    "kind", ["jina_embeddings_v3", "bert", "albert", "roberta", "mpnet", "electra", "big_bird"]
)
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_pooler_reads_the_first_token(kind, side):
    """Where a base model has only layers, its pooler read a vector of the prompt (1.3 off)."""
    backbone = pooled_encoder(kind)
    model = spliced.prompted(backbone, "prefix")
    ids, mask = spliced.padded(ROWS, side, extra=2)
    found = model(ids, mask)
    for number, row in enumerate(ROWS):
        full = spliced.splice(row, len(spliced.WORDS))[0]
        states = backbone(torch.tensor([full])).last_hidden_state[:, len(spliced.WORDS) :]
        assert_close(found.last_hidden_state[number, mask[number] != 0], states[0], **EXACT)
        pooler = getattr(backbone, "pooler", None)
        if pooler is None:
            continue
        if kind in ("albert", "big_bird"):
            activation = backbone.pooler_activation if kind == "albert" else backbone.activation
            wanted = activation(pooler(states[:, 0]))
        else:
            wanted = pooler(states)
        assert_close(found.pooler_output[number], wanted[0], **EXACT)


@pytest.mark.parametrize("kind", ["roberta-prelayernorm", "jina_embeddings_v3", "bert", "albert"])
def test_states_of_the_last_layer_are_those_of_all_instances(kind):
    """Where the module behind which rows leave gives a bare tensor, they were the rows of the first instance."""
    backbone = pooled_encoder(kind)
    full = torch.tensor([spliced.splice(row, len(spliced.WORDS))[0] for row in ROWS])
    with torch.no_grad():
        found = spliced.prompted(backbone, "prefix")(IDS, output_hidden_states=True).hidden_states
        wanted = backbone(full, output_hidden_states=True).hidden_states
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, **EXACT)


@pytest.mark.parametrize(
    "options", [{"size": "task", "size_cost": 1.0}, {"position": "task", "estimator": "exact"}]
)
@pytest.mark.parametrize("by", ["call", "config"])
def test_a_tuple_cannot_hold_a_part_of_the_loss(options, by):
    backbone = tiny.bert(BertForSequenceClassification, return_dict=by == "call")
    model = dp.prompted(
        backbone, dp.PromptConfig(length=3, **{"controller_init": "uniform"} | options)
    ).train()
    batch = {"input_ids": IDS, "labels": torch.tensor([0, 1])}
    said = {"return_dict": False} if by == "call" else {}
    with pytest.raises(ValueError, match="return_dict=False while a part of the loss"):
        model(**batch, **said)
    loss = model(**batch, return_dict=True).loss
    assert torch.isfinite(loss)
    assert isinstance(model.eval()(**batch, **said), tuple)


def test_an_estimator_that_compares_losses_names_a_model_without_logits():
    config = dp.PromptConfig(length=3, position="task", estimator="score-function")
    model = dp.prompted(tiny.bert(BertForPreTraining), config).train()
    with pytest.raises(
        ValueError, match="compares losses of logits, and the output of BertForPreTraining has none"
    ):
        model(IDS, labels=IDS, next_sentence_label=torch.tensor([0, 1]))


@pytest.mark.parametrize("kind", ["convbert", "fnet"])
def test_an_encoder_that_looks_at_padding_is_refused(kind):
    """Its answer depended on the padding of the batch (1.7 and 3.8 off)."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    config = AutoConfig.for_model(kind, max_position_embeddings=64, **sizes, **tiny.SMALL)
    with pytest.raises(TypeError, match="differently where an input is padded"):
        dp.prompted(AutoModel.from_config(config).double().eval(), dp.PromptConfig(length=3))


def test_a_model_that_does_not_name_its_embeddings_is_refused():
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    backbone = AutoModel.from_config(AutoConfig.for_model("canine", **sizes))
    with pytest.raises(TypeError, match="backbone=CanineModel cannot take a prompt"):
        dp.prompted(backbone, dp.PromptConfig(length=3))
