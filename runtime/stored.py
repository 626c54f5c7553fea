"""The turns of an actor that has a store: what they write is staged, and what they read is durable.

How a write becomes durable, refused or doubtful is told in `commit`; what is done about a doubtful one, in `recovery`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from types import CoroutineType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dgents.runtime.commit import Staged
from dgents.runtime.contract import Record, Request
from dgents.runtime.errors import DgentError, OwnershipLostError, StorageError
from dgents.runtime.freshness import Freshness
from dgents.runtime.loops import give
from dgents.runtime.phase import Phase
from dgents.runtime.recovery import refuse_in_doubt
from dgents.runtime.shared import lost_at_once
from dgents.runtime.turns import MISSING, BackendFailure, Form, Interrupted

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell
    from dgents.runtime.loops import Waiter

T = TypeVar("T")

MOST_REQUESTS = 1000  # remembered request ids of one actor


class StoredTurns(Freshness):
    """The part of an actor that deals with its store."""

    __slots__ = ("draining", "error", "in_doubt", "settling", "supervision")

    draining: bool
    in_doubt: Sequence[Staged]  # writes of which it is not known whether they are stored
    error: BaseException | None
    settling: Waiter | None
    supervision: Any

    def wake(self) -> None:
        """See to it that somebody does what is to be done."""
        raise NotImplementedError

    def kill(self, error: BaseException) -> None:
        """Stop now, after ``error``."""
        raise NotImplementedError

    # Writing

    def persist(self, delta: bytes | None) -> None:
        """Stage the new version for its store."""
        self.stage(Record(self.version, self.epoch, self.saved_at, self.data, self.codec.version, delta))
        self.deltas = self.backend.deltas  # from here on the store has what memory has

    def stage(self, record: Record) -> None:
        """Put a record into the batch that gathers."""
        assert self.committer is not None
        gate = self.gate
        if gate is None or not gate.gathering:
            if self.phase is Phase.STOPPED:  # a turn has outlived its actor, which writes nothing more
                cast("Cell", self).refuse()
            self.gate = gate = Staged(self)
            gate.add(record)
            if self.in_doubt:  # it builds on what may not be stored
                self.in_doubt = [*self.in_doubt, gate]
            elif not self.is_shared:
                self.committer.submit(gate)
        else:
            gate.add(record)

    def settle(self, staged: Staged, refusal: DgentError | None) -> None:
        """Take note of what became of a commit."""
        if self.behind is not None:
            if self.behind.settled(staged, refusal):
                return
            if refusal is None:
                self.behind.acknowledge(staged)
        if refusal is None:
            staged.open()
            if self.watchers:
                self.notify()
        elif self.is_shared:
            staged.discard(refusal)
            if staged.at_once:
                lost_at_once(cast("Cell", self), refusal)
        else:
            self._refused(staged, refusal)
        self._wake_settling()

    def _refused(self, staged: Staged, refusal: DgentError) -> None:
        """An owner whose write the store refused is not the owner any more: it writes nothing more, and stops."""
        assert self.committer is not None
        later = self.committer.withdraw(self)
        if isinstance(refusal, OwnershipLostError):
            self.runtime.emit("ownership_lost", self.name, error=refusal)
        self.kill(refusal)
        staged.refuse(refusal)
        if later is not None:
            later.refuse(refusal)
        self.supervision.stopped(self, refusal)
        self.wake()

    def doubt(self, staged: Staged, error: DgentError) -> None:
        """A commit failed: nobody is answered before what is durable has been found out."""
        if self.behind is not None and self.behind.settled(staged, error):
            return
        assert self.committer is not None
        staged.gathering = False
        later = self.committer.withdraw(self)
        if later is not None:
            later.gathering = False
        self.in_doubt = [*self.in_doubt, staged, *([later] if later is not None else [])]
        if self.phase is Phase.STOPPED and not self.draining:  # nobody is left to find out what became of them
            refuse_in_doubt(self, error)
        self.crash(error)
        self._wake_settling()

    def crash(self, error: BaseException) -> None:
        """The backend failed: restart before anything else."""
        if self.phase is Phase.RUNNING:
            self.phase = Phase.RESTARTING
            self.error = error
            self.wake()

    async def flush(self) -> None:
        """Wait until all that was written is durable.

        Raises:
            Interrupted: the actor crashed meanwhile.
        """
        await self.settled()
        if self.phase is Phase.RESTARTING:
            raise Interrupted
        if self.behind is not None:
            await self.behind.flush()

    async def settled(self) -> None:
        """Wait until no commit of this actor is under way: all is durable, or in doubt."""
        while self.gate is not None and self.gate not in self.in_doubt:
            self.settling = self.loop.waiter()
            await self.settling

    def _wake_settling(self) -> None:
        if self.settling is not None:
            give(self.settling, None)

    # Turns that read the store

    async def reading(self, pending: Awaitable[T]) -> T:
        """Await a read of the backend; a failure of it crashes the actor, not the caller's function."""
        try:
            return await pending
        except StorageError as error:
            raise BackendFailure(error) from error

    async def history(self, limit: int | None) -> list[Form]:
        """Return the kept versions, oldest first."""
        if self.committer is None and self.behind is None:  # in memory only
            return self.forms(limit)
        await self.flush()
        records = await self.reading(self.backend.history(limit))
        if limit is not None and any(record.data is None for record in records):
            records = await self.reading(self.backend.history())  # deleted versions do not count
        forms = [_form(record) for record in records if record.data is not None]
        return forms if limit is None else forms[max(len(forms) - limit, 0) :]

    async def from_backend(self, operation: str, *args: Any) -> Any:
        """Run an operation that only this kind of backend has, after all earlier writes are durable."""
        await self.flush()
        return await self.reading(getattr(self.backend, operation)(*args))

    async def command(self, *args: Any) -> Any:
        """Run a command of the user's, once: whether it can be repeated is for its sender to say."""
        await self.flush()
        return await cast(Any, self.backend).execute(*args)

    async def remembered(self) -> dict[str, Request]:
        """Return the request ids that were applied, oldest first."""
        if self.requests is None:
            stored = await self.reading(self.backend.requests())
            self.requests = {request.id: request for request in stored}
        return self.requests

    async def once(self, request_id: str, turn: Callable[..., Any], args: tuple[Any, ...], keeps: bool) -> Any:
        """Run a turn unless ``request_id`` was applied before; then answer as the first time."""
        requests = await self.remembered()
        known = requests.get(request_id)
        if known is not None:
            return (self._first_result(known), known.version) if keeps else known.version
        before = self.version
        reply = turn(*args)
        if type(reply) is CoroutineType:
            reply = await reply
        if self.version == before:  # a deletion of what was not there: its id needs a version to be stored with
            self.accept(MISSING, None)
            reply = self.version
        request = Request(request_id, self.version, self.codec.encode(reply[0]) if keeps else None)
        requests[request_id] = request
        if len(requests) > MOST_REQUESTS:
            del requests[next(iter(requests))]
        if self.committer is not None:
            assert self.gate is not None, "that of the records of this turn"
            self.gate.remember(request)
        elif self.behind is not None:
            self.behind.unstored.remember(request)
        return reply

    def _first_result(self, known: Request) -> Any:
        if known.result is None:
            raise ValueError(
                f"update of {self.name!r} refused: a save, patch or delete had the request id {known.id!r}; "
                "give each request an id of its own"
            )
        return self.codec.decode(known.result)


def _form(record: Record) -> Form:
    return Form(MISSING, record.data, record.version, record.epoch, record.saved_at, record.schema)
