"""Runs on a Dask cluster of two workers, one of which is killed in the middle of a run."""

import json
import os
import subprocess
import sys

import pytest
from project import ROOT

pytest.importorskip("distributed", reason="the extra `cluster` is not installed")

# In a process of its own: a cluster leaves threads behind, and warns of what tests take for errors.
SCRIPT = """
import json, os, signal, sys, threading, time
import fake_runs
from distributed import LocalCluster
from dplearn.experiments.runner import Runner
from dplearn.experiments.store import Store
from dplearn.experiments.workers import Cluster

folder, log = sys.argv[1:]
lines = lambda: [tuple(map(int, line.split())) for line in open(log)] if os.path.exists(log) else []

def kill_one():
    while not lines():
        time.sleep(0.02)
    os.kill(lines()[0][1], signal.SIGKILL)
    os.unlink(log + ".hold")

if __name__ == "__main__":
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**options, memory_limit=0) as cluster:
        threading.Thread(target=kill_one, daemon=True).start()
        known = fake_runs.known_of(fake_runs.jobs(8, 0.1, log))
        workers = Cluster(cluster.scheduler_address)
        failed = Runner(known, Store(folder), workers, fake_runs.work, say=lambda text: None, look=0.05).run()
    rows = Store(folder).rows().values()
    print(json.dumps({"failed": len(failed), "seeds": sorted(row["seed"] for row in rows), "begun": lines()}))
"""


def test_the_run_of_a_killed_worker_runs_elsewhere_and_nothing_is_in_the_record_twice(tmp_path):
    script = tmp_path / "cluster.py"
    script.write_text(SCRIPT)
    (tmp_path / "log.hold").touch()  # no run ends before one of the workers is killed
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, str(script), str(tmp_path / "runs"), str(tmp_path / "log")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failed"] == 0 and found["seeds"] == list(range(8))
    killed_run, killed = found["begun"][0]
    by_run = {}
    for seed, process in found["begun"]:
        by_run.setdefault(seed, []).append(process)
    assert by_run.keys() == set(range(8))
    assert len(by_run[killed_run]) >= 2 and by_run[killed_run][-1] != killed
    assert all(process != killed for seed, process in found["begun"] if seed != killed_run)
    assert len({process for _, process in found["begun"]}) >= 2
    files = sorted(path.suffix for path in (tmp_path / "runs").iterdir())
    assert files == [".json"] * 8
