"""Tests of the insertion operator: values and gradients against a plain loop, and its promises about cost and form."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._functorch.aot_autograd import make_boxed_func
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from dplearn import insertion
from dplearn.insertion import Moves, insert, insert_weighted, rows_at_every_split

EXACT = {"rtol": 0, "atol": 1e-12}

# ---- references: one instance after the other, rows put together by hand ------------------------------------


def naive_rows(real, length, k, n, kept):
    """The layout of one instance as a list of ("x", t) and ("p", i). real: list of 0/1 over the input rows."""
    tokens = [t for t, is_real in enumerate(real) if is_real]
    left = list(range(tokens[0])) if tokens else []
    right = [t for t in range(len(real)) if t not in tokens and t not in left]
    kept = min(kept, len(tokens))
    before, last = tokens[: len(tokens) - kept], tokens[len(tokens) - kept :]
    x, p = [("x", t) for t in before], [("p", i) for i in range(length)]
    used, unused = p[:n], p[n:]
    return [("x", t) for t in left] + used[:k] + x + used[k:] + [("x", t) for t in last + right] + unused


def naive_insert(prompt, inputs, mask, split, size, keep_last):
    """What ``insert`` returns, from one Python list per instance. split, size, keep_last: lists of ints."""
    batch, seq, length = len(inputs), inputs.shape[1], prompt.shape[-2]
    prompt = prompt.expand(batch, length, -1)
    layouts = [naive_rows(mask[b].tolist(), length, split[b], size[b], keep_last[b]) for b in range(batch)]
    source = [{"x": inputs[b], "p": prompt[b]} for b in range(batch)]
    return SimpleNamespace(
        embeds=torch.stack([torch.stack([source[b][s][n] for s, n in layouts[b]]) for b in range(batch)]),
        mask=torch.tensor(
            [[int(n < size[b]) if s == "p" else int(mask[b, n]) for s, n in layouts[b]] for b in range(batch)]
        ),
        input_positions=torch.tensor([[layout.index(("x", t)) for t in range(seq)] for layout in layouts]),
        prompt_positions=torch.tensor(
            [
                [layout.index(("p", i)) if i < size[b] else -1 for i in range(length)]
                for b, layout in enumerate(layouts)
            ]
        ),
    )


def dense_insert(case, over="split"):
    """The mixture sum_k weights_k * (sequence with split k, or size k), built in full, for autograd to differentiate."""
    weights = case.weights if over == "split" else case.size_weights
    fixed = {"split": case.split.tolist(), "size": case.size.tolist()}
    candidates = [
        naive_insert(
            case.prompt, case.inputs, case.mask, **fixed | {over: [k] * len(weights)}, keep_last=case.kept
        ).embeds
        for k in range(weights.shape[1])
    ]
    return torch.einsum("bk,kbsd->bsd", weights, torch.stack(candidates))


# ---- cases --------------------------------------------------------------------------------------------------


def make_case(
    batch=3,
    seq=6,
    length=4,
    dim=3,
    shared=True,
    padding="right",
    lengths=None,
    keep_last=0,
    splits=None,
    sizes=None,
    seed=0,
    dtype=torch.float64,
):
    """Random tensors for one call; what is not given is drawn. padding: "left", "right" or "both"."""
    generator = torch.Generator().manual_seed(seed)
    shape = (length, dim) if shared else (batch, length, dim)
    real = (
        torch.randint(0, seq + 1, (batch,), generator=generator) if lengths is None else torch.tensor(lengths)
    )
    first = {"right": 0 * real, "left": seq - real, "both": (seq - real) // 2}[padding].unsqueeze(1)
    t = torch.arange(seq)
    draw = (
        torch.randint(0, length + 1, (batch,), generator=generator)
        if splits is None
        else torch.tensor(splits)
    )
    size = torch.full((batch,), length) if sizes is None else torch.tensor(sizes)
    return SimpleNamespace(
        prompt=torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(),
        inputs=torch.randn(batch, seq, dim, generator=generator, dtype=dtype).requires_grad_(),
        mask=((t >= first) & (t < first + real.unsqueeze(1))).long(),
        split=draw,
        weights=torch.eye(length + 1, dtype=dtype)[draw].requires_grad_(),
        size=size,
        whole=sizes is None,
        size_weights=torch.eye(length + 1, dtype=dtype)[size].requires_grad_(),
        keep_last=keep_last,
        kept=keep_last.tolist() if isinstance(keep_last, torch.Tensor) else [keep_last] * batch,
        # The loss is the product with fixed random numbers, so the gradient at every row differs.
        probe=torch.randn(batch, seq + length, dim, generator=generator, dtype=dtype),
    )


@st.composite
def cases(draw):
    batch, seq, length = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 6))
    keep_last = draw(st.sampled_from([0, 1, 2, "tensor"]))
    if keep_last == "tensor":
        keep_last = torch.tensor(draw(st.lists(st.integers(0, 3), min_size=batch, max_size=batch)))
    return make_case(
        batch,
        seq,
        length,
        dim=draw(st.integers(1, 4)),
        shared=draw(st.booleans()),
        padding=draw(st.sampled_from(["left", "right", "both"])),
        lengths=draw(st.lists(st.integers(0, seq), min_size=batch, max_size=batch)),
        keep_last=keep_last,
        splits=draw(st.lists(st.integers(0, length), min_size=batch, max_size=batch)),
        sizes=draw(st.none() | st.lists(st.integers(0, length), min_size=batch, max_size=batch)),
        seed=draw(st.integers(0, 2**16)),
    )


def gradients(case, embeds, *names):
    """Gradients of the probe's loss for prompt, inputs and weights, or for the named ones."""
    return torch.autograd.grad(
        (embeds * case.probe).sum(),
        [getattr(case, name) for name in names or ("prompt", "inputs", "weights")],
    )


def weighted(case):
    """Only the split is learned; sizes are given where some vectors are not in use."""
    size = None if case.whole else case.size
    return insert_weighted(
        case.prompt, case.inputs, case.mask, case.weights, size=size, keep_last=case.keep_last
    )


def weighted_both(case):
    return insert_weighted(
        case.prompt, case.inputs, case.mask, case.weights, case.size_weights, keep_last=case.keep_last
    )


def weighted_size(case):
    """Only the size is learned."""
    return insert_weighted(
        case.prompt,
        case.inputs,
        case.mask,
        size_weights=case.size_weights,
        split=case.split,
        keep_last=case.keep_last,
    )


def check_against_loop(case):
    """All functions against the references: every returned tensor, every gradient."""
    places = case.split.tolist(), case.size.tolist()
    expected = naive_insert(case.prompt, case.inputs, case.mask, *places, case.kept)
    given = insert(case.prompt, case.inputs, case.mask, case.split, case.size, keep_last=case.keep_last)
    for found in (given, weighted(case), weighted_both(case), weighted_size(case)):
        for name in found._fields:
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
    rows = gradients(case, given.embeds, "prompt", "inputs")
    assert_close(rows, gradients(case, expected.embeds, "prompt", "inputs"), **EXACT)
    names = ("prompt", "inputs", "weights", "size_weights")
    dense = gradients(case, dense_insert(case), *names[:3])
    dense += gradients(case, dense_insert(case, "size"), names[3])
    assert_close(gradients(case, weighted_both(case).embeds, *names), dense, **EXACT)
    assert_close(gradients(case, weighted(case).embeds, *names[:3]), dense[:3], **EXACT)
    assert_close(
        gradients(case, weighted_size(case).embeds, *names[:2], names[3]), (*dense[:2], dense[3]), **EXACT
    )


# ---- values and gradients -----------------------------------------------------------------------------------


@given(cases(), st.sampled_from([1, 2, 5, insertion.BLOCK]))
def test_equals_the_loop_everywhere(case, block):
    usual, insertion.BLOCK = (
        insertion.BLOCK,
        block,
    )  # small blocks: many of them, and a last one that overlaps
    try:
        check_against_loop(case)
    finally:
        insertion.BLOCK = usual


@pytest.mark.parametrize("seq", [31, 32, 33, 63, 64, 65, 97])
@pytest.mark.parametrize("padding", ["left", "right", "both"])
def test_equals_the_loop_across_blocks(seq, padding):
    check_against_loop(make_case(3, seq, 5, lengths=[seq, seq // 2, 1], padding=padding, keep_last=1))


@pytest.mark.parametrize(
    "options",
    [
        {"seq": 1, "lengths": [1, 0, 1]},
        {"seq": 2, "length": 9, "lengths": [2, 1, 0]},
        {"seq": 3, "length": 40, "shared": False, "lengths": [3, 2, 0], "padding": "left"},
        {"lengths": [0, 0, 0], "padding": "left"},
        {"lengths": [2, 1, 0], "keep_last": 2},
        {"dim": 1, "length": 1},
    ],
    ids=["one token", "long prompt", "very long prompt", "all rows empty", "shorter than kept", "smallest"],
)
def test_equals_the_loop_at_the_edges(options):
    check_against_loop(make_case(**options))


def test_gradcheck():
    case = make_case(2, 4, 3, 2, lengths=[4, 2], keep_last=1)
    for shared in (True, False):
        prompt = case.prompt if shared else make_case(2, 4, 3, 2, shared=False).prompt

        def placed(prompt, inputs):
            return insert(prompt, inputs, case.mask, case.split, keep_last=1).embeds

        def chosen(prompt, inputs):
            return insert_weighted(prompt, inputs, case.mask, case.weights.detach(), keep_last=1).embeds

        assert torch.autograd.gradcheck(placed, (prompt, case.inputs))
        assert torch.autograd.gradgradcheck(placed, (prompt, case.inputs))
        assert torch.autograd.gradcheck(chosen, (prompt, case.inputs))


@given(cases())
def test_weight_gradient_is_the_loss_at_each_split(case):
    """The probe's loss is linear in the sequence, so column k of the gradient is the loss of inserting at k."""
    (found,) = gradients(case, weighted(case).embeds, "weights")
    for k in range(case.weights.shape[1]):
        placed = insert(case.prompt, case.inputs, case.mask, k, case.size, keep_last=case.keep_last)
        assert_close(found[:, k], (placed.embeds * case.probe).sum((1, 2)), **EXACT)


def test_prefix_postfix_and_surround_are_concatenations():
    case = make_case(padding="right", lengths=[6, 6, 6])
    prompt = case.prompt.expand(3, -1, -1)
    for k in range(5):
        expected = torch.cat([prompt[:, :k], case.inputs, prompt[:, k:]], 1)
        assert torch.equal(insert(case.prompt, case.inputs, split=k).embeds, expected)
        assert torch.equal(insert(case.prompt, case.inputs, case.mask, split=k).embeds, expected)
    prefix = torch.cat([prompt, case.inputs], 1)
    assert torch.equal(insert(case.prompt, case.inputs).embeds, prefix)


def test_vectors_that_are_not_in_use_are_padding():
    """The real rows of an instance are those of a prompt that has only its first n vectors."""
    case = make_case(3, 6, 4, padding="left", lengths=[6, 3, 0], keep_last=1)
    for n in range(1, 5):
        for k in range(5):
            some = insert(case.prompt, case.inputs, case.mask, k, n, keep_last=1)
            true = insert(case.prompt[:n], case.inputs, case.mask, min(k, n), keep_last=1)
            assert torch.equal(some.embeds[:, : 6 + n], true.embeds)
            assert torch.equal(some.mask[:, : 6 + n], true.mask) and not some.mask[:, 6 + n :].any()
            assert torch.equal(some.input_positions, true.input_positions)
            assert torch.equal(some.prompt_positions[:, :n], true.prompt_positions)
            assert (some.prompt_positions[:, n:] == -1).all()
    none = insert(case.prompt, case.inputs, case.mask, 2, 0, keep_last=1)
    assert torch.equal(none.embeds[:, :6], case.inputs) and torch.equal(none.mask[:, :6], case.mask)


def test_kept_tokens_stay_last():
    case = make_case(2, 5, 3, lengths=[5, 3], splits=[1, 0])
    placed = insert(case.prompt, case.inputs, case.mask, case.split, keep_last=1)
    assert torch.equal(placed.embeds[0, 7], case.inputs[0, 4])
    assert torch.equal(placed.embeds[1, 5], case.inputs[1, 2])
    assert placed.mask.tolist() == [[1] * 8, [1] * 6 + [0] * 2]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64, torch.uint8])
def test_mask_keeps_its_dtype(dtype):
    case = make_case(lengths=[6, 2, 0])
    placed = insert(case.prompt, case.inputs, case.mask.to(dtype), 2)
    assert placed.mask.dtype == dtype
    assert placed.mask.long().sum(1).tolist() == [10, 6, 4]


@pytest.mark.parametrize("keep_last", [0, 1])
def test_padding_changes_nothing(keep_last):
    """An instance's rows and gradients are the same alone, padded by any amount, on either side."""
    alone = make_case(1, 5, 4, lengths=[5], splits=[2], keep_last=keep_last)
    rows = weighted(alone).embeds
    expected = gradients(alone, rows)
    for amount in (1, 40):
        for left in (0, amount):
            pad = torch.randn(2, 1, amount, 3, dtype=torch.float64)
            right = amount - left
            padded = SimpleNamespace(**vars(alone))
            padded.inputs = torch.cat([pad[0, :, :left], alone.inputs, pad[0, :, :right]], 1)
            padded.mask = torch.cat([torch.zeros(1, left), torch.ones(1, 5), torch.zeros(1, right)], 1).long()
            placed = weighted(padded)
            real = placed.mask.bool()
            assert torch.equal(placed.embeds[real], rows[0])
            padded.probe = torch.zeros_like(placed.embeds)
            padded.probe[real] = alone.probe[0]
            padded.inputs = alone.inputs  # the leaf; padding rows have no gradient
            assert_close(gradients(padded, placed.embeds), expected, **EXACT)


def test_works_on_expanded_and_transposed_tensors():
    case = make_case(3, 5, 4, lengths=[5, 3, 1])
    dense = dense_insert(case)
    case.probe = torch.ones(()).double().expand_as(case.probe)
    turned = SimpleNamespace(**vars(case))
    turned.inputs = case.inputs.detach().mT.contiguous().mT.requires_grad_()
    assert not turned.inputs.is_contiguous()
    found = torch.autograd.grad(weighted(turned).embeds.sum(), [turned.prompt, turned.inputs, turned.weights])
    assert_close(found, gradients(case, dense), **EXACT)


def test_empty_batch():
    placed = insert_weighted(
        torch.ones(4, 3), torch.ones(0, 6, 3), weights=torch.ones(0, 5, requires_grad=True)
    )
    assert placed.embeds.shape == (0, 10, 3)
    placed.embeds.sum().backward()


def test_gumbel_softmax_weights_are_accepted():
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.randn(64, 5, dtype=dtype, requires_grad=True)
        weights = torch.nn.functional.gumbel_softmax(logits, hard=True)
        insert_weighted(
            torch.randn(4, 3), torch.randn(64, 6, 3), None, weights
        ).embeds.square().sum().backward()
        assert logits.grad.abs().sum() > 0


# ---- precision ----------------------------------------------------------------------------------------------


def in_float64(case):
    exact = SimpleNamespace(**vars(case))
    exact.probe = case.probe.double()
    for name in ("prompt", "inputs", "weights"):
        setattr(exact, name, getattr(case, name).detach().double().requires_grad_())
    return exact


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_float32(dtype):
    """The error is that of rounding the result; a sum of rounded products has half as much again."""
    case = make_case(4, 128, 20, 64, lengths=[128, 100, 60, 3], dtype=dtype)
    exact = in_float64(case)
    expected = gradients(exact, dense_insert(exact))
    found = gradients(case, weighted(case).embeds)
    rounding = [(e.to(dtype) - e).norm() for e in expected]
    assert [g.dtype for g in found] == [dtype] * 3
    for ours, reference, least in zip(found, expected, rounding):
        assert (ours - reference).norm() <= 1.02 * least
    candidates = [insert(case.prompt, case.inputs, case.mask, k).embeds for k in range(21)]
    careless = torch.stack([(c * case.probe).sum(-1).sum(1) for c in candidates], 1)
    assert (careless - expected[2]).norm() > 1.4 * rounding[2]


def test_weights_keep_their_own_dtype():
    case = make_case(4, 128, 20, 64, dtype=torch.bfloat16)
    case.weights = case.weights.detach().float().requires_grad_()
    (found,) = gradients(case, weighted(case).embeds, "weights")
    exact = in_float64(case)
    dense = dense_insert(exact)
    assert_close(found.double(), gradients(exact, dense, "weights")[0], rtol=0, atol=1e-4)


def test_autocast_does_not_lower_the_sums():
    case = make_case(3, 40, 5, 16, dtype=torch.float32)
    expected = gradients(case, weighted(case).embeds)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(case, weighted(case).embeds)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


# ---- cost and form ------------------------------------------------------------------------------------------


class Ops(TorchDispatchMode):
    """Counts the operations that reach the device, and the size of the largest tensor that one makes."""

    def __init__(self):
        super().__init__()
        self.count = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.count += 1
        made = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.largest = max([self.largest, *(t.numel() for t in made if t.untyped_storage().nbytes())])
        return out


def meta(case, *trainable):
    """The case without values: any look at one raises an error, as it would make a device wait."""
    moved = {k: v.detach().to("meta") if isinstance(v, torch.Tensor) else v for k, v in vars(case).items()}
    for name in trainable:
        moved[name].requires_grad_()
    return SimpleNamespace(**moved)


def count_ops(place, case, *names):
    """Operations of one forward and backward, on the meta device, where the values are not checked."""
    with Ops() as ops:
        torch.autograd.grad(place(case), [getattr(case, name) for name in names], case.probe)
    return ops


def fixed(case):
    """The floor: a prompt in front, without any decision."""
    return torch.cat([case.prompt.expand(len(case.inputs), -1, -1), case.inputs], 1)


def test_number_of_operations_is_small_and_fixed():
    counts = []
    for batch, length, dim in [(2, 4, 8), (16, 4, 8), (2, 50, 8), (2, 4, 64)]:
        case = meta(make_case(batch, 64, length, dim), "prompt", "weights", "size_weights")
        ours = count_ops(lambda c: weighted(c).embeds, case, "prompt", "weights")
        counts.append(ours.count - count_ops(fixed, case, "prompt").count)
    assert len(set(counts)) == 1, counts
    assert counts[0] <= 80
    both = count_ops(lambda c: weighted_both(c).embeds, case, "prompt", "weights", "size_weights")
    assert both.count <= 130


def test_backward_builds_nothing_larger_than_the_output():
    case = meta(make_case(4, 100, 20, 64, shared=False), "prompt", "inputs", "weights")
    ops = count_ops(lambda c: weighted(c).embeds, case, "prompt", "inputs", "weights")
    assert ops.largest <= case.probe.numel()


def test_never_waits_for_a_device():
    case = meta(make_case(4, 70, 5, keep_last=torch.tensor([0, 1, 2, 3])), "prompt", "inputs", "weights")
    with pytest.raises((RuntimeError, NotImplementedError)):
        case.mask[0, 0].item()  # the control: this is what a look at a value does here
    insert(case.prompt, case.inputs, case.mask, case.split, keep_last=case.keep_last).embeds.sum().backward()
    weighted(case).embeds.sum().backward()
    assert case.weights.grad.shape == (4, 6)


@pytest.mark.parametrize("place", [insert, insert_weighted])
def test_compiles_to_one_graph(place):
    case = make_case(3, 40, 5, lengths=[40, 7, 0], keep_last=1)

    def run(prompt, inputs, mask, choice):
        placed = place(prompt, inputs, mask, choice, keep_last=1)
        return (
            (placed.embeds * case.probe).sum(),
            placed.mask,
            placed.input_positions,
            placed.prompt_positions,
        )

    names = ["prompt", "inputs"] + ["weights"] * (place is insert_weighted)
    arguments = (case.prompt, case.inputs, case.mask, case.split if place is insert else case.weights)
    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    expected, found = run(*arguments), compiled(*arguments)
    assert_close(found, expected, **EXACT)
    leaves = [getattr(case, name) for name in names]
    assert_close(torch.autograd.grad(found[0], leaves), torch.autograd.grad(expected[0], leaves), **EXACT)


def exported(place, case, strict):
    """A module that holds the prompt, exported with any batch size, and the module itself."""

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.prompt = torch.nn.Parameter(case.prompt.detach().clone())

        def forward(self, inputs, mask, first, second, kept):
            return tuple(place(self.prompt, inputs, mask, first, second, keep_last=kept))

    any_batch = ({0: torch.export.Dim("batch", min=1, max=64)},) * 5
    module = Module()
    return torch.export.export(module, exports(place, case), dynamic_shapes=any_batch, strict=strict), module


def exports(place, case):
    """The arguments of the exported module."""
    counts = (case.split, case.size) if place is insert else (case.weights, case.size_weights)
    return case.inputs.detach(), case.mask, *(count.detach() for count in counts), case.keep_last


@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*:FutureWarning"
)  # torch.export meets a name of its own that is old
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("place", [insert, insert_weighted])
def test_exports_with_a_dynamic_batch(place, strict):
    program, module = exported(place, make_case(3, 5, 4, keep_last=torch.tensor([0, 1, 2])), strict)
    graphs = [part.graph for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    copies = [node for graph in graphs for node in graph.nodes if "index_copy" in str(node.target)]
    assert len(copies) == 2  # every row once: of the inputs and of the prompt
    for batch in (1, 2, 7):
        case = make_case(
            batch, 5, 4, seed=batch, sizes=[n % 5 for n in range(batch)], keep_last=torch.arange(batch) % 3
        )
        for found, expected in zip(
            program.module()(*exports(place, case)), module(*exports(place, case)), strict=True
        ):
            assert torch.equal(found, expected)


# ---- derivatives of derivatives, and torch.func -------------------------------------------------------------

LEAVES = ("prompt", "inputs", "weights", "size_weights")
FORWARD_MODE = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own


def dense_both(case):
    """sum_kn weights_k size_weights_n (sequence with split k and size n), built in full."""
    batch, options = case.weights.shape
    every = [
        [
            naive_insert(case.prompt, case.inputs, case.mask, [k] * batch, [n] * batch, case.kept).embeds
            for n in range(options)
        ]
        for k in range(options)
    ]
    return torch.einsum(
        "bk,bn,knbsd->bsd", case.weights, case.size_weights, torch.stack(list(map(torch.stack, every)))
    )


WAYS = {  # what learns which weights, and the mixture that it is the value of
    "split": (weighted, dense_insert, LEAVES[:3]),
    "size": (weighted_size, lambda case: dense_insert(case, "size"), (*LEAVES[:2], LEAVES[3])),
    "both": (weighted_both, dense_both, LEAVES),
}


def losses(case, way, power=2):
    """A function of the leaves by the operator and by the mixture, and the leaves. power 1: linear in the rows."""
    ours, dense, names = WAYS[way]

    def loss_of(rows_of):
        def loss(*leaves):
            given = SimpleNamespace(**vars(case) | dict(zip(names, leaves)))
            rows = rows_of(given) * case.probe
            return (rows if power == 1 else rows.sin() + rows**2).sum()

        return loss

    leaves = tuple(getattr(case, name).detach() for name in names)
    return loss_of(lambda given: ours(given).embeds), loss_of(dense), leaves


@st.composite
def small_cases(draw):
    """Cases whose second derivatives fit into a dense matrix."""
    batch, seq, length = draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    some = st.lists(st.integers(0, length), min_size=batch, max_size=batch)
    return make_case(
        batch,
        seq,
        length,
        dim=draw(st.integers(1, 2)),
        shared=draw(st.booleans()),
        padding=draw(st.sampled_from(["left", "right", "both"])),
        lengths=draw(st.lists(st.integers(0, seq), min_size=batch, max_size=batch)),
        keep_last=draw(st.integers(0, 2)),
        splits=draw(some),
        sizes=draw(st.none() | some),
        seed=draw(st.integers(0, 2**16)),
    )


CLOSE = {"rtol": 1e-11, "atol": 1e-11}


@settings(max_examples=40)
@given(small_cases(), st.sampled_from(list(WAYS)), st.sampled_from([1, 2]))
def test_hessian_is_that_of_the_mixture(case, way, power):
    ours, dense, leaves = losses(case, way, power)
    expected = torch.autograd.functional.hessian(dense, leaves)
    assert_close(torch.autograd.functional.hessian(ours, leaves), expected, **CLOSE)


def test_hessian_of_weights_is_not_zero():
    """The loss 100 (sum of rows)^2 of one vector and one token: by hand, the entry of splits 0 and 1."""
    prompt, inputs = torch.tensor([[2.0]]).double(), torch.tensor([[[3.0]]]).double()
    factors = torch.tensor([1.0, 10.0]).double().view(1, 2, 1)

    def loss(weights):
        return (insert_weighted(prompt, inputs, weights=weights).embeds * factors).sum().square()

    found = torch.autograd.functional.hessian(loss, torch.eye(2).double()[:1])
    candidates = torch.tensor([3 + 20.0, 2 + 30.0]).double()  # [X; P] and [P; X]
    assert_close(found.squeeze(), 2 * torch.outer(candidates, candidates), **EXACT)


@settings(max_examples=40)
@given(cases(), st.sampled_from(list(WAYS)))
def test_gradient_penalty_is_that_of_the_mixture(case, way):
    """The gradients of what a gradient penalty adds to the loss, and the gradients as numbers under create_graph."""
    found = []
    for loss in losses(case, way)[:2]:
        leaves = [leaf.clone().requires_grad_() for leaf in losses(case, way)[2]]
        first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        penalty = sum(g.sin().sum() for g in first)
        found.append((*first, *torch.autograd.grad(penalty, leaves, allow_unused=True)))
    assert_close(*found, **CLOSE)


def test_third_derivatives_are_those_of_the_mixture():
    case, found = make_case(2, 4, 3, lengths=[4, 2], sizes=[2, 3], keep_last=1), []
    for loss in losses(case, "both")[:2]:
        leaves = [leaf.clone().requires_grad_() for leaf in losses(case, "both")[2]]
        first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.sin().sum() for g in second), leaves))
    assert_close(*found, **CLOSE)


def test_penalty_where_the_weights_depend_on_the_prompt():
    """One leaf acts through rows and weights alike: each way counts once."""
    case, found = make_case(2, 4, 3, lengths=[4, 2]), []
    for loss in losses(case, "split")[:2]:
        prompt = case.prompt.detach().clone().requires_grad_()
        soft = (prompt.sum() * torch.arange(4.0)).softmax(0)
        weights = case.weights.detach() + soft - soft.detach()
        (first,) = torch.autograd.grad(loss(prompt, case.inputs, weights), prompt, create_graph=True)
        found.append((first, *torch.autograd.grad(first.square().sum(), prompt)))
    assert_close(*found, **CLOSE)


@FORWARD_MODE
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "hessian",
    [
        lambda loss, leaves, all: torch.func.hessian(loss, all)(*leaves),
        lambda loss, leaves, all: torch.func.jacrev(torch.func.jacrev(loss, all), all)(*leaves),
        lambda loss, leaves, all: torch.func.jacfwd(torch.func.jacfwd(loss, all), all)(*leaves),
        lambda loss, leaves, all: torch.autograd.functional.hessian(loss, leaves, vectorize=True),
        lambda loss, leaves, all: torch.autograd.functional.hessian(
            loss, leaves, vectorize=True, outer_jacobian_strategy="forward-mode"
        ),
    ],
    ids=["func", "reverse twice", "forward twice", "vectorized", "vectorized forward"],
)
def test_hessian_is_exact_in_every_mode(hessian, way):
    ours, dense, leaves = losses(make_case(2, 4, 3, 2, lengths=[4, 2], sizes=[3, 1], keep_last=1), way)
    expected = torch.autograd.functional.hessian(dense, leaves)
    assert_close(hessian(ours, leaves, tuple(range(len(leaves)))), expected, **CLOSE)


def test_gradients_with_a_graph_keep_value_and_precision():
    """In bf16, under autocast: rows are copies, and the sums of torch.func and of create_graph are those in float32."""
    case = make_case(4, 64, 10, 32, lengths=[64, 50, 30, 3], dtype=torch.bfloat16)
    case.weights = (
        case.weights.detach() + 0.01
    ).requires_grad_()  # near to one-hot, as straight-through rounds
    usual = gradients(case, weighted(case).embeds)
    leaves = [case.prompt, case.inputs, case.weights]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows, vjp = torch.func.vjp(calls(case, LEAVES[:3], lambda c: weighted(c).embeds), *leaves)
        graph = torch.autograd.grad(weighted(case).embeds, leaves, case.probe, create_graph=True)
    assert torch.equal(rows, insert(case.prompt, case.inputs, case.mask, case.split).embeds)
    for found in (vjp(case.probe), graph):
        # The order of a sum in float32 decides which way a few numbers round.
        assert_close(found, usual, rtol=2**-7, atol=1e-4)


def calls(case, names, place):
    """The call as a function of the named tensors, the others as the case has them."""

    def call(*tensors):
        return place(SimpleNamespace(**vars(case) | dict(zip(names, tensors))))

    return call


MAPPED = {
    "insert": (
        lambda c: insert(c.prompt, c.inputs, c.mask, c.split, c.size, keep_last=c.keep_last),
        ("prompt", "inputs", "mask", "split", "size", "keep_last"),
    ),
    "split": (
        lambda c: insert_weighted(c.prompt, c.inputs, c.mask, c.weights, size=c.size, keep_last=c.keep_last),
        ("prompt", "inputs", "mask", "weights", "size", "keep_last"),
    ),
    "both": (weighted_both, ("prompt", "inputs", "mask", "weights", "size_weights", "keep_last")),
}


@settings(max_examples=60)
@given(st.data(), st.sampled_from(list(MAPPED)), st.integers(0, 2**16), st.booleans())
def test_vmap_is_the_loop(data, kind, seed, shared):
    """Over every choice of arguments: all returned tensors, and per-sample gradients of what has them."""
    place, names = MAPPED[kind]
    drawn = [
        make_case(
            2, 4, 3, 2, shared, ("right", "left", "both")[i], splits=[i, 3 - i], sizes=[3 - i, i + 1],
            keep_last=torch.tensor([i, 1]), seed=seed + i,
        )
        for i in range(3)
    ]  # fmt: skip
    over = tuple(sorted(data.draw(st.sets(st.sampled_from(names), min_size=1)), key=names.index))
    stacked = [torch.stack([getattr(case, name).detach() for case in drawn]) for name in over]
    call, probe = calls(drawn[0], over, place), drawn[0].probe
    found = torch.func.vmap(call)(*stacked)
    singles = list(zip(*(tensor.unbind() for tensor in stacked)))
    for one, tensors in enumerate(singles):
        for ours, expected in zip(found, call(*tensors), strict=True):
            assert torch.equal(ours[one], expected)
    real = tuple(i for i, tensor in enumerate(stacked) if tensor.is_floating_point())
    if real:
        gradient = torch.func.grad(lambda *tensors: (call(*tensors).embeds * probe).sin().sum(), real)
        for one, tensors in enumerate(singles):
            leaves = [
                tensor.clone().requires_grad_() if i in real else tensor for i, tensor in enumerate(tensors)
            ]
            rows = (call(*leaves).embeds * probe).sin().sum()
            expected = torch.autograd.grad(rows, [leaves[i] for i in real])
            assert_close(tuple(g[one] for g in torch.func.vmap(gradient)(*stacked)), expected, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_transform_keeps_the_dtype(dtype):
    case = make_case(2, 4, 3, 2, dtype=dtype)
    plain = insert_weighted(case.prompt, case.inputs, case.mask, case.weights).embeds
    mapped = torch.func.vmap(lambda given: insert_weighted(case.prompt, case.inputs, case.mask, given).embeds)
    (found,) = mapped(case.weights.detach()[None])
    assert found.dtype == plain.dtype == dtype and torch.equal(found, plain)


def test_a_size_that_is_learned_alone_leaves_the_prompt_in_front():
    case = make_case(2, 4, 3, 2)
    found = insert_weighted(case.prompt, case.inputs, case.mask, size_weights=case.size_weights)
    same = insert(case.prompt, case.inputs, case.mask, split=3, size=case.size_weights.argmax(1))
    assert all(torch.equal(*pair) for pair in zip(found, same, strict=True))


@pytest.mark.parametrize("place", [insert, insert_weighted])
def test_vmap_compiles_to_one_graph(place):
    case = make_case(2, 4, 3, 2)
    choice = case.split if place is insert else case.weights.detach()
    arguments = [
        torch.stack([tensor.detach(), tensor.detach().flip(0)]) for tensor in (case.prompt, case.mask, choice)
    ]

    def loss(prompt, mask, choice):
        return (place(prompt, case.inputs, mask, choice).embeds * case.probe).sin().sum()

    mapped = torch.func.vmap(torch.func.grad_and_value(loss))
    torch.compiler.reset()
    found = torch.compile(mapped, fullgraph=True, backend="aot_eager")(*arguments)
    assert_close(found, mapped(*arguments), **EXACT)


@pytest.mark.parametrize("learned", [True, False])
def test_compiles_whether_or_not_weights_are_learned(learned):
    """Without any gradient, as in an evaluation; the graph copies each row once and has one pair of products behind."""
    case, graphs = make_case(2, 64, 4, 3), []
    case.inputs.requires_grad_(False)
    leaves = [case.prompt.requires_grad_(learned), case.weights.requires_grad_(learned)]

    def count(graph, _):
        names = [str(node.target) for node in graph.graph.nodes]
        graphs.append({name: sum(name in n for n in names) for name in ("index_copy", "bmm")})
        return make_boxed_func(graph.forward)

    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=count, bw_compiler=count)
    run = torch.compile(
        lambda prompt, weights: insert_weighted(prompt, case.inputs, case.mask, weights).embeds,
        fullgraph=True,
        backend=backend,
    )
    found = run(*leaves)
    assert torch.equal(found, weighted(case).embeds)
    if learned:
        expected = gradients(case, dense_insert(case), "prompt", "weights")
        assert_close(gradients(case, found, "prompt", "weights"), expected, **EXACT)
    assert graphs == [{"index_copy": 2, "bmm": 0}, {"index_copy": 0, "bmm": 2}][: 1 + learned]


def test_values_are_checked_where_they_can_be_seen():
    """torch.func.grad shows values; vmap does not, and what it does not map over it leaves as it was."""
    case, wrong = make_case(2, 4, 3), torch.full((2, 4), 0.25).double()

    def loss(weights, split=None):
        return insert_weighted(case.prompt, case.inputs, None, weights, size=split).embeds.sum()

    with pytest.raises(ValueError, match="weights row 0 is 0.75 away from one-hot"):
        torch.func.grad(loss)(wrong)
    with pytest.raises(ValueError, match="size=7 is outside"):
        torch.func.vmap(loss, in_dims=(0, None))(torch.stack([case.weights] * 2), torch.tensor([1, 7]))
    with pytest.raises(ValueError, match=r"weights has shape \(2, 3\), expected \(2, 4\)"):
        torch.func.vmap(loss)(torch.ones(3, 2, 3))


def test_only_what_is_trained_gets_a_gradient():
    case = make_case()
    case.inputs.requires_grad_(False)
    case.prompt.requires_grad_(False)
    weighted(case).embeds.sum().backward()
    assert case.prompt.grad is None and case.inputs.grad is None
    assert case.weights.grad is not None


# ---- where every row would stand at every split -------------------------------------------------------------


@pytest.mark.parametrize("sizes", [None, [2, 0, 4, 3]])
@pytest.mark.parametrize("keep_last", [0, 1, torch.tensor([0, 2, 1, 9])])
@pytest.mark.parametrize("padding", ["left", "right", "both"])
def test_rows_at_every_split_are_those_of_the_insertion_at_that_split(padding, keep_last, sizes):
    case = make_case(batch=4, padding=padding, lengths=[6, 0, 3, 4], keep_last=keep_last, splits=[2, 4, 0, 3])
    size = None if sizes is None else torch.tensor(sizes)
    kept = {} if isinstance(keep_last, int) and keep_last == 0 else {"keep_last": keep_last}
    found = rows_at_every_split(case.mask, 4, case.split, size, **kept)
    assert found.shape == (4, 5, 10) and found.dtype == torch.int64
    used = [4] * 4 if sizes is None else sizes
    for b in range(4):
        real = case.mask[b].tolist()
        now = naive_rows(real, 4, int(case.split[b]), used[b], case.kept[b])
        for k in range(5):
            then = naive_rows(real, 4, k, used[b], case.kept[b])
            assert found[b, k].tolist() == [then.index(token) for token in now]


def test_positions_count_from_the_first_real_row():
    rows = torch.tensor([[[0, 1, 2, 3], [0, 3, 1, 2]], [[1, 0, 2, 3], [3, 2, 1, 0]]])
    moves = Moves(torch.zeros(2, 2), rows, torch.tensor([[0], [2]]))
    assert moves.positions.tolist() == [[[0, 1, 2, 3], [0, 3, 1, 2]], [[0, 0, 0, 1], [1, 0, 0, 0]]]


def test_everything_is_made_where_the_inputs_are():
    """The meta device stands for any other than the CPU: mixing them up is an error there."""
    inputs = torch.zeros(2, 4, 3, device="meta")
    prompt, weights = torch.zeros(5, 3, device="meta"), torch.zeros(2, 6, device="meta", requires_grad=True)
    learned = (
        insert_weighted(prompt, inputs, None, weights),
        insert_weighted(prompt, inputs, None, weights, split=None, size=3),
    )
    for placed in (insert(prompt, inputs), insert(prompt, inputs, split=2, size=3), *learned):
        assert {each.device.type for each in placed} == {"meta"} and placed.embeds.shape == (2, 9, 3)
        assert placed.mask.dtype == torch.int64
    learned[1].embeds.sum().backward()
    assert weights.grad.shape == (2, 6)
    both = torch.func.vmap(lambda given: insert_weighted(prompt, inputs, None, given, given).embeds)
    assert both(weights.detach()[None]).device.type == "meta"
    mask = torch.ones(2, 4, device="meta").long()
    assert rows_at_every_split(mask, 5, weights.argmax(1)).device.type == "meta"


# ---- bad input ----------------------------------------------------------------------------------------------


def test_weights_may_be_off_one_hot_by_less_than_a_twentieth():
    def place(*rows):
        weights = torch.tensor(rows, dtype=torch.float64)
        shape = len(rows), 4, 3
        prompt = torch.zeros(len(rows[0]) - 1, 3, dtype=torch.float64)
        return insert_weighted(prompt, torch.zeros(shape, dtype=torch.float64), None, weights)

    place([1.0, 0.0499], [0.9501, 0.0])
    with pytest.raises(ValueError, match="weights row 0 is 0.05 away from one-hot"):
        place([1.0, 0.05])
    with pytest.raises(ValueError, match="weights row 0 is 0.05 away from one-hot"):
        place([1.0, 0.05], [0.5, 0.5])


SPLIT_SCALE = r"the prompt has 5 vectors \(0 is postfix, 5 is prefix\)"
BAD = [
    ({"split": 7}, ValueError, rf"split=7 is outside 0\.\.5: {SPLIT_SCALE}"),
    ({"split": -1}, ValueError, rf"split=-1 is outside 0\.\.5: {SPLIT_SCALE}"),
    ({"split": torch.tensor([0, 6])}, ValueError, rf"split=6 is outside 0\.\.5: {SPLIT_SCALE}"),
    ({"split": torch.tensor([-1, 2])}, ValueError, rf"split=-1 is outside 0\.\.5: {SPLIT_SCALE}"),
    ({"split": torch.tensor([0, 1, 2])}, ValueError, r"split has shape \(3,\), expected \(2,\)"),
    (
        {"split": torch.tensor([0.0, 1.0])},
        TypeError,
        r"split has dtype torch.float32, expected an integer dtype",
    ),
    (
        {"split": torch.tensor([True, False])},
        TypeError,
        r"split has dtype torch.bool, expected an integer dtype",
    ),
    ({"size": 6}, ValueError, r"size=6 is outside 0\.\.5: the prompt has 5 vectors$"),
    ({"size": torch.tensor([2, -1])}, ValueError, r"size=-1 is outside 0\.\.5: the prompt has 5 vectors$"),
    ({"size": torch.tensor([2])}, ValueError, r"size has shape \(1,\), expected \(2,\)"),
    ({"size": "full"}, TypeError, r"size is str, expected an int or an integer tensor"),
    ({"split": 1.0}, TypeError, r"split is float, expected an int or an integer tensor"),
    ({"split": True}, TypeError, r"split is bool, expected an int"),
    ({"prompt": torch.ones(5, 4)}, ValueError, r"prompt has width 4, expected 3, the width of inputs"),
    ({"prompt": torch.ones(2, 5, 4)}, ValueError, r"^prompt has width 4, expected 3, the width of inputs$"),
    ({"prompt": torch.ones(0, 3)}, ValueError, r"prompt has shape \(0, 3\), expected .* length >= 1"),
    ({"prompt": torch.ones(3)}, ValueError, r"prompt has shape \(3,\), expected \(length, dim\)"),
    ({"prompt": torch.ones(4, 5, 3)}, ValueError, r"prompt holds 4 instances, expected 2"),
    (
        {"prompt": torch.ones(5, 3).double()},
        TypeError,
        r"prompt has dtype torch.float64, expected torch.float32",
    ),
    ({"prompt": torch.ones(5, 3, device="meta")}, ValueError, r"prompt is on meta, expected cpu"),
    ({"inputs": torch.ones(2, 4)}, ValueError, r"inputs has shape \(2, 4\), expected \(batch, seq, dim\)"),
    ({"inputs": torch.ones(2, 0, 3)}, ValueError, r"inputs has shape \(2, 0, 3\), expected .* seq >= 1"),
    ({"inputs": torch.ones(2, 4, 3).long()}, TypeError, r"inputs has dtype torch.int64, expected embeddings"),
    ({"mask": torch.ones(2, 5).long()}, ValueError, r"mask has shape \(2, 5\), expected \(2, 4\)"),
    (
        {"mask": torch.ones(2, 4)},
        TypeError,
        r"mask has dtype torch.float32, expected bool or an integer dtype",
    ),
    (
        {"mask": torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0]])},
        ValueError,
        r"mask row 1 has 2 runs of real tokens",
    ),
    (
        {"mask": torch.tensor([[1, 1, 1, 1], [2, 0, 0, 0]])},
        ValueError,
        r"mask holds values 0\.\.2, expected 0",
    ),
    (
        {"mask": torch.tensor([[1, 1, 1, 1], [-9, 0, 0, 0]])},
        ValueError,
        r"mask holds values -9\.\.1, expected 0",
    ),
    ({"mask": torch.ones(2, 4, device="meta").long()}, ValueError, r"mask is on meta, expected cpu"),
    ({"keep_last": -1}, ValueError, r"keep_last=-1 is not a number of tokens"),
    ({"keep_last": 1.5}, TypeError, r"keep_last is float, expected an int"),
    ({"keep_last": torch.tensor([0, -2])}, ValueError, r"keep_last=-2 is not a number of tokens"),
    ({"keep_last": torch.tensor([1])}, ValueError, r"keep_last has shape \(1,\), expected \(2,\)"),
    (
        {"weights": None},
        ValueError,
        r"^weights and size_weights are None, expected at least one of them",
    ),
    (
        {"weights": torch.eye(6)[:2].long()},
        TypeError,
        r"weights is torch.int64, expected a floating-point tensor",
    ),
    ({"weights": torch.eye(5)[:2]}, ValueError, r"weights has shape \(2, 5\), expected \(2, 6\)"),
    ({"weights": torch.full((2, 6), 1 / 6)}, ValueError, r"weights row 0 is 0.83 away from one-hot"),
    ({"weights": torch.eye(6)[:2], "split": 2}, ValueError, r"split=2 is given and so is weights"),
    (
        {"weights": None, "size_weights": torch.eye(6)[:2], "size": 2},
        ValueError,
        r"size=2 is given and so is size_weights",
    ),
    (
        {"weights": None, "size_weights": torch.eye(5)[:2]},
        ValueError,
        r"size_weights has shape \(2, 5\), expected \(2, 6\), one column per size",
    ),
    (
        {"weights": torch.eye(6)[:2] * torch.nan},
        ValueError,
        r"weights row 0 is nan away from one-hot, expected one 1 and else 0: where they were learned, training has "
        r"diverged$",
    ),
    (
        {"weights": torch.tensor([[1.0, 0, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0, 0]])},
        ValueError,
        r"^weights row 1 is 0\.5 away from one-hot, expected one 1 and else 0$",
    ),
    ({"weights": torch.eye(5)[:2]}, ValueError, r"expected \(2, 6\), one column per split 0\.\.5$"),
    ({"weights": torch.eye(6, device="meta")[:2]}, ValueError, r"^weights is on meta, expected cpu"),
    (
        {"mask": torch.ones(2, 4).cfloat()},
        TypeError,
        r"mask has dtype torch.complex64, expected bool or an int",
    ),
    (
        {"keep_last": torch.ones(2).bool()},
        TypeError,
        r"^keep_last has dtype torch.bool, expected an integer dtype$",
    ),
    ({"keep_last": torch.ones(2, device="meta").long()}, ValueError, r"^keep_last is on meta, expected cpu"),
    ({"split": torch.ones(2, device="meta").long()}, ValueError, r"^split is on meta, expected cpu"),
]


@pytest.mark.parametrize(
    ("bad", "error", "message"), BAD, ids=[f"{n}-{next(iter(b[0]))}" for n, b in enumerate(BAD)]
)
def test_bad_input_is_named(bad, error, message):
    usual = {"prompt": torch.ones(5, 3), "inputs": torch.ones(2, 4, 3), "mask": torch.ones(2, 4).long()}
    with pytest.raises(error, match=message):
        if "weights" in bad:
            insert_weighted(**usual | bad)
        else:
            insert(**usual | bad)
            raise AssertionError("accepted")
    if "weights" not in bad and "split" not in bad:
        with pytest.raises(error, match=message):
            insert_weighted(**usual | {"weights": torch.eye(6)[:2]} | bad)


def test_weights_that_are_no_tensor_are_named_by_their_type():
    with pytest.raises(
        TypeError, match=r"^weights is list, expected a floating-point tensor of shape \(2, 6\)$"
    ):
        insert_weighted(torch.ones(5, 4), torch.zeros(2, 3, 4), weights=[[1.0, 0, 0, 0, 0, 0]] * 2)
