"""The runtime: actors and their names, events, figures, the tree, threads, forks, and the end."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import dgents
from dgents.runtime.events import Event
from tests.calls import calls
from tests.fake_store import FakeAgent, FakeStore, fails_before

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
                    try:
                        await call.result()
                    except dgents.ActorStoppedError:
                        pass

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


# Supervisors


@pytest.mark.anyio
class TestSupervisors:
    async def test_stopping_a_supervisor_stops_its_children_newest_first(self, anyio_backend: str) -> None:
        events: list[Event] = []
        async with dgents.Runtime(on_event=events.append) as rt:
            group = await rt.supervisor("group")
            inner = await group.supervisor("inner")
            for name, parent in (("a", inner), ("b", group), ("c", group)):
                await parent.spawn(name, dgents.VolatileAgent(0))
            await group.stop()
            assert [event.actor for event in events if event.kind == "stopped"] == ["c", "b", "a"]
            assert (rt.names(), rt.children()) == ([], [])

    async def test_a_name_is_unique_among_actors_and_supervisors(self, anyio_backend: str) -> None:
        async with dgents.Runtime() as rt:
            await rt.supervisor("x")
            with pytest.raises(dgents.NameTakenError):
                await rt.spawn("x", dgents.VolatileAgent(0))
            with pytest.raises(dgents.NameTakenError):
                await rt.supervisor("x")
            assert rt.children() == ["x"]

    async def test_a_child_can_be_stopped_by_its_supervisor_only(self, anyio_backend: str) -> None:
        async with dgents.Runtime() as rt:
            group = await rt.supervisor("group")
            await rt.spawn("elsewhere", dgents.VolatileAgent(0))
            child = await group.spawn("child", dgents.VolatileAgent(0))
            with pytest.raises(KeyError):
                await group.stop("elsewhere")
            await group.stop(child)
            assert rt.names() == ["elsewhere"]

    @pytest.mark.parametrize(
        "options", [{"strategy": "one_for_two"}, {"max_restarts": -1}, {"within": 0}, {"strategy": None}]
    )
    async def test_what_can_not_be_right_is_refused(self, anyio_backend: str, options: Any) -> None:
        async with dgents.Runtime() as rt:
            with pytest.raises(ValueError, match=r"."):
                await rt.supervisor("x", **options)
            for bad in ({"restart": "sometimes"}, {"while_restarting": "panic"}):
                with pytest.raises(ValueError, match=r"."):
                    await rt.spawn("a", dgents.VolatileAgent(0), **bad)
            assert rt.children() == []

    async def test_what_always_crashes_below_a_supervisor_is_given_up_in_the_end(self, anyio_backend: str) -> None:
        store, events = FakeStore(), []
        async with dgents.Runtime(on_event=events.append) as rt:
            group = await rt.supervisor("group", max_restarts=2, backoff=dgents.Backoff(0, 0))
            a = await group.spawn("a", FakeAgent(store))
            store.faults.append(fails_before)
            store.open_faults = 10**9
            with anyio.fail_after(5), pytest.raises(dgents.StorageError):
                await a.save(1)
        assert len(store.opened) < 20

    async def test_a_storm_of_crashes_is_survived(self, anyio_backend: str) -> None:
        stores = [FakeStore() for _ in range(200)]
        async with dgents.Runtime() as rt, calls() as run:
            refs = [await rt.spawn(f"a{n}", FakeAgent(store)) for n, store in enumerate(stores)]
            for store in stores:
                store.faults.append(fails_before)
            saves = [run(ref.save, 1) for ref in refs]
            assert [await save.result() for save in saves] == [1] * 200


# The end


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
        with pytest.raises(ZeroDivisionError):
            async with dgents.Runtime() as rt:
                (await rt.spawn("a", agent)).tell(dgents.Save("told"))
                raise ZeroDivisionError
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

    @pytest.mark.parametrize("options", [{"mailbox_size": 0}, {"overflow": "drop"}, {"shutdown_timeout": -1}])
    def test_what_can_not_be_right_is_refused(self, options: Any) -> None:
        with pytest.raises(ValueError, match=next(iter(options))):
            dgents.Runtime(**options)


# Threads, processes


@pytest.mark.anyio
class TestThreads:
    @pytest.mark.parametrize(
        "misuse",
        [
            lambda ref: ref.load,
            lambda ref: lambda: ref.save(2),
            lambda ref: lambda: ref.update(lambda n: n),
            lambda ref: lambda: ref.patch({}),
            lambda ref: ref.delete,
            lambda ref: ref.history,
            lambda ref: ref.snapshot,
            lambda ref: ref.transaction().__aenter__,
            lambda ref: ref.for_update().load,
            lambda ref: lambda: ref.for_update().save(1),
            lambda ref: ref.at("x").load,
            lambda ref: lambda: ref.at("x").save(1),
            lambda ref: lambda: ref.ask(dgents.Load()),
            lambda ref: lambda: ref.ask(dgents.Save(1)),
        ],
    )
    @pytest.mark.parametrize("foreign", ["asyncio", "trio"])
    async def test_a_ref_used_in_another_thread_names_the_portal(
        self, anyio_backend: str, misuse: Any, foreign: str
    ) -> None:
        async with dgents.Runtime() as rt:
            ref = await rt.spawn("a", dgents.VolatileAgent(0))

            async def use() -> None:
                await misuse(ref)()

            with pytest.raises(dgents.ActorStoppedError, match=r"rt\.portal"):
                await anyio.to_thread.run_sync(lambda: anyio.run(use, backend=foreign))
            assert await ref.load() == 0

    async def test_telling_and_watching_from_another_thread_name_the_portal(self, anyio_backend: str) -> None:
        async with dgents.Runtime() as rt:
            ref = await rt.spawn("a", dgents.VolatileAgent(0))
            for misuse in (lambda: ref.tell(dgents.Save(1)), ref.watch, rt.events):
                with pytest.raises(dgents.ActorStoppedError, match=r"rt\.portal"):
                    await anyio.to_thread.run_sync(misuse)

    async def test_the_portal_is_the_way_in_from_a_thread(self, anyio_backend: str) -> None:
        async with dgents.Runtime() as rt:
            ref = await rt.spawn("a", dgents.VolatileAgent(0))

            def work() -> tuple[int, int, int]:
                loaded = rt.portal.call(ref.load)
                for _ in range(20):
                    rt.portal.call(ref.update, lambda n: n + 1)
                return loaded, rt.portal.call(ref.save, 5), rt.portal.call(ref.load)

            assert await anyio.to_thread.run_sync(work) == (0, 21, 5)
            with pytest.raises(RuntimeError, match="await"):
                rt.portal.call(ref.load)

    async def test_a_thread_that_saves_over_what_it_has_not_seen_is_refused(self, anyio_backend: str) -> None:
        async with dgents.Runtime() as rt:
            ref = await rt.spawn("a", dgents.VolatileAgent(0))

            def work() -> None:
                rt.portal.call(ref.load)
                thread = threading.Thread(target=rt.portal.call, args=(ref.update, lambda n: n + 1))
                thread.start()
                thread.join()
                with pytest.raises(dgents.StaleStateError):
                    rt.portal.call(ref.save, 5)
                with pytest.raises(dgents.StateNotFoundError):
                    rt.portal.call(ref.at("x").load)

            await anyio.to_thread.run_sync(work)

    async def test_many_threads_lose_no_update(self, anyio_backend: str) -> None:
        async with dgents.Runtime() as rt:
            ref = await rt.spawn("a", dgents.VolatileAgent(0))

            def work() -> None:
                for _ in range(20):
                    rt.portal.call(ref.update, lambda n: n + 1)

            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(anyio.to_thread.run_sync, work)
            assert await ref.load() == 100

    async def test_a_closed_portal_says_so(self, anyio_backend: str) -> None:
        async with dgents.Runtime() as rt:
            ref = await rt.spawn("a", dgents.VolatileAgent(0))
        with pytest.raises(dgents.ActorStoppedError):
            await anyio.to_thread.run_sync(lambda: rt.portal.call(ref.load))


@pytest.mark.anyio
async def test_a_forked_child_can_not_use_its_parents_runtime(anyio_backend: str, tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.SQLAgent(str(tmp_path / "s.db")))
        await ref.save("parent")
        child = os.fork()
        if child == 0:
            os._exit(_use_parents(ref))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert await ref.load() == "parent"


def _use_parents(ref: dgents.Ref[Any]) -> int:
    signal.alarm(10)
    for call in (ref.load, lambda: ref.save("child"), lambda: ref.update(str)):
        steps = call().__await__()
        try:
            next(steps)
        except dgents.ActorStoppedError as error:
            if "forked" not in str(error):
                return 2
        except BaseException:
            return 3
        else:
            return 1
    return 0


@pytest.mark.anyio
class TestPickledRefs:
    async def test_a_ref_is_pickled_by_name(self, anyio_backend: str) -> None:
        async with dgents.Runtime() as rt, dgents.Runtime() as other:
            ref = await rt.spawn("a", dgents.VolatileAgent(0))
            await other.spawn("a", dgents.VolatileAgent(1))
            twin = pickle.loads(pickle.dumps(ref))
            assert twin == ref
            assert twin != other.get("a")
            assert await twin.load() == 0

    async def test_a_ref_out_of_reach_of_its_runtime_is_refused(self, anyio_backend: str) -> None:
        async with dgents.Runtime() as rt:
            data = pickle.dumps(await rt.spawn("a", dgents.VolatileAgent(0)))
        with pytest.raises(dgents.ActorStoppedError, match="'a'"):
            pickle.loads(data)


# Synchronous programs


class TestOpenSync:
    @pytest.fixture
    def rt(self) -> Iterator[Any]:
        with dgents.open_sync() as rt:
            yield rt

    def test_refs_have_the_same_methods_without_await(self, rt: Any) -> None:
        ref = rt.spawn("a", dgents.VolatileAgent({"n": 0}))
        assert ref.load() == {"n": 0}
        assert ref.update(lambda state: {"n": state["n"] + 1}) == {"n": 1}
        assert ref.save({"n": 5}) == 2
        assert ref.at("n").load() == 5
        assert ref.history(1) == [{"n": 5}]
        assert rt.get("a").snapshot().version == 2
        ref.tell(dgents.Save({"n": 6}))
        assert ref.load() == {"n": 6}
        assert rt.names() == ["a"]
        assert "a [VolatileAgent]" in rt.tree()

    def test_a_transaction_is_a_plain_with_block(self, rt: Any) -> None:
        ref = rt.spawn("a", dgents.VolatileAgent([1]))
        with ref.transaction() as tx:
            tx.state = [*tx.state, 2]
        with pytest.raises(ValueError, match="mine"), ref.transaction() as tx:
            tx.state = []
            raise ValueError("mine")
        assert ref.load() == [1, 2]

    def test_watch_is_a_plain_loop(self, rt: Any) -> None:
        ref = rt.spawn("a", dgents.VolatileAgent(0))
        for snapshot in ref.watch():
            if snapshot.state == 3:
                break
            ref.update(lambda n: n + 1)
        assert snapshot.version == 3

    def test_a_view_for_update_and_staleness_work_as_ever(self, rt: Any) -> None:
        ref = rt.spawn("a", dgents.VolatileAgent(0))
        view = ref.for_update()
        assert view.save(view.load() + 1) == 1
        ref.load()
        thread = threading.Thread(target=ref.update, args=(lambda n: n + 1,))
        thread.start()
        thread.join()
        with pytest.raises(dgents.StaleStateError):
            ref.save(9)

    def test_errors_and_supervisors_pass_through(self, rt: Any) -> None:
        group = rt.supervisor("group")
        ref = group.spawn("a", dgents.VolatileAgent())
        with pytest.raises(dgents.StateNotFoundError):
            ref.load()
        with pytest.raises(dgents.NameTakenError):
            rt.spawn("a", dgents.VolatileAgent())

    def test_what_the_block_raises_passes_and_the_thread_ends(self) -> None:
        before = threading.active_count()
        with pytest.raises(ZeroDivisionError), dgents.open_sync() as rt:
            rt.spawn("a", dgents.VolatileAgent(0))
            raise ZeroDivisionError
        assert threading.active_count() <= before + 1

    def test_after_the_end_everything_is_refused(self) -> None:
        with dgents.open_sync() as rt:
            ref = rt.spawn("a", dgents.VolatileAgent(0))
        with pytest.raises(dgents.ActorStoppedError):
            ref.load()


def test_a_runtime_needs_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match="open_sync"):
        dgents.Runtime().__aenter__().send(None)
