"""Random operations on vector stores of every kind, each answer compared with brute force; and recall beside faiss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import faiss
import numpy as np
import pytest

import dgents
from dgents import Hit, VectorAgent, VectorRef
from dgents.backends import vector_ann, vector_upkeep
from tests.seeds import seeded
from tests.vector_kit import D, Model, agree, clustered, filled

pytestmark = pytest.mark.anyio

K = 7
METRICS = ["cosine", "ip", "l2"]
APPROXIMATE = ["hnsw", "ivf", "SQ8"]
NAMES: list[Any] = [*range(400), *map(str, range(400))]


class Mirror:
    """A vector store, and what should be in it."""

    def __init__(self, ref: VectorRef[Any], metric: Any, chance: Random) -> None:
        self.ref = ref
        self.model = Model(metric)
        self.states: dict[Any, Any] = {}
        self.chance = chance
        self.asked = self.found = 0
        self.built = False

    async def write(self, step: int) -> None:
        """Save or delete some entries."""
        ids = self.chance.choices(NAMES, k=self.chance.choice([1, 2, 5, 90, 300]))
        if self.chance.random() < 0.7:
            new = clustered(len(ids), seed=self.chance.randrange(2**30))
            await self.ref.save_many([[step, at] for at in range(len(ids))], ids=ids, embeddings=new)
            self.model.kept.update(zip(ids, new, strict=True))
            self.states.update({id: [step, at] for at, id in enumerate(ids)})
        else:
            for id in ids[:10]:
                await self.ref.delete(id)
                self.model.kept.pop(id, None)
                self.states.pop(id, None)
        assert await self.ref.count() == len(self.states)
        cell: Any = self.ref._cell
        self.built |= cell.index._ann is not None

    async def compare(self, where: Callable[[Any], bool] | None, exact: bool) -> None:
        """Search, and check each hit: it is there, as it was saved last, with its true score, best first."""
        query = clustered(1, seed=self.chance.randrange(2**30))[0]
        hits = await self.ref.search(query, K, where=where)
        expected = self.model.search(query, K, lambda id: where is None or where(self.states[id]))
        assert [hit.state for hit in hits] == [self.states[hit.id] for hit in hits]
        assert all(where is None or where(hit.state) for hit in hits)
        truth = [self.model.score(self.model.kept[hit.id].astype(np.float64), query.astype(np.float64)) for hit in hits]
        assert [hit.score for hit in hits] == pytest.approx(truth, rel=1e-4, abs=1e-3)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=self.model.metric != "l2")
        assert len({hit.id for hit in hits}) == len(expected)
        self.asked += len(expected)
        self.found += len({hit.id for hit in hits} & expected.keys())
        if exact:
            agree([(hit.id, hit.score) for hit in hits], expected)


async def walk(tmp_path: Path, index: str, metric: Any, steps: int) -> None:
    """Do random operations on a store that is now and then opened again."""
    mirror, done = Mirror(None, metric, seeded()), 0  # type: ignore[arg-type]
    while done < steps:
        async with dgents.Runtime() as rt:
            mirror.ref = await rt.spawn("v", VectorAgent(D, path=tmp_path / "v", index=index, metric=metric))
            assert await mirror.ref.count() == len(mirror.states)
            for _ in range(mirror.chance.randrange(5, 20)):
                done += 1
                await mirror.write(done)
                await mirror.compare(None, exact=index == "flat")
                await mirror.compare(lambda state: state[0] % 2 == 0, exact=index == "flat")
                await mirror.compare(lambda state: state[1] == 3, exact=True)  # few
    assert mirror.found >= 0.9 * mirror.asked
    assert mirror.built == (index != "flat")


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build indexes, and write snapshots, of few vectors."""
    monkeypatch.setattr(vector_ann, "SMALLEST", 100)
    monkeypatch.setattr(vector_upkeep, "LEAST_CHANGES", 300)


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("metric", METRICS)
async def test_random_operations_agree_with_brute_force(tmp_path: Path, metric: Any) -> None:
    await walk(tmp_path, "flat", metric, 25)


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("index", APPROXIMATE)
async def test_random_operations_on_an_approximate_index_find_nearly_all_and_nothing_else(
    tmp_path: Path, index: str
) -> None:
    await walk(tmp_path, index, "cosine", 25)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("index", ["flat", *APPROXIMATE])
async def test_long_random_operations_agree_with_brute_force(tmp_path: Path, index: str, metric: Any) -> None:
    await walk(tmp_path, index, metric, 1_000)


def share(found: list[list[Hit[Any]]] | Any, truth: Any) -> float:
    """Return how many of the true neighbours were found, of each query, on average."""
    return float(np.mean([len({*map(int, a)} & {*map(int, b)}) / len(b) for a, b in zip(found, truth, strict=True)]))


@pytest.mark.parametrize(("index", "factory"), [("flat", "Flat"), ("hnsw", "HNSW32,Flat"), ("ivf", "IVF32,Flat")])
def test_recall_is_that_of_faiss_itself(index: str, factory: str) -> None:
    matrix, queries = clustered(3_000), clustered(100, seed=5)
    raw, truth = faiss.index_factory(D, factory, faiss.METRIC_L2), faiss.IndexFlatL2(D)
    for one in (raw, truth):
        one.train(matrix)
        one.add(matrix)
    if index == "hnsw":
        raw.hnsw.efSearch = 64
    elif index == "ivf":
        raw.nprobe = 8
    made = filled(index, 3_000, "l2")
    made.rebuild()
    exact = truth.search(queries, 10)[1]
    ours = [[id for id, _ in found] for found in made.search(queries, 10)]
    assert share(ours, exact) >= share(raw.search(queries, 10)[1], exact) - 0.01
