"""The best prompt for a loss, searched from many random starts. A search proves no bound, it can only break one."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class BestPrompt(NamedTuple):
    """The best prompt that a search came to."""

    loss: float
    prompt: Tensor  # of the shape that was asked for
    losses: Tensor  # (restarts,), sorted; the first is ``loss``


def best_prompt(
    loss: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    *,
    restarts: int = 16,
    steps: int = 1500,
    rate: float = 0.05,
    seed: int = 0,
    scale: float = 1.0,
) -> BestPrompt:
    """Minimise ``loss`` over a prompt, from many random starts at once.

    Adam with a falling learning rate runs on all of them, then L-BFGS on the best one.

    Parameters
    ----------
    loss : takes prompts in float64, of the given shape behind a first dimension of restarts; one loss for each.
    shape : of a prompt.
    restarts : random starts.
    steps : of Adam.
    rate : its first learning rate.
    seed : of the starts.
    scale : their standard deviation.

    Raises
    ------
    ValueError : no restarts or no steps, or not one loss for each restart.
    """
    if restarts < 1 or steps < 1:
        raise ValueError(f"restarts={restarts} and steps={steps}, expected at least one of each")
    generator = torch.Generator().manual_seed(seed)
    starts = scale * torch.randn(restarts, *shape, generator=generator, dtype=torch.float64)
    prompts = _by_adam(loss, starts, steps, rate)
    with torch.no_grad():
        losses = loss(prompts)
    index = int(losses.argmin())
    best, sharper = prompts[index], _by_lbfgs(loss, prompts[index])
    with torch.no_grad():
        value = loss(sharper[None])[0]
    if value < losses[index]:
        losses[index], best = value, sharper
    return BestPrompt(float(losses[index]), best, losses.sort().values)


def _by_adam(loss: Callable[[Tensor], Tensor], prompts: Tensor, steps: int, rate: float) -> Tensor:
    prompts.requires_grad_()
    optimizer = torch.optim.Adam([prompts], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=rate / 100)
    for _ in range(steps):
        optimizer.zero_grad()
        losses = loss(prompts)
        if losses.shape != prompts.shape[:1]:
            raise ValueError(f"loss gives the shape {tuple(losses.shape)}, expected ({len(prompts)},)")
        losses.sum().backward()
        optimizer.step()
        schedule.step()
    return prompts.detach()


def _by_lbfgs(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int = 100) -> Tensor:
    prompt = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [prompt], max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-14, tolerance_change=1e-16
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(prompt[None])[0]
        value.backward()
        return value

    optimizer.step(closure)
    return prompt.detach()
