"""The runtime as the root of its supervision tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar, cast

from dgents.backends.projection import Projection
from dgents.runtime.actor import Cell
from dgents.runtime.arguments import check_choice, check_path
from dgents.runtime.contract import Agent
from dgents.runtime.events import Event
from dgents.runtime.portal import SyncProxy, in_thread
from dgents.runtime.ref import Ref, Referred
from dgents.runtime.runtime import BaseRuntime, Overflow
from dgents.runtime.turns import MISSING
from dgents.supervisors.checkpoints import bring_up, read_checkpoint, write_checkpoint
from dgents.supervisors.inspection import Inspection
from dgents.supervisors.policy import Backoff, Restart, Strategy
from dgents.supervisors.tree import Supervisor

R = TypeVar("R", bound=Ref[Any])


class Runtime(BaseRuntime):
    """The lifetime of actors: ``async with dgents.Runtime() as rt:``, inside asyncio or trio.

    Args:
        mailbox_size: messages that may lie in a mailbox with no sender waiting for their reply.
        overflow: what a full mailbox does with an `ask`: ``"wait"`` or ``"reject"`` (`MailboxFullError`).
        shutdown_timeout: seconds that leaving the block may take.
        on_event: called with each lifecycle `Event`, in the event loop.
        inspect: the path of a unix socket to be made, at which ``dgents top PATH`` looks in; None: none.

    Raises:
        StorageError: on leaving, if something could not be flushed in time; it names what.

    Example:
        >>> async with dgents.Runtime() as rt:
        ...     counter = await rt.spawn("counter", dgents.VolatileAgent(0))
        ...     await counter.update(lambda n: n + 1)
    """

    def __init__(
        self,
        *,
        mailbox_size: int = 1024,
        overflow: Overflow = "wait",
        shutdown_timeout: float = 30.0,
        on_event: Callable[[Event], object] | None = None,
        inspect: str | Path | None = None,
    ) -> None:
        super().__init__(
            mailbox_size=mailbox_size, overflow=overflow, shutdown_timeout=shutdown_timeout, on_event=on_event
        )
        self._inspection = Inspection(self, inspect) if inspect is not None else None
        self._root = Supervisor(self, "root")
        self._restores: tuple[str | Path, Mapping[str, Agent] | None] | None = None

    async def spawn(
        self,
        name: str,
        agent: Referred[R],
        *,
        restart: Restart = "permanent",
        while_restarting: str = "wait",
        supervisor: Supervisor | None = None,
    ) -> R:
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
        check_choice("while_restarting", while_restarting, ("wait", "fail"))
        if supervisor is not None and not isinstance(supervisor, Supervisor):
            raise TypeError(f"supervisor is {supervisor!r}; give what rt.supervisor(name) returns")
        parent = supervisor or self._root

        def supervise(cell: Cell) -> None:
            cell.supervision = parent.adopt(cell, restart)
            cell.depth = parent.depth
            cell.fails_fast = while_restarting == "fail"

        return cast(R, await self.start(name, agent, supervise))

    def supervise(self, cell: Cell) -> None:
        """Make a virtual actor a child of the root."""
        cell.supervision = self._root.adopt(cell, "permanent")

    def project(
        self, stream: Ref[Any], fn: Callable[[Any, Any], Any], *, into: Ref[Any], default: Any = MISSING
    ) -> Projection[Any]:
        """Follow a stream with a second state: ``fn(state, event)`` is applied to ``into`` for each event, once.

        It begins, and after a restart goes on, with the first event that was not applied. Await what this returns to
        wait until it has caught up: ``await rt.project(orders, count, into=totals)``.

        Args:
            stream: the ref of a `StreamAgent`.
            fn: a plain function of the target's state and an event; it returns the new state.
            into: the target; the position is kept with its state, in the same atomic step.
            default: the target's state before the first event, if nothing is saved.

        Raises:
            UnsupportedOperationError: ``stream`` is none, or ``into`` is one.
            NameTakenError: it is projected into this target already.
        """
        return Projection(stream, fn, into, default)

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

    async def checkpoint(self, path: str | Path, refs: Sequence[Ref[Any]] | None = None) -> None:
        """Write one consistent cut of several actors to a file: their states, and their queued `tell` messages.

        Args:
            path: the file; replaced as a whole if it exists.
            refs: the actors; all that run if left out.

        Raises:
            StateSerializationError: a queued message or a state is not data that another process could read.
            StorageError: the file can't be written.
        """
        await write_checkpoint(path, refs if refs is not None else [self.get(name) for name in self.names()])

    @classmethod
    def restore(cls, path: str | Path, *, agents: Mapping[str, Agent] | None = None, **options: Any) -> Runtime:
        """Return a runtime that begins with the actors of a checkpoint: ``async with Runtime.restore(path) as rt:``.

        Args:
            path: the checkpoint file.
            agents: what the actors are made of, by name, where the file can't tell (functions, secrets).
            options: those of `Runtime`.

        Raises:
            StateCorruptionError: on entering, if the file is damaged.
            StateSerializationError: on entering, if an actor's agent must be given.
        """
        runtime = cls(**options)
        if agents is not None and not isinstance(agents, Mapping):
            raise TypeError(f"restore: agents is {agents!r}; give a mapping of names to agents")
        runtime._restores = (check_path("path", path), agents)
        return runtime

    async def __aenter__(self) -> Runtime:
        await super().__aenter__()
        try:
            if self._inspection is not None:
                await self._inspection.open()
            if self._restores is not None:
                path, agents = self._restores
                await self.fork(path, agents=agents)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def end(self) -> None:
        if self._inspection is not None:
            await self._inspection.close()

    async def fork(
        self,
        path: str | Path,
        rename: Callable[[str], str] = str,
        *,
        agents: Mapping[str, Agent] | None = None,
    ) -> list[Ref[Any]]:
        """Bring up the actors of a checkpoint in this runtime, beside the originals, and return their refs.

        Args:
            path: the checkpoint file.
            rename: gives each actor its name here.
            agents: what the actors are made of, by their names in the file, where that can't be told from it or is to
                be another (a file of its own, for example).
        """
        if not callable(rename):
            raise TypeError(f"fork: rename is {rename!r}; give a function of a name")
        return await bring_up(self, await read_checkpoint(path), agents, rename)

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
