"""One write on its way to the files of a state: prepared, synced, put in place. Blocking.

There are two ways. *By the log*: one entry is appended and synced, once the main file says that the log continues
it. A main file of JSON is refreshed a little later, for those who read it; what is durable is the log.
*By the main file*: its next content is written beside it, the versions are appended to the log if there is one,
both are synced at the same time, and a rename puts the main file in place.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from dgents.backends import files
from dgents.backends.file_format import LogMark, corrupt
from dgents.backends.file_log import LogHead, encode_entry, encode_head, kind_of
from dgents.backends.file_reader import REQUESTS_KEPT, load, read_head
from dgents.backends.file_records import is_delta, make_whole, newest
from dgents.backends.file_upkeep import Place, drop_log, is_far_behind, keep_up
from dgents.runtime.contract import Record, Write
from dgents.runtime.errors import StorageError

UNLOGGED_BYTES = 4096  # of a single version that the first commit may leave to the main file alone


class Prepared:
    """What one commit wrote that is not in place yet. Whoever makes one calls `adopt` or `abandon`."""

    def __init__(self, place: Place, write: Write) -> None:
        self.place = place
        self.write = write
        self.replaces_main = False
        self.makes_log = False
        self.in_place = False  # some of it may be read by the next `open`
        self.untrusted = False  # an fsync or a rename failed
        self._main: int | None = None
        self._log: int | None = None
        self._log_id: tuple[int, int] | None = None
        self._mark = LogMark()
        self._unlogged: list[bytes] = []
        self._state_bytes = 0

    def prepare(self) -> None:
        """Write the bytes to where they can be synced.

        Raises:
            StateCorruptionError: the log can't take them, or what they are changes of can't be read.
            OSError: the system refused.
        """
        place, settings = self.place, self.place.settings
        by_log = place.continues and place.shape == settings.shape and (settings.deltas or settings.max_history > 0)
        keep_up(place)
        self._log_id = place.log_id
        if by_log and not is_far_behind(place):
            self._prepare_log()
        else:
            self._prepare_main()

    def sync_main(self) -> None:
        """Make the next main file durable, as far as it is to be."""
        if self._main is not None:
            self._sync(self._main, files.layer.fsync)
            files.layer.step("temp-synced")

    def sync_log(self) -> None:
        """Make the log durable, as far as it is to be."""
        if self._log is not None:
            self._sync(self._log, files.layer.fsync if self.makes_log else files.layer.fdatasync)
            files.layer.step("log-synced")

    @property
    def main_first(self) -> bool:
        """Whether the main file has to be in place before a log that is new.

        A log without a main file would look as if that had been removed. Where there is a main file, it refers to no
        log that is missing, and the next one will.
        """
        return self.place.main_id is None

    @property
    def syncs_both(self) -> bool:
        """Whether there are two files to sync."""
        return self.place.settings.sync and self._main is not None and self._log is not None

    def replace_main(self) -> None:
        """Put the new main file in place."""
        self.in_place = True
        files.layer.replace(files.temp_path(self.place.path), self.place.path)
        files.layer.step("renamed")

    def replace_log(self) -> None:
        """Put a log that is new in place."""
        files.layer.replace(files.temp_path(self.place.log), self.place.log)
        files.layer.step("log-renamed")

    def adopt(self) -> None:
        """Take note of what is durable now."""
        place, last, mark = self.place, self.write.records[-1], self._mark
        place.version, place.epoch = last.version, last.epoch
        place.requests.extend(self.write.requests)
        if self.replaces_main:
            assert self._main is not None
            found = files.layer.status(self._main)
            place.main_id = (found.st_dev, found.st_ino)
            place.shape = place.settings.shape
            place.state_bytes = self._state_bytes
            place.tail_count = place.tail_bytes = 0
            place.unshown = None
            if place.has_log and not (mark.count or mark.continues):
                drop_log(place)
        else:
            place.tail_count += mark.count - place.count
            place.tail_bytes += mark.end - place.end
            place.unshown = last if place.settings.shape.lines else None
        if self.makes_log:
            place.head = None
        place.end, place.count, place.last, place.continues = mark.end, mark.count, mark.last, mark.continues
        place.unlogged = self._unlogged
        place.log_id = self._log_id if place.has_log else None
        self._close()

    def abandon(self) -> None:
        """Remove what was written beside the files in place."""
        self._close()
        for made, path in ((self.replaces_main, self.place.path), (self.makes_log, self.place.log)):
            if made:
                with contextlib.suppress(OSError):
                    files.layer.unlink(files.temp_path(path))

    def _prepare_log(self) -> None:
        place, shape = self.place, self.place.settings.shape
        records = newest(self.write.records, max(1, place.settings.max_history))
        content = encode_entry(records, self.write.requests, shape)
        opened = self._open_log()
        if opened is None:
            raise replaced(place, place.log.name)
        self.in_place = True
        self._append(opened, content)
        self._mark = LogMark(place.end + len(content), place.count + len(records), records[-1].version, True)
        files.layer.step("log-appended")

    def _prepare_main(self) -> None:
        place, records = self.place, self.write.records
        whole: Sequence[Record] = records
        if any(is_delta(record) for record in records):
            found = load(place.path) if is_delta(records[0]) else None
            whole = make_whole(records, found.current() if found else None)
        earlier = self._keep_earlier(whole)
        requests = [*place.requests, *self.write.requests][-REQUESTS_KEPT:]
        content = place.main_file(whole[-1], self._mark, requests, earlier)
        self._state_bytes = len(whole[-1].data or b"")
        self.replaces_main = True
        self._main = _create(files.temp_path(place.path))
        files.layer.write(self._main, content)
        files.layer.step("temp-written")

    def _keep_earlier(self, whole: Sequence[Record]) -> list[bytes]:
        """Put the versions into the log; return those that the main file is to hold instead.

        The first commit needs no log if its version is few bytes: that saves an fsync, and to most states a file. If
        it has several, its log comes later whatever they are: a crash between two files would leave the last one only.
        """
        place, settings = self.place, self.place.settings
        bound, shape = settings.max_history, settings.shape
        if not bound and not settings.deltas:
            return []
        kept = whole[-bound:] if bound else []
        opened = self._open_log() if place.has_log else None
        if opened is not None:
            self.in_place = place.continues
            content = encode_entry(kept, self.write.requests, shape) if kept else b""
            self._append(opened, content)
            self._mark = LogMark(place.end + len(content), place.count + len(kept), whole[-1].version, True)
            return []
        entries = [*place.unlogged, *(encode_entry([record], [], shape) for record in kept)][-bound:]
        if entries and self.main_first and (len(entries) > 1 or len(entries[0]) <= UNLOGGED_BYTES):
            self._unlogged = entries
            return entries[:-1]
        self._make_log(b"".join(entries))
        # A main file may count on its log only from when that is durable.
        self._mark = LogMark(self._mark.end, len(entries), whole[-1].version, not self.main_first)
        return []

    def _append(self, opened: tuple[int, int], content: bytes) -> None:
        self._log, end = opened
        found = files.layer.status(self._log)
        self._log_id = (found.st_dev, found.st_ino)
        files.layer.write(self._log, content, end)

    def _make_log(self, content: bytes) -> None:
        place = self.place
        requests = [*place.requests, *self.write.requests][-REQUESTS_KEPT:]
        head = encode_head(kind_of(place.settings.shape), place.end, requests)
        self._log = _create(files.temp_path(place.log))
        self.makes_log = True
        self._append((self._log, 0), head + content)
        self._mark = LogMark(place.end + len(content))

    def _open_log(self) -> tuple[int, int] | None:
        """Open the log and return it with the place behind what was acknowledged; None if it is missing."""
        place = self.place
        try:
            fd = files.layer.open(place.log, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            end, size = self._head(fd).place(place.end), files.layer.status(fd).st_size
            if size < end:
                hint = f"restore it from a backup, or remove {place.log.name} to go on without earlier versions"
                raise corrupt(str(place.log), size, f"it ends before byte {end}, which was acknowledged", hint=hint)
            if size > end:
                files.layer.truncate(fd, end)
                if place.settings.sync and place.continues:
                    files.layer.fdatasync(fd)  # else a crash could leave the new entry over the rest of the old
        except BaseException:
            files.layer.close(fd)
            raise
        return fd, end

    def _head(self, fd: int) -> LogHead:
        if self.place.head is None:
            self.place.head = read_head(fd, self.place.log)
        return self.place.head

    def _sync(self, fd: int, sync: Callable[[int], None]) -> None:
        if not self.place.settings.sync:
            return
        try:
            sync(fd)
        except OSError:
            self.untrusted = True
            raise

    def _close(self) -> None:
        for fd in (self._main, self._log):
            if fd is not None:
                with contextlib.suppress(OSError):
                    files.layer.close(fd)
        self._main = self._log = None


def replaced(place: Place, name: str) -> StorageError:
    """Return the error for a file that someone else removed or replaced."""
    return StorageError(
        f"{name} in {place.path.parent} was removed or replaced while {place.key!r} had it open",
        retryable=False,
        actor=place.key,
        hint="nothing was written; start the actor again to read what is there now",
    )


def _create(path: Path) -> int:
    """Make a file that wasn't there; what a dead owner left in its place goes first."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return files.layer.open(path, flags)
    except FileExistsError:
        files.layer.unlink(path)
        return files.layer.open(path, flags)
