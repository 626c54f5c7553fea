"""The events of one stream in Redis: a Redis Stream with one entry an event.

It is the history of a state (docs/redis.md) of which nothing is dropped: ``dgents:{events/KEY}:history``, with the
entry ``VERSION-0`` for an event; the state itself is the newest event. Claims, fencing, request ids and checksums are
those of every state in Redis. Beside it, ``:latest`` and ``:floor`` hold the newest state and the one in front of the
oldest event that is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import msgspec

from dgents.backends.chain import GENESIS, broken
from dgents.backends.event_codec import StoredEvent, from_data, link_in
from dgents.backends.event_log import (
    Chunks,
    LogState,
    StateSnapshot,
    check_numbers,
    framed,
    pack_snapshot,
    unframed,
    unpack_snapshot,
)
from dgents.backends.redis import RedisAgent
from dgents.backends.redis_fence import EVERY_VERSION
from dgents.backends.redis_record import decode
from dgents.backends.seal import Seal
from dgents.runtime.contract import Ownership, Record, Request, Resources
from dgents.runtime.errors import StateCorruptionError, StorageError

if TYPE_CHECKING:
    from dgents.backends.redis_store import RedisStore

_LATEST, _FLOOR = b":latest", b":floor"
_CHUNK = 1000  # events in one reply


class RedisLog:
    """One stream's events at ``url``. The newest owner wins: an older one writes nothing more.

    Args:
        key: what the stream is called there.
        actor: its name, for errors.
        seal: makes the head of a chain, which is the state itself here.
    """

    ownership: Ownership = "exclusive"

    def __init__(self, url: str, key: str, actor: str, seal: Seal, resources: Resources) -> None:
        agent: RedisAgent[Any] = RedisAgent(url, key=f"events/{key}", max_history=EVERY_VERSION, ownership="exclusive")
        self.inner = agent.backend(actor, resources)
        self.place = agent.place.safe
        self.key = key
        self.actor = actor
        self._seal = seal

    @property
    def store(self) -> RedisStore | None:
        """The store that appends go to, one for all actors of the server; None while closed."""
        return self.inner.store

    async def open(self, least: int) -> LogState:
        """Claim the stream with the next epoch, and find its ends; raises as `RedisBackend.open`."""
        opened = await self.inner.open()
        try:
            record = opened.record
            version = record.version if record is not None else 0
            await self._check_newest(version)
            floor = await self._kept(_FLOOR)
            latest = await self._kept(_LATEST)
            at, floor_link = (floor.version, floor.link or GENESIS) if floor is not None else (0, GENESIS)
            last = self._event(record) if record is not None and version > at else None
        except BaseException:
            await self.inner.close()
            raise
        link = link_in(record.data) if record is not None else None
        heads = (self._seal.make(version, link, at, floor_link),) if link is not None else None
        return LogState(version, last, opened.epoch, floor, latest, heads)

    def put(self, stored: StoredEvent, event: object) -> None:
        raise AssertionError("a server takes events by commit")

    def chunks(self, after: int, until: int) -> Chunks:
        """Return an iterator over the events from ``after`` + 1 to ``until``, in order; each step reads once."""

        async def step() -> Sequence[StoredEvent] | None:
            nonlocal after
            if after >= until:
                return None
            command = "XRANGE", self.inner.keys.history, f"{after + 1}-0", f"{until}-0", "COUNT", _CHUNK
            chunk = await anyio.to_thread.run_sync(self._decode, await self._ask(*command))
            if not chunk:
                raise broken(self.actor, after + 1, "it is missing")
            check_numbers(self.actor, chunk, after + 1)
            after = chunk[-1].version
            return chunk

        return Chunks(step)

    async def requests(self) -> list[Request]:
        return await self.inner.requests()

    def remember(self, requests: Sequence[Request]) -> None:
        """Nothing to do: the server remembers them."""

    async def keep(self, snapshot: StateSnapshot) -> None:
        """Store the newest snapshot."""
        await self._ask("SET", self.inner.keys.state + _LATEST, framed(pack_snapshot(snapshot, self._seal)))

    async def seal(self, head: bytes) -> None:
        """Nothing to do: the state is the head."""

    async def compact(self, floor: StateSnapshot, head: bytes | None) -> None:
        """Store the floor, then remove the events in front of it; what an owner of before removes is as old."""
        await self._ask("SET", self.inner.keys.state + _FLOOR, framed(pack_snapshot(floor, self._seal)))
        newest = await self.inner.read()
        oldest = min(floor.version + 1, newest.version if newest is not None else 0)
        await self._ask("XTRIM", self.inner.keys.history, "MINID", "=", f"{oldest}-0")

    async def close(self) -> None:
        """Let go of the stream."""
        await self.inner.close()

    async def _check_newest(self, version: int) -> None:
        """Check that the log ends where the state does.

        Raises:
            StateCorruptionError: it does not; ``event`` is the first one that is missing, or too much.
        """
        newest = await self._ask("XREVRANGE", self.inner.keys.history, "+", "-", "COUNT", 1)
        found = int(newest[0][0].split(b"-")[0]) if newest else 0
        if found == version:
            return
        now = await self.inner.read()
        if (now.version if now is not None else 0) != version:
            return  # a newer owner appends, and this one will be told so
        what = f"its log ends at event {found}, its newest state is that of event {version}"
        raise broken(self.actor, min(found, version) + 1, f"{what}: the server lost data, or an eviction took it")

    async def _kept(self, name: bytes) -> StateSnapshot | None:
        found = await self._ask("GET", self.inner.keys.state + name)
        content = unframed(found) if found is not None else None
        if content is not None:
            return unpack_snapshot(content, self.actor)
        if found is None or name == _LATEST:  # without that one, more is folded
            return None
        raise StateCorruptionError(
            f"the state of {self.actor!r} in front of the events that were compacted is damaged",
            actor=self.actor,
            hint="it was left as it is; restore a copy",
        )

    async def _ask(self, *command: Any) -> Any:
        store = self.inner.store
        if store is None:
            raise StorageError(f"the stream {self.actor!r} is not open", actor=self.actor, key=self.key)
        return await store.ask(self.inner.keys, *command)

    def _decode(self, entries: list[Any]) -> list[StoredEvent]:
        records = [decode(fields[1], self.key)[1] for _, fields in entries]
        return [self._event(record) for record in records if record is not None]

    def _event(self, record: Record) -> StoredEvent:
        try:
            return from_data(record)
        except msgspec.DecodeError as error:
            raise broken(self.actor, record.version, f"it is no event ({error})") from error
