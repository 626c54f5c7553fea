"""The panel of ``scale`` on actors: from one to a million of them in one runtime, each count in a new process."""

from __future__ import annotations

from collections.abc import Iterator

from dgents.benchmarks import scale_crowd
from dgents.benchmarks.bench import Bench
from dgents.benchmarks.scale_place import Place, in_process, rounds_for

PANEL = "actors"
COUNTS, QUICK_COUNTS = (1, 100, 10_000, 100_000, 1_000_000), (1_000, 10_000)


def places(bench: Bench) -> Iterator[Place]:
    """Give the places of the panel."""
    for count in QUICK_COUNTS if bench.quick else COUNTS:
        for kind in scale_crowd.KINDS:
            yield Place(
                panel=PANEL,
                x=count,
                round=in_process(scale_crowd.__name__, kind, count),
                curves=scale_crowd.CURVES,
                rounds=rounds_for(count),
                warm_up=False,
            )
