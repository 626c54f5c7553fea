"""Turns that wait for turns: a chain of asks that comes back to an actor in its own turn is refused.

A task that a turn starts has the turn's context, but the turn need not await it. So a call of such a task is part of
the chain only while the turn can't go on without the task.

Invariants
  1. A call of the turn's own task, or of a thread that has the turn's context, is looked at when it is made.
  2. A call of another task of the turn is looked at when it is made and then every `_LOOK_EVERY` seconds: the turn may
     come to await the task later.
  3. What can't be told (the turn waits for an event that the task would set) waits, and is told as a ``warning``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from dgents.runtime.commit import Failure
from dgents.runtime.errors import DeadlockError
from dgents.runtime.loops import give

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell
    from dgents.runtime.loops import Waiter
    from dgents.runtime.mailbox import Envelope
    from dgents.runtime.timetable import Appointment

_LOOK_EVERY = 0.25  # seconds
_WARN_AFTER = 5.0  # seconds


class TurnInProgress:
    """The turn that the running code belongs to: an ask from inside it may come back to its own actor.

    ``waiter`` is who waits for its reply. ``tasks`` are those that are the turn: the one that runs it, and the calls of
    threads that it waits for. ``within`` is the turn that a transaction was opened in: the code in it belongs to both.
    """

    __slots__ = ("active", "cell", "tasks", "waiter", "waits", "within")

    def __init__(self, cell: Cell, waiter: Waiter, task: Any) -> None:
        self.cell = cell
        self.waiter = waiter
        self.active = True
        self.tasks = [task]
        self.waits: list[Wait] = []
        self.within: TurnInProgress | None = None

    @contextmanager
    def waiting_for(self, cell: Cell, waiter: Waiter, envelope: Envelope | None = None) -> Iterator[None]:
        """Take note, while the block lasts, that the running task waits for ``cell``, in this turn and those around it.

        Raises:
            DeadlockError: that waits for one of them.
        """
        task = cell.loop.current_task()
        waits = [Wait(turn, task, cell, waiter, envelope) for turn in self.all_active()]
        for wait in waits:
            if wait.holds_up and (circle := wait.circle()):
                raise _deadlock(circle)
        for wait in waits:
            wait.begin()
        try:
            yield
        finally:
            for wait in waits:
                wait.end()

    def all_active(self) -> list[TurnInProgress]:
        """Return this turn and those around it, as far as they still go on."""
        turn: TurnInProgress | None = self
        turns = []
        while turn is not None:
            if turn.active:
                turns.append(turn)
            turn = turn.within
        return turns


class Wait:
    """A task that has the context of a turn, and waits for an actor."""

    __slots__ = ("_look_again", "_looks", "cell", "envelope", "task", "turn", "waiter")

    def __init__(
        self, turn: TurnInProgress, task: Any, cell: Cell, waiter: Waiter, envelope: Envelope | None = None
    ) -> None:
        self.turn = turn
        self.task = task
        self.cell = cell
        self.waiter = waiter
        self.envelope = envelope
        self._looks = 0
        self._look_again: Appointment | None = None

    @property
    def holds_up(self) -> bool:
        """Whether the turn can't go on before the task does."""
        tasks = self.turn.tasks
        return self.task in tasks or any(self.cell.loop.awaits(mine, self.task) for mine in tasks)

    def circle(self) -> Sequence[Wait]:
        """Return the waits that lead from here back to the actor whose turn this is; empty if there is no such way."""
        stack: list[tuple[Wait, ...]] = [(self,)]
        visited: set[Cell] = set()
        while stack:
            path = stack.pop()
            cell = path[-1].cell
            if cell is self.turn.cell:
                return path
            if cell in visited or cell.turn is None:
                continue
            visited.add(cell)
            stack += [(*path, wait) for wait in list(cell.turn.waits) if wait.holds_up]
        return ()

    def begin(self) -> None:
        self.turn.waits.append(self)
        if self.task not in self.turn.tasks:
            self._look_again = self.cell.runtime.timetable.call_later(_LOOK_EVERY, self._look)

    def end(self) -> None:
        self.turn.waits.remove(self)
        if self._look_again is not None:
            self._look_again.cancel()

    def _look(self) -> None:
        """See whether the turn has come to await the task: then the one who waits for the turn is refused."""
        if not self.turn.active:
            return
        self._looks += 1
        circle = self.circle()
        if circle and self.holds_up:
            circle[-1].refuse(_deadlock(circle))
        elif circle and self._looks * _LOOK_EVERY == _WARN_AFTER:
            self.cell.runtime.emit(
                "warning",
                self.cell.name,
                message=f"a task that was started in the turn of {self.turn.cell.name!r} has waited "
                f"{_WARN_AFTER:.0f} s for it to end; if the turn waits for what this task does, neither goes on",
            )
        self._look_again = self.cell.runtime.timetable.call_later(_LOOK_EVERY, self._look)

    def refuse(self, error: DeadlockError) -> None:
        """Let the task go on with an error; its message is withdrawn, if its turn has not begun."""
        if self.envelope is None or self.envelope.started:
            error.outcome = "unknown"
        # It may be of another runtime, in another thread.
        self.cell.loop.call_threadsafe(give, self.waiter, Failure(error))


current_turn: ContextVar[TurnInProgress | None] = ContextVar("dgents_turn", default=None)


def turn_in_progress() -> TurnInProgress | None:
    """Return the innermost turn that the running code belongs to."""
    turn = current_turn.get()
    while turn is not None and not turn.active:
        turn = turn.within
    return turn


@contextmanager
def called_by_thread(task: Any) -> Iterator[None]:
    """Let a task that a thread waits for be a part of the turns whose context the thread has."""
    innermost = turn_in_progress()
    turns = innermost.all_active() if innermost is not None else []
    for turn in turns:
        turn.tasks.append(task)
    try:
        yield
    finally:
        for turn in turns:
            turn.tasks.remove(task)


def _deadlock(circle: Sequence[Wait]) -> DeadlockError:
    asker = circle[0].turn.cell.name
    asked = tuple(wait.cell.name for wait in circle)
    return DeadlockError(
        f"deadlock: the turn of {asker!r} asks {' -> '.join((asker, *asked))}, which waits for itself",
        actor=asked[0],
        chain=(asker, *asked),
        hint="compute what you need before the turn, or use tell()",
    )
