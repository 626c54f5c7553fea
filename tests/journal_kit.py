"""A small journal: how it is written, and whether what is found of it is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dgents.backends import files
from dgents.backends.journal import Journal
from dgents.runtime.errors import DgentError
from tests.disk import HastyLayer

BATCHES = [[b"one"], [b"two", b"", b"four"], [b"five" * 5], [b"six", b"seven"]]
RECORDS = [record for batch in BATCHES for record in batch]
MARK = 32
HEADER = 32
SMALL = 110


def written(directory: Path, *, segment_bytes: int = 2**20) -> list[Path]:
    """Write BATCHES, close, and return the segments' paths."""
    journal = Journal(directory, segment_bytes=segment_bytes)
    journal.open()
    for batch in BATCHES:
        journal.append(batch)
    journal.close()
    return sorted(directory.iterdir())


def found(directory: Path) -> list[bytes]:
    """Open the journal and return its records, having checked that it takes another one."""
    journal = Journal(directory)
    journal.open()
    try:
        records = list(journal.read())
        assert [number for number, _ in records] == list(range(journal.first, journal.next))
        journal.append([b"another"])
        assert [record for _, record in journal.read()] == [*(record for _, record in records), b"another"]
        return [record for _, record in records]
    finally:
        journal.close()


def snapshot(directory: Path) -> dict[str, bytes]:
    """Return every file's bytes."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def work_through(
    directory: Path, acknowledge: Callable[[list[bytes]], object], batches: list[list[bytes]] = BATCHES
) -> None:
    """Write the batches over several segments and acknowledge each; then trim what the first two are in."""
    journal = Journal(directory, segment_bytes=SMALL)
    journal.open()
    for batch in batches:
        journal.append(batch)
        acknowledge(batch)
    journal.trim(1 + sum(len(batch) for batch in batches[:2]))
    journal.close()


def holds(directory: Path, promised: list[bytes], batches: list[list[bytes]] = BATCHES) -> bool:
    """Tell whether what is in the journal are whole batches, at least the ``promised`` records."""
    journal = Journal(directory)
    with files.use(HastyLayer()):
        try:
            journal.open()
            records = list(journal.read())
        except DgentError:
            return False
        finally:
            journal.close()
    ends = [sum(len(batch) for batch in batches[:n]) + 1 for n in range(len(batches) + 1)]
    every = [record for batch in batches for record in batch]
    return (
        records == list(enumerate(every, start=1))[journal.first - 1 : journal.next - 1]
        and journal.next in ends
        and journal.next > len(promised)
        and (journal.first == 1 or (journal.first in ends[:3] and len(promised) == len(every)))
    )
