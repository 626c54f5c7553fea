"""The suite ``limits``: how close each part comes to what its medium allows."""

from __future__ import annotations

from dgents.benchmarks import limits_durable, limits_memory
from dgents.benchmarks.bench import Bench

NAME = "limits"
TITLE = "Limits: each part against the best that its medium allows"


def run(bench: Bench) -> None:
    """Measure every row."""
    bench.expect(limits_memory.CONTENDERS + limits_durable.CONTENDERS)
    limits_memory.run(bench)
    limits_durable.run(bench)
