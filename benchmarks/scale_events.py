"""The panel of ``scale`` on streams: what a log costs that already holds ten events, or ten million.

Short logs are built anew for each round. Longer ones take long to build, so there is one, which grows from place to
place; the few events that a round appends do not change what it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import perf_counter

import msgspec

import dgents
from dgents.benchmarks.bench import Bench
from dgents.benchmarks.measure import Sample
from dgents.benchmarks.scale_place import Place, rounds_for

PANEL = "events in a log"
LENGTHS, QUICK_LENGTHS = tuple(10**n for n in range(1, 8)), (10, 10_000)
APPEND, LOAD, OPEN, SIZE = "append, durable", "load, warm", "open, cold, and load", "on disk, each event"
CURVES = {APPEND: "µs", LOAD: "µs", OPEN: "ms", SIZE: "bytes"}
APPENDS, LOADS, OPENINGS = 50, 1_000, 3
BATCH = 10_000
BUILT_ANEW = 10_000


class Paid(msgspec.Struct, frozen=True):
    """An event: its amount is its number, so the balance tells which ones were folded."""

    amount: int


class Account(msgspec.Struct):
    """The state."""

    balance: int = 0
    entries: int = 0


def pay(account: Account, event: Paid) -> Account:
    """Fold an event into the state."""
    account.balance += event.amount
    account.entries += 1
    return account


def places(bench: Bench) -> Iterator[Place]:
    """Give the places of the panel."""
    for length in QUICK_LENGTHS if bench.quick else LENGTHS:
        yield Place(
            panel=PANEL,
            x=length,
            round=partial(round, length, bench.scratch / "log" if length > BUILT_ANEW else None),
            curves=CURVES,
            rounds=rounds_for(length),
            warm_up=length < 1_000_000,
        )


async def round(length: int, shared: Path | None, directory: Path) -> Sample:
    """Measure a log of ``length`` events, after it has grown to it; its state must be right when it is opened again."""
    log = shared or directory
    async with dgents.Runtime() as runtime:
        before = await _grow(await _open(runtime, log), length)
    size = sum(file.stat().st_size for file in log.rglob("*") if file.is_file())
    opening = loading = appending = 0.0
    for _ in range(OPENINGS):
        async with dgents.Runtime() as runtime:
            started = perf_counter()
            ref = await _open(runtime, log)
            await ref.load()
            opening += perf_counter() - started
            started = perf_counter()
            for _ in range(LOADS):
                await ref.load()
            loading += perf_counter() - started
    async with dgents.Runtime() as runtime:
        ref = await _open(runtime, log)
        started = perf_counter()
        for number in range(before + 1, before + 1 + APPENDS):
            await ref.append(Paid(number))
        appending = perf_counter() - started
    async with dgents.Runtime() as runtime:
        found = await (await _open(runtime, log)).load()
    after = before + APPENDS
    return Sample(
        operations=APPENDS,
        seconds=appending,
        expected=Account(after * (after + 1) // 2, after),
        found=found,
        details={
            APPEND: appending / APPENDS * 1e6,
            LOAD: loading / (OPENINGS * LOADS) * 1e6,
            OPEN: opening / OPENINGS * 1e3,
            SIZE: size / before,
        },
    )


async def _open(runtime: dgents.Runtime, log: Path) -> dgents.StreamRef[Account]:
    agent = dgents.StreamAgent(pay, Account(), event_log=str(log), events=[Paid])
    return await runtime.spawn("account", agent)


async def _grow(ref: dgents.StreamRef[Account], length: int) -> int:
    """Append what is missing to ``length`` events, and return how many there are."""
    there = (await ref.snapshot()).version
    while there < length:
        more = min(BATCH, length - there)
        there = await ref.append_all([Paid(number) for number in range(there + 1, there + 1 + more)])
    return there
