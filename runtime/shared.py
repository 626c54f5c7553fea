"""Turns on a state that other processes write too: optimistic, in batches.

The actor keeps the last version that it knows, and trusts it only as far as the store confirms it: the queued turns
run one after the other on that version in memory, and what they wrote goes out as one compare-and-set. If somebody
else wrote first, the newest version is read and the same turns are run again (optimistic concurrency control; Kung
and Robinson, 1981). A batch that only read is confirmed by one read.
So a batch costs one round trip when nobody interferes.

A turn that finds nothing else going on is run in its sender's task, as a batch of its own, without a queue or a task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import random
from typing import TYPE_CHECKING, Any

from dgents.runtime.commit import Failure, Staged
from dgents.runtime.deadlock import current_turn
from dgents.runtime.errors import DgentError, StorageError, VersionConflictError
from dgents.runtime.loops import give
from dgents.runtime.mailbox import RUN_AGAIN, Envelope
from dgents.runtime.phase import Phase
from dgents.runtime.turns import BackendFailure, Pending

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell
    from dgents.runtime.loops import Waiter

MOST_TOGETHER = 256  # turns in one compare-and-set
MOST_ATTEMPTS = 1000
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.05  # seconds


def take_at_once(cell: Cell, turn: Callable[..., Any], args: tuple[Any, ...], is_update: bool) -> Waiter | None:
    """Run a turn that writes in its sender's task, and return the waiter for its reply.

    None: it has to be queued, because something else is going on, it must wait itself, or it fails on what memory
    holds, which may not be what the store has.
    """
    if (
        not cell.fresh
        or cell.draining
        or cell.gate is not None
        or cell.phase is not Phase.RUNNING
        or cell.stopping is not None
        or cell.committer is None
        or cell.is_cached
        or current_turn.get() is not None
    ):
        return None
    cell.runtime.check_thread()
    try:
        reply = cell.apply(*args) if is_update else turn(*args)
    except Exception:
        return None
    if type(reply) is Pending:
        reply.drop()
        return None
    staged: Staged | None = cell.gate
    if staged is None:
        return None
    cell.turns += 1
    cell.touched = cell.coop.turn
    waiter = cell.loop.waiter()
    envelope = Envelope(turn, args, waiter)
    envelope.started = True
    cell.batch = [envelope]  # what is run again, if another process wrote first or it can't be known
    staged.at_once = True
    staged.answer(waiter, (reply, cell.version) if is_update else reply)
    cell.committer.submit(staged)
    return waiter


def lost_at_once(cell: Cell, refusal: DgentError) -> None:
    """The store refused a turn that was run at once: another process wrote first, so it is queued."""
    _forget(cell)
    for envelope in cell.batch:
        if isinstance(refusal, VersionConflictError):
            cell.mailbox.put_back(envelope)
        else:
            give(envelope.waiter, Failure(refusal))
    cell.wake()


async def take_shared_turns(cell: Cell) -> None:
    """Take the queued turns of a shared actor and apply them as one compare-and-set."""
    if cell.gate is not None:  # of a turn that was run at once
        await cell.settled()
        return
    batch = _take_batch(cell)
    if not batch:
        return
    if batch[0].alone:
        await cell.take_turn(batch[0])
        return
    cell.batch = batch
    for attempt in range(MOST_ATTEMPTS):
        if attempt > 1:
            await cell.loop.sleep(random() * min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE))
        if await _try_batch(cell):
            return
    error = StorageError(
        f"{cell.name!r} was changed by others {MOST_ATTEMPTS} times while {len(batch)} turns were tried",
        actor=cell.name,
        outcome="rolled_back",
        hint="try again, with fewer writers or smaller updates",
    )
    for envelope in batch:
        cell.answer(envelope, Failure(error))


def _take_batch(cell: Cell) -> list[Envelope]:
    batch: list[Envelope] = []
    while len(batch) < MOST_TOGETHER and (envelope := cell.mailbox.take()) is not None:
        if envelope.alone and batch:
            cell.mailbox.put_back(envelope)
            break
        batch.append(envelope)
        if envelope.alone:
            break
    return batch


async def _try_batch(cell: Cell) -> bool:
    """Run the batch once; return whether it is answered, or handed to the recovery."""
    confirmed = False
    if not cell.fresh:
        if not await _refreshed(cell):
            return True
        confirmed = True
    replies: list[tuple[Envelope, Any]] = []
    for envelope in cell.batch:
        if envelope.withdrawn:
            continue
        reply = await cell.run(envelope)
        if reply is RUN_AGAIN:  # crashed in reading; `run` put this one back, the others go back too
            _put_back(cell, cell.batch, envelope)
            cell.gate, cell.fresh = None, False
            return True
        replies.append((envelope, reply))
    staged = cell.gate
    if staged is None:
        version = cell.version
        if not confirmed and not cell.is_cached:
            if not await _refreshed(cell):
                return True
            if cell.version != version:
                return False
        for envelope, value in replies:
            cell.answer(envelope, value)
        return True
    for envelope, value in replies:
        staged.answer(envelope.waiter, value)
    return await submit(cell, staged)


async def submit(cell: Cell, staged: Staged) -> bool:
    """Commit what the turns wrote; return False if somebody else wrote first."""
    assert cell.committer is not None
    heard = cell.heard
    cell.committer.submit(staged)
    await cell.settled()
    if staged.is_open:
        cell.is_fresh(heard)
        return True
    _forget(cell)
    if staged.error is None:  # in doubt: the recovery answers
        return True
    if isinstance(staged.error, VersionConflictError):
        return False
    for envelope in cell.batch:
        cell.answer(envelope, Failure(staged.error))
    return True


def _forget(cell: Cell) -> None:
    """What was not stored is not known: the next batch begins by reading."""
    cell.fresh = False
    cell.gate = None
    cell.requests = None
    cell.adopt_record(None)


async def refresh(cell: Cell) -> None:
    """Read the newest version into memory.

    Raises:
        BackendFailure: the store could not be read.
    """
    heard = cell.heard
    record = await cell.reading(cell.backend.read())
    known = record is not None and (record.version, record.saved_at) == (cell.version, cell.saved_at)
    if not (known and cell.fresh):
        cell.requests = None
        cell.adopt_record(record)
    cell.misses += 1
    cell.is_fresh(heard)


async def reread(cell: Cell) -> None:
    """Read an exclusive state again whose time in the cache is over.

    A state that is written behind is newest in memory until the store has it; before that there is nothing to be read.
    """
    await cell.settled()
    if cell.is_restarting:
        return
    if cell.behind is not None and cell.behind.count:
        cell.is_fresh(cell.heard)
        return
    try:
        await refresh(cell)
    except BackendFailure as failure:
        cell.crash(failure.error)
    except Exception as error:  # what is stored is no state of this actor's: it stays as it is, and so does memory
        for envelope in iter(cell.mailbox.take, None):
            cell.answer(envelope, Failure(error))
    else:
        if cell.behind is not None:
            cell.behind.begin_at(cell.version)


async def _refreshed(cell: Cell) -> bool:
    """Read the newest version, or return False.

    If the store fails, the batch is to be tried once more after the restart. If what is stored is no state of this
    actor's, it stays as it is, and the batch is answered: nothing is built on it, and nothing put in its place.
    """
    try:
        await refresh(cell)
    except BackendFailure as failure:
        for envelope in reversed(cell.batch):
            reply = cell.crash_in(envelope, failure.error)
            if reply is not RUN_AGAIN:
                cell.answer(envelope, reply)
        cell.fresh = False
        return False
    except Exception as error:
        cell.fresh = False
        for envelope in cell.batch:
            cell.answer(envelope, Failure(error))
        return False
    return True


def _put_back(cell: Cell, batch: Sequence[Envelope], already: Envelope) -> None:
    """Return the other envelopes of a batch to the mailbox, in their order."""
    taken = cell.mailbox.take()
    for envelope in reversed(batch):
        cell.mailbox.put_back(envelope)
    assert taken is already
