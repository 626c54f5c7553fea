"""Snapshots of vector indexes: everything comes back, and nothing that was changed does."""

from __future__ import annotations

from typing import Any

import faiss
import pytest

from dgents.backends.vector_index import VectorIndex
from dgents.backends.vector_input import METRICS, Metric
from dgents.runtime.errors import StateCorruptionError
from tests.vector_kit import D, filled, vectors


def test_an_open_view_does_not_change_while_others_write() -> None:
    index = filled(count=500)
    before = index.search(vectors(1), 5)
    with index.snapshot() as moment:
        index.delete(range(0, 500, 2))
        index.upsert(range(1, 500, 2), vectors(250, seed=1))
        frozen, _ = VectorIndex.restore(b"".join(moment))
    assert frozen.search(vectors(1), 5) == before
    assert index.search(vectors(1), 5) != before
    assert index._rows.length == 250


@pytest.mark.parametrize("index", ["flat", "hnsw", "ivf", "SQ8"])
@pytest.mark.parametrize("metric", METRICS)
def test_a_snapshot_brings_everything_back(index: str, metric: Metric) -> None:
    made = filled(index, 1_500, metric)
    made.rebuild()
    made.upsert(["1", 1, "é\ud800", 10**30], vectors(4, seed=3))
    made.delete(range(100, 150))
    back, generation = VectorIndex.restore(b"".join(made.snapshot(42)))
    assert generation == 42
    assert set(back) == set(made)
    assert (back._ann is None) == (index == "flat")
    for queries in (vectors(1, seed=8), vectors(12, seed=9)):
        assert back.search(queries, 8) == made.search(queries, 8)
    back.delete(range(90, 100))
    back.upsert(["later"], vectors(1, seed=4))
    assert len(back) == len(made) - 10 + 1


def test_an_empty_index_has_a_snapshot() -> None:
    back, generation = VectorIndex.restore(b"".join(VectorIndex(D, metric="l2").snapshot()))
    assert (len(back), back.dimension, back.metric, generation) == (0, D, "l2", 0)


def test_a_snapshot_can_be_restored_as_another_kind_of_index() -> None:
    back, _ = VectorIndex.restore(b"".join(filled("hnsw").snapshot()), index="ivf")
    assert back.needs_rebuild
    assert back.rebuild()
    assert isinstance(back._ann and back._ann.index, faiss.IndexIVFFlat)


def test_a_flipped_bit_anywhere_is_refused_before_faiss_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = filled("hnsw", 1_000)
    made.rebuild()
    data = bytearray(b"".join(made.snapshot()))

    def never(data: Any) -> Any:
        raise AssertionError("faiss was given bytes that nobody had checked")

    monkeypatch.setattr(faiss, "deserialize_index", never)
    for place in [*range(0, len(data), len(data) // 40), len(data) - 1]:
        data[place] ^= 4
        with pytest.raises(StateCorruptionError):
            VectorIndex.restore(bytes(data))
        data[place] ^= 4
    with pytest.raises(AssertionError):
        VectorIndex.restore(bytes(data))


@pytest.mark.parametrize("kept", [0, 7, 40, 5_000, -1])
def test_a_snapshot_that_was_cut_short_is_refused(kept: int) -> None:
    data = b"".join(filled().snapshot())
    with pytest.raises(StateCorruptionError):
        VectorIndex.restore(data[:kept])


def test_another_snapshot_than_the_one_whose_digest_was_kept_is_refused() -> None:
    moment = filled(count=20).snapshot()
    with moment:
        data = b"".join(moment)
    forged = b"".join(filled(count=21).snapshot())
    assert len(VectorIndex.restore(data, digest=moment.digest)[0]) == 20
    with pytest.raises(StateCorruptionError, match="digest"):
        VectorIndex.restore(forged, digest=moment.digest)


def test_an_index_that_this_faiss_cannot_read_is_built_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made = filled("hnsw")
    made.rebuild()
    data = b"".join(made.snapshot())

    def refuse(data: Any) -> Any:
        raise RuntimeError("Index type 0x46414b45 not recognized")

    monkeypatch.setattr(faiss, "deserialize_index", refuse)
    back, _ = VectorIndex.restore(data)
    assert len(back) == len(made)
    assert back.needs_rebuild
