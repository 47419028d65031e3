"""The steps of a pretraining in one process, which goes on where its run folder stopped."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .run_folder import load_checkpoint, save_checkpoint


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    steps: int,
    rate_at: Callable[[int], float],
    loss_of: Callable[[int], Tensor],
    report: Callable[[int, list[float], float], None],
    report_every: int = 100,
    stop: int | None = None,
) -> None:
    """Runs all steps, or those in front of step ``stop``, from folder/checkpoint.pt if it is there; reports and saves.

    rate_at, loss_of : learning rate and loss of a step, counted from 0.
    report : called with the steps done, the losses since its last call and the seconds of training so far.
    """
    progress = load_checkpoint(folder, model, optimizer)
    step, losses = progress.get("step", 0), progress.get("losses", [])
    last = steps if stop is None else min(stop, steps)
    began = time.time() - progress.get("seconds", 0.0)
    with tqdm(total=steps, initial=step, mininterval=10) as bar:
        while step < last:
            model.train()
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step)
            loss = loss_of(step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            losses.append(loss.item())
            bar.update()
            if step % report_every == 0 or step == last:
                seconds = time.time() - began
                if step % report_every == 0 or step == steps:
                    report(step, losses, seconds)
                    losses = []
                save_checkpoint(folder, model, optimizer, step=step, seconds=seconds, losses=losses)
