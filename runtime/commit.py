"""Group commit and the output gate: turns change memory at once, answers wait for the disk.

Each store has one `Committer`. While one commit is in flight, the turns of all its actors gather for the next one; a
store that is idle commits at once. There are no timers: a busy store batches by itself (DeWitt et al., 1984). A store
in this process takes all that waits: it shares the interpreter with the turns. A server takes it in parts, and commits
one while the turns prepare the next.

What one actor has in one batch is a `Staged`. It is the **gate** of that actor: nothing that depends on its records
leaves before it opens (the output gates of Cloudflare's Durable Objects).

Invariants
  1. One commit of a store is in flight at a time; batches commit in the order in which they were staged.
  2. The records of one actor are staged in the order of its turns, with consecutive versions.
  3. A `Staged` is settled once: opened (durable; its waiters go on) or refused (they raise).
  4. Once a `Staged` of an actor failed, nothing later of that actor is committed before it is resolved: the later
     records build on the ones in doubt.

| a Staged that is     | becomes          | by                                                        |
|----------------------|------------------|-----------------------------------------------------------|
| gathering            | in flight        | `Committer._run`                                          |
| in flight            | opened           | `Staged.open`: the store has it                           |
| in flight            | refused          | `Staged.refuse`: the store answered no                    |
| in flight, gathering | in doubt         | `Cell.doubt`, after the commit failed; the actor recovers |
| in doubt             | opened, refused  | `recovery.resolve`                                        |
"""

from __future__ import annotations

from asyncio import CancelledError
from collections import deque
from copy import copy
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any

from dgents.runtime.contract import Backend, Record, Request, Store, Write
from dgents.runtime.errors import DgentError, StorageError
from dgents.runtime.loops import give

if TYPE_CHECKING:
    from dgents.runtime.loops import Loop, Waiter
    from dgents.runtime.stored import StoredTurns

_LATENCIES_KEPT = 512


def innermost(backend: Backend) -> Backend:
    """Return the backend inside all wrappers: the one that its store knows."""
    while (inner := getattr(backend, "inner", None)) is not None:
        backend = inner
    return backend


class Failure:
    """A reply that is an error: raised where it is awaited."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def again(self) -> BaseException:
        """Return the error for one of several who wait: each raises its own, with a traceback of its own."""
        if not isinstance(self.error, DgentError):
            return self.error
        try:
            error = copy(self.error)
        except Exception:  # of a class of the user's, which only says how it is made: better shared than not raised
            return self.error
        error.__cause__ = self.error.__cause__
        return error


class Staged:
    """The records of one actor in one batch, and who waits until they are durable."""

    __slots__ = (
        "_replies",
        "_waiters",
        "at_once",
        "base",
        "cell",
        "error",
        "gathering",
        "is_open",
        "records",
        "requests",
    )

    def __init__(self, cell: StoredTurns) -> None:
        self.cell = cell
        self.base = 0  # the version that these follow
        self.records: list[Record] = []
        # Lists only once there is something in them: a busy store makes tens of thousands of these a second.
        self.requests: list[Request] | tuple[()] = ()
        self.gathering = True
        self.at_once = False  # shared: of a turn that was run in its sender's task
        self.is_open = False
        self.error: DgentError | None = None
        self._waiters: list[Waiter] | tuple[()] = ()
        self._replies: list[tuple[Waiter, Any]] | tuple[()] = ()

    def add(self, record: Record) -> None:
        """Append the next version."""
        if not self.records:
            self.base = record.version - 1
        self.records.append(record)

    def remember(self, request: Request) -> None:
        """Append a request id, which is stored with the records."""
        if self.requests:
            self.requests.append(request)
        else:
            self.requests = [request]

    @property
    def last(self) -> int:
        """The version that is durable once this is open."""
        return self.records[-1].version

    def write(self) -> Write:
        """Return what the store is to commit."""
        self.gathering = False
        return Write(innermost(self.cell.backend), self.base, self.records, self.requests, self.cell.name)

    async def wait(self) -> None:
        """Return when the records are durable, or raise what became of them."""
        failure: Failure | None
        if not self.is_open and self.error is None:
            failure = await self.join()  # not this one's own error: it may have been absorbed meanwhile
        else:
            failure = None if self.error is None else Failure(self.error)
        if failure is not None:
            raise failure.again()

    def join(self) -> Waiter:
        """Return a waiter for the opening of a gate that is closed; its result is None, or a `Failure`."""
        waiter = self.cell.loop.waiter()
        if self._waiters:
            self._waiters.append(waiter)
        else:
            self._waiters = [waiter]
        return waiter

    def answer(self, waiter: Waiter, reply: Any) -> None:
        """Give ``reply`` to ``waiter`` once the records are durable, or the error if they are refused."""
        if self._replies:
            self._replies.append((waiter, reply))
        else:
            self._replies = [(waiter, reply)]

    def absorb(self, other: Staged) -> None:
        """Take over the records of the next one, and those who wait for them."""
        self.records += other.records
        self.requests = [*self.requests, *other.requests]
        self._waiters = [*self._waiters, *other._waiters]
        self._replies = [*self._replies, *other._replies]

    def open(self) -> None:
        """Let everything out: the records are durable."""
        self.is_open = True
        self._settle()

    def refuse(self, error: DgentError) -> None:
        """Raise ``error`` in whoever waits: the records were not stored, or that can't be known."""
        self.error = error
        self._settle()

    def discard(self, error: DgentError) -> None:
        """Forget the replies: another process wrote first, and the turns are run again."""
        self.error = error
        self._replies = ()
        self._settle()

    def _settle(self) -> None:
        if self.cell.gate is self:
            self.cell.gate = None
        waiters, replies, failure = self._waiters, self._replies, self.error and Failure(self.error)
        self._waiters = self._replies = ()
        for waiter in waiters:
            give(waiter, failure)
        for waiter, reply in replies:
            give(waiter, failure or reply)


class Committer:
    """The one task that writes to a store, alive only while there is something to write."""

    def __init__(self, store: Store, loop: Loop) -> None:
        self.store = store
        self.latencies: deque[float] = deque(maxlen=_LATENCIES_KEPT)  # seconds, of the last commits
        self._loop = loop
        self._most: int | None = getattr(store, "most_writes", None)
        self._gathering: dict[StoredTurns, Staged] = {}
        self._in_flight: list[Staged] = []
        self._running = False

    def submit(self, staged: Staged) -> None:
        """Put a `Staged` into the batch that gathers; the first one of an idle store starts a commit."""
        self._gathering[staged.cell] = staged
        if not self._running:
            self._running = True
            self._loop.start(self._run)

    def withdraw(self, cell: StoredTurns) -> Staged | None:
        """Take back what an actor has in the batch that gathers (invariant 4)."""
        return self._gathering.pop(cell, None)

    def in_flight(self, cell: StoredTurns) -> list[Staged]:
        """Return what an actor has in the batch that is being committed."""
        return [staged for staged in self._in_flight if staged.cell is cell]

    def _take(self) -> list[Staged]:
        """Take the next batch out of what gathers."""
        if self._most is None or len(self._gathering) <= self._most:
            batch = list(self._gathering.values())
            self._gathering = {}
            return batch
        return [self._gathering.pop(cell) for cell in list(islice(self._gathering, self._most))]

    async def _run(self) -> None:
        while self._gathering:
            batch = self._in_flight = self._take()
            started = perf_counter()
            try:
                refusals = await self.store.commit([staged.write() for staged in batch])
                if len(refusals) != len(batch):
                    raise StorageError(f"the store answered {len(refusals)} of {len(batch)} writes", outcome="unknown")
            except (Exception, CancelledError) as error:  # a store may meet a cancellation in a task that it awaits
                failure = _as_storage_error(error)
                for staged in batch:
                    staged.cell.doubt(staged, failure)
            else:
                self.latencies.append(perf_counter() - started)
                for staged, refusal in zip(batch, refusals, strict=True):
                    staged.cell.settle(staged, refusal)
            self._in_flight = []
            if self._most is None and self._gathering:
                # Who has just been answered may write again at once, and shares the next commit; a commit that began
                # now would only contend with them for the interpreter.
                await self._loop.checkpoint()
        self._running = False


def _as_storage_error(error: BaseException) -> DgentError:
    if isinstance(error, DgentError):
        return error
    wrapped = StorageError(f"the store failed with {type(error).__name__}: {error}", outcome="unknown")
    wrapped.__cause__ = error
    return wrapped
