"""What an owner knows of a state's files, and what it rewrites between commits. Blocking.

The log is rewritten only while the main file holds the current version; a crash in between leaves both
readable, because offsets in a log are logical.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dgents.backends import files
from dgents.backends.file_format import LogMark, MainFile, Shape, corrupt, encode_main
from dgents.backends.file_log import LogHead, decode_head, encode_entry, encode_head, kind_of
from dgents.backends.file_reader import (
    REQUESTS_KEPT,
    Found,
    identify,
    load,
    log_path,
    whole_versions,
)
from dgents.runtime.contract import Record, Request
from dgents.runtime.errors import StateCorruptionError, StorageError

TAIL_COUNT = 100  # versions in the log behind the main file, before that is written anew
TAIL_BYTES = 64 * 1024  # the same in bytes, or the size of the state where that is more


class Settings(NamedTuple):
    """How a state is stored."""

    shape: Shape
    max_history: int
    sync: bool

    @property
    def deltas(self) -> bool:
        """Whether a commit may be an entry in the log alone."""
        return self.shape == Shape("msgpack", None)


@dataclass
class Place:
    """The files of one state, as their owner last read or wrote them.

    Attributes:
        path: the main file.
        log: the file of the log, which may be missing.
        key: what the main file is to call the state.
        version: the current one; 0 if there is none.
        shape: how the main file is written; None if there is none.
        main_id: which file the main file is; None if there is none.
        log_id: which file the log is; None if there is none that belongs to the main file.
        head: the log's head, once it was read.
        end: the logical end of what was acknowledged in the log.
        count: how many versions the log holds, or a few more.
        last: the newest version in the log.
        unlogged: the versions that are not in the log, as they will stand there, the current one among them.
        continues: whether the log may hold versions newer than the main file.
        tail_count: how many versions are only in the log as far as is durable, or a few more.
        tail_bytes: their size.
        unshown: the current version, while the main file shows an older one; only in JSON.
        state_bytes: the size of the state in the main file.
        log_damaged: the log can't be rewritten, because it can't be read.
    """

    path: Path
    log: Path
    key: str
    settings: Settings
    version: int = 0
    epoch: int = 0
    shape: Shape | None = None
    main_id: tuple[int, int] | None = None
    log_id: tuple[int, int] | None = None
    head: LogHead | None = None
    end: int = 0
    count: int = 0
    last: int = 0
    unlogged: list[bytes] = field(default_factory=list)
    continues: bool = False
    tail_count: int = 0
    tail_bytes: int = 0
    unshown: Record | None = None
    state_bytes: int = 0
    log_damaged: bool = False
    requests: deque[Request] = field(default_factory=lambda: deque(maxlen=REQUESTS_KEPT))

    @property
    def has_log(self) -> bool:
        """Whether a log belongs to the main file; a log that does not is stale."""
        return self.continues or self.count > 0

    @classmethod
    def found(cls, path: Path, key: str, settings: Settings, found: Found | None) -> Place:
        """Return what is known after reading."""
        place = cls(path, log_path(path), key, settings)
        if found is None:
            return place
        place.version, place.epoch = found.newest.version, found.newest.epoch
        place.shape = found.shape
        place.main_id = identify(path)
        place.tail_count = sum(len(entry.records) for entry in found.tail.entries)
        place.tail_bytes = found.tail.size
        if found.shape.lines and found.main.log.continues:
            place.tail_count += 1  # the main file may be one that was not synced
        place.end = found.main.log.end + found.tail.size
        place.count = found.main.log.count + sum(len(entry.records) for entry in found.tail.entries)
        place.last = found.version if found.tail.entries else found.main.log.last
        place.continues = found.main.log.continues
        place.log_id = identify(place.log) if place.has_log else None
        place.unlogged = _unlogged(place, found)
        place.state_bytes = len(found.main.record.data or b"")
        place.requests.extend(found.requests())
        return place

    def main_file(self, record: Record, mark: LogMark, requests: list[Request], earlier: list[bytes]) -> bytes:
        """Return the content of a main file."""
        key = self.key.encode("utf-8", "backslashreplace").decode()
        return encode_main(MainFile(key, record, mark, requests, earlier), self.settings.shape)


def _unlogged(place: Place, found: Found) -> list[bytes]:
    """Return the versions that a main file holds and its log does not, as entries of this owner's own kind."""
    bound, shape = place.settings.max_history, place.settings.shape
    if not bound or found.main.log.continues or found.main.log.last == found.version:
        return []
    if found.shape == shape:
        entries = list(found.main.earlier)
    else:
        entries = [encode_entry([record], [], shape) for record in found.earlier(place.path)]
    return [*entries, encode_entry([found.main.record], [], shape)][-bound:]


def is_far_behind(place: Place) -> bool:
    """Say whether the next commit should write the main file: its log went far ahead of what is durable of it."""
    return place.tail_count >= TAIL_COUNT or place.tail_bytes > max(TAIL_BYTES, place.state_bytes)


def keep_up(place: Place) -> None:
    """Rewrite what is due: both files for another format, the log if it holds too much.

    Raises:
        StateCorruptionError: the state can't be read.
        OSError: the system refused.
    """
    settings, bound = place.settings, place.settings.max_history
    if place.shape is not None and place.shape != settings.shape:
        _convert(place)
    if place.has_log and place.count > 2 * bound and (bound or (settings.deltas and not place.tail_count)):
        checkpoint(place)
        _compact(place)


def checkpoint(place: Place) -> None:
    """Write the current version to the main file, and make that durable, unless it is."""
    if not place.tail_count:
        return
    found = load(place.path)
    if found is None or found.current().version != place.version:
        raise corrupt(str(place.path), 0, f"version {place.version}, which was written, is not in it")
    record = found.current()
    mark = LogMark(place.end, place.count, place.version, True)
    content = place.main_file(record, mark, list(place.requests), [])
    files.write_atomically(place.path, content, sync=place.settings.sync)
    place.shape = place.settings.shape
    place.main_id = identify(place.path)
    place.tail_count = place.tail_bytes = 0
    place.unshown = None
    place.state_bytes = len(record.data or b"")


def refresh(place: Place) -> None:
    """Show the current version in the main file, for those who read it; it need not be durable."""
    assert place.unshown is not None
    mark = LogMark(place.end, place.count, place.last, True)
    content = place.main_file(place.unshown, mark, list(place.requests), [])
    files.write_atomically(place.path, content, sync=False)
    place.main_id = identify(place.path)
    place.unshown = None
    files.layer.step("refreshed")


def drop_log(place: Place) -> None:
    """Remove a log to which the main file, which is durable, does not refer any more."""
    # Where that fails it is only in the way: nobody reads it, and the next log replaces it.
    with contextlib.suppress(OSError):
        files.layer.unlink(place.log)


def renew(place: Place, found: Found) -> None:
    """Write anew what was read: after a failed fsync only that makes it durable."""
    log = place.log
    # A log that is missing or damaged takes nothing from the current state; `history` tells of it.
    with contextlib.suppress(FileNotFoundError, StateCorruptionError):
        if place.has_log:
            content = files.layer.read(log)
            end = decode_head(content, str(log)).place(found.main.log.end) + found.tail.size
            files.write_atomically(log, content[:end], sync=place.settings.sync)
    files.write_atomically(place.path, files.layer.read(place.path), sync=place.settings.sync)


def settle(place: Place) -> None:
    """Make durable what an owner left that died, or a batch that failed: before the fsync, perhaps."""
    for path in (place.path, place.log):
        with contextlib.suppress(FileNotFoundError):
            fd = files.layer.open(path, os.O_RDWR)
            try:
                files.layer.fsync(fd)
            finally:
                files.layer.close(fd)
    files.layer.fsync_directory(place.path.parent)


def _convert(place: Place) -> None:
    """Go over to another format: everything in the log to the main file, then the log to its new kind."""
    checkpoint(place)
    if not place.has_log or not place.log.exists():
        return
    head = decode_head(files.layer.read(place.log), str(place.log))
    if head.kind != kind_of(place.settings.shape):
        _compact(place)
        if place.log_damaged:
            raise StorageError(
                f"{place.log} can't be rewritten in another format: it is damaged",
                retryable=False,
                hint="restore it from a backup, or remove it to go on without the earlier versions",
            )


def _compact(place: Place) -> None:
    """Rewrite the log with no more than its newest ``max_history`` versions; its logical end stays."""
    if place.log_damaged:
        return
    log = place.log
    try:
        content = files.layer.read(log)
    except FileNotFoundError:
        place.count, place.head = 0, None
        return
    kept: deque[Record] = deque(maxlen=place.settings.max_history)
    shape = place.settings.shape
    try:
        head = decode_head(content, str(log))
        kept.extend(whole_versions(content, head, str(log), head.place(place.end)))
    except StateCorruptionError:
        place.log_damaged = True  # left as it is; `history` says so
        return
    body = b"".join([encode_entry([record], [], shape) for record in kept])
    head_bytes = encode_head(kind_of(shape), place.end - len(body), list(place.requests))
    files.write_atomically(log, head_bytes + body, sync=place.settings.sync)
    place.head = None
    place.log_id = identify(log)
    place.count = len(kept)
