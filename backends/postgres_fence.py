"""What one actor knows about its stored state, and what it therefore may write.

Invariants
  1. A write names the mark that it builds on; the server compares as it writes.
  2. Each write, claim and settlement draws a new mark, which nobody has used before.
  3. So who knows the mark knows the whole head, and a write that was sent before a claim or a settlement can't succeed
     after it, even if it is still on its way.
  4. Each version keeps the mark of its write: the proof of whether that write happened.

A version alone would not do: a server that lost its newest transactions gives the same version to other contents.

| the server refused, and has | shared | exclusive |
|---|---|---|
| a higher epoch, or a version that is not older | version conflict | ownership lost |
| an older version, or nothing | version conflict | the server lost writes |
"""

from __future__ import annotations

from collections.abc import Callable
from secrets import randbits
from typing import NamedTuple

from dgents.runtime.contract import Ownership, Record, Write
from dgents.runtime.errors import DgentError, OwnershipLostError, StorageError, VersionConflictError


class Head(NamedTuple):
    """What a state's head row says.

    Attributes:
        oldest: the oldest version that is kept.
        requests: how many request ids were ever remembered.
        mark: of the last write, claim or settlement; 0: there is no such row.
    """

    version: int
    epoch: int
    oldest: int
    requests: int
    mark: int


ABSENT = Head(0, 1, 1, 0, 0)


class Found(NamedTuple):
    """What is stored of a state."""

    head: Head
    record: Record | None


class Sent(NamedTuple):
    """A write that went out: the head that it builds on, and the one that it makes."""

    before: Head
    after: Head


class Fence:
    """The head that an actor's writes build on.

    Attributes:
        seen: the head as it was last read or written; None: never looked.
        sent: the last write that went out.
        stored: whether it was; None: in doubt.

    Args:
        on_went_back: called with (had, has) where the server holds a version below one that it acknowledged.
    """

    def __init__(
        self, actor: str, key: str, ownership: Ownership, *, kept: int, on_went_back: Callable[[int, int], None]
    ) -> None:
        self._actor = actor
        self._key = key
        self._is_exclusive = ownership == "exclusive"
        self._kept = kept
        self._on_went_back = on_went_back
        self._acknowledged = 0
        self.seen: Head | None = None
        self.sent: Sent | None = None
        self.stored: bool | None = False

    def see(self, head: Head) -> None:
        """Take note of what is stored now."""
        self.seen = head
        if head.version < self._acknowledged:
            had, self._acknowledged = self._acknowledged, head.version
            if self.stored:
                self.sent, self.stored = None, False  # the next version of that number is another one
            self._on_went_back(had, head.version)

    def has_seen(self, mark: int) -> bool:
        """Say whether a mark is of what this actor saw or sent last."""
        return mark in (self.seen.mark if self.seen else 0, self.sent.after.mark if self.sent else 0)

    def knows(self, base: int) -> bool:
        """Say whether the head of the version ``base`` is known, so that a write may build on it."""
        return self.seen is not None and self.seen.version == base

    def send(self, write: Write) -> Sent:
        """Return the heads before and after a write that goes out now."""
        assert self.seen is not None, "invariant 1: the caller has looked"
        last, before = write.records[-1], self.seen
        after = Head(
            last.version,
            before.epoch if before.mark else last.epoch,
            max(before.oldest, last.version - self._kept + 1),
            before.requests + len(write.requests),
            new_mark(),
        )
        self.sent, self.stored = Sent(before, after), None
        return self.sent

    def wrote(self) -> None:
        """Take note that the write that was sent is stored."""
        assert self.sent is not None, "only what was sent is stored"
        self.seen, self.stored = self.sent.after, True
        self._acknowledged = self.seen.version

    def refuse(self) -> None:
        """Take note that the write that was sent was not stored, and never will be."""
        self.stored = False

    def judge(self, base: int, head: Head) -> DgentError:
        """Return the refusal of a write on ``base`` in whose place ``head`` was found."""
        known = self.seen
        self.refuse()
        self.see(head)
        if not self._is_exclusive:
            message = None
            if head.version == base:
                message = f"version {base} of {self._actor!r} was lost and written anew, or settled, by another process"
            return VersionConflictError(base, head.version, message=message, actor=self._actor, key=self._key)
        epoch = known.epoch if known else 0
        if head.epoch <= epoch and (head.version < base or not head.mark):
            return StorageError(
                f"the server lost writes of {self._actor!r}: it holds version {head.version}, "
                f"and acknowledged version {base} before",
                actor=self._actor,
                key=self._key,
                hint="the state has to be opened again; look at its synchronous_commit, its standbys and its disk",
            )
        what = f"a newer owner claimed it (epoch {head.epoch}, this one has {epoch})"
        if head.epoch == epoch:
            what = f"a shared writer took it to version {head.version}, this owner knew version {base}"
        return OwnershipLostError(
            f"the state {self._key!r} is not {self._actor!r}'s any more: {what}",
            actor=self._actor,
            key=self._key,
            hint="nothing was written; load it again, or use ownership='shared' in every process that writes it",
        )


def new_mark() -> int:
    """Return a mark that nobody has used: positive, and so random that it never comes twice."""
    return randbits(62) + 1
