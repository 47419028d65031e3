"""Views of a model: changed for one call, while the model itself, and whoever else calls it, sees nothing."""

import gc
import threading
import weakref

import pytest
import tiny
import torch
from torch import nn
from torch.testing import assert_close

from dplearn.backbones.views import changed, path_of


class Tower(nn.Module):
    """Two layers inside of a body, with a buffer and a head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        self.head = nn.Linear(3, 2)
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x):
        return self.head(self.body(x) + self.shift)


def doubled(usual, x):
    return 2 * usual(x)


def by_hand(tower, x, inner=1.0, outer=1.0):
    first, second = tower.body
    states = nn.functional.linear(x, first.weight, first.bias) * inner
    return tower.head((nn.functional.linear(states, second.weight, second.bias)) * outer + tower.shift)


X = torch.arange(6.0).view(2, 3)


def test_changes_apply_where_they_are_named_one_inside_of_the_other():
    tower = Tower()
    for changes, factors in (
        ({"body.0": doubled}, (2, 1)),
        ({"body": doubled}, (1, 2)),
        ({"body": doubled, "body.0": doubled}, (2, 2)),
    ):
        with changed(tower, changes) as view:
            assert_close(view(X), by_hand(tower, X, *factors))
            assert_close(tower(X), by_hand(tower, X))
    with changed(tower, {"": doubled}) as view:
        assert_close(view(X), 2 * by_hand(tower, X))
    with changed(tower, {}) as view:
        assert view is tower


def test_another_method_than_forward_can_change():
    tower = Tower()
    tower.body[0].scale = lambda: 3.0
    with changed(tower, {"body.0:extra_repr": lambda usual: f"<{usual()}>"}) as view:
        assert view.body[0].extra_repr() == f"<{tower.body[0].extra_repr()}>"


def test_weights_gradients_hooks_and_buffers_are_shared():
    tower, calls = Tower(), []
    tower.body.register_forward_hook(lambda *_: calls.append(1))
    with changed(tower, {"body": doubled}) as view:
        view(X).sum().backward()
        assert view.body[0].weight is tower.body[0].weight and view.shift is tower.shift
        tower.double()  # moves the view, too
        assert view(X.double()).dtype == torch.float64
    assert tower.body[0].weight.grad is not None and calls == [1, 1]


def test_a_tensor_can_stand_in_for_a_parameter():
    tower, weight = Tower(), torch.zeros(2, 3)
    with changed(tower, {}, {"head.weight": weight}) as view:
        assert_close(view(X), tower.head.bias.expand(2, 2))
    assert tower.head.weight.abs().max() > 0


def test_a_view_outlives_the_call_in_the_backward_pass_of_checkpointing():
    from torch.utils.checkpoint import checkpoint

    tower, x = Tower(), X.clone().requires_grad_()
    with changed(tower, {"body.0": doubled}) as view:
        output = checkpoint(view, x, use_reentrant=False)
    found = torch.autograd.grad(output.sum(), x)
    expected = torch.autograd.grad(by_hand(tower, x, 2).sum(), x)
    assert_close(found, expected)


class Counting(nn.Module):
    """Notes on itself what it has done, as transformers' models do with hooks that they set on their layers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x):
        if not hasattr(self, "hooked"):
            self.layer.register_forward_hook(lambda module, arguments, output: output + 1)
            self.hooked = True
        return self.layer(x)


def test_what_a_module_notes_on_itself_is_noted_on_the_original():
    model = Counting()
    for _ in range(2):
        with changed(model, {"": lambda usual, x: 10 * usual(x)}) as view:
            assert_close(view(X), 10 * (X + 1))
    assert_close(model(X), X + 1)
    assert "forward" not in vars(model)


def test_nothing_is_held_after_the_call():
    tower = Tower()
    with changed(tower, {"body": doubled}) as view:
        alive = weakref.ref(view)
    del view
    gc.collect()
    assert alive() is None


def test_two_threads_see_their_own_changes_and_a_third_none():
    tower, wrong, start = Tower(), [], threading.Barrier(3)
    expected = [by_hand(tower, X, factor) for factor in (1, 2, 3)]

    def work(factor):
        start.wait()
        for _ in range(200):
            changes = {} if factor == 1 else {"body.0": lambda usual, x: factor * usual(x)}
            with changed(tower, changes) as view:
                if not torch.allclose(view(X), expected[factor - 1]):
                    wrong.append(factor)

    threads = [threading.Thread(target=work, args=(factor,)) for factor in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_while_compiling_it_is_a_patch_of_the_trace_alone():
    tower = Tower()

    def call(x):
        with changed(tower, {"body.0": doubled, "body": doubled}, {"head.weight": torch.ones(2, 3)}) as view:
            return view(x)

    compiled = torch.compile(call, backend="eager", fullgraph=True)
    assert_close(compiled(X), call(X))
    assert "forward" not in vars(tower.body) and "forward" not in vars(tower.body[0])
    assert isinstance(tower.head.weight, nn.Parameter)


def test_accelerates_hooks_move_to_the_view():
    """With weights offloaded, accelerate's own forward brings them back: in the view, with the change inside of it."""
    from accelerate import cpu_offload

    model, (ids, mask) = tiny.gpt2(), tiny.batch([5, 3], eos=False)
    changes = {"transformer": doubled_states, "transformer.wpe": lambda usual, *a: 0 * usual(*a)}
    with changed(model, changes) as view, torch.no_grad():
        expected = view(ids, attention_mask=mask).logits
    cpu_offload(model, torch.device("cpu"))
    with changed(model, changes) as view, torch.no_grad():
        assert_close(view(ids, attention_mask=mask).logits, expected)


def doubled_states(usual, *arguments, **options):
    output = usual(*arguments, **options)
    output["last_hidden_state"] = 2 * output["last_hidden_state"]
    return output


def test_a_forward_that_cannot_be_followed_is_refused():
    tower = Tower()
    usual = tower.body.forward
    tower.body.forward = lambda x: usual(x)
    with changed(tower, {"body": doubled}) as view:  # changed itself: what others put there is called
        assert_close(view(X), by_hand(tower, X, 1, 2))
    with pytest.raises(RuntimeError, match=r"the module 'body' \(Sequential\) has a forward of its own"):
        with changed(tower, {"body.0": doubled}):
            pass


def test_paths_are_those_of_named_modules():
    tower = Tower()
    assert [path_of(tower, m) for m in (tower, tower.body, tower.body[1])] == ["", "body", "body.1"]
    with pytest.raises(ValueError, match="module=Linear is no part of Tower"):
        path_of(tower, nn.Linear(1, 1))
