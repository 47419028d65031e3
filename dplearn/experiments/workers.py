"""Processes that work for a runner: on this machine, or those of a Dask cluster.

Workers stay alive between runs, which keep what they have loaded. They end with their runner, however it ends: each has
a thread that waits for the end of its parent.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import Executor, ProcessPoolExecutor

THREADS = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def _start(devices=None) -> None:
    """What a worker process does first. devices : a queue with the number of its GPU, if there are any."""
    if devices is not None:  # before CUDA is asked for anything
        os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()
    parent = multiprocessing.parent_process()
    if parent is not None:

        def end_with_parent():
            parent.join()
            os._exit(1)  # at once: nobody waits for the run under way

        threading.Thread(target=end_with_parent, daemon=True).start()


def gpus() -> list[str]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


class Local:
    """Processes on this machine, one thread each; a pool in which one was killed is made anew.

    Where there are several GPUs each process has one of them, in turn.
    """

    def __init__(self, count: int):
        self.count = count
        self._pool: Executor | None = None

    @property
    def executor(self) -> Executor:
        if self._pool is None:
            from dplearn.zoo.run_folder import KEEP_MEMORY

            os.environ.update(KEEP_MEMORY | THREADS)  # read by the processes when they start
            # Forked copies of a torch process can hang.
            context = multiprocessing.get_context("spawn")
            devices = self._devices(context)
            self._pool = ProcessPoolExecutor(
                self.count, mp_context=context, initializer=_start, initargs=(devices,)
            )
        return self._pool

    def _devices(self, context):
        """A queue with a GPU for each process; None where there are not several."""
        found = gpus()
        if len(found) < 2:
            return None
        devices = context.Queue()
        for number in range(self.count):
            devices.put(found[number % len(found)])
        return devices

    def submit(self, function, *arguments):
        """A future of ``function(*arguments)``."""
        return self.executor.submit(function, *arguments)

    def renew(self) -> None:
        """Make the pool anew: one of its processes was killed, which the others do not survive."""
        self.close()

    def close(self) -> None:
        """End the processes; runs that have not started are dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


class Cluster:
    """The workers of a Dask cluster: ``dask scheduler``, and ``dask worker ADDRESS --nthreads 1`` on each machine.

    A run whose worker is lost is started on another one by the scheduler.

    Raises
    ------
    ModuleNotFoundError : the extra ``cluster`` is not installed.
    """

    def __init__(self, address: str):
        try:
            from distributed import Client
        except ModuleNotFoundError:
            raise ModuleNotFoundError("Dask is not installed: pip install 'dplearn[cluster]'") from None
        self.client = Client(address)
        self.executor = self.client.get_executor(pure=False)

    @property
    def count(self) -> int:
        """How many workers there are now; more may join at any time. At least one, for which the scheduler waits."""
        return max(len(self.client.nthreads()), 1)

    def submit(self, function, *arguments):
        """A future of ``function(*arguments)``."""
        return self.executor.submit(function, *arguments)

    def renew(self) -> None:
        """Nothing: the scheduler replaces lost workers by itself."""

    def close(self) -> None:
        """Drop the runs that were sent and leave the cluster, which stays."""
        self.executor.shutdown(wait=False)
        self.client.close()
