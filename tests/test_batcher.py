"""Group commit of whatever arrives at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import anyio
import pytest

from dgents.backends.batcher import Batcher

pytestmark = pytest.mark.anyio


class Slow:
    """Answers a batch only when told to, with ten times each item."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = anyio.Event()
        self.go = anyio.Event()

    async def __call__(self, items: list[int]) -> Sequence[int | Exception]:
        self.batches.append(items)
        self.started.set()
        await self.go.wait()
        return [ValueError(item) if item < 0 else 10 * item for item in items]


async def gather(submit: Callable[[int], Awaitable[int]], items: Sequence[int]) -> dict[int, int]:
    answers: dict[int, int] = {}

    async def one(item: int) -> None:
        answers[item] = await submit(item)

    async with anyio.create_task_group() as tasks:
        for item in items:
            tasks.start_soon(one, item)
    return answers


async def test_what_arrives_while_a_batch_runs_is_the_next_batch():
    slow = Slow()
    batcher = Batcher(slow)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(batcher.submit, 1)
        await slow.started.wait()
        for item in (2, 3, 4):
            tasks.start_soon(batcher.submit, item)
        await anyio.wait_all_tasks_blocked()
        slow.go.set()
    assert [sorted(batch) for batch in slow.batches] == [[1], [2, 3, 4]]


async def test_each_caller_gets_the_answer_to_its_own_item():
    slow = Slow()
    slow.go.set()
    assert await gather(Batcher(slow, limit=7).submit, range(50)) == {item: 10 * item for item in range(50)}
    assert max(map(len, slow.batches)) == 7


async def test_an_answer_that_is_an_error_reaches_its_own_caller_only():
    slow = Slow()
    slow.go.set()
    batcher = Batcher(slow)

    async def submit(item: int) -> int:
        if item >= 0:
            return await batcher.submit(item)
        with pytest.raises(ValueError, match=str(item)):
            await batcher.submit(item)
        return 0

    assert await gather(submit, [1, -2, 3]) == {1: 10, -2: 0, 3: 30}


async def test_a_batch_that_fails_fails_for_each_of_its_callers_and_the_next_one_runs():
    failures = [OSError("gone")]

    async def run(items: list[int]) -> list[int]:
        if failures:
            raise failures.pop()
        return items

    batcher = Batcher(run)
    with pytest.raises(OSError, match="gone"):
        await batcher.submit(1)
    assert await batcher.submit(2) == 2


async def test_a_caller_that_is_cancelled_stays_until_its_batch_is_done():
    slow = Slow()
    batcher = Batcher(slow)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(batcher.submit, 1)
        await slow.started.wait()
        tasks.cancel_scope.cancel()
        slow.go.set()
    assert slow.batches == [[1]]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_asyncios_own_cancellation_of_one_caller_strands_nobody(anyio_backend, victim):
    slow = Slow()
    batcher = Batcher(slow)
    first = asyncio.ensure_future(batcher.submit(1))
    await slow.started.wait()
    others = [asyncio.ensure_future(batcher.submit(item)) for item in (2, 3)]
    await anyio.wait_all_tasks_blocked()
    tasks = [first, *others]
    tasks[victim].cancel()
    slow.go.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results.pop(victim), asyncio.CancelledError)
    assert [result in (10, 20, 30) for result in results] == [True, True]
    assert await batcher.submit(5) == 50


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_leader_that_is_cancelled_before_its_batch_began_strands_nobody(anyio_backend):
    slow = Slow()
    slow.go.set()
    batcher = Batcher(slow)
    leader = asyncio.ensure_future(batcher.submit(1))
    await asyncio.sleep(0)
    leader.cancel()
    assert await batcher.submit(2) == 20
    with pytest.raises(asyncio.CancelledError):
        await leader
    assert await batcher.submit(3) == 30
