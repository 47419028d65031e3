"""Two processes on the CPU (gloo), with whole or sharded weights, give the losses and gradients of one process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from torch.testing import assert_close
from workers import LABELS, PAIRS, make, make_pairs, pairs_worker, sharded_worker, worker


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


@pytest.mark.parametrize("work", [worker, sharded_worker, pairs_worker])
def test_two_processes_average_to_the_gradient_of_the_global_batch(tmp_path, work):
    script = tmp_path / "worker.py"
    script.write_text(f"import sys, workers\n\nworkers.{work.__name__}(sys.argv[1])\n")
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
import tiny, workers

class Examples(torch.utils.data.Dataset):
    def __len__(self):
        return 24
    def __getitem__(self, index):
        ids, mask = tiny.batch([6], seed=index)
        return dict(input_ids=ids[0], attention_mask=mask[0], labels=torch.tensor([5 + index % 7, 6]))


model = workers.make()
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
workers.leave()
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
