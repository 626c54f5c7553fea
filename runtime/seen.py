"""What each task has seen: the versions that it loaded, so that a stale ``save`` can be refused.

`state = await ref.load(); ...; await ref.save(new)` loses updates under a lock per message. Here the version that a
task last loaded of each actor is remembered, in a context variable that dies with the task, and the actor refuses
a save that would overwrite a version which the task has not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

# One task may hold this many remembered versions; the oldest are forgotten first, and then count as never loaded.
MOST_REMEMBERED = 65_536


class Seen(dict[Any, Any]):
    """The versions one task has seen, by actor name; by ``(name, path)`` for a lens.

    ``owner()`` is the task that it belongs to.
    """

    __slots__ = ("owner",)

    def __init__(self, owner: Callable[[], Any]) -> None:
        super().__init__()
        self.owner = owner

    def note(self, key: Any, version: Any) -> None:
        """Remember what was seen last."""
        self[key] = version
        if len(self) > MOST_REMEMBERED:
            del self[next(iter(self))]


current_seen: ContextVar[Seen | None] = ContextVar("dgents_seen", default=None)


def seen_by(task: Any) -> Seen:
    """Return what ``task``, the running one, has seen.

    A child task inherits its parent's context, but not what its parent has seen.
    """
    seen = current_seen.get()
    if seen is None or seen.owner() is not task:
        seen = Seen(weakref.ref(task))
        current_seen.set(seen)
    return seen
