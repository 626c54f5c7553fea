"""What is to be done later: in order, some at a time, and not at all if it was cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

import dgents
from dgents.runtime.loops import running_loop
from dgents.runtime.timetable import Timetable
from tests.fake_store import FakeAgent, FakeStore

pytestmark = pytest.mark.anyio


async def test_what_is_due_first_is_done_first_and_nothing_before_its_time(anyio_backend: str) -> None:
    loop, done = running_loop(), []
    timetable, started = Timetable(loop), loop.time()
    for delay in (0.03, 0.01, 0.02, 0.01):
        timetable.call_later(delay, lambda delay=delay: done.append((delay, loop.time() - started)))
    assert done == []
    await _until(lambda: len(done) == 4)
    assert [delay for delay, _ in done] == [0.01, 0.01, 0.02, 0.03]
    assert all(at >= delay for delay, at in done)
    timetable.call_later(0.0, lambda: done.append((0.0, 0.0)))
    assert len(done) == 4, "never before call_later returns"
    await _until(lambda: len(done) == 5)


async def test_one_that_is_due_earlier_does_not_wait_for_the_one_before(anyio_backend: str) -> None:
    timetable, done = Timetable(running_loop()), []
    timetable.call_later(3600, lambda: done.append("late"))
    timetable.call_later(0.001, lambda: done.append("soon"))
    await _until(lambda: done == ["soon"])
    timetable.close()


async def test_a_thousand_that_are_due_at_once_let_others_have_their_turn(anyio_backend: str) -> None:
    timetable, done, seen = Timetable(running_loop()), [], []
    for number in range(1_000):
        timetable.call_later(0.0, lambda number=number: done.append(number))
    while len(done) < 1_000:
        seen.append(len(done))
        await anyio.lowlevel.checkpoint()
    assert done == sorted(done)
    assert len(set(seen)) >= 4, seen


async def test_a_cancelled_one_is_not_done_and_not_kept(anyio_backend: str) -> None:
    timetable, done = Timetable(running_loop()), []
    for round in range(10_000):
        timetable.call_later(3600, lambda: done.append("cancelled")).cancel()
        assert len(timetable._heap) < 1_000, round
    kept = timetable.call_later(0.001, lambda: done.append("kept"))
    await _until(lambda: done)
    kept.cancel()  # too late, and no harm
    assert done == ["kept"]
    timetable.close()


def test_one_that_fails_does_not_stop_the_others() -> None:
    errors: list[Any] = []

    async def program() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
        timetable, done = Timetable(running_loop()), []
        timetable.call_later(0.0, lambda: 1 / 0)
        timetable.call_later(0.0, lambda: done.append("after"))
        await _until(lambda: done == ["after"])

    asyncio.run(program())
    assert [type(error) for error in errors] == [ZeroDivisionError]


async def test_actors_that_wait_for_their_flush_are_no_tasks(anyio_backend_name: str, anyio_backend: str) -> None:
    store = FakeStore()
    async with dgents.Runtime() as rt:
        flush = dgents.Flush(max_delay=3600)
        agent = dgents.CachedAgent(dgents.VolatileAgent(), FakeAgent(store), policy="write-behind", flush=flush)
        refs = [await rt.spawn(f"a{number}", agent) for number in range(200)]
        before = _tasks(anyio_backend_name)
        for ref in refs:
            await ref.save(1)
        await anyio.wait_all_tasks_blocked()
        assert sum(stats.at_risk for stats in rt.stats().values()) == 200
        assert _tasks(anyio_backend_name) - before <= 1  # under trio, the timer is one
    assert all(store.versions(f"a{number}") == [1] for number in range(200))


def _tasks(library: str) -> int:
    if library == "trio":
        import trio

        return int(trio.lowlevel.current_statistics().tasks_living)
    return len(asyncio.all_tasks())


async def _until(holds: Any) -> None:
    with anyio.fail_after(5):
        while not holds():  # noqa: ASYNC110 (a timer tells nobody)
            await anyio.sleep(0.001)
