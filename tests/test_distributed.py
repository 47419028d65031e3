"""Two processes on the CPU (gloo), with whole or sharded weights, give the losses and gradients of one process."""

import datetime
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

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


def one_process(work):
    model = make_pairs() if work is pairs_worker else make()
    ids, mask = tiny.batch([6, 3, 8, 5])
    call = PAIRS if work is pairs_worker else dict(input_ids=ids, attention_mask=mask, labels=LABELS)
    loss = model(**call).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.trainable_parameters().items()}


def launch(processes, script, *arguments):
    """Run a script as torchrun does, or alone; whatever happens, none of its processes outlives the call."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(script), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    )
    run = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        errors = run.communicate(timeout=120)[1]
    finally:
        if run.poll() is None:
            run.terminate()  # torchrun then ends its workers
            try:
                run.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 0, errors[-3000:]


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


@pytest.mark.parametrize("work", [worker, sharded_worker, pairs_worker])
def test_two_processes_average_to_the_gradient_of_the_global_batch(tmp_path, work):
    script = tmp_path / "worker.py"
    script.write_text(f"import sys, test_distributed\n\ntest_distributed.{work.__name__}(sys.argv[1])\n")
    launch(2, script, tmp_path)
    (loss0, one), (loss1, other) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    loss, wanted = one_process(work)
    assert_close((loss0 + loss1) / 2, loss, rtol=1e-12, atol=1e-12)
    assert not torch.equal(loss0, loss1)
    for name, gradient in wanted.items():
        assert torch.equal(one[name], other[name])
        assert_close(one[name], gradient, rtol=1e-10, atol=1e-12)


SCRIPT = """
import json, os, sys
import torch
from transformers import Trainer, TrainingArguments, set_seed
import test_distributed, tiny

class Examples(torch.utils.data.Dataset):
    def __len__(self):
        return 24
    def __getitem__(self, index):
        ids, mask = tiny.batch([6], seed=index)
        return dict(input_ids=ids[0], attention_mask=mask[0], labels=torch.tensor([5 + index % 7, 6]))


model = test_distributed.make()
arguments = TrainingArguments(
    output_dir=sys.argv[2] + "-out", max_steps=3, per_device_train_batch_size=int(sys.argv[1]), learning_rate=0.1, seed=3,
    data_seed=3, save_strategy="no", logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
    dataloader_pin_memory=False, ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
)
trainer = Trainer(model=model, args=arguments, train_dataset=Examples())
trainer.train()
if trainer.is_world_process_zero():
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tensors = {name: p.tolist() for name, p in model.trainable_parameters().items()}
    with open(sys.argv[2], "w") as file:
        json.dump(dict(losses=losses, tensors=tensors), file)
test_distributed.leave()
"""


def test_the_trainer_under_a_launcher_takes_the_same_steps(tmp_path):
    """torchrun with two processes of 4 examples each, and one process with 8: the same three steps."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    found = {}
    for name, processes in (("one", 1), ("two", 2)):
        launch(processes, script, 8 // processes, tmp_path / name)
        found[name] = json.loads((tmp_path / name).read_text())
    for one, two in zip(found["one"]["losses"], found["two"]["losses"], strict=True):
        assert one == pytest.approx(two, abs=2e-4)  # the trainer logs four digits
    for name, values in found["one"]["tensors"].items():
        assert_close(torch.tensor(found["two"]["tensors"][name]), torch.tensor(values), rtol=1e-5, atol=1e-7)
    assert found["one"]["losses"][0] != found["one"]["losses"][-1]
