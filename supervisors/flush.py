"""When a write-behind cache writes to its store, and what its failures mean."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from dgents.runtime.arguments import check_count, check_path, check_seconds
from dgents.runtime.errors import (
    DgentError,
    StateCorruptionError,
    StateSerializationError,
    StateTooLargeError,
    StorageError,
)

_FOR_GOOD = (StateCorruptionError, StateSerializationError, StateTooLargeError)


@dataclass(frozen=True)
class Flush:
    """When a write-behind cache writes to its store.

    Args:
        max_delay: seconds that a write waits at most. Without a journal, this is what a crash can lose.
        max_pending: writes of one actor after which it is flushed at once; at 16 times as many, writers wait.
        journal: a directory on a local disk. A write is in it, synced, before it is acknowledged, and is replayed
            after a crash. None: no journal.
    """

    max_delay: float = 0.05
    max_pending: int = 1000
    _: KW_ONLY
    journal: str | Path | None = None

    def __post_init__(self) -> None:
        check_seconds("Flush: max_delay", self.max_delay, positive=False)
        check_count("Flush: max_pending", self.max_pending, of="number of writes")
        if self.journal is not None:
            check_path("Flush: journal", self.journal)

    def and_also(self, other: Flush) -> Flush:
        """Return when to write so that both are kept to.

        Raises:
            ValueError: they name two journals.
        """
        journals = sorted({os.path.abspath(one.journal) for one in (self, other) if one.journal is not None})
        if len(journals) > 1:
            raise ValueError(
                f"two caches, one in the other, write behind, and have two journals: {' and '.join(journals)}; "
                "give them one"
            )
        return Flush(
            min(self.max_delay, other.max_delay),
            min(self.max_pending, other.max_pending),
            journal=journals[0] if journals else None,
        )


def may_help(error: DgentError) -> bool:
    """Say whether to open the store again, and ask it, can help.

    It can't if it takes no such state, or no such owner, or if what it keeps is damaged.
    """
    return getattr(error, "retryable", True) and not isinstance(error, _FOR_GOOD)


def as_flush_error(failure: Exception) -> DgentError:
    """Return the error of a flush; one of ours is not tried again: better stopped, and said, than at risk for ever."""
    if isinstance(failure, DgentError):
        return failure
    error = StorageError(f"the flush failed: {failure!r}", retryable=False)
    error.__cause__ = failure
    return error
