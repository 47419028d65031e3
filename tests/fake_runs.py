"""Runs that only wait, for tests of the runner: as a script, one runner process of its own on a folder.

    python tests/fake_runs.py FOLDER LOG COUNT SECONDS threads|processes [STALE]

Each run adds a line "key pid" to the file LOG when it starts. It does not end while the file LOG.hold is there: a test
that does something in the middle of a run need not guess how long that takes on a machine with other things to do.
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from dplearn.experiments.jobs import Job
from dplearn.experiments.runner import Runner
from dplearn.experiments.store import Store
from dplearn.experiments.workers import Local


def jobs(count, seconds, log):
    """So many jobs; all choices but for the last three, which become known when these are done."""
    labels = {"study": "fake", "method": "wait", "condition": "", "task": "toy/wait"}
    specs = [
        {
            "backbone": None,
            "task": "toy/wait",
            "kind": "fake",
            "seed": seed,
            "seconds": seconds,
            "log": str(log),
        }
        for seed in range(count)
    ]
    return [
        Job(labels, spec | {"purpose": "choice" if spec["seed"] < count - 3 else "report"}) for spec in specs
    ]


def known_of(all_jobs):
    """Reports are known when all choices are done."""
    choices = [job for job in all_jobs if job.purpose == "choice"]
    return lambda rows: all_jobs if all(job.key in rows for job in choices) else choices


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def work(spec, options):
    with open(spec["log"], "a") as file:  # one short line: appended in one piece
        file.write(f"{spec['seed']} {os.getpid()}\n")
    wait_for(lambda: not os.path.exists(spec["log"] + ".hold"))
    time.sleep(spec["seconds"])
    return {
        "seed": spec["seed"],
        "purpose": spec["purpose"],
        "scores": {"test": {"accuracy": spec["seed"] / 100}},
    }


def gpu_of_each(folder, count):
    """(the GPU that this process was given, its number), once ``count`` processes are here: each answers once."""
    (folder / str(os.getpid())).touch()
    wait_for(lambda: len(list(folder.iterdir())) == count)
    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()


class Threads:
    """Workers in this process."""

    count = 2

    def __init__(self):
        self.pool = ThreadPoolExecutor(self.count)

    def submit(self, function, *arguments):
        return self.pool.submit(function, *arguments)

    def close(self):
        self.pool.shutdown(wait=False, cancel_futures=True)


def main(folder, log, count, seconds, kind, stale="60"):
    workers = Threads() if kind == "threads" else Local(1)
    known = known_of(jobs(int(count), float(seconds), log))
    failed = Runner(known, Store(folder, float(stale)), workers, work, look=0.05).run()
    assert not failed


if __name__ == "__main__":
    main(*sys.argv[1:])
