"""What the processes of the distributed tests do, and the models that they share with the tests."""

import datetime
import os
import sys
from pathlib import Path

import tiny
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import dplearn as dp

LENGTH = 4


LABELS = torch.tensor([[5, 6], [7, 8], [9, 10], [11, 12]])


def make():
    """Everything learned, and nothing drawn: the exact expectation over splits, a soft mixture of the pool."""
    torch.manual_seed(0)
    config = dp.PromptConfig(
        length=LENGTH, position="instance", vector="instance", pool_size=2, estimator="exact"
    )
    model = dp.prompted(tiny.t5(), config, vectors=torch.randn(2, LENGTH, tiny.WIDTH))
    model.prompt.double()
    return model.train()


def leave():
    """End a process when all are done, freeing nothing: where gloo frees its connections, a process can wait for ever.

    (Seen with torch 2.13 after the last line of a worker, in the destructors of its local variables, one try in ten.)
    """
    if dist.is_initialized():
        dist.barrier()
    sys.stderr.flush()
    os._exit(0)


def worker(folder):
    """What each of the two processes of the first test does."""
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    rank = dist.get_rank()
    model = make()
    wrapped = DistributedDataParallel(model)
    ids, mask = tiny.batch([6, 3, 8, 5])
    half = slice(2 * rank, 2 * rank + 2)
    loss = wrapped(ids[half], mask[half], labels=LABELS[half]).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.trainable_parameters().items()}
    torch.save((loss.detach(), gradients), Path(folder) / f"rank{rank}.pt")
    leave()


def make_pairs():
    """An image-text model with classes, prompts in both towers, and nothing drawn."""
    config = dp.PromptConfig(length=LENGTH, towers="coupled", depth=2, position="task", estimator="exact")
    torch.manual_seed(0)
    model = dp.prompted(tiny.clip(), config, vectors=torch.randn(2, LENGTH, tiny.WIDTH)).double()
    model.set_classes(*tiny.texts([[10, 11], [10, 12, 13], [14]]))
    return model.train()


PAIRS = dict(pixel_values=tiny.images(4), labels=torch.tensor([0, 2, 1, 2]))


def pairs_worker(folder):
    """As ``worker``, for images: every process has all classes and half of the images."""
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    rank = dist.get_rank()
    model = make_pairs()
    wrapped = DistributedDataParallel(model)
    output = wrapped(**{name: value[2 * rank : 2 * rank + 2] for name, value in PAIRS.items()})
    output.loss.backward()
    gradients = {name: p.grad for name, p in model.trainable_parameters().items()}
    torch.save((output.loss.detach(), gradients), Path(folder) / f"rank{rank}.pt")
    leave()


def sharded_worker(folder):
    """As ``worker``, with FSDP: every layer of the backbone is split over the processes, and so is the prompt."""
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))
    model = make()
    for block in (*model.backbone.encoder.block, *model.backbone.decoder.block):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    weight = model.backbone.encoder.block[0].layer[0].SelfAttention.q.weight
    assert len(weight.to_local()) == len(weight) // 2
    ids, mask = tiny.batch([6, 3, 8, 5])
    half = slice(2 * rank, 2 * rank + 2)
    loss = model(ids[half], mask[half], labels=LABELS[half]).loss
    loss.backward()
    gradients = {name: p.grad.full_tensor() for name, p in model.trainable_parameters().items()}
    torch.save((loss.detach(), gradients), Path(folder) / f"rank{rank}.pt")
    leave()
