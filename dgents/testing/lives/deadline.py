"""How long anything may take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import anyio

from dgents.runtime.actor import Cell
from dgents.runtime.events import Event
from dgents.testing.lives.record import Violation


class within:
    """Fail, as a broken promise, what takes too long."""

    def __init__(self, seconds: float, what: str, situation: Callable[[], str] = str) -> None:
        self._seconds = seconds
        self._what = what
        self._situation = situation
        self._scope = anyio.CancelScope()

    def __enter__(self) -> None:
        self._scope = anyio.move_on_after(self._seconds)
        self._scope.__enter__()

    def __exit__(self, *exception: Any) -> bool | None:
        caught = self._scope.__exit__(*exception)
        if self._scope.cancelled_caught:
            raise Violation(
                "; ".join(filter(None, [f"not done within {self._seconds} s: {self._what}", self._situation()]))
            )
        return caught


def situation(cell: Cell | None, events: Sequence[Event]) -> str:
    """Say what an actor is doing, for whom it takes too long."""
    if cell is None:
        return "there is no such actor yet, or no more"
    doing = "in a turn" if cell.turn is not None else "at work" if cell.draining else "idle"
    waits = f"{len(cell.mailbox)} messages wait, {len(cell.in_doubt)} commits are in doubt"
    behind = f", {cell.behind.count} writes are at risk" if cell.behind is not None else ""
    return f"it is {cell.phase.value} and {doing}; {waits}{behind}; {_last(events)}"


def _last(events: Sequence[Event]) -> str:
    if not events:
        return "nothing has happened yet"
    ago = (datetime.now(UTC) - events[-1].at).total_seconds()
    return f"{events[-1].kind} {events[-1].details} was {ago:.1f} s ago"
