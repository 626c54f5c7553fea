"""Snapshots spare a stream its past; another fold or schema does not believe them. Old events are lifted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import dgents
from dgents import Runtime, StreamAgent
from dgents.backends.replay import fingerprint
from tests.stream_kit import DURABLE, EVENTS, MakeAgent, UserCreated, UserState, add, agent_maker

pytestmark = pytest.mark.anyio


@pytest.fixture(params=DURABLE)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakeAgent:
    return agent_maker(request.param, tmp_path)


async def stored(stream: Any, version: int) -> None:
    """Wait until the snapshot of ``version`` is stored."""
    with anyio.fail_after(10):
        while stream._cell.keeping:
            await anyio.lowlevel.checkpoint()
    assert stream._cell.stream.latest.version == version


def counting() -> tuple[Any, list[int]]:
    """Return a fold, and the list of what it was called with."""
    seen: list[int] = []

    def fold(total: int, event: int) -> int:
        seen.append(event)
        return total + event

    return fold, seen


async def test_only_what_came_after_the_snapshot_is_folded_again(make: MakeAgent) -> None:
    fold, seen = counting()
    agent = make(fold=fold, initial=0, events=[int], schema=int, snapshot_every=10)
    async with Runtime() as rt:
        stream = await rt.spawn("numbers", agent)
        for n in range(25):
            await stream.append(n)
        await stored(stream, 20)
    seen.clear()
    async with Runtime() as rt:
        assert await (await rt.spawn("numbers", agent)).load() == sum(range(25))
    assert seen == [20, 21, 22, 23, 24]


async def test_sessions_that_are_short_make_snapshots_too(make: MakeAgent) -> None:
    agent = make(snapshot_every=10)
    for session in range(4):
        async with Runtime() as rt:
            stream = await rt.spawn("users", agent)
            await stream.append_all([UserCreated(f"{session}.{n}", "x") for n in range(6)])
    async with Runtime() as rt:
        stream = await rt.spawn("users", agent)
        assert stream._cell.stream.latest.version >= 12


async def test_a_snapshot_of_another_fold_is_not_believed(make: MakeAgent) -> None:
    options: dict[str, Any] = {"initial": 0, "events": [int], "schema": int, "snapshot_every": 5}
    async with Runtime() as rt:
        stream = await rt.spawn("numbers", make(fold=lambda total, event: total + event, **options))
        await stream.append_all(range(10))
        await stored(stream, 10)
    warnings: list[Any] = []
    async with Runtime(on_event=lambda event: warnings.append(event) if event.kind == "warning" else None) as rt:
        stream = await rt.spawn("numbers", make(fold=lambda total, event: total - event, **options))
        assert await stream.load() == -45
    assert "is of another fold and is not used" in warnings[0].details["message"]


async def test_a_snapshot_of_another_schema_is_not_believed(make: MakeAgent) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make(snapshot_every=1))
        await stream.append(UserCreated("u1", "Alice"))
        await stored(stream, 1)

    @dataclass
    class Renamed:
        users: dict[str, str]
        changes: int
        names: int

    async with Runtime() as rt:
        stream = await rt.spawn("users", make(initial=Renamed({}, 0, 7)))
        assert await stream.load() == Renamed({"u1": "Alice"}, 1, 7)


async def test_a_snapshot_in_front_of_the_floor_is_not_begun_with(make: MakeAgent) -> None:
    names = [f"u{number}" for number in range(10)]
    async with Runtime() as rt:
        stream = await rt.spawn("users", make(snapshot_every=4))
        for name in names[:4]:
            await stream.append(UserCreated(name, name))
        await stored(stream, 4)
    async with Runtime() as rt:
        stream = await rt.spawn("users", make(snapshot_every=1000))
        for name in names[4:]:
            await stream.append(UserCreated(name, name))
        await stream.compact(before=8)
        for version in (7, 8, 10):
            assert (await stream.load(version=version)).users == {name: name for name in names[:version]}


async def test_a_compacted_state_is_lifted_by_migrations(make: MakeAgent) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make())
        await stream.append_all([UserCreated("u1", "Alice"), UserCreated("u2", "Bob")])
        await stream.compact(before=3)

    def lift(state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "changes": 100}

    async with Runtime() as rt:
        stream = await rt.spawn("users", make(migrations={1: lift}))
        assert await stream.load() == UserState({"u1": "Alice", "u2": "Bob"}, 100)


async def test_an_event_that_the_fold_refuses_now_is_named(make: MakeAgent) -> None:
    async with Runtime() as rt:
        await (await rt.spawn("users", make())).append(UserCreated("u1", "Alice"))

    def strict(state: UserState, event: Any) -> UserState:
        raise RuntimeError("no more")

    async with Runtime() as rt:
        with pytest.raises(dgents.StateSerializationError, match=r"event 1 \(UserCreated\) of 'users' can't be folded"):
            await rt.spawn("users", make(fold=strict))
        assert (await (await rt.spawn("users", make())).load()).changes == 1


def test_the_fingerprint_of_a_fold_is_the_same_in_every_process() -> None:
    def fold(state: int, event: Any) -> int:
        return state + 1 if event in {"a", "b", "c", "d"} else (lambda: state)()

    known = fingerprint(fold)

    def fold(state: int, event: Any) -> int:  # type: ignore[no-redef]
        return state + 2 if event in {"a", "b", "c", "d"} else (lambda: state)()

    assert fingerprint(fold) != known
    assert fingerprint(add) == fingerprint(add)
    assert fingerprint(int.__add__) != fingerprint(int.__sub__)


async def test_upcasters_lift_old_events(make: MakeAgent) -> None:
    async with Runtime() as rt:
        await (await rt.spawn("users", make())).append(UserCreated("u1", "Alice"))

    @dataclass
    class UserCreated2:
        user_id: str
        first: str
        last: str

    UserCreated2.__name__ = "UserCreated"

    def fold(state: UserState, event: Any) -> UserState:
        state.users[event.user_id] = f"{event.first} {event.last}"
        return state

    def split(event: dict[str, Any]) -> dict[str, Any]:
        return {"user_id": event["user_id"], "first": event["name"], "last": "?"}

    async with Runtime() as rt:
        stream = await rt.spawn("users", make(fold=fold, events=[UserCreated2], upcasters={"UserCreated": {1: split}}))
        assert (await stream.load()).users == {"u1": "Alice ?"}
        await stream.append(UserCreated2("u2", "Bob", "B"))
        assert [event.last async for event in stream.events()] == ["?", "B"]
        assert (await stream.load(version=2)).users == {"u1": "Alice ?", "u2": "Bob B"}


async def test_events_of_a_class_that_is_gone_become_others(make: MakeAgent) -> None:
    class UserInvited(UserCreated):
        pass

    def created(event: dict[str, Any]) -> UserCreated:
        return UserCreated(**event)

    async with Runtime() as rt:
        stream = await rt.spawn("users", make(events=[*EVENTS, UserInvited]))
        await stream.append(UserInvited("u1", "Alice"))
    async with Runtime() as rt:
        with pytest.raises(dgents.StateSerializationError, match="no class in events= has the name 'UserInvited'"):
            await rt.spawn("users", make())
        stream = await rt.spawn("users", make(upcasters={"UserInvited": {1: created}}))
        assert [event async for event in stream.events()] == [UserCreated("u1", "Alice")]


async def test_an_event_that_was_not_declared_is_refused_with_a_hint(make: MakeAgent) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make(events=None))
        with pytest.raises(dgents.StateSerializationError, match=r"pass events=\[UserCreated, \.\.\.\]"):
            await stream.append(UserCreated("u1", "Alice"))
        other = await rt.spawn("other", make(events=[int]))
        with pytest.raises(dgents.StateSerializationError, match=r"add UserCreated to events="):
            await other.append(UserCreated("u1", "Alice"))
        assert (await other.snapshot()).version == 0


async def test_dicts_need_no_classes(make: MakeAgent) -> None:
    agent = make(fold=add, initial=0, events=None, schema=int)
    for session in range(1, 3):
        async with Runtime() as rt:
            stream = await rt.spawn("numbers", agent)
            await stream.append({"n": 5, "tags": {"a", "b"}})
            assert await stream.load() == 5 * session
            assert [event async for event in stream.events()] == [{"n": 5, "tags": {"a", "b"}}] * session


async def test_what_can_not_be_stored_is_named() -> None:
    async with Runtime() as rt:
        stream: Any = await rt.spawn("x", StreamAgent(add, 0, events=[dict, int], max_event_bytes=100))
        with pytest.raises(dgents.StateSerializationError, match=r"\$\.n\.f") as refused:
            await stream.append({"n": {"f": lambda: 0}})
        assert refused.value.actor == "x"
        with pytest.raises(dgents.StateTooLargeError, match="max_event_bytes"):
            await stream.append({"n": "x" * 200})
        assert await stream.load() == 0


async def test_a_fold_that_returns_nothing_or_is_async_is_refused() -> None:
    async def later(state: Any, event: Any) -> Any:
        return state

    async with Runtime() as rt:
        forgetful: Any = await rt.spawn("forgetful", StreamAgent(lambda state, event: state.update(event), {}))
        with pytest.raises(dgents.StateSerializationError, match="the fold returned None"):
            await forgetful.append({"a": 1})
        assert await forgetful.load() == {}
        hurried: Any = await rt.spawn("hurried", StreamAgent(later, 0))
        with pytest.raises(TypeError, match="the fold is async"):
            await hurried.append(1)


async def test_the_loop_goes_on_while_a_long_log_is_folded(make: MakeAgent) -> None:
    agent = make(fold=add, initial=0, events=[int], schema=int, snapshot_every=10**9)
    async with Runtime() as rt:
        await (await rt.spawn("numbers", agent)).append_all(range(30_000))
    beats = 0
    async with Runtime() as rt, anyio.create_task_group() as tasks:

        async def beat() -> None:
            nonlocal beats
            while True:
                beats += 1
                await anyio.lowlevel.checkpoint()

        tasks.start_soon(beat)
        stream = await rt.spawn("numbers", agent)
        assert await stream.load() == sum(range(30_000))
        assert beats > 16  # at least two hops to a thread for each of the eight chunks
        tasks.cancel_scope.cancel()
