"""The suite ``peers``: dgents beside other actors, stores and sessions, each as its own documentation recommends.

The same state and the same work for all: 100 tasks increment one number in it. In memory, or waiting for the disk at
each increment; what is durable is read again after everything was closed. A peer that loses updates gets its row too,
with the number that it lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from dgents.benchmarks.bench import Bench
from dgents.benchmarks.loops import run_tasks
from dgents.benchmarks.measure import Contender, Sample, median_ratio
from dgents.benchmarks.ours import Dgent, sqlite, volatile
from dgents.benchmarks.peers import Peer
from dgents.benchmarks.rounds import MakePeer
from dgents.benchmarks.states import profile

NAME = "peers"
TITLE = "Side by side: 100 tasks increment one state"
TASKS = 100
TASKS_QUICK = 20
UNIT = "updates/s"
MISSING = "not installed: pip install 'dgents[bench]'"


@dataclass(frozen=True)
class Entry:
    """One row.

    Attributes:
        module, kind: where the peer's class is; of dgents itself ``make`` instead.
        each: how many increments a task does, so that a round takes about a second.
        durable: whether each increment waits for the disk.
        safe: whether it promises that nothing is lost.
    """

    name: str
    module: str = ""
    kind: str = ""
    make: MakePeer | None = None
    each: int = 5
    durable: bool = False
    safe: bool = True


ENTRIES = [
    Entry("dgents, volatile", make=lambda: Dgent("volatile", volatile()), each=2_000),
    Entry("actor on asyncio.Queue", "queue_actor", "QueueActor", each=500),
    Entry("Pykka", "pykka_actor", "PykkaActor", each=20),
    Entry("xoscar", "xoscar_actor", "XoscarActor", each=50),
    Entry("Thespian, TCP", "thespian_actor", "ThespianActor"),
    Entry("Ray, async actor", "ray_actor", "RayActor", each=10),
    Entry("redis-py, WATCH", "redis_watch", "RedisWatch", each=1),
    Entry("dgents, SQLite", make=lambda: Dgent("SQLite", sqlite()), each=200, durable=True),
    Entry("asyncio.Lock + aiosqlite", "aiosqlite_lock", "AiosqliteLock", each=2, durable=True),
    Entry("diskcache, transact", "disk_cache", "DiskCache", durable=True),
    Entry("eventsourcing, SQLite", "event_sourced", "EventSourced", each=2, durable=True),
    Entry("LangGraph AsyncSqliteSaver", "langgraph_saver", "LangGraphSaver", durable=True, safe=False),
    Entry("OpenAI Agents SQLiteSession", "openai_session", "OpenAISession", durable=True, safe=False),
]


def run(bench: Bench) -> None:
    """Measure all that are installed, in turns, and add the rows in the order of `ENTRIES`."""
    makers = {entry.name: maker(entry) for entry in ENTRIES}
    present = [(entry, make) for entry in ENTRIES if (make := makers[entry.name]) is not None]
    tasks = bench.some(TASKS, quick=TASKS_QUICK)
    contenders = [
        Contender(entry.name, peer_round(entry, make, tasks, bench.some(entry.each))) for entry, make in present
    ]
    bench.expect(len(contenders))
    measured = bench.measure(*contenders)
    samples = {entry.name: found for (entry, _), found in zip(present, measured, strict=True)}
    ours: list[float] = []
    for entry in ENTRIES:
        if entry.name not in samples:
            bench.absent(entry.name, UNIT, MISSING)
            continue
        rates = [sample.rate for sample in samples[entry.name]]
        details = {
            name: median(sample.details[name] for sample in samples[entry.name])
            for name in samples[entry.name][0].details
        }
        if entry.make is not None:
            ours = rates
        else:
            details["dgents/this"] = median_ratio(ours, rates)
        panel = "each waits for the disk" if entry.durable else "in memory"
        bench.row(entry.name, rates, UNIT, panel=panel, details=details, note="" if entry.safe else "loses updates")


def maker(entry: Entry) -> MakePeer | None:
    """Return what makes the peer; None if what it needs is not installed."""
    if entry.make is not None:
        return entry.make
    try:
        make: Callable[[], Any] = getattr(import_module(f"dgents.benchmarks.peers.{entry.module}"), entry.kind)
        make()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("dgents"):
            raise
        return None
    return make


def installed(name: str) -> MakePeer | None:
    """Return what makes the peer of that name in `ENTRIES`; None if what it needs is not installed."""
    return maker(next(entry for entry in ENTRIES if entry.name == name))


def peer_round(entry: Entry, make: MakePeer, tasks: int, each: int) -> Callable[[Path], Awaitable[Sample]]:
    return partial(_round, entry, make, tasks, each)


async def _round(entry: Entry, make: MakePeer, tasks: int, each: int, directory: Path) -> Sample:
    peer = make()
    await peer.setup(directory, profile())
    try:
        increment = peer.increment

        async def work(number: int) -> None:
            for _ in range(each):
                await increment()

        started = perf_counter()
        await run_tasks(work, tasks)
        seconds = perf_counter() - started
        kept = await _visits(peer)
    finally:
        await peer.close()
    if entry.durable:
        kept = await _reopened(make(), directory)
    asked = tasks * each
    lost = asked - kept
    return Sample(
        operations=asked,
        seconds=seconds,
        expected={"lost": 0 if entry.safe else max(lost, 0)},
        found={"lost": lost},
        details={"asked": asked, "kept": kept, "lost": lost},
    )


async def _reopened(peer: Peer, directory: Path) -> int:
    await peer.setup(directory)
    try:
        return await _visits(peer)
    finally:
        await peer.close()


async def _visits(peer: Peer) -> int:
    return int((await peer.load())["visits"])
