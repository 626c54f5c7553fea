"""Turns that wait for turns: a chain of asks that comes back to an actor in its own turn is refused, at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from dgents.runtime.errors import DeadlockError

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell
    from dgents.runtime.loops import Waiter


class TurnInProgress:
    """The turn that the running code belongs to: an ask from inside it may come back to its own actor.

    ``waiter`` is who waits for its reply. ``within`` is the turn that a transaction was opened in: the code in it
    belongs to both.
    """

    __slots__ = ("active", "cell", "waiter", "waits_for", "within")

    def __init__(self, cell: Cell, waiter: Waiter) -> None:
        self.cell = cell
        self.waiter = waiter
        self.active = True
        self.waits_for: list[Cell] = []
        self.within: TurnInProgress | None = None

    @contextmanager
    def waiting_for(self, cell: Cell) -> Iterator[None]:
        """Take note, while the block lasts, that this turn and those around it wait for ``cell``.

        Raises:
            DeadlockError: that waits for one of them.
        """
        turns = [self]
        while (outer := turns[-1].within) is not None:
            turns.append(outer)
        turns = [turn for turn in turns if turn.active]
        _check_cycle(self.cell, {turn.cell for turn in turns}, cell)
        for turn in turns:
            turn.waits_for.append(cell)
        try:
            yield
        finally:
            for turn in turns:
                turn.waits_for.remove(cell)


current_turn: ContextVar[TurnInProgress | None] = ContextVar("dgents_turn", default=None)


def turn_in_progress() -> TurnInProgress | None:
    """Return the innermost turn that the running code belongs to."""
    turn = current_turn.get()
    while turn is not None and not turn.active:
        turn = turn.within
    return turn


def _check_cycle(asker: Cell, holds: set[Cell], asked: Cell) -> None:
    """Refuse to wait for ``asked`` if its turn itself waits for one of those whose turns the asker is in."""
    stack: list[tuple[Cell, tuple[str, ...]]] = [(asked, (asker.name, asked.name))]
    visited: set[Cell] = set()
    while stack:
        cell, chain = stack.pop()
        if cell in holds:
            raise DeadlockError(
                f"deadlock: the turn of {asker.name!r} asks {' -> '.join(chain)}, which waits for itself",
                actor=asked.name,
                chain=chain,
                hint="compute what you need before the turn, or use tell()",
            )
        if cell in visited or cell.turn is None:
            continue
        visited.add(cell)
        stack += [(next_cell, (*chain, next_cell.name)) for next_cell in cell.turn.waits_for]
