"""Copying states with their histories from one place to another, from any kind of backend to any other.

Invariants:

1. A state is written whole, all its versions and request ids, in one commit that succeeds only where nothing was:
   it is there as it was at the source, or not at all. So a copy that was killed is finished by running it again.
2. What is at the destination already is compared and left as it is: the same is passed over, another is an error.
3. The current version keeps its number, and so do the earlier ones, unless some are missing between them at the
   source (a bound of the history that was lowered and raised): then they are numbered without a gap.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from msgspec.structs import replace

from dgents.backends.file import PersistentAgent
from dgents.backends.sql import SQLAgent
from dgents.runtime.contract import Agent, Backend, Opened, Record, Request, Store, Write
from dgents.runtime.errors import StateError, StateNotFoundError
from dgents.runtime.loops import running_loop
from dgents.runtime.resources import SharedResources
from dgents.stores import Entry, Place, Stored, open_store
from dgents.stores import Store as Contents

OnProgress = Callable[[int, int], None]

_BATCH_STATES = 100
_BATCH_BYTES = 8 * 2**20
_TABLE = "states"


@dataclass
class Copied:
    """What a copy did: how many states and versions it wrote, and how many states were there already."""

    states: int = 0
    versions: int = 0
    present: int = 0


def copy(
    source: Place,
    destination: Place,
    *,
    table: str | None = None,
    on_progress: OnProgress = lambda done, total: None,
    on_warning: Callable[[str], None] = lambda text: None,
) -> Copied:
    """Copy every state; run again after an interruption, it goes on where it was.

    Args:
        table: the only table to copy from; or the one to copy to, if only the destination has tables.
        on_progress: called with how many states are done, of how many.
        on_warning: called with what a server at the destination doesn't promise.

    Raises:
        StateError: another state is at the destination under the same key; that one is not changed.
        StateCorruptionError: a state can't be read. Those before it were copied.
        StorageError: a place can't be reached, or refused.
    """
    if table is not None and not (source.has_tables or destination.has_tables):
        raise ValueError(f"there are no tables in {source.safe} nor in {destination.safe}")
    with open_store(source, table if source.has_tables else None) as contents:
        entries = list(contents.entries())
        if not entries:
            raise StateNotFoundError(f"there are no states in {source.safe}", hint="check the path")
        if destination.kind == "file" and len(entries) > 1:
            raise ValueError(
                f"{destination.safe} can hold one state, and there are {len(entries)} in {source.safe}; "
                f"name a folder: {destination.safe}/"
            )
        target = Target(destination, table if not source.has_tables else None)
        with target.open() as present:
            work = _Work(target, present, on_progress, on_warning)
            return anyio.run(work.run, entries)


class Target:
    """Where states are copied to, and what they are called there."""

    def __init__(self, place: Place, table: str | None = None) -> None:
        self.place = place
        self._table = table

    @contextmanager
    def open(self) -> Iterator[Contents | None]:
        """Open what is there already; None if nothing is."""
        if self.place.kind in ("sqlite", "file", "folder") and not Path(self.place.uri).exists():
            yield None
            return
        with open_store(self.place) as contents:
            yield contents

    def name(self, stored: Stored) -> tuple[str | None, str]:
        """Return the table, if there are any, and the key."""
        return (stored.table or self._table or _TABLE) if self.place.has_tables else None, stored.key

    def agent(self, planned: Stored) -> Agent:
        """Describe an actor whose history is bounded at just what it is given."""
        # The number of a version tells whether those before it were dropped or are missing: bound and history have
        # to agree. The bound is the agent's and not the state's: the next to open the state brings its own.
        bound = len(planned.records) if len(planned.records) > 1 else 0
        place = self.place
        if place.kind == "redis":
            from dgents.backends.redis import RedisAgent  # needs redis-py, an optional dependency

            return RedisAgent(place.uri, key=planned.key, max_history=bound)
        if place.has_tables:
            assert planned.table is not None
            return SQLAgent(place.uri, planned.table, key=planned.key, max_history=bound)
        path = os.path.join(place.uri, "") if place.kind == "folder" else place.uri
        return PersistentAgent(path, max_history=bound)


class _Work:
    """One run: reads state after state, and writes them in batches."""

    def __init__(
        self, target: Target, present: Contents | None, on_progress: OnProgress, on_warning: Callable[[str], None]
    ) -> None:
        self._target = target
        self._present = present
        self._on_progress = on_progress
        self._on_warning = on_warning
        self._copied = Copied()

    async def run(self, entries: Sequence[Entry]) -> Copied:
        resources = SharedResources(running_loop(), self._emit)
        written: dict[tuple[str | None, str], Stored] = {}
        try:
            batch: list[Stored] = []
            for done, entry in enumerate(entries):
                planned = plan(entry.read(), self._target)
                if not planned.records:
                    continue
                if self._is_there(planned):
                    self._copied.present += 1
                    continue
                batch.append(planned)
                if len(batch) == _BATCH_STATES or _size(batch) >= _BATCH_BYTES:
                    await self._write(batch, resources)
                    batch = []
                    self._on_progress(done + 1, len(entries))
            await self._write(batch, resources)
        finally:
            with anyio.CancelScope(shield=True):
                await resources.close()
        return self._copied
