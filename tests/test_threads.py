"""Other threads and processes: what is refused, and the ways in."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

import dgents


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

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, RuntimeError, StopAsyncIteration])
    @pytest.mark.parametrize("in_turn", [False, True])
    async def test_what_a_call_raises_reaches_its_thread_alone(
        self, anyio_backend: str, error: type[BaseException], in_turn: bool
    ) -> None:
        async with dgents.Runtime() as rt:
            ref = await rt.spawn("a", dgents.VolatileAgent(0))

            def fail(*_: Any) -> Any:
                raise error

            async def fail_later(*_: Any) -> Any:
                await anyio.lowlevel.checkpoint()
                raise error

            def work() -> None:
                for fn in (fail, fail_later):
                    with pytest.raises(error):
                        rt.portal.call(ref.update, fn) if in_turn else rt.portal.call(fn)

            await anyio.to_thread.run_sync(work)
            assert await ref.update(lambda n: n + 1) == 1

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_a_call_that_is_cancelled_in_the_event_loop_is_an_ordinary_error(self, anyio_backend: str) -> None:
        async def cancelled() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await anyio.sleep_forever()

        async with dgents.Runtime() as rt:
            with pytest.raises(concurrent.futures.CancelledError):
                await anyio.to_thread.run_sync(rt.portal.call, cancelled)


class TestEndedThreads:
    """The id of a thread that has ended is soon that of another."""

    @staticmethod
    def in_a_thread_of_id(wanted: int, fn: Any) -> Any:
        """Return what ``fn`` returns or raises in a new thread that has the id of an old one."""
        result: list[Any] = []

        def run() -> None:
            if threading.get_ident() == wanted:
                try:
                    result.append(fn())
                except BaseException as error:
                    result.append(error)

        for _ in range(50):
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
            if result:
                return result[0]
        raise AssertionError("this system does not use thread ids again")

    @pytest.mark.parametrize("use", ["load", "portal", "spawn"])
    def test_a_thread_with_the_id_of_a_closed_runtimes_is_told_that_it_is_closed(self, use: str) -> None:
        with dgents.open_sync() as rt:
            ref = rt.spawn("a", dgents.VolatileAgent(0))
            runtime, thread = ref._cell.runtime, ref._cell.thread
        uses = {
            "load": ref.load,
            "portal": lambda: runtime.portal.call(lambda: None),
            "spawn": lambda: anyio.run(runtime.spawn, "b", dgents.VolatileAgent(0)),
        }
        error = self.in_a_thread_of_id(thread, uses[use])
        assert isinstance(error, dgents.ActorStoppedError)
        assert "closed" in str(error)

    def test_a_thread_with_the_id_of_one_that_left_its_runtime_open_runs_no_turn(self) -> None:
        opened: list[Any] = []

        def leave_open() -> None:
            loop = asyncio.new_event_loop()
            rt = dgents.Runtime()
            loop.run_until_complete(rt.__aenter__())
            ref = loop.run_until_complete(rt.spawn("a", dgents.VolatileAgent(0)))
            opened.extend([rt, ref, threading.get_ident()])
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

        thread = threading.Thread(target=leave_open)
        thread.start()
        thread.join()
        rt, ref, ident = opened

        async def use() -> None:
            for call in (ref.load(), ref.save(1), ref.update(lambda n: n + 1)):
                with pytest.raises(dgents.ActorStoppedError, match="ended"):
                    await call

        assert self.in_a_thread_of_id(ident, lambda: asyncio.run(use())) is None
        with pytest.raises(dgents.ActorStoppedError, match="ended"):
            rt.portal.call(ref.load)
        assert ref._cell.version == 0


@pytest.mark.anyio
async def test_a_forked_child_can_not_use_its_parents_runtime(anyio_backend: str, tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.SQLAgent(str(tmp_path / "s.db")))
        await ref.save("parent")
        child = os.fork()
        if child == 0:
            os._exit(_use_parents(ref))
        _, status = await anyio.to_thread.run_sync(os.waitpid, child, 0)
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

        def fail() -> None:
            with ref.transaction() as tx:
                tx.state = []
                raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            fail()
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

        def fail() -> None:
            with dgents.open_sync() as rt:
                rt.spawn("a", dgents.VolatileAgent(0))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert threading.active_count() <= before + 1

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_an_interrupt_in_one_call_leaves_the_runtime_and_the_others_alone(
        self, rt: Any, error: type[BaseException]
    ) -> None:
        ref = rt.spawn("a", dgents.VolatileAgent(0))
        other = threading.Thread(target=lambda: [ref.update(lambda n: n + 1) for _ in range(100)])

        def fail(_: int) -> int:
            raise error

        async def fail_later(_: int) -> int:
            await anyio.lowlevel.checkpoint()
            raise error

        other.start()
        for fn in (fail, fail_later) * 10:
            with pytest.raises(error):
                ref.update(fn)
        with pytest.raises(error), ref.transaction():
            raise error
        other.join()
        assert ref.load() == 100

    def test_a_call_that_outlives_the_runtime_is_answered(self) -> None:
        answers: list[BaseException] = []
        waiting = threading.Event()

        async def waits() -> None:
            waiting.set()
            await anyio.sleep_forever()

        def call(portal: Any) -> None:
            try:
                portal.call(waits)
            except BaseException as error:
                answers.append(error)

        with dgents.open_sync() as rt:
            thread = threading.Thread(target=call, args=(rt._target.portal,))
            thread.start()
            waiting.wait(5)
        thread.join(5)
        assert [type(answer) for answer in answers] == [dgents.ActorStoppedError]

    def test_after_the_end_everything_is_refused(self) -> None:
        with dgents.open_sync() as rt:
            ref = rt.spawn("a", dgents.VolatileAgent(0))
        with pytest.raises(dgents.ActorStoppedError):
            ref.load()
