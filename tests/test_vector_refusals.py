"""What a vector store can't keep, or search for, is a clear error before anything is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dgents
from dgents import Runtime, VectorAgent
from dgents.runtime.errors import InvalidVectorError

pytestmark = pytest.mark.anyio

X, Y = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
LARGEST = 2**63 - 1
NO_IDS = [2**63, -(2**63) - 1, 10**100, np.uint64(2**63), True, np.bool_(True), 1.0, b"x", ("a",), [1], {}, "\ud800"]
NO_VECTORS: list[Any] = [
    [1.0, 0.0],
    [1.0, 0.0, 0.0, 0.0],
    [],
    [X],
    [float("nan"), 0, 0],
    [0, float("-inf"), 0],
    [1e39, 0, 0],
    [10**400, 0, 0],
    [0, 0, 0],
    [1 + 2j, 0, 0],
    [True, False, True],
    ["a", "b", "c"],
    [None, None, None],
    "abc",
    b"abc",
    5,
    {1, 2, 3},
    iter(X),
    object(),
    np.zeros((3, 1)),
]


@pytest.fixture(params=["memory", "durable"])
def agent(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return VectorAgent(3, path=tmp_path / "vectors" if request.param == "durable" else None)


async def check_unchanged(memory: Any) -> None:
    assert await memory.count() == 1
    assert [(hit.id, hit.state) for hit in await memory.search(X)] == [("a", {"n": 1})]
    assert await memory.save({"n": 1}, id="a", embedding=X) == 2


async def spawn(rt: Runtime, agent: Any) -> Any:
    memory = await rt.spawn("memory", agent)
    await memory.save({"n": 1}, id="a", embedding=X)
    return memory


async def test_an_id_that_can_not_be_kept_is_refused(agent: Any) -> None:
    async with Runtime() as rt:
        memory = await spawn(rt, agent)
        for id in NO_IDS:
            for attempt in (
                lambda id=id: memory.save({"n": 2}, id=id, embedding=Y),
                lambda id=id: memory.save_many([{"n": 2}, {"n": 3}], ids=["b", id], embeddings=[Y, Y]),
                lambda id=id: memory.get(id),
                lambda id=id: memory.delete(id),
            ):
                with pytest.raises(InvalidVectorError):
                    await attempt()
        await check_unchanged(memory)


async def test_every_id_of_64_bits_can_be_kept(agent: Any) -> None:
    ids = [LARGEST, -LARGEST - 1, -1, 0, np.int64(5), ""]
    async with Runtime() as rt:
        memory = await rt.spawn("memory", agent)
        await memory.save_many([{"n": n} for n in range(len(ids))], ids=ids, embeddings=[X] * len(ids))
    async with Runtime() as rt:
        memory = await rt.spawn("memory", agent)
        for n, id in enumerate(ids):
            if agent.path is not None:
                assert await memory.get(id) == {"n": n}
            await memory.delete(id)
        assert await memory.count() == 0


async def test_no_id_is_given_that_could_not_be_kept(agent: Any) -> None:
    async with Runtime() as rt:
        memory = await rt.spawn("memory", agent)
        await memory.save({"n": 1}, id=LARGEST - 1, embedding=X)
        assert await memory.save_many([{"n": 2}], embeddings=[X]) == [LARGEST]
        for attempt in (
            lambda: memory.save({"n": 3}, embedding=X),
            lambda: memory.save_many([{"n": 3}, {"n": 4}], ids=["b", None], embeddings=[X, X]),
        ):
            with pytest.raises(InvalidVectorError, match="no higher id"):
                await attempt()
        assert await memory.count() == 2
        await memory.save({"n": 3}, id="b", embedding=X)
    if agent.path is not None:
        async with Runtime() as rt:
            assert await (await rt.spawn("memory", agent)).get(LARGEST) == {"n": 2}


async def test_an_embedding_that_can_not_be_kept_is_refused(agent: Any) -> None:
    async with Runtime() as rt:
        memory = await spawn(rt, agent)
        for vector in NO_VECTORS:
            for attempt in (
                lambda vector=vector: memory.save({"n": 2}, id="b", embedding=vector),
                lambda vector=vector: memory.save_many([{"n": 2}], embeddings=[vector]),
                lambda vector=vector: memory.search(vector),
                lambda vector=vector: memory.search_many([vector]),
            ):
                with pytest.raises(InvalidVectorError):
                    await attempt()
        await check_unchanged(memory)


@pytest.mark.parametrize("made", [[1.0, 0.0], [float("nan")] * 3, None, "abc"])
async def test_an_embedding_that_embed_made_wrong_is_refused(tmp_path: Path, made: Any) -> None:
    async with Runtime() as rt:
        memory: Any = await rt.spawn("memory", VectorAgent(3, path=tmp_path / "v", embed=lambda state: made))
        with pytest.raises(InvalidVectorError):
            await memory.save({"n": 1})
        assert await memory.count() == 0


async def test_what_is_no_list_is_refused(agent: Any) -> None:
    async with Runtime() as rt:
        memory = await spawn(rt, agent)
        for states in (None, 5, "ab", {"n": 1}):
            with pytest.raises(TypeError, match="list of states"):
                await memory.save_many(states, embeddings=[Y])
        for embeddings in (5, iter([Y]), object()):
            with pytest.raises(TypeError, match="list of vectors"):
                await memory.save_many([{"n": 1}], embeddings=embeddings)
        for ids in (5, iter([1]), "a"):
            with pytest.raises(InvalidVectorError, match="sequence of ids"):
                await memory.save_many([{"n": 1}], ids=ids, embeddings=[Y])
        for matrix in (None, 5, iter([X]), object()):
            with pytest.raises(TypeError, match="no matrix"):
                await memory.search_many(matrix)
        await check_unchanged(memory)


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ({1: 2}, TypeError),
        ({None: 1}, TypeError),
        ({("n",): 1}, TypeError),
        ({b"n": 1}, TypeError),
        ({"n": 1, 2: 3}, TypeError),
        ({"": 1}, ValueError),
        ({"n.": 1}, ValueError),
        ({".n": 1}, ValueError),
        ({"n..m": 1}, ValueError),
        (5, TypeError),
        (True, TypeError),
        ("n = 1", TypeError),
        ([("n", 1)], TypeError),
    ],
)
async def test_a_filter_that_can_not_be_right_is_refused(agent: Any, where: Any, error: type[Exception]) -> None:
    async with Runtime() as rt:
        memory = await rt.spawn("memory", agent)
        for attempt in (
            lambda: memory.search(X, where=where),
            lambda: memory.search_many([X], where=where),
            lambda: memory.ask(dgents.Search(X, 1, where)),
        ):
            with pytest.raises(error):
                await attempt()


async def test_a_field_whose_name_has_a_dot_can_be_filtered_by(agent: Any) -> None:
    async with Runtime() as rt:
        memory = await rt.spawn("memory", agent)
        await memory.save({"a.b": 1}, id="dot", embedding=X)
        await memory.save({"a": {"b": 1}}, id="nested", embedding=X)
        assert [hit.id for hit in await memory.search(X, where={r"a\.b": 1})] == ["dot"]
        assert [hit.id for hit in await memory.search(X, where={"a.b": 1})] == ["nested"]


@pytest.mark.parametrize(
    "options",
    [
        {"dimension": 2**31},
        {"dimension": 2**31, "index": "hnsw"},
        {"dimension": True},
        {"dimension": 3, "path": 5},
        {"dimension": 3, "path": b"x"},
        {"dimension": 3, "path": "a\ud800"},
        {"dimension": 3, "path": ""},
        {"dimension": 3, "metric": ["l2"]},
    ],
)
def test_an_argument_that_can_not_be_right_is_refused_by_the_agent(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=r"dimension is|path is|path names|path '|metric is"):
        VectorAgent(**options)
