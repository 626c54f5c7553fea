"""The row of ``limits`` for supervision: how long a caller waits whose update meets a crash of the backend."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import dgents
from dgents.benchmarks.bench import Bench
from dgents.benchmarks.failing import FailingAgent, FailingStore
from dgents.benchmarks.measure import Contender, Sample, percentile
from dgents.benchmarks.rounds import Round

CHILDREN = 10_000
CRASHES = 1_000
TARGET_MS = 5
CONTENDERS = 1


def run(bench: Bench) -> None:
    """Measure the row."""
    children, crashes = bench.some(CHILDREN), bench.some(CRASHES)
    (samples,) = bench.measure(Contender("dgents", repairs(children, crashes)))
    waits = [percentile(sample.latencies, 0.99) * 1e3 for sample in samples]
    bench.row(f"repair after a crash, p99, one of {children:,} children", waits, "ms", "lower", TARGET_MS)


def repairs(children: int, crashes: int) -> Round:
    """Crash one child after the other, each by an update whose commit fails; the update is answered after the repair.

    The supervisor doesn't pause before a restart: a pause is its choice, and no part of the work.
    """

    async def round(directory: Path) -> Sample:
        store, restarts = FailingStore(), 0
        agent: Any = FailingAgent(store)
        waits: list[float] = []

        def count(event: Any) -> None:
            nonlocal restarts
            restarts += event.kind == "restarted"

        with _quiet():
            async with dgents.Runtime(on_event=count) as runtime:
                group = await runtime.supervisor("group", max_restarts=crashes, backoff=dgents.Backoff(0, 0))
                refs = [await group.spawn(f"child/{number}", agent) for number in range(children)]
                for number in range(crashes):
                    store.fail = True
                    started = perf_counter()
                    await refs[number * children // crashes].update(_increment, default=0)
                    waits.append(perf_counter() - started)
                found = sum([await ref.load(default=0) for ref in refs])
        return Sample(
            operations=crashes,
            seconds=sum(waits),
            latencies=waits,
            expected={"updates": crashes, "restarts": crashes},
            found={"updates": found, "restarts": restarts},
        )

    return round


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep crashes that are meant out of the log."""
    log = logging.getLogger("dgents")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _increment(count: int) -> int:
    return count + 1
