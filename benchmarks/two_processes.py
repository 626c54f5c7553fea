"""Two processes that increment one state at the same time, each with tasks of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
import anyio.to_process

import dgents
from dgents.benchmarks.loops import run_tasks
from dgents.benchmarks.measure import Sample
from dgents.benchmarks.ours import Dgent, MakeAgent
from dgents.benchmarks.states import profile
from dgents.benchmarks.tally import Tally

PROCESSES = 2
_WAIT = 0.01  # seconds, between two looks whether the other process is there


def two_processes_round(agent: MakeAgent, tasks: int, each: int) -> Callable[[Path], Awaitable[Sample]]:
    """Return a round of ``tasks`` tasks, half of them in each process, each of which increments ``each`` times."""

    async def round(directory: Path) -> Sample:
        (directory / "meeting").mkdir()
        begin = Dgent("dgents", agent)
        await begin.setup(directory, profile())
        await begin.close()
        total, seconds = Tally(), [0.0] * PROCESSES

        async def run(number: int) -> None:
            call = partial(_in_process, agent(directory), directory, number, tasks // PROCESSES, each)
            mine, seconds[number] = await anyio.to_process.run_sync(call, cancellable=True)
            total.add(mine)

        await run_tasks(run, PROCESSES)
        end = Dgent("dgents", agent)
        await end.setup(directory)
        try:
            final = (await end.load())["visits"]
        finally:
            await end.close()
        return total.sample(tasks // PROCESSES * PROCESSES * each, final, max(seconds))

    return round


def _in_process(agent: Any, directory: Path, number: int, tasks: int, each: int) -> tuple[Tally, float]:
    return anyio.run(_count, agent, directory, number, tasks, each)


async def _count(agent: Any, directory: Path, number: int, tasks: int, each: int) -> tuple[Tally, float]:
    tally = Tally()
    await _meet(directory / "meeting", number)
    dgent = Dgent("dgents", lambda _: agent, awaits=True)
    started = perf_counter()
    try:
        await dgent.setup(directory)
    except dgents.StateLockedError:  # there is one owner, and it is the other process
        tally.refused = tasks * each
        await _meet(directory / "meeting", PROCESSES + number)
        return tally, perf_counter() - started
    try:
        await run_tasks(lambda task: tally.count(dgent.increment, each), tasks)
        seconds = perf_counter() - started
        await _meet(directory / "meeting", PROCESSES + number)  # an owner stays until the other one has tried
    finally:
        await dgent.close()
    return tally, seconds


async def _meet(meeting: Path, number: int) -> None:
    """Return when both processes have come to the same point: to numbers 0 and 1, or to 2 and 3."""
    (meeting / str(number)).touch()
    other = meeting / str(number ^ 1)
    with anyio.fail_after(60):
        while not other.exists():  # noqa: ASYNC110 - another process can't set an Event of ours
            await anyio.sleep(_WAIT)
