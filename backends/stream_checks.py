"""What a log has to agree with before anything is built on it: its snapshots, its head, and what was acknowledged.

Each of them knows of an event that was durable once. A log that ends before it has lost that event, and one that has
another in its place is another log.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio.to_thread

from dgents.backends.chain import GENESIS, LEFT_AS_IT_IS, Links, broken
from dgents.backends.chain_head import Reach, check_head, check_reach, reach_of
from dgents.backends.event_codec import StoredEvent
from dgents.backends.event_log import Chunks, LogState, StateSnapshot
from dgents.backends.seal import Seal
from dgents.runtime.errors import StateCorruptionError, UnsupportedOperationError

Read = Callable[[int, int], Chunks]


def check_length(actor: str, found: LogState, acknowledged: int) -> None:
    """Check that a log has every event that something else knows of.

    Raises:
        StateCorruptionError: ``event`` is the first one that is lost.
    """
    known = (
        (found.latest.version if found.latest is not None else 0, "its newest snapshot is that of event"),
        (found.floor.version if found.floor is not None else 0, "what was compacted goes up to event"),
        (acknowledged, "this process knows of event"),
    )
    version, what = max(known)
    if version > found.version:
        raise StateCorruptionError(
            f"the stream {actor!r} has lost events: it ends at event {found.version}, and {what} {version}",
            actor=actor,
            event=found.version + 1,
            hint="nothing was changed; restore a copy of the whole log",
        )


def link_at_end(found: LogState) -> bytes | None:
    """Return the link of the newest event; None if it has none."""
    if found.last is not None:
        return found.last.link
    return found.floor.link if found.floor is not None else None


def begins_chain(actor: str, found: LogState, wanted: bool) -> bool:
    """Say whether the events of a log are linked, or will be.

    Raises:
        StateCorruptionError: there is a head, and events that are in no chain.
        UnsupportedOperationError: a chain is wanted, and there are events that are in none.
    """
    is_linked = link_at_end(found) is not None
    if found.version and not is_linked:
        if found.heads is not None:
            raise broken(actor, found.version, "it is in no chain, and there is the head of one")
        if wanted:
            raise UnsupportedOperationError(
                f"chain=True: {actor!r} has {found.version} events that are not in a chain",
                actor=actor,
                hint="append them to a new log with chain=True, or leave it out",
            )
    return wanted or is_linked


async def check_chain(actor: str, found: LogState, seal: Seal, read: Read) -> None:
    """Check that a log ends where its heads say, and that its end lies on their chain.

    Raises:
        StateCorruptionError: it does not, or a key did not sign what it should have.
    """
    if found.heads is None:
        raise StateCorruptionError(
            f"the head of the stream {actor!r} is missing, so events may have been cut off after event {found.version}",
            actor=actor,
            event=found.version + 1,
            hint=LEFT_AS_IT_IS,
        )
    reach = reach_of(actor, [seal.read(head) if head else None for head in found.heads])
    _check_floor(actor, found, reach)
    check_reach(actor, reach, found.version)
    check_head(actor, reach.head, found.version, link_at_end(found) or GENESIS)
    if reach.head.version < found.version:
        await _check_beyond(actor, found, reach, read)
        assert found.last is not None, "there are events behind the head, and none of them was compacted"
        seal.check_event(found.last)


def check_snapshot(actor: str, snapshot: StateSnapshot, stored: StoredEvent) -> None:
    """Check that a snapshot is of the event that has its number.

    Raises:
        StateCorruptionError: it is of another log, or the log is.
    """
    if (snapshot.saved_at, snapshot.link) != (stored.saved_at, stored.link):
        raise broken(actor, stored.version, "it is not the one that the newest snapshot was made after")


def _check_floor(actor: str, found: LogState, reach: Reach) -> None:
    head, floor = reach.head, found.floor
    version, link = (floor.version, floor.link or GENESIS) if floor is not None else (0, GENESIS)
    # A head of a higher floor: a crash came between it and the floor, and the events are still there.
    if head.floor < version or (head.floor == version and head.floor_link != link):
        raise StateCorruptionError(
            f"the floor of the stream {actor!r} is not the one that its head names (event {head.floor})",
            actor=actor,
            event=head.floor + 1,
            hint=LEFT_AS_IT_IS,
        )


async def _check_beyond(actor: str, found: LogState, reach: Reach, read: Read) -> None:
    """Check that the head's event has its link, and that those behind it go on from there."""
    head, floor = reach.head, found.floor
    at, link = (floor.version, floor.link or GENESIS) if floor is not None else (0, GENESIS)
    if head.version == at:
        check_head(actor, head, at, link)
    links = Links(actor, head.version, head.link)
    async for chunk in read(max(head.version - 1, at), found.version):
        if chunk[0].version == head.version:
            check_head(actor, head, head.version, chunk[0].link or GENESIS)
            chunk = chunk[1:]
        await anyio.to_thread.run_sync(links.follow, chunk)
