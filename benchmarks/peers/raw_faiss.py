"""FAISS by itself: a flat index of inner products, one thread, as its fastest for one query at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy


@contextmanager
def one_thread() -> Iterator[None]:
    """Let FAISS use one thread while the block lasts."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def unit_vectors(count: int, dimension: int) -> Any:
    """Return so many random directions."""
    vectors = numpy.random.default_rng(7).standard_normal((count, dimension), dtype="float32")
    faiss.normalize_L2(vectors)
    return vectors


def flat(vectors: Any) -> Any:
    """Return an index of the vectors."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def hnsw(vectors: Any) -> Any:
    """Return a graph of the vectors, with the links a node that the agent's index has."""
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    return index


def mapped(vectors: Any) -> Any:
    """Return an index whose vectors have ids, and can be removed by them."""
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.shape[1]))
    index.add_with_ids(vectors, numpy.arange(len(vectors)))
    return index
