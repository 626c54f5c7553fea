"""Restart policy as pure functions of the time: how often, and how soon."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import random as _random
from typing import Literal, TypeAlias

from dgents.runtime.arguments import check_count, check_seconds, is_number

Restart: TypeAlias = Literal["permanent", "transient", "temporary"]
Strategy: TypeAlias = Literal["one_for_one", "one_for_all", "rest_for_one"]


@dataclass(frozen=True)
class Backoff:
    """How long to wait before the n-th restart in a row: none before the first, then exponentially longer.

    Args:
        first: seconds before the second restart.
        most: the longest pause, in seconds.
        factor: by which each pause is longer than the one before.
        jitter: the share by which a pause may be shorter, at random, so that many do not return at once.
    """

    first: float = 0.05
    most: float = 5.0
    factor: float = 2.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        check_seconds("Backoff: first", self.first, positive=False)
        check_seconds("Backoff: most", self.most, positive=False)
        if self.most < self.first:
            raise ValueError(f"Backoff({self.first}, {self.most}): give 0 <= first <= most, in seconds")
        shares = (self.factor, self.jitter)
        if not all(is_number(share) for share in shares) or not (self.factor >= 1 and 0 <= self.jitter <= 1):
            raise ValueError(f"Backoff: factor is {self.factor!r} (1 or more), jitter is {self.jitter!r} (0 to 1)")

    def delay(self, attempt: int, random: Callable[[], float] = _random) -> float:
        """Return the seconds to wait before restart ``attempt`` (0: the first one after a calm time)."""
        if attempt == 0:
            return 0.0
        exponent = min(attempt - 1, 64)  # beyond that a float would overflow, and `most` has long been reached
        return min(self.first * self.factor**exponent, self.most) * (1 - self.jitter * random())


class Intensity:
    """The restart budget of OTP's supervisors: at most ``max_restarts`` within ``within`` seconds."""

    __slots__ = ("_max_restarts", "_times", "_within")

    def __init__(self, max_restarts: int = 3, within: float = 5.0) -> None:
        check_count("max_restarts", max_restarts, least=0)
        check_seconds("within", within)
        self._max_restarts = max_restarts
        self._within = within
        self._times: deque[float] | None = None

    def restart(self, now: float) -> int | None:
        """Spend one restart: return how many preceded it within the window, or None if the budget is spent."""
        times = self._times
        if times is None:
            times = self._times = deque()
        while times and times[0] <= now - self._within:
            times.popleft()
        if len(times) >= self._max_restarts:
            return None
        times.append(now)
        return len(times) - 1
