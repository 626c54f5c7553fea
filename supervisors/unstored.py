"""What one actor may have to write to its store: its newest versions, and the request ids that came with them.

Without a journal the versions are the ones in the actor's memory. With one they are those that the journal has.

Invariants
  1. A change is kept until the version that it changes is in the store, or is kept too.
  2. A request id goes to the store with the version that it applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from dgents.backends.file_records import is_delta
from dgents.runtime.contract import Record, Request
from dgents.runtime.errors import StorageError
from dgents.runtime.stored import MOST_REQUESTS

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell


class Unstored:
    """The newest versions of an actor, as far as the history bound keeps them, and their request ids."""

    def __init__(self, cell: Cell, max_history: int, *, journaled: bool) -> None:
        self._cell = cell
        self._most = max(max_history, 1)
        self._journaled = journaled
        self._records: list[Record] = []  # what the journal has
        self._requests: list[Request] = []

    def begin(self, records: Sequence[Record] = (), requests: Sequence[Request] = ()) -> None:
        """Begin anew, with what a journal has."""
        self._records = list(records)
        self._requests = list(requests)

    def take(self, records: Sequence[Record], requests: Sequence[Request], stored: int) -> None:
        """Add what the journal has now; the store has all up to version ``stored``."""
        self.remember(*requests)
        kept = self._records
        kept += records
        excess = len(kept) - self._most
        if excess > 0 and (not is_delta(kept[excess]) or kept[excess].version <= stored + 1):
            del kept[:excess]

    def remember(self, *requests: Request) -> None:
        """Add request ids."""
        self._requests += requests
        del self._requests[:-MOST_REQUESTS]

    def size(self, stored: int) -> int:
        """Return how many bytes the versions after ``stored`` have."""
        return sum(len(record.data or record.delta or b"") for record in self._after(stored))

    def records(self, stored: int) -> list[Record]:
        """Return the versions after ``stored``, oldest first, under the actor's present epoch.

        Raises:
            StorageError: they are changes to a version that the store has lost.
        """
        records = self._after(stored)
        if records and is_delta(records[0]) and records[0].version != stored + 1:
            raise StorageError(
                f"the store of {self._cell.name!r} went back to version {stored}; what is kept of the later ones are "
                f"changes to version {records[0].version - 1}",
                actor=self._cell.name,
                outcome="unknown",
                retryable=False,
                hint="restore the store from a backup that has this version; the journal keeps what came after it",
            )
        return records

    def requests(self, stored: int, last: int) -> list[Request]:
        """Return the request ids that were applied after version ``stored``, up to ``last``."""
        return [request for request in self._requests if stored < request.version <= last]

    def _after(self, stored: int) -> list[Record]:
        cell = self._cell
        if self._journaled:
            return [replace(record, epoch=cell.epoch) for record in self._records if record.version > stored]
        return [
            Record(form.version, cell.epoch, form.saved_at or cell.saved_at, form.data, cell.codec.version)
            for form in cell.versions_after(stored)
        ]
