"""One state in its file, for the owner that writes it. Blocking; `FileStore` runs it in worker threads.

Invariants

1. Whoever writes holds the lock, and the names still lead to the files that were read (`begin` checks both).
2. A version is durable before it is acknowledged: by a main file that is replaced as a whole, its content and its
   log's synced before, or by an entry in a log that ``continues`` the main file.
3. The log is made only after the main file is durable, and a main file says that its log ``continues`` it
   only when that log is durable: a file that is missing afterwards was removed, not lost in a crash.
4. What the log holds behind the main file's mark counts only if the log ``continues`` it; else it was never
   acknowledged, and the next append cuts it off.
5. A main file that is only refreshed is not synced. A power cut may tear it; then its log, which is one of lines,
   tells all by itself.
6. The log is rewritten only while the main file holds the current version, and that is durable.
7. After a failed fsync or rename nothing read is believed before it was written anew (`file_upkeep.renew`).
8. A state that was stored is not begun anew, nor gone on with from an older version: it is read again, or refused.

| a state that is | becomes | by                                                                             |
|-----------------|---------|--------------------------------------------------------------------------------|
| closed          | open    | `open`: locked, cleaned of temp files, read                                    |
| open            | writing | `begin`: nobody else reads or writes it until `adopt` or `abandon`             |
| writing         | open    | `adopt`: durable; `abandon` of a refused write: nothing happened               |
| writing         | broken  | `abandon`: what is on disk is not known; every write is refused until `open`   |
| any             | closed  | `close`                                                                        |
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from dgents.backends import files
from dgents.backends.acknowledged import Acknowledged
from dgents.backends.file_commit import Prepared, replaced
from dgents.backends.file_reader import Found, history, identify, load, log_path
from dgents.backends.file_upkeep import Place, Settings, refresh, renew, settle
from dgents.backends.lock import OwnerLock
from dgents.runtime.contract import Opened, Record, Request, Write
from dgents.runtime.errors import DgentError, OwnershipLostError, StorageError, VersionConflictError

LOCK_SUFFIX = ".lock"


class StateFile:
    """The state in the file ``path``. Safe to call from several threads."""

    def __init__(self, path: Path, name: str, settings: Settings) -> None:
        self.path = path
        self.name = name
        self.settings = settings
        self._lock = OwnerLock(path.with_name(path.name + LOCK_SUFFIX), actor=name)
        self._place: Place | None = None
        self._epoch = 0
        self._acknowledged = Acknowledged()
        self._untrusted = False  # an fsync failed: what is on disk may not be what is read
        self._unsettled = False  # a commit failed elsewhere: what is read may not have been synced
        self._busy = threading.Lock()  # one commit or read at a time; a commit ends in another thread

    def open(self) -> Opened:
        """Lock the state and read it.

        The new epoch is durable with the first write; until then the lock sees to it that nobody else has it.

        Raises:
            StateLockedError, StateCorruptionError, StorageError: see `contract.Backend.open`.
        """
        with self._busy, files.storage_errors(self.path, "open", actor=self.name):
            if not self._acknowledged.any:
                files.layer.make_directories(self.path.parent)
            elif not self.path.exists():
                self._acknowledged.check(None, str(self.path), actor=self.name)
            self._check_access()
            died = _holds_anything(self._lock.path)
            self._lock.acquire()
            try:
                found = self._read(died)
                newest = found.newest if found else None
                self._acknowledged.check(newest, str(self.path), actor=self.name)
            except BaseException:
                self._lock.release()
                raise
            self._acknowledged.note(newest)
            self._place = Place.found(self.path, self.name, self.settings, found)
            self._epoch = self._place.epoch + 1
            return Opened(found.current() if found else None, self._epoch)

    def close(self) -> None:
        """Let go of the state. Never raises."""
        with self._busy:
            self._show()
            self._place = None
            self._lock.release()

    def read(self) -> Record | None:
        """Return the current version from the file."""
        with self._busy, files.storage_errors(self.path, "load", actor=self.name):
            found = load(self.path)
            return found.current() if found else None

    def history(self, limit: int | None) -> list[Record]:
        """Return the newest ``limit`` versions that are kept, oldest first."""
        bound = max(1, self.settings.max_history)
        with self._busy, files.storage_errors(self.path, "history", actor=self.name):
            found = load(self.path)
            if found is None or limit == 0:
                return []
            return history(self.path, found, bound if limit is None else min(bound, limit))

    def requests(self) -> list[Request]:
        """Return the remembered requests, oldest first."""
        with self._busy:
            return list(self._opened().requests)

    def begin(self, write: Write) -> Prepared | DgentError:
        """Take the state for one write, or say why that can't be stored."""
        self._busy.acquire()
        try:
            return Prepared(self._checked(write), write)
        except DgentError as refusal:
            self._busy.release()
            return refusal
        except BaseException:
            self._busy.release()
            raise

    def adopt(self, prepared: Prepared) -> bool:
        """Take note that a write is durable; say whether the main file is to `show` it."""
        try:
            prepared.adopt()
            self._acknowledged.note(prepared.write.records[-1])
            return prepared.place.unshown is not None
        finally:
            self._busy.release()

    def show(self) -> None:
        """Let a main file of JSON show the current version, which is durable in the log."""
        with self._busy:
            self._show()

    def _show(self) -> None:
        place = self._place
        # Where that fails no harm is done: the next commit, or the next owner, does it.
        with contextlib.suppress(OSError):
            if place is not None and place.unshown is not None and identify(self.path) == place.main_id:
                self._lock.check()
                refresh(place)

    def abandon(self, prepared: Prepared, *, refused: bool = False) -> None:
        """Give a write up: it was ``refused`` before anything of it was put in place, or the disk failed."""
        prepared.abandon()
        if not refused:
            self._untrusted |= prepared.untrusted
            self._unsettled = True
            self._place = None
        self._busy.release()

    def _opened(self) -> Place:
        if self._place is None:
            raise StorageError(
                f"{self.path} is not open", actor=self.name, hint="it failed or was closed; open it again"
            )
        return self._place

    def _checked(self, write: Write) -> Place:
        place = self._opened()
        self._lock.check()
        for path, known in ((self.path, place.main_id), (place.log, place.log_id)):
            if (known is not None or path is self.path) and identify(path) != known:
                raise replaced(place, path.name)
        epoch = write.records[-1].epoch
        if epoch < self._epoch:
            raise OwnershipLostError(
                f"{self.path} was opened anew (epoch {self._epoch}, this write has {epoch})", actor=self.name
            )
        if write.base != place.version:
            raise VersionConflictError(write.base, place.version, actor=self.name)
        return place

    def _read(self, died: bool) -> Found | None:
        for path in (self.path, log_path(self.path)):
            self._check_only_name(path)
            files.remove_stale_temp(path)
        found = load(self.path)
        if found is not None and self.settings.sync:
            place = Place.found(self.path, self.name, self.settings, found)
            if self._untrusted:
                renew(place, found)
            elif died or self._unsettled:
                settle(place)
        self._untrusted = self._unsettled = False
        return found

    def _check_only_name(self, path: Path) -> None:
        """Refuse a hard link, which has another lock: before anything is appended to what others read under it."""
        with contextlib.suppress(FileNotFoundError):
            files.check_only_name(os.stat(path, follow_symlinks=False), path, actor=self.name)

    def _check_access(self) -> None:
        """Refuse at once what could be read but not written."""
        for path, needed in ((self.path.parent, os.W_OK | os.X_OK), (self.path, os.R_OK | os.W_OK)):
            if path.exists() and not os.access(path, needed):
                raise StorageError(
                    f"{path} can't be written by this user",
                    retryable=False,
                    actor=self.name,
                    hint="make the file and its folder readable and writable for this user",
                )


def _holds_anything(lock: Path) -> bool:
    """Say whether the last owner left its name in its lock: one that closed it took the name out."""
    try:
        return os.stat(lock, follow_symlinks=False).st_size > 0
    except FileNotFoundError:
        return False
