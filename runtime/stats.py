"""What `rt.stats()` shows of an actor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell


class ActorStats(msgspec.Struct, frozen=True):
    """One actor at one moment.

    Attributes:
        phase: passive, running, restarting or stopped.
        busy: whether a turn is in progress or queued.
        mailbox: messages that wait.
        turns: turns run since it was spawned.
        restarts: how often its backend was reopened.
        version: of the state in memory.
        bytes: of the encoded state; 0 if it is not encoded.
        hits, misses, evictions: of a cached state: turns served from memory, reads of its store, times that memory was
            out of date.
        at_risk, at_risk_bytes, at_risk_seconds: acknowledged writes that a write-behind store does not have yet, and
            the age of the oldest.
        commit_p50, commit_p99: seconds, over the last commits of its store; None without a store.
    """

    phase: str
    busy: bool
    mailbox: int
    turns: int
    restarts: int
    version: int
    bytes: int
    hits: int
    misses: int
    evictions: int
    at_risk: int
    at_risk_bytes: int
    at_risk_seconds: float
    commit_p50: float | None
    commit_p99: float | None


def stats_of(cell: Cell) -> ActorStats:
    """Return the figures of one actor."""
    latencies = sorted(cell.committer.latencies) if cell.committer is not None else []
    behind = cell.behind
    return ActorStats(
        phase=cell.phase.value,
        busy=cell.draining,
        mailbox=len(cell.mailbox),
        turns=cell.turns,
        restarts=cell.restarts,
        version=cell.version,
        bytes=len(cell.data) if cell.data is not None else 0,
        hits=max(cell.turns - cell.misses, 0),
        misses=cell.misses,
        evictions=cell.evictions,
        at_risk=behind.count if behind is not None else 0,
        at_risk_bytes=behind.bytes if behind is not None else 0,
        at_risk_seconds=behind.age if behind is not None else 0.0,
        commit_p50=_percentile(latencies, 0.50),
        commit_p99=_percentile(latencies, 0.99),
    )


def _percentile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else None
