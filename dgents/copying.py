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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import anyio
from msgspec.structs import replace

from dgents.backends.file import PersistentAgent
from dgents.backends.file_inspect import SUFFIX
from dgents.backends.files import safe_name
from dgents.backends.sql import SQLAgent
from dgents.parts import parts_of
from dgents.places import Place, open_place
from dgents.runtime.contract import Agent, Backend, Opened, Write
from dgents.runtime.errors import DgentError, StateError, StateNotFoundError, VersionConflictError
from dgents.runtime.loops import running_loop
from dgents.runtime.resources import SharedResources
from dgents.stores import Entry, Store, Stored

OnProgress = Callable[[int, int], None]

_BATCH_STATES = 100
_BATCH_BYTES = 8 * 2**20
_TABLE = "states"


@dataclass
class Copied:
    """What a copy did: how many states and versions it wrote, how many states were there already, what it left out."""

    states: int = 0
    versions: int = 0
    present: int = 0
    left_out: list[str] = field(default_factory=list)


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
    for place in (source, destination):
        if place.kind in ("vectors", "streams"):
            raise ValueError(
                f"{place.safe} holds {place.kind}, which are copied with their folder while nobody owns them"
            )
    with open_place(source, table if source.has_tables else None) as contents:
        entries = list(contents.entries())
        left_out = [*(part.what for part in parts_of(source)), *(other.what for other in contents.others())]
        if not entries:
            raise StateNotFoundError(
                f"there are no states in {source.safe}",
                hint=f"there is {', '.join(left_out)}, which can't be copied" if left_out else "check the path",
            )
        if destination.kind == "file" and len(entries) > 1:
            raise ValueError(
                f"{destination.safe} would be the file of one state, and there are {len(entries)} in {source.safe}; "
                "write NAME/ for a folder, NAME.db for a database"
            )
        with Target(destination, None if source.has_tables else table) as target:
            copied = anyio.run(_Work(target, on_progress, on_warning).run, entries)
            copied.left_out = left_out
            return copied


class Target:
    """Where states are copied to: what they are called there, and what is there already."""

    def __init__(self, place: Place, table: str | None = None) -> None:
        self.place = place
        self._table = table or _TABLE
        self._opened = ExitStack()
        self._contents: Store | None = None

    def __enter__(self) -> Self:
        place = self.place
        if place.kind in ("redis", "postgres") or (place.kind == "sqlite" and Path(place.uri).exists()):
            self._contents = self._opened.enter_context(open_place(place))
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def plan(self, stored: Stored) -> Stored:
        """Return a state as it is to be here."""
        table = (stored.table or self._table) if self.place.has_tables else None
        if not stored.records:
            return stored._replace(table=table)
        first = stored.records[-1].version - len(stored.records) + 1
        records = [replace(record, version=first + n, delta=None) for n, record in enumerate(stored.records)]
        numbers = {old.version: new.version for old, new in zip(stored.records, records, strict=True)}
        requests = [replace(one, version=numbers.get(one.version, one.version)) for one in stored.requests]
        return Stored(table, stored.key, records, requests)

    def present(self, planned: Stored) -> Stored | None:
        """Return what is in the place of ``planned`` now."""
        if self.place.kind in ("file", "folder"):
            path = self.place.uri
            if self.place.kind == "folder":
                path = os.path.join(path, safe_name(planned.key) + SUFFIX)
            if not Path(path).exists():
                return None
            with open_place(Place("file", path, path)) as one:
                return next(one.entries()).read()
        found = self._contents.find(planned.key, planned.table) if self._contents else []
        return found[0] if found else None

    def agent(self, planned: Stored) -> Agent:
        """Describe an actor whose history is bounded at just what it is given."""
        # From the number of a version a store tells whether those before it were dropped or are missing, so the bound
        # has to fit. It is the agent's and not the state's: whoever opens the state next brings one of his own.
        bound = len(planned.records) if len(planned.records) > 1 else 0
        place = self.place
        if place.kind == "redis":
            from dgents.backends.redis import RedisAgent  # needs redis-py, an optional dependency

            return RedisAgent(place.uri, key=planned.key, max_history=bound)
        if place.has_tables:
            return SQLAgent(place.uri, planned.table or self._table, key=planned.key, max_history=bound)
        return PersistentAgent(place.uri, max_history=bound)

    def conflict(self, planned: Stored, version: int) -> StateError:
        """Return the error for another state in the place of ``planned``."""
        return StateError(
            f"{self.place.safe} holds another state under the key {planned.key!r}, at version {version}; "
            f"the one to copy is at version {planned.records[-1].version}",
            key=planned.key,
            hint="nothing of it was changed; delete it there, or copy to another place",
        )


class _Work:
    """One run: reads state after state, and writes them in batches."""

    def __init__(self, target: Target, on_progress: OnProgress, on_warning: Callable[[str], None]) -> None:
        self._target = target
        self._on_progress = on_progress
        self._on_warning = on_warning
        self._copied = Copied()
        self._origins: dict[tuple[str | None, str], str | None] = {}

    async def run(self, entries: Sequence[Entry]) -> Copied:
        resources = SharedResources(running_loop(), self._emit)
        batch: list[Stored] = []
        size = 0
        try:
            for done, entry in enumerate(entries, 1):
                planned = self._planned(entry.read())
                if planned is not None:
                    batch.append(planned)
                    size += sum(len(record.data or b"") for record in planned.records)
                if batch and (len(batch) == _BATCH_STATES or size >= _BATCH_BYTES or done == len(entries)):
                    await self._write(batch, resources)
                    batch, size = [], 0
                self._on_progress(done, len(entries))
        finally:
            with anyio.CancelScope(shield=True):
                await resources.close()
        return self._copied

    def _planned(self, stored: Stored) -> Stored | None:
        """Return what has to be written for a state; None if nothing has to be."""
        planned = self._target.plan(stored)
        if not planned.records:
            return None
        name = (planned.table, planned.key)
        if name in self._origins:
            raise ValueError(
                f"the key {planned.key!r} is in the tables {self._origins[name]!r} and {stored.table!r}, and "
                f"{self._target.place.safe} has no tables; choose one with --table"
            )
        self._origins[name] = stored.table
        present = self._target.present(planned)
        if present is None or not present.records:
            return planned
        if _content(present) != _content(planned):
            raise self._target.conflict(planned, present.records[-1].version)
        self._copied.present += 1
        return None

    async def _write(self, batch: Sequence[Stored], resources: SharedResources) -> None:
        backends = [self._target.agent(planned).backend(planned.key, resources) for planned in batch]
        try:
            await self._commit(batch, backends, await _open_all(backends))
        finally:
            with anyio.CancelScope(shield=True):
                for backend in backends:
                    await backend.close()
        self._copied.states += len(batch)
        self._copied.versions += sum(len(planned.records) for planned in batch)

    async def _commit(self, batch: Sequence[Stored], backends: Sequence[Backend], opened: Sequence[Opened]) -> None:
        writes = []
        for planned, backend, found in zip(batch, backends, opened, strict=True):
            if found.record is not None:  # saved since it was looked for
                raise self._target.conflict(planned, found.record.version)
            records = [replace(record, epoch=found.epoch) for record in planned.records]
            writes.append(Write(backend, 0, records, planned.requests, planned.key))
        store = backends[0].store
        assert store is not None, "what is open has a store, and one place has one of them"
        for planned, refusal in zip(batch, await store.commit(writes), strict=True):
            if isinstance(refusal, VersionConflictError):
                raise self._target.conflict(planned, refusal.actual)
            if isinstance(refusal, DgentError):
                raise refusal

    def _emit(self, kind: str, actor: str | None = None, **details: Any) -> None:
        if kind == "warning":
            self._on_warning(str(details.get("message", details)))


async def _open_all(backends: Sequence[Backend]) -> list[Opened]:
    """Open them together, so that a store can share its transactions among them."""
    found: dict[int, Opened] = {}

    async def open_one(number: int) -> None:
        found[number] = await backends[number].open()

    try:
        async with anyio.create_task_group() as tasks:
            for number in range(len(backends)):
                tasks.start_soon(open_one, number)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return [found[number] for number in range(len(backends))]


def _content(stored: Stored) -> list[tuple[Any, ...]]:
    return [(record.version, record.saved_at, record.data, record.schema) for record in stored.records]
