"""What the tests of the vector engine share: vectors to fill it with, and brute force to compare it with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dgents.backends.vector_index import VectorIndex
from dgents.backends.vector_input import Floats, Id, Metric

D = 16


def vectors(count: int, seed: int = 0, dimension: int = D) -> Floats:
    return np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)


def clustered(count: int, seed: int = 0, dimension: int = D) -> Floats:
    centres = 5 * vectors(max(1, count // 50), 1, dimension)
    chosen = np.random.default_rng(seed).integers(0, len(centres), count)
    return centres[chosen] + vectors(count, seed + 1, dimension)


class Model:
    """What an index should hold and find, by the definition of each metric."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.kept: dict[Id, np.ndarray[Any, Any]] = {}

    def search(self, query: Any, k: int, allowed: Callable[[Id], bool] = lambda id: True) -> dict[Id, float]:
        scores: dict[Id, float] = {}
        for id, vector in self.kept.items():
            if allowed(id):
                scores[id] = self.score(vector.astype(np.float64), np.asarray(query, np.float64))
        best = sorted(scores, key=lambda id: scores[id], reverse=self.metric != "l2")[:k]
        return {id: scores[id] for id in best}

    def score(self, vector: Any, query: Any) -> float:
        if self.metric == "l2":
            return float(((vector - query) ** 2).sum())
        cosine = self.metric == "cosine"
        return float(vector @ query / (np.linalg.norm(vector) * np.linalg.norm(query) if cosine else 1.0))


def agree(found: list[tuple[Id, float]], expected: dict[Id, float]) -> None:
    """Compare results in float32 with those in float64, where two may be so near that they change places."""
    assert [score for _, score in found] == pytest.approx(list(expected.values()), rel=1e-4, abs=1e-4)
    differing = [(got, want) for got, want in zip(found, expected.items(), strict=True) if got[0] != want[0]]
    assert len(differing) <= 2
    assert [score for (_, score), _ in differing] == pytest.approx([score for _, (_, score) in differing], rel=2e-6)


def filled(index: str = "flat", count: int = 2_000, metric: Metric = "cosine") -> VectorIndex:
    made = VectorIndex(D, index=index, metric=metric)
    made.upsert(range(count), clustered(count))
    return made


def recall(index: VectorIndex, truth: VectorIndex, queries: Floats, k: int = 10) -> float:
    pairs = zip(index.search(queries, k), truth.search(queries, k), strict=True)
    return float(np.mean([len(dict(a).keys() & dict(b).keys()) / k for a, b in pairs]))
