"""What all turns of a runtime have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dgents.runtime.seen import Seen, SeenByTask

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell


class Coop:
    """What the turns of a runtime have in common: their count (the cooperative budget, and the clock by which recency
    is told), and what each task has seen."""

    __slots__ = ("last_seen", "last_task", "lent", "seen", "task", "turn")

    def __init__(self) -> None:
        self.turn = 0
        self.seen = SeenByTask()
        self.task: Callable[[], Any] = lambda: None  # tells the running task
        self.last_task: Any = None  # the task that ran the last turn, and what it has seen
        self.last_seen = Seen()
        self.lent: set[int] = set()  # the ids of the tasks that see what a thread has seen

    def note_task(self) -> Seen:
        """Return what the running task has seen, and remember it for the turns that follow."""
        self.last_task = self.task()
        self.last_seen = self.seen.of(self.last_task)
        return self.last_seen

    @contextmanager
    def lend(self, seen: Seen) -> Iterator[None]:
        """Let the running task see what a thread has seen: each call from a thread runs in a new task."""
        task = self.task()
        self.seen[id(task)] = seen
        self.lent.add(id(task))
        try:
            yield
        finally:
            self.lent.discard(id(task))
            self.seen.pop(id(task), None)
            self.forget_task()

    def note_lent(self, cell: Cell) -> None:
        """Let a thread see what its own update wrote: it can't be known by its task, whose id is used again."""
        task = id(self.task())
        if task in self.lent:
            self.seen[task].note(cell.name, cell.version)
            cell.last_writer = 0

    def forget_task(self) -> None:
        """Let go of the last task."""
        self.last_task, self.last_seen = None, Seen()
