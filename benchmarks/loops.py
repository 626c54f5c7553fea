"""The event loops' own tasks and yields: a portable layer would cost more than what is measured."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any

HAS_TRIO = find_spec("trio") is not None  # an optional dependency: without it, its rows are left out


async def run_tasks(worker: Callable[[int], Any], count: int) -> None:
    """Run ``worker(0)`` to ``worker(count - 1)`` in a task each, and return when all have ended.

    Raises:
        Exception: the first one that a worker raised; it ends the others.
    """
    try:
        await _run_tasks(worker, count)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def _run_tasks(worker: Callable[[int], Any], count: int) -> None:
    if on_trio():
        import trio  # an optional dependency, and loaded already: it is what runs us

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(worker, number)
    else:
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(worker(number))


def yielding() -> Callable[[], Awaitable[None]]:
    """Return the running loop's cheapest way of letting the other tasks run once."""
    if on_trio():
        import trio

        return trio.lowlevel.checkpoint
    return _yield_asyncio


def on_trio() -> bool:
    """Whether trio runs the caller."""
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_run())


async def _yield_asyncio() -> None:
    await asyncio.sleep(0)
