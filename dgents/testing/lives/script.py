"""What is done to an actor, as data: it can be printed, sent to another process, and made shorter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

Ending = Literal["close", "kill"]
Place = Literal["one_for_one", "one_for_all", "rest_for_one", "virtual"]


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that is done.

    Attributes:
        do: what; a name out of `operations` or `generate`.
        n: the number of what is written: the new state carries it, so a state tells which steps have made it.
        together: the next step begins before this one is answered.
        leaves: the caller is cancelled at its n-th suspension; 0: it stays.
        request: it is sent under a request id, which is its number.
        amount: how many, how often or how long; each step says of what.
    """

    do: str
    n: int = 0
    together: bool = False
    leaves: int = 0
    request: bool = False
    amount: int = 0

    def __str__(self) -> str:
        words = [self.do]
        if self.n:
            words.append(f"#{self.n}")
        if self.amount:
            words.append(f"x{self.amount}")
        if self.request:
            words.append("(request id)")
        if self.leaves:
            words.append(f"(its caller leaves at suspension {self.leaves})")
        if self.together:
            words.append("(and meanwhile:)")
        return " ".join(words)


class Life(msgspec.Struct, frozen=True):
    """The steps of one runtime, and how it ends: closed, or killed once the step ``kill_at`` has begun."""

    steps: tuple[Step, ...]
    ends: Ending = "close"
    kill_at: int = 0


class Options(msgspec.Struct, frozen=True):
    """What is chosen once for a script; an agent takes of it what it has a use for.

    ``ttl``, ``max_delay`` in seconds; ``max_pending``, ``max_history`` in versions; ``place`` is how the actor lives:
    under a supervisor of a strategy, or virtual.
    """

    place: Place = "one_for_one"
    max_restarts: int = 3
    max_history: int = 100
    max_delay: float = 0.005
    max_pending: int = 1000
    ttl: float = 0.03


class Script(msgspec.Struct, frozen=True):
    """Everything that is done to one state."""

    options: Options
    lives: tuple[Life, ...]

    @property
    def calls(self) -> int:
        """How many operations it has; what happens to the actor meanwhile is none."""
        return sum(step.amount if step.do == "burst" else 1 for life in self.lives for step in life.steps if step.n)

    def lines(self) -> Iterator[str]:
        """Yield it as a person reads it."""
        yield f"{self.options}"
        for number, life in enumerate(self.lives, 1):
            yield f"life {number}:"
            for index, step in enumerate(life.steps):
                killed = "    <- killed here" if life.ends == "kill" and index == life.kill_at else ""
                yield f"  {step}{killed}"
            yield "  SIGKILL" if life.ends == "kill" else "  close"
