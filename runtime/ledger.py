"""Where reminders are kept: one state a store, as data; and what a runtime knows of it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import anyio
import msgspec

from dgents.runtime.alarms import now
from dgents.runtime.contract import Agent, Resources
from dgents.runtime.phase import Phase
from dgents.runtime.saved_message import SavedMessage

if TYPE_CHECKING:
    from dgents.runtime.ref import Ref


class Reminder(msgspec.Struct, frozen=True):
    """One reminder, as the ledger keeps it. Times are seconds since 1970, UTC."""

    id: str
    due: float
    every: float | None
    message: SavedMessage

    @property
    def request_id(self) -> str:
        """Names this delivery, so that a state takes it once."""
        return f"dgents.remind/{self.id}/{self.due!r}"

    def following(self) -> Reminder | None:
        """Return the reminder after this delivery; what fell due several times meanwhile was delivered once."""
        if self.every is None:
            return None
        missed = max(0, math.floor((now() - self.due) / self.every))
        return msgspec.structs.replace(self, due=self.due + (missed + 1) * self.every)


Entries: TypeAlias = dict[str, dict[str, Reminder]]  # by actor and by name
Edit: TypeAlias = Callable[[Reminder | None], Reminder | None]


class Change(NamedTuple):
    """What became of the reminder of one name."""

    actor: str
    name: str
    before: Reminder | None
    after: Reminder | None


@dataclass(frozen=True)
class Ledger:
    """Where an agent's reminders are kept; agents of one store describe the same one.

    Attributes:
        agent: of the state that holds them, with the schema `Entries`.
        exists: says, without making anything, whether there may be one.
    """

    agent: Agent
    exists: Callable[[Resources], Awaitable[bool]]


class OpenLedger:
    """A ledger that this runtime has looked at.

    Attributes:
        ref: of the actor that owns it; None while the store has none, and for states in memory.
        entries: what it held when it was last read or changed from here.

    Invariant: ``entries`` never goes back to an older version, in whatever order the replies arrive.
    """

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.ref: Ref[Entries] | None = None
        self.entries: Entries = {}
        self._version = 0
        self._taken = 0  # how many replies

    @property
    def is_shared(self) -> bool:
        return self.ref is not None and self.ref._cell.is_shared

    @property
    def is_open(self) -> bool:
        return self.ref is not None and self.ref._cell.phase is not Phase.STOPPED

    def get(self, actor: str, name: str) -> Reminder | None:
        """Return the reminder of a name, as far as is known here."""
        return self.entries.get(actor, {}).get(name)

    async def read(self, ref: Ref[Entries]) -> list[Change]:
        """Read it, and return what is other than it was known here."""
        cell, taken = ref._live(), self._taken
        form, version = await cell.call(cell.look)
        return self._take({} if form is None else form.decode(cell.codec), version, taken)

    async def change(self, actor: str, name: str, edit: Edit) -> list[Change]:
        """Put what ``edit`` makes of a reminder in its place, durably; return what is other than it was known here."""
        if self.ref is None:  # of states in memory
            before = self.get(actor, name)
            after = edit(before)
            _put(self.entries, actor, name, after)
            return [Change(actor, name, before, after)]

        def changed(entries: Entries) -> Entries:
            mine = dict(entries.get(actor, {}))
            entries = {**entries, actor: mine}
            _put(entries, actor, name, edit(mine.get(name)))
            return entries

        cell, taken = self.ref._live(), self._taken
        entries, version = await cell.call(cell.apply_queued, changed, (), {})
        return self._take(entries, version, taken)

    def drop(self, actor: str, name: str) -> None:
        """Forget a reminder of states in memory."""
        _put(self.entries, actor, name, None)

    def _take(self, entries: Entries, version: int, taken: int) -> list[Change]:
        """Take note of what it holds, unless something newer was taken since the question was asked."""
        if version < self._version and taken != self._taken:
            return []
        self._taken += 1
        self._version = version
        before, self.entries = self.entries, entries
        return list(_changes(before, entries))


def _put(entries: Entries, actor: str, name: str, reminder: Reminder | None) -> None:
    mine = entries.setdefault(actor, {})
    if reminder is not None:
        mine[name] = reminder
    else:
        mine.pop(name, None)
    if not mine:
        del entries[actor]


def _changes(before: Entries, after: Entries) -> Iterator[Change]:
    for actor in before.keys() | after.keys():
        old, new = before.get(actor, {}), after.get(actor, {})
        for name in old.keys() | new.keys():
            if old.get(name) != new.get(name):
                yield Change(actor, name, old.get(name), new.get(name))
