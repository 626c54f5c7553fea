"""The suite ``durability``: what each promise costs on this disk, next to what the disk itself can do.

Every row is the same work: 1,000 tasks increment one state. What differs is what is sure when a call returns.
"""

from __future__ import annotations

from functools import partial

from dgents.benchmarks.bench import Bench
from dgents.benchmarks.measure import Contender
from dgents.benchmarks.ours import Dgent, behind, file, sqlite, volatile
from dgents.benchmarks.peers.raw_file import RawFile
from dgents.benchmarks.peers.raw_sqlite import RawSqlite
from dgents.benchmarks.rounds import Round, increments, saves

NAME = "durability"
TITLE = "The price list: 1,000 tasks update one state, by what is sure when the call returns"
TASKS = 1_000


def run(bench: Bench) -> None:
    """Measure every row."""
    busy = (
        ("in memory", volatile(), 100),
        ("write-behind: stored within 50 ms", behind(journal=False), 100),
        ("write-behind with a journal: on this disk, in the store soon", behind(journal=True), 50),
        ("group commit, SQLite: in the database", sqlite(), 50),
        ("group commit, file: in its log", file(), 20),
    )
    lone = (("one caller alone, SQLite: a commit for each", sqlite(), 500),)
    raw = (
        ("the disk: write and fdatasync, one after another", RawFile, 500),
        ("the disk: raw sqlite3 commits, one after another", RawSqlite, 500),
    )
    bench.expect(len(busy) + len(lone) + len(raw))
    for name, agent, each in busy:
        _row(bench, name, increments(partial(Dgent, name, agent), TASKS, bench.some(each)))
    for name, agent, count in lone:
        _row(bench, name, saves(partial(Dgent, name, agent), bench.some(count)))
    for name, peer, count in raw:
        _row(bench, name, saves(peer, bench.some(count)))


def _row(bench: Bench, name: str, round: Round) -> None:
    (samples,) = bench.measure(Contender(name, round))
    bench.row(name, [sample.rate for sample in samples], "/s")
