"""Reading the file of a state and its log, as they are: nothing here locks, writes or mends.

What is current is the main file's version, and behind it what follows in a log that *continues* it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dgents.backends import files
from dgents.backends.file_format import SECTOR, LogMark, MainFile, Shape, corrupt, decode_main, is_torn
from dgents.backends.file_log import Entry, LogHead, decode_head, head_is_whole
from dgents.backends.file_log_reader import LogReader, TornError, decode_entries
from dgents.backends.file_records import Chain, is_delta
from dgents.runtime.contract import Record, Request
from dgents.runtime.errors import StateCorruptionError

LOG_SUFFIX = ".history"
REQUESTS_KEPT = 1000
HEAD_BYTES = 256  # more than any head of a log has


class Tail(NamedTuple):
    """What a log holds behind the version in the main file.

    Attributes:
        entries: whole commits, each leading on from the one before.
        size: how many bytes they are.
        torn: how many bytes follow, of a commit that was never acknowledged.
    """

    entries: list[Entry]
    size: int
    torn: int


_NO_TAIL = Tail([], 0, 0)


class Found(NamedTuple):
    """A state as it was found: the main file, how it is written, and the versions behind it."""

    main: MainFile
    shape: Shape
    tail: Tail

    @property
    def newest(self) -> Record:
        """The current version as it is stored: perhaps only what it changes."""
        return self.tail.entries[-1].records[-1] if self.tail.entries else self.main.record

    @property
    def version(self) -> int:
        """The current version."""
        return self.newest.version

    def current(self) -> Record:
        """Return the current version with its state."""
        chain = Chain(self.main.record)
        for entry in self.tail.entries:
            for record in entry.records:
                chain.feed(record)
        return chain.current()

    def earlier(self, path: Path) -> Iterator[Record]:
        """Yield the versions before the current one that the main file holds."""
        return decode_entries(b"".join(self.main.earlier), self.shape, str(path))

    def requests(self) -> list[Request]:
        """Return the remembered requests, oldest first."""
        requests = list(self.main.requests)
        for entry in self.tail.entries:
            requests += entry.requests
        return requests[-REQUESTS_KEPT:]


def log_path(path: Path) -> Path:
    """Return where the log of the state at ``path`` is."""
    return path.with_name(path.name + LOG_SUFFIX)


def load(path: Path) -> Found | None:
    """Read the current version; None if nothing was ever saved.

    Raises:
        StateCorruptionError: what is there can't be trusted, or a part of it is missing.
        StorageError: a newer dgents wrote it.
        OSError: the system refused.
    """
    try:
        content = files.layer.read(path)
    except FileNotFoundError:
        _check_nothing_is_left(path)
        return None
    try:
        main, shape = decode_main(content, str(path))
    except StateCorruptionError:
        found = _load_log(path) if is_torn(content) else None
        if found is None:
            raise
        return found
    return Found(main, shape, _load_tail(path, main) if main.log.continues else _NO_TAIL)


def history(path: Path, found: Found, limit: int | None) -> list[Record]:
    """Return the kept versions with their states, oldest first, the current one last.

    Raises:
        StateCorruptionError: a version was changed, or is missing.
        OSError: the system refused.
    """
    if limit == 1:
        return [found.current()]
    kept: deque[Record] = deque(maxlen=limit)
    for record in itertools.chain(_logged(path, found), found.earlier(path)):
        if kept and record.version != kept[-1].version + 1:
            # A batch larger than the bound left out its oldest versions; all before it is out of bounds.
            kept.clear()
        kept.append(record)
    if kept and kept[-1].version == found.version - 1:
        kept.append(found.current())
    elif not kept or kept[-1].version != found.version:
        return [found.current()]
    return list(kept)


def _logged(path: Path, found: Found) -> Iterator[Record]:
    mark = found.main.log
    if not (mark.count or mark.continues):
        return
    log = log_path(path)
    try:
        content = files.layer.read(log)
    except FileNotFoundError:
        if mark.continues:
            raise _missing_log(log) from None
        return  # the crash of the very first commit left none
    head = decode_head(content, str(log))
    end = head.place(mark.end) + found.tail.size
    last = None
    for record in whole_versions(content, head, str(log), end, found.main.record):
        last = record.version
        yield record
    expected = found.version if found.tail.entries else mark.last
    if last not in (None, expected):
        raise corrupt(str(log), end, f"its last version is {last}, and should be {expected}")


def whole_versions(content: bytes, head: LogHead, path: str, end: int, main: Record | None = None) -> Iterator[Record]:
    """Yield the versions up to the place ``end`` of a log, all of which were acknowledged, made whole.

    Changes at its beginning that lead on from no version are left out: they are from a time without a history.

    Args:
        main: the version in the main file, which the first one in the log may be a change of.

    Raises:
        StateCorruptionError: an entry was changed, or cut off.
    """
    if end > len(content):
        raise corrupt(path, len(content), f"it ends before byte {end}, which was acknowledged")
    chain: Chain | None = None
    try:
        for _, entry in LogReader(content[:end], head, path).entries(head.size):
            for record in entry.records:
                if chain is None and is_delta(record):
                    if main is None or record.version != main.version + 1:
                        continue
                    chain = Chain(main)
                chain = chain or Chain()
                chain.feed(record)
                yield chain.current()
    except TornError as error:
        raise corrupt(path, error.place, "this entry was acknowledged, and is not whole") from error


def identify(path: Path) -> tuple[int, int] | None:
    """Say which file ``path`` names now; None if none."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _load_tail(path: Path, main: MainFile) -> Tail:
    log = log_path(path)
    try:
        fd = files.layer.open(log, os.O_RDONLY)
    except FileNotFoundError:
        raise _missing_log(log) from None
    try:
        head = read_head(fd, log)
        start, size = head.place(main.log.end), files.layer.status(fd).st_size
        if not head.size <= start <= size:
            raise corrupt(str(log), size, f"byte {start}, up to which it was acknowledged, is not in it")
        skipped = start // SECTOR * SECTOR
        content = _pread_all(fd, skipped, size)
    finally:
        files.layer.close(fd)
    entries, end = [], start
    version = main.record.version
    try:
        for place, entry in LogReader(content, head, str(log), skipped=skipped).entries(start):
            first = entry.records[0]
            if first.version != version + 1 and (first.version <= version or is_delta(first)):
                raise corrupt(str(log), end, f"version {first.version} can't follow version {version}")
            entries.append(entry)
            end, version = place, entry.records[-1].version
    except TornError:
        pass
    return Tail(entries, end - start, skipped + len(content) - end)


def _load_log(path: Path) -> Found | None:
    """Read the current version from the log alone, where that is possible: if it is one of lines.

    The main file beside such a log is refreshed without being synced, so that a power cut may leave a part of it.
    """
    log = log_path(path)
    try:
        content = files.layer.read(log)
    except FileNotFoundError:
        return None
    head = decode_head(content, str(log))
    entries, end = [], head.size
    with contextlib.suppress(TornError):
        for place, entry in LogReader(content, head, str(log)).entries(head.size):
            entries.append(entry)
            end = place
    if head.kind != "lines" or not entries:
        return None
    record = entries[-1].records[-1]
    count = sum(len(entry.records) for entry in entries)
    requests = [*head.requests, *(request for entry in entries for request in entry.requests)]
    mark = LogMark(head.offset(end), count, record.version, True)
    main = MainFile(path.name, record, mark, requests[-REQUESTS_KEPT:])
    return Found(main, Shape("json", None), Tail([], 0, len(content) - end))


def read_head(fd: int, log: Path) -> LogHead:
    """Return how an open log is written."""
    size = HEAD_BYTES
    while not head_is_whole(content := files.layer.pread(fd, size, 0)) and len(content) == size:
        size *= 8
    return decode_head(content, str(log))


def _pread_all(fd: int, start: int, end: int) -> bytes:
    parts = []
    while start < end and (part := files.layer.pread(fd, end - start, start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def _check_nothing_is_left(path: Path) -> None:
    """A log is made after the main file is durable: where there is only a log, the main file was removed."""
    log = log_path(path)
    if log.exists():
        raise StateCorruptionError(
            f"{path} is missing, and its history {log.name} is there",
            path=str(path),
            offset=0,
            hint=f"restore it from a backup, or remove {log.name} as well to begin anew",
        )


def _missing_log(log: Path) -> StateCorruptionError:
    return corrupt(
        str(log),
        0,
        "it is missing, and versions newer than the state's file may have been in it",
        hint="put it back, or restore both files from a backup",
    )
