"""Durable reminders: messages that an actor gets later, also when its runtime was down meanwhile (Orleans' reminders).

The reminders of all actors of a store lie in one *ledger*: a state of that store, owned by an actor of the runtime's
own. Delivery is at least once: a reminder is crossed off after its turn is durable. Each delivery carries a request id
made of the reminder and its due time, so a state that is durable takes it once, whoever delivers it, and how often.

Invariants
  1. A reminder that is in the ledger and whose actor is here has one entry in the heap.
  2. The timer is set for the first entry of the heap.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import msgspec

from dgents.runtime.arguments import check_text
from dgents.runtime.commit import Failure
from dgents.runtime.contract import Agent, Resources
from dgents.runtime.errors import ActorError, DgentError, StorageError, UnsupportedOperationError
from dgents.runtime.mailbox import Envelope
from dgents.runtime.messages import Message
from dgents.runtime.phase import Phase
from dgents.runtime.saved_message import SavedMessage, load_message, save_message

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell
    from dgents.runtime.loops import Timer
    from dgents.runtime.ref import Ref
    from dgents.runtime.runtime import BaseRuntime

_LONGEST_SLEEP = 3600.0  # seconds; the wall clock may be set meanwhile
_FIRST_RETRY, _LAST_RETRY = 0.5, 60.0  # seconds
_LOOK_AGAIN = 10.0  # seconds between two looks into a ledger that other processes change too


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

    def following(self, now: float) -> Reminder | None:
        """Return the reminder after this delivery; what fell due several times meanwhile was delivered once."""
        if self.every is None:
            return None
        missed = max(0, math.floor((now - self.due) / self.every))
        return msgspec.structs.replace(self, due=self.due + (missed + 1) * self.every)


Entries = dict[str, dict[str, Reminder]]  # by actor and by name


@dataclass(frozen=True)
class Ledger:
    """Where an agent's reminders are kept; agents of one store describe the same one.

    Attributes:
        agent: of the state that holds them, with the schema `Entries`.
        exists: says, without making anything, whether there may be one.
    """

    agent: Agent
    exists: Callable[[Resources], Awaitable[bool]]


class _OpenLedger:
    """A ledger that this runtime has looked at.

    Attributes:
        ref: of the actor that owns it; None while the store has none, and for states in memory.
        entries: what it held when it was last read or changed from here.
    """

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.ref: Ref[Entries] | None = None
        self.entries: Entries = {}

    @property
    def is_shared(self) -> bool:
        return self.ref is not None and self.ref._cell.is_shared

    @property
    def is_open(self) -> bool:
        return self.ref is not None and self.ref._cell.phase is not Phase.STOPPED


class Reminders:
    """The reminders of one runtime's actors, and the timer for the first that falls due."""

    def __init__(self, runtime: BaseRuntime) -> None:
        self._runtime = runtime
        self._ledgers: dict[Any, _OpenLedger] = {}
        self._heap: list[tuple[float, str, str, Any]] = []  # due, actor, name, ledger's key
        self._timer: Timer | None = None
        self._looks: dict[Any, Timer] = {}  # of shared ledgers
        self._retries: list[Timer] = []  # of ledgers that could not be read
        self._delivering: set[str] = set()  # ids
        self._delays: dict[str, float] = {}  # of those that could not be delivered, by id

    # What users do

    async def remind(
        self, cell: Cell, name: str, message: Message[Any], at: datetime | None, every: float | timedelta | None
    ) -> None:
        """Keep a reminder, in place of the one of the same name; it is durable when this returns."""
        check_text(f"remind of {cell.name!r}", "name", name)
        reminder = Reminder(uuid4().hex, *_times(at, every), save_message(cell, message))
        key, opened = await self._open(cell)
        await self._change(opened, cell.name, lambda mine: {**mine, name: reminder})
        self._schedule(reminder.due, cell.name, name, key)

    async def forget(self, cell: Cell, name: str) -> None:
        """Strike a reminder out; one that is not there is forgotten already."""
        _, opened = await self._open(cell)
        if name in opened.entries.get(cell.name, ()):
            await self._change(opened, cell.name, lambda mine: {key: kept for key, kept in mine.items() if key != name})

    # Ledgers

    def _key(self, cell: Cell) -> tuple[Any, Ledger | None]:
        describe = getattr(cell.agent, "reminders", None)
        if describe is None:
            raise UnsupportedOperationError(
                f"{cell.name!r} can't be reminded: {type(cell.agent).__name__} has no place for reminders",
                actor=cell.name,
                hint="remind an actor with a state or a stream, and let that message this one",
            )
        ledger: Ledger | None = describe(cell.name)
        return (ledger.agent if ledger is not None else None), ledger

    async def _open(self, cell: Cell) -> tuple[Any, _OpenLedger]:
        """Return the ledger of an actor, made if there is none."""
        key, ledger = self._key(cell)
        opened = self._ledgers.setdefault(key, _OpenLedger())
        if ledger is not None and not opened.is_open:
            async with opened.lock:
                if not opened.is_open:
                    ref = await self._runtime.start_internal("reminders", ledger.agent)
                    opened.entries = await ref.load(default={})
                    opened.ref = ref
                    for actor, reminders in opened.entries.items():
                        for name, reminder in reminders.items():
                            self._schedule(reminder.due, actor, name, key)
                    if opened.is_shared and key not in self._looks:
                        self._looks[key] = self._runtime.loop.call_later(_LOOK_AGAIN, self._look, key)
        return key, opened

    async def _change(
        self, opened: _OpenLedger, actor: str, fn: Callable[[dict[str, Reminder]], dict[str, Reminder]]
    ) -> None:
        def change(entries: Entries) -> Entries:
            mine = fn(entries.get(actor, {}))
            others = {name: kept for name, kept in entries.items() if name != actor}
            return {**others, actor: mine} if mine else others

        if opened.ref is None:  # of states in memory
            opened.entries = change(opened.entries)
        else:
            opened.entries = await opened.ref.update(change, default={})

    def ledger(self, cell: Cell) -> Ledger | None:
        """Return where the reminders of an actor lie; None if in memory, or if it can't have any."""
        describe = getattr(cell.agent, "reminders", None)
        return describe(cell.name) if describe is not None else None

    async def discover(self, cell: Cell, ledger: Ledger) -> None:
        """Find the reminders of an actor that has just come here, and queue those that fell due."""
        opened = self._ledgers.get(ledger.agent)
        try:
            if opened is None or opened.ref is None or not opened.is_open:
                if not await ledger.exists(self._runtime.resources):
                    return
                _, opened = await self._open(cell)
            else:  # another process that had the actor may have changed them
                opened.entries = await opened.ref.load(default={})
        except DgentError as error:
            message = f"its reminders can't be read; tried again in {_LAST_RETRY:.0f} s"
            self._runtime.emit("warning", cell.name, message=message, error=error)
            self._retries.append(self._runtime.loop.call_later(_LAST_RETRY, self._discover_again, cell, ledger))
            return
        now = time.time()
        for name, reminder in opened.entries.get(cell.name, {}).items():
            if reminder.due <= now:
                self._deliver(cell, name, reminder, ledger.agent)
            else:
                self._schedule(reminder.due, cell.name, name, ledger.agent)

    def _discover_again(self, cell: Cell, ledger: Ledger) -> None:
        self._retries.pop(0)  # all have the same delay
        if not self._runtime.closing and cell.phase is not Phase.STOPPED:
            self._runtime.loop.start(self.discover, cell, ledger)

    # The timer

    def _schedule(self, due: float, actor: str, name: str, key: Any) -> None:
        heapq.heappush(self._heap, (due, actor, name, _Unordered(key)))
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap and not self._runtime.closing:
            delay = min(max(self._heap[0][0] - time.time(), 0.0), _LONGEST_SLEEP)
            self._timer = self._runtime.loop.call_later(
                delay, self._ring, self._heap[0][0] if delay < _LONGEST_SLEEP else 0.0
            )

    def _ring(self, until: float) -> None:
        self._timer = None
        until = max(until, time.time())
        while self._heap and self._heap[0][0] <= until:
            due, actor, name, key = heapq.heappop(self._heap)
            reminder = self._ledgers[key.value].entries.get(actor, {}).get(name)
            cell = self._runtime.addressable(actor)
            # Replaced, forgotten, or of an actor that is not here: it is found again when that is spawned.
            if reminder is not None and reminder.due <= due and cell is not None and self._key(cell)[0] == key.value:
                if self._ledgers[key.value].is_shared:
                    self._runtime.loop.start(self._deliver_if_still, cell, name, reminder, key.value)
                else:
                    self._deliver(cell, name, reminder, key.value)
        self._set_timer()

    async def _deliver_if_still(self, cell: Cell, name: str, reminder: Reminder, key: Any) -> None:
        """Deliver what another process has not delivered or forgotten since the ledger was read."""
        try:
            await self._read_again(key)
        except DgentError:
            self._schedule(time.time() + _FIRST_RETRY, cell.name, name, key)
            return
        if self._ledgers[key].entries.get(cell.name, {}).get(name) == reminder and not self._runtime.closing:
            self._deliver(cell, name, reminder, key)

    async def _read_again(self, key: Any) -> None:
        """Read a ledger that other processes change too; what is new in it is scheduled."""
        opened = self._ledgers[key]
        assert opened.ref is not None
        known = {(actor, name, one.due) for actor, mine in opened.entries.items() for name, one in mine.items()}
        opened.entries = await opened.ref.load(default={})
        for actor, mine in opened.entries.items():
            for name, one in mine.items():
                if (actor, name, one.due) not in known:
                    self._schedule(one.due, actor, name, key)

    def _look(self, key: Any) -> None:
        """Look into a shared ledger from time to time: another process may remind an actor that is here too."""

        async def look() -> None:
            with suppress(DgentError):
                await self._read_again(key)
            if not self._runtime.closing:
                self._looks[key] = self._runtime.loop.call_later(_LOOK_AGAIN, self._look, key)

        if not self._runtime.closing:
            self._runtime.loop.start(look)

    def close(self) -> None:
        """Deliver nothing more: the runtime ends."""
        for timer in (self._timer, *self._retries, *self._looks.values()):
            if timer is not None:
                timer.cancel()
        self._timer = None

    # Delivery

    def _deliver(self, cell: Cell, name: str, reminder: Reminder, key: Any) -> None:
        """Put the message into the mailbox, and see to what becomes of it."""
        if reminder.id in self._delivering or cell.phase is Phase.STOPPED:  # it is found when that is spawned again
            return
        message: Message[Any] | None
        try:
            message = load_message(cell, reminder.message)
            turn, args, _ = message.turn(self._runtime.blind_ref(cell), cell)
        except DgentError as error:
            message, turn, args = None, _refuse, (error,)
        envelope = Envelope(cell.once, (reminder.request_id, turn, args, False), cell.loop.waiter(), message)
        self._delivering.add(reminder.id)
        cell.post(envelope)
        self._runtime.loop.start(self._cross_off, cell, name, reminder, key, envelope)

    async def _cross_off(self, cell: Cell, name: str, reminder: Reminder, key: Any, envelope: Envelope) -> None:
        """Wait for the turn, and put the next reminder in the place of this one."""
        opened = self._ledgers[key]
        try:
            reply = await envelope.waiter
            error = reply.error if type(reply) is Failure else None
            if isinstance(error, (StorageError, ActorError)):
                raise error
            if error is not None:  # refused for good, like any other `tell` that fails
                self._runtime.emit("dead_letter", cell.name, message=envelope.message, error=error)
            if not self._runtime.closing:
                if cell.behind is not None:  # crossed off only when the store has it
                    await cell.call(cell.flush, alone=True)
                await self._change(opened, cell.name, lambda mine: _cross_off(mine, name, reminder))
        except DgentError as error:
            if not isinstance(error, (StorageError, ActorError)):
                self._runtime.emit("warning", cell.name, message=f"reminder {name!r} can't be crossed off", error=error)
            delay = self._delays[reminder.id] = min(2 * self._delays.get(reminder.id, _FIRST_RETRY / 2), _LAST_RETRY)
            self._schedule(time.time() + delay, cell.name, name, key)
        else:
            self._delays.pop(reminder.id, None)
            following = opened.entries.get(cell.name, {}).get(name)
            if following is not None:
                self._schedule(following.due, cell.name, name, key)
        finally:
            self._delivering.discard(reminder.id)


def _refuse(error: Exception) -> None:
    raise error


class _Unordered:
    """A value in a heap's tuples that is never compared by its own order."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: object) -> bool:
        return False


def _cross_off(mine: dict[str, Reminder], name: str, reminder: Reminder) -> dict[str, Reminder]:
    kept = mine.get(name)
    if kept is None or kept.id != reminder.id or kept.due != reminder.due:
        return mine  # replaced, or crossed off by another process
    following = reminder.following(time.time())
    others = {key: other for key, other in mine.items() if key != name}
    return others if following is None else {**others, name: following}


def _times(at: datetime | None, every: float | timedelta | None) -> tuple[float, float | None]:
    """Return the first due time and the period, in seconds."""
    if at is None and every is None:
        raise ValueError("remind: give at=, the time of one reminder, or every=, the seconds between many")
    if at is not None and not isinstance(at, datetime):
        raise TypeError(f"remind: at={at!r}; give a datetime with a time zone")
    if at is not None and at.tzinfo is None:
        raise ValueError(f"remind: at={at} has no time zone; use datetime.now(UTC) + timedelta(...)")
    if every is not None and (isinstance(every, bool) or not isinstance(every, timedelta | int | float)):
        raise TypeError(f"remind: every={every!r}; give seconds, or a timedelta")
    seconds = every.total_seconds() if isinstance(every, timedelta) else every
    if seconds is not None and not 0 < seconds < math.inf:
        raise ValueError(f"remind: every={every}; give seconds, more than 0")
    due = at.timestamp() if at is not None else time.time() + (seconds or 0.0)
    return due, None if seconds is None else float(seconds)
