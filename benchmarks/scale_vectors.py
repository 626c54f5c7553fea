"""The panel of ``scale`` on vectors: an exact index in memory, each size in a new process."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from dgents.benchmarks import scale_index
from dgents.benchmarks.bench import Bench
from dgents.benchmarks.scale_place import Place, in_process, rounds_for

PANEL = "vectors"
COUNTS, QUICK_COUNTS = (1_000, 10_000, 100_000, 1_000_000), (1_000, 10_000)
MISSING = "not installed: pip install 'dgents[vector]'"


def places(bench: Bench) -> Iterator[Place]:
    """Give the places of the panel; say so if what it needs is not installed."""
    if find_spec("faiss") is None:
        for curve, unit in scale_index.CURVES.items():
            bench.absent(curve, unit, MISSING)
        return
    for count in QUICK_COUNTS if bench.quick else COUNTS:
        yield Place(
            panel=PANEL,
            x=count,
            round=in_process(scale_index.__name__, count),
            curves=scale_index.CURVES,
            rounds=rounds_for(count),
            warm_up=False,
        )
