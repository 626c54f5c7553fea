"""What is due at a time of the wall clock, with one timer of the runtime.

The clock may be set, or the machine sleep, while the timer waits: as long as something is due the clock is looked at
every few seconds.

Invariants
  1. A key has one alarm: the one that was set last.
  2. The heap has at most twice as many entries as there are alarms, and `_PURGE_FROM`: the others were replaced.
  3. While there is an alarm there is a timer, for the first of the heap or for `_LOOK_EVERY` seconds.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from dgents.runtime.runtime import BaseRuntime
    from dgents.runtime.timetable import Appointment

K = TypeVar("K", bound=Hashable)

_LOOK_EVERY = 5.0  # seconds between two looks at the clock
_SET_BACK = 1.0  # seconds; a smaller step is not worth a look at every alarm
_PURGE_FROM = 64


def now() -> float:
    """Return the time of the wall clock, in seconds since 1970, UTC."""
    return time.time()


class Alarm(Generic[K]):
    """A key that is due: at a time, and within ``every`` seconds even if the clock is set back."""

    __slots__ = ("at", "every", "key")

    def __init__(self, key: K, at: float, every: float | None) -> None:
        self.key = key
        self.at = at
        self.every = every


class Alarms(Generic[K]):
    """The alarms of one runtime: ``ring(key)`` is called when one is due."""

    def __init__(self, runtime: BaseRuntime, ring: Callable[[K], None]) -> None:
        self._runtime = runtime
        self._ring = ring
        self._set: dict[K, Alarm[K]] = {}
        self._heap: list[tuple[float, int, Alarm[K]]] = []
        self._number = 0
        self._timer: Appointment | None = None
        self._due = 0.0  # what the timer is for
        self._lead = 0.0  # of the wall clock before that of the event loop, at the last look
        self._closed = False

    def __len__(self) -> int:
        return len(self._set)

    def set(self, key: K, at: float, every: float | None = None) -> None:
        """Let ``key`` be due at a time, in place of the time it was due at before.

        Args:
            every: it is due in so many seconds at the latest, whatever becomes of the clock; None: at that time only.
        """
        if self._closed:
            return
        alarm = self._set[key] = Alarm(key, at if every is None else min(at, now() + every), every)
        self._number += 1
        heapq.heappush(self._heap, (alarm.at, self._number, alarm))
        self._purge()
        self._set_timer()

    def cancel(self, key: K) -> None:
        """Let it not be due any more."""
        if self._set.pop(key, None) is not None:
            self._purge()

    def close(self) -> None:
        """Ring no more."""
        self._closed = True
        self._set.clear()
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _purge(self) -> None:
        if len(self._heap) > _PURGE_FROM + 2 * len(self._set):
            self._heap = [entry for entry in self._heap if self._set.get(entry[2].key) is entry[2]]
            heapq.heapify(self._heap)

    def _set_timer(self) -> None:
        if self._closed or not self._set:
            return
        due = self._heap[0][0]
        if self._timer is not None:
            if due >= self._due:
                return
            self._timer.cancel()
        else:
            self._lead = now() - self._runtime.loop.time()
        wait = max(due - now(), 0.0)
        self._due = due if wait <= _LOOK_EVERY else now() + _LOOK_EVERY
        self._timer = self._runtime.timetable.call_later(min(wait, _LOOK_EVERY), self._look)

    def _look(self) -> None:
        self._timer = None
        self._see_whether_set_back()
        due = max(self._due, now())  # the two clocks do not agree to the millisecond
        try:
            while self._heap and self._heap[0][0] <= due:
                alarm = heapq.heappop(self._heap)[2]
                if self._set.get(alarm.key) is alarm:
                    del self._set[alarm.key]
                    self._ring(alarm.key)
        finally:
            self._set_timer()

    def _see_whether_set_back(self) -> None:
        lead = now() - self._runtime.loop.time()
        if lead < self._lead - _SET_BACK:
            self._due = 0.0
            for alarm in list(self._set.values()):
                if alarm.every is not None and alarm.at > now() + alarm.every:
                    self.set(alarm.key, alarm.at, alarm.every)
