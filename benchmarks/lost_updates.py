"""The suite ``lost-updates``: many tasks increment one state, with an await between reading and writing.

Every increment ends in one of three ways: it is in the final count; it was refused, so that its caller knows;
or it is lost, and nobody knows. Only the last one is a fault.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import dgents
from dgents.benchmarks.bench import Bench
from dgents.benchmarks.loops import run_tasks, yielding
from dgents.benchmarks.measure import Contender, Sample, percentile
from dgents.benchmarks.ours import Dgent, MakeAgent, file, sqlite, volatile
from dgents.benchmarks.peers import Operation, Peer
from dgents.benchmarks.peers.lock import Lock
from dgents.benchmarks.peers.unlocked import Unlocked
from dgents.benchmarks.rounds import MakePeer
from dgents.benchmarks.states import profile

NAME = "lost-updates"
TITLE = "Lost updates: 1,000 tasks, one state, an await between reading and writing"

TASKS = 1_000
EACH = 105
EACH_QUICK = 3
ROUNDS = 3


@dataclass(frozen=True)
class Pattern:
    """One way of incrementing. ``safe``: whether nothing may be lost; ``naive``: load, await, save."""

    name: str
    make: MakePeer
    safe: bool = True
    naive: bool = False
    durable: bool = False


def patterns() -> list[Pattern]:
    """Return the peers, and every backend with both patterns."""
    found = [
        Pattern("no lock", Unlocked, safe=False),
        Pattern("asyncio.Lock + deepcopy", lambda: Lock(copies=True, awaits=True)),
    ]
    backends: dict[str, MakeAgent] = {
        "volatile": volatile(),
        "file json": file("json"),
        "file msgpack": file("msgpack"),
        "SQLite": sqlite(),
    }
    for backend, agent in backends.items():
        durable = backend != "volatile"
        make = _maker(backend, agent)
        found.append(Pattern(f"{backend}: load, save", make, naive=True, durable=durable))
        found.append(Pattern(f"{backend}: update", make, durable=durable))
    return found


def run(bench: Bench) -> None:
    """Measure every pattern and count what became of each increment."""
    each = bench.some(EACH, quick=EACH_QUICK)
    bench.rounds = min(bench.rounds, ROUNDS)  # what is lost is the same in every round, and the rounds are long
    contenders = [Contender(pattern.name, increment_round(pattern, TASKS, each)) for pattern in patterns()]
    bench.expect(len(contenders))
    for contender, samples in zip(contenders, bench.measure(*contenders), strict=True):
        latencies = [latency for sample in samples for latency in sample.latencies]
        details = {
            **samples[-1].details,
            "p50 ms": percentile(latencies, 0.5) * 1e3,
            "p99 ms": percentile(latencies, 0.99) * 1e3,
        }
        bench.row(contender.name, [sample.rate for sample in samples], "updates/s", details=details)


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
        if pattern.durable:
            final = await _reopened(pattern.make(), directory)
        return tally.sample(tasks * each, final, seconds, safe=pattern.safe)

    return round


class Tally:
    """What became of each increment."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.refused = 0
        self.latencies: list[float] = []

    async def count(self, increment: Operation, each: int) -> None:
        """Increment ``each`` times, and note how long it took and whether it was refused."""
        for _ in range(each):
            started = perf_counter()
            try:
                await increment()
            except dgents.StaleStateError:
                self.refused += 1
            else:
                self.acknowledged += 1
            self.latencies.append(perf_counter() - started)

    def sample(self, asked: int, final: int, seconds: float, *, safe: bool) -> Sample:
        """Return the round's sample; it stands if all were answered and, of a safe pattern, none was lost."""
        lost = self.acknowledged - final
        return Sample(
            operations=self.acknowledged,
            seconds=seconds,
            latencies=self.latencies,
            expected={"answered": asked, "lost": 0 if safe else max(lost, 0)},
            found={"answered": self.acknowledged + self.refused, "lost": lost},
            details={"final": final, "lost": lost, "refused": self.refused},
        )


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


def _maker(backend: str, agent: MakeAgent) -> MakePeer:
    def make() -> Peer:
        return Dgent(backend, agent, awaits=True)

    return make
