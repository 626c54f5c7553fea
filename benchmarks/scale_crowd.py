"""What a crowd of actors costs: ``python -m dgents.benchmarks.scale_crowd KIND COUNT``, in a process of its own.

Small crowds are measured many times over, and added up. All actors are volatile, and hold an int: what is counted is
what the runtime needs for them, and not their states.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter
from typing import Any

import dgents
from dgents.benchmarks.idle import resident_bytes
from dgents.benchmarks.measure import Sample
from dgents.benchmarks.scale_place import answer

RESIDENT, ADDRESSABLE = "idle actor", "addressable actor, one in ten in memory"
SPAWN, ACTIVATION, IN_PLACE = "spawn", "activation of a virtual actor", "activation that passivates another"
LOAD_SOME, LOAD_ANY = "load, from the same hundred of them", "load, from any of them"
CLOSE = "closing the runtime, each actor"
TIMED = (SPAWN, ACTIVATION, IN_PLACE, LOAD_SOME, LOAD_ANY, CLOSE)
CURVES = {RESIDENT: "bytes", ADDRESSABLE: "bytes", **dict.fromkeys(TIMED, "µs")}
ENOUGH = 1_000  # actors altogether, at least
LOADS = 10_000
SOME = 100  # actors, which stay in the caches of the processor
MANY = 100  # the runtime's own share is small among so many
WEIGHABLE = 1_000  # the memory of fewer actors drowns in the grain of what the system gives out
ACTIVE_SHARE = 10
_NO_HURRY = 3_600.0  # seconds to close; a million actors take more than the default


async def spawned(count: int) -> Sample:
    """Spawn ``count`` actors, have each one count to one, and load from some of them at random."""
    repeats = max(1, ENOUGH // count)
    loads = max(LOADS // repeats // SOME, 1) * SOME
    agent: dgents.VolatileAgent[int] = dgents.VolatileAgent(0)
    total: Counter[str] = Counter()
    seconds: dict[str, float] = dict.fromkeys((SPAWN, LOAD_SOME, LOAD_ANY, CLOSE), 0.0)
    for _ in range(repeats):
        async with dgents.Runtime(shutdown_timeout=_NO_HURRY) as runtime:
            await runtime.spawn("first", agent)
            tasks, before = len(asyncio.all_tasks()), resident_bytes()
            started = perf_counter()
            for number in range(count):
                await runtime.spawn(f"user/{number}", agent)
            seconds[SPAWN] += perf_counter() - started
            if count >= WEIGHABLE:
                gc.collect()
                total["bytes"] += resident_bytes() - before
            total["tasks"] += len(asyncio.all_tasks()) - tasks
            total["answers"] += await _answers(runtime.get(f"user/{number}") for number in range(count))
            any_of_them = [runtime.get(f"user/{random.randrange(count)}") for _ in range(loads)]
            for curve, refs in ((LOAD_ANY, any_of_them), (LOAD_SOME, any_of_them[:SOME] * (loads // SOME))):
                started = perf_counter()
                total["unlike"] += loads - await _loading(refs)
                seconds[curve] += perf_counter() - started
            closing = perf_counter()
        seconds[CLOSE] += perf_counter() - closing
    everyone = repeats * count
    details = {name: seconds[name] / (repeats * loads) * 1e6 for name in (LOAD_SOME, LOAD_ANY)}
    details[SPAWN] = seconds[SPAWN] / everyone * 1e6
    if count >= MANY:
        details[CLOSE] = seconds[CLOSE] / everyone * 1e6
    if count >= WEIGHABLE:
        details[RESIDENT] = total["bytes"] / everyone
    return _sample(everyone, seconds[SPAWN], total, details)


async def virtual(count: int) -> Sample:
    """Activate ``count`` virtual actors, have each one count to one, then activate others in the place of some."""
    repeats = max(1, ENOUGH // count)
    total: Counter[str] = Counter()
    activation = in_place = 0.0
    others = min(max(count, ENOUGH), 100_000) // repeats
    for _ in range(repeats):
        async with dgents.Runtime(shutdown_timeout=_NO_HURRY) as runtime:
            agent: dgents.VolatileAgent[int] = dgents.VolatileAgent(0)
            runtime.register("user", lambda key, agent=agent: agent, max_active=count + 1)  # type: ignore[misc]
            await runtime.ref("user/first").load()
            tasks = len(asyncio.all_tasks())
            activation += await _touching(runtime, range(count))
            total["answers"] += await _answers(runtime.ref(f"user/{number}") for number in range(count))
            in_place += await _touching(runtime, range(count, count + others))
            total["tasks"] += len(asyncio.all_tasks()) - tasks
            total["crowded"] += len(runtime.names()) > count + 1
    everyone = repeats * count
    details = {ACTIVATION: activation / everyone * 1e6, IN_PLACE: in_place / (repeats * others) * 1e6}
    return _sample(everyone, activation, total, details)


async def addressable(count: int) -> Sample:
    """Use ``count`` virtual actors once each, where a tenth of them may be in memory."""
    active = max(1, count // ACTIVE_SHARE)
    total: Counter[str] = Counter()
    agent: dgents.VolatileAgent[int] = dgents.VolatileAgent(0)
    async with dgents.Runtime(shutdown_timeout=_NO_HURRY) as runtime:
        runtime.register("user", lambda key: agent, max_active=active)
        await runtime.ref("user/first").load()
        tasks, before = len(asyncio.all_tasks()), resident_bytes()
        started = perf_counter()
        total["answers"] = await _answers(runtime.ref(f"user/{number}") for number in range(count))
        seconds = perf_counter() - started
        gc.collect()
        details = {ADDRESSABLE: (resident_bytes() - before) / count} if count >= WEIGHABLE else {}
        total["tasks"] = len(asyncio.all_tasks()) - tasks
        total["crowded"] += len(runtime.names()) > active
    return _sample(count, seconds, total, details)


async def _loading(refs: Iterable[Any]) -> int:
    """Load from each of these, and return the sum."""
    loaded = 0
    for ref in refs:
        loaded += await ref.load()
    return loaded


async def _touching(runtime: dgents.Runtime, numbers: Iterable[int]) -> float:
    started = perf_counter()
    for number in numbers:
        await runtime.ref(f"user/{number}").load()
    return perf_counter() - started


async def _answers(refs: Iterable[Any]) -> int:
    """Have each actor count to one, and return how many did."""
    answers = 0
    for ref in refs:
        answers += await ref.update(_next) == 1
    return answers


def _next(visits: int) -> int:
    return visits + 1


def _sample(everyone: int, seconds: float, total: Counter[str], details: dict[str, float]) -> Sample:
    """Return the sample of a crowd: all answered, loads gave what they should, no task, no more than the cap."""
    expected = {"answers": everyone, "unlike": 0, "tasks": 0, "crowded": 0}
    found = {name: total[name] for name in expected}
    return Sample(operations=everyone, seconds=seconds, expected=expected, found=found, details=details)


KINDS: dict[str, Callable[[int], Awaitable[Sample]]] = {
    "spawned": spawned,
    "virtual": virtual,
    "addressable": addressable,
}

if __name__ == "__main__":
    answer(lambda: KINDS[sys.argv[1]](int(sys.argv[2])))
