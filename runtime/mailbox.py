"""The mailbox of an actor: envelopes in the order in which they will be applied.

Bound: ``limit`` envelopes may lie in it without a sender that waits (`tell`). A sender that waits for its reply (`ask`
and all methods of a `Ref`) is its own bound: with ``overflow="wait"`` it is queued behind the limit, with ``"reject"``
it is refused. So the memory of a mailbox never grows beyond the limit plus the tasks that wait on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from dgents.runtime.loops import Waiter


RUN_AGAIN: Final = object()  # in place of a reply: the turn could not be finished, and its message is queued again


class Envelope:
    """One message on its way: a turn to run, in the context of its sender, and who waits for its reply."""

    __slots__ = ("alone", "args", "context", "crashes", "message", "started", "turn", "waiter")

    def __init__(
        self,
        turn: Callable[..., Any],
        args: tuple[Any, ...],
        waiter: Waiter,
        message: Any = None,
        *,
        alone: bool = False,
    ) -> None:
        self.turn = turn
        self.args = args
        self.waiter = waiter
        self.message = message  # None: a method was called
        self.context = copy_context()
        self.alone = alone  # can't be run twice, or together with others
        self.started = False
        self.crashes = 0  # a message in whose turn the actor crashed twice is set aside

    @property
    def payload(self) -> Any:
        """What to show of it as a dead letter: the message, or of a method's call its name and arguments."""
        return self.message if self.message is not None else (getattr(self.turn, "__name__", "turn"), *self.args)

    @property
    def withdrawn(self) -> bool:
        """Whether its sender left before the turn started: it then leaves no trace."""
        return not self.started and self.waiter.done()


class Mailbox:
    """A first-in, first-out queue of envelopes, with a bound for those that nobody waits for."""

    __slots__ = ("_queue", "_sweep_at", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._sweep_at = limit  # the length at which those whose senders left are taken out
        self._queue: deque[Envelope] | None = None  # an idle actor has none

    def __len__(self) -> int:
        return len(self._queue) if self._queue is not None else 0

    @property
    def full(self) -> bool:
        return len(self) >= self.limit

    def put(self, envelope: Envelope) -> None:
        """Add an envelope at the end."""
        if self._queue is None:
            self._queue = deque()
        elif len(self._queue) >= self._sweep_at:
            self._queue = deque(self.waiting())
            self._sweep_at = max(self.limit, 2 * len(self._queue))
        self._queue.append(envelope)

    def put_back(self, envelope: Envelope) -> None:
        """Return an envelope to the front: its turn is to be run again."""
        if self._queue is None:
            self._queue = deque()
        self._queue.appendleft(envelope)

    def take(self) -> Envelope | None:
        """Remove and return the next envelope whose sender still wants it; None when there is none."""
        while self._queue:
            envelope = self._queue.popleft()
            if not envelope.withdrawn:
                return envelope
        self._queue = None
        return None

    def waiting(self) -> list[Envelope]:
        """Return what is in it, in order, without taking it."""
        return [envelope for envelope in self._queue or () if not envelope.withdrawn]
