"""Files that a stop never leaves half written: one atomic write for the whole package, and reads that check first.

A writer holds a lock on the folder (the operating system's, which ends with its process), so that two of them never mix
their files, and so that a temporary file of another writer is always one of a process that was killed: the next write
into that folder removes it. Readers never wait. Where a file system has no locks, writers go on without: then only
temporary files of more than an hour are taken for abandoned.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dplearn.checks import shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for by "is None" wherever it is used

TEMPORARY = (".dplearn-", ".tmp")  # how the name of a temporary file starts and ends
PATIENCE = 60.0  # seconds that a writer waits for another one
# Seconds after which a file of another writer counts as left over, where there are no locks.
ABANDONED = 3600.0
MOST_JSON = 16 * 2**20  # bytes of a JSON file of settings; real ones have a few thousand
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
HELD = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)


@contextmanager
def locked(folder: str | os.PathLike, patience: float | None = None) -> Iterator[bool]:
    """Keep other writers of a folder waiting while the block runs, and remove what killed ones left behind.

    Gives whether there is a lock: not on Windows, nor on some network file systems. It is on the folder itself, so no
    lock file is left. Blocks for one folder must not be nested.

    Raises
    ------
    TimeoutError : another process has held the folder for ``patience`` seconds (None: a minute).
    """
    handle = _lock(Path(folder), PATIENCE if patience is None else patience)
    try:
        remove_stale(Path(folder).glob("*".join(TEMPORARY)), handle is not None)
        yield handle is not None
    finally:
        if handle is not None:
            fcntl.flock(handle, fcntl.LOCK_UN)  # by name: a forked child still holds the handle
            os.close(handle)


def _lock(folder: Path, patience: float) -> int | None:
    if fcntl is None:
        return None
    handle, end = os.open(folder, os.O_RDONLY), time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except OSError as error:
            if error.errno not in HELD:  # this file system has no locks
                os.close(handle)
                return None
            if time.monotonic() > end:
                os.close(handle)
                raise TimeoutError(
                    f"folder={str(folder)!r} has been locked by another writer for {patience:g} seconds"
                ) from None
        except BaseException:
            os.close(handle)
            raise
        time.sleep(0.002)


def remove_stale(paths: Iterable[Path], has_lock: bool) -> None:
    """Remove files of writers that are gone: all under a lock, otherwise those that are old enough."""
    for path in paths:
        with suppress(OSError):
            if has_lock or time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A new binary file that takes the place of ``path`` in one step when the block ends, and is gone after an error.

    The folder is locked meanwhile. What ``torch.save`` and the like write goes here.
    """
    path = Path(path)
    with locked(path.parent), _replacing(path) as file:
        yield file


def write(path: str | os.PathLike, data: bytes) -> None:
    """Write one file in one step: to a temporary name first, flushed to the disk, then renamed."""
    with replacing(path) as file:
        file.write(data)


def write_locked(path: Path, data: bytes) -> None:
    """As :func:`write`, for several files of one folder inside one :func:`locked` block."""
    with _replacing(path) as file:
        file.write(data)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    temporary = path.with_name(secrets.token_hex(8).join(TEMPORARY))
    # Not tempfile's: its files can be read by their owner alone, whatever the umask says.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def opened(path: Path, size: int | None = None, most: int | None = None) -> Iterator[BinaryIO]:
    """A regular file for reading, after a look at its kind and size.

    Raises
    ------
    FileNotFoundError, NotADirectoryError, IsADirectoryError : there is no file of that name.
    ValueError : a special file (opening a pipe would wait for ever), another number of bytes than ``size``, more than
        ``most``, or a name that no file can have.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except MISSING:
        raise
    except (OSError, ValueError) as error:  # no permission, a name too long, a loop of links; a zero byte
        raise ValueError(f"{shown(str(path))} cannot be read: {error.__class__.__name__}") from error
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(
                f"{path} is a special file (a pipe, a socket or a device), expected a regular one"
            )
        if size is not None and status.st_size != size:
            raise ValueError(f"{path} is damaged or truncated: {status.st_size} bytes, expected {size}")
        if most is not None and status.st_size > most:
            raise ValueError(f"{path} has {status.st_size} bytes, expected at most {most}")
        yield file


def read_json(path: Path) -> bytes:
    """The bytes of a JSON file of settings; raises what :func:`opened` raises."""
    with opened(path, most=MOST_JSON) as file:
        return file.read()


def parse(path: Path, text: bytes) -> dict:
    """The JSON object that ``text`` holds; ValueError, which names ``path``, where it holds none."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged, expected JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply, expected the settings of a prompt") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds a {type(document).__name__}, expected a JSON object")
    return document
