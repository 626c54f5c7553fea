"""What an actor does after its backend failed: reopen, find out what is durable, answer with the truth.

A failed commit leaves its writes *in doubt*: they may or may not have been stored. The actor is restarted by its
supervisor's policy, which reopens the backend and re-reads it (after a failed fsync nothing in memory or in the page
cache is trusted; PostgreSQL's lesson of 2018). Each write names its owner's epoch and version, so the stored version
tells which of the writes are there. Those are answered as done; the others are committed once more; what fails twice
is answered with an error whose ``outcome`` is true: ``rolled_back``, or ``unknown`` if the store could not be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

from msgspec.structs import replace

from dgents.runtime.commit import Staged
from dgents.runtime.contract import Opened
from dgents.runtime.errors import DgentError, Outcome, OwnershipLostError, StateCorruptionError, StorageError

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell
    from dgents.runtime.stored import StoredTurns


async def recover(cell: Cell) -> None:
    """Restart an actor whose backend failed; return when it runs again, or has been stopped."""
    await cell.settled()
    retried = False
    while (opened := await _reopen(cell)) is not None:
        try:
            remaining = await _settle_durable(cell, opened)
            if remaining is not None and (retried or not _can_retry(cell, remaining, opened)):
                _roll_back(cell, opened, remaining)
                remaining = None
        except Exception as reason:  # what is stored is no state of this actor's
            cell.error = reason
            continue
        if not cell.is_restarting:
            break
        if remaining is not None:
            retried = True
            await _commit_again(cell, remaining, opened.epoch)
            if remaining.error is not None:  # refused by the store: `settle` has stopped the actor
                return
        if remaining is None or remaining.is_open:
            cell.run_again()
            return
    refuse_in_doubt(cell, cell.error)  # its supervisor gave it up


async def _reopen(cell: Cell) -> Opened | None:
    """Reopen the backend, with the pauses and within the budget of the supervisor; None when it is spent."""
    while True:
        error = cell.error
        delay = cell.supervision.restart_delay(cell, error)
        if delay is None:
            _give_up(cell, error)
            return None
        cell.runtime.emit("crashed", cell.name, error=error, delay=delay)
        if delay:
            await cell.loop.sleep(delay)
        try:
            opened = await _open_again(cell)
        except Exception as reason:
            cell.error = reason
            continue
        if not cell.is_restarting:
            return None
        cell.restarts += 1
        cell.runtime.emit("restarted", cell.name, after=error)
        return opened


async def _open_again(cell: Cell) -> Opened:
    if cell.behind is None:
        await cell.backend.close()
        return await cell.backend.open()
    async with cell.behind.store_alone():  # no flush is in the middle of a write under the old epoch
        await cell.backend.close()
        opened = await cell.backend.open()
        if not cell.behind.is_overtaken():  # which has stopped the actor
            cell.epoch = opened.epoch
        return opened


async def _settle_durable(cell: Cell, opened: Opened) -> Staged | None:
    """Answer the writes that turn out to be stored; return the others, as one, or None."""
    record = opened.record
    remaining: Staged | None = None
    for staged in cell.in_doubt:
        if cell.is_shared:
            await _settle_shared(cell, staged)
        elif record is not None and record.epoch == staged.records[-1].epoch and record.version >= staged.last:
            if cell.behind is not None:
                cell.behind.acknowledge(staged)
            staged.open()
        elif remaining is None:
            remaining = staged
        else:
            remaining.absorb(staged)
    cell.in_doubt = ()
    if remaining is None:
        _note_lost_history(cell, opened, cell.version)
        cell.adopt(opened)
    else:
        cell.gate = remaining
    return remaining


async def _settle_shared(cell: Cell, staged: Staged) -> None:
    """Ask the store whether a shared write happened (others may have written since); if not, run its turns again."""
    try:
        stored = await cell.backend.committed(staged.write())
    except Exception as error:
        stored, cell.error = None, error
    again = stored is False and cell.batch and not any(envelope.alone or envelope.crashes for envelope in cell.batch)
    if stored:
        staged.open()
    elif not again:
        _refuse(cell, [staged], "unknown" if stored is None else "rolled_back")
    else:
        staged.discard(StorageError("run again"))
        for envelope in reversed(cell.batch):
            envelope.crashes += 1
            cell.mailbox.put_back(envelope)


def _note_lost_history(cell: Cell, opened: Opened, acknowledged: int) -> None:
    """A store that holds less than it acknowledged (restarted without its data) is worth an alarm."""
    stored = opened.record.version if opened.record is not None else 0
    if getattr(cell.backend, "went_back", None) == (acknowledged, stored):
        return  # the backend has found it out itself, and said so
    if cell.committer is not None and stored < acknowledged and not cell.is_shared:
        cell.runtime.emit("warning", cell.name, message=f"the store went back from version {acknowledged} to {stored}")


def _can_retry(cell: Cell, remaining: Staged, opened: Opened) -> bool:
    """Whether the store still stands where the writes in doubt began."""
    stored = opened.record.version if opened.record is not None else 0
    return stored == remaining.base and not isinstance(cell.error, OwnershipLostError)


def _roll_back(cell: Cell, opened: Opened, remaining: Staged) -> None:
    """Refuse the writes in doubt, and go back to what is stored."""
    _refuse(cell, [remaining], "rolled_back")
    _note_lost_history(cell, opened, remaining.base)
    cell.adopt(opened)


async def _commit_again(cell: Cell, remaining: Staged, epoch: int) -> None:
    """Commit the writes in doubt once more, under the new epoch."""
    store = cell.backend.store  # another one than before, if this was the last actor to have it open
    assert store is not None
    cell.committer = cell.runtime.committer(store)
    cell.epoch = epoch
    remaining.records = [replace(record, epoch=epoch) for record in remaining.records]
    cell.gate = remaining
    cell.committer.submit(remaining)
    await cell.settled()


def _refuse(cell: StoredTurns, doubtful: Sequence[Staged], outcome: Outcome) -> None:
    cause = cell.error
    for staged in doubtful:
        if isinstance(cause, StorageError) and cause.outcome == outcome and cause.actor == cell.name:
            staged.refuse(cause)
            continue
        if isinstance(cause, StateCorruptionError):  # of what is there; it says what to do about that
            damage = copy(cause)
            damage.outcome = outcome
            staged.refuse(damage)
            continue
        verb = "was not stored" if outcome == "rolled_back" else "may or may not be stored"
        error = StorageError(
            f"version {staged.last} of {cell.name!r} {verb}: {cause}",
            actor=cell.name,
            outcome=outcome,
            retryable=getattr(cause, "retryable", True),
            hint="save it again" if outcome == "rolled_back" else "load it again when the store is back",
        )
        error.__cause__ = cause
        staged.refuse(error)


def refuse_in_doubt(cell: StoredTurns, error: BaseException | None) -> None:
    """Answer those whose writes are in doubt and will stay so."""
    doubtful, cell.in_doubt = cell.in_doubt, ()
    cell.error = error
    _refuse(cell, doubtful, "unknown")


def _give_up(cell: Cell, error: BaseException | None) -> None:
    """The restart budget is spent: stop, and let every caller know."""
    reason = error if isinstance(error, DgentError) else StorageError(f"the backend failed: {error}")
    cell.kill(reason)
    refuse_in_doubt(cell, reason)
    cell.supervision.stopped(cell, reason)
