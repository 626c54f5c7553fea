"""What each task has seen: the versions that it loaded, so that a stale ``save`` can be refused.

`state = await ref.load(); ...; await ref.save(new)` loses updates under a lock per message. Here the version that a
task last saw of each actor is remembered for as long as the task lives, and the actor refuses a save that would
overwrite a version which the task has not seen.
"""

from __future__ import annotations

import weakref
from itertools import islice
from typing import Any

# One task may hold this many remembered versions; the oldest are forgotten first, and then count as never loaded.
MOST_REMEMBERED = 65_536


class Seen(dict[Any, Any]):
    """The versions one task has seen, by actor name; by ``(name, path)`` for a lens."""

    __slots__ = ("__weakref__", "task")
    task: weakref.ref[Any]
    __hash__ = object.__hash__  # type: ignore[assignment]  # it stands for who has seen this
    __eq__ = object.__eq__

    def note(self, key: Any, version: Any) -> None:
        """Remember what was seen last."""
        self[key] = version
        if len(self) > MOST_REMEMBERED:  # many at a time: to find the first one, a dict walks over all it has lost
            for oldest in list(islice(self, MOST_REMEMBERED // 16)):
                del self[oldest]
            self[key] = version  # it may have been among those that came first


class SeenByTask(dict[int, Seen]):
    """What each living task has seen, by ``id(task)``: an entry leaves with its task, before the id is used again.

    A dictionary rather than a context variable: a child task inherits its parent's context, but not what it has seen.
    """

    def of(self, task: Any) -> Seen:
        """Return what ``task`` has seen."""
        key = id(task)
        seen = self.get(key)
        if seen is None:
            seen = self[key] = Seen()
            seen.task = weakref.ref(task, lambda _: self.pop(key, None))
        return seen
