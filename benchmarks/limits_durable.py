"""The rows of ``limits`` that wait for a disk: dgents answers after fsync, and so do the peers."""

from __future__ import annotations

from collections.abc import Callable

from dgents.benchmarks.bench import Bench
from dgents.benchmarks.loops import HAS_TRIO
from dgents.benchmarks.measure import Contender
from dgents.benchmarks.ours import Dgent, MakeAgent, file, sqlite
from dgents.benchmarks.peers.raw_file import RawFile
from dgents.benchmarks.peers.raw_sqlite import RawSqlite
from dgents.benchmarks.rounds import MakePeer, durable_increments, saves

TASKS = 1_000
KEYS = 1_000
EVERY_VERSION = 1_000_000_000
CONTENDERS = 22


def run(bench: Bench) -> None:
    """Measure every row."""
    _sqlite(bench)
    _file(bench)
    for store, agent in (("SQLite", sqlite()), ("file", file())):
        _commit_tail(bench, store, agent)


def _sqlite(bench: Bench) -> None:
    raw = _contender(RawSqlite, bench, count=1_500)
    one = saves(_make(sqlite()), bench.some(1_500))
    bench.compare("SQLite, one after another", Contender("dgents", one), raw, target=0.75)
    if HAS_TRIO:
        bench.compare(
            "trio: SQLite, one after another",
            Contender("dgents on trio", one, loop="trio"),
            Contender("dgents on asyncio", one),
            target=0.5,
        )
    for kept, max_history, target in (
        ("100 kept", 100, 40),
        ("one kept", 0, 60),
        ("all kept", EVERY_VERSION, 12),
    ):
        each = bench.some(50, quick=5)
        hot = durable_increments(_make(sqlite(max_history)), TASKS, each, max_history=max_history)
        row = f"SQLite, 1,000 tasks, one key, {kept}"
        bench.compare(row, Contender("dgents", hot), raw, target=target)
    wide = durable_increments(_make(sqlite()), TASKS, bench.some(20, quick=2), keys=KEYS)
    bench.compare("SQLite, 1,000 tasks, 1,000 keys", Contender("dgents", wide), raw)


def _file(bench: Bench) -> None:
    raw = _contender(RawFile, bench, count=700)
    one = saves(_make(file()), bench.some(700))
    bench.compare("file, one after another", Contender("dgents", one), raw, target=0.9)
    hot = durable_increments(_make(file()), TASKS, bench.some(20, quick=5))
    bench.compare("file, 1,000 tasks, one key", Contender("dgents", hot), raw, target=60)
    wide = durable_increments(_make(file()), TASKS, bench.some(3, quick=1), keys=KEYS)
    threads: MakePeer = lambda: RawFile(threads=True)  # noqa: E731
    many = saves(threads, bench.some(3, quick=1) * KEYS, tasks=KEYS)
    bench.compare(
        "file, 1,000 tasks, 1,000 keys",
        Contender("dgents", wide),
        Contender(threads().name, many),
        target=1.5,
    )


def _commit_tail(bench: Bench, store: str, agent: MakeAgent) -> None:
    """Compare the slowest commits of a busy store with the usual one of a store that has one caller."""
    busy = durable_increments(_make(agent), TASKS, bench.some(20, quick=5))
    alone = saves(_make(agent), bench.some(500))
    bench.compare(
        f"{store}, p99 of a commit under 1,000 tasks",
        Contender("dgents", busy),
        Contender("one commit", alone),
        target=3,
        unit="ms",
        better="lower",
        figure=lambda sample: sample.details["commit p99 ms"],
        peer_figure=lambda sample: sample.details["commit p50 ms"],
    )


def _contender(make: MakePeer, bench: Bench, count: int) -> Contender:
    return Contender(make().name, saves(make, bench.some(count)))


def _make(agent: MakeAgent) -> Callable[[], Dgent]:
    return lambda: Dgent("dgents", agent)
