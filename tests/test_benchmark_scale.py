"""The suite ``scale``: each curve in a tiny form, and that nothing wrong becomes a point on one."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

import dgents
from dgents.benchmarks import (
    scale,
    scale_actors,
    scale_crowd,
    scale_events,
    scale_history,
    scale_index,
    scale_mailbox,
    scale_place,
    scale_vectors,
)
from dgents.benchmarks.bench import Bench
from dgents.benchmarks.measure import Contender, Sample, VerificationError, run_round
from dgents.benchmarks.ours import sqlite
from dgents.benchmarks.rounds import Round
from dgents.benchmarks.scale_place import Place


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench("scale", tmp_path, quick=True)


def done(round: Round, directory: Path) -> Sample:
    return run_round(Contender("tiny", round), directory)


def crowd(kind: str, count: int) -> Round:
    return lambda directory: scale_crowd.KINDS[kind](count)


def lone(figure: float, expected: int = 1, found: int = 1) -> Round:
    async def round(directory: Path) -> Sample:
        return Sample(operations=1, seconds=1, expected=expected, found=found, details={"curve": figure})

    return round


def place(round: Round, **fields: Any) -> Place:
    return Place(**{"panel": "things", "x": 10, "round": round, "curves": {"curve": "µs", "other": "ms"}, **fields})


@pytest.mark.parametrize("kind", scale_crowd.KINDS)
@pytest.mark.parametrize("count", [1, 20, 1_000])
def test_every_actor_of_a_crowd_answers_and_none_is_a_task(kind: str, count: int, tmp_path: Path) -> None:
    sample = done(crowd(kind, count), tmp_path)

    assert sample.found == {"answers": sample.operations, "unlike": 0, "tasks": 0, "crowded": 0}
    assert sample.details.keys() <= scale_crowd.CURVES.keys()


def test_the_kinds_of_crowds_make_up_all_curves_of_actors(tmp_path: Path) -> None:
    samples = [done(crowd(kind, scale_crowd.WEIGHABLE), tmp_path) for kind in scale_crowd.KINDS]

    assert {curve for sample in samples for curve in sample.details} == set(scale_crowd.CURVES)


def test_where_the_grain_of_memory_and_the_runtime_itself_would_be_measured_there_is_no_figure(tmp_path: Path) -> None:
    details = done(crowd("spawned", 10), tmp_path).details

    assert details.keys() == {scale_crowd.SPAWN, scale_crowd.LOAD_SOME, scale_crowd.LOAD_ANY}


@pytest.mark.parametrize("kind", scale_crowd.KINDS)
def test_actors_that_answer_wrongly_give_no_figure(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_crowd, "_next", lambda visits: visits + 2)

    with pytest.raises(VerificationError, match="'answers': 0"):
        done(crowd(kind, 1_000), tmp_path)


def test_actors_that_load_another_state_give_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def load(ref: Any) -> int:
        return 2

    monkeypatch.setattr(dgents.Ref, "load", load)

    with pytest.raises(VerificationError, match="'unlike': -"):
        done(crowd("spawned", 1_000), tmp_path)


@pytest.mark.parametrize("kind", ["virtual", "addressable"])
def test_actors_that_stay_beyond_the_cap_give_no_figure(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = dgents.Runtime.register
    monkeypatch.setattr(
        dgents.Runtime,
        "register",
        lambda runtime, prefix, factory, max_active: register(runtime, prefix, factory),
    )

    with pytest.raises(VerificationError, match="'crowded': 1"):
        done(crowd(kind, 1_000), tmp_path)


@pytest.mark.parametrize("shared", [False, True])
def test_a_log_has_its_length_and_the_state_of_all_events(shared: bool, tmp_path: Path) -> None:
    log = tmp_path / "log" if shared else None
    sample = done(partial(scale_events.round, 30, log), tmp_path)

    assert sample.details.keys() == scale_events.CURVES.keys()
    assert sample.found.entries == 30 + scale_events.APPENDS


def test_a_log_that_is_shared_grows_from_place_to_place(tmp_path: Path) -> None:
    lengths = [
        done(partial(scale_events.round, length, tmp_path / "log"), tmp_path).found.entries for length in (5, 90)
    ]

    assert lengths == [5 + scale_events.APPENDS, 90 + scale_events.APPENDS]


def test_only_long_logs_are_shared(tmp_path: Path) -> None:
    for one in scale_events.places(Bench("scale", tmp_path)):
        (_, shared) = one.round.args  # type: ignore[attr-defined]
        assert (shared is not None) is (one.x > scale_events.BUILT_ANEW)


def test_a_log_whose_state_is_wrong_gives_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(account: scale_events.Account, event: scale_events.Paid) -> scale_events.Account:
        return (
            account if event.amount == 7 else scale_events.Account(account.balance + event.amount, account.entries + 1)
        )

    monkeypatch.setattr(scale_events, "pay", forgetful)

    with pytest.raises(VerificationError, match="entries=79"):
        done(partial(scale_events.round, 30, None), tmp_path)


@pytest.mark.parametrize("count", [1, 300])
def test_all_messages_of_a_mailbox_are_done_in_their_order(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale_mailbox, "ENOUGH", 100)
    sample = done(partial(scale_mailbox.round, count), tmp_path)

    assert sample.found == max(count, 100)
    assert sample.details.keys() == scale_mailbox.CURVES.keys()


@pytest.mark.filterwarnings("ignore")
def test_messages_that_are_refused_give_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(state: int, number: int) -> int:
        raise ValueError("no")

    monkeypatch.setattr(scale_mailbox, "_follow", refuse)
    monkeypatch.setattr(scale_mailbox, "ENOUGH", 1)

    with pytest.raises(VerificationError, match="found 0, expected 3"):
        done(partial(scale_mailbox.round, 3), tmp_path)


def test_as_many_versions_are_kept_as_the_bound_says(tmp_path: Path) -> None:
    sample = done(partial(scale_history.round, 3, 2), tmp_path)

    assert sample.found == ([scale_history.TASKS * 2], 3)
    assert sample.details[scale_history.UPDATE] > 0


def test_a_history_of_another_length_gives_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_history, "sqlite", lambda bound: sqlite(bound + 1))

    with pytest.raises(VerificationError):
        done(partial(scale_history.round, 3, 2), tmp_path)


def test_vectors_are_found_moved_and_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_index, "WEIGHABLE", 150)
    sample = done(lambda directory: scale_index.index(150), tmp_path)

    assert sample.details.keys() == scale_index.CURVES.keys()
    assert sample.found["left"] == 150 - scale_index.PROBES


@pytest.mark.parametrize("operation", ["save", "delete", "search"])
def test_an_index_that_does_not_do_as_told_gives_no_figure(
    operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    async def nothing(*_: Any, **__: Any) -> list[Any]:
        return []

    monkeypatch.setattr(dgents.VectorRef, operation, nothing)

    with pytest.raises(VerificationError):
        done(lambda directory: scale_index.index(150), tmp_path)


def test_without_faiss_the_rows_say_what_to_install(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_vectors, "find_spec", lambda name: None)

    assert list(scale_vectors.places(bench)) == []
    assert [(result.row, result.rounds, result.note) for result in bench.results] == [
        (curve, 0, scale_vectors.MISSING) for curve in scale_index.CURVES
    ]


def test_a_round_in_a_process_of_its_own_is_the_same_round(tmp_path: Path) -> None:
    sample = done(scale_place.in_process(scale_crowd.__name__, "addressable", 10), tmp_path)

    assert (sample.operations, sample.found["answers"]) == (10, 10)


def test_what_was_not_verified_does_not_come_back_from_a_process(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    async def unverified() -> Sample:
        return Sample(operations=1, seconds=1)

    with pytest.raises(TypeError):
        scale_place.answer(unverified)
    assert capfdbinary.readouterr().out == b""


def test_a_sample_survives_the_way_between_two_processes() -> None:
    before = Sample(operations=2, seconds=0.5, expected={"n": 1}, found={"n": 2}, latencies=[1.0], details={"µs": 0.25})

    after = msgspec.json.decode(msgspec.json.encode(before), type=Sample)

    assert after == before
    with pytest.raises(VerificationError):
        after.verified("it")


def test_each_figure_of_a_place_is_a_point_of_its_curve(bench: Bench) -> None:
    scale.measure(bench, place(lone(3.0)))

    (point,) = bench.results
    assert (point.row, point.panel, point.x, point.figure, point.unit) == ("curve", "things", 10, 3.0, "µs")
    assert point.better == "lower"


def test_a_place_where_the_work_was_not_done_has_no_points(bench: Bench) -> None:
    with pytest.raises(VerificationError, match="10 things: found 2, expected 1"):
        scale.measure(bench, place(lone(3.0, found=2)))
    assert bench.results == []


def test_where_there_is_more_there_are_fewer_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panel:
        @staticmethod
        def places(bench: Bench) -> list[Place]:
            return [place(lone(1.0), x=x, rounds=scale_place.rounds_for(x)) for x in (10, 100_000, 1_000_000)]

    monkeypatch.setattr(scale, "PANELS", (Panel,))
    bench = Bench("scale", tmp_path)
    scale.run(bench)

    assert [(result.x, result.rounds) for result in bench.results] == [(10, 5), (100_000, 3), (1_000_000, 1)]
    assert bench.rounds == 5


PLACES: list[Callable[[Bench], Any]] = [panel.places for panel in scale.PANELS]


@pytest.mark.parametrize("places", PLACES)
def test_a_quick_run_has_fewer_places_than_a_full_one(places: Callable[[Bench], Any], tmp_path: Path) -> None:
    quick = list(places(Bench("scale", tmp_path, quick=True)))
    full = list(places(Bench("scale", tmp_path, seconds=math.inf)))

    assert len(quick) < len(full)
    assert max(one.x for one in quick) <= max(one.x for one in full)


def test_a_million_actors_are_measured_once(tmp_path: Path) -> None:
    most = [one for one in scale_actors.places(Bench("scale", tmp_path)) if one.x == 1_000_000]

    assert [one.rounds for one in most] == [1] * len(scale_crowd.KINDS)
