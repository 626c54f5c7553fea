"""What is easily passed by mistake is refused in words, and does no harm: the actor goes on as if nothing had been."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import anyio
import pytest

import dgents

pytestmark = pytest.mark.anyio

Call = Callable[[Any], Any]

OF_A_STATE: dict[str, tuple[Call, type[Exception], str]] = {
    "update(5)": (lambda ref: ref.update(5), TypeError, "no function.*save the state itself"),
    "update(state)": (lambda ref: ref.update({"n": 2}), TypeError, "'a'.*dict is no function"),
    "ask(Update(5))": (lambda ref: ref.ask(dgents.Update(5)), TypeError, "no function"),
    "tell(Update(5))": (lambda ref: ref.tell(dgents.Update(5)), TypeError, "no function"),
    "lens.update(5)": (lambda ref: ref.at("n").update(5), TypeError, "'n' in 'a'.*no function"),
    "load(version=text)": (lambda ref: ref.load(version="x"), TypeError, "version is 'x'"),
    "save(if_version=text)": (lambda ref: ref.save({}, if_version="1"), TypeError, "if_version is '1'"),
    "history(text)": (lambda ref: ref.history("x"), TypeError, "limit is 'x'"),
    "patch(5)": (lambda ref: ref.patch(5), TypeError, "path.to.field"),
    "patch({5: 5})": (lambda ref: ref.patch({5: 5}), TypeError, "a path is a string"),
    "at(5)": (lambda ref: ref.at(5), TypeError, "a path is a string"),
    "request_id=5": (lambda ref: ref.save({}, request_id=5), TypeError, "request_id is 5"),
    "request_id=surrogate": (lambda ref: ref.save({}, request_id="\ud800"), ValueError, "lone surrogate"),
    "remind(5)": (lambda ref: ref.remind(5, dgents.Delete(), every=60), TypeError, "name is 5"),
    "remind(every=text)": (lambda ref: ref.remind("x", dgents.Delete(), every="1"), TypeError, "every='1'"),
    "Symbiont(5)": (lambda ref: dgents.Symbiont(5, ref), TypeError, "the logic is int"),
    "Symbiont(of no ref)": (lambda ref: dgents.Symbiont(print, 5), TypeError, "5 is no ref"),
    "append": (lambda ref: ref.append(1), dgents.UnsupportedOperationError, "spawn a StreamAgent"),
    "search": (lambda ref: ref.search([1.0]), dgents.UnsupportedOperationError, "spawn a VectorAgent"),
    "execute": (lambda ref: ref.execute("INCR", "n"), dgents.UnsupportedOperationError, "spawn a RedisAgent"),
    "a name that is none": (lambda ref: ref.nothing(), AttributeError, "has no attribute 'nothing'"),
}


@pytest.mark.parametrize("agent", ["volatile", "sqlite"])
@pytest.mark.parametrize("mistake", OF_A_STATE)
async def test_a_mistake_with_a_state_is_explained(
    anyio_backend: str, mistake: str, agent: str, tmp_path: Path
) -> None:
    call, error, words = OF_A_STATE[mistake]
    events: list[dgents.Event] = []
    async with dgents.Runtime(on_event=events.append) as rt:
        made: Any = dgents.VolatileAgent({"n": 1}) if agent == "volatile" else dgents.SQLAgent(str(tmp_path / "s.db"))
        ref = await rt.spawn("a", made)
        await ref.save({"n": 1})
        with pytest.raises(error, match=words):
            await call(ref)
        assert await ref.load() == {"n": 1}
    assert not [event for event in events if event.kind == "crashed"]


OF_A_STREAM: dict[str, tuple[Call, type[Exception], str]] = {
    "append_all(5)": (lambda ref: ref.append_all(5), TypeError, r"append\(event\) takes a single one"),
    "append_all(dict)": (lambda ref: ref.append_all({"n": 1}), TypeError, r"append\(event\) takes a single one"),
    "append_all(text)": (lambda ref: ref.append_all("ab"), TypeError, r"append\(event\) takes a single one"),
    "load(version=text)": (lambda ref: ref.load(version="x"), TypeError, "version is 'x'"),
    "load(at=text)": (lambda ref: ref.load(at="x"), TypeError, "give a datetime"),
    "search": (lambda ref: ref.search([1.0]), dgents.UnsupportedOperationError, "spawn a VectorAgent"),
}


@pytest.mark.parametrize("mistake", OF_A_STREAM)
async def test_a_mistake_with_a_stream_is_explained(anyio_backend: str, mistake: str) -> None:
    call, error, words = OF_A_STREAM[mistake]
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.StreamAgent(lambda total, event: total + event, 0))
        await ref.append(1)
        with pytest.raises(error, match=words):
            await call(ref)
        assert await ref.load() == 1


async def test_a_method_that_a_ref_has_not_got_is_not_there(anyio_backend: str) -> None:
    async with dgents.Runtime() as rt:
        ref: Any = await rt.spawn("a", dgents.VolatileAgent(0))
        assert not hasattr(ref, "append")
        with pytest.raises(dgents.UnsupportedOperationError) as caught:
            ref.append(1)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("made", [5, dgents.VolatileAgent, None])
async def test_a_factory_that_returns_no_agent_is_named(anyio_backend: str, made: Any) -> None:
    async with dgents.Runtime() as rt:
        rt.register("user", lambda key: made)
        with pytest.raises(TypeError, match=r"the factory of 'user' for 'user/1'.*no agent"):
            rt.ref("user/1")


async def test_a_prefix_that_is_no_text_is_refused_and_the_others_stay(anyio_backend: str) -> None:
    async with dgents.Runtime() as rt:
        with pytest.raises(TypeError, match="prefix is 5"):
            rt.register(5, lambda key: dgents.VolatileAgent(0))  # type: ignore[arg-type]
        rt.register("user", lambda key: dgents.VolatileAgent(0))
        assert await rt.ref("user/1").load() == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: dgents.CachedAgent(dgents.VolatileAgent(), dgents.SQLAgent),
        lambda: dgents.CachedAgent(dgents.VolatileAgent(), dgents.SQLAgent("s.db"), policy="write-behind", flush=3),
        lambda: dgents.EntropyConstrainedAgent(None, 0.5),
        lambda: dgents.StreamAgent(max, 0, events=dict),
        lambda: dgents.RedisAgent(5),  # type: ignore[arg-type]
        lambda: dgents.Runtime(on_event=5),
    ],
)
def test_what_a_description_can_not_be_made_of_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="give a"):
        make()


@pytest.mark.parametrize("schema", [{"n": int}, "User", 5, [int]], ids=str)
async def test_a_schema_that_is_none_is_refused_and_the_name_stays_free(anyio_backend: str, schema: Any) -> None:
    with anyio.fail_after(5):  # a name that is taken for ever would hold up the runtime's end
        async with dgents.Runtime() as rt:
            rt.register("user", lambda key: dgents.VolatileAgent(0, schema=schema))
            with pytest.raises(TypeError, match=r"schema=.* can't be stored"):
                await rt.spawn("a", dgents.VolatileAgent(0, schema=schema))
            with pytest.raises(TypeError, match=r"schema=.* can't be stored"):
                rt.ref("user/1")
            assert await (await rt.spawn("a", dgents.VolatileAgent(0))).load() == 0


async def test_an_annotation_that_can_not_be_hashed_is_none_of_our_business(anyio_backend: str) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.VolatileAgent(0, schema=Annotated[int, {"unit": "s"}]))  # type: ignore[arg-type]
        assert await ref.update(lambda n: n + 1) == 1


async def test_a_checkpoint_of_names_is_refused(anyio_backend: str, tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        await rt.spawn("a", dgents.VolatileAgent(0))
        with pytest.raises(TypeError, match="'a' is no ref"):
            await rt.checkpoint(tmp_path / "cut", ["a"])  # type: ignore[list-item]


async def test_count_of_a_star_counts_the_states(anyio_backend: str, tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.SQLAgent(str(tmp_path / "s.db")))
        await ref.save(1)
        assert await ref.aggregate("COUNT", "*") == await ref.aggregate("COUNT(*)", "*") == 1
