"""The runtime as the root of its supervision tree."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from dgents.runtime.actor import Cell
from dgents.runtime.portal import SyncProxy, in_thread
from dgents.runtime.runtime import BaseRuntime
from dgents.supervisors.policy import Backoff, Intensity


class Supervision:
    """What restarts one actor: its budget, and how long to wait."""

    __slots__ = ("_backoff", "_intensity", "restart")

    def __init__(self, restart: str, intensity: Intensity, backoff: Backoff) -> None:
        if restart not in ("permanent", "transient", "temporary"):
            raise ValueError(f'restart is {restart!r}; give "permanent", "transient" or "temporary"')
        self.restart = restart
        self._intensity = intensity
        self._backoff = backoff

    def restart_delay(self, cell: Cell, error: BaseException | None) -> float | None:
        """Return how long to wait before the restart after ``error``; None if the actor is not to be restarted."""
        if self.restart == "temporary":
            return None
        attempt = self._intensity.restart(cell.loop.time())
        return None if attempt is None else self._backoff.delay(attempt)

    def stopped(self, cell: Cell, error: BaseException | None) -> None:
        """Take note that an actor stopped for good after ``error``."""
        cell.runtime.emit("escalated", cell.name, error=error)


class Runtime(BaseRuntime):
    """The lifetime of actors: ``async with dgents.Runtime() as rt:``, inside asyncio or trio.

    Args:
        mailbox_size: messages that may lie in a mailbox with no sender waiting for their reply.
        overflow: what a full mailbox does with an `ask`: ``"wait"`` or ``"reject"`` (`MailboxFullError`).
        shutdown_timeout: seconds that leaving the block may take.
        on_event: called with each lifecycle `Event`, in the event loop.

    Raises:
        StorageError: on leaving, if something could not be flushed in time; it names what.

    Example:
        >>> async with dgents.Runtime() as rt:
        ...     counter = await rt.spawn("counter", dgents.VolatileAgent(0))
        ...     await counter.update(lambda n: n + 1)
    """

    backoff = Backoff()

    def supervise(self, cell: Cell, restart: str) -> None:
        cell.supervision = Supervision(restart, Intensity(), self.backoff)


def open_sync(**options: Any) -> AbstractContextManager[SyncProxy]:
    """Open a runtime for a synchronous program: ``with dgents.open_sync() as rt:``.

    It runs in a thread of its own; its methods, and those of its refs, wait instead of being awaited. The options are
    those of `Runtime`.

    Example:
        >>> with dgents.open_sync() as rt:
        ...     counter = rt.spawn("counter", dgents.VolatileAgent(0))
        ...     counter.update(lambda n: n + 1)
        1
    """
    return in_thread(lambda: Runtime(**options))
