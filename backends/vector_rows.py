"""The vectors themselves: float32 in blocks, their ids, and views of them that don't change while others
write.

Invariants:

1. A row that an open view can see is never written, and its id stays. So a search in another thread sees the
   rows as they were when its view was opened: everything acknowledged before, nothing after, and no vector
   half-written.
2. ``rows[id]`` is the one live row of ``id``. A changed vector gets a new row at the end; its old row is
   dead.
3. Rows below ``frozen`` are numbered by an ANN index: they're not moved, and their numbers are not used
   again.
4. A dead row at ``frozen`` or above is a hole. When no view is open, live rows from the end are moved into
   the holes, so that a search does not pay for what was deleted. ``_holes`` is in ascending order.

| event | rows at the end | dead rows |
|---|---|---|
| upsert | `append` | the old rows of the same ids |
| delete | | the rows of the ids |
| last view closed, or a write with no view open | `_sweep` moves them into holes | many of the holes are gone |
| `freeze` | | the holes below it become tombstones |

Blocks never move when more are added, so growing costs no copy of what is there. Nothing here locks: the
caller does.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dgents.backends.vector_input import Floats, Id, Rows, Vectors

_BLOCK_BYTES = 24 << 20
# Holes that are filled at a time, in less than a millisecond: the event loop may be waiting.
_SWEPT = 256


class Slice(NamedTuple):
    """Consecutive rows of one block. ``alive`` is None where all of them are."""

    first: int
    vectors: Floats
    squares: Floats | None
    alive: npt.NDArray[np.bool_] | None


class Blocks:
    """Rows of float32, ``1 << shift`` a block; memory is used when it is first written."""

    def __init__(self, dimension: int, with_squares: bool) -> None:
        self.dimension = dimension
        self.shift = max(6, (_BLOCK_BYTES // (4 * dimension)).bit_length() - 1)
        self.vectors: list[Floats] = []
        self.squares: list[Floats] | None = [] if with_squares else None

    def resize(self, rows: int) -> None:
        """Have room for ``rows``, and at most one block more."""
        wanted = (rows >> self.shift) + 1
        while len(self.vectors) < wanted:
            self.vectors.append(np.empty((1 << self.shift, self.dimension), np.float32))
            if self.squares is not None:
                self.squares.append(np.empty(1 << self.shift, np.float32))
        del self.vectors[wanted + 1 :]
        if self.squares is not None:
            del self.squares[wanted + 1 :]

    def pieces(self, first: int, last: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield ``(block, start, stop, row)`` for the rows from ``first`` up to ``last``."""
        while first < last:
            block, start = first >> self.shift, first & ((1 << self.shift) - 1)
            stop = min(1 << self.shift, start + last - first)
            yield block, start, stop, first
            first += stop - start

    def write(self, first: int, new: Vectors) -> None:
        """Write the vectors to consecutive rows, scaled on the way."""
        for block, start, stop, row in self.pieces(first, first + len(new.values)):
            part = slice(row - first, row - first + stop - start)
            target = self.vectors[block][start:stop]
            if new.scale is None:
                target[:] = new.values[part]
            else:
                np.multiply(new.values[part], new.scale[part, None], out=target)
            if self.squares is not None:
                self.squares[block][start:stop] = new.squares[part]

    def gather(self, rows: Rows) -> Floats:
        """Return a copy of these rows, in this order."""
        found = np.empty((len(rows), self.dimension), np.float32)
        for block, places, at in self._by_block(rows):
            found[places] = self.vectors[block][at]
        return found

    def move(self, sources: Rows, targets: Rows) -> None:
        """Copy the rows ``sources`` over the rows ``targets``."""
        vectors = self.gather(sources)
        for block, places, at in self._by_block(targets):
            self.vectors[block][at] = vectors[places]
        if self.squares is not None:
            mask = (1 << self.shift) - 1
            for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
                square = self.squares[source >> self.shift][source & mask]
                self.squares[target >> self.shift][target & mask] = square

    def _by_block(self, rows: Rows) -> Iterator[tuple[int, npt.NDArray[np.intp] | slice, Rows]]:
        blocks, at = rows >> self.shift, rows & ((1 << self.shift) - 1)
        first = int(blocks[0]) if len(rows) else 0
        if len(rows) == 1 or (blocks == first).all():
            yield first, slice(None), at
            return
        for block in np.unique(blocks).tolist():
            places = np.flatnonzero(blocks == block)
            yield block, places, at[places]


class View(NamedTuple):
    """The rows as they were at one moment. ``alive`` is None where no row is dead."""

    blocks: Blocks
    vectors: list[Floats]
    ids: list[Id]
    length: int
    alive: npt.NDArray[np.bool_] | None

    def slices(self, first: int = 0) -> Iterator[Slice]:
        """Yield the rows from ``first`` on, block by block, without copying them."""
        for block, start, stop, row in self.blocks.pieces(first, self.length):
            alive = None if self.alive is None else self.alive[row : row + stop - start]
            squares = None if self.blocks.squares is None else self.blocks.squares[block][start:stop]
            partly = alive is not None and not alive.all()
            yield Slice(row, self.vectors[block][start:stop], squares, alive if partly else None)

    def live_rows(self, first: int = 0) -> Rows:
        """Return the numbers of the live rows, from ``first`` on."""
        if self.alive is None:
            return np.arange(first, self.length)
        return np.flatnonzero(self.alive[first:]) + first


class VectorRows:
    """The vectors of one index, by row and by id."""

    def __init__(self, dimension: int, with_squares: bool) -> None:
        self.rows: dict[Id, int] = {}
        self.frozen = 0
        self._blocks = Blocks(dimension, with_squares)
        self._ids: list[Id] = []
        self._alive = np.zeros(1024, np.bool_)
        self._holes: list[int] = []
        self._views = 0

    @property
    def length(self) -> int:
        """How many rows there are, the dead ones among them."""
        return len(self._ids)

    @property
    def holes(self) -> int:
        """How many dead rows wait to be filled."""
        return len(self._holes)

    def open(self) -> View:
        """Return the rows as they are now, and keep them so until `close`."""
        self._views += 1
        return self.look()

    def close(self) -> None:
        """Give one view back; with the last one, holes are filled."""
        self._views -= 1
        self._sweep(_SWEPT)

    def look(self) -> View:
        """Return a view that holds nothing back: only its rows below ``frozen`` stay as they are."""
        length = self.length
        dead = length != len(self.rows)
        alive = self._alive[:length].copy() if dead else None
        return View(self._blocks, list(self._blocks.vectors), self._ids, length, alive)

    def upsert(self, ids: list[Id], new: Vectors) -> None:
        """Add the vectors, each in place of the one its id had; of several for one id, the last one stays."""
        first = self.length
        self._append(ids, new)
        fresh = dict(zip(ids, range(first, first + len(ids)), strict=True))
        if len(fresh) < len(ids):
            self._bury([first + n for n, id in enumerate(ids) if fresh[id] != first + n])
        if not self.rows.keys().isdisjoint(fresh):
            self._bury([self.rows[id] for id in fresh if id in self.rows])
        self.rows.update(fresh)
        self._sweep(_SWEPT + 2 * len(ids))

    def load(self, ids: Sequence[Id | None], vectors: Floats) -> None:
        """Add rows as a snapshot has them; one without an id is dead. `freeze` follows the last of them."""
        first = self.length
        squares = np.einsum("ij,ij->i", vectors, vectors)
        self._append(["" if id is None else id for id in ids], Vectors(vectors, None, squares))
        for row, id in enumerate(ids, first):
            if id is None:
                self._alive[row] = False
            else:
                self.rows[id] = row

    def delete(self, ids: Sequence[Id]) -> int:
        """Delete what is there of ``ids``, and say how many that were."""
        found = [self.rows.pop(id) for id in ids if id in self.rows]
        self._bury(found)
        self._sweep(_SWEPT + 2 * len(ids))
        return len(found)

    def freeze(self, length: int) -> None:
        """Let the rows below ``length`` keep their numbers from now on, and only those."""
        self.frozen = length
        dead = np.flatnonzero(~self._alive[length : self.length]) + length
        self._holes = dead.tolist()

    def vector(self, id: Id) -> Floats:
        """Return a copy of the vector of ``id``; `KeyError` if there is none."""
        found: Floats = self._blocks.gather(np.array([self.rows[id]]))[0]
        return found

    def _append(self, ids: list[Id], new: Vectors) -> None:
        first = self.length
        self._blocks.resize(first + len(ids))
        self._blocks.write(first, new)
        if first + len(ids) > len(self._alive):
            more = np.zeros(max(2 * len(self._alive), first + len(ids)), np.bool_)
            more[:first] = self._alive[:first]
            self._alive = more
        self._alive[first : first + len(ids)] = True
        self._ids.extend(ids)

    def _bury(self, rows: list[int]) -> None:
        self._alive[rows] = False
        if len(rows) == 1 and rows[0] >= self.frozen:
            insort(self._holes, rows[0])
        else:
            self._holes += [row for row in rows if row >= self.frozen]
            self._holes.sort()

    def _sweep(self, most: int) -> None:
        """Fill up to ``most`` holes with live rows from the end, unless a view may be looking (invariant 1)."""
        if self._views or not self._holes:
            return
        holes = self._holes
        end = self.length - min(len(holes), most)
        while holes and holes[-1] >= end:
            holes.pop()
        sources = np.flatnonzero(self._alive[end : self.length]) + end
        if len(sources):
            targets = np.array(holes[-len(sources) :], np.int64)
            del holes[-len(sources) :]
            self._blocks.move(sources, targets)
            for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
                id = self._ids[source]
                self._ids[target] = id
                self.rows[id] = target
            self._alive[targets] = True
        self._alive[end : self.length] = False
        del self._ids[end:]
        self._blocks.resize(end)
