"""The suite ``latency``: how long one call takes its caller, alone and among many, for every store."""

from __future__ import annotations

from dgents.benchmarks.bench import Bench
from dgents.benchmarks.measure import Contender, percentile
from dgents.benchmarks.stores import Store, add_absent, stores

NAME = "latency"
TITLE = "How long one call takes its caller: half, 99 %, and 99.9 % of the calls take no longer than this"
UNIT = "p50 µs"
TASKS = 1_000
TASKS_QUICK = 100


def run(bench: Bench) -> None:
    """Measure every row: a panel for each call, alone and among a thousand."""
    with stores() as found:
        add_absent(bench, found, UNIT)
        here = [store for store in found if store.make is not None]
        bench.expect(2 * sum(len(store.calls) for store in here))
        many = bench.some(TASKS, quick=TASKS_QUICK)
        for tasks, whom in ((1, "one caller"), (many, f"{many:,} callers at once")):
            for call in ("load", "save", "update"):
                for store in here:
                    if call in store.calls:
                        _row(bench, store, call, tasks, f"{call}, {whom}")


def _row(bench: Bench, store: Store, call: str, tasks: int, panel: str) -> None:
    each = max(bench.some(store.alone if tasks == 1 else store.updates) // tasks, 1)
    round = store.round(call, tasks, each, timed=True)
    (samples,) = bench.measure(Contender(store.name, round))
    usual = [percentile(sample.latencies, 0.5) * 1e6 for sample in samples]
    latencies = [latency for sample in samples for latency in sample.latencies]
    shares = {"p99": 0.99, "p99.9": 0.999}
    details = {heading: percentile(latencies, share) * 1e6 for heading, share in shares.items()}
    bench.row(store.name, usual, UNIT, "lower", panel=panel, details=details)
