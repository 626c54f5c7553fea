"""The suite ``throughput``: updates a second, as tasks, keys and states grow, for every store."""

from __future__ import annotations

from typing import Any

from dgents.benchmarks.bench import Bench
from dgents.benchmarks.measure import Contender
from dgents.benchmarks.states import SIZES, sized
from dgents.benchmarks.stores import Store, add_absent, stores

NAME = "throughput"
TITLE = "Updates a second, as tasks, keys and states grow"
UNIT = "updates/s"
TASKS = (1, 10, 100, 1_000, 10_000)
KEYS = (1, 10, 100, 1_000, 10_000, 100_000)
MANY, MANY_QUICK = 1_000, 100  # tasks, where the keys grow
FEW = 10  # tasks, where the states grow
SLOW = 10_000  # keys from which on setting up takes so long that one round has to do, counted without opening it again


def run(bench: Bench) -> None:
    """Measure every curve."""
    tasks, keys, sizes = (TASKS, KEYS, SIZES) if not bench.quick else ((1, 100), (1, 100), (1_000, 100_000))
    many = bench.some(MANY, quick=MANY_QUICK)
    with stores() as found:
        add_absent(bench, found, UNIT)
        here = [store for store in found if store.make is not None]
        bench.expect(len(here) * (len(tasks) + len(keys) + len(sizes)))
        for count in tasks:
            for store in here:
                work = store.updates if count > FEW else min(store.alone * count, store.updates)
                _point(bench, store, "tasks that update one state", count, work, tasks=count)
        for count in keys:
            for store in here:
                if count <= store.keys and "update" in store.calls:
                    panel = f"states that {many:,} tasks update"
                    _point(bench, store, panel, count, store.updates, tasks=many, keys=count)
        for size in sizes:
            for store in here:
                if store.whole:
                    work = store.updates * 1_000 // max(size, 1_000)
                    panel = f"bytes of a state that {FEW} tasks update"
                    _point(bench, store, panel, size, work, tasks=FEW, initial=sized(size))


def _point(
    bench: Bench, store: Store, panel: str, x: int, work: int, *, tasks: int, keys: int = 1, **options: Any
) -> None:
    slow = keys >= SLOW
    round = store.round(
        "update", tasks, max(bench.some(work) // tasks, 1), keys=keys, reopens=store.lasts and not slow, **options
    )
    rounds, bench.rounds = bench.rounds, 1 if slow else bench.rounds
    (samples,) = bench.measure(Contender(store.name, round), warm_up=not slow)
    bench.rounds = rounds
    bench.row(store.name, [sample.rate for sample in samples], UNIT, panel=panel, x=x)
