"""The suite ``limits``: how close each part comes to what its medium allows."""

from __future__ import annotations

from dgents.benchmarks import (
    limits_cached,
    limits_durable,
    limits_memory,
    limits_peers,
    limits_repair,
    limits_servers,
    limits_streams,
    limits_vectors,
)
from dgents.benchmarks.bench import Bench

NAME = "limits"
TITLE = "Limits: each part against the best that its medium allows"
PARTS = (  # what takes longest comes last: a quick run may leave it out
    limits_memory,
    limits_cached,
    limits_streams,
    limits_vectors,
    limits_repair,
    limits_durable,
    limits_servers,
    limits_peers,
)


def run(bench: Bench) -> None:
    """Measure every row."""
    bench.expect(sum(part.CONTENDERS for part in PARTS))
    for part in PARTS:
        part.run(bench)
