"""Attention with prompts: each statement in sympy and on tensors, against loops and real models, with what breaks it."""

from itertools import product

import pytest
import sympy as sp
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Model,
    LlamaModel,
    ViTConfig,
    ViTModel,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.t5.modeling_t5 import T5Attention

import dplearn as dp
from dplearn.theory import attention as A
from dplearn.theory.attention import AFTER, BEFORE, INPUT

INF = float("inf")
CLOSE = dict(rtol=0, atol=1e-12)
SIZES = [(3, 2, 1), (2, 3, 2), (2, 2, 0), (4, 3, 3)]  # (l, T, k)


def random(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


@st.composite
def rows(draw):
    """Scores (h, S, S) with some keys hidden, values (h, S, 2) and sizes; every row sees one key at least."""
    length, seq = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    split, seed = draw(st.integers(0, length)), draw(st.integers(0, 999))
    size = length + seq
    s = random(2, size, size, seed=seed, scale=3.0)
    hidden = torch.rand(size, size, generator=torch.Generator().manual_seed(seed)) < 0.3
    return (
        s.masked_fill(hidden & ~torch.eye(size, dtype=torch.bool), -INF),
        random(2, size, 2, seed=seed),
        length,
        seq,
        split,
    )


# ---- which row is what ----


@pytest.mark.parametrize("length, seq", [(0, 2), (1, 1), (3, 2), (4, 5)])
def test_arrangement_and_segments_are_concatenations(length, seq):
    P, X = [f"P{i}" for i in range(length)], [f"X{j}" for j in range(seq)]
    for k in range(length + 1):
        order, labels = A.arrangement(length, seq, k), A.segments(length, seq, k)
        assert [(P + X)[i] for i in order] == P[:k] + X + P[k:]
        assert labels.tolist() == [BEFORE] * k + [INPUT] * seq + [AFTER] * (length - k)
        assert order[order.argsort()].tolist() == list(range(length + seq))


@pytest.mark.parametrize("side", ["right", "left"])
def test_segments_of_an_inserted_batch_follow_the_prompt(side):
    l, split, size = 4, torch.tensor([1, 4, 0]), torch.tensor([4, 3, 2])
    _, mask = tiny.batch([5, 2, 3], side=side)
    marked = torch.arange(1.0, l + 1)[:, None]  # the vectors are 1..l, the tokens 0
    placed = dp.insert(marked, torch.zeros(3, 5, 1), mask, split, size, keep_last=1)
    labels = A.segments_of(placed, split)
    for b in range(3):
        for row, label in zip(placed.embeds[b, :, 0].tolist(), labels[b].tolist()):
            used = 0 < row <= size[b]
            assert label == (INPUT if not used else BEFORE if row <= split[b] else AFTER)
    whole = dp.insert(marked, torch.zeros(1, 5, 1), None, 2)
    assert A.segments_of(whole, 2)[0].tolist() == A.segments(l, 5, 2).tolist()


# ---- biases ----

BUCKETS = [(True, 32, 128), (False, 32, 128), (True, 16, 64), (False, 16, 64), (True, 8, 20), (True, 64, 300)]


@pytest.mark.parametrize("bidirectional, buckets, farthest", BUCKETS)
def test_buckets_are_those_of_transformers(bidirectional, buckets, farthest):
    offsets = torch.arange(-1000, 1001)
    options = dict(bidirectional=bidirectional, max_distance=farthest)
    theirs = T5Attention._relative_position_bucket(offsets, num_buckets=buckets, **options)
    assert torch.equal(A.relative_buckets(offsets, buckets=buckets, **options), theirs)
    assert not torch.equal(
        A.relative_buckets(offsets, buckets=buckets, **options | {"max_distance": farthest + 9}), theirs
    )


def test_facts_about_the_default_buckets():
    right, left = (A.relative_buckets(sign * torch.arange(1, 500)) for sign in (1, -1))
    assert left[:7].tolist() == list(range(1, 8)) and right[:7].tolist() == list(
        range(17, 24)
    )  # |r| < 8: exact
    assert A.bucket_edges()[0] == 8 and A.bucket_edges()[-1] == 91
    assert set(right[90:].tolist()) == {31} and set(left[90:].tolist()) == {
        15
    }  # |r| >= 91: one bucket for each side
    assert right[89] == 30 and left[89] == 14  # and not from 90 on
    assert set(left.tolist()).isdisjoint(right.tolist())
    causal = A.relative_buckets(torch.arange(-500, 500), bidirectional=False)
    assert set(causal[500:].tolist()) == {0} and causal[0] == 31


def test_far_rows_see_a_prefix_and_a_postfix_with_constant_biases():
    l, seq = 3, 300
    table = random(32, 2)
    prefix, postfix = (A.relative_bias(table, l + seq)[:, A.segments(l, seq, k) == INPUT] for k in (l, 0))
    profiles = prefix[:, :, :l], postfix[:, :, seq:]  # (h, T, l): of the prompt's keys, over the input's rows
    far = [slice(91, None), slice(None, seq - 91)]
    for profile, rows, bucket in zip(profiles, far, (15, 31)):
        assert torch.equal(profile[:, rows], table[bucket][:, None, None].expand_as(profile[:, rows]))
        assert not torch.equal(profile, table[bucket][:, None, None].expand_as(profile))
    both = slice(91, seq - 91)
    change = profiles[1][:, both] - profiles[0][:, both]
    assert all(len(head.unique()) == 1 for head in change)


def test_relative_bias_is_that_of_t5():
    model = tiny.t5(relative_attention_num_buckets=8, relative_attention_max_distance=20)
    for stack, bidirectional in ((model.encoder, True), (model.decoder, False)):
        attention = stack.block[0].layer[0].SelfAttention
        ours = A.relative_bias(
            attention.relative_attention_bias.weight, 30, 40, bidirectional=bidirectional, max_distance=20
        )
        assert torch.equal(ours, attention.compute_bias(30, 40)[0])


def test_rotary_is_that_of_llama_and_depends_on_distances_alone():
    q, k = random(1, 2, 7, 8, seed=1), random(1, 2, 7, 8, seed=2)
    positions = torch.arange(7)
    rotary = tiny.llama(
        LlamaModel
    ).rotary_emb  # heads of width 4 there: the tables are made for q's width here
    angles = positions[:, None] * 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    cos, sin = (f(torch.cat([angles, angles], -1))[None] for f in (torch.cos, torch.sin))
    theirs = apply_rotary_pos_emb(q, k, cos, sin)
    torch.testing.assert_close((A.rotate(q, positions), A.rotate(k, positions)), theirs, **CLOSE)
    x = random(1, 7, 4, seed=3)
    cos, sin = rotary(x, positions[None])  # computed in float32 there
    small = apply_rotary_pos_emb(x[None], x[None], cos, sin)[0]
    torch.testing.assert_close(A.rotate(x[None], positions), small, rtol=0, atol=1e-5)
    near, far = (A.scores(A.rotate(q, positions + s), A.rotate(k, positions + s)) for s in (0, 17))
    torch.testing.assert_close(near, far, **CLOSE)
    mixed = A.scores(A.rotate(q, positions), A.rotate(k, positions + 1))
    assert (near - mixed).abs().max() > 0.1
    with pytest.raises(ValueError, match="x has width 3, expected an even number"):
        A.rotate(q[..., :3], positions)


# ---- attention and the decomposition on tensors ----


@pytest.mark.parametrize("mask", ["none", "causal", "padding"])
def test_attention_is_the_loop_and_torchs(mask):
    q, k, v = (random(2, 3, 5, 4, seed=i) for i in range(3))
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    bias = {"none": None, "causal": A.causal_bias(5), "padding": A.padding_bias(real)}[mask]
    out = A.attend(A.scores(q, k, bias, scale=0.5), v)
    torch.testing.assert_close(out, scaled_dot_product_attention(q, k, v, bias, scale=0.5), **CLOSE)
    for b, h, i in product(range(2), range(3), range(5)):
        seen = [j for j in range(5) if mask != "causal" or j <= i if mask != "padding" or real[b, j]]
        weights = [torch.exp(0.5 * q[b, h, i] @ k[b, h, j]) for j in seen]
        loop = sum(w * v[b, h, j] for w, j in zip(weights, seen)) / sum(weights)
        torch.testing.assert_close(out[b, h, i], loop, **CLOSE)


@given(rows())
def test_decomposition_is_the_loop_and_sums_to_attention(case):
    s, v, length, seq, split = case
    labels = A.segments(length, seq, split)
    parts = A.decompose(s, v, labels)
    torch.testing.assert_close(A.combine(parts), A.attend(s, v), **CLOSE)
    torch.testing.assert_close(parts.gates.sum(-1), torch.ones(s.shape[:-1], dtype=s.dtype), **CLOSE)
    for h, i, c in product(range(2), range(len(labels)), range(3)):
        keys = [j for j in range(len(labels)) if labels[j] == c and s[h, i, j] > -INF]
        weight = sum((s[h, i, j].exp() for j in keys), torch.zeros((), dtype=s.dtype))
        torch.testing.assert_close(parts.gates[h, i, c], weight / s[h, i].exp().sum(), **CLOSE)
        if not keys:  # nothing to see: the gate is zero, exactly
            assert parts.gates[h, i, c] == 0 and (parts.outputs[h, i, c] == 0).all()
            continue
        alone = sum(s[h, i, j].exp() * v[h, j] for j in keys) / weight
        torch.testing.assert_close(parts.outputs[h, i, c], alone, **CLOSE)


def test_gates_by_the_number_of_keys_are_not_the_gates():
    s, v, labels = random(6, 6), random(6, 2, seed=1), A.segments(3, 3, 1)
    parts = A.decompose(s, v, labels)
    counted = torch.tensor([1, 3, 2]) / 6
    assert (A.combine(parts._replace(gates=counted.expand(6, 3))) - A.attend(s, v)).abs().max() > 0.1


def test_prefix_alone_is_the_case_of_two_terms():
    s, v = random(5, 5), random(5, 2, seed=1)
    parts = A.decompose(s, v, A.segments(2, 3, 2))  # k = l: nothing behind the input
    gate = parts.gates[:, BEFORE, None]
    assert (parts.gates[:, AFTER] == 0).all()
    two_terms = (1 - gate) * parts.outputs[:, INPUT] + gate * parts.outputs[:, BEFORE]
    torch.testing.assert_close(two_terms, A.attend(s, v), **CLOSE)


@given(rows())
def test_two_prompt_terms_are_one(case):
    s, v, length, seq, split = case
    labels = A.segments(length, seq, split)
    merged = A.rebracket(A.decompose(s, v, labels))
    joint = A.decompose(s, v, labels.clamp(max=INPUT) * (labels != AFTER), count=2)  # 0 = prompt, 1 = input
    torch.testing.assert_close(tuple(merged), tuple(joint), **CLOSE)
    torch.testing.assert_close(A.combine(merged), A.attend(s, v), **CLOSE)


def test_merging_with_equal_weights_is_not_the_prompts_attention():
    s, v, labels = random(6, 6), random(6, 2, seed=1), A.segments(3, 3, 1)
    parts = A.decompose(s, v, labels)
    plain = (parts.outputs[:, BEFORE] + parts.outputs[:, AFTER]) / 2
    assert (plain - A.rebracket(parts).outputs[:, BEFORE]).abs().max() > 0.05


def test_a_row_that_sees_nothing_gives_zeros_and_nan_stays_nan():
    s, v, labels = random(4, 4), random(4, 2, seed=1), A.segments(2, 2, 1)
    blind = s.masked_fill(torch.arange(4)[:, None] == 1, -INF)
    parts = A.decompose(blind, v, labels)
    assert (
        (A.attend(blind, v)[1] == 0).all()
        and (parts.gates[1] == 0).all()
        and (A.combine(parts)[1] == 0).all()
    )
    assert (A.rebracket(parts).outputs[1] == 0).all()
    broken = s.clone()
    broken[0, 0] = torch.nan
    assert A.attend(broken, v)[0].isnan().all() and A.gates(broken, labels)[0].isnan().any()


def test_gates_are_per_head():
    s, v, labels = random(1, 2, 5, 5, scale=2.0), random(1, 2, 5, 3, seed=1), A.segments(2, 3, 1)
    projection = random(4, 6, seed=2)
    parts = A.decompose(s, v, labels)
    heads = A.attend(s, v)
    whole = A.multihead(heads, projection)
    for i in range(5):  # heads side by side, then W_O
        torch.testing.assert_close(
            whole[0, i], projection @ torch.cat([heads[0, 0, i], heads[0, 1, i]]), **CLOSE
        )
    torch.testing.assert_close(A.multihead(A.combine(parts), projection), whole, **CLOSE)
    shared = parts._replace(gates=parts.gates.mean(1, keepdim=True).expand_as(parts.gates))
    assert (A.multihead(A.combine(shared), projection) - whole).abs().max() > 0.1


# ---- row by row ----


def one_layer(P, X, split, *, relative=None, causal=False, absolute=None):
    """One head with fixed random weights over [P; X] at a split: scores and outputs in the order P, X."""
    order = A.arrangement(len(P), len(X), split)
    z = torch.cat([P, X])[order]
    z = z if absolute is None else z + absolute[: len(z)]
    w_q, w_k, w_v = (random(P.shape[1], P.shape[1], seed=40 + i, scale=0.5) for i in range(3))
    s = A.scores(z @ w_q, z @ w_k)
    s = s if relative is None else s + relative(A.offsets(len(z)))
    s = s + A.causal_bias(len(z)) if causal else s
    back = order.argsort()
    return s[back][:, back], A.attend(s, z @ w_v)[back]


def linear_bias(offsets):
    return -0.7 * offsets.abs() + 0.3 * offsets


def test_without_positions_and_mask_every_row_is_the_same_at_all_splits():
    P, X = random(3, 4), random(4, 4, seed=1)
    outs = [one_layer(P, X, k)[1] for k in range(4)]
    assert all(torch.allclose(out, outs[0], **CLOSE) for out in outs)
    for control in ({"relative": linear_bias}, {"causal": True}, {"absolute": random(7, 4, seed=2)}):
        outs = [one_layer(P, X, k, **control)[1] for k in range(4)]
        assert (outs[1] - outs[2]).abs().max() > 1e-2, control


@pytest.mark.parametrize(
    "setting", [{}, {"relative": linear_bias}, {"relative": linear_bias, "causal": True}]
)
def test_no_prompt_changes_the_ratios_among_the_inputs_keys(setting):
    X, length = random(4, 4, seed=1), 3
    labels = torch.tensor([BEFORE] * length + [INPUT] * 4)  # in the order P, X
    bare = one_layer(random(0, 4), X, 0, **setting)[0].softmax(-1)
    for seed, k in product(range(3), range(length + 1)):
        s, out = one_layer(random(length, 4, seed=10 + seed, scale=2.0), X, k, **setting)
        of_input = A.within(s.softmax(-1), labels, INPUT)[length:]
        torch.testing.assert_close(of_input, bare, **CLOSE)


def test_absolute_positions_and_readouts_outside_the_input_are_the_exceptions():
    P, X = random(3, 4, seed=10), random(4, 4, seed=1)
    labels = torch.tensor([BEFORE] * 3 + [INPUT] * 4)
    absolute = [one_layer(P, X, k, absolute=random(7, 4, seed=2))[0].softmax(-1) for k in (1, 3)]
    found = [A.within(w, labels, INPUT)[3:] for w in absolute]
    assert (found[0] - found[1]).abs().max() > 0.05
    # A readout behind the prompt is one more token: here the last of P, which stays last for k < l.
    relative = [one_layer(P, X, k, relative=linear_bias)[0].softmax(-1) for k in (0, 2)]
    found = [A.within(w, labels, INPUT)[2] for w in relative]
    assert torch.allclose(found[0], found[1], **CLOSE)  # a linear bias has ratios that no shift changes
    curved = [one_layer(P, X, k, relative=lambda r: -0.2 * r**2)[0].softmax(-1) for k in (0, 2)]
    found = [A.within(w, labels, INPUT)[2] for w in curved]
    assert (found[0] - found[1]).abs().max() > 0.05


def test_an_input_row_is_a_mixture_of_its_bare_attention_and_a_mean_of_prompt_values():
    P, X = random(3, 4, seed=10), random(4, 4, seed=1)
    _, bare = one_layer(random(0, 4), X, 0, relative=linear_bias)
    w_v = random(4, 4, seed=42, scale=0.5)
    for k in range(4):
        s, out = one_layer(P, X, k, relative=linear_bias)
        gate = A.gates(s, torch.tensor([0] * 3 + [1] * 4), count=2)[3:, :1]
        mean = (out[3:] - (1 - gate) * bare) / gate
        weights = torch.linalg.lstsq((P @ w_v).T, mean.T).solution  # the mean in terms of the 3 values, d = 4
        torch.testing.assert_close((P @ w_v).T @ weights, mean.T, rtol=0, atol=1e-9)
        assert (weights > 0).all() and torch.allclose(weights.sum(0), torch.ones(4, dtype=torch.float64))


def test_causal_input_rows_never_see_the_prompt_behind_them():
    P, X = random(3, 4, seed=10), random(4, 4, seed=1)
    for k in range(4):
        back = A.arrangement(3, 4, k).argsort()
        s, out = one_layer(P, X, k, causal=True)
        g = A.gates(s, A.segments(3, 4, k)[back])
        assert (g[3:, AFTER] == 0).all() and (g[:k, 1:] == 0).all()
        assert (g[3:, BEFORE] > 0).all() == (k > 0) and (g[k:3] > 0).all() == (0 < k)
        other = one_layer(P, X + 1, k, causal=True)[1]
        assert torch.equal(out[:k], other[:k])  # constants: no input reaches the rows before it
        assert k == 3 or (out[k:3] - other[k:3]).abs().min() > 1e-3
    open_gates = A.gates(one_layer(P, X, 1)[0], A.segments(3, 4, 1)[A.arrangement(3, 4, 1).argsort()])
    assert (open_gates > 0).all()


@pytest.mark.parametrize("length, seq", [(1, 2), (3, 4), (4, 2)])
def test_content_free_gates_are_those_of_the_bias_alone(length, seq):
    for k in range(length + 1):
        labels = A.segments(length, seq, k)
        full = A.gates(linear_bias(A.offsets(length + seq)).double(), labels)[labels == INPUT]
        short = A.content_free_gates(linear_bias, length, seq, k).double()
        torch.testing.assert_close(short, full, rtol=0, atol=1e-6)  # python floats times integers are float32
        mirrored = A.content_free_gates(lambda r: linear_bias(-r), length, seq, k).double()
        assert (mirrored - full).abs().max() > 1e-2


def test_content_free_gates_of_a_real_t5_layer():
    encoder = tiny.t5().encoder
    attention = encoder.block[0].layer[0].SelfAttention
    with torch.no_grad():
        attention.q.weight.zero_()
    table, labels = attention.relative_attention_bias.weight, A.segments(4, 5, 1)
    with A.recording(encoder) as layers:
        encoder(inputs_embeds=random(1, 9, tiny.WIDTH))
    found = A.layer_gates(layers, labels)[:, 0, :, labels == INPUT]  # (layers, h, T, 3)
    for head in range(2):
        expected = A.content_free_gates(lambda r, head=head: table[A.relative_buckets(r), head], 4, 5, 1)
        torch.testing.assert_close(found[0, head], expected, **CLOSE)
        assert (found[1, head] - expected).abs().max() > 1e-3  # the second layer has queries


# ---- in symbols ----


@pytest.mark.parametrize("size", SIZES)
def test_the_decomposition_is_an_identity(size):
    assert A.difference(*A.symbolic_decomposition(*size)) == 0
    assert A.difference(*A.symbolic_rebracketing(*size)) == 0


@pytest.mark.parametrize("size", [(3, 2, 1), (4, 3, 2)])
def test_wrong_gates_are_no_identity(size):
    row = A.symbols(*size)
    parts = A.symbolic_parts(row)
    whole = A.symbolic_attend(row.scores, row.values)
    swapped = (
        parts[AFTER][0] * parts[BEFORE][1] + parts[1][0] * parts[1][1] + parts[BEFORE][0] * parts[AFTER][1]
    )
    assert A.difference(whole, swapped) != 0
    assert A.difference(whole, sum(output for _, output in parts) / 3) != 0
    mean = (parts[BEFORE][1] + parts[AFTER][1]) / 2
    two_terms = parts[BEFORE][0] * parts[BEFORE][1] + parts[AFTER][0] * parts[AFTER][1]
    assert A.difference(two_terms, (parts[BEFORE][0] + parts[AFTER][0]) * mean) != 0


@pytest.mark.parametrize("size", [(3, 2, 1), (4, 2, 2)])
def test_a_hidden_segment_has_the_gate_zero(size):
    for hidden in (BEFORE, AFTER):
        row = A.symbols(*size, hidden=[hidden])
        assert A.symbolic_gates(row.scores, row.segments)[hidden] == 0
        assert A.difference(*A.symbolic_decomposition(*size, hidden=[hidden])) == 0
    assert all(gate != 0 for gate in A.symbolic_gates(*A.symbols(*size)[::2]))


@pytest.mark.parametrize("size", [(2, 1, 1), (3, 2, 1)])
@pytest.mark.parametrize("heads", [2, 3])
def test_heads_have_gates_of_their_own(size, heads):
    assert A.difference(*A.symbolic_multihead(*size, heads)) == 0
    if heads == 2 and size == (2, 1, 1):
        assert A.difference(*A.symbolic_multihead(*size, heads, shared_gate=True)) != 0


def attention_of(length, seq, split, row, **options):
    found = A.symbolic_row(length, seq, split, row, **options)
    return A.symbolic_attend(found.scores, found.values)


@pytest.mark.parametrize("length, seq", [(2, 2), (3, 2)])
def test_order_is_seen_through_positions_and_masks_alone(length, seq):
    for row in range(length + seq):
        reference = attention_of(length, seq, length, row)
        assert all(A.difference(reference, attention_of(length, seq, k, row)) == 0 for k in range(length))
    for control in ({"relative": True}, {"causal": True}):
        row = length  # the first token of the input
        rest = attention_of(length, seq, length, row, **control), attention_of(length, seq, 0, row, **control)
        assert A.difference(*rest) != 0


@pytest.mark.parametrize("length, seq", [(1, 2), (3, 3)])
def test_key_ratios_change_for_readouts_only(length, seq):
    s = {name: sp.Symbol(name, real=True) for name in ("s_X1", "s_X2")}
    b = A.symbolic_bias
    for k in range(length + 1):
        for i in range(seq):  # row i of the input
            expected = sp.exp(s["s_X1"] - s["s_X2"] + b(-i) - b(1 - i))
            assert sp.simplify(A.symbolic_key_ratio(length, seq, k, length + i) / expected) == 1
    bare, surround = (A.symbolic_key_ratio(1, 2, k, "readout") for k in (0, 1))
    assert sp.simplify(surround / bare - sp.exp(-b(-3) + 2 * b(-2) - b(-1))) == 0
    without = [A.symbolic_key_ratio(length, seq, k, "readout", relative=False) for k in range(length + 1)]
    assert len(set(without)) == 1


@pytest.mark.parametrize("length, seq", [(2, 2), (3, 2)])
def test_causal_gates_in_symbols(length, seq):
    for k in range(length + 1):
        for row in range(length + seq):
            found = A.symbolic_row(length, seq, k, row, causal=True)
            gate = A.symbolic_gates(found.scores, found.segments)
            if row >= length:  # the input sees what stands before it
                assert gate[AFTER] == 0 and (gate[BEFORE] == 0) == (k == 0)
            elif row < k:  # the prompt before the input sees only itself
                assert gate == [1, 0, 0]
            else:
                assert gate[INPUT] != 0 and gate[AFTER] != 0


@pytest.mark.parametrize("length, seq", [(2, 2), (3, 2)])
def test_content_free_gates_in_symbols(length, seq):
    for k, row in product(range(length + 1), range(seq)):
        left, right = A.symbolic_content_free(length, seq, k, row)
        assert all(A.difference(x, y) == 0 for x, y in zip(left, right))
    other = A.symbolic_content_free(length, seq, 1, 1)[1]
    assert any(A.difference(x, y) != 0 for x, y in zip(A.symbolic_content_free(length, seq, 1, 0)[0], other))


def test_symbols_agree_with_tensors():
    length, seq, split = 3, 2, 1
    row = A.symbols(length, seq, split)
    numbers = {s: float(x) for s, x in zip([*row.scores, *row.values], random(10))}
    s = torch.tensor([[numbers[x] for x in row.scores]], dtype=torch.float64)
    v = torch.tensor([[numbers[x]] for x in row.values], dtype=torch.float64)
    parts = A.decompose(s, v, A.segments(length, seq, split))
    for c, (gate, output) in enumerate(A.symbolic_parts(row)):
        assert abs(float(gate.subs(numbers)) - parts.gates[0, c].item()) < 1e-12
        assert abs(float(output.subs(numbers)) - parts.outputs[0, c, 0].item()) < 1e-12


# ---- real models ----

LENGTH, SEQ, SPLIT = 4, 5, 2
SMALL = dict(hidden_size=tiny.WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
IMAGE = dict(image_size=8, patch_size=4, attention_dropout=0.0)


def vit(**options):
    config = dict(
        initializer_range=0.4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        image_size=8,
        patch_size=4,
    )
    return tiny.finish(ViTModel, ViTConfig(**SMALL, **config, **options), 0, torch.float64)


def clip_vision(**options):
    config = CLIPVisionConfig(**SMALL, **IMAGE, initializer_factor=10.0, projection_dim=tiny.WIDTH, **options)
    return tiny.finish(CLIPVisionModel, config, 0, torch.float64)


def clip_text(**options):
    ends = dict(bos_token_id=2, eos_token_id=tiny.EOS, pad_token_id=tiny.PAD)
    size = dict(vocab_size=tiny.VOCABULARY, max_position_embeddings=64, projection_dim=tiny.WIDTH)
    config = CLIPTextConfig(
        **SMALL, **size, **ends, initializer_factor=10.0, attention_dropout=0.0, **options
    )
    return tiny.finish(CLIPTextModel, config, 0, torch.float64)


def encoder(**options):
    return tiny.t5(**options).encoder


def run(model, embeds, mask=None):
    """Hidden states of a whole inserted sequence, put where the model would embed its own input."""
    if hasattr(model.config, "image_size"):
        place, inputs = model.embeddings, {"pixel_values": embeds.new_zeros(1, 3, 8, 8)}
    elif isinstance(model, CLIPTextModel):  # before its positions are added
        place = model.embeddings.token_embedding
        inputs = {"input_ids": torch.ones(len(embeds), embeds.shape[1], dtype=torch.long)}
    else:
        return model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
    hook = place.register_forward_hook(lambda *arguments: embeds)
    try:
        return model(**inputs).last_hidden_state
    finally:
        hook.remove()


MODELS = {  # name: (model, its attention's output projection relative to the recorded module's name)
    "t5": (encoder, "{}.o"),
    "bert": (lambda **o: tiny.bert(BertModel, **o), "{0[:-5]}.output.dense"),
    "gpt2": (lambda **o: tiny.gpt2(GPT2Model, **o), "{}.c_proj"),
    "llama": (lambda **o: tiny.llama(LlamaModel, **o), "{}.o_proj"),
    "vit": (vit, "{}.o_proj"),
    "clip vision": (clip_vision, "{}.out_proj"),
    "clip text": (clip_text, "{}.out_proj"),
}
CAUSAL = {"gpt2", "llama", "clip text"}


def projection_name(name, recorded):
    form = MODELS[name][1]
    return recorded.removesuffix(".self") + ".output.dense" if name == "bert" else form.format(recorded)


@pytest.fixture(scope="module")
def sequence():
    P, X = random(LENGTH, tiny.WIDTH, seed=5), random(1, SEQ, tiny.WIDTH, seed=6)
    return dp.insert(P, X, None, SPLIT).embeds, A.segments(LENGTH, SEQ, SPLIT)


@pytest.mark.parametrize("name", MODELS)
def test_real_layers_are_gated_sums(name, sequence):
    embeds, labels = sequence
    model = MODELS[name][0]()
    modules, hooked = dict(model.named_modules()), {}
    usual = run(model, embeds)
    with A.recording(model) as layers:
        wanted = {
            layer: projection_name(name, layer)
            for layer in modules
            if projection_name(name, layer) in modules
        }
        hooks = [
            modules[path].register_forward_hook(lambda m, a, out, layer=layer: hooked.update({layer: out}))
            for layer, path in wanted.items()
        ]
        recorded = run(model, embeds)
    for hook in hooks:
        hook.remove()
    assert torch.equal(usual, recorded)  # recording changes nothing
    assert len(layers) == 2 and model.config._attn_implementation == "sdpa"
    for layer in layers:
        assert A.decomposition_error(layer, labels) < 1e-12
        parts = A.decompose(layer.scores, layer.value, labels)
        projection = modules[wanted[layer.name]]
        weight = projection.weight.T if type(projection).__name__ == "Conv1D" else projection.weight
        rebuilt = A.multihead(A.combine(parts), weight, projection.bias)
        torch.testing.assert_close(rebuilt, hooked[layer.name], **CLOSE)  # what the module itself returned
        shared = parts._replace(gates=parts.gates.mean(1, keepdim=True).expand_as(parts.gates))
        assert (
            A.multihead(A.combine(shared), weight, projection.bias) - hooked[layer.name]
        ).abs().max() > 1e-3
    found = A.layer_gates(layers, labels)
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]), **CLOSE)
    after = found[..., labels == INPUT, AFTER]
    assert (after == 0).all() if name in CAUSAL else (after > 0).all()


@pytest.mark.parametrize("name", ["t5", "bert", "gpt2", "llama"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_gets_no_attention(name, side):
    model, split = MODELS[name][0](), torch.tensor([1, 3])
    _, mask = tiny.batch([5, 3], side=side)
    placed = dp.insert(random(LENGTH, tiny.WIDTH), random(2, 5, tiny.WIDTH, seed=1), mask, split)
    labels = A.segments_of(placed, split).masked_fill(placed.mask == 0, 3)  # padding as a segment of its own
    with A.recording(model) as layers:
        run(model, placed.embeds, placed.mask)
    real = placed.mask.bool()
    for layer, gates in zip(layers, A.layer_gates(layers, labels, count=4)):
        assert A.decomposition_error(layer, labels, count=4) < 1e-12
        rows = gates.transpose(1, 2)[real]  # (real rows, h, 4)
        assert (rows[..., 3] == 0).all() and (rows[..., INPUT] > 0).any()
    alone = dp.insert(
        random(LENGTH, tiny.WIDTH), random(2, 5, tiny.WIDTH, seed=1)[1:][:, mask[1].bool()], None, 3
    )
    with A.recording(model) as single:
        run(model, alone.embeds)
    own = A.layer_gates(single, A.segments(LENGTH, 3, 3))[:, 0]
    if name in {"gpt2", "bert"} and side == "left":
        return  # run() leaves it to these models to count positions, and they count the padding
    # Llama computes its angles in float32, so moving everything by the padding is exact to that precision only.
    close = dict(rtol=0, atol=1e-6) if name == "llama" and side == "left" else CLOSE
    found = A.layer_gates(layers, labels, count=4)[:, 1][:, :, real[1], :3]
    torch.testing.assert_close(found, own, **close)


@pytest.mark.parametrize("name", ["t5", "gpt2", "llama"])
def test_masks_of_ones_own_and_none_at_all_are_recorded(name, sequence):
    embeds, labels = sequence
    model = MODELS[name][0]()
    own = (torch.rand(9, 9, generator=torch.Generator().manual_seed(3)) < 0.6) | torch.eye(
        9, dtype=torch.bool
    )
    with A.recording(model) as layers:
        run(model, embeds, own[None, None])
    found = A.layer_gates(layers, torch.arange(9), count=9)  # every key a segment of its own
    assert max(A.decomposition_error(layer, labels) for layer in layers) < 1e-12
    assert (found[:, 0, :, ~own] == 0).all() and (found[:, 0, :, own] > 0).all()
    if name == "gpt2":  # a module that is called alone gets no mask, and is causal all the same
        with A.recording(model) as layers:
            model.h[0].attn(embeds)
        assert A.decomposition_error(layers[0], labels) < 1e-12
        assert (A.layer_gates(layers, labels)[..., labels == INPUT, AFTER] == 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_zero_blocks_of_the_jacobian(name, sequence):
    embeds, labels = sequence
    model = MODELS[name][0]()
    blocks = A.jacobian_blocks(lambda z: run(model, z), embeds, labels)
    if name in CAUSAL:
        zero = [(BEFORE, INPUT), (BEFORE, AFTER), (INPUT, AFTER)]
        assert all(blocks[pair] == 0 for pair in zero)  # exactly
        assert sum((blocks == 0).flatten().tolist()) == len(zero)
    else:
        assert (blocks > 1e-6).all()


def test_jacobian_blocks_of_a_known_function(sequence):
    weights = torch.tensor([[1.0, 0, 0], [2, 3, 0], [0, -4, 5]])
    blocks = A.jacobian_blocks(lambda z: weights @ z, torch.ones(1, 3, 2), torch.tensor([0, 0, 2]))
    assert blocks.tolist() == [[3, 0, 0], [0, 0, 0], [4, 0, 5]]


def test_a_deeper_layer_of_t5_is_not_that_of_the_model_without_prompt(sequence):
    embeds, labels = sequence
    model, inside = encoder(), labels == INPUT
    with A.recording(model) as prompted:
        run(model, embeds)
    with A.recording(model) as bare:
        run(model, embeds[:, inside])
    gaps = []
    for with_prompt, without in zip(prompted, bare):
        parts = A.decompose(with_prompt.scores, with_prompt.value, labels)
        gaps.append((parts.outputs[..., inside, INPUT, :] - without.output).abs().max())
    assert gaps[0] < 1e-12 < 1e-2 < gaps[1]


def first_layer(model, prompt, inputs, split):
    """Weights (h, S, S) of the first layer and its output (h, S, d_v), rows in the order P, X."""
    order = A.arrangement(len(prompt), inputs.shape[1], split)
    with A.recording(model) as layers:
        run(model, torch.cat([prompt, inputs[0]])[order][None])
    back = order.argsort()
    return layers[0].scores.softmax(-1)[0][:, back][:, :, back], layers[0].output[0][:, back]


@pytest.mark.parametrize("name", ["t5", "bert", "gpt2", "llama", "vit", "clip vision", "clip text"])
def test_ratios_among_the_input_in_real_first_layers(name):
    model, X = MODELS[name][0](), random(1, SEQ, tiny.WIDTH, seed=6)
    labels = torch.tensor([BEFORE] * LENGTH + [INPUT] * SEQ)
    bare, _ = first_layer(model, random(0, tiny.WIDTH), X, 0)
    gaps = []
    for seed, k in product((7, 8), range(LENGTH + 1)):
        weights, _ = first_layer(model, random(LENGTH, tiny.WIDTH, seed=seed), X, k)
        gaps.append((A.within(weights, labels, INPUT)[:, LENGTH:] - bare).abs().max().item())
    if name in {"bert", "gpt2", "clip text"}:  # positions that are added to the embeddings, and shift
        assert max(gaps) > 1e-2
        assert max(gaps[0], gaps[LENGTH + 1]) < 1e-12  # but for a postfix, which shifts nothing
    else:
        assert max(gaps) < (1e-6 if name == "llama" else 1e-12)  # Llama's angles are computed in float32


@pytest.mark.parametrize("name", MODELS)
def test_order_in_real_first_layers(name):
    model, P, X = MODELS[name][0](), random(LENGTH, tiny.WIDTH, seed=5), random(1, SEQ, tiny.WIDTH, seed=6)
    outs = [first_layer(model, P, X, k)[1] for k in range(LENGTH + 1)]
    largest = max((out - outs[0]).abs().max() for out in outs)
    assert largest < 1e-12 if name in {"vit", "clip vision"} else largest > 1e-2


@pytest.mark.parametrize("name", MODELS)
def test_eager_maps_give_the_same_gates(name, sequence):
    embeds, labels = sequence
    model = MODELS[name][0]()
    with A.recording(model) as layers:
        run(model, embeds)
    model.set_attn_implementation("eager")
    maps = []
    hooks = [
        module.register_forward_hook(lambda m, a, out: maps.append(out[-1]))
        for path, module in model.named_modules()
        if path in {layer.name for layer in layers}
    ]
    run(model, embeds)
    for hook in hooks:
        hook.remove()
    error = (A.gates_from_maps(maps, labels) - A.layer_gates(layers, labels)).abs().max()
    if name in {"t5", "bert", "gpt2"}:
        assert error < 1e-12
    else:
        assert 1e-12 < error < 1e-6  # these compute the softmax in float32 when eager, in float64 models too


def test_output_attentions_are_what_gates_from_maps_expects(sequence):
    embeds, labels = sequence
    model = tiny.bert(BertModel, attn_implementation="eager")
    with A.recording(model) as layers:
        run(model, embeds)
    maps = model(inputs_embeds=embeds, output_attentions=True).attentions
    torch.testing.assert_close(A.gates_from_maps(maps, labels), A.layer_gates(layers, labels), **CLOSE)


def test_recording_a_prompted_model_and_leaving_it_as_it_was():
    backbone = tiny.t5()
    model = dp.prompted(backbone, dp.PromptConfig(length=LENGTH, position=1)).eval()
    model.prompt = model.prompt.double()
    ids, mask = tiny.batch([5, 3])
    batch = dict(input_ids=ids, attention_mask=mask, labels=torch.tensor([[7, EOS], [8, EOS]]))
    before = model(**batch).logits
    with A.recording(model) as layers:
        during = model(**batch).logits
    assert torch.equal(before, during)
    kinds = {(layer.name.split(".")[1], layer.name.rsplit(".", 1)[1]) for layer in layers}
    assert kinds == {
        ("encoder", "SelfAttention"),
        ("decoder", "SelfAttention"),
        ("decoder", "EncDecAttention"),
    }
    placed = model.insert_prompt(ids, mask)
    with torch.no_grad():
        found = A.layer_gates(
            [layer for layer in layers if ".encoder." in layer.name], A.segments_of(placed, 1)
        )
    assert found.shape == (2, 2, 2, 9, 3) and (found[..., 0, :, :, BEFORE] > 0).all()
    with pytest.raises(RuntimeError, match="mine"), A.recording(model):
        raise RuntimeError("mine")
    assert {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")} == {"sdpa"}


EOS = tiny.EOS


def test_recordings_nest(sequence):
    embeds, model = sequence[0], tiny.bert(BertModel)
    with A.recording(model) as outer:
        run(model, embeds)
        with A.recording(model) as inner:
            run(model, embeds)
        run(model, embeds)
    run(model, embeds)
    assert (len(outer), len(inner)) == (4, 2)


def test_mean_gates_are_means_of_the_rows():
    gates, labels = random(2, 1, 2, 5, 3).softmax(-1), A.segments(2, 3, 2)
    means = A.mean_gates(gates, labels)
    for s in (BEFORE, INPUT):
        listed = [gates[n, 0, h, i] for n in range(2) for h in range(2) for i in range(5) if labels[i] == s]
        torch.testing.assert_close(means[s], sum(listed) / len(listed), **CLOSE)
    assert means[AFTER].isnan().all()


# ---- bad input ----

S, V = torch.zeros(2, 4), torch.zeros(4, 1)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: A.segments(2, 3, 3),
            ValueError,
            "length=2, seq=3, split=3: expected .* split from 0 to length",
        ),
        (lambda: A.arrangement(2, 0, 1), ValueError, "seq=0"),
        (
            lambda: A.gates(S, torch.zeros(4)),
            TypeError,
            "segments is torch.float32, expected integer labels 0..2",
        ),
        (lambda: A.gates(S, torch.zeros(3).long()), ValueError, "segments labels 3 keys, expected 4"),
        (
            lambda: A.decompose(S, V, torch.tensor([0, 1, 2, 3])),
            ValueError,
            r"holds labels 0..3, expected 0..2",
        ),
        (
            lambda: A.bucket_edges(buckets=2),
            ValueError,
            "buckets=2, max_distance=128: expected at least 4 buckets",
        ),
        (
            lambda: A.bucket_edges(max_distance=8),
            ValueError,
            "max_distance=8: expected .* max_distance above 8",
        ),
        (lambda: A.symbolic_row(2, 2, 1, 4), ValueError, "row=4: expected 0..3 or 'readout'"),
        (lambda: A.symbolic_key_ratio(1, 1, 1, 1), ValueError, "seq=1: expected at least 2 tokens"),
        (
            lambda: A.recording(torch.nn.Linear(1, 1)).__enter__(),
            TypeError,
            "model=Linear holds no transformers model",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
