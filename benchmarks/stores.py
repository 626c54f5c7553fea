"""Every kind of store that an actor can have, for the suites that set them side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import dgents
from dgents.benchmarks.bench import Bench
from dgents.benchmarks.ours import Dgent, MakeAgent, behind, cached, file, on_server, sqlite, volatile
from dgents.benchmarks.ours_special import Stream, Vectors
from dgents.benchmarks.rounds import MakePeer, Round, increments, saves, timed_loads
from dgents.benchmarks.servers import missing, postgres_server, redis_server, started


@dataclass(frozen=True)
class Store:
    """One way of keeping a state.

    Attributes:
        make: makes the peer; None if it can't run here.
        updates: how many updates by many tasks take some tenths of a second.
        alone: how many a caller does in that time who is alone, and waits for each.
        lasts: whether the states are there when everything was closed and is opened again.
        calls: those that it has; a stream takes events only, and a vector's state is replaced.
        keys: the most keys that can be set up and read again in a few seconds.
        note: why it can't run here.
    """

    name: str
    make: MakePeer | None
    updates: int
    alone: int
    lasts: bool = True
    calls: tuple[str, ...] = ("load", "save", "update")
    keys: int = 100_000
    note: str = ""

    @property
    def whole(self) -> bool:
        """Whether a state is saved and updated as a whole."""
        return len(self.calls) == 3

    def round(self, call: str, tasks: int, each: int, *, timed: bool = False, **options: Any) -> Round:
        """Return a round in which each of ``tasks`` tasks makes a call so often; options as in `increments`."""
        assert self.make is not None, self.note
        if call == "load":
            return timed_loads(self.make, tasks, each)
        if call == "save" or call not in self.calls:
            # Each to a state of its own: of tasks that save the same one, all but one are refused.
            return saves(self.make, each * tasks, tasks=tasks, reopens=self.lasts)
        return increments(self.make, tasks, each, **{"timed": timed, "reopens": self.lasts, **options})


@contextmanager
def stores() -> Iterator[list[Store]]:
    """Start the servers that can be started here, and give all stores while the block lasts."""
    with ExitStack() as running:
        redis, no_redis = started(running, redis_server)
        postgres, no_postgres = started(running, postgres_server)
        vectors, no_vectors = _vectors()
        yield [
            Store("volatile", _dgent(volatile()), 50_000, 50_000, lasts=False),
            Store("write-behind", _dgent(behind(journal=False)), 30_000, 20_000),
            Store("write-behind with a journal", _dgent(behind(journal=True)), 15_000, 1_000, keys=10_000),
            Store("write-through", _dgent(cached()), 10_000, 500),
            Store("SQLite", _dgent(sqlite()), 10_000, 500),
            Store("file", _dgent(file()), 8_000, 500, keys=10_000),
            Store("PostgreSQL", _dgent(on_server(dgents.SQLAgent, postgres)), 5_000, 300, note=no_postgres),
            Store("Redis", _dgent(on_server(dgents.RedisAgent, redis)), 5_000, 1_000, note=no_redis),
            Store("stream", Stream, 10_000, 500, calls=("load", "update"), keys=1_000),
            Store("vectors", vectors, 5_000, 500, calls=("load", "save"), note=no_vectors),
        ]


def add_absent(bench: Bench, found: Sequence[Store], unit: str) -> None:
    """Add a row that says why for each store that can't run here."""
    for store in found:
        if store.make is None:
            bench.absent(store.name, unit, store.note)


def _dgent(agent: MakeAgent | None) -> MakePeer | None:
    return None if agent is None else partial(Dgent, "dgents", agent)


def _vectors() -> tuple[MakePeer | None, str]:
    try:
        Vectors()
    except ImportError as error:
        return None, missing(error)
    return Vectors, ""
