"""A vector store in its surroundings: embeddings, wrappers, budgets, passivation, upkeep, migrations."""

from __future__ import annotations

import pickle
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

import dgents
from dgents import VectorAgent, VectorRef
from dgents.backends import vector_ann, vector_store, vector_upkeep
from dgents.backends.vector_index import VectorIndex
from dgents.backends.vector_upkeep import snapshot_is_due
from tests.vector_kit import D, clustered

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rt(anyio_backend: str) -> AsyncIterator[dgents.Runtime]:
    async with dgents.Runtime() as runtime:
        yield runtime


def letters(text: str) -> list[float]:
    return [1.0 + text.count(letter) for letter in "abc"]


async def letters_later(text: str) -> list[float]:
    await anyio.lowlevel.checkpoint()
    return letters(text)


class Batched:
    """An embedding that is cheaper for many."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, text: str) -> list[float]:
        return letters(text)

    def batch(self, texts: list[str]) -> list[list[float]]:
        self.batches.append(len(texts))
        return [letters(text) for text in texts]


@pytest.mark.parametrize("embed", [letters, letters_later, lambda text: letters_later(text)])
async def test_embed_makes_the_embeddings(rt: dgents.Runtime, embed: Any) -> None:
    await embedded(rt, embed)


async def test_embed_in_batches_is_called_once_for_many(rt: dgents.Runtime) -> None:
    embed = Batched()
    await embedded(rt, embed)
    assert embed.batches == [100]


async def embedded(rt: dgents.Runtime, embed: Any) -> None:
    """Save and search by text alone."""
    ref: VectorRef[str] = await rt.spawn("v", VectorAgent(3, embed=embed))
    await ref.save("aaaaaa", id="one")
    await ref.save_many(["bbbbbb", "cccccc"] * 50)
    assert (await ref.search(letters("aaaaaa"), 1))[0].state == "aaaaaa"
    assert {hit.state for hit in await ref.search(letters("bbbbbb"), 50)} == {"bbbbbb"}


async def test_a_plain_embed_runs_in_a_thread_and_one_at_a_time(rt: dgents.Runtime) -> None:
    threads: set[int] = set()
    together = threading.Semaphore(1)

    def embed(text: str) -> list[float]:
        threads.add(threading.get_ident())
        assert together.acquire(blocking=False)
        together.release()
        return letters(text)

    ref: VectorRef[str] = await rt.spawn("v", VectorAgent(3, embed=embed))
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(ref.save, f"a{number}")
    assert await ref.count() == 20
    assert threading.get_ident() not in threads


async def test_what_embed_raises_reaches_the_caller_and_nothing_is_saved(rt: dgents.Runtime) -> None:
    async def embed(text: str) -> list[float]:
        if text == "bad":
            raise LookupError(text)
        return letters(text)

    ref: VectorRef[str] = await rt.spawn("v", VectorAgent(3, embed=embed))
    with pytest.raises(LookupError, match="bad"):
        await ref.save_many(["good", "bad", "good"])
    assert await ref.count() == 0


async def test_a_told_save_is_embedded_in_its_turn(rt: dgents.Runtime) -> None:
    ref: VectorRef[str] = await rt.spawn("v", VectorAgent(3, embed=letters_later))
    await ref.tell(dgents.Save("aaa"))
    assert (await ref.search(letters("aaa")))[0].state == "aaa"


def test_an_agent_can_be_pickled() -> None:
    agent = pickle.loads(pickle.dumps(VectorAgent(3, path="somewhere", embed=letters)))
    assert (agent.dimension, agent.path, agent.embed) == (3, "somewhere", letters)
    assert agent.codec() is not None


@pytest.mark.parametrize("policy", ["write-through", "write-behind"])
async def test_a_cache_around_vectors_is_refused_with_the_reason(
    rt: dgents.Runtime, tmp_path: Path, policy: Any
) -> None:
    agent = dgents.CachedAgent(dgents.VolatileAgent(), VectorAgent(3, path=tmp_path / "v"), policy=policy)
    with pytest.raises(dgents.UnsupportedOperationError, match="leave it out"):
        await rt.spawn("v", agent)
    ref = await rt.spawn("v", VectorAgent(3, path=tmp_path / "v"))
    assert await ref.count() == 0, "the refused one must let go of the directory"


@pytest.mark.parametrize("durable", [False, True])
async def test_a_budget_bounds_all_states_and_vectors_together(
    rt: dgents.Runtime, tmp_path: Path, durable: bool
) -> None:
    agent = VectorAgent[str](3, path=tmp_path / "v" if durable else None)
    ref: VectorRef[str] = await rt.spawn("v", dgents.EntropyConstrainedAgent(agent, 0.5, max_size_bytes=200))
    await ref.save("x" * 50, id=1, embedding=[1, 0, 0])
    with pytest.raises(dgents.StateTooLargeError, match=r"budget of 0.50 allows 100"):
        await ref.save("x" * 50, id=2, embedding=[1, 0, 0])
    with pytest.raises(dgents.StateTooLargeError):
        await ref.save_many(["x"] * 100, embeddings=[[1, 0, 0]] * 100)
    await ref.save("y" * 60, id=1, embedding=[1, 0, 0])
    assert await ref.count() == 1
    await ref.delete(1)
    await ref.save("x" * 50, id=2, embedding=[1, 0, 0])


async def test_a_virtual_store_leaves_memory_and_comes_back_with_the_next_search(
    rt: dgents.Runtime, tmp_path: Path
) -> None:
    rt.register("memory", lambda key: VectorAgent(3, path=tmp_path / key), max_active=1)
    refs: list[VectorRef[Any]] = [rt.ref(f"memory/{key}") for key in "abc"]  # type: ignore[misc]
    for _ in range(3):
        for n, ref in enumerate(refs):
            await ref.save({"n": n}, id=n, embedding=[1, n, 0])
            assert [hit.id for hit in await ref.search([1, n, 0])] == [n]
    assert len(rt.names()) <= 2


async def test_many_searches_wake_a_store_once(rt: dgents.Runtime, tmp_path: Path) -> None:
    async with dgents.Runtime() as other:
        ref: VectorRef[Any] = await other.spawn("v", VectorAgent(3, path=tmp_path / "v"))
        await ref.save({}, id=1, embedding=[1, 0, 0])
    rt.register("memory", lambda key: VectorAgent(3, path=tmp_path / key))
    ref = rt.ref("memory/v")  # type: ignore[assignment]
    found: list[Any] = []

    async def search() -> None:
        found.append(await ref.search([1, 0, 0]))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(search)
    assert [hits[0].id for hits in found] == [1] * 20


async def idle(ref: VectorRef[Any]) -> None:
    """Return when nothing is rebuilt or written beside the turns."""
    cell: Any = ref._cell
    while cell.upkeep._running:  # noqa: ASYNC110 (nothing tells the end of an upkeep)
        await anyio.sleep(0.001)


async def test_an_approximate_index_is_built_beside_the_turns_and_kept(
    rt: dgents.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_ann, "SMALLEST", 300)
    vectors = clustered(1_200)
    agent = VectorAgent[int](D, path=tmp_path / "v", index="hnsw")
    async with dgents.Runtime() as first:
        ref: VectorRef[int] = await first.spawn("v", agent)
        await ref.save_many(list(range(1_200)), ids=range(1_200), embeddings=vectors)
        await idle(ref)
        await ref.delete(5)
    monkeypatch.setattr(VectorIndex, "rebuild", lambda *_: pytest.fail("the snapshot had the index"))
    ref = await rt.spawn("v", agent)
    cell: Any = ref._cell
    assert cell.index._ann.covered == 1_200
    assert (await ref.search(vectors[7], 1))[0].state == 7
    assert all(hit.id != 5 for hit in await ref.search(vectors[5], 20))


async def test_another_kind_of_index_is_built_from_what_is_there(rt: dgents.Runtime, tmp_path: Path) -> None:
    vectors = clustered(1_500)
    for index in ("flat", "hnsw", "ivf", "flat"):
        ref: VectorRef[int] = await rt.spawn("v", VectorAgent(D, path=tmp_path / "v", index=index))
        if index == "flat":
            await ref.save_many(list(range(1_500)), ids=range(1_500), embeddings=vectors)
        await idle(ref)
        cell: Any = ref._cell
        assert (cell.index._ann is not None) == (index != "flat")
        assert (await ref.search(vectors[7], 1))[0].id == 7
        await rt.stop("v")


async def test_snapshots_keep_the_journal_short(
    rt: dgents.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_upkeep, "LEAST_CHANGES", 100)
    ref: VectorRef[int] = await rt.spawn("v", VectorAgent(3, path=tmp_path / "v"))
    for n in range(1_000):
        await ref.save(n, id=n % 10, embedding=[1, n, 1])
    await idle(ref)
    assert sum(path.stat().st_size for path in (tmp_path / "v").glob("*.journal")) < 30_000


async def test_a_passivation_during_a_snapshot_gives_it_up_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> None:
    monkeypatch.setattr(vector_upkeep, "LEAST_CHANGES", 1)
    chunks = vector_store.chunks
    begun = threading.Event()

    def noted(capture: Any) -> Any:
        begun.set()
        yield from chunks(capture)

    monkeypatch.setattr(vector_store, "chunks", noted)
    for n in range(5):
        async with dgents.Runtime() as rt:
            ref: VectorRef[int] = await rt.spawn("v", VectorAgent(3, path=tmp_path / "v"))
            assert await ref.count() == n
            await ref.save(n, id=n, embedding=[1, n, 1])
    assert begun.is_set()


@pytest.mark.parametrize(
    ("changes", "live", "rebuilt", "due"),
    [
        (99_999, 5, False, False),
        (100_000, 100_000, False, True),
        (150_000, 200_000, False, False),
        (50, 200, True, True),
        (49, 200, True, False),
    ],
)
def test_when_a_snapshot_is_due(changes: int, live: int, rebuilt: bool, due: bool) -> None:
    assert snapshot_is_due(changes, live, rebuilt) is due


@dataclass
class Old:
    name: str


@dataclass
class New:
    first: str
    last: str


async def test_states_of_an_old_schema_are_lifted_from_snapshot_and_journal(
    rt: dgents.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_upkeep, "LEAST_CHANGES", 2)
    ref: VectorRef[Any] = await rt.spawn("v", VectorAgent(3, path=tmp_path / "v", schema=Old))
    for n, name in enumerate(["Ada Lovelace", "Alan Turing", "Grace Hopper"]):
        await ref.save(Old(name), id=n, embedding=[1, n, 1])
        await idle(ref)
    await rt.stop("v")

    def split(old: Any) -> Any:
        first, last = old["name"].split()
        return {"first": first, "last": last}

    ref = await rt.spawn("v", VectorAgent(3, path=tmp_path / "v", schema=New, migrations={1: split}))
    assert [await ref.get(n) for n in range(3)] == [
        New("Ada", "Lovelace"),
        New("Alan", "Turing"),
        New("Grace", "Hopper"),
    ]
    assert await ref.search([1, 0, 1], 1, where={"last": "Turing"}) != []
