"""The runner of studies with real processes: shared work, kills at any moment, claims of the dead, killed workers."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import fake_runs
import pytest
from fake_runs import wait_for
from project import ROOT

from dplearn.experiments import store as stores
from dplearn.experiments import workers
from dplearn.experiments.runner import Runner, clock
from dplearn.experiments.store import Store
from dplearn.experiments.workers import Local

SCRIPT = ROOT / "tests" / "fake_runs.py"


@pytest.fixture
def runner_process():
    """Starts runner processes, and ends what is left of them."""
    started = []

    def start(*arguments):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(SCRIPT), *map(str, arguments)]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def begun(log):
    """(seed, process) of the runs that were begun, in order."""
    return [tuple(map(int, line.split())) for line in log.read_text().splitlines()] if log.exists() else []


def hold_runs(log):
    """No run of this log ends before this file is removed."""
    hold = log.with_name(log.name + ".hold")
    hold.touch()
    return hold


def is_alive(pid):
    try:
        state = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_two_runners_share_a_study_and_nothing_is_lost_or_done_twice(tmp_path, runner_process):
    """Before, each rewrote one file with what it knew: 24 jobs ran, 4 twice, 12 of 20 rows survived."""
    folder, log = tmp_path / "runs", tmp_path / "log"
    hold = hold_runs(log)
    both = [runner_process(folder, log, 20, 0.1, "threads") for _ in range(2)]
    wait_for(lambda: len({pid for _, pid in begun(log)}) == 2)  # both did something
    hold.unlink()
    assert [process.wait(120) for process in both] == [0, 0]
    rows = Store(folder).rows()
    assert sorted(row["seed"] for row in rows.values()) == list(range(20))
    assert rows.keys() == {job.key for job in fake_runs.jobs(20, 0.1, log)}
    assert Counter(seed for seed, _ in begun(log)) == Counter(range(20))
    assert sorted(path.suffix for path in folder.iterdir()) == [".json"] * 20


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="reads process states in /proc")
def test_a_killed_runner_loses_the_run_under_way_alone_and_leaves_no_worker(tmp_path, runner_process):
    folder, log = tmp_path / "runs", tmp_path / "log"
    first = runner_process(folder, log, 6, 0.4, "processes")
    wait_for(lambda: len(begun(log)) >= 3)
    first.send_signal(signal.SIGKILL)
    first.wait()
    worker = begun(log)[-1][1]
    assert worker != first.pid
    wait_for(lambda: not is_alive(worker), 20)
    kept = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    started = begun(log)
    assert len(started) - 1 <= len(kept) <= len(started)
    second = runner_process(folder, log, 6, 0.4, "threads")
    assert second.wait(120) == 0  # at once: the claim of the dead is taken over without waiting
    rows = Store(folder).rows()
    assert {job.key for job in fake_runs.jobs(6, 0.4, log)} == rows.keys()
    assert all((folder / name).read_bytes() == data for name, data in kept.items())
    assert len(begun(log)) == 6 + len(started) - len(kept)  # the one under way ran twice, if any
    assert not list(folder.glob("*.claim"))


def test_a_run_whose_worker_is_killed_starts_again(tmp_path):
    """The pool of processes breaks with one of them; the runner makes a new one."""
    folder, log, said = tmp_path / "runs", tmp_path / "log", []
    known = fake_runs.known_of(fake_runs.jobs(3, 0, log))
    hold, killed = hold_runs(log), []

    def say(text):
        said.append(text)

    class Killing(Local):
        def submit(self, function, *arguments):
            future = super().submit(function, *arguments)
            if not killed:
                wait_for(lambda: begun(log))
                killed.append(begun(log)[0][1])
                os.kill(killed[0], signal.SIGKILL)
                wait_for(lambda: not is_alive(killed[0]))
                hold.unlink()
            return future

    assert Runner(known, Store(folder), Killing(1), fake_runs.work, say=say, look=0.05).run() == []
    assert sorted(row["seed"] for row in Store(folder).rows().values()) == [0, 1, 2]
    assert Counter(seed for seed, _ in begun(log)) == {0: 2, 1: 1, 2: 1}
    assert any("was killed" in text for text in said)


def failing(spec, options):
    if spec["seed"] == 1:
        raise ValueError("this one never works")
    return fake_runs.work(spec, options)


def test_a_run_that_fails_is_told_with_its_command_and_does_not_stop_the_others(tmp_path):
    said, jobs = [], fake_runs.jobs(4, 0, tmp_path / "log")
    runner = Runner(
        lambda rows: jobs, Store(tmp_path / "runs"), fake_runs.Threads(), failing, say=said.append
    )
    assert [job.spec["seed"] for job in runner.run()] == [1]
    (told,) = [text for text in said if "FAILED" in text]
    assert "ValueError: this one never works" in told
    assert "--only 'wait/toy/wait/1' --purpose report --again" in told
    assert len(Store(tmp_path / "runs").rows()) == 3 and not list((tmp_path / "runs").glob("*.claim"))


def test_a_result_that_cannot_be_kept_names_its_folder_and_gives_up_its_claim(tmp_path, monkeypatch):
    """As on a full disk: the study ends, runs under way are kept if they can be, nothing is started any more, and
    another machine need not wait for the claim. Run 0 ends only after the result of run 1 has found no room."""
    store, jobs, add = Store(tmp_path / "runs"), fake_runs.jobs(5, 0, tmp_path / "log"), Store.add
    hold = tmp_path / "log.hold"
    hold.touch()

    def work(spec, options):
        if spec["seed"] == 0:
            return fake_runs.work(spec, options)
        return fake_runs.work(spec | {"log": str(tmp_path / "second")}, options)

    def no_room(self, key, row):
        if row["seed"] == 1:
            hold.unlink()
            raise OSError(errno.ENOSPC, "No space left on device")
        return add(self, key, row)

    monkeypatch.setattr(Store, "add", no_room)
    said = []
    runner = Runner(lambda rows: jobs, store, fake_runs.Threads(), work, say=said.append)
    with pytest.raises(OSError, match=r"seed 1: its result cannot be kept in '.*runs': .*No space left"):
        runner.run()
    assert [path.name for path in store.folder.iterdir()] == [jobs[0].key + ".json"]
    assert "; the runs under way end first (1)" in said[1]
    assert len((tmp_path / "second").read_text().splitlines()) == 1  # run 1 alone


def test_progress_tells_how_many_are_done_and_the_time_left(tmp_path):
    said, jobs = [], fake_runs.jobs(4, 0, tmp_path / "log")
    Runner(
        lambda rows: jobs, Store(tmp_path / "runs"), fake_runs.Threads(), fake_runs.work, say=said.append
    ).run()
    assert said[0] == "4 runs are known, 0 of them done"
    assert [text.partition("] ")[0].partition(", ")[::2] for text in said[1:]] == [
        *((f"[{done}/4", "1 min left") for done in (1, 2, 3)),
        ("[4/4", ""),  # nothing is left
    ]
    assert all("toy/wait" in text for text in said[1:])
    assert [clock(seconds) for seconds in (0, 89, 3600, 7290)] == [
        "1 min",
        "1 min",
        "1 h 00 min",
        "2 h 02 min",
    ]


def test_what_another_study_has_done_is_taken_over_and_not_run_again(tmp_path):
    said, jobs = [], fake_runs.jobs(4, 0, tmp_path / "log")
    runs = tmp_path / "runs"
    for number in (1, 2):
        Store(runs / "elsewhere").add(jobs[number].key, {"scores": {"test": {"accuracy": 10 + number}}})
    store = Store(runs / "here", beside=runs)
    assert Runner(lambda rows: jobs, store, fake_runs.Threads(), fake_runs.work, say=said.append).run() == []
    rows = Store(runs / "here").rows()
    assert sorted(rows) == sorted(job.key for job in jobs)
    assert [rows[jobs[number].key]["scores"]["test"]["accuracy"] for number in (1, 2)] == [11, 12]
    ran = (tmp_path / "log").read_text().splitlines()
    assert len(ran) == 2 and "2 runs were done by other studies" in said
    assert len(Store(runs / "elsewhere").rows()) == 2  # which is left as it was


# --- claims ---


def test_only_one_of_two_gets_a_claim_and_a_done_run_is_claimed_by_nobody(tmp_path):
    one, other = Store(tmp_path), Store(tmp_path)
    assert one.claim("a") and not other.claim("a") and other.claim("b")
    assert one.claimed_elsewhere() == {"b"} and other.claimed_elsewhere() == {"a"}
    one.add("a", {"x": 1})
    one.release("a")
    assert not other.claim("a") and not (tmp_path / "a.claim").exists()
    assert other.rows() == {"a": {"x": 1}}


def test_a_result_is_written_once(tmp_path):
    one, other = Store(tmp_path), Store(tmp_path)
    assert one.add("a", {"x": 1}) and not other.add("a", {"x": 2})
    assert Store(tmp_path).rows() == {"a": {"x": 1}}


def test_a_claim_that_nobody_touches_is_taken_over_and_its_owner_does_not_release_it(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "host", lambda: "another machine")  # whose processes cannot be asked
    gone = Store(tmp_path)
    assert gone.claim("a")
    monkeypatch.undo()
    late = Store(tmp_path, stale=30)
    assert not late.claim("a")
    hour_ago = time.time() - 3600
    os.utime(tmp_path / "a.claim", (hour_ago, hour_ago))
    gone.beat()
    assert not late.claim("a")  # it was touched again
    os.utime(tmp_path / "a.claim", (hour_ago, hour_ago))
    assert late.claim("a") and not Store(tmp_path).claim("a")
    gone.release("a")
    assert json.loads((tmp_path / "a.claim").read_text())["pid"] == os.getpid()
    assert late.claimed_elsewhere() == set()


def test_a_claim_of_a_process_of_this_machine_that_is_gone_is_taken_over_at_once(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    words = {"token": "x", "host": stores.host(), "pid": child.pid}
    (tmp_path / "a.claim").write_text(json.dumps(words))
    (tmp_path / "b.claim").write_text(json.dumps(words | {"pid": os.getpid()}))
    (tmp_path / "c.claim").write_text("")  # created, and not written yet
    store = Store(tmp_path)
    assert [store.claim(key) for key in "abc"] == [True, False, False]


def test_each_process_has_a_gpu_of_its_own_where_there_are_several(tmp_path, monkeypatch):
    """In turn; those that the machine was told to show, and none where there is one or none."""
    monkeypatch.setattr(workers, "gpus", lambda: ["2", "5"])
    local = workers.Local(3)
    try:
        barrier = [local.submit(fake_runs.gpu_of_each, tmp_path, 3) for _ in range(3)]
        found = [future.result() for future in barrier]
    finally:
        local.close()
    assert sorted(gpu for gpu, _ in found) == ["2", "2", "5"] and len({pid for _, pid in found}) == 3
    for machine in ([], ["0"]):
        monkeypatch.setattr(workers, "gpus", lambda machine=machine: machine)
        assert workers.Local(2)._devices(None) is None
    monkeypatch.undo()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert workers.gpus() == ["1", "3"]
