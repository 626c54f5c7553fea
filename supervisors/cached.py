"""A cache and the store behind it, as one supervised actor.

The cache is the actor's own memory: a hit is a load from memory, and a write can't be in one half and not in the other,
because both halves are applied by one owner in one turn. (Two actors that message each other, as a pair, need a
protocol to agree after a crash; one owner does not.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import anyio
import anyio.to_thread
from msgspec.structs import replace

from dgents.backends.file_records import Chain, is_delta
from dgents.backends.volatile import VolatileAgent
from dgents.runtime.actor import Cell
from dgents.runtime.arguments import check_choice, check_seconds
from dgents.runtime.contract import Agent, Backend, Opened, Record, Request, Resources, Store
from dgents.runtime.errors import StateCorruptionError, StorageError, UnsupportedOperationError
from dgents.supervisors.flush import Flush
from dgents.supervisors.flush_journal import FlushJournal
from dgents.supervisors.wrapper import Wrapper
from dgents.supervisors.write_behind import WriteBehind

Policy = Literal["write-through", "write-behind"]


_SAME_TIME = 0.001  # seconds


class CachedAgent(Wrapper):
    """Keep the state of ``backend`` in memory, and write it through or behind.

    Args:
        cache: a `VolatileAgent`, the actor's memory; its ``initial`` is the state before anything was saved.
        backend: the agent whose store keeps the state.
        policy: ``"write-through"``: a write is acknowledged when the store has it; if the store fails, the cache
            is as it was. ``"write-behind"``: it is acknowledged at once, and stored as ``flush`` says.
        ttl: seconds after which a cached state is read from the store again; None: it stays until it changes.
        flush: when write-behind writes.

    Raises:
        ValueError: the policy is unknown, the cache is no VolatileAgent, write-behind on a shared store, or two
            caches that write behind with two journals.
    """

    def __init__(
        self,
        cache: VolatileAgent[Any],
        backend: Agent,
        *,
        policy: Policy = "write-through",
        ttl: float | None = None,
        flush: Flush | None = None,
    ) -> None:
        super().__init__(backend)
        if not isinstance(cache, VolatileAgent):
            raise ValueError(f"the cache is the actor's own memory: give a VolatileAgent, not {type(cache).__name__}")
        check_choice("policy", policy, get_args(Policy))
        if ttl is not None:
            check_seconds("ttl", ttl, default="; None keeps the state until it changes")
        if flush is not None and not isinstance(flush, Flush):
            raise TypeError(f"flush is {flush!r}; give a Flush(max_delay=...)")
        if flush is not None and policy != "write-behind":
            raise ValueError('flush= is for policy="write-behind"')
        self.cache = cache
        self.policy = policy
        self.ttl = ttl
        self.flush = flush if flush is not None else Flush()
        self.initial = cache.initial

    def backend(self, name: str, resources: Resources) -> Backend:
        """Make the backend of the actor ``name``; no I/O happens before `Backend.open`."""
        inner = self.inner.backend(name, resources)
        if self.policy == "write-through":
            return CachingBackend(inner, self.ttl)
        if inner.ownership == "shared":
            raise ValueError(
                f"write-behind of {name!r}: its store is shared, so others could write before the flush; "
                "give the backend ownership='exclusive'"
            )
        flush = self.flush
        if (behind := _behind_in(inner)) is not None:  # one memory, which is flushed once: what was promised of both
            inner, flush = behind.inner, flush.and_also(behind.flush)
        return WriteBehindBackend(inner, name, flush, resources, self.ttl)


class CachingBackend:
    """A backend whose actor may trust its memory, until ``ttl`` or until the store reports a foreign change."""

    trusted = True

    def __init__(self, inner: Backend, ttl: float | None) -> None:
        self.inner = inner
        self.ttl = ttl
        self.key = inner.key
        self.ownership = inner.ownership
        self.max_history = inner.max_history
        self.deltas = inner.deltas

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


class WriteBehindBackend(CachingBackend):
    """A backend that acknowledges before its store has the write."""

    def __init__(self, inner: Backend, actor: str, flush: Flush, resources: Resources, ttl: float | None) -> None:
        super().__init__(inner, ttl)
        self.actor = actor
        self.flush = flush
        self._resources = resources
        self._journal: FlushJournal | None = None
        self._behind: WriteBehind | None = None
        self.found: Record | None = None  # in the store, by its last opening, without its data
        self._stored = 0
        self._replayed: list[Record] = []
        self._requests: list[Request] = []

    @property
    def store(self) -> Store | None:
        """Where a write must be before it is acknowledged: the journal, if there is one."""
        return self._journal if self._journal is not None else self.inner.store

    async def open(self) -> Opened:
        """Open the store and the journal; what the journal has and the store has not is replayed."""
        opened = await self.reopen()
        if self.inner.store is None:
            raise UnsupportedOperationError(
                f"write-behind of {self.actor!r}: its backend stores nothing",
                actor=self.actor,
                hint="leave the cache out, or give a backend that keeps the state somewhere",
            )
        self._stored = self.found.version if self.found is not None else 0
        if self.flush.journal is None:
            return opened
        try:
            if self._journal is None:
                at_risk = self._behind is not None and self._behind.count > 0
                self._journal = await FlushJournal.acquire(self.flush.journal, self._resources, begin=not at_risk)
            records, requests = await self._journal.claim(self.actor)
            self._check_base(records, opened.record)
            newer = [record for record in records if record.version > self._stored]
            self._replayed = await anyio.to_thread.run_sync(self._whole, newer, opened.record)
            self._check_journaled()
        except BaseException:
            await self.inner.close()
            raise
        self._requests = [request for request in requests if request.version > self._stored]
        return Opened(self._replayed[-1], opened.epoch) if self._replayed else opened

    def _check_base(self, journaled: list[Record], stored: Record | None) -> None:
        """Refuse a journal whose store was written by somebody else since: one of the two would be overwritten.

        What was flushed before a crash is in the journal as it is in the store, or was trimmed from it.
        """
        if stored is None or not journaled or stored.version < journaled[0].version:
            return
        at = stored.saved_at  # some stores round it
        if any(one.version == stored.version and abs(one.saved_at - at) < _SAME_TIME for one in journaled):
            return
        newer = sum(one.version > stored.version for one in journaled)
        raise StorageError(
            f"the journal {self.flush.journal} holds acknowledged writes of {self.actor!r} up to version "
            f"{journaled[-1].version}, but somebody else has written version {stored.version} to its store since",
            actor=self.actor,
            retryable=False,
            outcome="not_started",
            hint=f"nothing was changed; open the state without the journal to keep what is stored ({newer} journaled "
            "versions are newer), and open a state with its journal first after a crash",
        )

    def _check_journaled(self) -> None:
        """Refuse to go on without what was acknowledged because the journal had it."""
        newest = self._replayed[-1].version if self._replayed else self._stored
        if self._behind is not None and self._behind.count and newest < self._behind.acknowledged:
            raise StateCorruptionError(
                f"the journal {self.flush.journal} was removed, replaced or cut while it was in use: version "
                f"{self._behind.acknowledged} of {self.actor!r} was acknowledged, and is not in it",
                path=str(self.flush.journal),
                actor=self.actor,
                hint=f"version {newest} is the newest one that is left; restore the journal, or start the actor anew",
            )

    def _whole(self, journaled: Sequence[Record], stored: Record | None) -> list[Record]:
        """Return what is kept of the journaled versions, each with its state; what is stored comes before them.

        Raises:
            StorageError: they are changes to a version that is in neither.
        """
        chain, whole = Chain(stored), []
        version = stored.version if stored is not None else 0
        for number, record in enumerate(journaled):
            if is_delta(record) and record.version != version + 1:
                raise StorageError(
                    f"the journal {self.flush.journal} holds acknowledged changes to version {record.version - 1} of "
                    f"{self.actor!r}, but its store has gone back to version {version}",
                    actor=self.actor,
                    retryable=False,
                    outcome="not_started",
                    hint="nothing was changed; restore the store from a backup that has this version",
                )
            chain.feed(record)
            version = record.version
            if number >= len(journaled) - max(self.max_history, 1):
                whole.append(chain.current())
        return whole

    def attach(self, cell: Cell) -> WriteBehind:
        """Return what writes behind for this actor."""
        self._behind = WriteBehind(cell, self, self.flush, self._stored)
        return self._behind

    def replay(self, cell: Cell) -> None:
        """Tell what the store has, and give over what only the journal has, to be flushed before long."""
        assert self._behind is not None
        self._behind.resume(self._stored, self._replayed, self._requests)
        if not self._replayed:
            self.forget_journal(cell)
        self._replayed = []

    async def reopen(self) -> Opened:
        """Open the store, closing it first if it failed in a flush or in a turn; the journal stays."""
        await self.inner.close()
        opened = await self.inner.open()
        self.found = opened.record and replace(opened.record, data=None)
        return opened

    def forget_journal(self, cell: Cell) -> None:
        """What the store has of this actor, the journal need not have any more."""
        journal = self._journal
        if journal is not None and self._behind is not None and journal.forget(self.actor, self._behind.stored):
            cell.loop.start(journal.trim)

    async def requests(self) -> list[Request]:
        assert self._behind is not None, "it is attached before any turn"
        async with self._behind.store_alone():
            stored = await self.inner.requests()
        return [*stored, *self._requests]

    async def close(self) -> None:
        """Let go of the store and of the journal."""
        await self.inner.close()
        if self._journal is not None:
            journal, self._journal = self._journal, None
            await journal.release(self._resources)


def _behind_in(backend: Backend) -> WriteBehindBackend | None:
    """Return the layer of a backend that writes behind, if one does."""
    layer: Any = backend
    while layer is not None and not isinstance(layer, WriteBehindBackend):
        layer = getattr(layer, "inner", None)
    return layer
