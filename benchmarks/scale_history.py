"""The panel of ``scale`` on histories: what an update costs where many earlier versions are kept."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from dgents.benchmarks.bench import Bench
from dgents.benchmarks.measure import Sample
from dgents.benchmarks.ours import Dgent, sqlite
from dgents.benchmarks.rounds import Round, durable_increments
from dgents.benchmarks.scale_place import Place

PANEL = "versions kept"
BOUNDS, QUICK_BOUNDS = (1, 10, 100, 1_000), (1, 100)
UPDATE = "SQLite, an update by one of 100 tasks"
CURVES = {UPDATE: "µs"}
TASKS, EACH = 100, 100


def places(bench: Bench) -> Iterator[Place]:
    """Give the places of the panel."""
    for bound in QUICK_BOUNDS if bench.quick else BOUNDS:
        yield Place(panel=PANEL, x=bound, round=partial(round, bound, bench.some(EACH)), curves=CURVES)


async def round(bound: int, each: int, directory: Path) -> Sample:
    """Increment one state from 100 tasks; its newest ``bound`` versions must be there when it is opened again."""
    work: Round = durable_increments(partial(Dgent, "SQLite", sqlite(bound)), TASKS, each, max_history=bound)
    sample = await work(directory)
    sample.details[UPDATE] = sample.seconds / sample.operations * 1e6
    return sample
