"""What a stream promises, over every log that it may have."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

import dgents
from dgents import Runtime, StreamAgent
from tests.stream_kit import (
    DURABLE,
    EVENTS,
    LOGS,
    MakeAgent,
    UserCreated,
    UserDeleted,
    UserRenamed,
    UserState,
    add,
    agent_maker,
    apply_event,
)

pytestmark = pytest.mark.anyio

ALICE, ALICIA = UserCreated("u1", "Alice"), UserRenamed("u1", "Alicia")


@pytest.fixture(params=LOGS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakeAgent:
    return agent_maker(request.param, tmp_path)


@pytest.fixture(params=DURABLE)
def make_durable(request: pytest.FixtureRequest, tmp_path: Path) -> MakeAgent:
    return agent_maker(request.param, tmp_path)


async def test_the_example_of_the_specification_works_with_spawn_before_it() -> None:
    async with Runtime() as rt:
        agent: Any = StreamAgent(event_log=[], fold=apply_event, initial=UserState(users={}))
        stream: Any = await rt.spawn("users", agent)
        await stream.append_event(UserCreated("u1", "Alice"))
        await stream.append_event(UserRenamed("u1", "Alicia"))
        current = await stream.load()
        assert current.users["u1"] == "Alicia"
        history = await stream.history()
        assert history[0].users["u1"] == "Alice"


async def test_appends_are_numbered_from_one(make: MakeAgent) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make())
        assert [await stream.append(ALICE), await stream.append(ALICIA)] == [1, 2]
        assert await stream.append_all([UserCreated("u2", "Bob"), UserDeleted("u1")]) == 4
        assert await stream.load() == UserState({"u2": "Bob"}, 4)
        assert (await stream.snapshot()).version == 4


async def test_a_durable_stream_goes_on_after_a_restart(make_durable: MakeAgent) -> None:
    for session in range(3):
        async with Runtime() as rt:
            stream = await rt.spawn("users", make_durable(snapshot_every=2))
            assert (await stream.snapshot()).version == 3 * session
            await stream.append_all([UserCreated(f"{session}.{n}", "x") for n in range(2)])
            await stream.append(UserCreated(f"{session}.2", "y"))
    async with Runtime() as rt:
        state = await (await rt.spawn("users", make_durable())).load()
    assert state.changes == len(state.users) == 9


async def test_a_stream_without_events_has_its_initial_state(make: MakeAgent) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make())
        assert await stream.load() == UserState()
        assert await stream.history() == []
        assert [event async for event in stream.events()] == []
        assert await stream.verify() == 0


async def test_what_load_hands_out_is_the_callers_own(make: MakeAgent) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make())
        event = UserCreated("u1", "Alice")
        await stream.append(event)
        event.name = "changed"
        (await stream.load()).users.clear()
        (await stream.history())[0].users.clear()
        assert (await stream.load()).users == {"u1": "Alice"}
        assert [event async for event in stream.events()] == [ALICE]


async def test_the_initial_state_is_not_shared_between_actors(make: MakeAgent) -> None:
    agent = make(event_log=None)
    async with Runtime() as rt:
        one, two = await rt.spawn("one", agent), await rt.spawn("two", agent)
        await one.append(ALICE)
        assert await two.load() == UserState()
        assert agent.initial == UserState()


async def test_a_fold_that_raises_refuses_the_event_and_says_which(make: MakeAgent) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make())
        await stream.append(ALICE)
        with pytest.raises(ValueError, match="Alice can't be called that") as refused:
            await stream.append(UserRenamed("u1", "forbidden"))
        assert "event 2 (UserRenamed) of 'users'" in refused.value.__notes__[0]
        assert await stream.load() == UserState({"u1": "Alice"}, 1)
        assert [event async for event in stream.events()] == [ALICE]
        assert await stream.append(ALICIA) == 2


@pytest.mark.parametrize("loads", [True, False], ids=["loaded before", "not loaded"])
async def test_a_state_that_a_fold_left_half_changed_is_made_again(make: MakeAgent, loads: bool) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make(snapshot_every=4))
        for n in range(6):
            await stream.append(UserCreated(f"u{n}", "x"))
            if loads:
                await stream.load()
            with pytest.raises(KeyError):
                await stream.append(UserDeleted("nobody"))
        assert await stream.load() == UserState({f"u{n}": "x" for n in range(6)}, 6)


async def test_append_all_is_all_or_nothing(make: MakeAgent) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make())
        with pytest.raises(KeyError) as refused:
            await stream.append_all([ALICE, ALICIA, UserDeleted("nobody")])
        assert "event 3 (UserDeleted)" in refused.value.__notes__[0]
        assert await stream.load() == UserState()
        assert await stream.append_all([]) == 0
        assert await stream.append_all([ALICE, ALICIA]) == 2


async def test_if_version_is_a_compare_and_set(make: MakeAgent) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make())
        assert await stream.append(ALICE, if_version=0) == 1
        with pytest.raises(dgents.VersionConflictError) as conflict:
            await stream.append(ALICIA, if_version=0)
        assert (conflict.value.expected, conflict.value.actual) == (0, 1)
        assert await stream.append_all([ALICIA], if_version=1) == 2


async def test_a_request_id_is_applied_once(make: MakeAgent) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make())
        assert [await stream.append(ALICE, request_id="r1") for _ in range(3)] == [1, 1, 1]
        assert [await stream.append_all([ALICIA, ALICIA], request_id="r2") for _ in range(2)] == [3, 3]
        assert (await stream.load()).changes == 3


@pytest.mark.parametrize("snapshot_every", [1, 1000])
async def test_a_request_id_is_remembered_after_a_restart(make_durable: MakeAgent, snapshot_every: int) -> None:
    for _ in range(3):
        async with Runtime() as rt:
            stream = await rt.spawn("users", make_durable(snapshot_every=snapshot_every))
            assert await stream.append(ALICE, request_id="r1") == 1
            assert await stream.append_all([ALICIA, ALICIA], request_id="r2") == 3
            await stream.compact(before=4)


async def test_concurrent_appends_are_numbered_without_gaps(make: MakeAgent) -> None:
    numbers: list[int] = []
    async with Runtime() as rt:
        stream = await rt.spawn("users", make(snapshot_every=16))

        async def append(task: int) -> None:
            for n in range(5):
                numbers.append(await stream.append(UserCreated(f"{task}.{n}", "x")))

        async with anyio.create_task_group() as tasks:
            for task in range(20):
                tasks.start_soon(append, task)
        assert sorted(numbers) == list(range(1, 101))
        assert len([event async for event in stream.events()]) == 100
        assert (await stream.load()).changes == 100


async def test_load_of_a_version_gives_the_state_after_that_event(make: MakeAgent) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make(snapshot_every=3))
        await stream.append_all([UserCreated(f"u{n}", "x") for n in range(10)])
        for version in range(11):
            assert (await stream.load(version=version)).changes == version
        with pytest.raises(dgents.StateNotFoundError, match="its newest event is 10"):
            await stream.load(version=11)
        assert await stream.load(version=11, default=None) is None


async def test_load_of_a_time_gives_the_state_as_it_was_then(make: MakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    start = datetime(2030, 1, 1, tzinfo=UTC)
    hour = timedelta(hours=1)
    async with Runtime() as rt:
        stream = await rt.spawn("users", make())
        for n in (0, 1, 3, 2):  # the clock goes back once; times in the log do not
            monkeypatch.setattr("dgents.backends.stream_cell.time", lambda n=n: (start + n * hour).timestamp())
            await stream.append(UserCreated(f"u{n}", "x"))
        states = [await stream.load(at=start + (n + 0.5) * hour) for n in range(-1, 4)]
        assert [state.changes for state in states] == [0, 1, 2, 2, 4]
        with pytest.raises(ValueError, match="no timezone"):
            await stream.load(at=datetime(2030, 1, 1))


async def test_history_gives_the_newest_states_oldest_first(make: MakeAgent) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make(snapshot_every=2))
        await stream.append_all([UserCreated(f"u{n}", "x") for n in range(5)])
        assert [state.changes for state in await stream.history()] == [1, 2, 3, 4, 5]
        assert [state.changes for state in await stream.history(2)] == [4, 5]
        assert await stream.history(0) == []
        assert [state.changes for state in await stream.ask(dgents.History(1))] == [5]


async def test_events_begin_after_since_and_end_with_the_newest(make: MakeAgent) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make())
        await stream.append_all([ALICE, ALICIA, UserDeleted("u1")])
        assert [event async for event in stream.events(since=1)] == [ALICIA, UserDeleted("u1")]
        assert [event async for event in stream.events(since=3)] == []


async def test_events_of_a_long_stream_come_in_chunks(make: MakeAgent) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make(fold=add, initial=0, events=[int], schema=int))
        await stream.append_all(range(10_000))
        seen = 0
        async for event in stream.events(since=17):
            assert event == 17 + seen
            seen += 1
        assert seen == 10_000 - 17


async def test_whatever_would_change_the_state_past_its_events_says_to_append(make: MakeAgent) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make())
        await stream.append(ALICE)
        state = await stream.load()
        calls = [stream.save(state), stream.update(lambda state: state), stream.patch({"changes": 7}), stream.delete()]
        calls += [
            stream.ask(message) for message in (dgents.Save(state), dgents.Patch({"changes": 7}), dgents.Delete())
        ]
        calls.append(stream.ask(dgents.Update(lambda state: state)))
        for call in calls:
            with pytest.raises(dgents.UnsupportedOperationError, match=r"ref\.append"):
                await call
        for method in (lambda: stream.at("users"), stream.transaction, stream.for_update):
            with pytest.raises(dgents.UnsupportedOperationError, match=r"ref\.append"):
                method()
        assert await stream.load() == state


async def test_append_is_a_message_too(make: MakeAgent) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make())
        assert await stream.ask(dgents.Append(ALICE)) == 1
        await stream.tell(dgents.Append(ALICIA))
        assert (await stream.snapshot()).version == 2
        other = await rt.spawn("other", dgents.VolatileAgent(0))
        with pytest.raises(dgents.UnsupportedOperationError, match="keeps a state, not events"):
            await other.ask(dgents.Append(ALICE))


async def test_watch_shows_the_last_state(make: MakeAgent) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make())
        seen = []
        async for snapshot in stream.watch():
            seen.append(snapshot.version)
            if snapshot.version == 3:
                break
            await stream.append(UserCreated("u", "x"))
        assert seen == [0, 1, 2, 3]


async def test_compact_keeps_the_state_in_front_of_the_oldest_event(make: MakeAgent) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", make())
        await stream.append_all([UserCreated(f"u{n}", "x") for n in range(10)])
        assert await stream.compact(before=8) == 3
        assert [state.changes for state in await stream.history()] == [8, 9, 10]
        assert (await stream.load(version=7)).changes == 7
        assert len([event async for event in stream.events()]) == 3
        for read in (stream.load(version=6), stream.events(since=3).__anext__()):
            with pytest.raises(dgents.StateNotFoundError, match="compacted"):
                await read
        assert await stream.append(ALICE) == 11
        assert await stream.verify() == 4


@pytest.mark.parametrize("before", [3, 6, 100])
async def test_a_compacted_stream_survives_a_restart(make_durable: MakeAgent, before: int) -> None:
    for session in range(1, 4):
        async with Runtime() as rt:
            stream = await rt.spawn("users", make_durable(chain=True, snapshot_every=4))
            await stream.append_all([UserCreated(f"{session}.{n}", "x") for n in range(5)])
            await stream.compact(before=before)
            assert (await stream.load()).changes == 5 * session
            assert await stream.verify() == max(5 * session - before + 1, 0)


async def test_streams_of_one_log_are_kept_apart(make_durable: MakeAgent) -> None:
    agent = make_durable()
    for _ in range(2):
        async with Runtime() as rt:
            for name in ("a", "A", "../a", "a/b"):
                stream = await rt.spawn(name, agent)
                await stream.append(UserCreated(name, name))
                assert set((await stream.load()).users) == {name}


async def test_another_owner_is_refused(make_durable: MakeAgent) -> None:
    async with Runtime() as rt, Runtime() as other:
        await rt.spawn("users", make_durable())
        with pytest.raises(dgents.StateLockedError):
            await other.spawn("users", make_durable())


async def test_a_virtual_stream_comes_back_with_its_state(make_durable: MakeAgent) -> None:
    async with Runtime() as rt:
        rt.register("user", lambda key: make_durable(key=key), max_active=1)
        for n in range(1, 4):
            for name in ("user/1", "user/2"):
                ref: Any = rt.ref(name)
                assert await ref.append(ALICE) == n


async def test_an_agent_can_be_pickled(make_durable: MakeAgent) -> None:
    agent = pickle.loads(pickle.dumps(make_durable(chain=True)))
    async with Runtime() as rt:
        assert await (await rt.spawn("users", agent)).append(ALICE) == 1


async def test_a_budget_refuses_the_event_that_would_exceed_it(make: MakeAgent) -> None:
    async with Runtime() as rt:
        agent = dgents.EntropyConstrainedAgent(make(), 1.0, max_size_bytes=100)
        stream: Any = await rt.spawn("users", agent)
        await stream.append(ALICE)
        with pytest.raises(dgents.StateTooLargeError):
            await stream.append(UserCreated("u2", "x" * 100))
        assert await stream.load() == UserState({"u1": "Alice"}, 1)


async def test_events_can_not_be_written_behind(make_durable: MakeAgent) -> None:
    async with Runtime() as rt:
        agent = dgents.CachedAgent(dgents.VolatileAgent(), make_durable(), policy="write-behind")
        with pytest.raises(dgents.UnsupportedOperationError, match="can't be written behind"):
            await rt.spawn("users", agent)


async def test_a_list_is_the_log_that_a_stream_begins_with() -> None:
    log: list[Any] = [ALICE]
    async with Runtime() as rt:
        stream = await rt.spawn("users", StreamAgent(apply_event, UserState(), event_log=log))
        assert await stream.append(ALICIA) == 2
        assert log == [ALICE, ALICIA]
        assert log[1] is not ALICIA


def test_arguments_that_can_not_be_right_are_refused() -> None:
    for options in (
        {"fold": 1},
        {"snapshot_every": 0},
        {"event_log": ""},
        {"event_log": "ftp://x/y"},
        {"event_log": "sqlite:///"},
        {"signing_key": bytes(32)},
        {"signing_key": bytes(31), "chain": True},
        {"events": [UserCreated, type("UserCreated", (), {})]},
        {"max_event_bytes": 0},
        {"table": "dgents_x"},
        {"upcasters": {"UserCreated": {1: dict, 3: dict}}, "events": EVENTS},
    ):
        with pytest.raises((ValueError, TypeError)):
            StreamAgent(**{"fold": apply_event, "initial": UserState(), **options})  # type: ignore[arg-type]


def test_no_secret_is_shown() -> None:
    agent = StreamAgent(add, 0, event_log="log", chain=True, signing_key=b"secret" + bytes(26))
    assert "secret" not in repr(agent)
