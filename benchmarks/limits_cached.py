"""The rows of ``limits`` for what is between memory and the disk: caches, write-behind, and the journal."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from time import perf_counter

import msgspec

from dgents.backends.journal import Journal
from dgents.benchmarks.bench import Bench
from dgents.benchmarks.loops import HAS_TRIO
from dgents.benchmarks.measure import Contender, Sample
from dgents.benchmarks.ours import Dgent, MakeAgent, behind, cached, volatile
from dgents.benchmarks.peers.raw_journal import fdatasync, framed
from dgents.benchmarks.rounds import MakePeer, Round, increments, loads
from dgents.benchmarks.states import profile

TASKS = 1_000
BATCH = 1_000
CONTENDERS = 12


def run(bench: Bench) -> None:
    """Measure every row."""
    count = bench.some(100_000)
    hit, memory = loads(_make(cached()), count, profile()), loads(_make(volatile()), count, profile())
    bench.compare("cache hit, dict", Contender("dgents", hit), Contender("volatile load", memory), target=0.9)
    if HAS_TRIO:
        on_trio, on_asyncio = Contender("dgents on trio", hit, loop="trio"), Contender("dgents on asyncio", hit)
        bench.compare("trio: cache hit, dict", on_trio, on_asyncio, target=0.8)
    each = bench.some(50, quick=5)
    update = Contender("volatile update", increments(_make(volatile()), TASKS, each))
    for row, journal, target in (("write-behind", False, 0.4), ("write-behind with a journal", True, 0.12)):
        acknowledged = increments(_make(behind(journal=journal)), TASKS, each)
        bench.compare(f"{row}, 1,000 tasks, acknowledged", Contender("dgents", acknowledged), update, target=target)
    for row, size, batches, target in (
        ("journal, one after another", 1, bench.some(2_000), 0.75),
        ("journal, 1,000 records a batch", BATCH, bench.some(100), 0.5),
    ):
        peer = Contender(f"write, fdatasync per {size:,}", raw_appends(size, batches))
        bench.compare(row, Contender("dgents", appends(size, batches)), peer, target=target)


def appends(size: int, batches: int) -> Round:
    """Append batches of ``size`` records to a journal; all must be there when it is opened again."""

    async def round(directory: Path) -> Sample:
        data = msgspec.msgpack.encode(profile())
        journal = Journal(directory / "journal")
        journal.open()
        started = perf_counter()
        for _ in range(batches):
            journal.append([data] * size)
        seconds = perf_counter() - started
        journal.close()
        again = Journal(directory / "journal")
        again.open()
        found = sum(record == data for _, record in again.read())
        again.close()
        return Sample(operations=size * batches, seconds=seconds, expected=size * batches, found=found)

    return round


def raw_appends(size: int, batches: int) -> Round:
    """Do the same with bare writes to one file."""

    async def round(directory: Path) -> Sample:
        record = framed(profile(), 0)
        path = directory / "raw"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        started = perf_counter()
        for _ in range(batches):
            os.write(fd, b"".join([record] * size))
            fdatasync(fd)
        seconds = perf_counter() - started
        os.close(fd)
        found = path.read_bytes().count(record)
        return Sample(operations=size * batches, seconds=seconds, expected=size * batches, found=found)

    return round


def _make(agent: MakeAgent) -> MakePeer:
    return partial(Dgent, "dgents", agent)
