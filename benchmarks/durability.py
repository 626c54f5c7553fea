"""The suite ``durability``: what each promise costs on this disk, next to what the media themselves can do.

Every row is the same work: callers increment one state. What differs is what is sure when a call returns.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter

import msgspec

import dgents
from dgents.benchmarks.bench import Bench
from dgents.benchmarks.measure import Contender, Sample
from dgents.benchmarks.ours import Dgent, MakeAgent, behind, file, on_server, sqlite, volatile
from dgents.benchmarks.peers.raw_file import RawFile
from dgents.benchmarks.peers.raw_journal import RawJournal
from dgents.benchmarks.peers.raw_sqlite import RawSqlite
from dgents.benchmarks.rounds import Round, increments, saves
from dgents.benchmarks.servers import postgres_server, redis_server, started
from dgents.benchmarks.states import profile

NAME = "durability"
TITLE = "The price list: updates a second, by what is sure when the call returns"
TASKS = 1_000


def run(bench: Bench) -> None:
    """Measure every row."""
    with ExitStack() as running:
        redis, no_redis = started(running, redis_server)
        postgres, no_postgres = started(running, postgres_server)
        _measure(bench, redis, postgres)
    for name, note in (("Redis", no_redis), ("PostgreSQL", no_postgres)):
        if note:
            bench.absent(name, "/s", note)


def _measure(bench: Bench, redis: str, postgres: str) -> None:
    many: list[tuple[str, MakeAgent | None, int]] = [
        ("volatile: in memory", volatile(), 100),
        ("write-behind: stored within 50 ms", behind(journal=False), 100),
        ("write-behind with a journal: on this disk", behind(journal=True), 50),
        ("SQLite, group commit: in the database", sqlite(), 50),
        ("file, group commit: in its log", file(), 30),
        ("PostgreSQL, group commit: in the database", on_server(dgents.SQLAgent, postgres), 30),
        ("Redis: in the server's memory", on_server(dgents.RedisAgent, redis), 30),
    ]
    alone: list[tuple[str, MakeAgent | None, int]] = [
        ("volatile: in memory", volatile(), 50_000),
        ("write-behind with a journal: on this disk", behind(journal=True), 1_000),
        ("SQLite: in the database", sqlite(), 500),
        ("file: in its log", file(), 500),
        ("PostgreSQL: in the database", on_server(dgents.SQLAgent, postgres), 500),
        ("Redis: in the server's memory", on_server(dgents.RedisAgent, redis), 1_000),
    ]
    media: list[tuple[str, Round]] = [
        ("memory: copy the bytes of the state", copies(bench.some(200_000))),
        ("disk: write, fdatasync", saves(RawJournal, bench.some(1_000))),
        ("disk: sqlite3, a commit a save", saves(RawSqlite, bench.some(500))),
        ("disk: file, fsync, rename, fsync", saves(RawFile, bench.some(500))),
        *_server_media(bench, redis, postgres),
    ]
    bench.expect(len(many) + len(alone) + len(media))
    for name, agent, each in many:
        _row(bench, f"{TASKS:,} callers", name, agent and increments(_make(agent), TASKS, bench.some(each)))
    for name, agent, count in alone:
        _row(bench, "one caller", name, agent and increments(_make(agent), 1, bench.some(count)))
    for name, round in media:
        _row(bench, "the medium itself, one write after another", name, round)


def _server_media(bench: Bench, redis: str, postgres: str) -> list[tuple[str, Round]]:
    found: list[tuple[str, Round]] = []
    if postgres:
        from dgents.benchmarks.peers.raw_postgres import RawPostgres  # it needs the client

        found.append(("PostgreSQL: psycopg, a commit a save", saves(partial(RawPostgres, postgres), bench.some(500))))
    if redis:
        from dgents.benchmarks.peers.raw_redis import RawRedis, pipelines  # it needs the client

        found.append(("Redis: redis-py, a SET", saves(partial(RawRedis, redis), bench.some(2_000))))
        found.append(("Redis: redis-py, 1,000 SETs a pipeline", pipelines(redis, 1_000, bench.some(20))))
    return found


def copies(count: int) -> Round:
    """Copy the encoded state so often; the last copy must be like it."""

    async def round(directory: Path) -> Sample:
        data = bytearray(msgspec.msgpack.encode(profile()))
        started = perf_counter()
        for _ in range(count):
            copy = bytes(data)
        seconds = perf_counter() - started
        return Sample(operations=count, seconds=seconds, expected=data, found=copy)

    return round


def _make(agent: MakeAgent) -> partial[Dgent]:
    return partial(Dgent, "dgents", agent)


def _row(bench: Bench, panel: str, name: str, round: Round | None) -> None:
    if round is None:  # its server can't be started here
        return
    (samples,) = bench.measure(Contender(name, round))
    bench.row(name, [sample.rate for sample in samples], "/s", panel=panel)
