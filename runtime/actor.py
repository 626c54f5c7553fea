"""The actor: one owner of one state, and how its messages become turns.

A `Cell` is the actor behind a `Ref`. While it is *free* (running, no turn in progress, nothing queued) a turn that
needs no I/O runs at once inside its caller's ``await``, with no task switch. Otherwise the message is queued, and one
task of the runtime's own, alive only while there is something to do, takes the turns in order.

Invariants
  1. One turn at a time. ``free`` is true only while ``phase`` is RUNNING, the mailbox is empty and no task drains it.
  2. A turn once started is finished, whatever becomes of its caller.
  3. A reply leaves only through the gate: at once when nothing is being written, else when that is durable.
  4. Each queued message is answered: by its turn, or with an error when the actor stops.

| phase      | means                                    | next                                               |
|------------|------------------------------------------|----------------------------------------------------|
| PASSIVE    | not in memory; the next message wakes it | RUNNING (`_activate`), STOPPED (`_stop`)           |
| RUNNING    | owns its state                           | RESTARTING (`doubt`, `crash`), PASSIVE, STOPPED    |
| RESTARTING | its backend failed                       | RUNNING (`recovery.recover`), STOPPED (`_stop`)    |
| STOPPED    | refuses every message                    | (final)                                            |
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NoReturn

import anyio

from dgents.runtime.commit import Failure, Staged
from dgents.runtime.contract import Agent, Backend, Opened, Record
from dgents.runtime.deadlock import TurnInProgress, current_turn, turn_in_progress
from dgents.runtime.errors import ActorStoppedError, DgentError, MailboxFullError, StateError, StorageError
from dgents.runtime.loops import give, in_context
from dgents.runtime.mailbox import RUN_AGAIN, Envelope, Mailbox
from dgents.runtime.phase import Phase
from dgents.runtime.recovery import recover, refuse_in_doubt
from dgents.runtime.shared import reread, take_shared_turns
from dgents.runtime.stored import StoredTurns
from dgents.runtime.tell import Receipt
from dgents.runtime.turns import MISSING, SCALARS, BackendFailure, Form, Interrupted

if TYPE_CHECKING:
    from dgents.runtime.commit import Committer
    from dgents.runtime.loops import Timer
    from dgents.runtime.runtime import BaseRuntime

# A tell is drained without a caller that waits; past this many records in one batch the draining waits instead.
MOST_STAGED = 4096

# Shared by all actors: a frozenset of its own would be a third of an idle actor's memory.
_NO_SCALARS: frozenset[type] = frozenset()
_ONLY: tuple[tuple[type, frozenset[type]], ...] = tuple((scalar, frozenset({scalar})) for scalar in SCALARS)


class Cell(StoredTurns):
    """One actor. Everything here runs in the runtime's thread."""

    __slots__ = (
        "__weakref__",
        "agent",
        "batch",
        "coop",
        "depth",
        "fails_fast",
        "limit",
        "mailbox",
        "misses",
        "on_idle",
        "restarts",
        "stopped",
        "stopping",
        "thread",
        "touched",
        "turn",
        "turns",
        "virtual",
    )

    def __init__(self, runtime: BaseRuntime, name: str, agent: Agent) -> None:
        self.runtime = runtime
        self.loop = runtime.loop
        self.thread = runtime.thread
        self.coop = runtime.coop
        self.name = name
        self.agent = agent
        self.backend: Backend = None  # type: ignore[assignment]  # there from `start` on
        self.committer: Committer | None = None
        self.mailbox = Mailbox(runtime.mailbox_size)
        self.phase = Phase.PASSIVE
        self.free = False  # a turn may run in its caller's task
        self.hit = False  # so may one that only reads: as `free`, and for a cached shared state that is fresh
        self.draining = False
        self.listening = False  # to what other processes change
        self.expiry: Timer | None = None  # when a cached state is to be read again
        self.misses = 0
        self.evictions = 0
        self.stopping: ActorStoppedError | None = None  # set: stop once the mailbox is drained
        self.stopped: list[Any] | None = None  # who waits for the end
        self.on_idle: Callable[[Cell], Any] | None = None  # virtual: passivate when drained
        self.in_doubt: Sequence[Staged] = ()
        self.error: BaseException | None = None
        self.turn: TurnInProgress | None = None
        self.supervision: Any = None
        self.depth = 0  # of its supervisor in the tree
        self.fails_fast = False  # refuses messages during a restart, instead of queueing them
        self.watchers: Any = None
        self.observed = False
        self.virtual = False  # wakes again with the next message
        self.behind: Any = None  # write-behind: what is acknowledged and not stored yet
        self.limit: tuple[int, float] | None = None  # bytes, and the budget that they come from
        self.batch: Sequence[Envelope] = ()  # shared: the turns being tried
        self.fresh = False  # shared: the state in memory is the newest that we know of
        self.heard = 0
        self.turns = 0
        self.touched = 0
        self.restarts = 0
        self.settling: Any = None
        self.gate = None
        self.keep = 0
        self.deltas = False
        self.codec = runtime.codec(agent)
        self.scalars = _NO_SCALARS
        self.clear()

    # Starting and stopping

    async def start(self) -> None:
        """Make the backend and open it: the actor owns its state from here on.

        Raises:
            ActorStoppedError: it was told to stop meanwhile; the backend is closed.
        """
        is_spawned = not self.draining  # else it is a message that wakes it
        self.draining = True  # nobody else opens or closes the backend
        try:
            await self._open(is_spawned)
        except BaseException:
            for waiter in self.stopped or ():
                give(waiter, None)
            raise
        finally:
            if is_spawned:
                self.draining = False
        if is_spawned and (self.stopping is not None or self.phase is not Phase.RUNNING):
            self.wake()  # told so while it began to listen

    async def _open(self, is_spawned: bool) -> None:
        self.backend = self.agent.backend(self.name, self.runtime.resources)
        size_limit = getattr(self.agent, "size_limit", None)
        self.limit = size_limit(self.depth) if size_limit is not None else None
        self.runtime.resources.claim(self.backend, self.name)
        behind = None
        try:
            opened = await self.backend.open()
            attach = getattr(self.backend, "attach", None)
            if attach is not None:
                behind = self.behind = attach(self)
                self.observed = True
            self.adopt(opened)
            if self.phase is Phase.STOPPED or (is_spawned and self.stopping is not None):
                self.refuse()  # its runtime waited no longer, or its supervisor was given up
            self.phase = Phase.RUNNING
            await self.listen()
        except BaseException as error:  # whatever it holds can't be used: let go of it, so that another may mend it
            with anyio.CancelScope(shield=True):
                if behind is not None:  # what a journal had is being flushed already
                    await behind.end(error)
                await self.let_go()
            raise

    def adopt(self, opened: Opened) -> None:
        """Take over what the backend found."""
        if self.behind is not None and self.behind.count and not self.behind.journaled:
            self.epoch = opened.epoch  # memory is ahead of the store, which is all that there is of it
            self.backend.replay(self)  # type: ignore[attr-defined]
            self.is_fresh(self.heard)
            return
        store = self.backend.store if self.behind is None or self.behind.journaled else None
        self.committer = self.runtime.committer(store) if store is not None else None
        self.deltas = self.backend.deltas and store is not None  # memory keeps each version whole
        self.keep = max(self.backend.max_history - 1, 0) if store is None else 0
        self.scalars = (
            _scalars(getattr(self.agent, "schema", None)) if store is None and self.limit is None else _NO_SCALARS
        )
        if self.behind is not None:  # what could not be stored later is refused now
            self.scalars = _storable(self.scalars)
        self.clear()
        self.adopt_record(opened.record)
        self.epoch = opened.epoch
        self.misses += 1
        self.listening = False
        self.is_fresh(self.heard)
        if self.behind is not None:
            self.backend.replay(self)  # type: ignore[attr-defined]

    def adopt_record(self, record: Record | None) -> None:
        """Make a stored version the state in memory, or the initial state where none is stored.

        What can't be read is raised, and leaves memory as it is.
        """
        value, data, lifted_at = MISSING, None, -1
        if record is None:
            initial = getattr(self.agent, "initial", MISSING)
            if initial is not MISSING:
                (value, data), lifted_at = self.encode(initial), 0
        elif (data := record.data) is not None:
            try:
                state = self.codec.decode(data, record.schema)
            except StateError as error:
                raise self.named(error) from error.__cause__
            if record.schema != self.codec.version:
                value, data = self.encode(state)
            else:
                value = state if self.codec.is_immutable(state) else MISSING
                data = self.codec.complete(data, state)
            if data is not record.data:  # the store can't follow a change to what it has not got
                lifted_at = record.version
        self.value, self.data, self.tree = value, data, MISSING
        self.earlier, self.lifted_at = None, lifted_at
        self.version, self.saved_at = (record.version, record.saved_at) if record is not None else (0, 0.0)

    def stop(self, why: str, waiter: Any = None) -> Any:
        """Begin to stop: what is queued is still answered, nothing new is taken. Returns a waiter for the end."""
        waiter = waiter or self.loop.waiter()
        if self.phase is Phase.STOPPED:
            give(waiter, None)
            return waiter
        self.stopped = [*(self.stopped or ()), waiter]
        if self.stopping is None:
            self.stopping = ActorStoppedError(
                f"actor {self.name!r} is stopped: {why}", actor=self.name, hint="spawn it again to use it"
            )
        self.wake()
        return waiter

    def kill(self, error: BaseException) -> None:
        """Stop now, after ``error``: every queued message is answered with it, nothing more is written."""
        self.free = self.hit = False
        self.phase = Phase.STOPPED
        self.error = error
        self.fresh = self.fresh and self.gate is None and not self.in_doubt
        self.stopping = self.stopping or ActorStoppedError(
            f"actor {self.name!r} has stopped after {type(error).__name__}: {error}",
            actor=self.name,
            hint="see the cause, mend the store, and spawn it again",
        )
        self.stopping.__cause__ = error
        for envelope in iter(self.mailbox.take, None):
            give(envelope.waiter, Failure(self.stopping))
        self.notify()

    def stop_after(self, error: BaseException | None) -> None:
        """Stop because the supervisor gave up after ``error``: nothing more is taken, what waits is answered."""
        self.kill(error or StorageError(f"{self.name!r} was stopped by its supervisor", actor=self.name))
        self.wake()

    def describe(self) -> str:
        """Return the actor in a line, for the tree."""
        return (
            f"{self.name} [{type(self.agent).__name__}] {self.phase.value}, version {self.version}, {self.turns} turns"
            + (f", {self.restarts} restarts" if self.restarts else "")
        )

    def abandon(self, seconds: float) -> None:
        """The runtime can wait no longer: answer everybody, with the truth."""
        error = StorageError(
            f"{self.name!r} could not be flushed within {seconds} s",
            actor=self.name,
            outcome="unknown",
            hint="raise Runtime(shutdown_timeout=), or look at what keeps the store",
        )
        in_flight = self.committer.in_flight(self) if self.committer is not None else ()
        waiting = {*in_flight, *self.in_doubt, *([self.gate] if self.gate is not None else [])}
        self.kill(error)
        for staged in waiting:
            staged.refuse(error)
        self._answer_in_hand(error)
        if self.behind is not None:
            self.behind.abandon(error)

    def _answer_in_hand(self, error: DgentError) -> None:
        """Answer the turns that were taken from the mailbox and will not end."""
        in_hand = [envelope.waiter for envelope in self.batch]
        if self.turn is not None:
            in_hand.append(self.turn.waiter)
        for waiter in in_hand:
            give(waiter, Failure(error))

    @property
    def takes_messages(self) -> bool:
        return self.stopping is None and not self.runtime.closing

    def last_form(self) -> Form | None:
        """Return what a stopped actor ended with; None if nothing is saved, or that is not known to be durable."""
        return self.form_or_none() if self.fresh else None

    def refuse(self) -> NoReturn:
        """Raise why this actor takes no message."""
        assert self.stopping is not None
        error = type(self.stopping)(self.stopping.message, actor=self.name, hint=self.stopping.hint)
        raise error from self.error

    # Sending

    def call(self, turn: Callable[..., Any], *args: Any, alone: bool = False) -> Awaitable[Any]:
        """Queue a turn, once it is awaited, and return its reply."""
        return self.send(Envelope(turn, args, self.loop.waiter(), alone=alone))

    async def send(self, envelope: Envelope) -> Any:
        """Put an envelope into the mailbox and return its reply.

        Cancellation: before the turn starts it leaves no trace; afterwards the turn completes and its reply is
        dropped.
        """
        self.admit(envelope.message, waits=True)
        if current_turn.get() is None or (asker := turn_in_progress()) is None:
            self.post(envelope)
            reply = await envelope.waiter
        else:
            with asker.waiting_for(self, envelope.waiter, envelope):
                self.post(envelope)
                reply = await envelope.waiter
        if type(reply) is Failure:
            raise reply.again()
        return reply

    def admit(self, message: Any, *, waits: bool) -> None:
        """Raise unless the mailbox takes another message; a sender that waits is its own bound."""
        self.runtime.check_thread()
        if self.stopping is not None:
            self.refuse()
        if self.fails_fast and self.phase is Phase.RESTARTING:
            raise StorageError(
                f"actor {self.name!r} is being restarted after: {self.error}",
                actor=self.name,
                outcome="not_started",
                hint="try again, or spawn it with while_restarting='wait'",
            )
        if (not waits or self.runtime.overflow == "reject") and self.mailbox.full:
            raise MailboxFullError(
                f"the mailbox of {self.name!r} is full ({len(self.mailbox)} of {self.mailbox.limit} messages)",
                actor=self.name,
                refused=message,
                hint="send slower, await ask() instead of tell(), or raise Runtime(mailbox_size=)",
            )

    def post(self, envelope: Envelope) -> None:
        """Put an envelope into the mailbox, and see to it that somebody takes it."""
        self.mailbox.put(envelope)
        self.wake()

    def wake(self) -> None:
        """See to it that somebody takes what is in the mailbox."""
        self.free = self.hit = False
        if not self.draining:
            self.draining = True
            self.loop.start(self._drain)

    # Turns

    async def _drain(self) -> None:
        """Take the queued turns, one after the other, until there are none."""
        while True:
            try:
                while self._nothing_special and (envelope := self.mailbox.take()) is not None:
                    await self.take_turn(envelope)
                if await self._step():
                    continue
            except (Exception, CancelledError) as error:  # ours, not the user's: better stopped than stuck
                self.runtime.emit("crashed", self.name, error=error)
                await self._end(error)
            break
        self.draining = False

    @property
    def _nothing_special(self) -> bool:
        """Whether the next thing to do is the next turn."""
        return (
            self.phase is Phase.RUNNING
            and not self.is_shared
            and (self.fresh or self.ttl is None)
            and (self.behind is None or not self.behind.is_full)
            and (self.gate is None or len(self.gate.records) < MOST_STAGED)
        )

    async def _step(self) -> bool:
        """Do the next thing that is due; return False when there is nothing left to do."""
        if self.phase is Phase.PASSIVE and len(self.mailbox):  # also if it is to stop: what is queued is answered first
            await self._activate()
        elif self.phase is Phase.RESTARTING:
            await recover(self)
        elif self.phase is Phase.STOPPED:
            await self._end(self.error)
            return False
        elif self.is_shared and len(self.mailbox):
            await take_shared_turns(self)
        elif not self.fresh and self.ttl is not None and len(self.mailbox):
            await reread(self)
        elif self.behind is not None and self.behind.is_full and len(self.mailbox):
            await self.behind.room()
        elif self.gate is not None and len(self.gate.records) >= MOST_STAGED:
            await self.settled()
        elif (envelope := self.mailbox.take()) is not None:
            await self.take_turn(envelope)
        elif self.gate is not None and (self.stopping is not None or self.on_idle is not None):
            await self.settled()
        elif self.behind is not None and self.behind.count and (self.stopping is not None or self.on_idle is not None):
            await self.behind.flush()
        elif self.stopping is not None:
            await self._end(None)
            return False
        elif self.on_idle is not None:
            await self._passivate()
        else:
            self.rest()
            return False
        return True

    async def take_turn(self, envelope: Envelope) -> None:
        """Run one turn and answer it."""
        reply = await self.run(envelope)
        if reply is not RUN_AGAIN:
            self.answer(envelope, reply)

    async def run(self, envelope: Envelope) -> Any:
        """Run one turn to its end and return its reply; RUN_AGAIN if it could not be finished and is queued again."""
        self.turns += 1
        self.touched = self.coop.turn
        envelope.started = True
        try:
            context = envelope.context.copy()  # it may be run again
            reply = context.run(envelope.turn, *envelope.args)
            if type(reply) is not CoroutineType:
                return reply
            turn = self.turn = TurnInProgress(self, envelope.waiter, self.loop.current_task())
            context.run(current_turn.set, turn)
            try:
                return await in_context(context, reply)
            finally:
                turn.active = False
                self.turn = None
        except Interrupted:
            self.mailbox.put_back(envelope)
            return RUN_AGAIN
        except BackendFailure as failure:
            return self.crash_in(envelope, failure.error)
        except BaseException as error:  # also a cancellation that the user's function met in a task it awaited
            if type(error) is GeneratorExit and _is_ours(error):
                raise
            return Failure(error)

    def crash_in(self, envelope: Envelope, error: StorageError) -> Any:
        """The backend failed in the middle of a turn: try the message once more, after a restart."""
        self.crash(error)
        if envelope.crashes:
            if type(envelope.waiter) is not Receipt:  # which publishes it
                self.runtime.emit("dead_letter", self.name, message=envelope.payload, error=error)
            return Failure(error)
        envelope.crashes += 1
        self.mailbox.put_back(envelope)
        return RUN_AGAIN

    def answer(self, envelope: Envelope, reply: Any) -> None:
        """Send a reply, through the gate."""
        if self.gate is not None:
            self.gate.answer(envelope.waiter, reply)
        else:
            give(envelope.waiter, reply)

    # What it is doing

    @property
    def is_idle(self) -> bool:
        """Whether it runs and has nothing to do."""
        return self.phase is Phase.RUNNING and not self.draining and self.gate is None

    @property
    def is_restarting(self) -> bool:
        return self.phase is Phase.RESTARTING

    def run_again(self) -> None:
        """The backend is open again: go on with what waits."""
        self.phase = Phase.RUNNING
        self.error = None
        self.fresh = not self.is_shared
        self.loop.start(self.listen)
        self.notify()  # of what turned out to be stored

    # The end of a life

    async def _activate(self) -> None:
        try:
            await self.runtime.activate(self)
        except Exception as error:
            for envelope in iter(self.mailbox.take, None):
                give(envelope.waiter, Failure(error))
            if not isinstance(error, DgentError):
                self.runtime.emit("crashed", self.name, error=error)

    async def let_go(self) -> None:
        """Close the backend, whatever comes of it: nobody could do better."""
        try:
            with anyio.CancelScope(shield=True):
                await self.backend.close()
        except Exception as error:
            self.runtime.emit("warning", self.name, message="its backend could not be closed", error=error)
        self.runtime.resources.unclaim(self.backend)

    async def _passivate(self) -> None:
        """Leave memory: all is durable, and no message waits."""
        on_idle, self.on_idle = self.on_idle, None
        await self.let_go()
        if self.phase is Phase.STOPPED:  # its runtime waited no longer
            return
        self.phase = Phase.PASSIVE
        if self.expiry is not None:
            self.expiry.cancel()
        self.clear()
        if on_idle is not None:
            on_idle(self)

    async def _end(self, error: BaseException | None) -> None:
        if self.phase is not Phase.STOPPED and self.stopping is None:
            self.kill(error or StorageError("stopped"))
        self.phase = Phase.STOPPED
        self.free = self.hit = False
        self.on_idle = None
        if self.expiry is not None:
            self.expiry.cancel()
        if self.behind is not None:
            await self.behind.end(error)
        if self.backend is not None:
            await self.let_go()
        stopping = self.stopping or ActorStoppedError("stopped", actor=self.name)
        for envelope in iter(self.mailbox.take, None):
            give(envelope.waiter, Failure(stopping))
        self._answer_in_hand(
            ActorStoppedError(stopping.message, actor=self.name, outcome="unknown", hint=stopping.hint)
        )
        refuse_in_doubt(self, error)
        self.runtime.ended(self, error)
        waiters, self.stopped = self.stopped or (), None
        if self.virtual and not self.runtime.closing:
            self.phase, self.stopping, self.error = Phase.PASSIVE, None, None
        for waiter in waiters:
            give(waiter, error)
        self.notify()


def _is_ours(error: GeneratorExit) -> bool:
    """Say whether it closes our own coroutine, whose loop is gone, and was not raised by the user's function."""
    assert error.__traceback__ is not None
    return error.__traceback__.tb_next is None


@cache
def _storable(scalars: frozenset[type]) -> frozenset[type]:
    """Return those of which each value can be stored, whatever its size, and whatever it holds."""
    return scalars - {str, bytes}


def _scalars(schema: Any) -> frozenset[type]:
    """Return the immutable types that need no encoding to be checked against the schema."""
    if schema is None:
        return SCALARS
    return next((only for scalar, only in _ONLY if scalar is schema), _NO_SCALARS)
