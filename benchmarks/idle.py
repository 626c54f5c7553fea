"""What an actor costs that does nothing: ``python -m dgents.benchmarks.idle COUNT``, in a process of its own.

A process that has done other work before has memory to spare, and its figure would be too good.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

import dgents


class Idle(msgspec.Struct, frozen=True):
    """What was found. ``answers`` and ``tasks`` are the proof: each actor answered, none is a task."""

    bytes_each: float
    spawn_us: float
    activation_us: float
    answers: int
    tasks: int


async def idle(count: int) -> Idle:
    """Spawn ``count`` volatile actors, then activate as many virtual ones, and ask each of them once."""
    async with dgents.Runtime() as runtime:
        agent: dgents.VolatileAgent[int] = dgents.VolatileAgent(0)
        runtime.register("virtual/", lambda key: agent)
        await runtime.spawn("first", agent)
        await runtime.ref("virtual/first").load()
        tasks, before = len(asyncio.all_tasks()), resident_bytes()
        started = perf_counter()
        for number in range(count):
            await runtime.spawn(f"user/{number}", agent)
        spawned = perf_counter()
        gc.collect()
        bytes_each = (resident_bytes() - before) / count
        resumed = perf_counter()
        for number in range(count):
            await runtime.ref(f"virtual/{number}").load()
        activated = perf_counter()
        idle_tasks = len(asyncio.all_tasks()) - tasks
        refs: list[Any] = [runtime.get(f"user/{number}") for number in range(count)]
        answers = sum([await ref.update(lambda visits: visits + 1) for ref in refs])
    return Idle(
        bytes_each=bytes_each,
        spawn_us=(spawned - started) / count * 1e6,
        activation_us=(activated - resumed) / count * 1e6,
        answers=answers,
        tasks=idle_tasks,
    )


def resident_bytes() -> int:
    """Return how much memory this process has in use now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # only Linux has it; elsewhere the peak is the next best, and grows only with need
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(idle(int(sys.argv[1])))))
