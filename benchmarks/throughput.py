"""The suite ``throughput``: updates a second, as tasks, keys and states grow."""

from __future__ import annotations

from functools import partial
from typing import Any

from dgents.benchmarks.bench import Bench
from dgents.benchmarks.durability import behind
from dgents.benchmarks.measure import Contender
from dgents.benchmarks.ours import Dgent, MakeAgent, file, sqlite, volatile
from dgents.benchmarks.rounds import increments
from dgents.benchmarks.states import SIZES, sized

NAME = "throughput"
TITLE = "Updates a second, as tasks, keys and states grow"
STORES: tuple[tuple[str, MakeAgent, int], ...] = (
    ("volatile", volatile(), 50_000),
    ("write-behind", behind(journal=False), 30_000),
    ("file", file(), 5_000),
    ("SQLite", sqlite(), 10_000),
)
TASKS = (1, 10, 100, 1_000, 10_000)
KEYS = (1, 100, 1_000)


def run(bench: Bench) -> None:
    """Measure every row."""
    tasks, keys, sizes = (TASKS, KEYS, SIZES) if not bench.quick else ((1, 1_000), (1_000,), (10_000,))
    bench.expect(len(STORES) * (len(tasks) + len(keys) + len(sizes)))
    for store, agent, updates in STORES:
        for count in tasks:
            # A lone task waits for each commit, so it is given less to do.
            _row(bench, f"{store}, {count:,} tasks, one key", agent, updates // (20 if count == 1 else 1), count)
        for count in keys:
            _row(bench, f"{store}, 1,000 tasks, {count:,} keys", agent, max(updates // 2, 1_000), 1_000, keys=count)
        for size in sizes:
            work = max(updates * 1_000 // (size * 10), 20)
            _row(bench, f"{store}, 10 tasks, {size:,} bytes", agent, work, 10, initial=sized(size))


def _row(bench: Bench, name: str, agent: MakeAgent, updates: int, tasks: int, **options: Any) -> None:
    each = max(bench.some(updates) // tasks, 1)
    work = increments(partial(Dgent, name, agent), tasks, each, **options)
    (samples,) = bench.measure(Contender(name, work))
    bench.row(name, [sample.rate for sample in samples], "/s")
