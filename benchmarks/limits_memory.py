"""The rows of ``limits`` that need no disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anyio
import msgspec

from dgents.benchmarks.bench import Bench
from dgents.benchmarks.idle import Idle
from dgents.benchmarks.loops import HAS_TRIO
from dgents.benchmarks.measure import Contender, Sample
from dgents.benchmarks.ours import Dgent, volatile
from dgents.benchmarks.peers import Peer
from dgents.benchmarks.peers.lock import Lock
from dgents.benchmarks.rounds import MakePeer, Round, increments, loads
from dgents.benchmarks.states import Badge, profile

TASKS = 1_000
EACH = 105
IDLE_ACTORS = 100_000
CONTENDERS = 25
IDLE_BYTES, SPAWN_US, ACTIVATION_US = 2_048, 20, 30
TRIO_RATIO = 0.8


def run(bench: Bench) -> None:
    """Measure every row."""
    ours = _ours(bench)
    _against_locks(bench, ours)
    for row, round in ours.items() if HAS_TRIO else ():
        bench.compare(
            f"trio: {row}",
            Contender("dgents on trio", round, loop="trio"),
            Contender("dgents on asyncio", round),
            target=TRIO_RATIO,
        )
    _idle_actors(bench)


def _ours(bench: Bench) -> dict[str, Round]:
    each = bench.some(EACH, quick=20)
    badge = Badge()
    return {
        "volatile load, dict": loads(_volatile, bench.some(100_000), profile()),
        "volatile load, immutable": loads(_volatile, bench.some(200_000), badge),
        "volatile update, 1,000 tasks, dict": increments(_volatile, TASKS, each),
        "volatile update, 1,000 tasks, int": increments(_volatile, TASKS, each, initial=0),
        "volatile async update, 1,000 tasks, dict": increments(_awaiting, TASKS, bench.some(50, quick=10)),
        "volatile async update, 1,000 tasks, int": increments(_awaiting, TASKS, bench.some(50, quick=10), initial=0),
    }


def _against_locks(bench: Bench, ours: dict[str, Round]) -> None:
    each = bench.some(EACH, quick=20)
    copying, plain, awaiting = (lambda: Lock(copies=True)), Lock, (lambda: Lock(awaits=True))
    peers: list[tuple[MakePeer, Round, float]] = [
        (copying, loads(copying, bench.some(20_000), profile()), 6),
        (plain, loads(plain, bench.some(200_000), profile()), 1),
        (plain, increments(plain, TASKS, each), 0.8),
        (plain, increments(plain, TASKS, each), 0.8),
        (awaiting, increments(awaiting, TASKS, bench.some(50, quick=10)), 1),
        (awaiting, increments(awaiting, TASKS, bench.some(50, quick=10)), 1),
    ]
    for (row, round), (make, peer_round, target) in zip(ours.items(), peers, strict=True):
        bench.compare(row, Contender("dgents", round), Contender(make().name, peer_round), target=target)


def _volatile() -> Peer:
    return Dgent("volatile", volatile())


def _awaiting() -> Peer:
    return Dgent("volatile", volatile(), awaits=True)


def _idle_actors(bench: Bench) -> None:
    """Count bytes and microseconds of actors that do nothing, in a process of their own each time."""
    count = bench.some(IDLE_ACTORS)

    async def round(directory: Path) -> Sample:
        command = [sys.executable, "-m", "dgents.benchmarks.idle", str(count)]
        process = await anyio.run_process(command, stderr=None)
        found = msgspec.json.decode(process.stdout, type=Idle)
        return Sample(
            operations=count,
            seconds=found.spawn_us * count / 1e6,
            expected={"answers": count, "tasks": 0},
            found={"answers": found.answers, "tasks": found.tasks},
            details={
                "bytes": found.bytes_each,
                "spawn": found.spawn_us,
                "activation": found.activation_us,
            },
        )

    (samples,) = bench.measure(Contender("dgents", round))
    rows: list[tuple[str, str, str, Any]] = [
        (f"idle actor, one of {count:,}", "bytes", "bytes", IDLE_BYTES),
        ("spawn of a volatile actor", "spawn", "µs", SPAWN_US),
        ("activation of a virtual actor", "activation", "µs", ACTIVATION_US),
    ]
    for row, detail, unit, target in rows:
        bench.row(row, [sample.details[detail] for sample in samples], unit, "lower", target)
