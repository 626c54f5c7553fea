"""The runtime as the root of its supervision tree."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from dgents.runtime.actor import Cell
from dgents.runtime.contract import Agent
from dgents.runtime.portal import SyncProxy, in_thread
from dgents.runtime.ref import Ref
from dgents.runtime.runtime import BaseRuntime
from dgents.supervisors.policy import Backoff, Restart, Strategy
from dgents.supervisors.tree import Supervisor


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

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._root = Supervisor(self, "root")

    async def spawn(
        self,
        name: str,
        agent: Agent,
        *,
        restart: Restart = "permanent",
        while_restarting: str = "wait",
        supervisor: Supervisor | None = None,
    ) -> Ref[Any]:
        """Start an actor and return its ref, once its backend is open.

        Args:
            name: unique in this runtime.
            agent: what the actor is made of.
            restart: ``permanent`` and ``transient`` actors are restarted when their backend fails, a ``temporary`` one
                stops.
            while_restarting: what callers do during a restart: ``"wait"`` (bounded by their own timeouts) or
                ``"fail"`` (a `StorageError` at once).
            supervisor: whose child it is; the runtime's own if left out.

        Raises:
            NameTakenError: an actor of this name runs here.
            StateLockedError: another process owns the state.
            StateCorruptionError: the stored state can't be read; it is left as it was.
            StorageError: the backend can't be reached, or refuses.
        """
        if while_restarting not in ("wait", "fail"):
            raise ValueError(f'while_restarting is {while_restarting!r}; give "wait" or "fail"')
        parent = supervisor or self._root

        def supervise(cell: Cell) -> None:
            cell.supervision = parent.adopt(cell, restart)
            cell.depth = parent.depth
            cell.fails_fast = while_restarting == "fail"

        return await self.start(name, agent, supervise)

    def supervise(self, cell: Cell) -> None:
        """Make a virtual actor a child of the root."""
        cell.supervision = self._root.adopt(cell, "permanent")

    async def supervisor(
        self,
        name: str,
        *,
        strategy: Strategy = "one_for_one",
        max_restarts: int = 3,
        within: float = 5.0,
        backoff: Backoff | None = None,
    ) -> Supervisor:
        """Start a supervisor under the root; see `Supervisor`."""
        return await self._root.supervisor(
            name, strategy=strategy, max_restarts=max_restarts, within=within, backoff=backoff
        )

    def children(self) -> list[str]:
        """Return the names of the root's children, in the order in which they were started."""
        return self._root.children()

    def tree(self) -> str:
        """Return the supervision tree as text."""
        return "\n".join([f"runtime ({self.loop.name})", *self._root.lines()])


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
