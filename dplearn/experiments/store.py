"""Runs on disk: one file for each, written in one step; claims, so that several runners share a study.

A folder holds the runs of one study: ``KEY.json`` is a result, ``KEY.claim`` says that somebody is at work on it. A
claim is made by creating its file, which only one of all processes (and machines that share the folder) can do. Its
owner touches it while alive; a claim that was not touched for a while, or whose process on this machine is gone, is
taken over. So a stop at any moment loses at most the runs under way, and nothing is done twice while its owner lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
from collections.abc import Mapping
from pathlib import Path

from dplearn.files import locked, write, write_locked

STALE = 120.0  # seconds after which a claim that nobody touches is taken over
BEAT = 10.0  # seconds between two touches of a claim


def host() -> str:
    """This machine, and on Linux the space in which its process numbers count (containers have their own)."""
    try:
        return f"{platform.node()}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return platform.node()


def _alive(pid: int) -> bool:
    if os.name == "nt":  # there a signal of 0 is no question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class Store:
    """The runs of one study in a folder, which is made when the first run is claimed.

    Parameters
    ----------
    folder : where the files lie; machines may share it.
    stale : seconds after which a claim that nobody touches is taken over.
    beside : the folder that holds those of other studies, whose results of the same runs are taken (:meth:`adopt`).
    """

    def __init__(
        self, folder: str | os.PathLike, stale: float = STALE, beside: str | os.PathLike | None = None
    ):
        self.folder, self.stale = Path(folder), stale
        self.beside = None if beside is None else Path(beside)
        self._token = secrets.token_hex(8)
        self._mine: set[str] = set()
        self._rows: dict[str, dict] = {}

    def rows(self) -> dict[str, dict]:
        """The results that there are, key -> row; files that were read before are not read again."""
        for path in self.folder.glob("*.json"):
            if path.stem not in self._rows and not path.name.startswith("."):
                self._rows[path.stem] = json.loads(path.read_text())
        return self._rows

    def add(self, key: str, row: Mapping) -> bool:
        """Write a result in one step; False where there is one already (it stays as it is)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{key}.json"
        new = not path.exists()
        if new:
            write(path, (json.dumps(row) + "\n").encode())
            self._rows[key] = dict(row)
        return new

    def adopt(self, key: str) -> bool:
        """Copy the result of a run that another study has done; whether there is one. The key says that it is the same
        run (:attr:`dplearn.experiments.jobs.Job.key`)."""
        stored = None if self.beside is None else next(self.beside.glob(f"*/{key}.json"), None)
        return stored is not None and self.add(key, json.loads(stored.read_text()))

    # --- claims ---

    def claim(self, key: str) -> bool:
        """Try to be the one who does a run: False where it is done, or where somebody else is at it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._claim(key)
        if not _create(path, self._words()):
            if not self._abandoned(path):
                return False
            with locked(self.folder):  # only one takes over
                if not path.exists():
                    if not _create(path, self._words()):
                        return False
                elif not self._abandoned(path):
                    return False
                else:
                    write_locked(path, self._words())
        self._mine.add(key)
        if (self.folder / f"{key}.json").exists():  # done between our look and our claim
            self.release(key)
            return False
        return True

    def release(self, key: str) -> None:
        """Give up a claim of one's own."""
        self._mine.discard(key)
        path = self._claim(key)
        if self._owner(path) == self._token:
            path.unlink(missing_ok=True)

    def beat(self) -> None:
        """Touch the claims of this store, as a sign of life."""
        for key in list(self._mine):
            with contextlib.suppress(OSError):
                os.utime(self._claim(key))

    def claimed_elsewhere(self) -> set[str]:
        """Keys at which somebody else is at work, as far as one can tell."""
        keys = {path.stem for path in self.folder.glob("*.claim")} - self._mine
        return {key for key in keys if not self._abandoned(self._claim(key))}

    def _claim(self, key: str) -> Path:
        return self.folder / f"{key}.claim"

    def _words(self) -> bytes:
        return json.dumps({"token": self._token, "host": host(), "pid": os.getpid()}).encode()

    def _owner(self, path: Path) -> str | None:
        try:
            return json.loads(path.read_text())["token"]
        except (OSError, ValueError, KeyError):
            return None

    def _abandoned(self, path: Path) -> bool:
        """Whether the owner of a claim is gone."""
        try:
            age = self._now() - path.stat().st_mtime
            words = json.loads(path.read_text())
        except FileNotFoundError:
            return True
        except ValueError:  # created and not written yet, or damaged
            return age > self.stale
        if words["host"] == host() and not _alive(words["pid"]):
            return True
        return age > self.stale

    def _now(self) -> float:
        """The time by the clock of the file system, which may be another machine's."""
        mark = self.folder / f".{self._token}.now"
        try:
            mark.touch()
            return mark.stat().st_mtime
        finally:
            mark.unlink(missing_ok=True)


def _create(path: Path, words: bytes) -> bool:
    """Create a claim: only one of all processes can."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as file:
        file.write(words)
    return True
