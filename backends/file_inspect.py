"""Reading the states in files without owning them: for people and for tools."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from dgents.backends.file_reader import history, identify, load
from dgents.backends.file_state import LOCK_SUFFIX
from dgents.runtime.contract import Record, Request
from dgents.runtime.errors import StateCorruptionError

SUFFIX = ".state"  # of the files in a folder of states
_ATTEMPTS = 5


def read_states(path: str | os.PathLike[str]) -> Iterator[tuple[str, list[Record], list[Request]]]:
    """Yield what the file of a state, or a directory of them, holds: key, versions (oldest first), requests.

    Takes no lock and writes nothing; also while an owner writes.

    Raises:
        FileNotFoundError: there is nothing of this name.
        StateCorruptionError: a file can't be trusted; those before it were yielded.
        OSError: the system refused.
    """
    place = Path(path)
    for file in state_files(place) if place.is_dir() else [place]:
        yield _read_unlocked(file)


def state_files(directory: Path) -> list[Path]:
    """Return the files of states: by their suffix, or by the lock beside them."""
    with os.scandir(directory) as entries:
        names = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    found = {name for name in names if name.endswith(SUFFIX)}
    found |= {lock.removesuffix(LOCK_SUFFIX) for lock in names if lock.endswith(LOCK_SUFFIX)} & names
    return [directory / name for name in sorted(found)]


def _read_unlocked(path: Path) -> tuple[str, list[Record], list[Request]]:
    for attempt in range(_ATTEMPTS):
        before = identify(path)
        try:
            found = load(path)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            return found.main.key, history(path, found, None), found.requests()
        except StateCorruptionError:
            # The main file and the log are two files: an owner may have written both in between.
            if attempt == _ATTEMPTS - 1 or identify(path) == before:
                raise
    raise AssertionError("the last attempt returns or raises")
