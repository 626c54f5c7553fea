"""The rows of ``limits`` that go to a server and back."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import dgents
from dgents.benchmarks.bench import Bench
from dgents.benchmarks.loops import HAS_TRIO
from dgents.benchmarks.measure import Contender
from dgents.benchmarks.ours import Dgent
from dgents.benchmarks.rounds import Round, increments, saves
from dgents.benchmarks.servers import postgres_server, redis_server, started

TASKS = 1_000
KEYS = 1_000
CONTENDERS = 12


def run(bench: Bench) -> None:
    """Measure every row whose server is there."""
    with ExitStack() as running:
        url, missing = started(running, redis_server)
        if url:
            _redis(bench, url)
        else:
            bench.absent("Redis", "/s", missing)
    with ExitStack() as running:
        url, missing = started(running, postgres_server)
        if url:
            _postgres(bench, url)
        else:
            bench.absent("PostgreSQL", "/s", missing)


def _redis(bench: Bench, url: str) -> None:
    from dgents.benchmarks.peers.raw_redis import RawRedis, pipelines  # it needs the client

    pipelined = Contender("redis-py, pipelines of 1,000 SETs", pipelines(url, KEYS, bench.some(20)))
    each = bench.some(10, quick=2)
    for ownership, target in (("shared", 0.7), ("exclusive", 2)):
        wide = _wide(each, dgents.RedisAgent, url, ownership=ownership)
        row = f"Redis, {ownership}, 1,000 tasks, 1,000 keys"
        bench.compare(row, Contender("dgents", wide), pipelined, target=target)
    count = bench.some(3_000)
    ours = saves(_make(dgents.RedisAgent, url), count)
    raw = Contender(RawRedis.name, saves(partial(RawRedis, url), count))
    bench.compare("Redis, one after another", Contender("dgents", ours), raw, target=0.8)
    if HAS_TRIO:
        on_trio, on_asyncio = Contender("dgents on trio", ours, loop="trio"), Contender("dgents on asyncio", ours)
        bench.compare("trio: Redis, one after another", on_trio, on_asyncio, target=0.5)


def _postgres(bench: Bench, url: str) -> None:
    from dgents.benchmarks.peers.raw_postgres import RawPostgres  # it needs the client

    raw = Contender(RawPostgres.name, saves(partial(RawPostgres, url), bench.some(1_000)))
    each = bench.some(10, quick=2)
    for ownership in ("exclusive", "shared"):
        wide = _wide(each, dgents.SQLAgent, url, ownership=ownership)
        row = f"PostgreSQL, {ownership}, 1,000 tasks, 1,000 keys"
        bench.compare(row, Contender("dgents", wide), raw, target=20)


def _wide(each: int, agent: Any, url: str, **options: Any) -> Round:
    return increments(_make(agent, url, **options), TASKS, each, keys=KEYS, reopens=True)


def _make(agent: Any, url: str, **options: Any) -> partial[Dgent]:
    return partial(Dgent, "dgents", lambda directory: agent(url, **options))
