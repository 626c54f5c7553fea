"""What a vector store answers: saves, searches, filters, deletes, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import dgents
from dgents import Hit, Search, UnsupportedOperationError, VectorAgent, VectorRef
from dgents.runtime.errors import InvalidVectorError

pytestmark = pytest.mark.anyio

X, Y, Z = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]


@dataclass
class Fact:
    text: str
    topic: str
    embedding: list[float] | None = None


@pytest.fixture
async def rt(anyio_backend: str) -> AsyncIterator[dgents.Runtime]:
    async with dgents.Runtime() as runtime:
        yield runtime


@pytest.fixture(params=["memory", "durable"])
async def facts(request: pytest.FixtureRequest, rt: dgents.Runtime, tmp_path: Any) -> VectorRef[Fact]:
    path = tmp_path / "facts" if request.param == "durable" else None
    ref: VectorRef[Fact] = await rt.spawn("facts", VectorAgent(3, path=path, schema=Fact))
    return ref


def ids(hits: list[Hit[Any]]) -> list[str | int]:
    return [hit.id for hit in hits]


def test_importing_dgents_imports_neither_numpy_nor_faiss() -> None:
    program = "import sys, dgents; dgents.VectorAgent(3); assert not {'numpy', 'faiss'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


async def test_the_nearest_states_come_first_with_their_scores_and_ids(facts: VectorRef[Fact]) -> None:
    await facts.save(Fact("blue", "sky"), id="a", embedding=X)
    await facts.save(Fact("green", "grass"), id=7, embedding=np.array([3.0, 4.0, 0.0]))
    found = await facts.search([1.0, 0.0, 0.0], k=2)
    assert found[0] == Hit(Fact("blue", "sky"), 1.0, "a")
    assert found[1].id == 7
    assert found[1].score == pytest.approx(0.6)


async def test_a_state_brings_its_own_embedding(facts: VectorRef[Fact]) -> None:
    await facts.save(Fact("blue", "sky", embedding=Y))
    assert (await facts.search(Y))[0].state == Fact("blue", "sky", embedding=Y)


async def test_a_save_under_the_same_id_replaces_state_and_vector(facts: VectorRef[Fact]) -> None:
    assert await facts.save(Fact("old", ""), id="a", embedding=X) == 1
    assert await facts.save(Fact("new", ""), id="a", embedding=Y) == 2
    assert await facts.count() == 1
    assert await facts.search(Y) == [Hit(Fact("new", ""), 1.0, "a")]


async def test_an_id_that_is_left_out_is_a_new_int_that_never_comes_again(facts: VectorRef[Fact]) -> None:
    given = await facts.save_many([Fact(text, "") for text in "abc"], ids=[None, 41, None], embeddings=[X, Y, Z])
    assert given == [42, 41, 43]
    await facts.delete(43)
    await facts.save(Fact("d", ""), embedding=Z)
    assert ids(await facts.search(Z, 1)) == [44]


async def test_the_id_1_and_the_id_text_1_are_two(facts: VectorRef[Fact]) -> None:
    await facts.save_many([Fact("int", ""), Fact("str", "")], ids=[1, "1"], embeddings=[X, Y])
    assert [(await facts.get(id)).text for id in (1, "1")] == ["int", "str"]


@pytest.mark.parametrize("count", [3, 500])
async def test_of_equal_ids_in_one_save_the_last_counts(facts: VectorRef[Fact], count: int) -> None:
    given = await facts.save_many(
        [Fact(str(n), "") for n in range(count)], ids=["a"] * count, embeddings=[X] * (count - 1) + [Z]
    )
    assert given == ["a"] * count
    assert await facts.search(Z) == [Hit(Fact(str(count - 1), ""), 1.0, "a")]


async def test_a_deleted_id_is_found_no_more_and_may_be_deleted_again(facts: VectorRef[Fact]) -> None:
    await facts.save(Fact("blue", "sky"), id="a", embedding=X)
    await facts.delete("a")
    await facts.delete("a")
    assert await facts.search(X) == []
    assert await facts.count() == 0
    with pytest.raises(dgents.StateNotFoundError, match="'a'"):
        await facts.get("a")
    assert await facts.get("a", default=None) is None


async def test_what_is_found_is_the_callers_own_copy(rt: dgents.Runtime) -> None:
    ref: VectorRef[Any] = await rt.spawn("m", VectorAgent(3))
    await ref.save({"tags": ["a"]}, id=1, embedding=X)
    (await ref.search(X))[0].state["tags"].append("b")
    assert await ref.get(1) == {"tags": ["a"]}


async def test_search_many_answers_each_row(facts: VectorRef[Fact]) -> None:
    await facts.save_many([Fact(text, "") for text in "xyz"], ids=list("xyz"), embeddings=[X, Y, Z])
    found = await facts.search_many(np.array([Z, X] * 50), 1)
    assert [ids(hits) for hits in found] == [["z"], ["x"]] * 50
    assert await facts.search_many(np.empty((0, 3))) == []


@pytest.mark.parametrize(
    ("metric", "order", "score"),
    [("cosine", ["near", "long"], 1.0), ("ip", ["long", "near"], 9.0), ("l2", ["near", "long"], 0.0)],
)
async def test_each_metric_has_its_order(rt: dgents.Runtime, metric: Any, order: list[str], score: float) -> None:
    ref: VectorRef[Any] = await rt.spawn("m", VectorAgent(3, metric=metric))
    await ref.save_many([{}, {}], ids=["near", "long"], embeddings=[X, [9.0, 9.0, 0.0]])
    found = await ref.search(X)
    assert ids(found) == order
    assert found[0].score == pytest.approx(score)


@pytest.mark.parametrize("where", [{"topic": "sky"}, lambda fact: fact.topic == "sky"], ids=["dict", "function"])
async def test_a_filter_finds_the_few_that_match_however_far_they_are(facts: VectorRef[Fact], where: Any) -> None:
    many = [Fact(str(n), "sky" if n in (3, 1_999) else "grass") for n in range(2_000)]
    await facts.save_many(many, ids=range(2_000), embeddings=[[1.0, n / 1_000, 0.0] for n in range(2_000)])
    assert ids(await facts.search(X, 5, where=where)) == [3, 1_999]
    assert ids(await facts.search(X, 1, where=where)) == [3]


async def test_a_dict_filter_follows_paths_and_misses_where_there_is_no_such_field(rt: dgents.Runtime) -> None:
    ref: VectorRef[Any] = await rt.spawn("m", VectorAgent(3))
    await ref.save_many([{"user": {"name": "Ada"}}, {"user": None}, {}], ids=[1, 2, 3], embeddings=[X, X, X])
    assert ids(await ref.search(X, where={"user.name": "Ada"})) == [1]
    assert ids(await ref.search(X, where={"user": None})) == [2]


async def test_what_a_filter_raises_reaches_its_caller_alone(facts: VectorRef[Fact]) -> None:
    await facts.save(Fact("blue", "sky"), embedding=X)
    with pytest.raises(ZeroDivisionError):
        await facts.search(X, where=lambda fact: 1 / 0)
    with pytest.raises(SystemExit):
        await facts.search(X, where=lambda fact: sys.exit())
    with pytest.raises(TypeError, match="async"):
        await facts.search(X, where=async_filter)
    with pytest.raises(TypeError, match="where is int"):
        await facts.search(X, where=5)  # type: ignore[arg-type]
    assert len(await facts.search(X)) == 1


async def async_filter(_: Any) -> bool:
    return True


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([1.0, 2.0], "'a'.*dimension 2, expected dimension 3"),
        ([1.0, float("nan"), 0.0], "'a'.*nan at component 1"),
        ([float("inf"), 0.0, 0.0], "'a'.*inf at component 0"),
        ([0.0, 0.0, 0.0], "'a'.*all zeros"),
        ([[1.0, 0.0, 0.0]], "'a'.*shape"),
        (["x", "y", "z"], "real numbers"),
        (5.0, "'a'.*shape"),
    ],
)
async def test_a_vector_that_cannot_be_kept_is_refused_by_name(
    facts: VectorRef[Fact], vector: Any, message: str
) -> None:
    with pytest.raises(InvalidVectorError, match=message) as caught:
        await facts.save(Fact("", ""), id="a", embedding=vector)
    assert caught.value.actor == "facts"
    assert isinstance(caught.value, dgents.StateSerializationError)
    with pytest.raises(ValueError, match="'facts'"):
        await facts.search(vector)
    assert await facts.count() == 0


@pytest.mark.parametrize("count", [4, 300])
async def test_one_bad_vector_refuses_the_whole_save_and_is_named(facts: VectorRef[Fact], count: int) -> None:
    vectors = np.ones((count, 3))
    vectors[2, 1] = np.nan
    with pytest.raises(InvalidVectorError, match=r"'id-2' .number 2. has nan at component 1"):
        await facts.save_many([Fact("", "")] * count, ids=[f"id-{n}" for n in range(count)], embeddings=vectors)
    assert await facts.count() == 0


@pytest.mark.parametrize("id", [True, 1.5, b"x", 2**63, "\ud800"])
async def test_what_is_no_id_is_refused(facts: VectorRef[Fact], id: Any) -> None:
    with pytest.raises(InvalidVectorError):
        await facts.save(Fact("", ""), id=id, embedding=X)
    with pytest.raises(InvalidVectorError):
        await facts.get(id)


async def test_a_state_that_cannot_be_stored_is_refused_by_its_number(facts: VectorRef[Fact]) -> None:
    with pytest.raises(dgents.StateSerializationError, match="state number 1"):
        await facts.save_many([Fact("", ""), Fact(5, "")], embeddings=[X, Y])  # type: ignore[arg-type]
    assert await facts.count() == 0


async def test_lengths_that_differ_are_refused(facts: VectorRef[Fact]) -> None:
    with pytest.raises(ValueError, match="1 ids for 2 states"):
        await facts.save_many([Fact("", "")] * 2, ids=[1], embeddings=[X, Y])
    with pytest.raises(ValueError, match="1 embeddings for 2 states"):
        await facts.save_many([Fact("", "")] * 2, embeddings=[X])
    with pytest.raises(ValueError, match="k is 0"):
        await facts.search(X, 0)


async def test_without_any_embedding_the_error_says_what_to_give(facts: VectorRef[Fact]) -> None:
    with pytest.raises(dgents.StateSerializationError, match="pass embedding="):
        await facts.save(Fact("", ""))


@pytest.mark.parametrize(
    "call",
    [
        lambda ref: ref.load(),
        lambda ref: ref.snapshot(),
        lambda ref: ref.history(),
        lambda ref: ref.update(lambda state: state),
        lambda ref: ref.patch({"a": 1}),
        lambda ref: ref.ask(dgents.Load()),
        lambda ref: ref.ask(dgents.Update(lambda state: state)),
        lambda ref: ref.ask(dgents.Delete()),
        lambda ref: ref.ask(dgents.History()),
        lambda ref: ref.ask(dgents.Patch({"a": 1})),
        lambda ref: ref.ask(dgents.Append(1)),
    ],
)
async def test_what_only_one_state_has_is_refused_with_what_to_do(facts: VectorRef[Fact], call: Any) -> None:
    await facts.save(Fact("", ""), embedding=X)
    with pytest.raises(UnsupportedOperationError, match=r"search|append"):
        await call(facts)
    assert await facts.count() == 1


async def test_views_of_one_state_are_refused_at_once(facts: VectorRef[Fact]) -> None:
    for call in (facts.watch, facts.transaction, facts.for_update, lambda: facts.at("text")):
        with pytest.raises(UnsupportedOperationError, match="search"):
            call()
    with pytest.raises(UnsupportedOperationError, match="nobody"):
        facts.tell(Search(X))


async def test_a_search_is_a_message_too(facts: VectorRef[Fact]) -> None:
    await facts.tell(dgents.Save(Fact("blue", "sky", embedding=X)))
    (hit,) = await facts.ask(Search(X, 3, where={"topic": "sky"}), timeout=10)
    assert hit.state.text == "blue"


async def test_another_actor_refuses_a_search(rt: dgents.Runtime) -> None:
    ref = await rt.spawn("n", dgents.VolatileAgent(0))
    with pytest.raises(UnsupportedOperationError, match="VectorAgent"):
        await ref.ask(Search(X))


async def test_a_request_id_is_applied_once(facts: VectorRef[Fact]) -> None:
    first = await facts.save(Fact("once", ""), embedding=X, request_id="r")
    assert await facts.save(Fact("twice", ""), embedding=X, request_id="r") == first
    assert await facts.count() == 1


async def test_a_save_for_another_version_conflicts(facts: VectorRef[Fact]) -> None:
    await facts.save(Fact("", ""), embedding=X, if_version=0)
    with pytest.raises(dgents.VersionConflictError):
        await facts.save(Fact("", ""), embedding=X, if_version=0)
    assert await facts.count() == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"dimension": 0}, ValueError),
        ({"dimension": True}, ValueError),
        ({"dimension": 3, "metric": "dot"}, ValueError),
        ({"dimension": 3, "index": ""}, ValueError),
        ({"dimension": 3, "index": "bogus"}, ValueError),
        ({"dimension": 3, "index": "IDMap,Flat"}, ValueError),
        ({"dimension": 3, "path": ""}, ValueError),
        ({"dimension": 3, "embed": 5}, TypeError),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_opened(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        VectorAgent(**arguments)


def test_an_index_that_faiss_does_not_know_is_refused_with_its_reason() -> None:
    with pytest.raises(ValueError, match=r"index='HNSW32,Nonsense' can't have dimension 3.*or a factory string"):
        VectorAgent(3, index="HNSW32,Nonsense")
