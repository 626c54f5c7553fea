"""The actor of a vector store: what is saved and deleted, in turns, and what a search sees of it.

Invariants
  1. A turn changes index and states together; whoever looks (`moment`, `capture`) looks between two turns.
  2. A turn's change is staged for the store before anybody can see it, so the gate covers what a search saw.
  3. Large saves are applied in a worker thread, ``applying`` is true meanwhile, and the turn lasts until they are.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from time import time
from typing import TYPE_CHECKING, Any, NoReturn, cast

import anyio.to_thread

from dgents.backends.vector_backend import VectorBackend, vector_engine
from dgents.backends.vector_change import Packed, pack_delete, pack_upsert
from dgents.backends.vector_embed import Embedder, own_embedding
from dgents.backends.vector_file import Capture, Head
from dgents.backends.vector_search import Look, Searches
from dgents.backends.vector_states import LARGEST_ID, Id, States
from dgents.backends.vector_store import MAX_CHANGE_BYTES
from dgents.backends.vector_upkeep import Upkeep
from dgents.runtime.actor import Cell
from dgents.runtime.contract import Agent, Opened, Record
from dgents.runtime.errors import (
    InvalidVectorError,
    StateError,
    StateTooLargeError,
    StorageError,
    UnsupportedOperationError,
    VersionConflictError,
)

if TYPE_CHECKING:
    from dgents.backends.vector import VectorAgent
    from dgents.backends.vector_entries import Entries
    from dgents.backends.vector_index import VectorIndex
    from dgents.backends.vector_input import Vectors
    from dgents.runtime.runtime import BaseRuntime

# A save, or a search, of more vectors or components than this would hold up the event loop for a millisecond or more.
_INLINE_VECTORS, _INLINE_COMPONENTS = 64, 2**15
_FLOAT_BYTES = 4


class VectorCell(Cell):
    """One vector store. Everything here runs in the runtime's thread, large saves excepted."""

    __slots__ = (
        "applying",
        "dimension",
        "embedder",
        "index",
        "inline",
        "metric",
        "next_id",
        "searches",
        "states",
        "upkeep",
    )

    def __init__(self, runtime: BaseRuntime, name: str, agent: Agent) -> None:
        super().__init__(runtime, name, agent)
        vectors = cast("VectorAgent[Any]", agent)
        self.codec = vectors.codec()
        self.dimension, self.metric = vectors.dimension, vectors.metric
        self.inline = max(1, min(_INLINE_VECTORS, _INLINE_COMPONENTS // self.dimension))
        self.embedder = Embedder(name, vectors.embed)
        self.searches = Searches(self)

    def clear(self) -> None:
        super().clear()
        self.index: VectorIndex | None = None  # not in memory
        self.states = States()
        self.next_id = 1
        self.applying = False
        self.upkeep: Upkeep | None = None

    async def start(self) -> None:
        """Make the backend, open it, and begin what is due."""
        await super().start()
        assert self.upkeep is not None
        self.upkeep.wrote(0)

    def adopt(self, opened: Opened) -> None:
        """Take over what the backend found."""
        backend = self.backend
        if not isinstance(backend, VectorBackend):
            raise UnsupportedOperationError(
                f"{self.name!r}: a {type(self.agent).__name__} around a VectorAgent would cache or delay one state, "
                "and vectors are many",
                actor=self.name,
                hint="leave it out: a VectorAgent keeps everything in memory anyway",
            )
        found = backend.take()
        self.committer = self.runtime.committer(backend.store) if backend.store is not None else None
        self.clear()
        self.index, self.states, self.next_id = found.index, found.states, found.next_id
        self.version, self.epoch, self.saved_at = found.version, opened.epoch, found.saved_at
        # After a failure the count begins anew: what failed may have been the snapshot, and would fail at once again.
        self._begin_upkeep(backend, 0 if self.is_restarting else found.changes)

    def run_again(self) -> None:
        """The backend is open again: go on with what waits."""
        backend = self.backend
        assert isinstance(backend, VectorBackend)
        backend.drop()
        if backend.upkeep is None:  # memory was kept: what was in doubt is durable now
            self._begin_upkeep(backend, 0)
        super().run_again()

    def _begin_upkeep(self, backend: VectorBackend, changes: int) -> None:
        self.upkeep = backend.upkeep = Upkeep(self, backend.store, changes)

    # Before a turn

    async def ready(self) -> None:
        """Import the engine, in a worker thread, if nobody has: it takes a third of a second."""
        if "faiss" not in sys.modules:
            await anyio.to_thread.run_sync(vector_engine)

    def entries(self, states: Sequence[Any], ids: Sequence[Id | None] | None, embeddings: Any) -> Entries:
        """Return what is to be saved, checked and encoded; safe to call in a worker thread."""
        from dgents.backends.vector_entries import make_entries  # needs numpy

        try:
            return make_entries(states, ids, embeddings, dimension=self.dimension, metric=self.metric, codec=self.codec)
        except StateError as error:
            raise self.named(error) from error.__cause__

    def queries(self, vectors: Any) -> Vectors:
        """Return the vectors to search for, checked."""
        from dgents.backends.vector_entries import as_matrix
        from dgents.backends.vector_input import check_vectors

        try:
            return check_vectors(as_matrix(vectors, self.dimension), self.dimension, self.metric)
        except StateError as error:
            raise self.named(error) from error.__cause__

    # What others look at, between turns

    def moment(self) -> Look:
        """Return what a search sees."""
        assert self.index is not None
        return Look(self.index.look(), self.states.view(), self.gate)

    def capture(self) -> Capture:
        """Return this moment, for a snapshot."""
        assert self.index is not None
        head = Head(self.version, self.epoch, self.saved_at, self.codec.version, self.next_id)
        return Capture(head, self.states.view(), self.index.snapshot(self.version))

    # Turns

    def count(self) -> int:
        """Return how many entries there are."""
        return len(self.states)

    def entry(self, id: Id) -> bytes | None:
        """Return the encoded state of an id."""
        return self.states.get(id)

    def save(self, entries: Entries, if_version: int | None = None) -> int:
        """Save one entry and return the version."""
        if if_version is not None and if_version != self.version:
            raise VersionConflictError(if_version, self.version, actor=self.name)
        self._put(entries)
        return self.version

    def save_many(self, entries: Entries) -> Any:
        """Save entries, all or none, and return their ids; a coroutine of them if there are many."""
        return self._put(entries) if len(entries.ids) <= self.inline else self._put_many(entries)

    def _put(self, entries: Entries) -> list[Id]:
        ids, next_id, data = self._prepare(entries)
        self._apply(ids, entries)
        self._stage(data, next_id)
        self._wrote(len(ids))
        return ids

    async def _put_many(self, entries: Entries) -> list[Id]:
        """Do as `_put` in threads, and apply the entries while the store already writes."""
        self.applying = True
        try:
            ids, next_id, data = await anyio.to_thread.run_sync(self._prepare, entries)
            if self.committer is None:
                await anyio.to_thread.run_sync(self._apply, ids, entries)
                self._stage(None, next_id)
            else:
                self._stage(data, next_id)
                await self._apply_staged(ids, entries)
        finally:
            self.applying = False
        self._wrote(len(ids))
        return ids

    async def _apply_staged(self, ids: list[Id], entries: Entries) -> None:
        try:
            await anyio.to_thread.run_sync(self._apply, ids, entries)
        except BaseException as error:
            # It may be durable, and is not in memory: what is on the disk counts.
            self.crash(StorageError(f"a save to {self.name!r} was not applied: {error!r}", actor=self.name))
            raise

    def remove(self, id: Id) -> None:
        """Delete an entry, if it is there."""
        if id not in self.states:
            return
        assert self.index is not None
        data = pack_delete([id]) if self.committer is not None else None
        self.index.delete([id])
        self.states.delete([id])
        self._stage(data, self.next_id)
        self._wrote(1)

    def _prepare(self, entries: Entries) -> tuple[list[Id], int, Packed | None]:
        """Return all ids, the next generated one after them, and the change for the store; refuse what has no room."""
        next_id = max(self.next_id, entries.following)
        ids: list[Id] = []
        for id in entries.ids:
            if id is None:
                id, next_id = next_id, next_id + 1
            ids.append(id)
        if next_id > LARGEST_ID + 1 and None in entries.ids:
            raise InvalidVectorError(
                f"save to {self.name!r} refused: there is no higher id than those that were used",
                actor=self.name,
                hint="give it an id",
            )
        if self.committer is not None and entries.size > MAX_CHANGE_BYTES:
            raise StateTooLargeError(
                f"save to {self.name!r} refused: {entries.size:,} bytes, at most {MAX_CHANGE_BYTES:,} at once",
                actor=self.name,
                size=entries.size,
                limit=MAX_CHANGE_BYTES,
                hint="save them in several calls",
            )
        if self.limit is not None:
            self._check_budget(self.limit[0], dict(zip(ids, entries.states, strict=True)))
        if self.committer is None:
            return ids, next_id, None
        return ids, next_id, pack_upsert(ids, entries.states, entries.vectors.values)

    def _check_budget(self, limit: int, new: dict[Id, bytes]) -> None:
        """Refuse what would make all states and vectors larger than the budget of this actor."""
        old = {id: state for id in new if (state := self.states.get(id)) is not None}
        count = len(self.states) + len(new) - len(old)
        size = self.states.size + sum(map(len, new.values())) - sum(map(len, old.values()))
        size += count * _FLOAT_BYTES * self.dimension
        if size > limit:
            raise self.too_large(size)

    def _apply(self, ids: list[Id], entries: Entries) -> None:
        assert self.index is not None
        self.index.upsert(ids, entries.vectors)
        self.states.set(ids, entries.states)

    def _stage(self, data: Packed | None, next_id: int) -> None:
        self.next_id = next_id
        self.version += 1
        self.saved_at = time()
        if self.committer is not None:
            self.stage(Record(self.version, self.epoch, self.saved_at, cast(Any, data), self.codec.version))

    def _wrote(self, count: int) -> None:
        assert self.upkeep is not None
        self.upkeep.wrote(count)

    # The messages of every actor

    def encode(self, state: Any) -> tuple[Any, bytes | None]:
        """Return a state that is told to be saved: as it is kept, or encoded only, if it is yet to be embedded."""
        embedding = own_embedding(state)
        if embedding is None:
            return None, self.codec.encode(state)
        return self.entries([state], None, [embedding]), None

    def put(self, value: Any, data: bytes | None, if_version: int | None = None, seen: int | None = None) -> Any:
        """Save an encoded state under a new id; a coroutine of that if it is yet to be embedded."""
        return self.save(value, if_version) if data is None else self._embed_and_save(data, if_version)

    async def _embed_and_save(self, data: bytes, if_version: int | None) -> int:
        state = self.codec.decode(data)
        return self.save(self.entries([state], None, await self.embedder.of([state])), if_version)

    def form(self) -> NoReturn:
        raise no_such(self.name, "load")

    form_or_none = form

    def history(self, limit: int | None) -> NoReturn:
        raise no_such(self.name, "history")

    def apply(self, *_: Any, **__: Any) -> NoReturn:
        raise no_such(self.name, "update")

    def patch(self, *_: Any, **__: Any) -> NoReturn:
        raise no_such(self.name, "patch")

    def delete(self) -> NoReturn:
        raise no_such(self.name, "delete without an id")

    def part(self, path: tuple[str, ...]) -> NoReturn:
        raise no_such(self.name, "load of a part")

    def put_part(self, *_: Any, **__: Any) -> NoReturn:
        raise no_such(self.name, "save of a part")

    def apply_part(self, *_: Any, **__: Any) -> NoReturn:
        raise no_such(self.name, "update of a part")


def no_such(name: str, operation: str) -> UnsupportedOperationError:
    """Return the error for an operation on one state, where there are many."""
    return UnsupportedOperationError(
        f"{operation} of {name!r}: it keeps many states, found by their vectors",
        actor=name,
        hint="search: `await ref.search(vector, k)`; or `get(id)`, `save(state, id=id)`, `delete(id)`",
    )
