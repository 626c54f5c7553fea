"""The suite ``writers``: what other libraries do with concurrent writers, by the kit in `dgents.testing`.

Each row is one workload before one interface: how many changes are kept, how many were refused, and how many are lost
although their callers were told that they were done. Nothing is expected of a library that promises nothing; one that
does promise has to keep it, or the suite has no figures.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter

from dgents.benchmarks.bench import Bench
from dgents.benchmarks.clients import Case
from dgents.benchmarks.measure import Contender, Sample
from dgents.testing import concurrent_writers

NAME = "writers"
TITLE = "Concurrent writers: what is kept of the changes that were asked for"
ROUNDS = 3
UNIT = "changes/s"
MISSING = "not installed: pip install 'dgents[bench]'"

# By module, and what its row is called where the library is not installed.
MODULES = {
    "ours": "dgents",
    "langgraph": "LangGraph",
    "adk": "Google ADK",
    "key_value": "py-key-value",
    "disk_cache": "diskcache",
    "lance": "LanceDB",
}


def run(bench: Bench) -> None:
    """Put every library that is installed to the test."""
    bench.rounds = min(bench.rounds, ROUNDS)
    cases: list[Case] = []
    for module, name in MODULES.items():
        found = load(f"dgents.benchmarks.clients.{module}")
        if found is None:
            bench.absent(name, UNIT, MISSING)
        else:
            cases += found
    contenders = [(case, workload) for case in cases for workload in workloads(case, quick=bench.quick)]
    bench.expect(len(contenders))
    for case, workload in contenders:
        (samples,) = bench.measure(Contender(case.name, writers_round(case, workload)), warm_up=False)
        rates = [sample.rate for sample in samples]
        details = {name: median(sample.details[name] for sample in samples) for name in samples[0].details}
        bench.row(f"{case.name}: {workload}", rates, UNIT, details=details, note=case.call)


def load(module: str) -> list[Case] | None:
    """Return a module's cases; None if what it needs is not installed."""
    try:
        cases: list[Case] = import_module(module).CASES
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("dgents"):
            raise
        return None
    return cases


def workloads(case: Case, *, quick: bool = False) -> list[str]:
    """Return the workloads that fit a case; a quick run leaves out what says the same again."""
    return ["counter", *([] if quick else ["appends"]), *(["stale"] if case.stale else [])]


def writers_round(case: Case, workload: str) -> Callable[[Path], Awaitable[Sample]]:
    return partial(_round, case, workload)


async def _round(case: Case, workload: str, directory: Path) -> Sample:
    started = perf_counter()
    report = await concurrent_writers(case.make(directory), workloads=[workload], writers=case.writers, each=case.each)
    seconds = perf_counter() - started
    outcome = report[workload]
    faults = outcome.lost + outcome.twice
    asked = case.writers * (1 if workload == "stale" else case.each)
    return Sample(
        operations=asked,
        seconds=seconds,
        expected={"asked": asked, "faults": 0 if case.safe else faults},
        found={"asked": outcome.asked, "faults": faults},
        details={
            "asked": asked,
            "kept": outcome.applied,
            "refused": outcome.refused,
            "lost": outcome.lost,
            "twice": outcome.twice,
        },
    )
