"""Every caller is answered: whoever else has left, whatever the store or a function of the user's raises."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from inspect import isawaitable
from pathlib import Path
from typing import Any

import anyio
import pytest

import dgents
from tests.bench import Bench, open_bench
from tests.calls import calls
from tests.fake_store import FakeAgent, FakeStore, fails_before
from tests.held import Door, HeldAgent

pytestmark = pytest.mark.anyio

NO_PAUSE = dgents.Backoff(0, 0)


@pytest.fixture
async def bench(anyio_backend: str) -> AsyncIterator[Bench]:
    async with open_bench() as bench:
        yield bench


# When somebody has left


@pytest.mark.parametrize("ownership", ["exclusive", "shared"])
async def test_a_save_in_doubt_is_answered_although_another_caller_left_during_the_restart(
    bench: Bench, ownership: Any
) -> None:
    opening = Door()
    a = await bench.rt.spawn("a", HeldAgent(FakeAgent(bench.store, ownership), opening=opening))
    opening.shut()
    bench.store.hold()
    bench.store.faults.append(fails_before)
    bench.store.open_faults = 100
    save = await bench.run.blocked(a.save, 1)
    leaves = await bench.run.blocked(a.history)  # its turn waits for the save, and is to be run again
    stays = await bench.run.blocked(a.load)
    bench.store.let_go()
    await opening.reached()
    leaves.cancel()
    await anyio.wait_all_tasks_blocked()
    opening.open()
    with pytest.raises(dgents.StorageError) as failed:
        await save.result()
    assert failed.value.outcome == "unknown"
    with pytest.raises(dgents.ActorStoppedError):
        await stays.result()


async def test_a_caller_that_left_before_its_turn_in_a_batch_leaves_no_trace(bench: Bench) -> None:
    a = await bench.rt.spawn("a", FakeAgent(bench.store, "shared"))
    await a.save([])
    begun, go_on = anyio.Event(), anyio.Event()

    async def slow(items: list[int]) -> list[int]:
        begun.set()
        await go_on.wait()
        return [*items, 1]

    bench.store.hold()
    first = await bench.run.blocked(a.save, [0])  # what comes while it is being stored is the next batch
    update, leaves, stays = [
        await bench.run.blocked(a.update, fn) for fn in (slow, lambda n: [*n, 2], lambda n: [*n, 3])
    ]
    bench.store.let_go()
    await begun.wait()
    leaves.cancel()
    await anyio.wait_all_tasks_blocked()
    go_on.set()
    assert (await first.result(), await update.result(), await stays.result()) == (2, [0, 1], [0, 1, 3])


# When the runtime waits no longer


@pytest.mark.parametrize("ownership", ["exclusive", "shared"])
async def test_turns_that_do_not_end_are_answered_when_the_runtime_waits_no_longer(
    anyio_backend: str, ownership: Any
) -> None:
    medium, begun, ever = FakeStore(), anyio.Event(), anyio.Event()

    async def endless(state: Any) -> Any:
        begun.set()
        await ever.wait()
        return state

    async with calls() as run:
        rt = dgents.Runtime(shutdown_timeout=0.05)
        await rt.__aenter__()
        a = await rt.spawn("a", FakeAgent(medium, ownership))
        await a.save(1)
        waiting = [await run.blocked(a.update, fn) for fn in (endless, lambda n: n + 1, endless)]
        await begun.wait()
        with pytest.raises(dgents.StorageError, match="did not stop"):
            await rt.__aexit__(None, None, None)
        for call in waiting:
            with pytest.raises(dgents.DgentError):
                await call.result()
        ever.set()
        await anyio.wait_all_tasks_blocked()
    assert medium.versions("a") == [1], "what was answered with an error is not stored afterwards"


async def test_a_write_that_is_asked_about_when_the_runtime_waits_no_longer_is_answered(anyio_backend: str) -> None:
    medium, asked = FakeStore(), anyio.Event()

    class Unsure(FakeAgent):
        def backend(self, name: str, resources: Any) -> Any:
            backend = super().backend(name, resources)

            async def committed(write: Any) -> None:
                asked.set()
                await anyio.sleep_forever()

            backend.committed = committed  # type: ignore[method-assign]
            return backend

    async def one(_: int) -> int:
        return 1

    async with calls() as run:
        rt = dgents.Runtime(shutdown_timeout=0.05)
        await rt.__aenter__()
        a = await rt.spawn("a", Unsure(medium, "shared"))
        medium.faults.append(fails_before)
        update = run(lambda: a.update(one, default=0))
        await asked.wait()
        with pytest.raises(dgents.StorageError, match="did not stop"):
            await rt.__aexit__(None, None, None)
        with pytest.raises(dgents.StorageError) as failed:
            await update.result()
        assert failed.value.outcome == "unknown"


# When a function raises what is no ordinary exception


class Hostile(dgents.StateError):
    """An error that can't be copied."""

    def __init__(self) -> None:
        """Say nothing."""

    def __reduce__(self) -> Any:
        raise ZeroDivisionError

    __copy__ = __reduce__


RAISED = [
    GeneratorExit,
    StopIteration,
    StopAsyncIteration,
    KeyboardInterrupt,
    SystemExit,
    BaseException,
    asyncio.CancelledError,
    Hostile,
    lambda: BaseExceptionGroup("two", [KeyboardInterrupt(), GeneratorExit()]),
]


def raising(error: BaseException) -> Callable[..., Any]:
    def fn(*_: Any) -> Any:
        raise error

    return fn


def raising_async(error: BaseException) -> Callable[..., Any]:
    async def fn(*_: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        raise error

    return fn


async def in_transaction(ref: Any, fn: Callable[..., Any]) -> None:
    async with ref.transaction() as tx:
        new = fn(tx.state)
        tx.state = await new if isawaitable(new) else new


USES: dict[str, Callable[[Any, Callable[..., Any]], Any]] = {
    "update": lambda ref, fn: ref.update(fn),
    "ask": lambda ref, fn: ref.ask(dgents.Update(fn)),
    "once": lambda ref, fn: ref.update(fn, request_id="1"),
    "lens": lambda ref, fn: ref.at("n").update(fn),
    "symbiont": lambda ref, fn: dgents.Symbiont(fn, ref)("input"),
    "transaction": in_transaction,
}


async def check_raises(call: Callable[[], Any], error: BaseException) -> None:
    """Check that a call raises ``error``; what Python lets no coroutine raise becomes a RuntimeError."""
    try:
        await call()
    except BaseException as raised:
        assert raised is error or (isinstance(raised, RuntimeError) and raised.__cause__ is error)  # noqa: PT017
    else:
        pytest.fail("nothing was raised")


@pytest.mark.parametrize("make_error", RAISED, ids=lambda make: make.__name__.strip("<>"))
@pytest.mark.parametrize("make_fn", [raising, raising_async])
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("agent", ["volatile", "exclusive", "shared"])
async def test_whatever_a_function_raises_reaches_its_caller_and_nobody_else(
    bench: Bench, agent: Any, use: str, make_fn: Any, make_error: Any
) -> None:
    a = await bench.rt.spawn("a", dgents.VolatileAgent() if agent == "volatile" else FakeAgent(bench.store, agent))
    await a.save({"n": 1})
    error = make_error()

    async def check() -> None:
        await check_raises(lambda: USES[use](a, make_fn(error)), error)

    await check()
    begun, go_on = anyio.Event(), anyio.Event()

    async def slow(state: Any) -> Any:
        begun.set()
        await go_on.wait()
        return state

    before = bench.run(lambda: a.update(slow))
    await begun.wait()
    queued = await bench.run.blocked(check)
    after = await bench.run.blocked(a.load)
    go_on.set()
    assert [await call.result() for call in (before, queued, after)] == [{"n": 1}, None, {"n": 1}]


async def test_a_fold_that_raises_what_is_no_exception_leaves_the_state_as_it_was(bench: Bench) -> None:
    def fold(items: list[int], event: int) -> list[int]:
        items.append(event)
        if event == 2:
            raise GeneratorExit
        return items

    stream = await bench.rt.spawn("s", dgents.StreamAgent(fold, []))
    await stream.append(1)
    with pytest.raises(GeneratorExit):
        await stream.append(2)
    assert await stream.load() == [1]
    await stream.append(3)
    assert await stream.load() == [1, 3]


def test_a_turn_whose_loop_is_gone_ends_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loop = asyncio.new_event_loop()

    async def begin() -> Any:
        rt = dgents.Runtime()
        await rt.__aenter__()
        a = await rt.spawn("a", dgents.VolatileAgent(0))
        begun = asyncio.Event()

        async def endless(n: int) -> int:
            begun.set()
            await asyncio.Event().wait()
            return n

        task = asyncio.ensure_future(a.update(endless))
        await begun.wait()
        return rt, task

    rt, task = loop.run_until_complete(begin())
    loop.close()
    task._log_destroy_pending = False
    del rt, task, loop
    gc.collect()
    assert "ignored GeneratorExit" not in capfd.readouterr().err
