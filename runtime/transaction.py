"""Holding the turn: transactions, and a drop-in view whose ``load`` takes the turn and whose ``save`` gives it back."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakSet

from dgents.runtime.actor import Cell
from dgents.runtime.arguments import check_seconds
from dgents.runtime.deadlock import TurnInProgress, current_turn, turn_in_progress
from dgents.runtime.errors import ActorStoppedError, LeaseExpiredError
from dgents.runtime.loops import give
from dgents.runtime.mailbox import Envelope
from dgents.runtime.phase import Phase
from dgents.runtime.seen import Seen
from dgents.runtime.shared import refresh, submit
from dgents.runtime.turns import MISSING, Form

if TYPE_CHECKING:
    from dgents.runtime.commit import Staged
    from dgents.runtime.loops import Timer
    from dgents.runtime.ref import Ref

S = TypeVar("S")


class Hold:
    """One turn of an actor, held by a caller from `take` to `release`."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self._granted = cell.loop.waiter()
        self._released = cell.loop.waiter()
        self._held: TurnInProgress | None = None
        self.form: Form | None = None

    async def take(self) -> None:
        """Wait for the turn and hold it. Cancelled meanwhile, it is given back."""
        envelope = Envelope(self._turn, (), self._granted, "hold", alone=True)
        try:
            self.form = await self.cell.send(envelope)
        except BaseException:
            self.release()
            raise
        self._held = self.cell.turn
        if self._held is not None:
            self._held.within = turn_in_progress()
            self._held.tasks = [self.cell.loop.current_task()]
            current_turn.set(self._held)

    def release(self) -> None:
        """Give the turn back; the next message's turn begins."""
        give(self._released, None)
        if self._held is not None:
            self._held.active = False
            if current_turn.get() is self._held:  # not when a lease expires, in a task of the runtime's
                current_turn.set(self._held.within)
            self._held = None

    async def _turn(self) -> None:
        cell = self.cell
        if cell.is_shared:
            await refresh(cell)
        else:
            await cell.flush()  # the holder sees the state: nothing of it may still be lost
        if self._granted.done():
            return
        give(self._granted, cell.form_or_none())
        await self._released
        if cell.is_shared and cell.gate is not None:
            cell.batch = []
            await submit(cell, cell.gate)


class Transaction(Generic[S]):
    """A block in which the caller holds the actor's turn; ``state`` is readable and assignable.

    Changes of the state in place count too: what ``state`` is at the end of the block is what is saved, if it was
    read or assigned. On a shared store, `VersionConflictError` is raised at the end if somebody else wrote first.
    """

    def __init__(self, ref: Ref[S]) -> None:
        self._ref = ref
        self._state: Any = MISSING
        self._before: bytes | None = None
        self._hold: Hold | None = None
        self._cell: Cell = ref._live()

    @property
    def state(self) -> S:
        """The state in this transaction: the caller's own copy, to be changed or replaced.

        Raises:
            StateNotFoundError: nothing is saved, and nothing was assigned yet.
        """
        if self._state is MISSING:
            raise self._cell.not_found()
        return self._state  # type: ignore[no-any-return]

    @state.setter
    def state(self, state: S) -> None:
        self._check_open()
        self._state = state

    async def __aenter__(self) -> Transaction[S]:
        if self._hold is not None:
            raise RuntimeError("this transaction was used before; call ref.transaction() again")
        self._hold = Hold(self._cell)
        await self._hold.take()
        form = self._hold.form
        try:
            if form is not None:
                self._state = form.decode(self._cell.codec)
                self._before = form.data if form.data is not None else self._cell.codec.encode(form.value)
        except BaseException:  # a class of the user's that can't be made any more
            self._hold.release()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._hold is not None
        staged: Staged | None = None
        try:
            if kind is None and self._state is not MISSING:
                staged = self._commit()
        finally:
            self._hold.release()
        if staged is not None:
            await staged.wait()
        if kind is None:
            self._ref._saw(self._cell.version if staged is None else staged.last)

    def _commit(self) -> Staged | None:
        cell = self._cell
        _check_alive(cell)
        value, data = cell.encode(self._state)
        if (data if data is not None else cell.codec.encode(value)) == self._before:
            return None  # nothing changed: no new version
        cell.put(value, data)
        return cell.gate

    def _check_open(self) -> None:
        if self._hold is None:
            raise RuntimeError("use the transaction as `async with ref.transaction() as tx:`")


class LeasedView(Generic[S]):
    """A `DataAgent` whose ``load`` takes the turn and whose ``save`` gives it back, within a lease.

    The seed's ``state = await agent.load(); ...; await agent.save(new)`` is safe on it as it stands.
    """

    def __init__(self, ref: Ref[S], lease: float) -> None:
        check_seconds("lease", lease, bounded=False)
        self._ref = ref
        self._lease = lease
        self._holds: dict[Seen, tuple[Hold, Timer]] = {}  # by whose they are: what a task, or a thread, has seen
        self._expired: WeakSet[Seen] = WeakSet()

    async def load(self, *, default: Any = MISSING) -> S:
        """Wait for the turn, hold it until ``save``, and return the state.

        Raises:
            StateNotFoundError: nothing is saved and there is no default; the turn is given back.
        """
        cell = self._ref._live()
        holder = self._ref._seen()
        self._give_back(holder)  # a second load starts over
        hold = Hold(cell)
        await hold.take()
        try:
            if hold.form is None and default is MISSING:
                raise cell.not_found()
            state = default if hold.form is None else hold.form.decode(cell.codec)
        except BaseException:
            hold.release()
            raise
        timer = cell.loop.call_later(self._lease, self._expire, holder, hold)
        self._holds[holder] = (hold, timer)
        self._expired.discard(holder)
        return state  # type: ignore[no-any-return]

    async def save(self, state: S) -> int:
        """Save the state, give the turn back, and return the new version once it is durable.

        Raises:
            LeaseExpiredError: the lease ran out; nothing was written.
        """
        self._ref._live()
        holder = self._ref._seen()
        if holder not in self._holds:
            if holder in self._expired:
                self._expired.discard(holder)
                raise LeaseExpiredError(
                    f"the lease of {self._lease} s on {self._ref.name!r} ran out before save",
                    actor=self._ref.name,
                    hint="load again, and save sooner or ask for a longer lease",
                )
            return await self._ref.save(state)
        cell = self._holds[holder][0].cell  # not the ref's: that may be another one by now
        try:
            _check_alive(cell)
            version = cell.put(*cell.encode(state))
            staged = cell.gate
        finally:
            self._give_back(holder)
        if staged is not None:
            await staged.wait()
        self._ref._saw(version)
        return version

    async def history(self, limit: int | None = None) -> list[S]:
        """Return earlier states and the current one, oldest first."""
        return await self._ref.history(limit)

    def _give_back(self, holder: Seen) -> None:
        held = self._holds.pop(holder, None)
        if held is not None:
            hold, timer = held
            timer.cancel()
            hold.release()

    def _expire(self, holder: Seen, hold: Hold) -> None:
        if self._holds.get(holder, (None,))[0] is hold:
            del self._holds[holder]
            self._expired.add(holder)
            hold.release()


def _check_alive(cell: Cell) -> None:
    if cell.phase is Phase.STOPPED:
        raise ActorStoppedError(f"actor {cell.name!r} stopped while its turn was held", actor=cell.name)
