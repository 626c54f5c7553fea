"""Reminders and the wall clock: it may be set while they wait, and what was replaced or forgotten leaves memory."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

import dgents
from dgents.runtime.ledger import Entries, OpenLedger, Reminder
from dgents.runtime.saved_message import save_message
from tests.calls import calls
from tests.held import Door
from tests.test_reminders import add, soon, until
from tests.virtual_time import run

START = 1_800_000_000.0  # seconds since 1970


class WallClock:
    """Goes with the event loop's clock, unless it is set."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def time(self) -> float:
        return START + anyio.current_time() + self.ahead

    def after(self, seconds: float) -> datetime:
        return datetime.fromtimestamp(self.time() + seconds, UTC)


@pytest.fixture(params=["asyncio", "trio"])
def in_virtual_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what runs ``program(runtime, its ref on a state 0, the wall clock)`` on either loop, in no time."""

    def run_it(program: Callable[[dgents.Runtime, dgents.Ref[int], WallClock], Awaitable[None]]) -> None:
        clock = WallClock()
        monkeypatch.setattr("dgents.runtime.alarms.time", clock)

        async def main() -> None:
            async with dgents.Runtime() as rt:
                await program(rt, await rt.spawn("a", dgents.VolatileAgent(0)), clock)

        run(request.param, main)

    return run_it


def test_a_clock_that_jumps_ahead_is_noticed_within_seconds(in_virtual_time: Any) -> None:
    async def program(rt: dgents.Runtime, ref: dgents.Ref[int], clock: WallClock) -> None:
        await ref.remind("later", dgents.Save(1), at=clock.after(3600))
        await anyio.sleep(60)
        assert await ref.load() == 0
        clock.ahead += 3600
        await anyio.sleep(6)
        assert await ref.load() == 1

    in_virtual_time(program)


def test_what_repeats_is_delivered_once_for_all_that_a_jump_left_out_and_then_goes_on(in_virtual_time: Any) -> None:
    async def program(rt: dgents.Runtime, ref: dgents.Ref[int], clock: WallClock) -> None:
        await ref.remind("tick", dgents.Update(add), every=100)
        await anyio.sleep(250)
        assert await ref.load() == 2
        clock.ahead += 86_400
        await anyio.sleep(6)
        assert await ref.load() == 3
        await anyio.sleep(1000)
        assert await ref.load() == 13

    in_virtual_time(program)


def test_a_clock_that_is_set_back_stops_nothing_that_repeats_and_brings_nothing_early(in_virtual_time: Any) -> None:
    async def program(rt: dgents.Runtime, ref: dgents.Ref[int], clock: WallClock) -> None:
        await ref.remind("tick", dgents.Update(add), every=100)
        await ref.remind("dated", dgents.Update(add, (1000,)), at=clock.after(150))
        await ref.remind("dated tick", dgents.Update(add, (1_000_000,)), at=clock.after(200), every=50)
        await anyio.sleep(99)
        clock.ahead -= 3600
        await anyio.sleep(401)
        assert await ref.load() in (3, 4)  # at the latest 100 s after the change was noticed
        await anyio.sleep(3400)
        assert await ref.load() % 1_000_000 // 1000 == 1
        assert await ref.load() > 1_000_000

    in_virtual_time(program)


def test_the_clock_is_not_looked_at_while_nothing_is_due(in_virtual_time: Any) -> None:
    async def program(rt: dgents.Runtime, ref: dgents.Ref[int], clock: WallClock) -> None:
        await ref.remind("r", dgents.Save(1), at=clock.after(1000))
        await ref.forget("r")
        await anyio.sleep(20)
        looks: list[float] = []
        look, clock.time = clock.time, lambda: looks.append(0.0) or START  # type: ignore[method-assign, func-returns-value]
        await anyio.sleep(10_000)
        clock.time = look  # type: ignore[method-assign]
        assert looks == []

    in_virtual_time(program)


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["replaced", "forgotten", "distinct"])
async def test_what_was_replaced_or_forgotten_leaves_memory_at_once(anyio_backend: str, how: str) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.VolatileAgent(0))
        alarms = rt.reminders._alarms
        for n in range(5000):
            name = "r" if how == "replaced" else f"r{n}"
            await ref.remind(name, dgents.Save(n), at=soon(3600 + n))
            if how == "forgotten":
                await ref.forget(name)
        living = {"replaced": 1, "forgotten": 0, "distinct": 5000}[how]
        assert len(alarms) == living
        assert len(alarms._heap) <= 2 * living + 65
        for n in range(5000):
            await ref.forget(f"r{n}")
        await ref.forget("r")
        assert len(alarms) == 0
        assert len(alarms._heap) <= 65


@pytest.mark.anyio
async def test_a_runtime_that_has_ended_keeps_no_alarm(anyio_backend: str, tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        for name, agent in {"a": dgents.VolatileAgent(0), "b": dgents.SQLAgent(str(tmp_path / "b.db"))}.items():
            ref: dgents.Ref[Any] = await rt.spawn(name, agent)
            await ref.remind("r", dgents.Save(1), at=soon(3600))
            await ref.remind("tick", dgents.Save(1), every=0.01)
    assert len(rt.reminders._alarms) == 0
    assert rt.reminders._alarms._heap == []


@pytest.mark.anyio
async def test_a_reminder_whose_actor_can_not_be_made_now_is_delivered_later(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgents.runtime.reminders._LAST_RETRY", 0.05)
    broken: list[bool] = []
    warned: list[str] = []

    def make(key: str) -> dgents.VolatileAgent[int]:
        if broken:
            broken.pop()
            raise ValueError("not now")
        return dgents.VolatileAgent(0)

    async with dgents.Runtime(on_event=lambda event: warned.append(event.kind)) as rt:
        rt.register("v", make)
        await rt.ref("v/1").remind("r", dgents.Save(1), at=soon(0.05))
        gc.collect()  # the actor was never in memory: it is made anew
        broken.append(True)
        with anyio.fail_after(5):
            async for event in rt.events():
                if event.kind == "activated":
                    break
        assert not broken
        assert "warning" in warned


@pytest.mark.anyio
async def test_an_actor_of_another_kind_under_the_same_name_stops_no_reminder_of_others(
    anyio_backend: str, tmp_path: Path
) -> None:
    async with dgents.Runtime() as rt:
        ref, other = await rt.spawn("a", dgents.VolatileAgent(0)), await rt.spawn("b", dgents.VolatileAgent(0))
        await ref.remind("r", dgents.Save(1), at=soon(0.05))
        await other.remind("r", dgents.Save(1), at=soon(0.1))
        await rt.stop("a")
        await rt.spawn("a", dgents.VectorAgent(3))
        assert await until(other, lambda state: state == 1) == 1


@pytest.mark.anyio
async def test_what_another_process_has_set_a_moment_ago_can_be_forgotten(anyio_backend: str, tmp_path: Path) -> None:
    shared = dgents.SQLAgent(str(tmp_path / "a.db"), ownership="shared")
    async with dgents.Runtime() as rt, dgents.Runtime() as other:
        here, there = await rt.spawn("a", shared), await other.spawn("a", shared)
        await there.save(0)
        await there.forget("nothing")  # so that the ledger is known
        await here.remind("r", dgents.Save(1), at=soon(0.2))
        await there.forget("r")
        await anyio.sleep(0.3)
        assert await there.load() == 0


@pytest.mark.anyio
async def test_a_reminder_whose_setter_left_while_it_was_stored_is_delivered(
    anyio_backend: str, tmp_path: Path
) -> None:
    door = Door()
    async with dgents.Runtime() as rt, calls() as run:
        ref = await rt.spawn("a", dgents.SQLAgent(str(tmp_path / "a.db")))
        await ref.save(0)
        await ref.forget("nothing")  # so that the ledger is there
        (ledger,) = rt.reminders._ledgers.values()
        assert ledger.ref is not None
        store: Any = ledger.ref._cell.backend.store
        commit = store.commit
        store.commit = lambda writes: door.before(lambda: commit(writes))()
        door.shut()
        setting = run(partial(ref.remind, "r", dgents.Update(add), at=soon(0.1)))
        await door.reached()
        setting.cancel()
        await anyio.wait_all_tasks_blocked()
        door.open()
        assert await until(ref, lambda total: total == 1) == 1


@pytest.mark.anyio
async def test_a_ledger_that_could_not_be_read_at_first_is_opened_by_the_next(
    anyio_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(ledger: OpenLedger, _: Any) -> Any:
        monkeypatch.undo()
        raise dgents.StorageError("injected")

    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.PersistentAgent(tmp_path / "a.json"))
        await ref.save(0)
        monkeypatch.setattr(OpenLedger, "read", fails)
        with pytest.raises(dgents.StorageError, match="injected"):
            await ref.remind("r", dgents.Update(add), at=soon(0.1))
        await ref.remind("r", dgents.Update(add), at=soon(0.1))
        assert await until(ref, lambda total: total == 1) == 1


@pytest.mark.anyio
async def test_replies_of_a_ledger_that_come_in_another_order_lose_nothing(anyio_backend: str) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.VolatileAgent(0))
        message = save_message(ref._cell, dgents.Save(1))
        older: Entries = {"a": {"one": Reminder("1", 1.0, None, message)}}
        newer: Entries = {"a": {**older["a"], "two": Reminder("2", 2.0, None, message)}}
        ledger = OpenLedger()
        assert [change.name for change in ledger._take(newer, 2, 0)] == ["one", "two"] or ledger.get("a", "two")
        assert ledger._take(older, 1, 0) == []
        assert ledger.entries == newer
        assert [change.name for change in ledger._take(older, 1, 1)] == ["two"]  # asked since: the store went back
