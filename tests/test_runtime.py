"""The runtime: actors and their names, events, figures, the tree, threads, forks, and the end."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import dgents
from dgents.runtime.events import Event
from tests.calls import calls
from tests.fake_store import FakeAgent, FakeStore, fails_before
from tests.held import Door, HeldAgent

# Actors


@pytest.mark.anyio
class TestActors:
    async def test_an_actor_is_found_by_its_name(self, anyio_backend: str) -> None:
        async with dgents.Runtime() as rt:
            ref = await rt.spawn("a", dgents.VolatileAgent(0))
            await rt.spawn("b", dgents.VolatileAgent(0))
            assert rt.names() == ["a", "b"]
            assert rt.get("a") == ref
            assert len({ref, rt.get("a"), rt.get("b")}) == 2
            assert repr(ref) == "<Ref 'a'>"
            with pytest.raises(KeyError):
                rt.get("c")

    @pytest.mark.parametrize("name", ["", None, 5])
    async def test_a_name_is_text_that_is_not_empty(self, anyio_backend: str, name: Any) -> None:
        async with dgents.Runtime() as rt:
            with pytest.raises(ValueError, match="name"):
                await rt.spawn(name, dgents.VolatileAgent(0))

    async def test_a_spawn_that_fails_leaves_the_name_free_and_the_tree_empty(self, anyio_backend: str) -> None:
        store = FakeStore()
        store.open_faults = 1
        async with dgents.Runtime() as rt:
            with pytest.raises(dgents.StorageError):
                await rt.spawn("a", FakeAgent(store))
            assert (rt.names(), rt.children()) == ([], [])
            await rt.spawn("a", FakeAgent(store))

    async def test_of_two_spawns_of_one_name_at_once_one_succeeds(self, anyio_backend: str) -> None:
        store = FakeStore()
        async with dgents.Runtime() as rt, calls() as run:
            store.hold_openings()
            first = await run.blocked(rt.spawn, "a", FakeAgent(store))
            with pytest.raises(dgents.NameTakenError):
                await rt.spawn("a", FakeAgent(store))
            store.let_openings_go()
            assert (await first.result()).name == "a"

    @pytest.mark.parametrize("kind", ["sqlite", "file"])
    async def test_a_state_that_can_not_be_read_is_let_go_of(
        self, anyio_backend: str, tmp_path: Path, kind: str
    ) -> None:
        def make(schema: Any) -> Any:
            path = str(tmp_path / kind)
            return dgents.SQLAgent(path, schema=schema) if kind == "sqlite" else dgents.PersistentAgent(path, schema)

        async with dgents.Runtime() as rt:
            await (await rt.spawn("a", make(None))).save({"y": 1})
            await rt.stop("a")
            with pytest.raises(dgents.StateSerializationError):
                await rt.spawn("a", make(int))
            assert await (await rt.spawn("a", make(None))).load() == {"y": 1}

    async def test_stopping_answers_what_was_queued_and_refuses_what_comes(self, anyio_backend: str) -> None:
        async with dgents.Runtime() as rt, calls() as run:
            ref = await rt.spawn("a", dgents.VolatileAgent(0))
            async with ref.transaction():
                queued = await run.blocked(ref.update, lambda n: n + 1)
                stopping = await run.blocked(rt.stop, "a")
                with pytest.raises(dgents.ActorStoppedError):
                    await run(ref.load).result()
                assert not stopping.done
            assert await queued.result() == 1
            await stopping.result()
            with pytest.raises(KeyError):
                await rt.stop("a")

    async def test_a_message_races_with_stop_and_is_answered(self, anyio_backend: str) -> None:
        async with dgents.Runtime() as rt, calls() as run:
            for _ in range(20):
                ref = await rt.spawn("a", dgents.VolatileAgent(0))
                racing = [run(ref.update, lambda n: n + 1) for _ in range(5)]
                racing += [run(lambda ref=ref: ref.ask(dgents.Load())) for _ in range(5)]
                await rt.stop("a")
                for call in racing:
                    with contextlib.suppress(dgents.ActorStoppedError):
                        await call.result()

    async def test_asks_that_time_out_do_not_pile_up_in_the_mailbox(self, anyio_backend: str) -> None:
        async with dgents.Runtime(mailbox_size=10) as rt, calls() as run:
            ref = await rt.spawn("a", dgents.VolatileAgent(0))

            async def impatient() -> None:
                for _ in range(500):
                    with pytest.raises(dgents.AskTimeoutError):
                        await ref.ask(dgents.Load(), timeout=0)

            async with ref.transaction():
                await run(impatient).result()
                assert rt.stats()["a"].mailbox <= 10

    async def test_no_way_of_writing_gets_round_a_budget(self, anyio_backend: str) -> None:
        agent = dgents.EntropyConstrainedAgent(dgents.VolatileAgent({"x": ""}), 0.5, 200)
        async with dgents.Runtime() as rt:
            ref = await rt.spawn("a", agent)
            large = {"x": "y" * 500}
            for write in (
                lambda: ref.save(large),
                lambda: ref.update(lambda _: large),
                lambda: ref.patch(large),
                lambda: ref.at("x").save(large["x"]),
                lambda: ref.ask(dgents.Patch(large)),
            ):
                with pytest.raises(dgents.StateTooLargeError):
                    await write()
            assert await ref.patch({"y": 1}) == 1
            assert await ref.load() == {"x": "", "y": 1}

    async def test_a_tight_loop_of_loads_lets_others_run(self, anyio_backend: str) -> None:
        async with dgents.Runtime() as rt:
            ref = await rt.spawn("a", dgents.VolatileAgent(0))
            ran: list[int] = []

            async def other() -> None:
                ran.append(1)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other)
                loads = 0
                while not ran:
                    await ref.load()
                    loads += 1
                    assert loads < 1000
                assert loads <= 2 * 128


# What can be seen


@pytest.mark.anyio
class TestLookingIn:
    async def test_events_tell_of_a_life(self, anyio_backend: str) -> None:
        store = FakeStore()
        async with dgents.Runtime() as rt:
            events = rt.events()
            a = await rt.spawn("a", FakeAgent(store))
            store.faults.append(fails_before)
            await a.save(1)
            await rt.stop("a")
            kinds = [(await anext(events)).kind for _ in range(4)]
        assert kinds == ["spawned", "crashed", "restarted", "stopped"]
        assert [event async for event in events] == []

    async def test_an_event_handler_that_fails_harms_nobody(self, anyio_backend: str) -> None:
        def fail(event: Event) -> None:
            raise ValueError(event.kind)

        async with dgents.Runtime(on_event=fail) as rt:
            assert await (await rt.spawn("a", dgents.VolatileAgent(0))).save(1) == 1

    async def test_stats_show_each_actor(self, anyio_backend: str) -> None:
        store = FakeStore()
        async with dgents.Runtime() as rt, calls() as run:
            a = await rt.spawn("a", FakeAgent(store))
            await a.save("x")
            stats = rt.stats()["a"]
            assert (stats.phase, stats.version, stats.turns, stats.mailbox, stats.restarts) == ("running", 1, 1, 0, 0)
            assert stats.bytes == 2
            assert stats.commit_p50 is not None
            assert stats.commit_p99 is not None
            async with a.transaction():
                await run.blocked(a.load)
                assert (rt.stats()["a"].busy, rt.stats()["a"].mailbox) == (True, 1)

    async def test_the_tree_shows_supervisors_and_actors(self, anyio_backend: str) -> None:
        async with dgents.Runtime() as rt:
            group = await rt.supervisor("group", strategy="one_for_all")
            inner = await group.supervisor("inner")
            await inner.spawn("x", dgents.VolatileAgent(0))
            await rt.spawn("y", dgents.VolatileAgent(0))
            assert (rt.children(), group.children(), inner.children()) == (["group", "y"], ["inner"], ["x"])
            lines = rt.tree().splitlines()
            assert [line.strip("│├└─ ").split(" ")[0] for line in lines] == ["runtime", "group", "inner", "x", "y"]
            assert "one_for_all" in lines[1]


# The end


def durable(kind: str, folder: Path) -> Any:
    """Return a description of one durable actor."""
    if kind == "sqlite":
        return dgents.SQLAgent(str(folder / "s.db"))
    if kind == "stream":
        return dgents.StreamAgent(max, 0, event_log=folder / "log")
    file = dgents.PersistentAgent(folder / "f.json")
    flush = dgents.Flush(journal=folder / "journal")
    return (
        file if kind == "file" else dgents.CachedAgent(dgents.VolatileAgent(), file, policy="write-behind", flush=flush)
    )


def open_files(folder: Path) -> list[str]:
    """Return which files in a folder this process has open."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return [path for path in found if path.startswith(str(folder))]


class Stuck:
    """A turn that is still running when its runtime can wait no longer."""

    def __init__(self) -> None:
        self._go_on = anyio.Event()

    async def turn(self, _: Any) -> int:
        await self._go_on.wait()
        return 2

    async def miss_the_deadline(self, agent: Any) -> None:
        async with dgents.Runtime(shutdown_timeout=0.05) as rt:
            ref = await rt.spawn("a", agent)
            await ref.save(1)
            ref.tell(dgents.Update(self.turn))

    async def go_on(self) -> None:
        """Let the turn end, and wait for what comes of it."""
        self._go_on.set()
        for _ in range(5):
            await anyio.wait_all_tasks_blocked()
            await anyio.sleep(0.02)  # a store works in threads


async def can_be_opened(agent: Any, *, holds: Any = 0) -> None:
    """Open the store of an agent in a new runtime: nobody has kept its lock."""
    async with dgents.Runtime() as rt:
        assert await (await rt.spawn("a", agent)).load(default=0) == holds


@pytest.mark.anyio
class TestTheEnd:
    async def test_leaving_lets_what_is_queued_and_running_finish(self, anyio_backend: str) -> None:
        async def slow(number: int) -> int:
            await anyio.sleep(0.01)
            done.append(number)
            return number + 1

        done: list[int] = []
        async with dgents.Runtime() as rt:
            a = await rt.spawn("a", dgents.VolatileAgent(0))
            for _ in range(3):
                a.tell(dgents.Update(slow))
        assert done == [0, 1, 2]

    async def test_a_turn_in_progress_may_still_ask_others_while_the_runtime_closes(self, anyio_backend: str) -> None:
        store = FakeStore()
        async with dgents.Runtime() as rt:
            a, b = await rt.spawn("a", FakeAgent(store)), await rt.spawn("b", FakeAgent(store))

            async def ask_b(_: Any) -> Any:
                await anyio.sleep(0.01)
                return await b.update(lambda n: n + 1, default=0)

            a.tell(dgents.Update(ask_b, default=0))
        assert (store.versions("a"), store.versions("b")) == ([1], [1])

    async def test_a_closed_runtime_refuses_everything(self, anyio_backend: str) -> None:
        async with dgents.Runtime() as rt:
            ref = await rt.spawn("a", dgents.VolatileAgent(0))
        for call in (ref.load, lambda: ref.save(1), lambda: rt.spawn("b", dgents.VolatileAgent(0)), ref.history):
            with pytest.raises(dgents.ActorStoppedError):
                await call()
        with pytest.raises(dgents.ActorStoppedError):
            ref.tell(dgents.Save(1))
        with pytest.raises(RuntimeError):
            await rt.__aenter__()

    async def test_an_error_in_the_block_passes_and_what_was_saved_is_there(
        self, anyio_backend: str, tmp_path: Path
    ) -> None:
        agent = dgents.SQLAgent(str(tmp_path / "s.db"))

        async def fail() -> None:
            async with dgents.Runtime() as rt:
                (await rt.spawn("a", agent)).tell(dgents.Save("told"))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        async with dgents.Runtime() as rt:
            assert await (await rt.spawn("a", agent)).load() == "told"

    async def test_a_cancelled_block_still_flushes(self, anyio_backend: str, tmp_path: Path) -> None:
        agent = dgents.SQLAgent(str(tmp_path / "s.db"))
        with anyio.CancelScope() as scope:
            async with dgents.Runtime() as rt:
                (await rt.spawn("a", agent)).tell(dgents.Save("told"))
                scope.cancel()
                await anyio.sleep_forever()
        async with dgents.Runtime() as rt:
            assert await (await rt.spawn("a", agent)).load() == "told"

    @pytest.mark.parametrize("kind", ["file", "sqlite", "stream"])
    async def test_an_actor_that_is_being_spawned_when_its_runtime_closes_is_refused_and_nothing_stays_locked(
        self, anyio_backend: str, kind: str, tmp_path: Path
    ) -> None:
        opening, runtime, agent = Door(), dgents.Runtime(), durable(kind, tmp_path)
        opening.shut()
        async with calls() as run:
            rt = await runtime.__aenter__()
            spawning = run(rt.spawn, "a", HeldAgent(agent, opening=opening))
            await opening.reached()
            leaving = await run.blocked(rt.__aexit__, None, None, None)
            assert not leaving.done, "it waits for the one who is on its way in"
            opening.open()
            with pytest.raises(dgents.ActorStoppedError, match="closed"):
                await spawning.result()
            await leaving.result()
        await can_be_opened(agent)

    async def test_whenever_a_runtime_closes_a_spawning_ends_in_an_error_or_in_an_actor_that_is_closed(
        self, anyio_backend: str, tmp_path: Path
    ) -> None:
        agent, outcomes, head_start = dgents.PersistentAgent(tmp_path / "f.json"), [], 0
        while "closed" not in outcomes:
            async with calls() as run:
                async with dgents.Runtime() as rt:
                    spawning = run(rt.spawn, "a", agent)
                    for _ in range(head_start):
                        await anyio.lowlevel.checkpoint()
                try:
                    await spawning.result()
                    outcomes.append("closed")
                except dgents.ActorStoppedError:
                    outcomes.append("refused")
            await can_be_opened(agent)
            head_start = 2 * head_start + 1
        assert outcomes[0] == "refused"

    @pytest.mark.parametrize("kind", ["file", "sqlite", "behind"])
    async def test_after_a_missed_deadline_another_runtime_can_open_the_same_store(
        self, anyio_backend: str, kind: str, tmp_path: Path
    ) -> None:
        agent, stuck = durable(kind, tmp_path), Stuck()
        with pytest.raises(dgents.StorageError, match="'a'"):
            await stuck.miss_the_deadline(agent)
        await can_be_opened(agent, holds=1)
        await stuck.go_on()

    @pytest.mark.parametrize("kind", ["file", "sqlite", "behind"])
    async def test_a_turn_that_ends_after_the_deadline_writes_nothing_more_and_opens_nothing(
        self, anyio_backend: str, kind: str, tmp_path: Path
    ) -> None:
        agent, stuck = durable(kind, tmp_path), Stuck()
        with pytest.raises(dgents.StorageError, match="'a'"):
            await stuck.miss_the_deadline(agent)
        opened = open_files(tmp_path)
        await stuck.go_on()
        assert open_files(tmp_path) == opened == []
        await can_be_opened(agent, holds=1)

    @pytest.mark.parametrize("options", [{"mailbox_size": 0}, {"overflow": "drop"}, {"shutdown_timeout": -1}])
    def test_what_can_not_be_right_is_refused(self, options: Any) -> None:
        with pytest.raises(ValueError, match=next(iter(options))):
            dgents.Runtime(**options)


def test_a_runtime_needs_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match="open_sync"):
        dgents.Runtime().__aenter__().send(None)


@pytest.mark.anyio
@pytest.mark.parametrize("look", ["load", "update", "history", "snapshot", "save"])
async def test_a_save_is_stale_whatever_showed_the_state(anyio_backend: str, look: str) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.VolatileAgent({"n": 0}))
        calls = {"update": (lambda state: state,), "save": ({"n": 1},)}
        await getattr(ref, look)(*calls.get(look, ()))

        async def another() -> None:
            await ref.update(lambda state: {"n": state["n"] + 1})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(another)
        with pytest.raises(dgents.StaleStateError):
            await ref.save({"n": 100})
