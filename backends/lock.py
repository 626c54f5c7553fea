"""Ownership by the operating system's lock: one owner a state on this machine, let go by death itself.

Invariants:

1. The lock is on a file of its own, which stays; the state's file may be replaced under it.
2. The lock counts only while the name still leads to the locked file: whoever locks compares the two.
3. A forked child never keeps it: what the child inherited is closed, not unlocked, so the parent's stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path

from dgents.backends import files
from dgents.runtime.errors import OwnershipLostError, StateLockedError, StorageError

_MAX_OWNER_BYTES = 512
_ATTEMPTS = 100


class OwnerLock:
    """The lock on the file ``path``, by convention the state's path with ``.lock`` behind it.

    Another open of the same file is refused, also in this process. Sync: call it in a worker thread.
    """

    def __init__(
        self, path: Path, *, actor: str | None = None, states: Mapping[tuple[str, str], str] | None = None
    ) -> None:
        self.path = path
        self.actor = actor
        self.states = states if states is not None else {}  # what is owned under it, where that is many: by whom
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether `acquire` succeeded in this process and `release` was not called."""
        return self._fd is not None

    def acquire(self) -> None:
        """Take the lock, or say at once who has it. The folder must exist.

        Raises:
            StateLockedError: another owner has it; names its pid and host as far as they are known.
            StorageError: the lock's file can't be opened, or is a symlink.
        """
        if self._fd is not None:
            return
        with files.storage_errors(self.path, "lock", actor=self.actor), _forking:
            for _ in range(_ATTEMPTS):
                fd = files.layer.open(self.path, os.O_RDWR | os.O_CREAT)
                try:
                    taken = self._lock(fd)
                except BaseException:
                    files.layer.close(fd)
                    raise
                if taken:
                    self._fd = fd
                    _held.add(self)
                    return
                files.layer.close(fd)
        raise StorageError(f"lock of {self.path} failed: the file is being replaced all the time", actor=self.actor)

    def _lock(self, fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._locked(fd) from error
        if not self._leads_to(fd):
            return False
        # Who we are is for people to read. The lock is held also where a full disk takes no word of it.
        with contextlib.suppress(OSError):
            files.layer.truncate(fd, 0)
            files.layer.write(fd, _owner())
        return True

    def check(self) -> None:
        """Make sure that the lock is held and its file still in place, before writing under it.

        Raises:
            OwnershipLostError: it was released or inherited by a fork, or its file was removed or replaced.
        """
        if self._fd is not None and self._leads_to(self._fd):
            return
        why = "is not held by this process" if self._fd is None else "was removed or replaced while held"
        raise OwnershipLostError(
            f"the lock {self.path} {why}", actor=self.actor, hint="nothing was written; open it again"
        )

    def release(self) -> None:
        """Let go. Does nothing if it is not held; never raises."""
        with _forking:
            fd, self._fd = self._fd, None
            _held.discard(self)
            if fd is None:
                return
            with contextlib.suppress(OSError):
                # The next owner's rival must not read our name.
                files.layer.truncate(fd, 0)
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
            with contextlib.suppress(OSError):
                files.layer.close(fd)

    def _leads_to(self, fd: int) -> bool:
        try:
            named = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(named, os.fstat(fd))

    def _locked(self, fd: int) -> StateLockedError:
        owner: dict[str, object] = {}
        with contextlib.suppress(OSError, ValueError, RecursionError):
            found = json.loads(files.layer.pread(fd, _MAX_OWNER_BYTES, 0))
            owner = found if isinstance(found, dict) else {}
        pid = owner.get("pid")
        host = owner.get("host")
        pid = pid if isinstance(pid, int) else None
        host = host if isinstance(host, str) else None
        state = self.path.with_suffix("") if self.path.suffix == ".lock" else self.path
        by = f"process {pid} on {host}" if pid and host else "another process"
        hint = "one owner at a time: stop the other one, or reach the state through it"
        if pid == os.getpid() and host == socket.gethostname():
            mine = self._holder_here(fd)
            by = f"another runtime of this process ({pid} on {host})"
            if mine is not None and mine.actor is not None:
                by = f"the actor {mine.actor!r} of this process ({pid} on {host})"
                hint = f"reach the state through {mine.actor!r}, stop that, or give this one a place of its own"
        return StateLockedError(f"{state} is owned by {by}", pid=pid, host=host, actor=self.actor, hint=hint)

    def _holder_here(self, fd: int) -> OwnerLock | None:
        """Return the lock of this process that holds an open file."""
        wanted = os.fstat(fd)
        held = [lock for lock in _held if lock._fd is not None and os.path.samestat(os.fstat(lock._fd), wanted)]
        return held[0] if held else None

    def _forget(self) -> None:
        """In a forked child: close what was inherited. To unlock it would take the lock from the parent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)


def actor_here(path: Path, state: tuple[str, str]) -> str | None:
    """Return which actor of this process owns a state under the lock on ``path``."""
    with _forking:
        return next((lock.states.get(state) for lock in _held if lock.path == path), None)


def _owner() -> bytes:
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started}).encode()


_held: weakref.WeakSet[OwnerLock] = weakref.WeakSet()
# Held while a descriptor is in nobody's list yet: a fork in another thread waits for it.
_forking = threading.RLock()


def _after_fork_in_child() -> None:
    for lock in list(_held):
        lock._forget()
    _held.clear()
    _forking.release()


os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_after_fork_in_child)
