"""A vector index in memory: ids and float32 vectors, searched exactly or through faiss, while others write.

Invariants:

1. A search sees every upsert and delete that returned before the search began, whole, and none that began
   after it. It takes the lock only to open its view and to close it (see `vector_rows`); comparing runs
   without it.
2. Upserts and deletes are the caller's to serialise: one at a time. Each is applied whole or not at all.
3. `rebuild` may run in any thread beside both, one at a time. What is written meanwhile is in the result.

| state | search | leads to |
|---|---|---|
| flat | exact | `rebuild` only clears holes that a long row of overlapping searches left |
| untrained: too few vectors for the index | exact | `rebuild` trains and builds, once there are enough |
| built | approximate below ``covered``, exact above it | `rebuild` extends it, or builds anew |
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from dgents.backends.vector_ann import Ann, Recipe, Stopped
from dgents.backends.vector_filter import allowed_nearest
from dgents.backends.vector_flat import nearest
from dgents.backends.vector_input import METRICS, Floats, Id, Metric, Vectors, check_ids, check_vectors
from dgents.backends.vector_rebuild import FEW, Heir, Size, next_step
from dgents.backends.vector_rows import VectorRows, View
from dgents.backends.vector_snapshot import Header, Snapshot, read


class Moment:
    """The index as it was when `VectorIndex.look` was called. Until it is closed, no hole is filled."""

    def __init__(self, index: VectorIndex, view: View, ann: Ann | None, live: int, close: Callable[[], None]) -> None:
        self._index = index
        self._view = view
        self._ann = ann
        self._live = live
        self._close: Callable[[], None] | None = close

    def __enter__(self) -> Moment:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the moment; again does nothing."""
        close, self._close = self._close, None
        if close is not None:
            close()

    def search(
        self, queries: Any, k: int, *, allowed: Callable[[Id], bool] | None = None
    ) -> list[list[tuple[Id, float]]]:
        """Search what the index held at that moment; see `VectorIndex.search`."""
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k={k!r}: expected an int of 1 or more")
        index, ids = self._index, self._view.ids
        matrix = (queries if isinstance(queries, Vectors) else index.check(queries)).scaled()
        if not self._live or not len(matrix):
            return [[] for _ in matrix]
        found = index._find(self._view, self._ann, matrix, min(k, self._live), allowed)
        sign = -1.0 if index.metric == "l2" else 1.0
        return [[(ids[row], sign * key) for row, key in best] for best in found]


class VectorIndex:
    """Ids and vectors of one dimension, searched by similarity.

    Args:
        dimension: how many components each vector has.
        index: ``"flat"`` (exact), ``"hnsw"``, ``"ivf"``, or a faiss factory string. Everything but flat keeps
            a second copy of the vectors inside faiss, and searches exactly until `rebuild` has built it.
        metric: ``"cosine"`` (vectors are kept at length 1), ``"ip"`` (inner product) or ``"l2"``.

    Raises:
        ValueError: no such metric, no such index, or a dimension below 1.
    """

    def __init__(self, dimension: int, *, index: str = "flat", metric: Metric = "cosine") -> None:
        if isinstance(dimension, bool) or not isinstance(dimension, int) or dimension < 1:
            raise ValueError(f"dimension={dimension!r}: expected an int of 1 or more")
        if metric not in METRICS:
            raise ValueError(f"metric={metric!r}: expected 'cosine', 'ip' or 'l2'")
        self.dimension = dimension
        self.index = index
        self.metric = metric
        self._recipe = None if index.lower() == "flat" else Recipe(index, dimension, metric)
        self._rows = self._empty_rows()
        self._ann: Ann | None = None
        self._lock = threading.Lock()
        self._rebuilding = threading.Lock()
        self._failed_at = 0

    def __len__(self) -> int:
        return len(self._rows.rows)

    def __contains__(self, id: object) -> bool:
        return type(id) in (str, int) and id in self._rows.rows

    def __iter__(self) -> Iterator[Id]:
        """Iterate over the ids as they are now, in no order that means anything."""
        with self._lock:
            return iter(list(self._rows.rows))

    def get(self, id: Id) -> Floats:
        """Return a copy of the vector of ``id`` as it is kept (for cosine: at length 1).

        Raises:
            KeyError: there is none.
        """
        with self._lock:
            return self._rows.vector(id)

    def check(self, vectors: Any, ids: Sequence[Id] | None = None) -> Vectors:
        """Return ``vectors`` as `upsert` and `search` take them, checked once; they may be handed to either.

        Raises:
            InvalidVectorError: see `upsert`.
        """
        return check_vectors(vectors, self.dimension, self.metric, ids)

    def upsert(self, ids: Sequence[Id], vectors: Any) -> None:
        """Set the vectors of the ids, all or none; of several for one id, the last one counts.

        Args:
            ids: str or int; ``"1"`` and ``1`` are two ids.
            vectors: a matrix with one row for each id, or what `check` returned for it.

        Raises:
            InvalidVectorError: an id is neither str nor int, a vector has another dimension, NaN, infinite or
                overflowing components, or, for cosine, no direction. It says which; nothing was changed.
        """
        plain = check_ids(ids)
        new = vectors if isinstance(vectors, Vectors) else self.check(vectors, plain)
        if len(new.values) != len(plain):
            raise ValueError(f"{len(plain)} ids for {len(new.values)} vectors: each vector needs one")
        with self._lock:
            self._rows.upsert(plain, new)

    def delete(self, ids: Sequence[Id]) -> int:
        """Delete the ids that are there, and return how many that were."""
        plain = check_ids(ids)
        with self._lock:
            return self._rows.delete(plain)

    def search(
        self, queries: Any, k: int, *, allowed: Callable[[Id], bool] | None = None
    ) -> list[list[tuple[Id, float]]]:
        """Return for each query the ids and scores of its ``k`` nearest, best first; fewer if there are no
        more.

        The score is the cosine or inner product (higher is better), or for l2 the squared distance, as faiss
        has it (lower is better). Many queries in one call cost far less than one by one.

        Args:
            queries: a matrix with one query a row, or what `check` returned for it.
            allowed: says for an id whether it may be a result. It is asked from the nearest on, in this
                thread, until ``k`` are found or all were asked. What it raises reaches the caller.

        Raises:
            InvalidVectorError: a query can't be compared; see `upsert`.
        """
        with self.look() as moment:
            return moment.search(queries, k, allowed=allowed)

    def look(self) -> Moment:
        """Return the index as it is now, to search it in any thread while others write; close it soon."""
        with self._lock:
            rows, ann, view = self._rows, self._ann, self._rows.open()
            live = len(rows.rows)

        def close() -> None:
            with self._lock:
                rows.close()

        return Moment(self, view, ann, live, close)

    @property
    def needs_rebuild(self) -> bool:
        """Whether `rebuild` would make searches faster; cheap enough to ask after each write."""
        return next_step(Size.of(self._rows), self._ann, self._recipe, self._failed_at) is not None

    def rebuild(self, stop: threading.Event | None = None) -> bool:
        """Train, build or extend the faiss index beside searches and writes, then put it in place at once.

        Takes from milliseconds to minutes: run it in a thread. Returns at once if another one is running.

        Args:
            stop: set it, and the rebuild gives up within about a second (training itself can't be
            interrupted).

        Returns:
            Whether a new index is in place.

        Raises:
            RuntimeError, MemoryError: faiss can't build it from these vectors. Searches go on as before;
                `needs_rebuild` says so again once there are twice as many.
        """

        def check() -> None:
            if stop is not None and stop.is_set():
                raise Stopped

        if not self._rebuilding.acquire(blocking=False):
            return False
        try:
            step = next_step(Size.of(self._rows), self._ann, self._recipe, self._failed_at)
            rebuilt = (step != "replace" and self._extend(check)) or self._replace(check)
            self._failed_at = 0
            return rebuilt
        except Stopped:
            return False
        except (RuntimeError, MemoryError):
            self._failed_at = len(self)
            raise
        finally:
            with self._lock:
                covered = self._ann.covered if self._ann else 0
                if self._rows.frozen != covered:
                    self._rows.freeze(covered)
            self._rebuilding.release()

    def snapshot(self, generation: int = 0) -> Snapshot:
        """Return this moment as bytes to write; searches and writes go on meanwhile.

        Args:
            generation: the caller's number for what the index holds now; `restore` gives it back.
        """
        with self._lock:
            rows, ann, view = self._rows, self._ann, self._rows.open()
            covered, made_for = (ann.covered, ann.made_for) if ann else (0, 0)

        def close() -> None:
            with self._lock:
                rows.close()

        header = Header(generation, self.dimension, self.metric, self.index, view.length, covered, made_for)
        return Snapshot(header, view, ann, close)

    @classmethod
    def restore(
        cls, data: bytes | memoryview, *, index: str | None = None, digest: bytes | None = None
    ) -> tuple[VectorIndex, int]:
        """Return the index that a snapshot holds, and its generation.

        Args:
            data: what `snapshot` gave: the bytes, or a file mapped into memory.
            index: what kind of index it is from now on; another kind than it was is built by `rebuild`.
            digest: what `Snapshot.digest` was, if it was kept elsewhere.

        Raises:
            StateCorruptionError: it is not as it was written. faiss reads nothing before that was checked.
        """
        content = read(data, digest)
        header = content.header
        restored = cls(header.dimension, index=index or header.index, metric=cast(Metric, header.metric))
        for ids, vectors in content.blocks:
            restored._rows.load(ids, vectors)
        if restored._recipe is not None and restored.index == header.index and content.built is not None:
            restored._ann = restored._recipe.finished(content.built, header.covered, header.made_for)
        restored._rows.freeze(restored._ann.covered if restored._ann else 0)
        return restored, header.generation

    def _empty_rows(self) -> VectorRows:
        return VectorRows(self.dimension, with_squares=self.metric == "l2")

    def _find(
        self, view: View, ann: Ann | None, queries: Floats, k: int, allowed: Callable[[Id], bool] | None
    ) -> list[list[tuple[int, float]]]:
        if allowed is not None:
            return allowed_nearest(view, ann, self.metric, queries, k, allowed)
        best = ann.search(view, queries, k) if ann else nearest(view, self.metric, queries, k)
        return [_pairs(*one) for one in zip(best.rows, best.keys, strict=True)]

    def _freeze(self) -> View:
        """Fix the numbers of all rows there are now, and return them as they are."""
        self._rows.freeze(self._rows.length)
        return self._rows.look()

    def _extend(self, check: Callable[[], None]) -> bool:
        """Add the later rows to a copy of the faiss index, if there is one and its kind can."""
        ann, recipe = self._ann, self._recipe
        if ann is None or recipe is None:
            return False
        with self._lock:
            view = self._freeze()
        try:
            extended = recipe.extend(ann, view, check)
        except RuntimeError:
            return False  # some kinds of index can't be copied or grow: they're built anew
        with self._lock:
            self._ann = extended
        return True

    def _replace(self, check: Callable[[], None]) -> bool:
        """Copy the live rows, build the faiss index over those, and follow the writes until it's done."""
        heir = Heir(self._empty_rows())
        with self._lock:
            view = self._freeze()
        heir.follow(view, check)
        ann = None
        if self._recipe is not None and len(heir.rows.rows) >= self._recipe.minimum:
            heir.rows.freeze(heir.rows.length)
            ann = self._recipe.build(heir.rows.look(), check)
        while True:
            with self._lock:
                view = self._freeze()
                if heir.behind(view) <= FEW:
                    heir.follow(view, check)
                    self._rows, self._ann = heir.rows, ann
                    return True
            heir.follow(view, check)


def _pairs(rows: Any, keys: Any) -> list[tuple[int, float]]:
    return [(row, key) for row, key in zip(rows.tolist(), keys.tolist(), strict=True) if row >= 0]
