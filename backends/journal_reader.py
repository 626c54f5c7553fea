"""Reading a journal without owning it, for people and for tools: nothing is locked, cut or written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from dgents.backends import files
from dgents.backends.segment import Batch, SegmentReader, first_in_name, segment_path


def read_journal(directory: Path, start: int = 0) -> Iterator[Batch]:
    """Yield each batch that holds or follows record ``start``, oldest first.

    What a crash left half-written at the end is left out, and so is what an owner is writing.

    Raises:
        StateCorruptionError: on reaching a damaged place; everything before it was yielded.
        StorageError: the disk fails, or the owner removed a segment meanwhile.
    """
    with files.storage_errors(directory, "read"):
        names = files.layer.entries(directory)
    firsts = sorted(first for name in names if (first := first_in_name(name)) is not None)
    for first, following in zip_longest(firsts, firsts[1:]):
        if following is not None and following <= start:
            continue
        path = segment_path(directory, first)
        with files.storage_errors(path, "read"):
            fd = files.layer.open(path, os.O_RDONLY)
            try:
                end = files.layer.status(fd).st_size
                if following is None:
                    tail = SegmentReader(path, fd, end).tail()
                    end, following = tail.end, tail.next
                yield from SegmentReader(path, fd, end).whole(start, following)
            finally:
                files.layer.close(fd)
