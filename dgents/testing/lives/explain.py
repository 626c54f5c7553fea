"""One serial order that accounts for everything that was seen, or none.

The writes and reads of a script are intervals; an actor is correct if each can be given a moment in its interval such
that, one after the other, they make what was found (linearizability; Herlihy and Wing, 1990). The search is Wing and
Gong's: take one of the calls that may come next, try it, go back. The numbers in the versions make it nearly linear:
a version that is kept names the write that made it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dgents.testing.lives.operations import AFTER, NotThere, State, normal
from dgents.testing.lives.record import Record

_MOST_TRIES = 20_000  # a second, in which nothing else happens
_FOREVER = float("inf")
_SOME = 0  # a version, but nobody can say which


@dataclass(frozen=True)
class Found:
    """What is there: the version, the state, and what is kept of earlier versions.

    ``window`` is how many versions are kept, the current one among them; of those, ``kept`` has all that were not
    deletions.
    """

    version: int = 0
    state: State = None
    kept: Mapping[int, State] = field(default_factory=dict)
    window: int = 1

    def at(self, version: int) -> tuple[bool, State]:
        """Return whether it is known what a version was, and what."""
        if version == self.version:
            return True, self.state
        if version > self.version - self.window:
            return True, self.kept.get(version)
        return False, None


class Undecided(Exception):
    """The search was given up: too many orders are possible."""


class Explanation:
    """A search for an order in which ``records`` lead from one finding to the next.

    Args:
        before: where it begins; what it kept must be kept still.
        placed: the version that each write with a request id has made so far, and its state; it grows.
        lossy: acknowledged writes that a crash may have taken, each with all that came after it.
    """

    def __init__(
        self,
        before: Found,
        records: Sequence[Record],
        after: Found,
        placed: dict[int, tuple[int, State]],
        lossy: frozenset[int] = frozenset(),
    ) -> None:
        self._after = after
        self._window = after.window
        self._oldest = max(after.version - after.window + 1, 1)  # from here on it is known what each version was
        self._items = _items(after.at(self._oldest)[1])
        self._records = [record for record in records if record.writes or record.saw is not None]
        self._lossy = lossy
        self._placed = dict(placed)
        self._chain: dict[int, State] = dict(before.kept) | {before.version: before.state}
        self._undone = dict.fromkeys(range(len(self._records)))
        self._tried: set[tuple[frozenset[int], int, str, str]] = set()
        self._tries = 0
        self.open: list[Record] = []  # what did not happen, and need not have
        self.ok = self._search(before.version, before.state)
        if self.ok:
            placed.update(certain := self._what_is_certain(placed))
            # A reminder that left no trace need not have rung, and may ring yet.
            self.open += [
                record for record in self._records if record.do == "remind" and certain.get(record.n) == (_SOME, None)
            ]

    def _what_is_certain(self, before: Mapping[int, tuple[int, State]]) -> dict[int, tuple[int, State]]:
        """Return what versions writes have made; ``_SOME`` where nothing is left of it, and nobody was told."""
        told = {record.n for record in self._records if record.saw is not None}
        return {
            n: made if n in before or n in told or self._after.at(made[0])[0] else (_SOME, None)
            for n, made in self._placed.items()
        }

    def _search(self, version: int, state: State) -> bool:
        reads = self._read_all(version, state)
        if version == self._after.version and self._is_end(state):
            self.open = [self._records[index] for index in self._undone]
            return True
        key = (frozenset(self._undone), version, repr(state), self._remembered())
        self._tries += 1
        if self._tries > _MOST_TRIES:
            raise Undecided
        if key not in self._tried:
            self._tried.add(key)
            for index, made, then in sorted(self._candidates(version, state), key=self._preference):
                if self._try(index, version, made, then):
                    return True
        for index in reads:
            self._undone[index] = None
        return False

    def _remembered(self) -> str:
        """Return what those that are left may yet be shown of how it came to be as it is."""
        left = [self._records[index] for index in self._undone]
        placed = {record.n: self._placed[record.n] for record in left if record.request and record.n in self._placed}
        looks_back = any(record.saw is not None and record.saw[0] in ("history", "old") for record in left)
        return repr((placed, self._chain if looks_back else None))

    def _try(self, index: int, version: int, made: State, then: int) -> bool:
        record = self._records[index]
        del self._undone[index]
        if then == version:
            if self._search(version, made):
                return True
        else:
            before = self._placed.get(record.n)
            self._placed[record.n] = (then, made)
            self._chain[then] = made
            if self._search(then, made):
                return True
            del self._chain[then]
            if before is None:
                del self._placed[record.n]
            else:
                self._placed[record.n] = before
        self._undone[index] = None
        return False

    def _horizon(self, *, after_crash: bool = False) -> float:
        """Return the moment by which the first of those that must have happened, or outlive a crash, was answered."""
        ends = (
            record.end
            for record in (self._records[index] for index in self._undone)
            if record.end is not None
            and record.fate in ("must", "seen")
            and not (after_crash and record.start in self._lossy)
        )
        return min(ends, default=_FOREVER)

    def _read_all(self, version: int, state: State) -> list[int]:
        """Take the reads that show what is there now; to take one as soon as it fits is never wrong."""
        taken: list[int] = []
        progress = True
        while progress:
            progress = False
            horizon = self._horizon()
            for index in list(self._undone):
                record = self._records[index]
                if record.start > horizon or not self._is_read(record):
                    continue
                if self._fits(record, version, state):
                    del self._undone[index]
                    taken.append(index)
                    progress = True
        return taken

    def _is_read(self, record: Record) -> bool:
        return record.fate == "seen" or (record.request and record.n in self._placed)

    def _fits(self, record: Record, version: int, state: State) -> bool:
        if record.fate != "seen":  # sent again under its request id: the first answer is given again
            placed = self._placed[record.n]
            return record.saw is None or placed[0] == _SOME or _shows(record.saw, *placed)
        assert record.saw is not None
        kind, value = record.saw
        if kind == "absent":
            return state is None
        if kind == "conflict":
            return bool(value == (0 if state is None else version))
        if kind == "history":
            kept = [self._chain.get(at) for at in range(max(version - self._window, 0) + 1, version + 1)]
            return bool(value == [one for one in kept if one is not None])
        if kind == "old":
            at, old = value
            is_kept = max(version - self._window, 0) < at <= version
            return bool(old == (self._chain.get(at) if is_kept else None))
        return _shows(record.saw, version, state)

    def _candidates(self, version: int, state: State) -> Iterator[tuple[int, State, int]]:
        """Yield the writes that may come next, and the state and version that each makes."""
        horizons = {False: self._horizon(), True: self._horizon(after_crash=True)}  # a reminder rings afterwards, too
        for index in list(self._undone):
            record = self._records[index]
            if record.start > horizons[record.do == "remind"]:
                continue
            if not record.writes or (record.request and record.n in self._placed):
                continue
            try:
                made = AFTER[record.do](state, record.n)
            except NotThere:
                if record.do != "delete":
                    continue
                if not record.request:  # which makes no version, but for its id to be stored with
                    yield index, None, version
                    continue
                made = None
            if version + 1 > self._after.version:
                continue
            known, expected = self._after.at(version + 1)
            if (known and made != expected) or not self._can_lead(made, version + 1):
                continue
            if record.saw is None or _shows(record.saw, version + 1, made):
                yield index, made, version + 1

    def _preference(self, candidate: tuple[int, State, int]) -> tuple[bool, bool, int]:
        """Say which write to try first: one that leads to what was found, and one that must have happened."""
        index, made, version = candidate
        common = self._common(made, version)
        return common is None, self._records[index].fate != "must", -(common or 0)

    def _common(self, state: State, version: int) -> int | None:
        """Return how many items of the oldest known version a state before it has; None if it has others as well.

        Without it a burst that nobody was answered about has as many orders as it has writes.
        """
        items = _items(state) if version < self._oldest else []
        return len(items) if items == self._items[: len(items)] else None

    def _can_lead(self, state: State, version: int) -> bool:
        """Say whether versions enough are left: each adds one item at most, and what has others begins anew."""
        if version >= self._oldest:
            return True
        common = self._common(state, version)
        missing = len(self._items) + 1 if common is None else len(self._items) - common
        return missing <= self._oldest - version

    def _is_end(self, state: State) -> bool:
        return state == self._after.state and all(
            record.fate == "may" or record.start in self._lossy
            for record in (self._records[index] for index in self._undone)
        )


def _items(state: State) -> list[int]:
    return list(state["items"]) if state is not None else []


def _shows(saw: tuple[str, Any], version: int, state: State) -> bool:
    """Say whether what a call saw is this version, this state."""
    kind, value = saw
    if kind == "version":
        return bool(value == version)
    if kind == "state":
        return bool(normal(value) == state)
    if kind == "items":
        return state is not None and bool(value == state["items"])
    return bool((value[0], normal(value[1])) == (version, state))  # a snapshot
