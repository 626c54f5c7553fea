"""The runtime: the lifetime of all actors, as one ``async with`` block.

Leaving the block stops everything in reverse order of spawning: what is queued is answered, what was written is
flushed, backends are closed, within a deadline; what could not be flushed is named in the error that is raised.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from functools import partial
from types import TracebackType
from typing import Any, Literal, NoReturn, TypeVar, cast, get_args
from uuid import uuid4
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary, ref

import anyio

from dgents.runtime.actor import Cell
from dgents.runtime.arguments import check_agent, check_choice, check_count, check_name, check_seconds, check_text
from dgents.runtime.codec import Codec
from dgents.runtime.commit import Committer, Failure
from dgents.runtime.contract import Agent, Store
from dgents.runtime.coop import Coop
from dgents.runtime.deadlock import turn_in_progress
from dgents.runtime.errors import ActorStoppedError, NameTakenError, StorageError
from dgents.runtime.events import Event, Events, EventStream
from dgents.runtime.loops import Loop, give, running_loop
from dgents.runtime.mailbox import Envelope
from dgents.runtime.phase import Phase
from dgents.runtime.portal import Portal
from dgents.runtime.ref import Ref, blind
from dgents.runtime.reminders import Reminders
from dgents.runtime.resources import SharedResources
from dgents.runtime.stats import ActorStats, stats_of
from dgents.runtime.timetable import Timetable
from dgents.runtime.virtual import Family

_LAST_WAIT = 1.0  # seconds for backends to be closed after the deadline

Overflow = Literal["wait", "reject"]
S = TypeVar("S")

# Where refs look for their runtime when they are unpickled; a runtime that is gone leaves by itself.
_open_runtimes: WeakValueDictionary[str, BaseRuntime] = WeakValueDictionary()
_born_here: WeakSet[BaseRuntime] = WeakSet()
_lives = threading.local()  # each thread's `ThreadLife`


class ThreadLife:
    """Lives as long as its thread: the id of a thread that has ended is soon that of another one."""

    __slots__ = ("__weakref__",)


class BaseRuntime:
    """Actors and their names, their stores, and their end. Supervision is added by `dgents.Runtime`."""

    def __init__(
        self,
        *,
        mailbox_size: int = 1024,
        overflow: Overflow = "wait",
        shutdown_timeout: float = 30.0,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        check_count("mailbox_size", mailbox_size, of="number of messages")
        check_choice("overflow", overflow, get_args(Overflow))
        check_seconds("shutdown_timeout", shutdown_timeout, positive=False, bounded=False)
        if on_event is not None and not callable(on_event):
            raise TypeError(f"on_event is {on_event!r}; give a function of an event")
        self.mailbox_size = mailbox_size
        self.overflow = overflow
        self.shutdown_timeout = shutdown_timeout
        self._on_event = on_event
        self.id = uuid4().hex
        self.thread: int | None = None  # its id; -1, which no thread has, once that thread is not here any more
        self._entering = threading.Lock()
        self.coop = Coop()
        self.closing = False
        self.closed = False
        self._cells: dict[str, Cell | None] = {}  # None: being spawned
        self._virtual: WeakValueDictionary[str, Cell] = WeakValueDictionary()
        self._families: list[Family] = []
        self._internal: set[str] = set()  # names of actors of our own
        self.reminders = Reminders(self)
        self._codecs: dict[Any, Codec[Any]] = {}
        self._committers: WeakKeyDictionary[Any, Committer] = WeakKeyDictionary()

    # Its life

    async def __aenter__(self) -> Any:
        if self.thread is not None:
            raise RuntimeError("this runtime was used before: make another one")
        self.loop: Loop = running_loop()
        self.coop.task = self.loop.current_task
        self.thread = threading.get_ident()
        if not hasattr(_lives, "mine"):
            _lives.mine = ThreadLife()
        self._thread_life = ref(_lives.mine, lambda _: self.lose_thread())
        self._pid = os.getpid()
        self._events = Events(self.loop, self._on_event)
        self.emit = self._events.emit
        self.timetable = Timetable(self.loop)
        self.resources = SharedResources(self.loop, self.emit)
        self.portal = Portal(self)
        _open_runtimes[self.id] = self
        _born_here.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing = True
        done = self.loop.waiter()
        self.loop.start(self._close, done)
        failure: BaseException | None = await self.loop.wait_shielded(done)
        if failure is not None:
            raise failure from error

    async def _close(self, done: Any) -> None:
        failure: BaseException | None = None
        try:
            failure = await self._shut_down()
        except Exception as error:
            failure = error
        finally:
            with self._entering:  # what a thread has been let in with is started before the event loop ends
                self.closed = True
            self.coop.forget_task()
            self._events.close()
            for cell in self._virtual.values():  # also those that are not in memory have ended
                cell.notify()
            _open_runtimes.pop(self.id, None)
            give(done, failure)

    async def _shut_down(self) -> StorageError | None:
        """Stop everything within the deadline; return what is to be said of what could not be flushed."""
        self.reminders.close()
        for family in self._families:
            family.close()
        with anyio.move_on_after(self.shutdown_timeout):
            await self._quiesce()
            for waiter in [cell.stop("its runtime was closed") for cell in self._newest_first()]:
                await waiter
        late = [cell for cell in self._newest_first() if cell.phase is not Phase.STOPPED]
        for cell in late:
            cell.abandon(self.shutdown_timeout)
        await self._let_go_of(late)
        self.timetable.close()
        await self.end()
        await self.resources.close()
        if not late:
            return None
        names = ", ".join(repr(cell.name) for cell in late[:20]) + (", ..." if len(late) > 20 else "")
        return StorageError(
            f"{len(late)} actors did not stop within {self.shutdown_timeout} s; not flushed: {names}",
            outcome="unknown",
            hint="look at the events for what held them up, or raise Runtime(shutdown_timeout=)",
        )

    async def _let_go_of(self, cells: Sequence[Cell]) -> None:
        """Close the backends of those that could not stop, so that a next owner is not locked out; not for long."""

        async def let_go(cell: Cell, done: Any) -> None:
            await cell.let_go()
            give(done, None)

        waiters = [self.loop.waiter() for _ in cells]
        for cell, waiter in zip(cells, waiters, strict=True):
            self.loop.start(let_go, cell, waiter)
        with anyio.move_on_after(_LAST_WAIT):
            for waiter in waiters:
                await waiter

    async def end(self) -> None:
        """Let go of what a subclass has opened; all actors have stopped."""

    async def _quiesce(self) -> None:
        """Let the turns that are queued or running finish: they may still ask other actors."""
        while None in self._cells.values():  # an actor that is being spawned is let go of as soon as it is there
            await self.loop.sleep(0.001)
        while busy := [cell for cell in (*self._newest_first(), *self._virtual.values()) if cell.draining]:
            for cell in busy:
                done = self.loop.waiter()
                cell.post(Envelope(_nothing, (), done))  # not by `call`, which a closing runtime refuses
                await done

    def _newest_first(self) -> list[Cell]:
        return [cell for cell in reversed(list(self._cells.values())) if cell is not None]

    # Actors

    async def start(self, name: str, agent: Agent, supervise: Callable[[Cell], None]) -> Ref[Any]:
        """Start an actor under a supervisor."""
        self.check_thread()
        if not isinstance(name, str) or not name:
            raise ValueError(f"an actor's name is a string that is not empty, not {name!r}")
        check_agent(f"spawn({name!r})", agent)
        if self.closing:
            raise self.closed_error()
        if name in self._cells or self._family(name) is not None:
            raise NameTakenError(
                f"there is an actor {name!r} already",
                actor=name,
                hint="get it with rt.get(name), or stop it first",
            )
        cell = self._make_cell(name, agent)
        self._cells[name] = None
        try:
            supervise(cell)
            await cell.start()
            await self._check_open(cell)
        except BaseException:
            del self._cells[name]
            if cell.supervision is not None:
                cell.supervision.ended(cell)
            raise
        self._cells[name] = cell
        cell.rest()
        self.emit("spawned", name, agent=type(agent).__name__)
        if name not in self._internal and (ledger := self.reminders.ledger(cell)) is not None:
            with anyio.CancelScope(shield=True):  # the actor is there: its spawning has succeeded
                await self.reminders.discover(cell, ledger)
        return self._ref(cell)

    async def start_internal(self, what: str, agent: Agent) -> Ref[Any]:
        """Start an actor of the runtime's own, which `names` and `stats` leave out."""
        name = f"dgents/{what}/{len(self._internal) + 1}"
        self._internal.add(name)
        return await self.start(name, agent, self.supervise)

    async def _check_open(self, cell: Cell) -> None:
        """Let go of an actor whose runtime began to close while it was spawned; the end waits for this."""
        if self.closing:
            await cell.let_go()
            raise self.closed_error()

    def _make_cell(self, name: str, agent: Agent) -> Cell:
        cell_type = cast(type[Cell], getattr(agent, "cell_type", Cell))
        return cell_type(self, name, agent)

    def get(self, name: str) -> Ref[Any]:
        """Return the ref of an actor that runs.

        Raises:
            KeyError: there is none of this name.
        """
        check_name("get", name)
        cell = self._cells.get(name)
        if cell is None:
            raise KeyError(f"no actor {name!r} runs here; spawn it, or rt.ref(name) for a virtual one")
        return self._ref(cell)

    def names(self) -> list[str]:
        """Return the names of the actors that run, in the order in which they were spawned."""
        return [name for name, cell in self._cells.items() if cell is not None and name not in self._internal]

    async def stop(self, ref: Ref[Any] | str) -> None:
        """Stop an actor: what is queued is answered, what was written is flushed, its backend is closed.

        Raises:
            KeyError: there is none of this name.
            DeadlockError: called in a turn of that actor.
        """
        name = ref.name if isinstance(ref, Ref) else ref
        check_name("stop", name)
        cell = self._cells.get(name)
        if cell is None:
            if isinstance(ref, str) and self._family(name) is None:
                raise KeyError(f"no actor {name!r} runs here")
            return
        turn = turn_in_progress()
        if turn is None:
            await cell.stop("it was stopped")
            return
        waiter = self.loop.waiter()
        with turn.waiting_for(cell, waiter):
            cell.stop("it was stopped", waiter)
            reply = await waiter
        if type(reply) is Failure:
            raise reply.again()

    def register(
        self,
        prefix: str,
        factory: Callable[[str], Agent],
        *,
        idle_timeout: float | None = None,
        max_active: int | None = None,
    ) -> None:
        """Let ``factory(key)`` make the actors of ``prefix`` when they are first used.

        Args:
            prefix: ``"user"`` or ``"user/"``; ``rt.ref("user/42")`` then gives the actor of key ``"42"``.
            factory: returns the description of the actor of a key; it does no I/O.
            idle_timeout: seconds without a message after which an actor leaves memory; None: never.
            max_active: how many may be in memory at once; the least recently used ones leave first.

        Raises:
            NameTakenError: the prefix is registered already.
        """
        check_text("register", "prefix", prefix)
        if not callable(factory):
            raise TypeError(
                f"register: the factory is {type(factory).__name__}; give a function of the key that returns an agent"
            )
        if any(family.prefix.rstrip("/") == prefix.rstrip("/") for family in self._families):
            raise NameTakenError(f"the prefix {prefix!r} is registered already", hint="register each prefix once")
        self._families.append(Family(self, prefix, factory, idle_timeout, max_active))
        self._families.sort(key=lambda family: -len(family.prefix))  # the longest prefix wins

    def ref(self, name: str) -> Ref[Any]:
        """Return a ref on a virtual actor (or on a spawned one); the first message activates it.

        Raises:
            KeyError: no registered prefix fits, and no actor has this name.
        """
        check_name("ref", name)
        cell = self._cells.get(name) or self._virtual.get(name)
        if cell is None:
            family = self._family(name)
            if family is None:
                raise KeyError(f"no actor and no registered prefix for {name!r}; spawn it, or rt.register() its prefix")
            if self.closing:
                raise self.closed_error()
            agent = family.make(name)
            check_agent(f"the factory of {family.prefix!r} for {name!r}", agent)
            cell = self._virtual[name] = self._make_cell(name, agent)
            cell.virtual = True
        return self._ref(cell)

    # What the actors ask of their runtime

    async def activate(self, cell: Cell) -> None:
        """Bring a virtual actor into memory."""
        family = self._family(cell.name)
        assert family is not None
        self._cells[cell.name] = cell
        self.supervise(cell)
        try:
            await family.activate(cell)
        except BaseException:
            self._forget(cell)
            raise
        self.emit("activated", cell.name)
        if (ledger := self.reminders.ledger(cell)) is not None:
            await self.reminders.discover(cell, ledger)

    def addressable(self, name: str) -> Cell | None:
        """Return the actor of a name, virtual ones included, or None."""
        cell = self._cells.get(name)
        if cell is None and self._family(name) is not None and not self.closing:
            cell = self.ref(name)._cell
        return cell

    def blind_ref(self, cell: Cell) -> Ref[Any]:
        """Return a ref for messages that nobody's task has sent."""
        return blind(cell)

    def passivated(self, cell: Cell) -> None:
        """Take note that a virtual actor has left memory."""
        self._forget(cell)
        self.emit("passivated", cell.name)

    def ended(self, cell: Cell, error: BaseException | None) -> None:
        """Take note that an actor has stopped."""
        self._forget(cell)
        if cell.virtual and (family := self._family(cell.name)) is not None:
            family.forget(cell)
        self.emit("stopped", cell.name, error=error)

    def _forget(self, cell: Cell) -> None:
        if self._cells.get(cell.name) is cell:
            del self._cells[cell.name]
        if cell.supervision is not None:
            cell.supervision.ended(cell)

    def current_cell(self, cell: Cell) -> Cell:
        """Return the actor that now has the name of one that stopped, or that one."""
        return self._cells.get(cell.name) or cell

    def committer(self, store: Store) -> Committer:
        """Return the one committer of a store."""
        committer = self._committers.get(store)
        if committer is None:
            committer = self._committers[store] = Committer(store, self.loop)
        return committer

    def codec(self, agent: Agent) -> Codec[Any]:
        """Return the codec for the states of an agent; agents of one schema share it."""
        schema, migrations = getattr(agent, "schema", None), getattr(agent, "migrations", None)
        local = bool(getattr(agent, "local", False))
        key = (schema, id(migrations) if migrations else None, local)
        try:
            codec = self._codecs.get(key)
        except TypeError:  # it can't be hashed: no type, as the codec will say, or annotated with something like a dict
            return Codec(schema, migrations=migrations, local=local)
        if codec is None:
            codec = self._codecs[key] = Codec(schema, migrations=migrations, local=local)
        return codec

    def supervise(self, cell: Cell) -> None:
        """Put a virtual actor under supervision, while it is in memory."""
        raise NotImplementedError

    # Looking in

    def events(self) -> EventStream:
        """Iterate over the lifecycle events from now on."""
        self.check_thread()
        return self._events.listen()

    def stats(self) -> dict[str, ActorStats]:
        """Return a snapshot of the figures of each actor."""
        return {name: stats_of(cell) for name in self.names() if (cell := self._cells[name]) is not None}

    # Threads and forks

    def check_thread(self) -> None:
        """Refuse calls from outside the runtime's thread, its process or its life."""
        if self.thread is None:
            raise ActorStoppedError("the runtime is not open", hint="use it as `async with dgents.Runtime() as rt:`")
        if self.closed:
            raise self.closed_error()
        if threading.get_ident() != self.thread:
            self._refuse_thread()
        if self.closing and turn_in_progress() is None:
            raise self.closed_error()

    def is_here(self) -> bool:
        """Say whether this is the thread that the runtime runs in."""
        return threading.get_ident() == self.thread and not self.closed

    def lose_thread(self) -> None:
        """Take note that its thread has ended, or was left behind by a fork: whoever has that id now is another one."""
        self.thread = -1
        for cell in self._newest_first():
            cell.thread = -1
        self.portal.abandon(self.closed_error())

    def _refuse_thread(self) -> NoReturn:
        if os.getpid() != self._pid:
            raise ActorStoppedError(
                f"this runtime belongs to process {self._pid}, from which process {os.getpid()} was forked",
                hint="open a Runtime of its own in each process",
            )
        if self.thread == -1:
            raise self.closed_error()
        raise ActorStoppedError(
            "this runtime runs in another thread",
            hint="use rt.portal: `rt.portal.call(ref.load)` waits for the result from any thread",
        )

    def enter_from_thread(self, context: Context, fn: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Start ``fn(*args)`` in the runtime's thread, in a context of the caller's."""
        if self.thread is None or os.getpid() != self._pid:
            raise self.closed_error()
        with self._entering:
            if self.closed or self.thread == -1:
                raise self.closed_error()
            try:
                self.loop.call_threadsafe(partial(self.loop.start, fn, *args, context=context))
            except RuntimeError as error:  # the event loop has ended, and nobody has closed the runtime
                raise self.closed_error() from error

    def pickled_ref(self, name: str) -> tuple[Any, ...]:
        """Return how a ref of this runtime is pickled: by name."""
        return _unpickle_ref, (self.id, name)

    def closed_error(self) -> ActorStoppedError:
        """Return what a call is told that comes too late."""
        if not self.closing and self.thread == -1:
            return ActorStoppedError(
                "the thread of this runtime has ended, and its event loop with it",
                hint="use a runtime as `async with dgents.Runtime() as rt:`, which closes it",
            )
        return ActorStoppedError("the runtime is closed", hint="send messages inside its `async with` block")

    def _ref(self, cell: Cell) -> Ref[Any]:
        agent = cell.agent
        ref_type = cast(type[Ref[Any]], getattr(agent, "ref_type", Ref))
        return ref_type(cell)

    def _family(self, name: str) -> Family | None:
        return next((family for family in self._families if family.matches(name)), None)


def _nothing() -> None:
    """A turn that only shows that those before it are done."""


def _unpickle_ref(runtime_id: str, name: str) -> Ref[Any]:
    runtime = _open_runtimes.get(runtime_id)
    if runtime is None:
        raise ActorStoppedError(
            f"the runtime of actor {name!r} is not open in this process",
            actor=name,
            hint="refs can be unpickled only within the reach of their runtime; send the name instead",
        )
    return runtime.ref(name)


def _forget_parents_runtimes() -> None:
    """After a fork the child has no event loop and no right to the parent's handles."""
    for runtime in _born_here:
        runtime.lose_thread()


os.register_at_fork(after_in_child=_forget_parents_runtimes)
