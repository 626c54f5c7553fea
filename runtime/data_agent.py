"""The least that code about states asks for: load, save, history."""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

S = TypeVar("S")


@runtime_checkable
class DataAgent(Protocol[S]):
    """Something that keeps a state of type ``S``: a `Ref`, a lens, a `Ref.for_update` view.

    Functions that are written against it work with any of them.
    """

    async def load(self) -> S:
        """Return the caller's own copy of the state."""
        ...

    async def save(self, state: S) -> int | None:
        """Replace the state."""
        ...

    async def history(self, limit: int | None = None) -> list[S]:
        """Return earlier states and the current one, oldest first."""
        ...
