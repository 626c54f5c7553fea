"""When a faiss index is extended or built anew, and how new rows follow the old ones while it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from dgents.backends.vector_ann import Ann, Recipe
from dgents.backends.vector_input import Vectors
from dgents.backends.vector_rows import VectorRows, View

Step = Literal["extend", "replace"]

# So few changes at once can be taken over while others wait.
FEW = 1_000
# Tombstones beyond this share of what the index covers, and it is built anew.
_TOMBSTONES = 0.2
# Vectors beyond this share that it does not cover yet, and it is extended.
_LATER = 0.1
# So many times the vectors it was trained for, and it is trained anew.
_OUTGROWN = 4


class Size(NamedTuple):
    """How many rows there are, how many are live, and how many dead ones only wait to be filled."""

    rows: int
    live: int
    holes: int

    @classmethod
    def of(cls, rows: VectorRows) -> Size:
        """Count them."""
        return cls(rows.length, len(rows.rows), rows.holes)


def next_step(size: Size, ann: Ann | None, recipe: Recipe | None, failed_at: int) -> Step | None:
    """Decide what a rebuild has to do, if anything.

    Args:
        failed_at: with how many vectors the last rebuild failed, 0 if it did not; there must be twice as many to try
            again.
    """
    if size.live < 2 * failed_at:
        return None
    if size.holes > FEW + size.live // 2:
        return "replace"
    if recipe is None:
        return None
    if ann is None:
        return "replace" if size.live >= recipe.minimum else None
    tombstones = size.rows - size.holes - size.live
    if tombstones > FEW // 10 + _TOMBSTONES * ann.covered:
        return "replace"
    if recipe.adapts and size.live > _OUTGROWN * ann.made_for:
        return "replace"
    return "extend" if size.rows - ann.covered > FEW + _LATER * ann.covered else None


class Heir:
    """New rows that follow the old ones: without the dead, and with what was written meanwhile."""

    def __init__(self, new: VectorRows) -> None:
        self.rows = new
        self._alive = np.empty(0, np.bool_)

    def behind(self, view: View) -> int:
        """Return how many rows came since it last followed."""
        return view.length - len(self._alive)

    def follow(self, view: View, check: Callable[[], None]) -> None:
        """Take over what changed since the last time, given the old rows as they are, frozen."""
        alive = np.ones(view.length, np.bool_) if view.alive is None else view.alive
        known = len(self._alive)
        gone = np.flatnonzero(self._alive & ~alive[:known])
        self.rows.delete([view.ids[row] for row in gone.tolist()])
        new = view.live_rows(known)
        for start in range(0, len(new), FEW):
            check()
            some = new[start : start + FEW]
            vectors = view.blocks.gather(some)
            squares = np.einsum("ij,ij->i", vectors, vectors)
            self.rows.upsert([view.ids[row] for row in some.tolist()], Vectors(vectors, None, squares))
        self._alive = alive
