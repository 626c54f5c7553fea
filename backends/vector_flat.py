"""Exact search: every row is compared. Few queries go to faiss, many at once through one matrix product.

Inside the engine a result is ``(keys, rows)``, two matrices with one line a query, best first. A key is
higher for the better row whatever the metric (for l2 it is the negated squared distance); places without a
row have row -1.

One query reads every vector once, so memory is what it waits for: faiss with one thread (its threads wait for
each other at every step, which costs more than they bring where a core is busy). From `PRODUCT_FROM` queries
on a matrix product (BLAS, all cores) reads them once for all queries, which is many times cheaper a query.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from dgents.backends.vector_input import Floats, Metric, Rows
from dgents.backends.vector_rows import Slice, View

_kernels: Any = faiss  # the types that faiss ships leave these functions out
PRODUCT_FROM = 8
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

# A product of fewer rows at a time has its threads wait for each other more often than they compute.
_ROWS_AT_ONCE = 16384
_QUERIES_AT_ONCE = 256
_SAMPLE = 512
_GATHERED = 8 << 20


class Found(NamedTuple):
    """The best rows of each query, best first."""

    keys: Floats
    rows: Rows


@contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """Let faiss use ``count`` threads in calls from this thread; other threads keep their own number."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def nearest(view: View, metric: Metric, queries: Floats, k: int, first: int = 0) -> Found:
    """Return the ``k`` best live rows of each query among the rows from ``first`` on, exactly."""
    if len(queries) < PRODUCT_FROM:
        return _by_faiss(view, metric, queries, k, first)
    parts = [queries[at : at + _QUERIES_AT_ONCE] for at in range(0, len(queries), _QUERIES_AT_ONCE)]
    search = _by_expansion if metric == "l2" else _by_product
    found = [search(view, metric, part, k, first) for part in parts]
    return Found(np.concatenate([part.keys for part in found]), np.concatenate([part.rows for part in found]))


def all_keys(view: View, metric: Metric, query: Floats) -> Floats:
    """Return the key of every row for one query; a dead row's is minus infinity."""
    keys = np.empty(view.length, np.float32)
    for part in view.slices():
        keys[part.first : part.first + len(part.vectors)] = _keys_of(part, metric, query)
    return keys


def merge(k: int, *found: Found) -> Found:
    """Return the ``k`` best of several results for the same queries."""
    keys = np.concatenate([part.keys for part in found], axis=1)
    rows = np.concatenate([part.rows for part in found], axis=1)
    order = np.argsort(-keys, axis=1, kind="stable")[:, :k]
    return Found(np.take_along_axis(keys, order, 1), np.take_along_axis(rows, order, 1))


def exact_keys(view: View, metric: Metric, queries: Floats, rows: Rows) -> Found:
    """Return these rows with the exact keys, best first; -1 stays without a row."""
    keys = np.empty(rows.shape, np.float32)
    step = max(1, _GATHERED // (rows.shape[1] * queries.shape[1] + 1))
    for at in range(0, len(queries), step):
        some, few = rows[at : at + step], queries[at : at + step]
        vectors = view.blocks.gather(np.maximum(some, 0).ravel()).reshape(*some.shape, -1)
        if metric == "l2":
            vectors -= few[:, None, :]
            keys[at : at + step] = -np.einsum("qkd,qkd->qk", vectors, vectors)
        else:
            keys[at : at + step] = np.einsum("qkd,qd->qk", vectors, few)
    keys[rows < 0] = -np.inf
    return merge(rows.shape[1], Found(keys, rows))


def _by_faiss(view: View, metric: Metric, queries: Floats, k: int, first: int) -> Found:
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    found = [_nothing(len(queries))]
    with faiss_threads(1):
        for part in view.slices(first):
            wanted = min(k, len(part.vectors))
            if part.alive is None:
                keys, rows = faiss.knn(queries, part.vectors, wanted, metric=kind)
                found.append(Found(-keys if metric == "l2" else keys, rows + part.first))
            else:
                keys = np.stack([_keys_of(part, metric, query) for query in queries])
                rows = np.argpartition(keys, len(part.vectors) - wanted, axis=1)[:, -wanted:]
                found.append(Found(np.take_along_axis(keys, rows, 1), rows + part.first))
    best = merge(k, *found)
    best.rows[best.keys == -np.inf] = -1
    return best


def _keys_of(part: Slice, metric: Metric, query: Floats) -> Floats:
    keys = np.empty(len(part.vectors), np.float32)
    compare = _kernels.fvec_L2sqr_ny if metric == "l2" else _kernels.fvec_inner_products_ny
    pointers = (faiss.swig_ptr(array) for array in (keys, query, part.vectors))
    compare(*pointers, len(query), len(part.vectors))
    if metric == "l2":
        np.negative(keys, out=keys)
    if part.alive is not None:
        keys[~part.alive] = -np.inf
    return keys


def _by_product(view: View, metric: Metric, queries: Floats, k: int, first: int) -> Found:
    """Multiply all queries with a few thousand rows at a time, and keep what beats the k-th best so far."""
    best = _Best(len(queries), k)
    factor = np.ascontiguousarray(queries.T) * np.float32(2 if metric == "l2" else 1)
    scores = np.empty((_ROWS_AT_ONCE, len(queries)), np.float32)
    better = np.empty(scores.shape, np.bool_)
    for part in _pieces(view, first):
        keys = np.matmul(part.vectors, factor, out=scores[: len(part.vectors)])
        if metric == "l2" and part.squares is not None:
            keys -= part.squares[:, None]
        if part.alive is not None:
            keys[~part.alive] = -np.inf
        best.offer(keys, part.first, better[: len(keys)])
    return best.found()


def _pieces(view: View, first: int) -> Iterator[Slice]:
    """Cut the rows to the cache's size; the first piece is small, as it sets the bar for all others."""
    size = _SAMPLE
    for part in view.slices(first):
        start = 0
        while start < len(part.vectors):
            cut = slice(start, start + size)
            squares = None if part.squares is None else part.squares[cut]
            alive = None if part.alive is None else part.alive[cut]
            yield Slice(part.first + start, part.vectors[cut], squares, alive)
            start, size = start + size, _ROWS_AT_ONCE


class _Best:
    """The best rows so far: flat arrays, sorted by query, then best first; at most ``k`` a query."""

    def __init__(self, queries: int, k: int) -> None:
        self.queries = queries
        self.k = k
        self.bar = np.full(queries, -np.inf, np.float32)
        self.query = np.empty(0, np.int64)
        self.row = np.empty(0, np.int64)
        self.key = np.empty(0, np.float32)

    def offer(self, keys: Floats, first: int, better: npt.NDArray[np.bool_]) -> None:
        """Take what is better than the bar of its query from ``keys`` (a row a line, a query a column)."""
        np.greater(keys, self.bar, out=better)
        places = np.flatnonzero(better)
        if len(places) > max(keys.size // 16, self.k * self.queries) and self.k < len(keys):
            # Too many to sort: rows that get better and better, or the very first ones.
            lines = np.argpartition(keys, len(keys) - self.k, axis=0)[-self.k :]
            places = (lines * self.queries + np.arange(self.queries)).ravel()
            places = places[better.ravel()[places]]
        if len(places):
            line, query = np.divmod(places, self.queries)
            self._merge(query, line + first, keys.ravel()[places])

    def _merge(self, query: Rows, row: Rows, key: Floats) -> None:
        query = np.concatenate((self.query, query))
        row = np.concatenate((self.row, row))
        key = np.concatenate((self.key, key))
        order = np.lexsort((-key, query))
        query = query[order]
        starts = np.searchsorted(query, np.arange(self.queries))
        rank = np.arange(len(query)) - starts[query]
        kept = order[rank < self.k]
        last = rank == self.k - 1
        self.bar[query[last]] = key[order[last]]
        self.query, self.row, self.key = query[rank < self.k], row[kept], key[kept]

    def found(self) -> Found:
        """Return what is kept as matrices."""
        keys = np.full((self.queries, self.k), -np.inf, np.float32)
        rows = np.full((self.queries, self.k), -1, np.int64)
        rank = np.arange(len(self.query)) - np.searchsorted(self.query, np.arange(self.queries))[self.query]
        keys[self.query, rank] = self.key
        rows[self.query, rank] = self.row
        return Found(keys, rows)


def _by_expansion(view: View, metric: Metric, queries: Floats, k: int, first: int) -> Found:
    """Search by ``2 q·x - x²``, which loses digits where vectors are long and near each other; so check the
    result.

    A few more rows than asked for are taken and compared exactly. A row that was not taken has at most the
    last taken key plus the rounding error; where that could still beat the k-th best, the query goes to
    faiss.
    """
    rough = _by_product(view, metric, queries, 2 * k + 16, first)
    squares = np.einsum("qd,qd->q", queries, queries)
    best = exact_keys(view, metric, queries, rough.rows)
    longest = max((float(part.squares.max()) for part in view.slices(first) if part.squares is not None), default=0.0)
    unit = np.finfo(np.float32).eps * (queries.shape[1] / 8 + 8)
    error = unit * (np.sqrt(squares) + np.sqrt(longest)) ** 2
    unsure = (rough.rows[:, -1] >= 0) & (best.keys[:, k - 1] < rough.keys[:, -1] - squares + error)
    found = Found(best.keys[:, :k], best.rows[:, :k])
    if unsure.any():
        again = _by_faiss(view, metric, queries[unsure], k, first)
        found.keys[unsure], found.rows[unsure] = again.keys, again.rows
    return found


def _nothing(queries: int) -> Found:
    return Found(np.empty((queries, 0), np.float32), np.empty((queries, 0), np.int64))
