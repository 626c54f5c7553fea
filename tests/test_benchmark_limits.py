"""The rounds of the suite ``limits`` prove their work, and every part of it has rows with targets."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from dgents.benchmarks import (
    limits,
    limits_cached,
    limits_memory,
    limits_peers,
    limits_repair,
    limits_servers,
    limits_streams,
    limits_vectors,
    side_by_side,
)
from dgents.benchmarks.bench import Bench
from dgents.benchmarks.failing import FailingStore
from dgents.benchmarks.measure import Contender, Loop, Sample, VerificationError, run_round
from dgents.benchmarks.peers import raw_faiss
from dgents.benchmarks.peers.raw_postgres import RawPostgres
from dgents.benchmarks.peers.raw_redis import RawRedis, pipelines
from dgents.benchmarks.rounds import Round, saves
from dgents.benchmarks.servers import postgres_server, redis_server

VECTORS = raw_faiss.unit_vectors(60, 16)

ROUNDS: dict[str, Round] = {
    "journal": limits_cached.appends(3, 2),
    "bare journal": limits_cached.raw_appends(3, 2),
    "appends": limits_streams.appends(3, 2),
    "replay": limits_streams.replay(6),
    "open": limits_streams.opens(6),
    "searches": limits_vectors.searches(VECTORS, 3, 2),
    "bare searches": limits_vectors.raw_searches(VECTORS, 6),
    "deletes": limits_vectors.changes(VECTORS, 6, limits_vectors._delete),
    "updates": limits_vectors.changes(VECTORS, 6, limits_vectors._update),
    "bare removals": limits_vectors.raw_removals(VECTORS, 6),
    "upserts": limits_vectors.upserts(VECTORS[:6], "flat"),
    "upserts, hnsw": limits_vectors.upserts(VECTORS[:6], "hnsw"),
    "bare adds": limits_vectors.raw_adds(VECTORS[:6], "flat"),
    "bare adds, hnsw": limits_vectors.raw_adds(VECTORS[:6], "hnsw"),
    "repairs": limits_repair.repairs(12, 6),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_vectors, "DIMENSION", VECTORS.shape[1])
    monkeypatch.setattr(limits_streams, "_LOADS", 6)


def done(round: Round, directory: Path, loop: Loop = "asyncio") -> Sample:
    return run_round(Contender("tiny", round, loop=loop), directory)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("name", ROUNDS)
def test_a_round_is_verified(name: str, loop: Loop, tmp_path: Path) -> None:
    assert done(ROUNDS[name], tmp_path, loop).operations == 6


def test_a_search_that_finds_another_vector_has_no_figure(tmp_path: Path) -> None:
    same = numpy.repeat(VECTORS[:1], 6, axis=0)

    with pytest.raises(VerificationError, match="found 1, expected 6"):
        done(limits_vectors.searches(same, 3, 2), tmp_path)


def test_a_repair_that_did_not_happen_has_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FailingStore, "fail", property(lambda store: False, lambda store, value: None), raising=False)

    with pytest.raises(VerificationError, match="'restarts': 0"):
        done(limits_repair.repairs(12, 6), tmp_path)


def test_the_bare_servers_keep_what_is_saved(tmp_path: Path) -> None:
    with redis_server() as redis:
        assert done(pipelines(redis, 3, 2), tmp_path).found == [2, 2, 2]
        assert done(saves(lambda: RawRedis(redis), 4), tmp_path).found == [4]
    with postgres_server() as postgres:
        assert done(saves(lambda: RawPostgres(postgres), 4), tmp_path).found == [4]


def test_what_is_not_installed_leaves_rows_without_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (limits_peers, limits_streams):
        monkeypatch.setattr(module, "installed", lambda name: None)
    bench = Bench("limits", tmp_path, quick=True)
    limits_peers.run(bench)

    assert len(bench.results) == 9
    assert all((row.rounds, row.note) == (0, side_by_side.MISSING) for row in bench.results)


def test_the_suite_runs_every_part_and_counts_its_contenders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    for part in limits.PARTS:
        monkeypatch.setattr(part, "run", lambda bench, part=part: done.append(part))
    limits.run(Bench("limits", tmp_path, quick=True))

    assert done == list(limits.PARTS)
    assert {limits_memory, limits_servers} <= set(done)
