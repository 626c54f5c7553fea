"""The rows of ``limits`` against other libraries, as far as they are installed."""

from __future__ import annotations

from functools import partial
from typing import Any

from dgents.benchmarks.bench import Bench
from dgents.benchmarks.measure import Contender
from dgents.benchmarks.ours import Dgent, sqlite, volatile
from dgents.benchmarks.rounds import Round, increments, saves
from dgents.benchmarks.side_by_side import MISSING, installed

TASKS = 1_000
KEYS = 1_000
ACTORS = (("Pykka", 10, 40), ("xoscar", 20, 40), ("Ray, async actor", 1, 500))  # peer, increments a task, target
SESSIONS = ("LangGraph AsyncSqliteSaver", "OpenAI Agents SQLiteSession", "eventsourcing, SQLite")
SESSIONS_TARGET = 30
CONTENDERS = 2 * (2 * len(ACTORS) + len(SESSIONS))


def run(bench: Bench) -> None:
    """Measure every row whose peer is there."""
    ours = saves(_make(sqlite()), bench.some(20, quick=2) * KEYS, tasks=KEYS)
    for name in SESSIONS:
        peer = installed(name)
        row = f"SQLite, a save from each of 1,000 tasks, against {name}"
        _against(
            bench, row, ours, name, peer and saves(peer, bench.some(2, quick=1) * KEYS, tasks=KEYS), SESSIONS_TARGET
        )
    each = bench.some(100, quick=20)
    for name, of_peer, target in ACTORS:
        peer = installed(name)
        theirs = peer and increments(peer, TASKS, bench.some(of_peer, quick=1))
        for kind, initial in (("int", 0), ("dict", None)):
            ours = increments(_make(volatile()), TASKS, each, initial=initial)
            _against(bench, f"volatile update, 1,000 tasks, {kind}, against {name}", ours, name, theirs, target)


def _against(bench: Bench, row: str, ours: Round, name: str, theirs: Round | None, target: float) -> None:
    if theirs is None:
        bench.absent(row, "/s", MISSING)
    else:
        bench.compare(row, Contender("dgents", ours), Contender(name, theirs), target=target)


def _make(agent: Any) -> partial[Dgent]:
    return partial(Dgent, "dgents", agent)
