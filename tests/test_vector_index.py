"""The vector engine against brute force: searches, deletes and updates, filters, threads."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import faiss
import numpy as np
import pytest

from dgents.backends.vector_index import VectorIndex
from dgents.backends.vector_input import METRICS, Floats, Id, Metric
from tests.vector_kit import D, Model, agree, clustered, filled, vectors


def random_walk(index: VectorIndex, metric: Metric, seed: int, steps: int) -> None:
    """Do random writes and rebuilds, and compare every few of them with brute force."""
    rng, model = random.Random(seed), Model(metric)
    names: list[Id] = [*range(150), *map(str, range(150))]
    for step in range(steps):
        ids = rng.choices(names, k=rng.randint(1, 40))
        if rng.random() < 0.6:
            new = vectors(len(ids), seed=rng.randrange(1 << 30))
            index.upsert(ids, new)
            model.kept.update(zip(ids, new, strict=True))
        else:
            there = {id for id in ids if model.kept.pop(id, None) is not None}
            assert index.delete(ids) == len(there)
        if rng.random() < 0.1:
            assert index.rebuild()
        assert len(index) == len(model.kept)
        assert set(index) == set(model.kept)
        queries = vectors(rng.choice([1, 3, 9]), seed=step)
        for query, found in zip(queries, index.search(queries, 6), strict=True):
            agree(found, model.search(query, 6))


@pytest.mark.parametrize("metric", METRICS)
def test_random_writes_and_searches_agree_with_brute_force(metric: Metric) -> None:
    random_walk(VectorIndex(D, metric=metric), metric, seed=11, steps=60)


@pytest.mark.torture
@pytest.mark.parametrize("metric", METRICS)
def test_long_random_walks_agree_with_brute_force(metric: Metric) -> None:
    seed = int(os.environ.get("DGENTS_SEED") or random.randrange(1 << 30))
    print(f"DGENTS_SEED={seed}")
    random_walk(VectorIndex(D, metric=metric), metric, seed, steps=1_500)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("queries", [1, 7, 8, 300])
def test_a_search_over_several_blocks_agrees_with_faiss(metric: Metric, queries: int) -> None:
    matrix, asked = vectors(3_000, dimension=64), vectors(queries, seed=5, dimension=64)
    index = VectorIndex(64, metric=metric)
    index._rows._blocks.shift = 9  # blocks of 512 rows
    index.upsert(range(3_000), matrix)
    raw = faiss.IndexFlatL2(64) if metric == "l2" else faiss.IndexFlatIP(64)
    if metric == "cosine":
        faiss.normalize_L2(matrix)
    raw.add(matrix)
    found = index.search(asked, 10)
    _, expected = raw.search(asked, 10)
    assert [[id for id, _ in one] for one in found] == expected.tolist()


def test_many_queries_give_what_each_gives_alone() -> None:
    index = filled(count=3_000)
    queries = vectors(40, seed=3)
    together = index.search(queries, 7)
    alone = [index.search(query[None], 7)[0] for query in queries]
    assert [[id for id, _ in one] for one in together] == [[id for id, _ in one] for one in alone]


def test_rows_that_get_better_and_better_are_all_considered() -> None:
    index = VectorIndex(2, metric="ip")
    index.upsert(range(9_000), np.stack([np.arange(9_000), np.zeros(9_000)], axis=1))
    for found in index.search(np.tile([1.0, 0.0], (10, 1)), 3):
        assert [id for id, _ in found] == [8_999, 8_998, 8_997]


def test_l2_finds_the_nearest_of_long_vectors_that_differ_little() -> None:
    near = 1_000 + vectors(2_000) / 100
    index = VectorIndex(D, metric="l2")
    index.upsert(range(2_000), near)
    for position, found in enumerate(index.search(near[:20], 1)):
        assert found == [(position, 0.0)]


def test_equal_vectors_are_all_found() -> None:
    index = VectorIndex(D)
    index.upsert(range(700), np.ones((700, D)))
    for count in (1, 8):
        for found in index.search(np.ones((count, D)), 700):
            assert sorted(id for id, _ in found) == list(range(700))


def test_the_text_1_and_the_number_1_are_two_ids() -> None:
    index = VectorIndex(2)
    index.upsert(["1", 1], [[1, 0], [0, 1]])
    assert index.search([[1, 0]], 1) == [[("1", 1.0)]]
    assert index.search([[0, 1]], 1) == [[(1, 1.0)]]
    assert index.delete([1]) == 1
    assert "1" in index
    assert 1 not in index


def test_the_last_vector_of_an_id_in_one_call_counts() -> None:
    index = VectorIndex(2, metric="ip")
    index.upsert(["a", "b", "a"], [[1, 0], [2, 0], [3, 0]])
    assert index.search([[1, 0]], 5) == [[("a", 3.0), ("b", 2.0)]]


def test_a_vector_comes_back_as_it_was_given_or_at_length_1_for_cosine() -> None:
    plain, cosine = VectorIndex(2, metric="l2"), VectorIndex(2)
    for index in (plain, cosine):
        index.upsert(["a"], [[3.0, 4.0]])
    assert plain.get("a").tolist() == [3.0, 4.0]
    assert cosine.get("a").tolist() == pytest.approx([0.6, 0.8])
    with pytest.raises(KeyError):
        plain.get("b")


def test_an_empty_index_finds_nothing() -> None:
    index = VectorIndex(D)
    assert index.search(vectors(2), 3) == [[], []]
    index.upsert([], [])
    assert index.delete(["a"]) == 0
    assert len(index) == 0


@pytest.mark.parametrize("index", ["flat", "hnsw"])
@pytest.mark.parametrize("share", [2, 100, 1_900])
def test_a_filter_finds_the_best_of_those_allowed(index: str, share: int) -> None:
    made, model = filled(index, 4_000), Model("cosine")
    model.kept = dict(enumerate(clustered(4_000)))
    made.rebuild()

    def allowed(id: Id) -> bool:
        return int(id) % share == 0

    query = vectors(1, seed=9)
    [found] = made.search(query, 5, allowed=allowed)
    if share == 2 and index == "hnsw":
        assert all(allowed(id) for id, _ in found)
        assert len(found) == 5
    else:
        agree(found, model.search(query[0], 5, allowed))


def test_a_filter_is_asked_once_for_an_id_and_no_further_than_needed() -> None:
    index, asked = filled(count=3_000), list[Id]()

    def answer(verdict: bool) -> Callable[[Id], bool]:
        asked.clear()
        return lambda id: (asked.append(id), verdict)[1]

    index.search(vectors(1), 5, allowed=answer(True))
    assert len(asked) == 5
    index.search(vectors(3), 5, allowed=answer(False))
    assert sorted(asked, key=int) == list(range(3_000))


def test_what_a_filter_raises_reaches_the_caller_and_holds_nothing_back() -> None:
    index = filled(count=100)
    with pytest.raises(ZeroDivisionError):
        index.search(vectors(1), 5, allowed=lambda id: bool(1 // 0))
    index.delete(range(50))
    assert index._rows.length == 50


def test_memory_of_deleted_vectors_is_given_back() -> None:
    index = VectorIndex(D)
    index._rows._blocks.shift = 6
    index.upsert(range(6_400), vectors(6_400))
    index.delete(range(6_300))
    assert len(index._rows._blocks.vectors) <= 3


def test_many_holes_are_filled_in_pieces_and_nothing_is_lost() -> None:
    index, model = filled(count=5_000, metric="l2"), Model("l2")
    model.kept = dict(enumerate(clustered(5_000)))
    with index.look():
        for id in range(0, 4_000, 2):
            index.delete([id])
            del model.kept[id]
    holes = [index._rows.holes]
    while index._rows.holes:
        index.look().close()
        holes.append(index._rows.holes)
        assert len(index) == index._rows.length - holes[-1] == 3_000
        query = vectors(1, seed=len(holes))
        agree(index.search(query, 5)[0], model.search(query[0], 5))
    assert len(holes) > 3
    assert max(before - after for before, after in pairwise(holes)) <= 600  # a search closes a view, too


def constant(version: int, count: int) -> Floats:
    return np.full((count, D), version, np.float32)


@pytest.mark.parametrize("index", ["flat", "hnsw"])
@pytest.mark.parametrize("queries", [1, 8])
def test_a_search_beside_writes_sees_one_moment_with_all_acknowledged(index: str, queries: int) -> None:
    # Each write gives all ids the next version, which is the score: a torn or a partial view would show two
    # of them.
    made, acknowledged, done = VectorIndex(D, index=index, metric="ip"), [1], threading.Event()
    made.upsert(range(1_200), constant(1, 1_200))

    def searcher() -> int:
        searches = 0
        while not (done.is_set() and searches):
            least = acknowledged[0]
            for found in made.search(np.full((queries, D), 1 / D), 1_200):
                [version] = {round(score, 2) for _, score in found}
                assert len(found) == 1_200
                assert version >= least
            searches += 1
        return searches

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(searcher) for _ in range(2)]
        rebuilding = pool.submit(made.rebuild)
        for version in range(2, 60):
            made.upsert(range(1_200), constant(version, 1_200))
            made.delete([version % 3 + 2_000])
            acknowledged[0] = version
        done.set()
        assert all(future.result() for future in running)
        assert rebuilding.result()
    assert {round(score, 2) for _, score in made.search(np.full((1, D), 1 / D), 1_200)[0]} == {59}
