"""What one actor knows about its stored state, and what it therefore may write.

Invariants
  1. A write names the stamp (version and mark) that it builds on; the server compares as it writes.
  2. A shared writer draws a new mark for each write; an exclusive owner keeps the one that it claimed with.
  3. Whoever claims or settles a state gives it a new mark: a write that was sent before can't succeed after.
  4. (version, writer) names one write of the world: the proof of whether it happened.

| the server found | shared | exclusive |
|---|---|---|
| the stamp | written | written |
| the version and writer of this very write | written before, by the same call sent twice | the same |
| the same version and writer, another mark | settled in between: sent once more | ownership lost |
| another version or writer | version conflict | ownership lost |
| nothing, or an older version under its own mark | version conflict | the server lost writes |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from secrets import randbits
from typing import Any, Literal

import msgspec

from dgents.backends.redis_record import MAX_REQUESTS, Header, decode_header, encode, stamp_of
from dgents.runtime.contract import Ownership, Record, Write
from dgents.runtime.errors import DgentError, OwnershipLostError, StorageError, VersionConflictError

EVERY_VERSION = 2**40  # versions kept: all, until who keeps them takes some away
_MASK = (1 << 64) - 1
_ABSENT = Header(0, 0, 0, 0)

Verdict = DgentError | None | Literal["again"]


class Sent(msgspec.Struct, frozen=True, gc=False):
    """A write that went out.

    Attributes:
        header: the one that it makes.
        expected: the stamp that it builds on; empty for an absent state.
    """

    header: Header
    expected: bytes

    @property
    def version(self) -> int:
        return self.header.version

    def is_in(self, header: Header | None) -> bool:
        """Say whether this write is what a stored value holds."""
        made = self.header
        return header is not None and (header.version, header.writer) == (made.version, made.writer)


class Fence:
    """The stamp that an actor's writes build on.

    Attributes:
        sent: the last write that went out.
        in_doubt: whether it went out and nobody knows what became of it.

    Args:
        ttl: in milliseconds; 0: for ever. A state that may expire may also begin again at version 1.
        on_went_back: called with (had, has) where the server holds a version below one that it acknowledged.
    """

    def __init__(
        self,
        name: str,
        key: str,
        ownership: Ownership,
        *,
        ttl: int,
        max_history: int,
        on_went_back: Callable[[int, int], None],
    ) -> None:
        self._name = name
        self._key = key
        self._exclusive = ownership == "exclusive"
        self._ttl = ttl
        self._max_history = max_history
        self._on_went_back = on_went_back
        self._mark = randbits(64)
        self._claims = 0
        self._seen: Header | None = None
        self._stamp = b""  # of what was seen
        self._looked = False
        self._written = 0
        self._is_owner = False
        self.sent: Sent | None = None
        self.in_doubt = False

    def new_mark(self) -> int:
        """Return a mark that nobody has used; an exclusive owner claims with it."""
        self._mark = (self._mark + 1) & _MASK
        self._is_owner = False
        return self._mark

    def claimed(self, header: Header) -> int:
        """Take note that the state is claimed under the newest mark, and return the epoch."""
        self._claims = header.claims
        self._is_owner = True
        self.in_doubt = False
        self.see(header)
        return self._claims

    def still_owns(self, header: Header | None) -> bool:
        """Say whether the claim holds, and no write is under way that might still arrive."""
        return self._is_owner and not self.in_doubt and header is not None and header.mark == self._mark

    def see(self, header: Header | None) -> None:
        """Take note of what is stored now; None: nothing."""
        self._seen = header
        self._stamp = header.stamp if header else b""
        self._looked = True
        version = header.version if header else 0
        if version < self._written:
            had, self._written = self._written, version
            if not self._ttl:
                self._on_went_back(had, version)

    def has_seen(self, stamp: bytes) -> bool:
        """Say whether a stamp is the one that this actor saw or sent last."""
        return stamp == self._stamp or (self.sent is not None and stamp == self.sent.header.stamp)

    def knows(self, base: int) -> bool:
        """Say whether the stamp of the version ``base`` is known, so that a write may build on it."""
        if self._exclusive:
            return True
        return self._looked and base == (self._seen.version if self._seen else 0)

    def pack(self, write: Write) -> tuple[bytes, bytes, int | list[Any]]:
        """Return the stamp that a write expects, its value, and its extras as the script takes them."""
        newest, before = write.records[-1], self._seen or _ABSENT
        if self._exclusive:
            mark, claims, expected = self._mark, self._claims, stamp_of(write.base, self._mark)
        else:
            mark, claims, expected = self.new_mark(), before.claims, self._stamp
        added = write.records[-self._max_history :] if self._max_history else []
        oldest = self._oldest_after(added, newest.version, before.oldest)
        requests = before.requests + len(write.requests)
        header = Header(newest.version, mark, claims, mark, oldest, requests)
        value = encode(newest, header)
        self.sent = Sent(header, expected)
        self.in_doubt = True
        if not (oldest or before.oldest or requests):
            return expected, value, self._ttl
        history: list[Any] = []
        for record in added:
            history += (record.version, encode(record, header))
        remembered = [msgspec.msgpack.encode(request) for request in write.requests[-MAX_REQUESTS:]]
        parts = (bool(before.oldest), min(before.requests, MAX_REQUESTS))
        return expected, value, [self._ttl, self._max_history, history, remembered, MAX_REQUESTS, *parts]

    def _oldest_after(self, added: Sequence[Record], newest: int, oldest: int) -> int:
        """Return the oldest version that the history must have once ``added`` are in it, up to ``newest``.

        The history stays where it is when somebody writes who keeps none; from there on it may have a gap.
        """
        if not added:
            return newest + 1 if oldest else 0
        if self._max_history >= EVERY_VERSION:
            return newest
        return max(oldest or added[0].version, newest - self._max_history + 1)

    def wrote(self) -> None:
        """Take note that the write that was sent is stored."""
        sent = self.sent
        assert sent is not None, "invariant 1: nothing is written that was not packed here"
        self._written = sent.version
        self.in_doubt = False
        self._seen, self._stamp = sent.header, sent.header.stamp

    def judge(self, write: Write, found: bytes) -> Verdict:
        """Say what became of a write in whose place ``found`` was stored; see the table above."""
        self.in_doubt = False
        try:
            header = decode_header(found, self._key) if found else None
        except DgentError as error:
            return error
        assert self.sent is not None, "invariant 1"
        if self.sent.is_in(header):
            self.wrote()
            return None
        if self._exclusive:
            return self._lost(write, header)
        before = self._seen
        self.see(header)
        version = header.version if header else 0
        same_writer = version == 0 or (header and before and header.writer == before.writer)
        return "again" if version == write.base and same_writer else self.conflict(write)

    def refused(self) -> None:
        """Take note that the server did not execute the write that was sent."""
        self.in_doubt = False

    def conflict(self, write: Write) -> VersionConflictError:
        """Return the refusal of a write that does not build on what is stored now."""
        actual = self._seen.version if self._seen else 0
        message = None
        if actual == write.base:
            message = f"version {actual} of {self._name!r} was lost and written anew with other contents"
        return VersionConflictError(write.base, actual, message=message, actor=self._name, key=self._key)

    def _lost(self, write: Write, header: Header | None) -> StorageError:
        if header is not None and header.mark != self._mark:
            return OwnershipLostError(
                f"{self._name!r} has a newer owner, of epoch {header.claims}; this one had {self._claims}",
                actor=self._name,
                key=self._key,
            )
        version = header.version if header else 0
        return StorageError(
            f"the Redis server lost writes of {self._name!r}: it holds version {version}, "
            f"and acknowledged version {write.base} before",
            actor=self._name,
            key=self._key,
            hint="the actor has to open its state again; docs/redis.md tells how a server loses writes",
        )
