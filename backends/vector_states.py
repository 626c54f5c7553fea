"""The encoded states of a vector store by id, and views of them that stay as they are while others write.

Invariants:

1. A write first notes in every open view what it is about to replace, and then replaces it. Whoever reads through a
   view looks at the current state first, and then at what was noted; so it finds the state of its moment, whichever
   thread it runs in.
2. Views are opened between writes, never in the middle of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Id = str | int

LARGEST_ID = 2**63 - 1  # a generated id comes after all others, as long as there is one


def following(ids: Iterable[Id | None]) -> int:
    """Return a generated id that comes after all of these."""
    return max((id for id in ids if isinstance(id, int)), default=0) + 1


class StatesView:
    """The states as they were when the view was opened."""

    def __init__(self, states: States, current: dict[Id, bytes]) -> None:
        self._states = states
        self._current = current
        self._replaced: dict[Id, bytes | None] = {}

    def get(self, id: Id) -> bytes:
        """Return the state that ``id`` had then; `KeyError` if it had none."""
        current = self._current.get(id)
        found = self._replaced.get(id, current)
        if found is None:
            raise KeyError(id)
        return found

    def note(self, ids: Iterable[Id]) -> None:
        """Keep what these ids have now: it is about to be replaced."""
        for id in ids:
            self._replaced.setdefault(id, self._current.get(id))

    def close(self) -> None:
        """Let go of it; again does nothing."""
        self._states.views.discard(self)


class States:
    """Encoded states by id. One writer at a time, in any thread.

    Attributes:
        size: bytes of all states.
        views: those that are open.
    """

    def __init__(self) -> None:
        self._current: dict[Id, bytes] = {}
        self.views: set[StatesView] = set()
        self.size = 0

    def __len__(self) -> int:
        return len(self._current)

    def __contains__(self, id: Id) -> bool:
        return id in self._current

    def get(self, id: Id) -> bytes | None:
        """Return the state of ``id``, None if there is none."""
        return self._current.get(id)

    def set(self, ids: Sequence[Id], states: Sequence[bytes]) -> None:
        """Set the states of the ids; of several for one id, the last one counts."""
        self._note(ids)
        current = self._current
        for id, state in zip(ids, states, strict=True):
            before = current.get(id)
            self.size += len(state) - (len(before) if before is not None else 0)
            current[id] = state

    def delete(self, ids: Iterable[Id]) -> None:
        """Delete what is there of the ids."""
        present = [id for id in ids if id in self._current]
        self._note(present)
        for id in present:
            self.size -= len(self._current.pop(id))

    def view(self) -> StatesView:
        """Open a view of the states as they are now."""
        view = StatesView(self, self._current)
        self.views.add(view)
        return view

    def _note(self, ids: Sequence[Id]) -> None:
        for view in self.views.copy():  # one may be closed meanwhile, which does no harm
            view.note(ids)
