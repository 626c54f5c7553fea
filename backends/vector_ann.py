"""Approximate search: which faiss index is built when, and how it is searched together with what it does not
hold.

A faiss index covers the rows below ``covered``, under their numbers. What came later is compared exactly, so
a new vector is found at once; what was deleted or changed since is a tombstone that is dropped from its
results. Building, extending and training happen beside the searches, on an index that nobody else sees yet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np

from dgents.backends.vector_flat import CORES, PRODUCT_FROM, Found, exact_keys, faiss_threads, merge, nearest
from dgents.backends.vector_input import Floats, Metric
from dgents.backends.vector_rows import View

# Below so many vectors exact search is as fast as any other.
SMALLEST = 1_000
_TRAINING_PER_CENTROID = 39  # faiss warns below this
_SAMPLE_PER_CENTROID = 128
_CHUNK = 1_024
_EF_SEARCH = 64


class Stopped(Exception):
    """The owner asked a build to stop; nothing was changed."""


@dataclass(frozen=True)
class Recipe:
    """Which faiss index to build: ``hnsw``, ``ivf``, or what a faiss factory string says."""

    index: str
    dimension: int
    metric: Metric

    def __post_init__(self) -> None:
        try:
            self._make(SMALLEST)
        except RuntimeError as error:
            why = str(error).rpartition("Error: ")[2] or str(error)
            raise ValueError(
                f"index={self.index!r} can't have dimension {self.dimension} and metric {self.metric!r}: "
                f"{why}; use 'flat', 'hnsw', 'ivf' or a factory string of faiss"
            ) from error
        if "IDMap" in self.index:
            raise ValueError(f"index={self.index!r}: leave IDMap out, ids are kept by the agent itself")

    @cached_property
    def minimum(self) -> int:
        """From how many vectors on the index can be trained, and is worth it."""
        ivf = faiss.try_extract_index_ivf(self._make(SMALLEST))
        centroids = max(256 if re.search("PQ|RQ|LSQ|IMI", self.index) else 0, ivf.nlist if ivf else 0)
        return max(SMALLEST, 2 * self.dimension, _TRAINING_PER_CENTROID * centroids)

    @property
    def adapts(self) -> bool:
        """Whether the index was made for a number of vectors, and should be made anew for many more."""
        return self.index == "ivf"

    def build(self, view: View, check: Callable[[], None]) -> Ann:
        """Train an index and add all rows of the view; ``check`` is called often and raises to stop it."""
        live = view.live_rows()
        index = self._make(len(live))
        if not index.is_trained:
            ivf = faiss.try_extract_index_ivf(index)
            wanted = _SAMPLE_PER_CENTROID * max(256, ivf.nlist if ivf else 0)
            if len(live) > wanted:
                live = np.sort(np.random.default_rng(0).choice(live, wanted, replace=False))
            with faiss_threads(_building()):
                index.train(view.blocks.gather(live))
        # Graphs and lists grow bit by bit; some other kinds take all their vectors in one call.
        whole = not re.search("HNSW|IVF", self.index.upper())
        self._add(index, view, 0, view.length if whole else _CHUNK, check)
        return self.finished(index, view.length, len(view.live_rows()))

    def extend(self, ann: Ann, view: View, check: Callable[[], None]) -> Ann:
        """Return a copy that covers all rows of the view; `RuntimeError` if this kind can't grow."""
        index = faiss.clone_index(ann.index)
        self._add(index, view, ann.covered, _CHUNK, check)
        return self.finished(index, view.length, ann.made_for)

    def finished(self, index: Any, covered: int, made_for: int) -> Ann:
        """Set how thoroughly it searches."""
        ivf = faiss.try_extract_index_ivf(index)
        if ivf is not None:
            ivf.nprobe = max(8, ivf.nlist // 64)
        inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
        if isinstance(inner, faiss.IndexHNSW):
            inner.hnsw.efSearch = _EF_SEARCH
        return Ann(index, covered, made_for, exact=self.index in ("hnsw", "ivf"), metric=self.metric)

    def _make(self, count: int) -> Any:
        text = {"hnsw": "HNSW32,Flat", "ivf": f"IVF{_lists(count)},Flat"}.get(self.index, self.index)
        kind = faiss.METRIC_L2 if self.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        return faiss.index_factory(self.dimension, text, kind)

    def _add(self, index: Any, view: View, first: int, chunk: int, check: Callable[[], None]) -> None:
        for start in range(first, view.length, chunk):
            check()
            rows = np.arange(start, min(start + chunk, view.length))
            with faiss_threads(_building()):
                index.add(view.blocks.gather(rows))
        check()


@dataclass(frozen=True)
class Ann:
    """A built index. It is never changed, so any number of threads may search it.

    Attributes:
        covered: the rows below this are in it, the dead ones among them too.
        made_for: how many vectors there were when it was trained.
        exact: whether its keys are; others are computed anew from the vectors.
    """

    index: Any
    covered: int
    made_for: int
    exact: bool
    metric: Metric

    def search(self, view: View, queries: Floats, k: int) -> Found:
        """Return about the ``k`` best live rows of each query: ``k`` of them, if so many are live."""
        live = self.covered if view.alive is None else int(np.count_nonzero(view.alive[: self.covered]))
        enough = min(k, live)
        # Most searches find nothing to compare beside the index; their way is kept short.
        later = nearest(view, self.metric, queries, k, self.covered) if view.length > self.covered else None
        for width in self._widths(k, live) if enough else ():
            inside = self._live(view, queries, width)
            if (inside.rows[:, enough - 1] >= 0).all():
                best = Found(inside.keys[:, :k], inside.rows[:, :k])
                return best if later is None else merge(k, best, later)
        return nearest(view, self.metric, queries, k)

    def _widths(self, k: int, live: int) -> Iterator[int]:
        """Yield how many candidates to ask for: more than ``k`` if some will be dropped or sorted anew."""
        width = k if live == self.covered else 2 * k + 8
        width = width if self.exact else 4 * k + 32
        for wider in (width, 8 * width):
            yield min(wider, self.covered)

    def _live(self, view: View, queries: Floats, width: int) -> Found:
        with faiss_threads(CORES if len(queries) >= PRODUCT_FROM else 1):
            keys, rows = self.index.search(queries, width)
        dropped = view.alive is not None and not view.alive[rows].all()
        if view.alive is not None:
            rows[~view.alive[rows]] = -1
        if not self.exact:
            return exact_keys(view, self.metric, queries, rows)
        keys = -keys if self.metric == "l2" else keys
        keys[rows < 0] = -np.inf
        return merge(width, Found(keys, rows)) if dropped else Found(keys, rows)


def _lists(count: int) -> int:
    """Return how many lists an IVF index of so many vectors gets: a power of two, about 4√count."""
    lists = min(4 * count**0.5, count / _TRAINING_PER_CENTROID)
    return 1 << max(0, int(np.log2(max(1.0, lists))))


def _building() -> int:
    """Return how many threads may build: one core is left to the event loop and the searches."""
    return max(1, CORES - 1)
