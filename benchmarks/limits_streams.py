"""The rows of ``limits`` for streams of events."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

import dgents
from dgents.benchmarks.bench import Bench
from dgents.benchmarks.limits_cached import raw_appends
from dgents.benchmarks.loops import run_tasks
from dgents.benchmarks.measure import Contender, Sample
from dgents.benchmarks.rounds import Round, increments
from dgents.benchmarks.side_by_side import MISSING, installed
from dgents.benchmarks.states import State, profile

TASKS = 1_000
NO_SNAPSHOT = 1_000_000_000
PORTION = 10_000  # events appended at once, where a log is only built
CONTENDERS = 8
_LOADS = 20_000


class Added(msgspec.Struct, frozen=True):
    """The event of most rows."""

    amount: int


def run(bench: Bench) -> None:
    """Measure every row."""
    count = bench.some(2_000)
    bench.compare(
        "stream, one append after another",
        Contender("dgents", appends(1, count)),
        Contender("write, fdatasync", raw_appends(1, count)),
        target=0.75,
    )
    eventsourcing: Any = installed("eventsourcing, SQLite")
    if eventsourcing is None:
        bench.absent("stream, 1,000 tasks", "/s", MISSING)
        bench.absent("stream, cold replay", "/s", MISSING)
    else:
        bench.compare(
            "stream, 1,000 tasks",
            Contender("dgents", appends(TASKS, bench.some(50, quick=5))),
            Contender("eventsourcing, one event a save", increments(partial(eventsourcing, in_hand=True), TASKS, 1)),
            target=60,
        )
        bench.compare(
            "stream, cold replay",
            Contender("dgents", replay(bench.some(1_000_000))),
            Contender("eventsourcing", replay_of(eventsourcing, bench.some(5_000))),
            target=50,
        )
    many, few = bench.some(1_000_000), 10
    bench.rounds, rounds = min(bench.rounds, 3), bench.rounds  # to build the log takes longer than to open it
    samples, after_few = bench.measure(Contender("dgents", opens(many)), Contender("dgents", opens(few)))
    row = f"stream, load after {many:,} events"
    bench.row(
        row,
        [sample.rate for sample in samples],
        "/s",
        target=1,
        peer=f"after {few} events",
        theirs=[sample.rate for sample in after_few],
    )
    cold = [sample.details["open ms"] for sample in samples]
    bench.row(f"stream, open after {many:,} events", cold, "ms", "lower", 100)
    bench.rounds = rounds


def appends(tasks: int, each: int) -> Round:
    """Append the state of the other rows as an event, from each task; all must be there when it is opened again."""

    async def round(directory: Path) -> Sample:
        agent = _agent(directory, _count, 0)
        event = profile()
        async with dgents.Runtime() as runtime:
            ref: Any = await runtime.spawn("stream", agent)

            async def work(number: int) -> None:
                for _ in range(each):
                    await ref.append(event)

            started = perf_counter()
            await run_tasks(work, tasks)
            seconds = perf_counter() - started
        async with dgents.Runtime() as runtime:
            found = await (await runtime.spawn("stream", agent)).load()
        return Sample(operations=tasks * each, seconds=seconds, expected=tasks * each, found=found)

    return round


def replay(events: int) -> Round:
    """Open a log without a snapshot: each event is read, checked, decoded and folded."""

    async def round(directory: Path) -> Sample:
        agent = _agent(directory, _add, 0, events=[Added], snapshot_every=NO_SNAPSHOT)
        await _build(agent, events)
        started = perf_counter()
        async with dgents.Runtime() as runtime:
            found = await (await runtime.spawn("stream", agent)).load()
            seconds = perf_counter() - started
        return Sample(operations=events, seconds=seconds, expected=events, found=found)

    return round


def replay_of(make: Any, events: int) -> Round:
    """Load a peer's state, which it makes of so many events."""

    async def round(directory: Path) -> Sample:
        peer = make()
        await peer.setup(directory, profile())
        try:
            await peer.increment_many(events)
            started = perf_counter()
            state = await peer.load()
            seconds = perf_counter() - started
        finally:
            await peer.close()
        return Sample(operations=events, seconds=seconds, expected=events, found=state["visits"])

    return round


def opens(events: int) -> Round:
    """Load again and again from a log of so many events; `open ms` is what the first one takes, cold."""

    async def round(directory: Path) -> Sample:
        agent = _agent(directory, _add, 0, events=[Added])
        await _build(agent, events)
        started = perf_counter()
        async with dgents.Runtime() as runtime:
            ref = await runtime.spawn("stream", agent)
            found = await ref.load()
            opened = perf_counter()
            for _ in range(_LOADS):
                found = await ref.load()
            seconds = perf_counter() - opened
        return Sample(
            operations=_LOADS,
            seconds=seconds,
            expected=events,
            found=found,
            details={"open ms": (opened - started) * 1e3},
        )

    return round


async def _build(agent: Any, events: int) -> None:
    async with dgents.Runtime() as runtime:
        ref: Any = await runtime.spawn("stream", agent)
        for done in range(0, events, PORTION):
            await ref.append_all([Added(1)] * min(PORTION, events - done))


def _agent(directory: Path, fold: Any, initial: Any, **options: Any) -> Any:
    return dgents.StreamAgent(fold, initial, event_log=directory / "log", **options)


def _count(count: int, event: State) -> int:
    return count + 1


def _add(total: int, event: Added) -> int:
    return total + event.amount
