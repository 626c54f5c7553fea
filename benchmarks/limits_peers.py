"""The rows of ``limits`` against other libraries, as far as they are installed."""

from __future__ import annotations

from functools import partial
from typing import Any

from dgents.benchmarks.bench import Bench
from dgents.benchmarks.measure import Contender
from dgents.benchmarks.ours import Dgent, sqlite, volatile
from dgents.benchmarks.rounds import Round, increments
from dgents.benchmarks.side_by_side import MISSING, installed

TASKS = 1_000
KEYS = 1_000
ACTORS = (("Pykka", 10, 40), ("xoscar", 20, 40), ("Ray, async actor", 1, 500))  # peer, increments a task, target
SESSIONS = ("LangGraph AsyncSqliteSaver", "OpenAI Agents SQLiteSession", "eventsourcing, SQLite")
SESSIONS_TARGET = 30
CONTENDERS = 2 * (2 * len(ACTORS) + len(SESSIONS))


def run(bench: Bench) -> None:
    """Measure every row whose peer is there."""
    wide = increments(_make(sqlite()), TASKS, bench.some(20, quick=2), keys=KEYS, reopens=True)
    for name in SESSIONS:
        _against(bench, f"SQLite, 1,000 tasks, 1,000 keys, against {name}", wide, name, 1, SESSIONS_TARGET, keys=KEYS)
    each = bench.some(100, quick=20)
    for name, of_peer, target in ACTORS:
        for kind, initial in (("int", 0), ("dict", None)):
            ours = increments(_make(volatile()), TASKS, each, initial=initial)
            row = f"volatile update, 1,000 tasks, {kind}, against {name}"
            _against(bench, row, ours, name, bench.some(of_peer, quick=1), target)


def _against(bench: Bench, row: str, ours: Round, name: str, each: int, target: float, **options: Any) -> None:
    make = installed(name)
    if make is None:
        bench.absent(row, "/s", MISSING)
        return
    peer = Contender(name, increments(make, TASKS, each, **options))
    bench.compare(row, Contender("dgents", ours), peer, target=target)


def _make(agent: Any) -> partial[Dgent]:
    return partial(Dgent, "dgents", agent)
