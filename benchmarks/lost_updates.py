"""The suite ``lost-updates``: many tasks increment one state, with an await between reading and writing.

Every increment ends in one of three ways: it is in the final count; it was refused, so that its caller knows;
or it is lost, and nobody knows. Only the last one is a fault.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import dgents
from dgents.benchmarks.bench import Bench
from dgents.benchmarks.loops import run_tasks, yielding
from dgents.benchmarks.measure import Contender, Sample, percentile
from dgents.benchmarks.ours import Dgent, MakeAgent, behind, cached, file, on_server, sqlite, volatile
from dgents.benchmarks.ours_special import Stream
from dgents.benchmarks.peers import Operation, Peer
from dgents.benchmarks.peers.lock import Lock
from dgents.benchmarks.peers.unlocked import Unlocked
from dgents.benchmarks.rounds import MakePeer
from dgents.benchmarks.servers import postgres_server, redis_server, started
from dgents.benchmarks.states import profile
from dgents.benchmarks.tally import Tally
from dgents.benchmarks.two_processes import two_processes_round

NAME = "lost-updates"
TITLE = "Lost updates: 1,000 tasks increment one number, and await something between reading and writing"

TASKS = 1_000
EACH = 105
EACH_OF_PROCESSES = 21
EACH_QUICK = 3
ROUNDS = 3


@dataclass(frozen=True)
class Pattern:
    """One way of incrementing.

    Attributes:
        safe: whether nothing may be lost.
        naive: load, await, save.
        lasts: whether the state is there when everything was closed and is opened again.
    """

    name: str
    make: MakePeer
    safe: bool = True
    naive: bool = False
    lasts: bool = False


def patterns(redis: str = "", postgres: str = "") -> list[Pattern]:
    """Return the peers, and every agent with both patterns; those of the servers that there are."""
    found = [
        Pattern("no lock", Unlocked, safe=False),
        Pattern("asyncio.Lock + deepcopy", lambda: Lock(copies=True, awaits=True)),
    ]
    agents = {
        "volatile": volatile(),
        "file json": file("json"),
        "file msgpack": file("msgpack"),
        "SQLite": sqlite(),
        "write-through": cached(),
        "write-behind": behind(journal=False),
        "PostgreSQL": on_server(dgents.SQLAgent, postgres),
        "Redis": on_server(dgents.RedisAgent, redis),
    }
    for name, agent in agents.items():
        if agent is None:
            continue
        make = partial(Dgent, name, agent, awaits=True)
        lasts = name != "volatile"
        found.append(Pattern(f"{name}: load, save", make, naive=True, lasts=lasts))
        found.append(Pattern(f"{name}: update", make, lasts=lasts))
    found.append(Pattern("stream: append", Stream, lasts=True))
    return found


def between_processes(redis: str = "", postgres: str = "") -> dict[str, MakeAgent]:
    """Return the agents that two processes increment: those that both may open, and one that has one owner."""
    agents = {
        "file: update, two processes": file(),
        "SQLite, shared: update, two processes": sqlite(ownership="shared"),
        "PostgreSQL: update, two processes": on_server(dgents.SQLAgent, postgres),
        "Redis: update, two processes": on_server(dgents.RedisAgent, redis),
    }
    return {name: agent for name, agent in agents.items() if agent is not None}


def run(bench: Bench) -> None:
    """Measure every pattern and count what became of each increment."""
    bench.rounds = min(bench.rounds, ROUNDS)  # what is lost is the same in every round, and the rounds are long
    with ExitStack() as running:
        redis, no_redis = started(running, redis_server)
        postgres, no_postgres = started(running, postgres_server)
        each = bench.some(EACH, quick=EACH_QUICK)
        contenders = [
            Contender(pattern.name, increment_round(pattern, TASKS, each)) for pattern in patterns(redis, postgres)
        ]
        for name, agent in between_processes(redis, postgres).items():
            each = bench.some(EACH_OF_PROCESSES, quick=EACH_QUICK)
            contenders.append(Contender(name, two_processes_round(agent, TASKS, each)))
        bench.expect(len(contenders))
        for contender in contenders:
            (samples,) = bench.measure(contender)
            _add(bench, contender.name, samples)
    for name, note in (("Redis", no_redis), ("PostgreSQL", no_postgres)):
        if note:
            bench.absent(name, "updates/s", note)


def _add(bench: Bench, name: str, samples: Sequence[Sample]) -> None:
    latencies = [latency for sample in samples for latency in sample.latencies]
    details = {
        **samples[-1].details,
        "p50 ms": percentile(latencies, 0.5) * 1e3,
        "p99 ms": percentile(latencies, 0.99) * 1e3,
    }
    bench.row(name, [sample.rate for sample in samples], "updates/s", details=details)


def increment_round(pattern: Pattern, tasks: int, each: int) -> Callable[[Path], Awaitable[Sample]]:
    async def round(directory: Path) -> Sample:
        tally = Tally()
        peer = pattern.make()
        await peer.setup(directory, profile())
        try:
            increment = naive_increment(peer) if pattern.naive else peer.increment
            started = perf_counter()
            await run_tasks(lambda number: tally.count(increment, each), tasks)
            seconds = perf_counter() - started
            final = (await peer.load())["visits"]
        finally:
            await peer.close()
        if pattern.lasts:
            final = await _reopened(pattern.make(), directory)
        return tally.sample(tasks * each, final, seconds, safe=pattern.safe)

    return round


def naive_increment(peer: Peer) -> Operation:
    """Return the increment that everybody writes first: load, wait for something, save."""
    load, save, pause = peer.load, peer.save, yielding()

    async def increment() -> Any:
        state = await load()
        await pause()
        state["visits"] += 1
        await save(state)

    return increment


async def _reopened(peer: Peer, directory: Path) -> int:
    await peer.setup(directory)
    try:
        state = await peer.load()
    finally:
        await peer.close()
    return int(state["visits"])
