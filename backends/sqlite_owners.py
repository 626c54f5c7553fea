"""Who owns which states of a database: one lock file a process, named in the row of each state that it owns.

A lock file for each state would take 100,000 file descriptors for as many actors; one for the database would
keep every other process off it. So a runtime holds one lock, ``<database>.owners/<token>.lock``, and writes
the token beside each state that it claims. Whoever finds a foreign token tries that lock: still held, the
state is locked; free, its owner is dead and the state may be claimed with the next epoch.

Invariants:

1. Every lock is taken, tried and swept inside a write transaction of the database, so one process at a time
   does so: nobody takes a lock for dead that is about to be held, and nobody is refused by one who only
   tries.
2. A token is never used twice, so a file that is gone stays gone, and removing a dead one is safe.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

from dgents.backends import files
from dgents.backends.lock import OwnerLock, actor_here
from dgents.runtime.errors import OwnershipLostError, StateLockedError


class Owners:
    """The locks beside one database. Blocking: called in the thread of its connection."""

    def __init__(self, database: str) -> None:
        self.token = uuid.uuid4().hex
        self.states: dict[tuple[str, str], str] = {}  # by table and key: the actor
        self._folder = Path(database + ".owners")
        self._lock: OwnerLock | None = None

    def hold(self) -> None:
        """Take the lock of this runtime, unless it has it; and remove those of the dead.

        Raises:
            StorageError: the folder or the file can't be made.
        """
        if self._lock is not None:
            with suppress(OwnershipLostError):
                self._lock.check()
                return
            self._lock.release()
        with files.storage_errors(self._folder, "lock"):
            files.layer.make_directories(self._folder)
            found = [path.stem for path in self._folder.glob("*.lock")]
        for token in found:
            self.holder(token)
        self._lock = OwnerLock(self._path(self.token), states=self.states)
        self._lock.acquire()

    def holder(self, token: str | None) -> StateLockedError | None:
        """Return who holds the lock ``token``, or None if nobody does: its owner closed it or died."""
        if token is None or token == self.token:
            return None
        path = self._path(token)
        if not os.path.lexists(path):
            return None
        lock = OwnerLock(path)
        try:
            lock.acquire()
        except StateLockedError as locked:
            return locked
        with suppress(OSError):
            files.layer.unlink(path)
        lock.release()
        return None

    def actor_here(self, token: str, state: tuple[str, str]) -> str | None:
        """Return which actor of this process owns a state whose row has ``token``, if it is one."""
        return self.states.get(state) if token == self.token else actor_here(self._path(token), state)

    def release(self) -> None:
        """Give the lock back: to every other process, this owner is dead from here on."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        # The file goes first: a lock that is free while its file is there would have to be tried.
        with suppress(OSError):
            files.layer.unlink(self._path(self.token))
        lock.release()
        with suppress(OSError):
            self._folder.rmdir()  # refused unless this was the last owner

    def _path(self, token: str) -> Path:
        return self._folder / f"{token}.lock"
