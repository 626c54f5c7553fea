"""Approximate indexes: recall, tombstones, and rebuilds beside writes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dgents.backends.vector_ann import Recipe
from dgents.backends.vector_index import VectorIndex
from dgents.backends.vector_input import METRICS, Metric
from tests.vector_kit import D, clustered, filled, recall, vectors

APPROXIMATE = ["hnsw", "ivf", "HNSW16,SQ8", "PCA12,IVF16,Flat", "SQ8"]


@pytest.mark.parametrize("index", APPROXIMATE)
@pytest.mark.parametrize("metric", METRICS)
def test_an_approximate_index_finds_nearly_all_in_clustered_vectors(index: str, metric: Metric) -> None:
    made, truth = filled(index, 3_000, metric), filled("flat", 3_000, metric)
    assert made.needs_rebuild
    assert made.rebuild()
    assert made._ann is not None
    assert not made.needs_rebuild
    for queries in (clustered(60, seed=7), clustered(3, seed=8)):
        assert recall(made, truth, queries) > 0.9


@pytest.mark.parametrize("index", ["ivf", "IVF64,Flat"])
def test_an_untrained_index_searches_exactly_until_there_are_enough_vectors(index: str) -> None:
    made, truth = filled(index, 900), filled("flat", 900)
    assert not made.needs_rebuild
    assert made.search(vectors(20), 5) == truth.search(vectors(20), 5)
    made.upsert(range(3_000), clustered(3_000))
    assert made.needs_rebuild
    assert made.rebuild()
    assert made._ann is not None


@pytest.mark.parametrize("index", ["hnsw", "ivf", "SQ8"])
def test_changes_after_a_build_are_seen_at_once(index: str) -> None:
    made = filled(index)
    made.rebuild()
    target = vectors(1, seed=77)
    made.upsert(["new", 3], np.concatenate([target, -target]))
    assert made.search(target, 1)[0][0][0] == "new"
    assert made.search(-target, 1)[0][0][0] == 3
    [(gone, _)] = made.search(clustered(2_000)[5:6], 1)[0]
    made.delete([gone])
    assert gone not in dict(made.search(clustered(2_000)[5:6], 50)[0])


@pytest.mark.parametrize("index", ["hnsw", "ivf"])
def test_a_search_finds_k_though_all_near_ones_are_tombstones(index: str) -> None:
    made, truth = filled(index), filled("flat")
    made.rebuild()
    query = clustered(2_000)[:1]
    near = [id for id, _ in truth.search(query, 1_700)[0]]
    for one in (made, truth):
        one.delete(near)
    assert made.search(query, 10) == [
        [(id, pytest.approx(score, abs=1e-5)) for id, score in truth.search(query, 10)[0]]
    ]


@pytest.mark.parametrize("index", ["hnsw", "ivf", "HNSW16,SQ8"])
def test_a_rebuild_drops_tombstones_and_covers_what_came_later(index: str) -> None:
    made = filled(index, 3_000)
    made.rebuild()
    made.delete(range(1_000))
    made.upsert(range(5_000, 6_500), clustered(1_500, seed=4))
    assert made.needs_rebuild
    assert made.rebuild()
    assert made._ann is not None
    assert made._ann.covered == made._rows.length == len(made) == 3_500
    truth = VectorIndex(D)
    truth.upsert(list(made), np.stack([made.get(id) for id in made]))
    assert recall(made, truth, clustered(50, seed=6)) > 0.9


def test_few_tombstones_extend_the_index_instead_of_building_it_anew() -> None:
    made = filled("hnsw", 3_000)
    made.rebuild()
    assert made._ann is not None
    first = made._ann.index
    made.upsert(range(10_000, 11_500), clustered(1_500, seed=4))
    assert made.rebuild()
    assert made._ann.covered == 4_500
    assert first.ntotal == 3_000
    assert made.search(clustered(1_500, seed=4)[7:8], 1)[0][0][0] == 10_007


def test_an_index_of_which_most_was_deleted_is_exact_again() -> None:
    made = filled("hnsw")
    made.rebuild()
    made.delete(range(1_900))
    assert made.needs_rebuild
    made.rebuild()
    assert made._ann is None
    assert made._rows.length == 100


def before_building(monkeypatch: pytest.MonkeyPatch, write: Callable[[], None]) -> None:
    """Run ``write`` in the next builds: after their rows were fixed, before faiss has seen any."""
    build = Recipe.build

    def slow(self: Any, *arguments: Any) -> Any:
        write()
        return build(self, *arguments)

    monkeypatch.setattr(Recipe, "build", slow)


def test_what_is_written_during_a_rebuild_is_in_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    made, target = filled("hnsw"), vectors(1, seed=5)

    def write() -> None:
        made.upsert(["new", 7], np.concatenate([target, -target]))
        made.delete([8])
        made.upsert(range(50_000, 53_000), clustered(3_000, seed=2))
        made.delete(range(50_000, 51_000))

    before_building(monkeypatch, write)
    assert made.rebuild()
    assert len(made) == 2_000 + 1 - 1 + 2_000
    assert made.search(target, 1)[0][0][0] == "new"
    assert made.search(-target, 1)[0][0][0] == 7
    assert 8 not in made
    assert {50_999, 51_000} & set(made) == {51_000}


def test_a_stopped_rebuild_changes_nothing_and_frees_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    made, stop = filled("hnsw"), threading.Event()

    def write() -> None:
        made.delete(range(500))
        stop.set()
        made.upsert(["later"], vectors(1))

    before_building(monkeypatch, write)
    assert not made.rebuild(stop)
    assert made._ann is None
    made.delete(["later"])
    while made._rows.holes:  # they are filled in pieces
        made.look().close()
    assert made._rows.length == len(made) == 1_500


def test_a_build_that_fails_leaves_searches_exact_and_waits_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    made = filled("hnsw")

    def fail() -> None:
        raise RuntimeError("no")

    before_building(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="no"):
        made.rebuild()
    assert not made.needs_rebuild
    assert made.search(vectors(9), 3) == filled("flat").search(vectors(9), 3)
    made.upsert(range(4_000), clustered(4_000))
    assert made.needs_rebuild


def test_a_rebuild_that_fails_leaves_the_index_there_is_and_is_not_tried_at_once_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = filled("hnsw")
    assert made.rebuild()

    def fail() -> None:
        raise MemoryError

    before_building(monkeypatch, fail)
    made.delete(range(0, 2_000, 2))
    assert made.needs_rebuild
    with pytest.raises(MemoryError):
        made.rebuild()
    assert not made.needs_rebuild
    assert made._ann is not None
    assert len(made.search(vectors(1), 50)[0]) == 50
