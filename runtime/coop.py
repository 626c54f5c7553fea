"""What all turns of a runtime have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dgents.runtime.seen import Seen, SeenByTask


class Coop:
    """What the turns of a runtime have in common: their count (the cooperative budget, and the clock by which recency
    is told), and what each task has seen."""

    __slots__ = ("last_seen", "last_task", "seen", "task", "turn")

    def __init__(self) -> None:
        self.turn = 0
        self.seen = SeenByTask()
        self.task: Callable[[], Any] = lambda: None  # tells the running task
        self.last_task: Any = None  # the task that ran the last turn, and what it has seen
        self.last_seen = Seen()

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
        try:
            yield
        finally:
            self.seen.pop(id(task), None)
            self.forget_task()

    def forget_task(self) -> None:
        """Let go of the last task."""
        self.last_task, self.last_seen = None, Seen()
