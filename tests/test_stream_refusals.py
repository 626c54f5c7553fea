"""What can't be stored is refused before an event of it is appended; and no state leaks from one run into another."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

import dgents
from dgents import Runtime, StreamAgent
from tests.stream_kit import DURABLE, LOGS, MakeAgent, add, agent_maker

pytestmark = pytest.mark.anyio


@dataclass
class Totals:
    count: int = 0
    parts: dict[str, Any] = field(default_factory=dict)


class Opaque:
    """No state: it has no fields."""


@pytest.fixture(params=LOGS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakeAgent:
    return agent_maker(request.param, tmp_path)


def hold(what: Any) -> Callable[[dict[str, Any], Any], dict[str, Any]]:
    """Return a fold that keeps its events, and for "bad" changes its argument in place to what can't be stored."""

    def fold(state: dict[str, Any], event: Any) -> dict[str, Any]:
        state["seen"] = [*state.get("seen", []), event]
        if event == "bad":
            state["what"] = what() if callable(what) else what
        return state

    return fold


def cyclic() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


UNSTORABLE = {"an object": Opaque, "a function": lambda: print, "a surrogate": "\ud800", "a cycle": cyclic}


@pytest.mark.parametrize("what", UNSTORABLE)
@pytest.mark.parametrize("many", [False, True])
async def test_an_event_whose_state_can_not_be_stored_is_not_appended(make: MakeAgent, what: str, many: bool) -> None:
    agent = make(fold=hold(UNSTORABLE[what]), initial={}, events=[str], schema=None)
    async with Runtime() as rt:
        stream = await rt.spawn("users", agent)
        await stream.append("good")
        with pytest.raises(dgents.StateSerializationError, match=r"\$\.what") as refused:
            await (stream.append_all(["good", "bad"]) if many else stream.append("bad"))
        assert (refused.value.actor, refused.value.outcome) == ("users", "rolled_back")
        assert await stream.load() == {"seen": ["good"]}
        assert await stream.append("after") == 2
        assert await stream.history() == [{}, {"seen": ["good"]}, {"seen": ["good", "after"]}][1:]
        assert await stream.verify() == 2
    if not isinstance(agent.event_log, str):
        return
    async with Runtime() as rt:
        assert await (await rt.spawn("users", agent)).load() == {"seen": ["good", "after"]}


async def test_a_state_that_does_not_fit_its_schema_is_refused(tmp_path: Path) -> None:
    def fold(state: Totals, event: Any) -> Any:
        if event == "other":
            return {"count": 1}
        state.count = "many" if event == "text" else state.count + 1  # type: ignore[assignment]
        return state

    for log in DURABLE:
        async with Runtime() as rt:
            agent = agent_maker(log, tmp_path)(fold=fold, initial=Totals(), events=[str])
            stream = await rt.spawn("users", agent)
            await stream.append("one")
            for event in ("text", "other"):
                with pytest.raises(dgents.StateSerializationError):
                    await stream.append(event)
            with pytest.raises(dgents.StateSerializationError):
                await stream.append_all(["other", "text"])
            assert await stream.load() == Totals(1)
            assert (await stream.snapshot()).version == 1


async def test_what_is_refused_among_many_at_once_harms_no_other(tmp_path: Path) -> None:
    agent = agent_maker("journal", tmp_path)(fold=hold(Opaque), initial={}, events=[str], schema=None)
    outcomes: list[Any] = []

    async def append(stream: Any, event: str) -> None:
        try:
            outcomes.append(await stream.append(event))
        except dgents.StateSerializationError:
            outcomes.append("refused")

    async with Runtime() as rt:
        stream = await rt.spawn("users", agent)

        async with anyio.create_task_group() as tasks:
            for n in range(20):
                tasks.start_soon(append, stream, "bad" if n % 3 == 0 else f"good {n}")
        assert sorted(outcomes, key=str).count("refused") == 7
        assert sorted(number for number in outcomes if number != "refused") == list(range(1, 14))
        assert len((await stream.load())["seen"]) == 13


@pytest.mark.parametrize("initial", [Opaque(), print, {"a": print}, "\ud800", cyclic()])
def test_an_initial_state_that_can_not_be_stored_is_refused_by_the_agent(make: MakeAgent, initial: Any) -> None:
    with pytest.raises(dgents.StateSerializationError, match="initial can't be stored"):
        make(fold=add, initial=initial, schema=None)


def test_an_initial_state_that_does_not_fit_its_schema_is_refused_by_the_agent(tmp_path: Path) -> None:
    with pytest.raises(dgents.StateSerializationError, match=r"initial does not fit its schema Totals: \$\.count"):
        agent_maker("journal", tmp_path)(fold=add, initial=Totals("many"))  # type: ignore[arg-type]


async def test_an_event_that_can_not_be_encoded_is_refused_before_it_is_folded(make: MakeAgent) -> None:
    @dataclass
    class Hooked:
        hook: Any

    folded: list[Any] = []

    def fold(state: int, event: Any) -> int:
        folded.append(event)
        return state + 1

    async with Runtime() as rt:
        stream = await rt.spawn("users", make(fold=fold, initial=0, events=[Hooked], schema=int))
        for hook in (print, Opaque(), "\ud800", cyclic()):
            with pytest.raises(dgents.StateSerializationError, match="append of Hooked refused"):
                await stream.append(Hooked(hook))
            with pytest.raises(dgents.StateSerializationError):
                await stream.append_all([Hooked(1), Hooked(hook)])
        assert (folded, (await stream.snapshot()).version) == ([], 0)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"events": "Paid"}, "which is no class"),
        ({"events": [list[int]]}, "which is no class"),
        ({"events": [None]}, "which is no class"),
        ({"events": 3}, "give a list of classes"),
        ({"events": [print]}, "which is no class"),
        ({"snapshot_every": True}, "snapshot_every"),
        ({"snapshot_every": 1.5}, "snapshot_every"),
        ({"snapshot_every": "1"}, "snapshot_every"),
        ({"max_event_bytes": True}, "max_event_bytes"),
        ({"max_event_bytes": float("inf")}, "max_event_bytes"),
        ({"chain": 1}, "chain is 1"),
        ({"key": ""}, "key is empty"),
        ({"key": 3}, "key is 3"),
        ({"upcasters": 3}, "upcasters is 3"),
        ({"upcasters": {"int": len}}, "upcasters has 'int'"),
        ({"event_log": b"log"}, "event_log is bytes"),
        ({"event_log": 3}, "event_log is int"),
        ({"event_log": "log\0"}, "names no file"),
        ({"event_log": "log\ud800"}, "no text that could be stored"),
    ],
)
def test_an_argument_that_can_not_be_right_is_refused_by_the_agent(options: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        StreamAgent(add, 0, **options)


# No state leaks


def collect(state: list[Any], event: Any) -> list[Any]:
    """Change both arguments in place, also after the event was kept."""
    state.append(event)
    event.append("seen by the fold")
    return state


async def test_one_initial_state_of_two_streams_stays_as_it_is(make: MakeAgent) -> None:
    initial: list[Any] = []
    options: dict[str, Any] = {"fold": collect, "initial": initial, "events": [list], "schema": None}
    async with Runtime() as rt:
        one = await rt.spawn("one", make(**options, key="one"))
        two = await rt.spawn("two", StreamAgent(**options))
        await one.append([1])
        await two.append([2])
        assert (await one.load(), await two.load()) == ([[1, "seen by the fold"]], [[2, "seen by the fold"]])
        assert await one.load(version=0) == await two.load(version=0) == initial == []


async def test_an_agent_keeps_the_initial_state_that_it_was_given(make: MakeAgent) -> None:
    initial = {"n": 1}
    agent = make(fold=lambda state, event: state, initial=initial, events=[int], schema=None)
    initial["n"] = 2
    async with Runtime() as rt:
        assert await (await rt.spawn("users", agent)).load() == {"n": 1}


async def test_what_a_fold_does_to_its_arguments_is_the_same_in_every_replay(make: MakeAgent) -> None:
    agent = make(fold=collect, initial=[], events=[list], schema=None)
    expected = [[n, "seen by the fold"] for n in range(3)]
    async with Runtime() as rt:
        stream = await rt.spawn("users", agent)
        mine = [0]
        await stream.append(mine)
        await stream.append_all([[1], [2]])
        assert mine == [0]
        assert [event async for event in stream.events()] == [[0], [1], [2]]
        for _ in range(2):
            loaded = await stream.load()
            assert loaded == await stream.load(version=3) == expected
            loaded.clear()
            for state in await stream.history():
                state.clear()
            (await stream.load(version=2)).clear()
    if isinstance(agent.event_log, str):
        async with Runtime() as rt:
            assert await (await rt.spawn("users", agent)).load() == expected


async def test_a_fold_that_fails_after_it_has_changed_its_argument_leaves_no_trace(make: MakeAgent) -> None:
    def fold(state: dict[str, Any], event: str) -> dict[str, Any]:
        state["seen"].append(event)
        if event == "bad":
            raise ValueError(event)
        return state

    async with Runtime() as rt:
        stream = await rt.spawn("users", make(fold=fold, initial={"seen": []}, events=[str], schema=None))
        await stream.append("a")
        for _ in range(3):
            with pytest.raises(ValueError, match="bad"):
                await stream.append_all(["b", "bad"])
        await stream.append("c")
        assert await stream.load() == {"seen": ["a", "c"]} == (await stream.history())[-1]


def test_an_agent_is_pickled_with_what_it_was_given() -> None:
    agent: Any = StreamAgent(add, 3, events=[int])
    assert pickle.loads(pickle.dumps(agent)).plan().initial == agent.plan().initial
