"""Many things to do later, with one timer of the event loop.

A timer of the loop's own is an object in its heap under asyncio, and a task under trio: too much for each of a hundred
thousand actors. What is due at the same time is done some at a time, so that others have their turn between.

Invariant: the timer is set for the first entry of the heap, or for an earlier time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgents.runtime.loops import Loop, Timer

_AT_ONCE = 256
_PURGE_FROM = 64  # cancelled entries; fewer are not worth looking for


class Appointment:
    """Something to be done, unless it is cancelled."""

    __slots__ = ("_timetable", "due", "fn")

    def __init__(self, timetable: Timetable, due: float, fn: Callable[[], Any]) -> None:
        self._timetable = timetable
        self.due = due
        self.fn: Callable[[], Any] | None = fn

    def cancel(self) -> None:
        """Let it be; one that is done stays done."""
        if self.fn is not None:
            self.fn = None
            self._timetable.note_cancelled()


class Timetable:
    """What one runtime will do later."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._heap: list[tuple[float, int, Appointment]] = []
        self._number = 0  # of those that are due at the same time, the first to be made is done first
        self._cancelled = 0
        self._timer: Timer | None = None
        self._set_for = 0.0
        self._closed = False

    def call_later(self, delay: float, fn: Callable[[], Any]) -> Appointment:
        """Call ``fn`` in ``delay`` seconds; never before this returns."""
        appointment = Appointment(self, self._loop.time() + delay, fn)
        self._number += 1
        heapq.heappush(self._heap, (appointment.due, self._number, appointment))
        self._set_timer()
        return appointment

    def note_cancelled(self) -> None:
        """Forget the cancelled ones, once they are the most: they may be due far in the future."""
        self._cancelled += 1
        if self._cancelled > _PURGE_FROM and 2 * self._cancelled > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].fn is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def close(self) -> None:
        """Do nothing more."""
        self._closed = True
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        if self._closed:
            return
        due = self._heap[0][0]
        if self._timer is None or due < self._set_for:
            if self._timer is not None:
                self._timer.cancel()
            self._set_for = due
            self._timer = self._loop.call_later(max(due - self._loop.time(), 0.0), self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self._loop.time()
        try:
            for _ in range(_AT_ONCE):
                if not self._heap or self._heap[0][0] > now:
                    break
                appointment = heapq.heappop(self._heap)[2]
                fn, appointment.fn = appointment.fn, None
                if fn is None:
                    self._cancelled -= 1
                else:
                    fn()
        finally:
            if self._heap:
                self._set_timer()
