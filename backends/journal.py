"""An append-only log of records on local disk: a batch survives any crash whole, or is not there at all.

Invariants:

1. Record numbers are consecutive, from `first` to `next` - 1, across the segments.
2. `append` returns only after its batch is durable, and a batch is written only after the one before it is:
   an intact batch or mark proves that everything in front of it was durable once.
3. So the last segment ends in at most one batch that was never acknowledged. If that is broken it is cut; a
   broken batch with something intact behind it is corruption, and nothing is touched.
4. What `open` finds at the end is written and synced once more, unless a mark follows it: pages that once
   failed to reach the disk look clean afterwards.
5. A segment is durable with its header before it has its name, and by then the one before is synced with
   its mark.

| state | event | next | by |
|---|---|---|---|
| closed | the segments are read, a torn tail is cut | ready | `open` |
| ready | a batch is durable | ready | `append` |
| ready | a write, a sync or a new segment fails | failed | `append`, `roll` |
| failed | the segments are read again | ready | `open` |
| any | the files are let go | closed | `close`, a failed `open` |
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from dgents.backends import files
from dgents.backends.segment import (
    BATCH_BYTES,
    HEADER_BYTES,
    Batch,
    Buffer,
    SegmentReader,
    batch_size,
    first_in_name,
    new_salt,
    pack_batch,
    pack_header,
    pack_mark,
    segment_path,
)
from dgents.runtime.errors import StateCorruptionError, StateTooLargeError, StorageError

MAX_RECORD_BYTES = 2**32 - 1  # its length is 4 bytes


class Journal:
    """A log in a directory of its own, whose lock the caller holds. Sync: call it in a worker thread.

    Ordering: calls from several threads take turns; `read` runs beside them and sees what was durable when it
    was called.

    Attributes:
        next: the number that the next record gets; the very first one is 1.
        cut_bytes: how much of a torn, never acknowledged tail the last `open` cut off.

    Args:
        directory: made, for this user alone, where it is missing.
        segment_bytes: a segment that would grow beyond this is followed by a new one; `trim` removes whole
            ones.
        max_record_bytes: a larger record is refused.
    """

    def __init__(
        self, directory: Path, *, segment_bytes: int = 64 * 2**20, max_record_bytes: int = 64 * 2**20 + 4096
    ) -> None:
        if segment_bytes < 1:
            raise ValueError(f"segment_bytes is {segment_bytes}; it must be at least 1")
        if not 1 <= max_record_bytes <= MAX_RECORD_BYTES:
            raise ValueError(f"max_record_bytes is {max_record_bytes}; it must be from 1 to {MAX_RECORD_BYTES}")
        self.directory = directory
        self.segment_bytes = segment_bytes
        self.max_record_bytes = max_record_bytes
        self.next = 1
        self.cut_bytes = 0
        self._turn = threading.Lock()
        self._fd: int | None = None
        self._failed = False
        self._was_open = False
        # The first record's number of each segment, oldest first, and the bytes of all of them but the last.
        self._firsts: list[int] = []
        self._sizes: list[int] = []
        # Where the last batch of the last segment ends, and the salt of its checksums.
        self._end = 0
        self._salt = 0

    @property
    def first(self) -> int:
        """The number of the oldest record that is kept; equal to `next` if there is none."""
        return self._firsts[0] if self._firsts else self.next

    @property
    def size(self) -> int:
        """The bytes on disk, of all segments."""
        return sum(self._sizes) + self._end

    def open(self) -> None:
        """Read where the log ends, cut a torn tail, remove stale temp files; make a segment if there is none.

        Also the way back after a failed `append`: what was in memory is not trusted, but it is not begun anew.

        Raises:
            StateCorruptionError: the last segment is damaged in its middle, or lacks what was acknowledged.
            StorageError: the directory can't be read or written, or the last segment has several names.
        """
        with self._turn, files.storage_errors(self.directory, "open"):
            self._let_go()
            if not self._was_open:
                files.layer.make_directories(self.directory)
            self._survey()
            if self._firsts:
                # Whoever made the last segment may have died before its name was durable.
                files.layer.fsync_directory(self.directory)
                self._recover()
            elif self._was_open:
                raise self._went_back("it has no segment any more")
            else:
                self._begin(1)
            self._failed = False
            self._was_open = True

    def append(self, records: Sequence[bytes]) -> int:
        """Append a batch and return its first record's number; after a crash it is there whole or not at all.

        Durability: one write (one more for each piece of a megabyte or more) and one fdatasync; durable when this
        returns.

        Raises:
            StateTooLargeError: a record is larger than ``max_record_bytes``; nothing was written.
            StorageError: the journal refuses to go on until it is opened again. With the outcome
                ``rolled_back`` the batch will not be there then, with ``unknown`` it may be.
        """
        return self.append_pieces(records, list(map(len, records)))

    def append_pieces(self, pieces: Sequence[Buffer], sizes: Sequence[int]) -> int:
        """Append a batch as `append` does: records of these sizes, whose bytes lie in any number of pieces."""
        if not sizes:
            return self.next
        if max(sizes) > self.max_record_bytes:
            raise self._too_large(max(sizes))
        with self._turn:
            fd = self._ready()
            taken = batch_size(sizes)
            if self._end > HEADER_BYTES and self._end + taken > self.segment_bytes:
                fd = self._roll(fd)
            first = self.next
            self._write(fd, pack_batch(self._salt, first, pieces, sizes))
            self._end += taken
            self.next += len(sizes)
            self._mark(fd)
            return first

    def read(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield number and bytes of each record from number ``start`` on; as `batches` otherwise."""
        return _records(self.batches(start), start)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yield each batch that holds or follows record ``start``, oldest first, one in memory.

        The segments that it has yet to reach must not be trimmed meanwhile.

        Raises:
            StateCorruptionError: on reaching a damaged place; everything before it was yielded.
            StorageError: the journal is not open, or the disk fails.
        """
        with self._turn:
            self._ready()
            return self._batches(start, [*self._firsts, self.next], self._end)

    def roll(self) -> None:
        """Start a new segment, unless the last one is empty: now `trim` can let go of every record so far.

        Raises:
            StorageError: as in `append`.
        """
        with self._turn:
            fd = self._ready()
            if self._end > HEADER_BYTES:
                self._roll(fd)

    def trim(self, before: int) -> None:
        """Remove the segments all of whose records have numbers below ``before``; the last segment stays.

        Raises:
            StorageError: some of them may still be there; the journal goes on.
        """
        with self._turn, files.storage_errors(self.directory, "trim"):
            self._ready()
            while len(self._firsts) > 1 and self._firsts[1] <= before:
                with contextlib.suppress(FileNotFoundError):
                    files.layer.unlink(segment_path(self.directory, self._firsts[0]))
                files.layer.step("segment-removed")
                # One by one: a power cut must not keep an older segment and lose a younger one.
                files.layer.fsync_directory(self.directory)
                del self._firsts[0], self._sizes[0]

    def close(self) -> None:
        """Let go of the files. Never raises: what was acknowledged is durable already."""
        with self._turn:
            self._let_go()

    def _survey(self) -> None:
        """List the segments, and remove what a dead process was about to make one."""
        sizes: dict[int, int] = {}
        for name, size in files.layer.entries(self.directory).items():
            first = first_in_name(name)
            if first is not None:
                sizes[first] = size
            elif first_in_name(name.removesuffix(".tmp")) is not None:
                files.layer.unlink(self.directory / name)
        self._firsts = sorted(sizes)
        self._sizes = [sizes[first] for first in self._firsts[:-1]]

    def _recover(self) -> None:
        """Take up the last segment where it ends, durable up to there (invariants 3 and 4)."""
        path = segment_path(self.directory, self._firsts[-1])
        fd = files.layer.open(path, os.O_RDWR)
        try:
            status = files.layer.status(fd)
            files.check_only_name(status, path)
            found = status.st_size
            reader = SegmentReader(path, fd, found)
            tail = reader.tail()
            if tail.next < self.next:
                raise self._went_back(f"it ends with record {tail.next - 1}, record {self.next - 1} was acknowledged")
            if tail.last and not tail.marked:
                again = files.layer.pread(fd, tail.last.end - tail.last.offset, tail.last.offset)
                files.layer.write(fd, again, tail.last.offset)
            if found > tail.kept:
                files.layer.truncate(fd, tail.kept)
            if found > tail.kept or not tail.marked:
                files.layer.fsync(fd)
        except BaseException:
            files.layer.close(fd)
            raise
        self._fd, self._salt, self._end, self.next = fd, reader.salt, tail.end, tail.next
        self.cut_bytes = found - tail.kept
        self._mark(fd)

    def _begin(self, first: int) -> int:
        """Make a new last segment and return its descriptor."""
        path = segment_path(self.directory, first)
        salt = new_salt()
        files.write_atomically(path, pack_header(first, salt))
        fd = files.layer.open(path, os.O_RDWR)
        self._firsts.append(first)
        self._fd, self._salt, self._end, self.next = fd, salt, HEADER_BYTES, first
        return fd

    def _roll(self, old: int) -> int:
        """Make the last segment durable, with its mark, and only then begin another (invariant 5)."""
        self._failed = True
        with files.storage_errors(self.directory, "append"):
            files.layer.write(old, pack_mark(self._salt, self.next), self._end)
            files.layer.fdatasync(old)
            self._sizes.append(self._end + BATCH_BYTES)
            fd = self._begin(self.next)
            files.layer.close(old)
        self._failed = False
        return fd

    def _write(self, fd: int, pieces: Sequence[Buffer]) -> None:
        """Write and sync one batch; whatever interrupts it, the journal has to be opened again."""
        self._failed = True
        layer = files.layer
        written = False
        try:
            end = self._end
            for piece in pieces:
                layer.write(fd, piece, end)
                end += len(piece)
            written = True
            layer.step("journal-written")
            layer.fdatasync(fd)
        except OSError as error:
            path = segment_path(self.directory, self._firsts[-1])
            failure = files.storage_error(error, path, "append")
            # A write that failed left out the last byte at least: the batch will be cut.
            failure.outcome = "unknown" if written else "rolled_back"
            raise failure from error
        layer.step("journal-synced")
        self._failed = False

    def _mark(self, fd: int) -> None:
        """Note that everything so far is durable, so that damage is told from a torn write; nothing more."""
        with contextlib.suppress(OSError):
            files.layer.write(fd, pack_mark(self._salt, self.next), self._end)
        files.layer.step("journal-marked")

    def _batches(self, start: int, firsts: list[int], end: int) -> Iterator[Batch]:
        for position, (first, following) in enumerate(pairwise(firsts), start=2):
            if following <= start:
                continue
            path = segment_path(self.directory, first)
            with files.storage_errors(path, "read"):
                fd = files.layer.open(path, os.O_RDONLY)
                try:
                    limit = end if position == len(firsts) else files.layer.status(fd).st_size
                    yield from SegmentReader(path, fd, limit).whole(start, following)
                finally:
                    files.layer.close(fd)

    def _ready(self) -> int:
        where = f"the journal {self.directory}"
        if self._fd is None:
            raise StorageError(f"{where} is not open", retryable=False, hint="open() it first")
        if self._failed:
            raise StorageError(f"{where} failed, what is on the disk is not known", hint="open() it again")
        in_place = files.leads_to(segment_path(self.directory, self._firsts[-1]), self._fd)
        if not in_place or files.layer.status(self._fd).st_size < self._end:
            what = f"the last segment of {where} was removed, replaced or cut while open"
            raise StorageError(what, retryable=False, hint="nothing was written; restore it and open() it again")
        return self._fd

    def _went_back(self, how: str) -> StateCorruptionError:
        what = f"the journal {self.directory} was removed, replaced or cut while it was in use: {how}"
        return StateCorruptionError(what, path=str(self.directory), hint="it was left as it is; restore it")

    def _too_large(self, size: int) -> StateTooLargeError:
        return StateTooLargeError(
            f"append to {self.directory} refused: a record of {size:,} bytes is over {self.max_record_bytes:,}",
            size=size,
            limit=self.max_record_bytes,
            hint="raise max_record_bytes or split the state",
        )

    def _let_go(self) -> None:
        fd, self._fd = self._fd, None
        if fd is None:
            return
        with contextlib.suppress(OSError):
            # Only the mark is not durable yet.
            files.layer.fdatasync(fd)
        with contextlib.suppress(OSError):
            files.layer.close(fd)


def _records(batches: Iterator[Batch], start: int) -> Iterator[tuple[int, bytes]]:
    for batch in batches:
        for number, record in enumerate(batch.records(), start=batch.first):
            if number >= start:
                yield number, record
