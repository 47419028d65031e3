"""A model with some of its modules changed for one call, in a way that nobody else can see.

A prompt enters and leaves a model between its modules: rows are taken before the head, layers get fresh vectors, an
embedding module hands over rows that are embedded already. Patching ``module.forward`` for the time of a call would do,
but a second thread, a replica or a caller of the bare model would meet the patch. So a call runs on a *view*: copies of
the few modules on the path to a changed one, which share everything else (weights, buffers, hooks, all other modules)
with the original. A view costs microseconds, holds nothing after the call, and lives on in the closures that gradient
checkpointing calls again.

While ``torch.compile`` traces, modules cannot be copied; there, and only there, the change is a patch, which exists in
the trace alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MethodType

import torch
from torch import Tensor, nn

# What stands in for a module's forward: called with the usual one, then with what the module is called with.
Change = Callable

# Path of a module ("" is the model itself) -> change. A path may end in ":name" to change another method than forward.
Changes = dict[str, Change]


@contextmanager
def changed(
    model: nn.Module, changes: Changes, tensors: Mapping[str, Tensor] | None = None
) -> Iterator[nn.Module]:
    """The model with changes, for use inside of the ``with`` block; the model itself stays as it is.

    Parameters
    ----------
    changes : path of a module -> function, called as ``function(usual, *arguments, **options)``, where ``usual`` is the
        module's own forward (with the changes inside of it). Modules are named as in ``named_modules()``.
    tensors : path of a parameter -> the tensor that stands in for it.

    Raises
    ------
    RuntimeError : a module on the way has a ``forward`` of somebody else's that cannot be moved to a copy.

    >>> layer = nn.Sequential(nn.Identity(), nn.ReLU())
    >>> with changed(layer, {"0": lambda usual, x: usual(x) - 2}) as view:
    ...     print(view(torch.tensor([1.0, 3.0])), layer(torch.tensor([1.0, 3.0])))
    tensor([0., 1.]) tensor([1., 3.])
    """
    if not changes and not tensors:
        yield model
    elif torch.compiler.is_compiling():
        with _patched(model, changes, tensors or {}):
            yield model
    else:
        copies: list[tuple[nn.Module, nn.Module, dict]] = []
        view = _view(model, _tree(changes, tensors or {}), "", copies)
        try:
            yield view
        finally:
            for copy, module, before in copies:
                keep_notes(copy, module, before)


def keep_notes(copy: nn.Module, module: nn.Module, before: dict) -> None:
    """What a module noted on itself during a call (that its hooks are there; how far its rotary angles reach, say) is
    noted on the original. ``before``: the copy's attributes when the call began."""
    for name, value in vars(copy).items():
        if (name not in before or value is not before[name]) and not isinstance(value, MethodType | partial):
            vars(module)[name] = value


class _Branch:
    """What changes in a module and below it."""

    def __init__(self):
        self.children: dict[str, _Branch] = {}
        self.methods: dict[str, Change] = {}
        self.tensors: dict[str, Tensor] = {}

    def at(self, path: str) -> _Branch:
        branch = self
        for name in filter(None, path.split(".")):
            branch = branch.children.setdefault(name, _Branch())
        return branch


def _split(path: str) -> tuple[str, str]:
    module, _, method = path.partition(":")
    return module, method or "forward"


def _tree(changes: Changes, tensors: Mapping[str, Tensor]) -> _Branch:
    root = _Branch()
    for path, change in changes.items():
        module, method = _split(path)
        root.at(module).methods[method] = change
    for path, tensor in tensors.items():
        module, _, name = path.rpartition(".")
        root.at(module).tensors[name] = tensor
    return root


def _view(module: nn.Module, branch: _Branch, path: str, copies: list) -> nn.Module:
    copy = shared_copy(module)
    own = vars(copy)
    if branch.children and not _bound_to(own.get("forward"), copy):
        raise RuntimeError(
            f"the module {path or 'at the top'!r} ({type(module).__name__}) has a forward of its own that cannot be "
            "followed, expected the one of its class: something has replaced it"
        )
    modules: dict = module._modules
    for name, below in branch.children.items():
        own["_modules"][name] = _view(modules[name], below, f"{path}.{name}".lstrip("."), copies)
    if branch.tensors:
        own["_parameters"] = {**module._parameters, **branch.tensors}
    for name, change in branch.methods.items():
        own[name] = partial(change, getattr(copy, name))
    copies.append((copy, module, dict(own)))
    return copy


def shared_copy(module: nn.Module) -> nn.Module:
    """A copy of one module that shares weights, buffers, hooks and children with it."""
    copy = object.__new__(type(module))
    own = vars(copy)
    own.update({name: _moved(value, module, copy) for name, value in vars(module).items()})
    own["_modules"] = dict(module._modules)
    own.pop("_compiled_call_impl", None)  # of ``module.compile()``: it would run the original
    return copy


def _moved(value, module: nn.Module, copy: nn.Module):
    """A method or partial that is bound to the module (accelerate's hooks are), bound to its copy instead."""
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType(value.__func__, copy)
    if isinstance(value, partial) and any(argument is module for argument in value.args):
        return partial(value.func, *(copy if a is module else a for a in value.args), **value.keywords)
    return value


def _bound_to(forward, copy: nn.Module) -> bool:
    if forward is None:  # the class's own
        return True
    owners = (
        getattr(forward, "args", ())
        if isinstance(forward, partial)
        else (getattr(forward, "__self__", None),)
    )
    return any(owner is copy for owner in owners)


@contextmanager
def _patched(model: nn.Module, changes: Changes, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """The same by patches, for the time of a trace."""
    before = []
    for path, change in changes.items():
        name, method = _split(path)
        module = model.get_submodule(name)
        before.append((module, method, module.__dict__.get(method)))
        setattr(module, method, _calling(change, getattr(module, method)))
    swapped: list[tuple[dict, str, nn.Parameter | None]] = []
    for path, tensor in tensors.items():
        name, _, parameter = path.rpartition(".")
        parameters: dict = model.get_submodule(name)._parameters
        swapped.append((parameters, parameter, parameters[parameter]))
        parameters[parameter] = tensor
    try:
        yield
    finally:
        for module, method, usual in reversed(before):
            if usual is None:
                module.__dict__.pop(method)  # the class's own is visible again
            else:
                setattr(module, method, usual)
        for parameters, name, own in swapped:
            parameters[name] = own


def _calling(change: Change, usual: Callable) -> Callable:
    def forward(*arguments, **options):
        return change(usual, *arguments, **options)

    return forward


def prepare(model: nn.Module, given: Mapping) -> None:
    """Let a transformers model set its own hooks, those that collect hidden states, before there is a view of it.

    It does so in the first call that asks for such outputs, and in a view that is a call of one thread among several.

    given : what the model is called with.
    """
    names = ("output_hidden_states", "output_attentions", "output_router_logits")
    if torch.compiler.is_compiling() or not any(
        given.get(n) or getattr(model.config, n, False) for n in names
    ):
        return
    try:
        from transformers.utils.output_capturing import maybe_install_capturing_hooks
    except ImportError:  # versions that collect them otherwise
        return
    maybe_install_capturing_hooks(model)


def path_of(model: nn.Module, module: nn.Module) -> str:
    """The path of a module inside of a model, "" for the model itself.

    Raises
    ------
    ValueError : the module is no part of the model.
    """
    for name, candidate in model.named_modules():
        if candidate is module:
            return name
    raise ValueError(f"module={type(module).__name__} is no part of {type(model).__name__}")


def below(path: str, name: str) -> str:
    """The path of a module inside of another one.

    >>> below("", "layer"), below("encoder", "layer"), below("encoder", "")
    ('layer', 'encoder.layer', 'encoder')
    """
    return ".".join(filter(None, (path, name)))


# ---- evaluation mode ----


@contextmanager
def evaluating(model: nn.Module, copies: bool = True):
    """The model in evaluation mode, for one call, and afterwards as it was.

    copies : where modules are in training mode, work on a view of the model, so that another thread does not see its
        mode change. (Not while compiling, and not in the probe, where nobody else has the model yet.)
    """
    training = [module for module in model.modules() if module.training]
    if not training:
        yield model
    elif copies and not torch.compiler.is_compiling():
        made: dict[int, tuple[nn.Module, nn.Module, dict]] = {}
        try:
            yield _evaluating_copy(model, made)
        finally:
            for each in made.values():
                keep_notes(*each)
    else:
        for module in training:
            module.training = False
        try:
            yield model
        finally:
            for module in training:
                module.training = True


def _evaluating_copy(module: nn.Module, done: dict[int, tuple[nn.Module, nn.Module, dict]]) -> nn.Module:
    """All modules anew, with the weights and everything else of the old ones, in evaluation mode."""
    if id(module) not in done:
        copy = shared_copy(module)
        vars(copy)["training"] = False
        done[id(module)] = (copy, module, {})
        vars(copy)["_modules"] = {
            name: child and _evaluating_copy(child, done) for name, child in module._modules.items()
        }
        done[id(module)] = (copy, module, dict(vars(copy)))
    return done[id(module)][0]
