"""Durable reminders: messages that an actor gets later, also when its runtime was down meanwhile (Orleans' reminders).

The reminders of all actors of a store lie in one *ledger*: a state of that store, owned by an actor of the runtime's
own. Delivery is at least once: a reminder is crossed off after its turn is durable. Each delivery carries a request id
made of the reminder and its due time, so a state that is durable takes it once, whoever delivers it, and how often.

Invariants
  1. A reminder that is in the ledger and whose actor is here has one alarm, or is being delivered.
  2. What is in no ledger, as far as this runtime knows, has no alarm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Context
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio

from dgents.runtime.alarms import Alarms, now
from dgents.runtime.arguments import check_text
from dgents.runtime.commit import Failure
from dgents.runtime.errors import ActorError, DgentError, StorageError, UnsupportedOperationError
from dgents.runtime.ledger import Change, Edit, Ledger, OpenLedger, Reminder
from dgents.runtime.mailbox import Envelope
from dgents.runtime.messages import Message
from dgents.runtime.phase import Phase
from dgents.runtime.saved_message import load_message, save_message

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell
    from dgents.runtime.loops import Timer
    from dgents.runtime.runtime import BaseRuntime

_FIRST_RETRY, _LAST_RETRY = 0.5, 60.0  # seconds
_LOOK_AGAIN = 10.0  # seconds between two looks into a ledger that other processes change too


Key = tuple[Any, str, str]  # of an alarm: the ledger's, the actor and the name


class Reminders:
    """The reminders of one runtime's actors, and the timer for the first that falls due."""

    def __init__(self, runtime: BaseRuntime) -> None:
        self._runtime = runtime
        self._ledgers: dict[Any, OpenLedger] = {}
        self._alarms: Alarms[Key] = Alarms(runtime, self._ring)
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
        await self._change(key, opened, cell.name, name, lambda _: reminder)

    async def forget(self, cell: Cell, name: str) -> None:
        """Strike a reminder out; one that is not there is forgotten already."""
        key, opened = await self._open(cell)
        if opened.is_shared or opened.get(cell.name, name) is not None:
            await self._change(key, opened, cell.name, name, lambda _: None)

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

    async def _open(self, cell: Cell) -> tuple[Any, OpenLedger]:
        """Return the ledger of an actor, made if there is none."""
        key, ledger = self._key(cell)
        opened = self._ledgers.setdefault(key, OpenLedger())
        if ledger is not None and not opened.is_open:
            async with opened.lock:
                if not opened.is_open:
                    ref = await self._runtime.start_internal("reminders", ledger.agent)
                    try:
                        changes = await opened.read(ref)
                    except BaseException:  # the next one opens it again
                        with anyio.CancelScope(shield=True):
                            await self._runtime.stop(ref)
                        raise
                    self._heed(key, changes)
                    opened.ref = ref
                    if opened.is_shared and key not in self._looks:
                        self._looks[key] = self._runtime.loop.call_later(_LOOK_AGAIN, self._look, key)
        return key, opened

    async def _change(self, key: Any, opened: OpenLedger, actor: str, name: str, edit: Edit) -> None:
        try:
            changes = await opened.change(actor, name, edit)
        except BaseException:  # whoever left, or was told that it failed, may have changed it all the same
            if opened.ref is not None:
                self._runtime.loop.start(self._read_quietly, key)
            raise
        self._heed(key, changes)

    def _heed(self, key: Any, changes: Sequence[Change]) -> None:
        """Set an alarm for what is new in a ledger, and none any more for what is gone."""
        for actor, name, before, after in changes:
            if before is not None and (after is None or after.id != before.id):
                self._delays.pop(before.id, None)
            if after is None:
                self._alarms.cancel((key, actor, name))
            else:
                has_begun = before is not None and before.id == after.id
                self._set_alarm(key, actor, name, after, has_begun)

    def _set_alarm(self, key: Any, actor: str, name: str, reminder: Reminder, has_begun: bool = False) -> None:
        # One that has begun to repeat is due again in that many seconds, whatever becomes of the clock.
        repeats = reminder.every is not None and (has_begun or reminder.due <= now() + reminder.every)
        self._alarms.set((key, actor, name), reminder.due, reminder.every if repeats else None)

    def ledger(self, cell: Cell) -> Ledger | None:
        """Return where the reminders of an actor lie; None if in memory, or if it can't have any."""
        describe = getattr(cell.agent, "reminders", None)
        return describe(cell.name) if describe is not None else None

    def _place(self, cell: Cell) -> Any:
        """Return the key of its ledger; that of those in memory, if it can't have any."""
        ledger = self.ledger(cell)
        return ledger.agent if ledger is not None else None

    async def discover(self, cell: Cell, ledger: Ledger) -> None:
        """Find the reminders of an actor that has just come here, and queue those that fell due."""
        opened = self._ledgers.get(ledger.agent)
        try:
            if opened is None or opened.ref is None or not opened.is_open:
                if not await ledger.exists(self._runtime.resources):
                    return
                _, opened = await self._open(cell)
            else:  # another process that had the actor may have changed them
                self._heed(ledger.agent, await opened.read(opened.ref))
        except DgentError as error:
            message = f"its reminders can't be read; tried again in {_LAST_RETRY:.0f} s"
            self._runtime.emit("warning", cell.name, message=message, error=error)
            self._retries.append(self._runtime.loop.call_later(_LAST_RETRY, self._discover_again, cell, ledger))
            return
        for name, reminder in opened.entries.get(cell.name, {}).items():
            if reminder.due <= now():
                self._alarms.cancel((ledger.agent, cell.name, name))
                self._deliver(cell, name, reminder, ledger.agent)
            else:
                self._set_alarm(ledger.agent, cell.name, name, reminder)

    def _discover_again(self, cell: Cell, ledger: Ledger) -> None:
        self._retries.pop(0)  # all have the same delay
        if not self._runtime.closing and cell.phase is not Phase.STOPPED:
            self._runtime.loop.start(self.discover, cell, ledger)

    # The alarms

    def _ring(self, alarm: Key) -> None:
        """See to a reminder that is due; that of an actor that is not here is found when that is spawned again."""
        key, actor, name = alarm
        opened = self._ledgers[key]
        reminder = opened.get(actor, name)
        try:
            cell = self._runtime.addressable(actor)
        except Exception as error:  # of a factory of virtual actors
            self._runtime.emit("warning", actor, message=f"reminder {name!r} can't be delivered yet", error=error)
            self._alarms.set(alarm, now() + _LAST_RETRY)
            return
        if reminder is None or cell is None or self._place(cell) != key:
            if opened.ref is None:  # in memory, as the actor was that is gone
                opened.drop(actor, name)
            return
        if opened.is_shared:
            self._runtime.loop.start(self._deliver_if_still, cell, name, reminder, key)
        else:
            self._deliver(cell, name, reminder, key)

    async def _deliver_if_still(self, cell: Cell, name: str, reminder: Reminder, key: Any) -> None:
        """Deliver what another process has not delivered or forgotten since the ledger was read."""
        try:
            await self._read_again(key)
        except DgentError:
            self._alarms.set((key, cell.name, name), now() + _FIRST_RETRY)
            return
        if self._ledgers[key].get(cell.name, name) == reminder and not self._runtime.closing:
            self._deliver(cell, name, reminder, key)

    async def _read_again(self, key: Any) -> None:
        """Read a ledger that other processes change too."""
        opened = self._ledgers[key]
        assert opened.ref is not None
        self._heed(key, await opened.read(opened.ref))

    async def _read_quietly(self, key: Any) -> None:
        with suppress(DgentError):
            await self._read_again(key)

    def _look(self, key: Any) -> None:
        """Look into a shared ledger from time to time: another process may remind an actor that is here too."""

        async def look() -> None:
            await self._read_quietly(key)
            if not self._runtime.closing:
                self._looks[key] = self._runtime.loop.call_later(_LOOK_AGAIN, self._look, key)

        if not self._runtime.closing:
            self._runtime.loop.start(look)

    def close(self) -> None:
        """Deliver nothing more: the runtime ends."""
        self._alarms.close()
        for timer in (*self._retries, *self._looks.values()):
            timer.cancel()

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
        arguments = cell.once, (reminder.request_id, turn, args, False), cell.loop.waiter(), message
        envelope = Context().run(Envelope, *arguments)  # nobody's
        self._delivering.add(reminder.id)
        cell.post(envelope)
        self._runtime.loop.start(self._cross_off, cell, name, reminder, key, envelope)

    async def _cross_off(self, cell: Cell, name: str, reminder: Reminder, key: Any, envelope: Envelope) -> None:
        """Wait for the turn, and put the next reminder in the place of this one."""
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
                _, opened = await self._open(cell)
                await self._change(key, opened, cell.name, name, partial(_crossed_off, reminder))
        except DgentError as error:
            if not isinstance(error, (StorageError, ActorError)):
                self._runtime.emit("warning", cell.name, message=f"reminder {name!r} can't be crossed off", error=error)
            if self._ledgers[key].get(cell.name, name) == reminder:
                delay = min(2 * self._delays.get(reminder.id, _FIRST_RETRY / 2), _LAST_RETRY)
                self._delays[reminder.id] = delay
                self._alarms.set((key, cell.name, name), now() + delay)
        else:
            self._delays.pop(reminder.id, None)
        finally:
            self._delivering.discard(reminder.id)


def _refuse(error: Exception) -> None:
    raise error


def _crossed_off(reminder: Reminder, kept: Reminder | None) -> Reminder | None:
    """Return what is to be kept in the place of a reminder that was delivered."""
    if kept is None or kept.id != reminder.id or kept.due != reminder.due:
        return kept  # replaced, or crossed off by another process
    return reminder.following()


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
    due = at.timestamp() if at is not None else now() + (seconds or 0.0)
    return due, None if seconds is None else float(seconds)
