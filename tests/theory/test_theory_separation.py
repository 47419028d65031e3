"""The separations: exact losses against other derivations, searches that reach the floors and never break them."""

import itertools
import math
from fractions import Fraction

import pytest
import sympy as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.nn import functional as F
from transformers.models.t5.modeling_t5 import T5Attention

from dplearn.theory import separation as sep

half = Fraction(1, 2)
F64 = torch.float64
few = settings(max_examples=20, deadline=None)


def close(a, b, tolerance=1e-12):
    return torch.allclose(
        torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=0, atol=tolerance
    )


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def squared(rows, target):
    """Squared error summed over all but the batch and the restarts."""
    return (rows - target).square().flatten(rows.ndim - target.ndim + 1).sum(-1).mean(-1)


# ---- the search ----------------------------------------------------------------------------------------------


def test_the_search_finds_the_minimum_of_a_function_with_a_worse_valley():
    # Valleys at 2 (value 0) and about -2 (value about 1): some starts end in the wrong one, the best does not.
    found = sep.best_prompt(lambda x: (x[:, 0] ** 2 - 4) ** 2 + (x[:, 0] - 2) ** 2 / 16, (1,), steps=400)
    assert found.loss < 1e-12 and close(found.prompt, [2.0], 1e-5)
    assert found.losses[0] == found.loss and (found.losses.diff() >= 0).all()
    assert found.losses[-1] > 0.9  # one start alone would have proved nothing


def test_the_search_wants_one_loss_per_restart():
    with pytest.raises(ValueError, match=r"shape \(\), expected \(3,\)"):
        sep.best_prompt(lambda x: x.sum(), (2,), restarts=3, steps=1)
    with pytest.raises(ValueError, match="restarts=0"):
        sep.best_prompt(lambda x: x.sum(-1), (2,), restarts=0)


# ---- A: the window head ----------------------------------------------------------------------------------------


def window_rows(split, prompt, tokens, window, epsilon):
    """The rows of the tokens, in fractions, token by token along the real sequence."""
    sequence = [*prompt[:split], *tokens, *prompt[split:]]
    rows = []
    for i in range(split, split + len(tokens)):
        weights = [Fraction(1) if abs(j - i) <= window else epsilon for j in range(len(sequence))]
        rows.append(sum(w * v for w, v in zip(weights, sequence, strict=True)) / sum(weights))
    return rows


def expected_window_loss(split, prompt, teacher, values, seq, window, epsilon):
    """Mean over all signs of the tokens: mean 0 and covariance 1."""
    total = Fraction(0)
    for tokens in itertools.product((Fraction(-1), Fraction(1)), repeat=seq):
        ours = window_rows(split, prompt, tokens, window, epsilon)
        theirs = window_rows(teacher, values, tokens, window, epsilon)
        total += sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True))
    return total / 2**seq


def test_window_attention_gives_the_rows_of_the_sequence():
    values, tokens = [Fraction(3), Fraction(-5), Fraction(7)], [Fraction(11), Fraction(-13)]
    for split in range(4):
        weights = sep.window_attention(split, length=3, seq=2, epsilon=sp.Rational(1, 7))
        rows = weights * sp.Matrix([sp.Rational(v) for v in values + tokens])
        assert list(rows) == window_rows(split, values, tokens, 1, Fraction(1, 7))


def test_a_slope_that_no_prefix_has():
    epsilon = sep.EPSILON
    prefix, surround = sep.window_attention(2), sep.window_attention(1)
    assert [prefix[1, 2], prefix[1, 3]] == [1 / (2 + 2 * epsilon)] * 2
    assert [surround[1, 2], surround[1, 3]] == [1 / (3 + epsilon)] * 2
    gap = 1 / (2 + 2 * epsilon) - 1 / (3 + epsilon)
    # The postfix is the mirror image, so both floors are E(x_1 + x_2)^2 = 2 times the squared gap.
    assert sp.simplify(sep.window_floor(2) - 2 * gap**2) == 0
    assert sp.simplify(sep.window_floor(0) - 2 * gap**2) == 0
    assert sep.window_floor(1) == 0
    assert sep.window_floor(2).subs(epsilon, 0) == sp.Rational(1, 18)
    assert sep.window_floor(2).subs(epsilon, 1) == 0  # no window, no position


@given(
    split=st.integers(0, 2),
    values=st.tuples(st.integers(-3, 3), st.integers(-3, 3)),
    prompt=st.tuples(st.fractions(-4, 4), st.fractions(-4, 4)),
    epsilon=st.sampled_from([Fraction(0), Fraction(1, 10), half, Fraction(1)]),
)
@few
def test_no_prompt_is_below_the_minimum_of_the_window_head(split, values, prompt, epsilon):
    loss = expected_window_loss(split, prompt, 1, values, 2, 1, epsilon)
    minimum = sep.window_minimum(split, values, epsilon=sp.Rational(epsilon))
    assert loss >= minimum >= sep.window_floor(split, epsilon=sp.Rational(epsilon))
    in_torch = sep.window_loss(torch.tensor(prompt, dtype=F64), split, values, epsilon=float(epsilon))
    assert math.isclose(in_torch, loss, abs_tol=1e-12)


@pytest.mark.parametrize(
    "options", [{"window": 1}, {"window": 2}, {"window": 1, "epsilon": sp.Rational(1, 5)}]
)
@pytest.mark.parametrize("split", range(4))
def test_the_minimum_of_the_window_head_is_reached(split, options):
    # Independent: numerical least squares for the constants, on the loss as a function of the prompt.
    values = (2, -1, 3)
    minimum = sep.window_minimum(split, values, 2, length=3, seq=4, **options)
    parts = options | {"epsilon": float(options.get("epsilon", 0))}

    def loss(prompt):
        return sep.window_loss(torch.as_tensor(prompt, dtype=F64), split, values, 2, seq=4, **parts).item()

    found = minimize(loss, [0.0, 0.0, 0.0], tol=1e-13)
    assert math.isclose(found.fun, minimum, abs_tol=1e-9)
    assert minimum == 0 if split == 2 else minimum > 0 or split == 1


def test_splits_of_a_wide_window_head_are_equal():
    assert [sep.window_floor(k, window=4) for k in range(3)] == [0, 0, 0]
    assert [sep.window_minimum(k, (1, 2), window=4) for k in range(3)] == [0, 0, 0]
    assert sep.window_minimum(2, (1, 2)) > 0


# ---- A: the one-sided heads -------------------------------------------------------------------------------------


def one_sided_by_loop(prompt, inputs, split, heads, penalty):
    """One instance, row by row along the sequence: (T, 2, d)."""
    sequence = torch.cat([prompt[:split], inputs, prompt[split:]])
    rows = []
    for i in range(split, split + len(inputs)):
        for h in (0, 1):
            query, scores = sequence[i] @ heads.query[h], []
            for j in range(len(sequence)):
                far = (j > i) if h == 0 else (j < i)
                scores.append(query @ (sequence[j] @ heads.key[h]) / inputs.shape[-1] ** 0.5 - far * penalty)
            weights = torch.stack(scores).softmax(0)
            rows.append(sum(w * (x @ heads.value[h]) for w, x in zip(weights, sequence, strict=True)))
    return torch.stack(rows).view(len(inputs), 2, -1)


HEADS, INPUTS, PROMPT = sep.random_heads(2, seed=2), normal(32, 3, 2, seed=2), normal(2, 2, seed=7, scale=2.0)
TARGET = sep.one_sided(PROMPT, INPUTS, 1, HEADS)


@pytest.mark.parametrize("split", range(4))
def test_one_sided_heads_equal_the_loop(split):
    prompt = normal(3, 2, seed=1)
    for penalty in (1e9, 2.5, 0.0):  # as good as infinite, between, none
        rows = sep.one_sided(prompt, INPUTS, split, HEADS, penalty=math.inf if penalty == 1e9 else penalty)
        expected = torch.stack([one_sided_by_loop(prompt, x, split, HEADS, penalty) for x in INPUTS])
        assert close(rows, expected)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_no_prefix_reaches_the_head_that_looks_right(length):
    for draw in range(3):
        prompts = [normal(length, 2, seed=10 * draw + s, scale=5.0) for s in (0, 1)]
        prefix, other_prefix = (sep.one_sided(p, INPUTS, length, HEADS) for p in prompts)
        assert torch.equal(prefix[..., 1, :], other_prefix[..., 1, :])
        assert not close(prefix[..., 0, :], other_prefix[..., 0, :], 1e-2)
        postfix, other_postfix = (sep.one_sided(p, INPUTS, 0, HEADS) for p in prompts)
        assert torch.equal(postfix[..., 0, :], other_postfix[..., 0, :])
        assert not close(postfix[..., 1, :], other_postfix[..., 1, :], 1e-2)


@pytest.mark.parametrize("split", [0, 2])
def test_searches_stay_above_the_one_sided_floor(split):
    floor = sep.one_sided_floor(TARGET, INPUTS, split, HEADS, length=2)
    assert floor > 0.1
    found = sep.best_prompt(
        lambda p: squared(sep.one_sided(p, INPUTS, split, HEADS), TARGET), (2, 2), restarts=8, steps=200
    )
    assert floor < found.loss < 1.5 * floor
    # A longer prompt does not help the head that it cannot reach.
    longer = squared(sep.one_sided(normal(64, 9, 2, scale=3.0), INPUTS, 9 if split else 0, HEADS), TARGET)
    assert (longer >= floor).all()
    # The floor is exactly the loss of that head alone.
    head = 1 if split else 0
    rows = sep.one_sided(PROMPT, INPUTS, split, HEADS)
    assert math.isclose(squared(rows[..., head, :], TARGET[..., head, :]), floor, rel_tol=1e-12)


def test_a_surround_has_no_floor_and_fits():
    assert sep.one_sided_floor(TARGET, INPUTS, 1, HEADS, length=2) == 0.0
    found = sep.best_prompt(
        lambda p: squared(sep.one_sided(p, INPUTS, 1, HEADS), TARGET), (2, 2), restarts=8, steps=400
    )
    assert found.loss < 1e-10


def test_without_a_penalty_every_split_gives_the_same_rows():
    rows = [sep.one_sided(PROMPT, INPUTS, split, HEADS, penalty=0.0) for split in range(3)]
    assert close(rows[0], rows[1]) and close(rows[0], rows[2])
    broken = [sep.one_sided(PROMPT, INPUTS, split, HEADS, penalty=0.5) for split in range(3)]
    assert not close(broken[0], broken[1], 1e-2) and not close(broken[0], broken[2], 1e-2)


def test_a_finite_penalty_bounds_what_a_prompt_can_move():
    penalty, (score, value) = 6.0, sep.head_bounds(HEADS)
    target = sep.one_sided(PROMPT, INPUTS, 1, HEADS, penalty=penalty, normalise=True)
    for split, head in ((0, 0), (2, 1)):
        floor = sep.one_sided_floor(target, INPUTS, split, HEADS, length=2, penalty=penalty, normalise=True)
        prompts = normal(200, 2, 2, seed=split, scale=3.0)
        rows = sep.one_sided(prompts, INPUTS, split, HEADS, penalty=penalty, normalise=True)
        assert (squared(rows, target) >= floor).all() and floor > 0
        # The bound itself: no row moves by more than 2 V l e^(2S - M) ...
        reach = 2 * value * 2 * math.exp(2 * score - penalty)
        unit = INPUTS / INPUTS.square().mean(-1, keepdim=True).sqrt()
        scores = unit @ HEADS.query[head] @ (unit @ HEADS.key[head]).mT / 2**0.5
        far = torch.ones(3, 3).triu(1) if head == 0 else torch.ones(3, 3).tril(-1)
        alone = (scores - penalty * far).softmax(-1) @ (unit @ HEADS.value[head])
        assert ((rows[..., head, :] - alone).norm(dim=-1) <= reach).all()
        # ... but prompts of any size move it further.
        wild = sep.one_sided(100 * prompts, unit, split, HEADS, penalty=penalty)
        assert ((wild[..., head, :] - alone).norm(dim=-1) > reach).any()


def test_the_finite_floor_grows_to_the_infinite_one():
    floors = []
    for penalty in (2.0, 8.0, 40.0, math.inf):
        target = sep.one_sided(PROMPT, INPUTS, 1, HEADS, penalty=penalty, normalise=True)
        floors.append(
            sep.one_sided_floor(target, INPUTS, 2, HEADS, length=2, penalty=penalty, normalise=True)
        )
    assert floors[0] == 0.0 < floors[1] < floors[2] and math.isclose(floors[2], floors[3], rel_tol=1e-9)


def test_bounds_of_the_heads_hold_and_are_tight():
    score, value = sep.head_bounds(HEADS)
    angle = torch.linspace(0, 2 * math.pi, 721, dtype=F64)
    unit = torch.stack([angle.cos(), angle.sin()], -1) * 2**0.5
    scores = torch.einsum("nd,hde,mf,hfe->hnm", unit, HEADS.query, unit, HEADS.key).abs().max() / 2**0.5
    values = (unit @ HEADS.value).norm(dim=-1).max()
    assert 0.999 * score < scores <= score + 1e-12 and 0.999 * value < values <= value + 1e-12


# ---- B: any relative bias ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (16, 64), (32, 100)])
def test_buckets_are_those_of_t5(buckets, max_distance):
    offsets = torch.arange(-300, 301)
    theirs = T5Attention._relative_position_bucket(offsets, True, buckets, max_distance)
    assert [sep.t5_bucket(r, buckets, max_distance) for r in offsets.tolist()] == theirs.tolist()


def test_profiles_are_read_off_the_sequence():
    for split, length, seq in itertools.product(range(4), [3], [2, 4]):
        sequence = ["P0", "P1", "P2"][:split] + ["x"] * seq + ["P0", "P1", "P2"][split:]
        rows = [i for i, name in enumerate(sequence) if name == "x"]
        expected = [tuple(sp.Integer((sequence.index(f"P{a}") - i) ** 3) for i in rows) for a in range(3)]
        assert sep.profiles(lambda r: sp.Integer(r) ** 3, split, length=length, seq=seq) == expected


def test_the_table_of_biases():
    expected = {
        "none": (True, True),
        "signed linear": (False, True),
        "ALiBi": (False, False),
        "T5 buckets": (False, False),
    }
    for length, seq in ((1, 2), (3, 3), (4, 2)):
        assert sep.expressiveness_table(length, seq) == expected


def test_an_input_far_away_sees_buckets_as_constants():
    # Beyond 91 all offsets of a side share a bucket: profiles are constant, and a constant query absorbs them.
    far = lambda r: sep.t5_bias()(r + (300 if r > 0 else -300))  # noqa: E731
    assert sep.equally_expressive(far, length=3, seq=4, constant_query=True)
    assert not sep.equally_expressive(far, length=3, seq=4)


@given(
    table=st.lists(st.integers(0, 1), min_size=11, max_size=11),
    constant=st.booleans(),
    splits=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
@few
def test_matching_equals_trying_all_permutations(table, constant, splits):
    bias, (split, other) = (lambda r: sp.Integer(table[r + 5])), splits
    ours, theirs = (sep.profiles(bias, k, length=3, seq=2) for k in (split, other))

    def fits(order):
        gaps = [{a - b for a, b in zip(ours[i], theirs[p], strict=True)} for i, p in enumerate(order)]
        return all(len(gap) == 1 if constant else gap == {0} for gap in gaps)

    possible = [list(order) for order in itertools.permutations(range(3)) if fits(order)]
    found = sep.matching(bias, split, other, length=3, seq=2, constant_query=constant)
    assert found in possible if possible else found is None


LAYER = dict(query=normal(16, 3, 3, seed=1), key=normal(16, 3, 3, seed=2), value=normal(16, 3, 2, seed=3))


def biased_by_loop(query, key, value, prompt_key, prompt_value, split, bias):
    """One instance, in the order of the sequence."""
    keys = torch.cat([prompt_key[:split], key, prompt_key[split:]])
    values = torch.cat([prompt_value[:split], value, prompt_value[split:]])
    rows = []
    for i in range(len(query)):
        scores = [query[i] @ keys[j] + float(bias(j - split - i)) for j in range(len(keys))]
        rows.append(torch.stack(scores).softmax(0) @ values)
    return torch.stack(rows)


def test_biased_rows_equal_the_loop():
    keys, values = normal(4, 3, seed=4), normal(4, 2, seed=5)
    for split in range(5):
        found = sep.biased_rows(
            **LAYER, prompt_key=keys, prompt_value=values, split=split, bias=sep.alibi_bias(0.3)
        )
        for b in range(3):
            one = {name: rows[b] for name, rows in LAYER.items()}
            expected = biased_by_loop(
                **one, prompt_key=keys, prompt_value=values, split=split, bias=sep.alibi_bias(0.3)
            )
            assert close(found[b], expected)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize(("split", "other"), [(0, 3), (3, 0), (1, 2), (2, 0)])
def test_a_matched_prompt_is_carried_over_exactly(split, other, constant):
    layer = dict(LAYER)
    if constant:
        layer["query"] = torch.cat([layer["query"][..., :2], torch.ones(16, 3, 1, dtype=F64)], -1)
    bias = sep.linear_bias(0.4) if constant else sep.no_bias
    keys, values = normal(3, 3, seed=6), normal(3, 2, seed=7)
    carried = sep.transfer(keys, values, bias, split, other, seq=3, constant_query=constant)
    here = sep.biased_rows(**layer, prompt_key=keys, prompt_value=values, split=split, bias=bias)
    there = sep.biased_rows(**layer, prompt_key=carried[0], prompt_value=carried[1], split=other, bias=bias)
    assert close(here, there)
    if (
        constant
    ):  # without the constant in the keys it is another function, and without a constant query there is none
        unmoved = sep.biased_rows(**layer, prompt_key=keys, prompt_value=values, split=other, bias=bias)
        assert not close(here, unmoved, 1e-2)
        assert sep.transfer(keys, values, bias, split, other, seq=3) is None


@pytest.mark.parametrize(
    ("bias", "constant", "fits"),
    [
        (sep.no_bias, False, True),
        (sep.linear_bias(0.7), True, True),
        (sep.linear_bias(0.7), False, False),
        (sep.alibi_bias(0.7), True, False),
        (sep.t5_bias(normal(32, seed=8).tolist()), True, False),
    ],
    ids=["none", "linear, constant query", "linear", "ALiBi", "T5"],
)
def test_a_search_finds_the_target_of_another_split_exactly_where_the_criterion_says(bias, constant, fits):
    layer = dict(LAYER)
    if constant:
        layer["query"] = torch.cat([layer["query"][..., :2], torch.ones(16, 3, 1, dtype=F64)], -1)
    keys, values = normal(2, 3, seed=11), normal(2, 2, seed=12, scale=2.0)
    target = sep.biased_rows(**layer, prompt_key=keys, prompt_value=values, split=1, bias=bias)
    assert fits == (sep.matching(bias, 1, 2, length=2, seq=3, constant_query=constant) is not None)

    def loss(p, split):
        return squared(
            sep.biased_rows(**layer, prompt_key=p[..., :3], prompt_value=p[..., 3:], split=split, bias=bias),
            target,
        )

    found = sep.best_prompt(lambda p: loss(p, 2), (2, 5), restarts=8, steps=500)
    assert (found.loss < 1e-7) == fits and (fits or found.loss > 1e-4)


# ---- C: two causal layers ------------------------------------------------------------------------------------------


def causal_reader(prompt, split, keys, values, causal=True):
    """The answer for one input, layer by layer along the sequence. prompt (l, 3), keys and values (T,)."""
    seq = len(keys)
    queries = torch.cat(
        [prompt[:split, 0], torch.zeros(seq, dtype=F64), prompt[split:, 0], torch.zeros(1, dtype=F64)]
    )
    all_keys = torch.cat([prompt[:split, 1], keys, prompt[split:, 1], torch.zeros(1, dtype=F64)])
    all_values = torch.cat([prompt[:split, 2], values, prompt[split:, 2], torch.zeros(1, dtype=F64)])
    rows = []
    for i in range(len(queries)):
        last = i + 1 if causal else len(queries)
        rows.append((queries[i] * all_keys[:last]).softmax(0) @ all_values[:last])
    return torch.stack(rows).mean()


def causal_loss_by_loop(prompt, split, seq, teacher=1, reads=1.0, causal=True):
    """Mean over the place of the matching key and over values with mean 0 and covariance 1."""
    length, rows = len(prompt), len(prompt) + seq + 1
    total = 0.0
    for match in range(seq):
        keys = torch.full((seq,), -1.0, dtype=F64)
        keys[match] = 1.0
        for j, sign in itertools.product(range(seq), (1, -1)):
            values = torch.zeros(seq, dtype=F64)
            values[j] = sign * seq**0.5
            target = causal_reader(torch.zeros(length, 3, dtype=F64), length, keys, values) * 0
            for i in range(seq):  # the average of each input row of the teacher, without prompt values
                target = target + values[: i + 1].sum() / (teacher + i + 1) / rows
            target = target + (values.sum() / rows + reads * values[match]) / rows
            total = total + (causal_reader(prompt, split, keys, values, causal) - target) ** 2
    return total / (2 * seq * seq)


@pytest.mark.parametrize(
    ("split", "length", "seq", "teacher"), [(0, 2, 2, 1), (1, 2, 2, 1), (2, 2, 2, 1), (2, 3, 3, 1)]
)
def test_the_causal_loss_equals_the_loop(split, length, seq, teacher):
    prompts = normal(3, length, 3, seed=split, scale=1.5)
    found = sep.causal_loss(prompts, split, teacher, seq=seq)
    assert close(found, torch.stack([causal_loss_by_loop(p, split, seq, teacher) for p in prompts]))
    assert close(sep.causal_loss(prompts[0], split, teacher, seq=seq), found[0])


def test_the_exact_numbers_of_the_causal_reader():
    assert [sep.causal_infimum(k) for k in (0, 1, 2)] == [sp.Rational(43, 3600), 0, sp.Rational(101, 1800)]
    assert [sep.causal_bound(k) for k in (0, 1, 2)] == [sp.Rational(17, 1800), 0, sp.Rational(101, 1800)]


def missing_weights(split, teacher, length, seq):
    """N times what each token lacks: exact averages along the sequence, row by row."""
    rows = length + seq + 1
    found = []
    for k in (teacher, split):
        weight = [Fraction(0)] * seq
        for i in range(seq):
            for j in range(i + 1):
                weight[j] += Fraction(1, k + i + 1)
        found.append([w + Fraction(1, rows) for w in weight])
    return [a - b for a, b in zip(*found, strict=True)]


def loss_of_reading(p, q, gaps, reads, rows):
    """The loss when the readers give p to the matching token and q to each other one."""
    seq, total = len(gaps), 0
    for match, j in itertools.product(range(seq), repeat=2):
        total += (gaps[j] + (reads if j == match else 0) - (p if j == match else q)) ** 2
    return total / (seq * rows**2)


@given(st.data())
@few
def test_the_causal_infimum_is_the_minimum_over_the_triangle(data):
    length, seq = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 4))
    split, teacher = data.draw(st.integers(0, length)), data.draw(st.integers(0, length))
    reads = data.draw(st.sampled_from([Fraction(0), half, Fraction(1)])) if teacher < length else Fraction(0)
    gaps, rows, most = missing_weights(split, teacher, length, seq), length + seq + 1, length - split
    infimum = sep.causal_infimum(split, teacher, length=length, seq=seq, reads=sp.Rational(reads))
    # From the inside: all points of a grid of fractions in the triangle.
    grid = [
        (p, q)
        for p in (most * Fraction(a, 12) for a in range(13))
        for q in (most * Fraction(b, 12) for b in range(13))
        if p + (seq - 1) * q <= most
    ]
    assert min(loss_of_reading(p, q, gaps, reads, rows) for p, q in grid) >= infimum
    # And the infimum is taken there: a solver of constrained problems finds it.
    found = minimize(
        lambda z: (
            float(rows**2) * float(loss_of_reading(z[0], z[1], [float(g) for g in gaps], float(reads), rows))
        ),
        [most / 3, most / (3 * seq)],
        bounds=[(0, None), (0, None)],
        constraints={"type": "ineq", "fun": lambda z: most - z[0] - (seq - 1) * z[1]},
        options={"ftol": 1e-14},
    )
    assert math.isclose(found.fun / rows**2, infimum, abs_tol=1e-8)
    assert infimum >= sep.causal_bound(split, teacher, length=length, seq=seq, reads=sp.Rational(reads)) >= 0


@pytest.mark.parametrize("split", [0, 1, 2])
def test_searches_reach_the_causal_infimum_and_stay_above(split):
    found = sep.best_prompt(lambda p: sep.causal_loss(p, split), (2, 3), restarts=12, steps=800)
    infimum = float(sep.causal_infimum(split))
    assert infimum - 1e-12 <= found.loss <= infimum + 1e-6
    assert (found.losses >= infimum - 1e-12).all()
    wild = sep.causal_loss(normal(2000, 2, 3, seed=split, scale=4.0), split)
    assert (wild >= infimum - 1e-12).all()


@pytest.mark.parametrize(("split", "length", "seq", "teacher"), [(0, 3, 2, 1), (1, 3, 3, 2), (2, 4, 2, 1)])
def test_several_readers_reach_the_triangle_too(split, length, seq, teacher):
    infimum = float(sep.causal_infimum(split, teacher, length=length, seq=seq))
    found = sep.best_prompt(
        lambda p: sep.causal_loss(p, split, teacher, seq=seq), (length, 3), restarts=8, steps=700
    )
    assert infimum - 1e-12 <= found.loss <= infimum + 2e-5


def test_without_the_causal_mask_a_prefix_goes_below_its_floor():
    torch.manual_seed(0)
    prompt = torch.tensor(
        [[4.0, 1.0, 0.0], [0.1, 0.0, 0.0]], dtype=F64
    )  # the first one reads the matching key
    assert causal_loss_by_loop(prompt, 2, 2) >= 101 / 1800 - 1e-12
    assert causal_loss_by_loop(prompt, 2, 2, causal=False) < 100 / 1800


def test_no_split_of_the_causal_reader_replaces_another():
    for teacher, reads in ((0, 1), (1, 1), (2, 0)):
        losses = [sep.causal_infimum(split, teacher, reads=reads) for split in range(3)]
        assert [loss == 0 for loss in losses] == [split == teacher for split in range(3)]


def test_causal_arguments_are_checked():
    with pytest.raises(ValueError, match=r"reads=1 is outside 0\.\.0: at teacher=2"):
        sep.causal_infimum(1, 2)
    with pytest.raises(ValueError, match=r"split=3 is outside 0\.\.2"):
        sep.causal_bound(3)
    with pytest.raises(ValueError, match=r"teacher=5 is outside 0\.\.2"):
        sep.causal_loss(torch.zeros(2, 3, dtype=F64), 0, 5)


# ---- D: absolute positions ----------------------------------------------------------------------------------------


def shift_output(prompt, split, tokens, factors, start=None):
    """The answer along the sequence; ``start`` renumbers the input's positions."""
    seq = len(tokens)
    table = torch.tensor([float(f) for f in factors], dtype=F64).log()
    scores = torch.cat([prompt[:split, 0], torch.zeros(seq, dtype=F64), prompt[split:, 0]]) + table
    if start is not None:
        scores[split : split + seq] = table[start : start + seq]
    return scores.softmax(0) @ torch.cat([prompt[:split, 1], tokens, prompt[split:, 1]])


def shift_loss_by_signs(prompt, split, target, factors, start=None):
    total = 0.0
    for signs in itertools.product((-1.0, 1.0), repeat=len(target)):
        tokens = torch.tensor(signs, dtype=F64)
        wanted = torch.tensor([float(t) for t in target], dtype=F64) @ tokens
        total += (shift_output(prompt, split, tokens, factors, start) - wanted) ** 2
    return total / 2 ** len(target)


@pytest.mark.parametrize("split", range(3))
def test_the_shift_floor_is_a_minimum_over_gates(split):
    # Independent: the loss of the gate g as a parabola in sympy, its vertex, and a grid of prompts in torch.
    g, x = sp.Symbol("g"), sp.Matrix([1, 1, 2, 8][split : split + 2])
    loss = sum((g * x[i] / sum(x) - t) ** 2 for i, t in enumerate((sp.Rational(1, 4), sp.Rational(1, 2))))
    vertex = sp.solve(loss.diff(g), g)[0]
    assert 0 < vertex < 1 and sep.shift_floor(split) == loss.subs(g, vertex)
    assert sep.shift_floor(split) == [sp.Rational(1, 32), 0, sp.Rational(1, 68)][split]
    prompts = normal(500, 2, 2, seed=split, scale=2.0)
    losses = sep.shift_loss(prompts, split)
    assert (losses >= float(sep.shift_floor(split)) - 1e-12).all()
    for index in range(3):
        by_signs = shift_loss_by_signs(prompts[index], split, sep.SHIFT_TARGET, sep.SHIFT_FACTORS)
        assert close(losses[index], by_signs)


@pytest.mark.parametrize("split", range(3))
def test_searches_reach_the_shift_floor(split):
    found = sep.best_prompt(lambda p: sep.shift_loss(p, split), (2, 2), restarts=8, steps=500)
    floor = float(sep.shift_floor(split))
    assert floor - 1e-12 <= found.loss <= floor + 1e-9


def test_a_gate_cannot_be_larger_than_one():
    # The target weighs more than an average can, so the best gate is 1: no prompt at all.
    assert sep.shift_floor(1, (1, 2)) == sp.Rational(4, 9) + sp.Rational(16, 9)
    assert sep.shift_floor(1, (-1, -2)) == 5
    found = sep.best_prompt(lambda p: sep.shift_loss(p, 1, (1, 2)), (2, 2), restarts=4, steps=400, rate=0.2)
    assert 20 / 9 <= found.loss < 20 / 9 + 1e-2


@given(st.integers(1, 5), st.integers(2, 4), st.fractions(Fraction(1, 4), 4))
@few
def test_a_geometric_table_makes_all_splits_equal(length, seq, ratio):
    factors = [sp.Rational(ratio) ** i for i in range(length + seq)]
    target = [sp.Rational(1, 3 + j) for j in range(seq)]
    assert len({sep.shift_floor(split, target, factors) for split in range(length + 1)}) == 1
    assert len({tuple(sep.shift_weights(split, seq, factors)) for split in range(length + 1)}) == 1


def test_renumbered_positions_do_the_same_without_moving_a_prompt():
    # The prompt that fits at split 1, at split 2, with the tokens numbered as they stood before: also exact.
    found = sep.best_prompt(lambda p: sep.shift_loss(p, 1), (2, 2), restarts=4, steps=400)
    moved = found.prompt.clone()
    moved[1, 0] += math.log(8) - math.log(1)  # vector 2 moves from position 3 to position 1
    assert shift_loss_by_signs(moved, 2, sep.SHIFT_TARGET, sep.SHIFT_FACTORS, start=1) < 1e-12
    assert shift_loss_by_signs(moved, 2, sep.SHIFT_TARGET, sep.SHIFT_FACTORS) > 1 / 69


def test_every_split_has_a_target_that_the_others_miss():
    for teacher in range(3):
        target = [sp.Rational(3, 4) * w for w in sep.shift_weights(teacher)]
        floors = [sep.shift_floor(split, target) for split in range(3)]
        assert [floor == 0 for floor in floors] == [split == teacher for split in range(3)]


def test_shift_arguments_are_checked():
    with pytest.raises(ValueError, match="factors has 4 entries, expected one per position: 3 \\+ 2 = 5"):
        sep.shift_loss(torch.zeros(3, 2, dtype=F64), 0)
    with pytest.raises(ValueError, match="expected positive numbers"):
        sep.shift_weights(0, 2, (0, 1, 1))


# ---- a split for each instance -------------------------------------------------------------------------------------


VALUES = [Fraction(-1, 2), half, Fraction(3, 2)]
CASES = [(y, y) for y in VALUES] + [(y, (y - 1) / 2) for y in VALUES]


def mean_loss(answers):
    return sum((a - t) ** 2 for a, (_, t) in zip(answers, CASES, strict=True)) / 6


def test_cases_are_those_of_the_text():
    assert [(y, t) for _, y, t in sep.instance_cases()] == CASES
    toy = sep.instance_toy()
    assert toy.inputs[:, 0, 1].tolist() == [float(y) for y, _ in CASES]
    assert toy.targets.tolist() == [float(t) for _, t in CASES]
    assert toy.types.tolist() == toy.inputs[:, 0, 2].tolist() == [1, 1, 1, -1, -1, -1]


def test_one_answer_for_both_types_loses_what_the_floor_says():
    # Best answer for each y, found on its own: the mean of its two targets. Then any other rule is worse.
    best = {y: sum(t for x, t in CASES if x == y) / 2 for y in VALUES}
    assert mean_loss([best[y] for y, _ in CASES]) == sep.task_rule_floor() == sp.Rational(35, 192)
    grid = [Fraction(i, 8) for i in range(-16, 17)]
    for y in VALUES:
        others = {x: a for x, a in best.items() if x != y}
        assert min(mean_loss([({y: a} | others)[x] for x, _ in CASES]) for a in grid) >= sp.Rational(35, 192)


def test_the_best_prompt_at_one_split():
    assert sep.task_level_minimum(1) == (sp.Rational(35, 192), sp.Rational(1, 3), sp.Rational(-1, 3))
    assert sep.task_level_minimum(0).loss == sp.Rational(35, 96) == mean_loss([y for y, _ in CASES])
    best = sep.task_level_minimum(1)
    z, u = Fraction(str(best.z)), Fraction(str(best.u))
    assert mean_loss([(y + u) / (1 + z) for y, _ in CASES]) == best.loss
    grid = [(Fraction(a, 12), Fraction(b, 12)) for a in range(1, 30) for b in range(-24, 25)]
    assert min(mean_loss([(y + u) / (1 + z) for y, _ in CASES]) for z, u in grid) == best.loss


def test_a_split_for_each_instance_loses_nothing():
    assert sep.instance_level_loss(1, -1) == 0
    assert sep.instance_level_loss(sp.Rational(1, 3), sp.Rational(-1, 3)) > 0
    z, u = sp.symbols("z u", positive=True)
    by_hand = sum(((y + u) / (1 + z) - (y - 1) / 2) ** 2 for y in map(sp.Rational, VALUES)) / 6
    assert sp.simplify(sep.instance_level_loss(z, u) - by_hand) == 0


def test_accuracy_over_all_sign_patterns():
    shares = []
    for pattern in itertools.product((False, True), repeat=3):
        rule = dict(zip(VALUES, pattern, strict=True))
        shares.append(Fraction(sum(rule[y] == (t > 0) for y, t in CASES), 6))
    assert len(shares) == 8 and sep.task_level_accuracy() == max(shares) == Fraction(5, 6)
    assert sep.instance_level_accuracy() == 1


@given(st.lists(st.fractions(-3, 3), min_size=2, max_size=5, unique=True))
@few
def test_the_best_prefix_reaches_the_floor_of_all_rules(values):
    assert sep.task_level_minimum(1, values).loss == sep.task_rule_floor(values)
    assert sep.task_level_minimum(1, values).z == sp.Rational(1, 3)
    assert sep.instance_level_loss(1, -1, values) == 0


def one_hot(splits):
    return F.one_hot(torch.as_tensor(splits), 2).to(F64)


@pytest.mark.parametrize("relaxation", ["token", "position"])
def test_the_toy_gives_the_rows_of_the_text(relaxation):
    toy, prompt = sep.instance_toy(), torch.tensor([[math.log(0.5), -3.0, 0.7]], dtype=F64)
    ys = toy.inputs[:, 0, 1]
    expected = torch.where(torch.arange(6) % 2 == 0, ys, (ys + 0.5 * -3.0) / 1.5)
    found = sep.instance_output(prompt, toy.inputs, one_hot([0, 1, 0, 1, 0, 1]), relaxation=relaxation)
    assert close(found, expected)
    blind = [
        sep.instance_output(prompt, toy.inputs, one_hot([k] * 6), relaxation=relaxation, causal=False)
        for k in (0, 1)
    ]
    assert close(*blind) and close(blind[1], (ys - 1.5) / 1.5)


def test_the_two_relaxations_have_different_gradients():
    toy, prompt = sep.instance_toy(), torch.tensor([[0.3, -1.0, 0.0]], dtype=F64)
    slopes = {}
    for relaxation, causal in itertools.product(("token", "position"), (True, False)):
        weights = one_hot([1] * 6).requires_grad_()
        answers = sep.instance_output(prompt, toy.inputs, weights, relaxation=relaxation, causal=causal)
        if answers.requires_grad:  # not where the answers do not depend on the weights
            (gradient,) = torch.autograd.grad(answers.sum(), weights)
            slopes[relaxation, causal] = gradient[:, 1] - gradient[:, 0]
    assert not close(slopes["token", True], slopes["position", True], 1e-2)
    # Where the split has no effect, only the relaxation of the position knows it.
    assert ("position", False) not in slopes
    assert not close(slopes["token", False], torch.zeros(6), 1e-2)


def trained_loss(seed, hide_type=False, causal=True, steps=400):
    """A prompt and a linear rule for its split, trained with the exact expected loss; then the likelier split."""
    toy = sep.instance_toy()
    features = F.pad(toy.inputs[:, 0], (0, 1), value=1.0)
    if hide_type:
        features = features * torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=F64)
    prompt, rule = normal(1, 3, seed=seed).requires_grad_(), torch.zeros(4, 2, dtype=F64, requires_grad=True)
    optimizer = torch.optim.Adam([prompt, rule], lr=0.05)

    def losses():
        return torch.stack(
            [
                (sep.instance_output(prompt, toy.inputs, one_hot([k] * 6), causal=causal) - toy.targets) ** 2
                for k in (0, 1)
            ],
            1,
        )

    for _ in range(steps):
        optimizer.zero_grad()
        ((features @ rule).softmax(-1) * losses()).sum(-1).mean().backward()
        optimizer.step()
    return losses().gather(1, (features @ rule).argmax(-1, keepdim=True)).mean().item()


def test_a_rule_that_sees_the_type_learns_the_toy_and_one_that_does_not_stays_at_the_floor():
    floor = 35 / 192
    assert trained_loss(0) < 1e-3
    assert math.isclose(trained_loss(0, hide_type=True), floor, abs_tol=1e-3)
    assert math.isclose(trained_loss(0, causal=False), floor, abs_tol=1e-3)


def test_a_choice_between_two_prompts_works_where_the_split_does_not():
    toy = sep.instance_toy()
    pool = torch.tensor(
        [[-30.0, 0.0, 0.0], [0.0, -1.0, 0.0]], dtype=F64
    )  # one that nobody sees, and z = 1, u = -1
    prompt = pool[(toy.types < 0).long()][:, None]
    for split in (0, 1):
        answers = sep.instance_output(prompt, toy.inputs, one_hot([split] * 6), causal=False)
        assert (answers - toy.targets).square().mean() < 1e-20


def test_toy_arguments_are_checked():
    toy = sep.instance_toy()
    with pytest.raises(ValueError, match='relaxation=\'rows\', expected "token" or "position"'):
        sep.instance_output(torch.zeros(1, 3, dtype=F64), toy.inputs, one_hot([0] * 6), relaxation="rows")
    with pytest.raises(ValueError, match=r"weights has the shape \(6, 3\), expected \(6, 2\)"):
        sep.instance_output(torch.zeros(1, 3, dtype=F64), toy.inputs, torch.zeros(6, 3, dtype=F64))
    with pytest.raises(ValueError, match="at least two different numbers"):
        sep.task_level_minimum(1, [1])


def test_arguments_of_the_bias_criterion_are_checked():
    with pytest.raises(ValueError, match="seq=1, expected at least 2 input tokens"):
        sep.matching(sep.no_bias, 0, 1, length=2, seq=1)
    with pytest.raises(ValueError, match="a mask is not a bias here"):
        sep.profiles(lambda r: -sp.oo if r > 0 else sp.Integer(0), 0, length=2, seq=2)
    with pytest.raises(ValueError, match="values has 3 entries, expected one per bucket: 32"):
        sep.t5_bias([1, 2, 3])
    with pytest.raises(ValueError, match="penalty=3.0 is finite, expected normalise=True"):
        sep.one_sided_floor(TARGET, INPUTS, 2, HEADS, length=2, penalty=3.0)
    with pytest.raises(ValueError, match="prompt has width 5, expected the width of inputs, 2"):
        sep.one_sided(torch.zeros(1, 5, dtype=F64), INPUTS, 0, HEADS)
