"""Reminders: kept with the state, delivered at least once, taken once, also after the runtime was down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

import dgents
from tests.calls import calls
from tests.held import Door
from tests.redis_server import RedisServer, redis_server

pytestmark = pytest.mark.anyio

Make = Callable[[], Any]


@dgents.remindable
def add(total: int, by: int = 1) -> int:
    return total + by


def undeclared(total: int) -> int:
    return total


def soon(seconds: float = 0.02) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def until(ref: Any, wanted: Callable[[Any], bool]) -> Any:
    """Return the first state that is as wanted."""
    with anyio.fail_after(10):
        async for seen in ref.watch():
            if wanted(seen.state):
                break
    return seen.state


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["file", "folder", "sqlite", "shared", "cached", "behind", "redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Return what makes the agent of one durable state, the same each time."""
    database = str(tmp_path / "state.db")
    if request.param == "redis":
        url = request.getfixturevalue("redis").url
        return lambda: dgents.RedisAgent(url, key=f"{tmp_path.name}")
    makers: dict[str, Make] = {
        "file": lambda: dgents.PersistentAgent(tmp_path / "state.json"),
        "folder": lambda: dgents.PersistentAgent(f"{tmp_path}/states/"),
        "sqlite": lambda: dgents.SQLAgent(database),
        "shared": lambda: dgents.SQLAgent(database, ownership="shared"),
        "cached": lambda: dgents.CachedAgent(dgents.VolatileAgent(), dgents.SQLAgent(database)),
        "behind": lambda: dgents.CachedAgent(dgents.VolatileAgent(), dgents.SQLAgent(database), policy="write-behind"),
    }
    return makers[request.param]


async def test_a_reminder_is_delivered_when_it_falls_due(make: Make) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", make())
        await ref.save(1)
        await ref.remind("later", dgents.Save(2), at=soon())
        assert await ref.load() in (1, 2)
        assert await until(ref, lambda state: state == 2) == 2


async def test_what_fell_due_several_times_meanwhile_is_delivered_once_on_return(make: Make) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", make())
        await ref.save(0)
        await ref.remind("often", dgents.Update(add, (10,)), at=soon(0.2), every=1000)
        await ref.remind("once", dgents.Update(add), at=soon(0.2))
    await anyio.sleep(0.3)  # the time that the runtime is down
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", make())
        assert await ref.load() == 11  # queued before spawn returned
        await ref.forget("often")


async def test_a_reminder_that_repeats_goes_on_until_it_is_forgotten(make: Make) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", make())
        await ref.save(0)
        await ref.remind("tick", dgents.Update(add), every=0.01)
        assert await until(ref, lambda state: state >= 3) >= 3
        await ref.forget("tick")
        await ref.flush()
        after = await ref.load()
        await anyio.sleep(0.05)
        assert await ref.load() - after <= 1  # one may have been on its way
    async with dgents.Runtime() as rt:
        again = await rt.spawn("a", make())
        assert await again.load() - after <= 1


async def test_of_two_reminders_of_one_name_the_newer_counts() -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.VolatileAgent(0))
        await ref.remind("r", dgents.Save(1), at=soon())
        await ref.remind("r", dgents.Save(2), at=soon(0.04))
        assert [state async for state in _states(ref, 2)] == [0, 2]


async def _states(ref: Any, last: Any) -> Any:
    async for seen in ref.watch():
        yield seen.state
        if seen.state == last:
            return


async def test_a_reminder_wakes_a_virtual_actor(tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        rt.register("user", lambda key: dgents.SQLAgent(str(tmp_path / "u.db"), key=key), idle_timeout=0.02)
        await rt.ref("user/1").save(1)
        await rt.ref("user/1").remind("later", dgents.Save(2), at=soon(0.3))
    async with dgents.Runtime() as rt:
        rt.register("user", lambda key: dgents.SQLAgent(str(tmp_path / "u.db"), key=key), idle_timeout=60)
        await rt.ref("user/other").save(0)  # of the same store: its ledger is known from here on
        with anyio.fail_after(10):
            async for event in rt.events():
                if event.kind == "activated" and event.actor == "user/1":
                    break
        assert await until(rt.ref("user/1"), lambda state: state == 2) == 2


async def test_an_event_is_appended_to_a_stream_later(tmp_path: Path) -> None:
    agent = dgents.StreamAgent(add, 0, event_log=str(tmp_path / "log"))
    async with dgents.Runtime() as rt:
        stream = await rt.spawn("s", agent)
        await stream.remind("later", dgents.Append(5), at=soon(0.05))
    async with dgents.Runtime() as rt:
        stream = await rt.spawn("s", agent)
        assert await until(stream, lambda state: state == 5) == 5


async def test_only_data_can_be_kept(tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.VolatileAgent(0))
        for message in (dgents.Update(lambda state: state), dgents.Update(undeclared), dgents.Load()):
            with pytest.raises(dgents.StateSerializationError, match="not data"):
                await ref.remind("r", message, every=1)
    with pytest.raises(ValueError, match="no name of its own"):
        dgents.remindable(lambda state: state)


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ({}, "give at="),
        ({"at": datetime(2030, 1, 1)}, "time zone"),
        ({"every": 0}, "more than 0"),
        ({"every": -1.0}, "more than 0"),
    ],
)
async def test_a_time_that_makes_no_sense_is_refused(times: dict[str, Any], says: str) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.VolatileAgent(0))
        with pytest.raises(ValueError, match=says):
            await ref.remind("r", dgents.Save(1), **times)


async def test_a_message_that_is_refused_for_good_is_a_dead_letter() -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.VolatileAgent({}))
        events = rt.events()
        await ref.remind("r", dgents.Patch({"no.such.part": 1}), at=soon())
        with anyio.fail_after(10):
            async for event in events:
                if event.kind == "dead_letter":
                    assert isinstance(event.details["error"], dgents.StateNotFoundError)
                    break


async def test_reminders_are_no_actors_that_a_user_sees(tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.SQLAgent(str(tmp_path / "a.db")))
        await ref.remind("r", dgents.Save(1), every=1000)
        assert rt.names() == ["a"]
        assert list(rt.stats()) == ["a"]


CHILD = """
import anyio, sys
import dgents
from tests.test_reminders import add

async def main():
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.SQLAgent(sys.argv[1]))
        await ref.save(await ref.load(default=0))
        await ref.remind("tick", dgents.Update(add), every=0.002)
        print("ready", flush=True)
        async for seen in ref.watch():
            print(seen.state, flush=True)

anyio.run(main)
"""


def _killed_after_7_more(database: str, told: int) -> int:
    """Run a process until its reminder was delivered seven times, kill it, and return the last state that it told."""
    with subprocess.Popen([sys.executable, "-c", CHILD, database], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        end = told + 7
        for line in child.stdout:
            told = int(line) if line.strip().isdigit() else told
            if told >= end:
                os.kill(child.pid, signal.SIGKILL)
    return told


async def test_reminders_outlive_a_killed_process_and_none_counts_twice(tmp_path: Path) -> None:
    database = str(tmp_path / "a.db")
    told = 0
    for _ in range(3):
        told = await anyio.to_thread.run_sync(_killed_after_7_more, database, told)
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.SQLAgent(database))
        first = await ref.load()
        assert first >= told
        assert (await ref.snapshot()).version >= first  # each version added one, at most
        assert await until(ref, lambda state: state > first + 2) > first


async def test_another_runtime_with_the_actor_delivers_what_the_one_that_set_it_can_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgents.runtime.reminders._LOOK_AGAIN", 0.05)
    shared = dgents.SQLAgent(str(tmp_path / "a.db"), ownership="shared")
    async with dgents.Runtime() as other:
        here = await other.spawn("a", shared)
        await here.save(0)
        await here.remind("mine", dgents.Save(1), every=1000)  # so that it knows the ledger
        async with dgents.Runtime() as rt:
            await (await rt.spawn("a", shared)).remind("theirs", dgents.Save(2), at=soon(0.2))
        with anyio.fail_after(10):
            while await here.load() != 2:  # noqa: ASYNC110 (the store does not tell)
                await anyio.sleep(0.01)


async def test_what_another_runtime_forgot_is_not_delivered(tmp_path: Path) -> None:
    shared = dgents.SQLAgent(str(tmp_path / "a.db"), ownership="shared")
    async with dgents.Runtime() as rt, dgents.Runtime() as other:
        here, there = await rt.spawn("a", shared), await other.spawn("a", shared)
        await here.save(0)
        await here.remind("r", dgents.Save(1), at=soon(0.2))
        await there.forget("r")
        await anyio.sleep(0.3)
        assert await here.load() == 0


async def test_an_actor_that_stopped_while_its_reminders_were_read_stays_stopped_and_is_reminded_later(
    anyio_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, door, events = dgents.SQLAgent(str(tmp_path / "s.db")), Door(), []
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", agent)
        await ref.save(1)
        await ref.remind("later", dgents.Save(2), at=soon(3600))
    monkeypatch.setattr("dgents.runtime.alarms.time", SimpleNamespace(time=lambda: time.time() + 7200))
    async with dgents.Runtime(on_event=events.append) as rt, calls() as run:
        reading, rt.reminders._open = rt.reminders._open, lambda cell: door.before(lambda: reading(cell))()
        door.shut()
        spawning = run(rt.spawn, "a", agent)
        await door.reached()
        await rt.stop("a")
        door.open()
        await spawning.result()
        await anyio.wait_all_tasks_blocked()
    assert [event.kind for event in events if event.actor == "a"] == ["spawned", "stopped"]
    async with dgents.Runtime() as rt:
        assert await until(await rt.spawn("a", agent), lambda state: state == 2) == 2
