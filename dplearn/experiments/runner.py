"""The runner of studies: works through the runs that are not done yet, with other runners of the same folder if any.

It holds no list: after every result it asks the study which runs are known by now
(:func:`dplearn.experiments.jobs.jobs`), and starts those that are neither done nor claimed
(:class:`dplearn.experiments.store.Store`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

from dplearn.experiments.execution import run_job
from dplearn.experiments.jobs import Job
from dplearn.experiments.store import BEAT, Store

LOOK = 5.0  # seconds between two looks at what other runners have done
TRIES = 3  # how often a run is started whose worker process is killed


@dataclass
class Progress:
    """Counts runs and tells the time that is left, by the seconds of the runs that were done here."""

    say: Callable[[str], None] = print
    started: float = field(default_factory=time.monotonic)
    finished: int = 0

    def done(self, job: Job, row: Mapping, done: int, total: int) -> None:
        """Say that a run is done; ``done`` of ``total`` known ones are."""
        self.finished += 1
        left = (time.monotonic() - self.started) / self.finished * (total - done)
        scores = ", ".join(f"{split} {next(iter(s.values())):.3f}" for split, s in row["scores"].items())
        after = f", {clock(left)} left" if done < total else ""
        self.say(f"[{done}/{total}{after}] {job}: {scores} ({row.get('seconds', 0)} s)")


def clock(seconds: float) -> str:
    """Seconds as hours and minutes.

    >>> clock(59), clock(3660)
    ('1 min', '1 h 01 min')
    """
    minutes = max(round(seconds / 60), 1)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


class Runner:
    """Works through the runs of a study.

    Parameters
    ----------
    known : rows (key -> row) -> the jobs that are known by now.
    store : where results and claims lie.
    workers : a :class:`~dplearn.experiments.workers.Local` or :class:`~dplearn.experiments.workers.Cluster`.
    work : what a worker does with a spec and ``options``; returns a row.
    """

    def __init__(
        self,
        known: Callable[[Mapping], list[Job]],
        store: Store,
        workers,
        work: Callable[[dict, dict], dict] = run_job,
        options: Mapping | None = None,
        say: Callable[[str], None] = lambda text: print(text, flush=True),
        look: float = LOOK,
    ):
        self.known, self.store, self.workers, self.work = known, store, workers, work
        self.options, self.look, self.say = dict(options or {}), look, say
        self.failed: dict[str, Job] = {}
        self._flying: dict[Future, Job] = {}
        self._tries: dict[str, int] = {}
        self._unkept: OSError | None = None  # the first result for which there was no room
        self._jobs: tuple[int, list[Job]] = -1, []

    def run(self) -> list[Job]:
        """Until all runs that are known are done, here or by other runners; returns those that failed here.

        Raises
        ------
        OSError : a result could not be kept. Nothing was started after it, and the runs that were under way then have
            ended and are kept where there was room.
        """
        progress, ending = Progress(self.say), threading.Event()
        beats = threading.Thread(target=self._beats, args=(ending,), daemon=True)
        beats.start()
        try:
            jobs = self.known(self.store.rows())
            done = sum(job.key in self.store.rows() for job in jobs)
            self.say(f"{len(jobs)} runs are known, {done} of them done")
            while self._step(progress):
                pass
            if self._unkept is not None:
                raise self._unkept
        finally:
            ending.set()
            for job in self._flying.values():
                self.store.release(job.key)
            self.workers.close()
        return list(self.failed.values())

    def _beats(self, ending: threading.Event) -> None:
        while not ending.wait(min(BEAT, self.store.stale / 4)):
            self.store.beat()

    def _step(self, progress: Progress) -> bool:
        """Start what can start and wait for what comes next; False where there is nothing left."""
        rows = self.store.rows()
        if len(rows) != self._jobs[0]:  # thousands of runs take a while to list
            self._jobs = len(rows), self.known(rows)
        jobs = self._jobs[1]
        pending = [job for job in jobs if job.key not in rows and job.key not in self.failed]
        if self._unkept is None:
            self._start(pending)
        if not (pending if self._unkept is None else self._flying):
            return False
        if not self._flying:  # others are at it
            time.sleep(self.look)
            return True
        for future in wait(list(self._flying), timeout=self.look, return_when=FIRST_COMPLETED).done:
            self._land(future, progress, jobs)
        return True

    def _start(self, pending: list[Job]) -> None:
        flying, adopted = {job.key for job in self._flying.values()}, 0
        for job in pending:
            if len(self._flying) >= self.workers.count:
                break
            if job.key in flying:
                continue
            if self.store.adopt(job.key):
                adopted += 1
            elif self.store.claim(job.key):
                try:
                    future = self.workers.submit(self.work, dict(job.spec), self.options)
                except BaseException:
                    self.store.release(job.key)
                    raise
                self._flying[future] = job
        if adopted:
            self.say(f"{adopted} runs were done by other studies")

    def _land(self, future: Future, progress: Progress, jobs: list[Job]) -> None:
        """Keep the result of a run that ended; start it again where its process was killed."""
        job = self._flying.pop(future, None)
        if job is None:
            return
        try:
            row = future.result()
        except BrokenProcessPool:
            self._after_a_kill([job, *self._flying.values()])
            return
        except Exception as error:
            self._fail(job, f"{type(error).__name__}: {error}")
            return
        try:
            self.store.add(job.key, row)
        except OSError as error:  # no room, or no leave to write
            self._no_room(job, error)
            return
        finally:
            self.store.release(job.key)
        rows = self.store.rows()
        progress.done(job, row, sum(job.key in rows for job in jobs), len(jobs))

    def _no_room(self, job: Job, error: OSError) -> None:
        """Nothing more is started; the process ends when the runs under way do, so their results are waited for."""
        text = f"{job}: its result cannot be kept in {str(self.store.folder)!r}: {error}"
        if self._flying:
            self.say(f"{text}; the runs under way end first ({len(self._flying)})")
        if self._unkept is None:
            self._unkept = OSError(text)
            self._unkept.__cause__ = error

    def _after_a_kill(self, lost: list[Job]) -> None:
        """A worker process was killed, and with it the pool: all runs under way start again, each at most so often."""
        self._flying.clear()
        self.workers.renew()
        for job in lost:
            self.store.release(job.key)
            self._tries[job.key] = self._tries.get(job.key, 1) + 1
            if self._tries[job.key] > TRIES:
                self._fail(job, f"its process was killed {TRIES} times")
        self.say("a worker process was killed; its runs start again")

    def _fail(self, job: Job, why: str) -> None:
        self.failed[job.key] = job
        self.store.release(job.key)
        self.say(f"FAILED {job}: {why}\n  {job.command()}")
