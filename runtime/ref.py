"""A `Ref`: the handle by which everybody but its owner reaches an actor."""

from __future__ import annotations

from _thread import get_ident
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from time import time
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import anyio

from dgents.runtime.actor import Cell
from dgents.runtime.arguments import (
    check_changes,
    check_function,
    check_limit,
    check_number,
    check_seconds,
    check_text,
    missing_method,
)
from dgents.runtime.commit import Failure
from dgents.runtime.contract import Agent
from dgents.runtime.errors import AskTimeoutError, StateNotFoundError
from dgents.runtime.lens import Lens
from dgents.runtime.loops import Waiter
from dgents.runtime.mailbox import Envelope
from dgents.runtime.messages import Message
from dgents.runtime.phase import Phase
from dgents.runtime.seen import Seen
from dgents.runtime.shared import take_at_once
from dgents.runtime.tell import Receipt, Sent
from dgents.runtime.transaction import LeasedView, Transaction
from dgents.runtime.turns import MISSING, Form, Pending, Snapshot
from dgents.runtime.watch import Watch

S = TypeVar("S")
T = TypeVar("T")

# A task that never has to wait gives way to the others after this many turns (tokio's cooperative budget).
TURNS_BEFORE_REST = 128
_MASK = TURNS_BEFORE_REST - 1


class Ref(Generic[S]):
    """A handle on one actor: cheap, hashable, to be copied and shared between the tasks of its runtime.

    Every method is one message, applied in one turn of the actor; mailbox order is the serial order. A reply is given
    once what it depends on is durable.

    Cancellation: a caller that is cancelled before its turn starts leaves no trace. Once it started, the turn
    completes and only its reply is dropped.

    All methods raise `ActorStoppedError` when the actor has stopped, `DeadlockError` when called from inside the
    actor's own turn, and `StorageError` when the backend failed for good.
    """

    __slots__ = ("__weakref__", "_cell")

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    @property
    def name(self) -> str:
        """The name of the actor."""
        return self._cell.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def __hash__(self) -> int:
        return hash(self._cell.name)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Ref) and self._cell.name == other._cell.name and self._cell.runtime is other._cell.runtime
        )

    if not TYPE_CHECKING:  # what a ref has not got is an error to type checkers

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)
            raise missing_method(type(self).__name__, self.name, self._cell.agent, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._cell.runtime.pickled_ref(self._cell.name)

    # Reading

    async def load(self, *, default: Any = MISSING, version: int | None = None) -> S:
        """Return the caller's own copy of the state.

        Args:
            default: what to return, as it is, when nothing is saved.
            version: return this one of the kept versions.

        Raises:
            StateNotFoundError: nothing was ever saved (or it was deleted), or that version is not kept.
        """
        cell = self._cell
        coop = cell.coop
        coop.turn = turn = coop.turn + 1
        if not turn & _MASK:
            await cell.loop.checkpoint()
        if cell.hit and version is None and get_ident() == cell.thread:
            cell.turns += 1
            cell.touched = turn
            at, state, data = cell.version, cell.value, cell.data
            if state is not MISSING:
                if cell.gate is not None and (failure := await cell.gate.join()) is not None:
                    raise failure.again()
            elif data is not None:
                if cell.gate is not None and (failure := await cell.gate.join()) is not None:
                    raise failure.again()
                try:
                    state = cell.codec.read(data)
                except (ValueError, TypeError, OverflowError, RecursionError):
                    state = cell.codec.decode(data)  # its second try, or its error
            else:  # nothing saved, or changed by a patch and not encoded since
                return await self._load(default, None)
            if coop.task() is not coop.last_task:
                coop.note_task()
            coop.last_seen[cell.name] = at
            return state  # type: ignore[no-any-return]
        return await self._load(default, version)

    async def _load(self, default: Any, version: int | None) -> S:
        cell = self._live()
        if version is None:
            form, at = await cell.call(cell.look)
            self._saw(at)
        else:
            check_number(f"load of {self.name!r}", "version", version)
            form = await self._version(version)
        if form is None:
            if default is not MISSING:
                return default  # type: ignore[no-any-return]
            raise self._not_kept(version) if version is not None else cell.not_found()
        return form.decode(cell.codec)  # type: ignore[no-any-return]

    async def _version(self, version: int) -> Form | None:
        cell = self._live()
        forms = await cell.call(cell.history, None, alone=True)
        return next((form for form in forms if form.version == version), None)

    def _not_kept(self, version: int) -> StateNotFoundError:
        return StateNotFoundError(
            f"version {version} of {self.name!r} is not kept",
            actor=self.name,
            hint="see history(), and raise max_history to keep more",
        )

    async def snapshot(self) -> Snapshot[S]:
        """Return the state with its version, its owner's epoch, and when it was saved.

        Raises:
            StateNotFoundError: nothing was ever saved, or it was deleted.
        """
        cell = self._live()
        form = await cell.call(cell.form)
        self._saw(form.version)
        return form.snapshot(cell.codec)  # type: ignore[no-any-return]

    async def history(self, limit: int | None = None) -> list[S]:
        """Return earlier states and the current one, oldest first; the newest ``limit`` of them."""
        check_limit(f"history of {self.name!r}", limit)
        cell = self._live()
        forms = await cell.call(cell.history, limit, alone=True)
        if forms and not cell.absent:  # of a deleted state the newest version is none of these
            self._saw(forms[-1].version)
        return [form.decode(cell.codec) for form in forms]

    def watch(self) -> AsyncIterator[Snapshot[S]]:
        """Iterate over the versions of the state as they become durable, beginning with the current one.

        A slow reader misses versions in between; at least the last one arrives.
        """
        return Watch(self)

    # Writing

    async def save(self, state: S, *, if_version: int | None = None, request_id: str | None = None) -> int:
        """Save a state and return its version, once it is durable.

        Args:
            if_version: save only if this is the current version; 0: only if nothing is saved.
            request_id: the same id again is answered with the first result, and not applied again.

        Raises:
            VersionConflictError: the version is not ``if_version``.
            StaleStateError: it would overwrite a version that this task has not seen.
            StateSerializationError: the state holds something that can't be stored; it says where.
            StateTooLargeError: it is larger than the codec's limit or its budget.
        """
        cell = self._live()
        value, data = cell.encode(state)
        seen = self._guard(if_version)
        if cell.free and request_id is None and get_ident() == cell.thread:
            await self._rest(cell)
        if cell.free and request_id is None and get_ident() == cell.thread:
            cell.turns += 1
            cell.touched = cell.coop.turn
            try:
                version = cell.put(value, data, if_version, seen)
            except Exception:
                if cell.gate is not None:  # the error may tell of a version that is not durable yet
                    await cell.gate.wait()
                raise
            if cell.gate is not None and (failure := await cell.gate.join()) is not None:
                raise failure.again()
        else:
            version = await self._ask(cell, request_id, cell.put, value, data, if_version, seen, at_once=True)
        self._saw(version)
        return version

    async def update(
        self, fn: Callable[..., Any], *args: Any, default: Any = MISSING, request_id: str | None = None
    ) -> S:
        """Replace the state by ``fn(state, *args)`` in one turn, and return the new state once it is durable.

        Args:
            fn: a function, sync or async, of the caller's own copy of the state; it returns the new state. While an
                async one runs, the actor takes no other message. On a shared store it may run more than once.
            args: passed on as they are, to each run.
            default: what ``fn`` gets when nothing was saved: a copy of it, to each run.
            request_id: the same id again is answered with the first result, and not applied again.

        Raises:
            Exception: whatever ``fn`` raises; nothing has changed then.
            StateNotFoundError: nothing is saved and there is no default.

        Example:
            >>> await ref.update(lambda profile: replace(profile, visits=profile.visits + 1))
        """
        cell = self._cell
        coop = cell.coop
        coop.turn = turn = coop.turn + 1
        if not turn & _MASK:
            await cell.loop.checkpoint()
        if cell.free and request_id is None and get_ident() == cell.thread:
            cell.turns += 1
            cell.touched = turn
            state = cell.value
            if state is not MISSING and cell.earlier is not None and cell.data is None:
                try:  # a number or a string in memory, the hottest path of all: `apply` and `accept`, in line
                    new = fn(state, *args)
                except TypeError:
                    check_function(f"update of {self.name!r}", fn)
                    raise
                if new is not None and type(new) in cell.scalars:
                    cell.earlier.append(state)
                    cell.value = new
                    cell.version += 1
                    cell.saved_at = time()
                    if cell.observed:
                        cell.changed()
                else:
                    new = cell.apply_result(new, state)
            else:
                try:
                    new = cell.apply(fn, args, default)
                except Exception:
                    check_function(f"update of {self.name!r}", fn)
                    if cell.gate is not None:  # the error may tell of a version that is not durable yet
                        await cell.gate.wait()
                    raise
            if type(new) is not Pending:
                if coop.task() is not coop.last_task:
                    coop.note_task()
                coop.last_seen[cell.name] = cell.version
                if cell.gate is not None and (failure := await cell.gate.join()) is not None:
                    raise failure.again()
                return new  # type: ignore[no-any-return]
            try:  # an async function: it goes on in a task of the runtime's own
                new, version = await cell.call(cell.resume, new, fn, args, default)
            except BaseException:
                new.drop()
                raise
        else:
            check_function(f"update of {self.name!r}", fn)
            cell = self._live()
            new, version = await self._ask(
                cell, request_id, cell.apply_queued, fn, args, default, keeps=True, at_once=True
            )
        self._saw(version)
        return new  # type: ignore[no-any-return]

    async def patch(self, changes: Mapping[str, Any], *, request_id: str | None = None) -> int:
        """Set parts of the state, ``{"path.to.field": value}``, in one turn; return the new version.

        A path may add a key to a mapping, but not what leads to it. Where the backend can, only the change is written.

        Raises:
            StateNotFoundError: nothing is saved, or a part on the way is missing; it names the path.
        """
        cell = self._live()
        check_changes(f"patch of {self.name!r}", changes)
        version: int = await self._ask(cell, request_id, cell.patch, dict(changes))
        self._saw(version)
        return version

    async def delete(self, *, request_id: str | None = None) -> None:
        """Delete the state; what was never saved may be deleted too. Versions go on from where they were."""
        cell = self._live()
        self._saw(await self._ask(cell, request_id, cell.delete))

    async def flush(self) -> None:
        """Return when everything acknowledged is in the backend."""
        cell = self._live()
        await cell.call(cell.flush, alone=True)

    # Reminders

    async def remind(
        self,
        name: str,
        message: Message[Any],
        *,
        at: datetime | None = None,
        every: float | timedelta | None = None,
    ) -> None:
        """Send the actor a message later, also if this runtime goes down meanwhile; durable when this returns.

        The reminder is kept in the actor's store. It is delivered at least once; a durable state takes it once. What
        falls due while no runtime has the actor is delivered when one has it again: once, also if it was due often.

        Args:
            name: of the reminder; a new one takes the place of the old one of this name.
            message: `Save`, `Patch`, `Append` or `Delete`; or an `Update` with a function that `remindable` declares.
            at: when, with a time zone.
            every: seconds between one and the next; the first is at ``at``, or after that many seconds.

        Raises:
            StateSerializationError: the message is not data.
            UnsupportedOperationError: the actor's store has no place for reminders (vectors).
            ValueError: no time is given, or one without a time zone.

        Example:
            >>> await ref.remind("renew", Patch({"expired": True}), at=datetime.now(UTC) + timedelta(days=30))
        """
        cell = self._live()
        await cell.runtime.reminders.remind(cell, name, message, at, every)

    async def forget(self, name: str) -> None:
        """Cancel the reminder of this name; if there is none, nothing happens."""
        check_text(f"forget of {self.name!r}", "name", name)
        cell = self._live()
        await cell.runtime.reminders.forget(cell, name)

    # Parts, transactions

    def at(self, path: str) -> Lens[Any]:
        """Return a lens on a part of the state: ``ref.at("users.u1.name")``.

        Its ``load``, ``save`` and ``update`` are one turn of the whole; two lenses on different parts never undo each
        other. A dot in a key is written ``\\.``.
        """
        return Lens(self, path)

    def transaction(self) -> Transaction[S]:
        """Hold the turn for a block: ``async with ref.transaction() as tx: tx.state = ...``.

        Committed when the block ends, rolled back on an exception. Other messages wait meanwhile.
        """
        return Transaction(self)

    def for_update(self, *, lease: float = 30.0) -> LeasedView[S]:
        """Return a view whose ``load`` takes the turn and whose ``save`` gives it back.

        Args:
            lease: seconds after which the turn is taken away; a later ``save`` raises `LeaseExpiredError`.
        """
        return LeasedView(self, lease)

    # Messages

    async def ask(self, message: Message[T], *, timeout: float | None = None) -> T:
        """Send a message and return its reply.

        Args:
            timeout: seconds; None waits as long as it takes.

        Raises:
            AskTimeoutError: no reply in time; ``outcome`` says whether the turn may have started.
        """
        cell = self._live()
        _check_message(message)
        if timeout is not None:
            check_seconds("timeout", timeout, positive=False, bounded=False, default="; None waits as long as it takes")
        turn, args, alone = message.turn(self, cell)
        envelope = Envelope(turn, args, cell.loop.waiter(), message, alone=alone)
        with anyio.move_on_after(timeout):
            return message.result(self, await cell.send(envelope))  # type: ignore[no-any-return]
        raise AskTimeoutError(
            f"no reply from {self.name!r} to {type(message).__name__} within {timeout} s",
            actor=self.name,
            outcome="unknown" if envelope.started else "not_started",
            hint="wait longer, or look at rt.stats() for what keeps the actor busy",
        )

    def tell(self, message: Message[Any]) -> Sent:
        """Put a message into the mailbox and do not wait for it; if it fails, there is a ``dead_letter`` event.

        Awaiting what this returns is optional, and gives the actor a chance to run.

        Raises:
            MailboxFullError: there is no room. The error carries the message.
        """
        cell = self._live()
        cell.admit(message, waits=False)
        _check_message(message)
        turn, args, alone = message.turn(_Blind(cell), cell)
        cell.post(Envelope(turn, args, Receipt(cell, message), message, alone=alone))
        return Sent(cell.loop)

    # Inside

    def _ask(
        self, cell: Cell, request_id: str | None, turn: Any, *args: Any, keeps: bool = False, at_once: bool = False
    ) -> Awaitable[Any]:
        if request_id is None:
            if at_once and cell.is_shared and (waiter := take_at_once(cell, turn, args, keeps)) is not None:
                return _reply_to(waiter)
            return cell.call(turn, *args)
        check_text(f"a request to {cell.name!r}", "request_id", request_id)
        return cell.call(cell.once, request_id, turn, args, keeps)

    async def _rest(self, cell: Cell) -> None:
        cell.coop.turn += 1
        if not cell.coop.turn & _MASK:
            await cell.loop.checkpoint()

    def _live(self) -> Cell:
        """Return the cell behind the name: another one, if the actor was stopped and spawned again."""
        cell = self._cell
        if get_ident() != cell.thread:
            cell.runtime.check_thread()
        if cell.phase is Phase.STOPPED:
            cell = self._cell = cell.runtime.current_cell(cell)
        return cell

    def _guard(self, if_version: int | None) -> int | None:
        """Return the version that a save may overwrite, as far as this task has seen one."""
        if if_version is not None:
            check_number(f"save to {self.name!r}", "if_version", if_version)
            return None
        seen: int | None = self._seen().get(self._cell.name)
        return seen

    def _seen(self) -> Seen:
        return self._cell.coop.note_task()

    def _saw(self, version: int) -> None:
        self._seen().note(self._cell.name, version)


R_co = TypeVar("R_co", bound=Ref[Any], covariant=True)


class Referred(Agent, Protocol[R_co]):
    """An agent as type checkers see it: it says what refs its actors have."""

    @property
    def ref_type(self) -> type[R_co]: ...


class _Blind(Ref[Any]):
    """A ref as a `tell` uses it: who waits for no reply has seen nothing, and may overwrite anything."""

    __slots__ = ()

    def _guard(self, if_version: int | None) -> int | None:
        return None


async def _reply_to(waiter: Waiter) -> Any:
    reply = await waiter
    if type(reply) is Failure:
        raise reply.again()
    return reply


def _check_message(message: Any) -> None:
    if not isinstance(message, Message):
        raise TypeError(
            f"{message!r} is no message; send Load(), Save(state), Update(fn), Patch(...), Append(event), ..."
        )


def blind(cell: Cell) -> Ref[Any]:
    """Return a ref for messages that nobody's task has sent: it has seen nothing."""
    return _Blind(cell)
