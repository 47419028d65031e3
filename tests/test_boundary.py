"""Where the prompt of a decoder-only language model stands: ``keep_last``, ``context_length``, masks, positions, caches.

The right value is the plain model on the text with the prompt's words spliced in (tests/spliced.py). Labels have no say.
"""

import warnings

import pytest
import spliced
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spliced import DECODERS, SPLITS, WORDS
from torch.testing import assert_close
from transformers import DynamicCache

ROWS = [[5, 9, 6, 20, 33], [40, 4, 8], [3, 3, 17, 21, 12, 9, 50]]
BEHIND = [2, 1, 3]
LENGTHS = [len(row) - last for row, last in zip(ROWS, BEHIND, strict=True)]
LEARNED = [{"position": "instance"}, {"position": "task"}, {"position": "prefix", "size": "instance"}]


def decoder(kind, position="postfix", **options):
    return spliced.prompted(DECODERS[kind](), position, **options)


def assert_logits(logits, mask, backbone, split, behind, rows=ROWS):
    """Each real token's logits are those of the spliced text; in the last column those of the last real row."""
    for number, (row, last) in enumerate(zip(rows, behind, strict=True)):
        wanted = spliced.causal_logits(backbone, row, split, last)
        found = logits[number, mask[number] != 0]
        assert_close(found[:-1], wanted[:-1], rtol=0, atol=1e-10)
        assert_close(logits[number, -1], wanted[-1], rtol=0, atol=1e-10)


def assert_loss(found, wanted):
    """transformers computes the loss of a language model in float32."""
    assert_close(found.double(), wanted, rtol=1e-5, atol=0)


# ---- the boundary ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("position", SPLITS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_prompt_surrounds_what_the_user_says(kind, position, side):
    model, split = decoder(kind, position), SPLITS[position]
    ids, mask = spliced.padded(ROWS, side, extra=2)
    with torch.no_grad():
        for said, behind in (
            ({}, [0] * 3),
            ({"keep_last": 2}, [2] * 3),
            ({"keep_last": torch.tensor(BEHIND)}, BEHIND),
            ({"context_length": torch.tensor(LENGTHS)}, BEHIND),
            ({"context_length": 2}, [len(row) - 2 for row in ROWS]),
            ({"keep_last": 0}, [0] * 3),
        ):
            logits = model(input_ids=ids, attention_mask=mask, **said).logits
            assert logits.shape[:2] == ids.shape
            assert_logits(logits, mask, model.backbone, split, behind)


@settings(max_examples=25)
@given(st.data())
def test_any_boundary_on_either_side_is_the_spliced_text(data):
    rows = data.draw(st.lists(st.lists(st.integers(3, 59), min_size=1, max_size=6), min_size=1, max_size=3))
    behind = [data.draw(st.integers(0, len(row))) for row in rows]
    position, side = data.draw(st.sampled_from(list(SPLITS))), data.draw(st.sampled_from(["left", "right"]))
    model = decoder(data.draw(st.sampled_from(list(DECODERS))), position)
    ids, mask = spliced.padded(rows, side, extra=data.draw(st.integers(0, 2)))
    with torch.no_grad():
        last = model(ids, mask, keep_last=torch.tensor(behind)).logits
        length = mask.sum(1) - torch.tensor(behind)
        assert_close(model(ids, mask, context_length=length).logits, last, rtol=0, atol=1e-12)
        for number, (row, count) in enumerate(zip(rows, behind, strict=True)):
            wanted = spliced.causal_logits(model.backbone, row, SPLITS[position], count)
            assert_close(last[number, mask[number] != 0][:-1], wanted[:-1], rtol=0, atol=1e-10)
            assert_close(last[number, -1], wanted[-1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("position", SPLITS)
def test_labels_never_move_the_prompt(kind, position):
    """The same place with and without labels, in training, evaluation and generation; the loss is that by hand."""
    model = decoder(kind, position)
    ids, mask = spliced.padded(ROWS)
    lists = [[-100] * n + row[n:] for n, row in zip(LENGTHS, ROWS, strict=True)]
    labels, where = spliced.padded(lists, fill=-100)[0], {"context_length": torch.tensor(LENGTHS)}
    wanted = spliced.causal_loss(model.backbone, ROWS, lists, SPLITS[position], BEHIND)
    for mode in (False, True):
        model.train(mode)
        output = model(ids, mask, labels=labels, **where)
        assert_loss(output.loss, wanted)
        assert_close(output.logits, model(ids, mask, **where).logits, rtol=0, atol=0)
    multi_turn = labels.clone()
    multi_turn[2, 1] = 17  # a label in front of the boundary, as in several turns
    assert_close(model(ids, mask, labels=multi_turn, **where).logits, output.logits, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"position": "postfix"}, {"position": 1}, *LEARNED])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_boundary_that_is_not_said_is_an_error_before_any_work(kind, options):
    model, calls = decoder(kind, **options), []
    ids, mask = spliced.padded(ROWS)
    handle = model.backbone.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))
    try:
        for mode, labels in ((False, ids), (True, ids), (True, None)):
            model.train(mode)
            with pytest.raises(ValueError, match="context_length") as error:
                model(ids, mask, labels=labels)
            assert "keep_last" in str(error.value) and not calls
    finally:
        handle.remove()
    with torch.no_grad():
        model.train()(ids, mask)  # nothing is learned, so nothing can be learned wrongly
    model.eval()(ids, mask)
    model.train()(ids, mask, labels=ids, keep_last=0)  # said


@pytest.mark.parametrize("kind", DECODERS)
def test_a_fixed_prefix_needs_no_boundary(kind):
    model, labels = decoder(kind, "prefix").train(), spliced.padded(ROWS, fill=-100)[0]
    ids, mask = spliced.padded(ROWS)
    wanted = spliced.causal_loss(model.backbone, ROWS, ROWS, len(WORDS), [0] * 3)
    assert_loss(model(ids, mask, labels=labels).loss, wanted)
    assert model(ids, mask).loss is None


@pytest.mark.parametrize("name", ["keep_last", "context_length"])
@pytest.mark.parametrize(
    "value", [-1, 1.5, "2", True, [1, 2, 3], torch.tensor([1, 2]), torch.tensor([0.5, 1.0, 2.0])]
)
def test_a_wrong_boundary_is_named(name, value):
    model, (ids, mask) = decoder("gpt2"), spliced.padded(ROWS)
    for call in (model, model.generate, model.decide, model.insert_prompt):
        with pytest.raises((ValueError, TypeError), match=name):
            call(ids, mask, **{name: value})


def test_a_context_of_more_tokens_than_there_are_is_refused():
    """The prompt would stand behind the answer. As many as there are is the whole input."""
    model, (ids, mask) = decoder("gpt2", position="instance"), spliced.padded(ROWS, "left")
    lengths = torch.tensor([len(row) for row in ROWS])
    assert_close(
        model(ids, mask, context_length=lengths).logits, model(ids, mask, keep_last=0).logits, rtol=0, atol=0
    )
    lengths[1] += 2
    said = f"context_length is {len(ROWS[1]) + 2} for instance 1, which has {len(ROWS[1])} real tokens"
    for call in (model, model.generate, model.decide):
        with pytest.raises(ValueError, match=said):
            call(ids, mask, context_length=lengths)


@pytest.mark.parametrize("name", ["forward", "generate", "decide", "insert_prompt", "summarize"])
def test_both_boundaries_are_one_too_many(name):
    model, (ids, mask) = decoder("llama", position="instance"), spliced.padded(ROWS)
    with pytest.raises(ValueError, match="keep_last=1 and context_length=2"):
        getattr(model, name)(ids, mask, keep_last=1, context_length=2)


@pytest.mark.parametrize("kind", DECODERS)
def test_insertion_decisions_and_summaries_take_the_boundary_too(kind):
    """Decisions look at the tokens that the prompt surrounds and at nothing else."""
    model = decoder(kind, position="instance")
    with torch.no_grad():
        model.prompt.position.controller.linear.weight.normal_(0, 3)
    table = model.backbone.get_input_embeddings()
    for side in ("right", "left"):
        ids, mask = spliced.padded(ROWS, side)
        for said in ({"keep_last": torch.tensor(BEHIND)}, {"context_length": torch.tensor(LENGTHS)}):
            summary = model.summarize(ids, mask, **said)
            chosen = model.decide(ids, mask, **said)["position"].index
            placed = model.insert_prompt(ids, mask, **said)
            for number, row in enumerate(ROWS):
                context = torch.tensor([row[: LENGTHS[number]]])
                assert_close(summary[number], table(context)[0].mean(0), rtol=0, atol=1e-12)
                assert chosen[number] == model.decide(context)["position"].index[0]
                full = spliced.splice(row, int(chosen[number]), BEHIND[number])[0]
                found = placed.embeds[number][placed.mask[number] != 0]
                assert_close(found, table(torch.tensor(full)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("position", SPLITS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_generation_keeps_a_cue_behind_the_prompt(kind, position, side):
    model, split = decoder(kind, position), SPLITS[position]
    ids, mask = spliced.padded(ROWS, side)
    options = dict(max_new_tokens=4, do_sample=False, pad_token_id=tiny.PAD)
    for said, behind in (
        ({"keep_last": 2}, [2] * 3),
        ({"context_length": torch.tensor(LENGTHS)}, BEHIND),
        ({}, [0] * 3),
    ):
        found = model.generate(ids, mask, **said, **options).tolist()
        assert found == [
            spliced.continuation(model.backbone, row, split, last)
            for row, last in zip(ROWS, behind, strict=True)
        ]


def test_an_encoder_decoder_takes_the_boundary_too():
    backbone = tiny.t5()
    rows = [[*row, tiny.EOS] for row in ROWS]
    labels = torch.tensor([[8, 30], [4, 4], [50, 6]])
    for position, split in SPLITS.items():
        model = spliced.prompted(backbone, position)
        for side in ("right", "left"):
            ids, mask = spliced.padded(rows, side)
            for said, behind in (
                ({}, [1] * 3),
                ({"keep_last": 0}, [0] * 3),
                ({"keep_last": 3}, [3] * 3),
                (
                    {"context_length": torch.tensor([1, 2, 3])},
                    [len(row) - n for row, n in zip(rows, (1, 2, 3), strict=True)],
                ),
            ):
                with torch.no_grad():
                    found = model(ids, mask, labels=labels, **said).logits
                    for number, row in enumerate(rows):
                        full = torch.tensor([spliced.splice(row, split, behind[number])[0]])
                        wanted = backbone(input_ids=full, labels=labels[number : number + 1]).logits[0]
                        assert_close(found[number], wanted, rtol=0, atol=1e-10)


# ---- masks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny.gpt2, tiny.llama, tiny.t5])
@pytest.mark.parametrize("side", ["right", "left"])
def test_generation_without_a_mask_finds_the_padding_as_the_backbone_does(make, side):
    backbone = make()
    model = spliced.prompted(backbone, "postfix")
    rows = [[*row, tiny.EOS] for row in ROWS] if make is tiny.t5 else ROWS
    ids, mask = spliced.padded(rows, side)
    if make is not tiny.t5:
        backbone.generation_config.pad_token_id = tiny.PAD
    options = dict(max_new_tokens=4, do_sample=False)
    assert torch.equal(model.generate(ids, **options), model.generate(ids, mask, **options))
    no_padding = torch.tensor([rows[0]])
    assert torch.equal(
        model.generate(no_padding, **options),
        model.generate(no_padding, torch.ones_like(no_padding), **options),
    )


def test_padding_that_is_the_end_token_is_not_padding():
    """As in the backbone's own generation: where both are the same token nothing can be inferred."""
    backbone = tiny.gpt2()
    backbone.generation_config.pad_token_id = backbone.generation_config.eos_token_id = 59
    model, ids = spliced.prompted(backbone, "prefix"), torch.tensor([[5, 9, 59, 59]])
    options = dict(max_new_tokens=3, do_sample=False)
    assert torch.equal(model.generate(ids, **options), model.generate(ids, torch.ones_like(ids), **options))


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_forward_without_a_mask_takes_all_tokens_as_real_and_warns_once_of_padding(kind, side):
    model, (ids, _) = decoder(kind, "prefix"), spliced.padded(ROWS, side)
    with pytest.warns(UserWarning, match="attention_mask"):
        found = model(ids).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(model(ids).logits, found)
        other = decoder(kind, "prefix")
        other(torch.tensor([[5, 9]]))  # no padding, no warning
    assert_close(found, model(ids, torch.ones_like(ids)).logits, rtol=0, atol=0)


# ---- positions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("position", SPLITS)
@pytest.mark.parametrize("behind", [0, 2])
def test_given_positions_move_up_by_the_vectors_in_front(kind, position, behind):
    """An offset, and a gap inside of the text: vectors continue the count of the row in front of them."""
    model, split, row = decoder(kind, position), SPLITS[position], ROWS[0]
    for own in ([4, 5, 6, 7, 8], [0, 1, 5, 6, 7], [3, 7, 8, 20, 21]):
        cut, found = len(row) - behind, torch.tensor([own])
        front = [own[0] + i for i in range(split)]
        inside = [p + split for p in own[:cut]]
        after = [inside[-1] + 1 + i for i in range(len(WORDS) - split)]
        positions = torch.tensor([[*front, *inside, *after, *(p + len(WORDS) for p in own[cut:])]])
        full, places = spliced.splice(row, split, behind)
        with torch.no_grad():
            plain = model.backbone(input_ids=torch.tensor([full]), position_ids=positions).logits[0]
            wanted = plain[spliced.predicting(places, len(full))]
            logits = model(torch.tensor([row]), position_ids=found, keep_last=behind).logits[0]
        assert_close(logits, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", DECODERS)
def test_positions_that_count_from_zero_change_nothing(kind):
    model, (ids, mask) = decoder(kind, 1), spliced.padded(ROWS)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    found, wanted = model(ids, mask, position_ids=positions).logits, model(ids, mask).logits
    assert_close(found[mask != 0], wanted[mask != 0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("position", SPLITS)
def test_positions_of_an_encoder_move_up_too(position):
    from transformers import BertForMaskedLM

    backbone, row, split = tiny.bert(BertForMaskedLM), ROWS[0], SPLITS[position]
    model, own = spliced.prompted(backbone, position), [4, 5, 6, 7, 8]
    full, places = spliced.splice(row, split)
    with torch.no_grad():
        positions = torch.arange(4, 4 + len(full))[None]
        wanted = backbone(input_ids=torch.tensor([full]), position_ids=positions).logits[0, places]
        found = model(input_ids=torch.tensor([row]), position_ids=torch.tensor([own])).logits[0]
    assert_close(found, wanted, rtol=0, atol=1e-10)


# ---- caches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("position", SPLITS)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("masked", [True, False])
def test_a_loop_by_hand_is_generate(kind, position, side, masked):
    """The prompt enters once; the mask of later steps is None or that of all input tokens so far."""
    model, split = decoder(kind, position), SPLITS[position]
    rows = ROWS if masked else [ROWS[0], ROWS[0][::-1]]
    ids, mask = spliced.padded(rows, side)
    for said, behind in (({}, 0), ({"keep_last": 1}, 1)):
        wanted = [spliced.continuation(model.backbone, row, split, behind, count=5) for row in rows]
        with torch.no_grad():
            output = model(
                ids, mask if masked else None, use_cache=True, past_key_values=DynamicCache(), **said
            )
            tokens, seen = [output.logits[:, -1].argmax(-1)], mask
            for _ in range(4):
                seen = torch.cat([seen, seen.new_ones(len(rows), 1)], 1)
                output = model(
                    tokens[-1][:, None],
                    attention_mask=seen if masked else None,
                    past_key_values=output.past_key_values,
                    use_cache=True,
                )
                assert output.logits.shape[1] == 1
                tokens.append(output.logits[:, -1].argmax(-1))
        assert torch.stack(tokens, 1).tolist() == wanted
        assert output.past_key_values.get_seq_length() == ids.shape[1] + len(WORDS) + 4
        options = dict(max_new_tokens=5, do_sample=False, pad_token_id=tiny.PAD)
        assert model.generate(ids, mask, **said, **options).tolist() == wanted


@pytest.mark.parametrize("kind", DECODERS)
def test_several_new_tokens_continue_a_cache_at_once(kind):
    model, row = decoder(kind, 1), ROWS[2]
    with torch.no_grad():
        start = model(torch.tensor([row[:4]]), use_cache=True)
        rest = model(torch.tensor([row[4:]]), past_key_values=start.past_key_values, use_cache=True)
        wanted = spliced.causal_logits(model.backbone, row, 1, behind=3)
    assert_close(rest.logits[0], wanted[4:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_cache_from_elsewhere_is_refused(kind):
    model, ids = decoder(kind, 1), torch.tensor([ROWS[0]])
    cache = DynamicCache()
    with torch.no_grad():
        model.backbone(ids, past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="past_key_values"):
        model(ids[:, -1:], past_key_values=cache)


# ---- lengths -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("position", SPLITS)
def test_max_length_and_min_length_count_tokens_and_no_vectors(kind, position):
    model, row, split = decoder(kind, position), ROWS[0], SPLITS[position]
    ids, options = torch.tensor([row]), dict(do_sample=False, pad_token_id=tiny.PAD)
    wanted = spliced.continuation(model.backbone, row, split, count=6)
    assert model.generate(ids, max_length=len(row) + 3, **options).tolist() == [wanted[:3]]
    stop = wanted[1]  # generation would end here
    ended = model.generate(ids, max_length=len(row) + 6, eos_token_id=stop, **options)
    assert ended.tolist() == [wanted[: wanted.index(stop) + 1]]
    longer = model.generate(
        ids, max_length=len(row) + 6, min_length=len(row) + 4, eos_token_id=stop, **options
    )
    assert stop not in longer[0, :4].tolist() and longer.shape[1] >= 4


def test_a_max_length_without_room_for_a_new_token_is_named():
    model, (ids, mask) = decoder("gpt2", "prefix"), tiny.batch([7, 4], eos=False)
    for limit in (3, 7):
        with pytest.raises(
            ValueError, match=f"max_length={limit} leaves no room .* the input has 7 with its"
        ):
            model.generate(ids, mask, max_length=limit)
    assert model.generate(ids, mask, max_length=8, pad_token_id=tiny.PAD).shape == (2, 1)
    # As in transformers, a number of new tokens goes before it.
    assert model.generate(ids, mask, max_length=3, max_new_tokens=2, pad_token_id=tiny.PAD).shape == (2, 2)
    model.backbone.generation_config.max_new_tokens = 3
    assert model.generate(ids, mask, max_length=3, pad_token_id=tiny.PAD).shape == (2, 3)


@pytest.mark.parametrize("make", [tiny.gpt2, tiny.t5])
def test_generation_takes_its_input_by_the_name_of_transformers_and_no_assistant(make):
    model, (ids, mask) = spliced.prompted(make(), "prefix"), tiny.batch([7, 4])
    options = dict(attention_mask=mask, do_sample=False, max_new_tokens=3, pad_token_id=tiny.PAD)
    assert torch.equal(model.generate(inputs=ids, **options), model.generate(input_ids=ids, **options))
    with pytest.raises(ValueError, match="assistant_model is a .*, expected None: an assistant reads tokens"):
        model.generate(ids, assistant_model=make(seed=1), **options)


def test_max_length_of_the_configuration_counts_the_same():
    backbone = tiny.gpt2()
    model, row = spliced.prompted(backbone, "prefix"), ROWS[0]
    backbone.generation_config.max_length = len(row) + 2
    found = model.generate(torch.tensor([row]), do_sample=False, pad_token_id=tiny.PAD)
    backbone.generation_config.max_length = None  # so that the reference is not cut
    assert found.tolist() == [spliced.continuation(backbone, row, len(WORDS), count=2)]


def test_max_length_of_an_encoder_decoder_counts_its_answer():
    backbone, ids = tiny.t5(), torch.tensor([[*ROWS[0], tiny.EOS]])
    full = torch.tensor([spliced.splice([*ROWS[0], tiny.EOS], 1, behind=1)[0]])
    options = dict(max_length=6, do_sample=False)
    assert torch.equal(
        spliced.prompted(backbone, 1).generate(ids, **options), backbone.generate(full, **options)
    )


def test_a_text_past_the_table_is_an_error_that_says_so():
    """Nothing raw from inside of an embedding: not from forward, and not from generation that would run past it."""
    model = decoder("gpt2", "prefix")
    ids = torch.randint(3, 60, (1, 62))
    with pytest.raises(ValueError, match="65 positions.*64"):
        model(ids)
    with pytest.raises(ValueError, match="generation went past max_position_embeddings=64; .* 62 positions"):
        model.generate(
            ids[:, :59], max_new_tokens=20, min_new_tokens=20, do_sample=False, pad_token_id=tiny.PAD
        )


@pytest.mark.parametrize("make", [tiny.t5, tiny.gpt2, tiny.llama, tiny.bert])
@pytest.mark.parametrize("name", ["forward", "generate"])
def test_an_empty_input_is_an_error_that_says_so(make, name):
    model, ids = spliced.prompted(make(), "prefix"), torch.zeros(2, 0, dtype=torch.long)
    name = "decide" if make is tiny.bert and name == "generate" else name
    labels = {"labels": torch.tensor([[5], [6]])} if name == "forward" and make is tiny.t5 else {}
    with pytest.raises(ValueError, match=r"input_ids has shape \(2, 0\)"):
        getattr(model, name)(ids, **labels)


# ---- what comes back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny.gpt2, tiny.llama, tiny.bert])
@pytest.mark.parametrize("position", SPLITS)
def test_states_of_layers_hold_all_rows_and_answers_those_of_the_input(make, position):
    from transformers import BertForMaskedLM

    backbone = make(BertForMaskedLM) if make is tiny.bert else make()
    model, row, split = spliced.prompted(backbone, position), ROWS[0], SPLITS[position]
    full, places = spliced.splice(row, split)
    with torch.no_grad():
        found = model(torch.tensor([row]), output_hidden_states=True)
        wanted = backbone(torch.tensor([full]), output_hidden_states=True)
        base = spliced.prompted(backbone.base_model, position)(torch.tensor([row]))
    assert found.logits.shape[1] == len(row)
    assert len(found.hidden_states) == len(wanted.hidden_states)
    for one, other in zip(found.hidden_states, wanted.hidden_states, strict=True):
        assert_close(one, other, rtol=0, atol=1e-10)
    assert base.last_hidden_state.shape[1] == len(row)
    if make is tiny.bert:
        assert_close(base.last_hidden_state, wanted.hidden_states[-1][:, places], rtol=0, atol=1e-10)
