"""Every store's rounds are verified, on both loops; so are those of two processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from dgents.benchmarks import latency, stores, throughput
from dgents.benchmarks.bench import Bench, OutOfTime
from dgents.benchmarks.lost_updates import between_processes
from dgents.benchmarks.measure import Contender, Loop, VerificationError, run_round
from dgents.benchmarks.ours import Dgent, volatile
from dgents.benchmarks.servers import missing, postgres_server, redis_server
from dgents.benchmarks.states import profile
from dgents.benchmarks.stores import Store
from dgents.benchmarks.two_processes import two_processes_round

NAMES = [
    "volatile",
    "write-behind",
    "write-behind with a journal",
    "write-through",
    "SQLite",
    "file",
    "PostgreSQL",
    "Redis",
    "stream",
    "vectors",
]
ROUNDS = [(name, call) for name in NAMES for call in ("load", "save", "update") if (name, call) != ("stream", "save")]


@pytest.fixture(scope="module")
def every() -> Iterator[dict[str, Store]]:
    with stores.stores() as found:
        yield {store.name: store for store in found}


def test_every_store_is_there_and_can_run_here(every: dict[str, Store]) -> None:
    assert list(every) == NAMES
    assert all(store.make is not None for store in every.values())


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize(("name", "call"), ROUNDS)
def test_a_round_of_a_store_is_verified(
    every: dict[str, Store], name: str, call: str, loop: Loop, tmp_path: Path
) -> None:
    round = every[name].round(call, 4, 3, timed=True)

    sample = run_round(Contender(name, round, loop=loop), tmp_path)

    assert (sample.operations, len(sample.latencies)) == (12, 12)


@pytest.mark.parametrize("name", ["SQLite", "Redis", "stream"])
def test_the_keys_of_a_round_are_counted_one_by_one(every: dict[str, Store], name: str, tmp_path: Path) -> None:
    sample = run_round(Contender(name, every[name].round("update", 4, 3, keys=5)), tmp_path)

    assert sample.found == [3, 3, 2, 2, 2]


def test_rounds_on_one_server_do_not_meet(every: dict[str, Store], tmp_path: Path) -> None:
    for _ in range(2):
        assert run_round(Contender("Redis", every["Redis"].round("update", 2, 2)), tmp_path).found == [4]


def test_a_store_that_forgets_what_should_last_has_no_figure(tmp_path: Path) -> None:
    forgets = Store("volatile", partial(Dgent, "volatile", volatile(profile())), 1, 1, lasts=True)

    with pytest.raises(VerificationError, match=r"found \[0\], expected \[4\]"):
        run_round(Contender("volatile", forgets.round("update", 2, 2)), tmp_path)


def test_a_store_that_can_not_run_here_says_why(tmp_path: Path) -> None:
    bench = Bench("s", tmp_path)
    note = missing(ModuleNotFoundError("no redis", name="redis"))

    stores.add_absent(bench, [Store("Redis", None, 1, 1, note=note)], "/s")

    (row,) = bench.results
    assert (row.rounds, row.note) == (0, "not installed: redis; pip install 'dgents[bench]'")


def test_two_processes_lose_nothing_or_one_is_refused(tmp_path: Path) -> None:
    with redis_server() as redis, postgres_server() as postgres:
        for name, agent in between_processes(redis, postgres).items():
            details = run_round(Contender(name, two_processes_round(agent, 4, 3)), tmp_path).details

            assert details["lost"] == 0
            assert details["refused"] == (6 if name.startswith("file") else 0)


@pytest.mark.parametrize("suite", [latency, throughput])
def test_a_suite_stops_where_its_time_is_up(suite: ModuleType, tmp_path: Path) -> None:
    bench = Bench("s", tmp_path, quick=True, seconds=0)

    with pytest.raises(OutOfTime):
        suite.run(bench)

    assert bench.results == []


def test_latencies_are_shown_as_percentiles(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "stores", only_volatile)
    latency.run(bench)

    assert [row.panel for row in bench.results[:3]] == ["load, one caller", "save, one caller", "update, one caller"]
    assert all(row.figure <= row.details["p99"] <= row.details["p99.9"] for row in bench.results)


def test_throughput_is_shown_as_curves(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "stores", only_volatile)
    throughput.run(bench)

    assert [(row.panel, row.x) for row in bench.results] == [
        ("tasks that update one state", 1),
        ("tasks that update one state", 100),
        ("states that 100 tasks update", 1),
        ("states that 100 tasks update", 100),
        ("bytes of a state that 10 tasks update", 1_000),
        ("bytes of a state that 10 tasks update", 100_000),
    ]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench("s", tmp_path, quick=True)


@contextmanager
def only_volatile() -> Iterator[list[Store]]:
    yield [Store("volatile", partial(Dgent, "volatile", volatile()), 1_000, 1_000, lasts=False)]
