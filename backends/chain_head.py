"""What the heads beside a log say of it: how far it must go, and which event must be where.

A log in a database has one head, stored in the transaction of its event: the log ends there. A log in a directory has
two, which are written in turn after their events are durable. So the log may be ahead of the newer one, never behind
it; and one of the two that a crash tore was about to name an event that the other one does not.

Whoever takes the newer head away, and what it named, is found: the older one then names another head beside it
(`Head.before`), or a log that goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dgents.backends.chain import broken
from dgents.backends.seal import Head, broken_head


class Reach(NamedTuple):
    """The newest head, and where the log must end.

    Attributes:
        least: it has at least so many events.
        most: and at most so many; None: a crash may have come between an event and its head.
    """

    head: Head
    least: int
    most: int | None


def reach_of(actor: str, heads: Sequence[Head | None]) -> Reach:
    """Return what the heads of a log say together; None stands for one that is damaged.

    Raises:
        StateCorruptionError: they were not left beside one another.
    """
    intact = sorted((head for head in heads if head is not None), key=lambda head: head.version)
    if not intact:
        raise broken_head(actor, "no copy of it is intact")
    newest = intact[-1]
    if len(heads) == 1:
        return Reach(newest, newest.version, newest.version)
    if len(intact) == 1:
        return Reach(newest, newest.version + 1, None)
    if newest.before != intact[0].version:
        raise broken_head(
            actor, f"the one of event {newest.version} was written beside one of event {newest.before}, which is gone"
        )
    return Reach(newest, newest.version, None)


def check_reach(actor: str, reach: Reach, version: int) -> None:
    """Check that a log which ends at event ``version`` ends where its heads say.

    Raises:
        StateCorruptionError: events were cut off, or may have been; ``event`` is the first of them. Or there is one
            that no head names.
    """
    head, least, most = reach
    if version < head.version:
        many = head.version > version + 1
        what = f"events {version + 1} to {head.version} were cut off" if many else "it was cut off"
        raise broken(actor, version + 1, what)
    if version < least:
        raise broken(
            actor,
            version + 1,
            f"one of the two heads is damaged, and the other one names event {version}, the last one",
        )
    if most is not None and version > most:
        raise broken(actor, most + 1, f"the head names event {most} as the last one")


def check_head(actor: str, head: Head, version: int, link: bytes) -> None:
    """Check that event ``version``, which the head names, has the link that the head names.

    Raises:
        StateCorruptionError: another one is in its place.
    """
    if head.version == version and head.link != link:
        raise broken(actor, version, "it is not the one that the head names")
