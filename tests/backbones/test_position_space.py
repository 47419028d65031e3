"""Second derivatives of the position-space estimator: exact where the mixture is linear, else an error in every mode."""

import pytest
import torch
from torch.testing import assert_close

from dplearn.backbones.position_space import Moves, bias_term, code_term, table_term, visibility
from dplearn.insertion import insert, rows_at_every_split

EXACT = {"rtol": 0, "atol": 1e-11}
LENGTH, SEQ = 3, 4


def moves_of(weights, mask, split):
    """Moves at a split whose weights are the given ones."""
    rows = rows_at_every_split(mask, LENGTH, split)
    return Moves(weights, rows, mask.argmax(1, keepdim=True))


def case():
    """One-hot weights (B, K) in float64, the mask (B, T) and the splits of two instances, one of them left-padded."""
    mask, split = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]), torch.tensor([1, 3])
    return torch.eye(LENGTH + 1, dtype=torch.float64)[split], mask, split


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def tables(weights, mask, split):
    """The term and the mixture itself, which autograd differentiates: position vectors."""
    moves, table = moves_of(weights, mask, split), random(LENGTH + SEQ, 2)
    return table_term(moves, table, table.dtype), torch.einsum(
        "bk,bksd->bsd", weights, table[moves.positions]
    )


def biases(weights, mask, split):
    """Relative biases of two heads."""
    moves, bias = moves_of(weights, mask, split), random(2, 2 * (LENGTH + SEQ) - 1)
    offsets = moves.rows.unsqueeze(2) - moves.rows.unsqueeze(3) + LENGTH + SEQ - 1  # (B, K, query, key)
    return bias_term(moves, bias), torch.einsum("bk,hbkij->bhij", weights, bias[:, offsets])


def codes(weights, mask, split):
    """Codes that some rows get at some splits."""
    code, at = random(LENGTH + SEQ, 2), torch.ones(LENGTH + 1, LENGTH + SEQ).double().tril()
    return code_term(weights, code, at, code.dtype), torch.einsum("bk,ks,sd->bsd", weights, at, code)


def losses(make, mask, split):
    """Two functions of the weights and of numbers beside them that have equal derivatives: by the term, by the mixture."""

    def loss(rows, beside):
        # Not symmetric in the entries, not linear in the rows, and all derivatives depend on the other leaf.
        return (rows * beside).sin().mul(torch.arange(1.0, rows.shape[-1] + 1)).sum() + (
            rows**2 * beside
        ).sum()

    def ours(weights, beside):
        return loss(make(weights, mask, split)[0] + 0.3, beside)

    def dense(weights, beside):
        mixture = make(weights, mask, split)[1]
        return loss(mixture - mixture.detach() + 0.3, beside)

    return ours, dense


@pytest.mark.parametrize("make", [tables, biases, codes])
def test_second_derivatives_of_linear_mixtures_are_exact(make):
    weights, mask, split = case()
    ours, dense = losses(make, mask, split)
    arguments = weights, random(*make(weights, mask, split)[0].shape)
    found = torch.autograd.functional.hessian(ours, arguments)
    expected = torch.autograd.functional.hessian(dense, arguments)
    assert expected[0][0].abs().max() > 1 and expected[0][1].abs().max() > 1
    assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("make", [tables, biases, codes])
def test_gradient_penalty_of_linear_mixtures_is_exact(make):
    weights, mask, split = case()
    found = []
    for loss in losses(make, mask, split):
        leaves = (
            weights.clone().requires_grad_(),
            random(*make(weights, mask, split)[0].shape).requires_grad_(),
        )
        first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    assert_close(*found, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("power", [1, 2], ids=["linear loss", "other loss"])
def test_second_derivatives_of_visibility_are_refused(power):
    """With a linear loss too, where the gradient from above needs no gradient itself."""
    weights, mask, split = case()
    whole = insert(torch.zeros(LENGTH, 1), torch.zeros(2, SEQ, 1), mask, split).mask
    probe = random(2, 1, LENGTH + SEQ, LENGTH + SEQ)

    def loss(weights):
        shown = visibility(moves_of(weights, mask, split), whole, torch.float64)
        return ((shown * (shown > -100)) ** power * probe).sum()

    refused = pytest.raises(RuntimeError, match="second derivatives of position-space weights are refused")
    leaf = weights.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)  # as a number it is fine
    assert torch.equal(first, torch.autograd.grad(loss(leaf), leaf)[0])
    with refused:
        first.sum().backward()
    with refused:
        torch.autograd.functional.hessian(loss, weights)
    with refused:
        penalised = loss(leaf) + torch.autograd.grad(loss(leaf), leaf, create_graph=True)[0].square().sum()
        torch.autograd.grad(penalised, leaf)
    for transform in (torch.func.grad, torch.func.hessian):
        with pytest.raises(
            RuntimeError, match="setup_context"
        ):  # torch's own: the mixture is no ordinary operation
            transform(loss)(weights)
