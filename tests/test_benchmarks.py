"""How figures come about and are shown; what the suites measure is not tested here."""

from __future__ import annotations

import builtins
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from rich.console import Console

import dgents.benchmarks.run
from dgents.benchmarks import plot, suites
from dgents.benchmarks.bench import Bench
from dgents.benchmarks.environment import Environment, environment
from dgents.benchmarks.measure import (
    Contender,
    Sample,
    VerificationError,
    growth,
    interleave,
    median_ratio,
    percentile,
    percentiles,
    spread,
)
from dgents.benchmarks.report import changes, number, print_whole, table, tables, verdict
from dgents.benchmarks.result import Result, Run
from dgents.benchmarks.run import run, run_suites
from dgents.benchmarks.states import SIZES, profile, sized
from dgents.benchmarks.tally import Tally

SOMEWHERE = Environment("a processor", 2, "Linux", "CPython 3.11", {"dgents": "0.1"}, "ext4", "2026-01-01")


def leave_a_file(directory: Path) -> None:
    (directory / "state").write_bytes(b"state")


def contender(name: str = "ours", seconds: float = 1.0, found: Any = 10, log: list[str] | None = None) -> Contender:
    async def round(directory: Path) -> Sample:
        leave_a_file(directory)
        if log is not None:
            log.append(name)
        return Sample(operations=10, seconds=seconds, expected=10, found=found)

    return Contender(name, round)


def result(**fields: Any) -> Result:
    given = {
        "suite": "s",
        "row": "saves",
        "figure": 1234.5,
        "unit": "/s",
        "low": 1100.0,
        "high": 1300.0,
        "rounds": 5,
    }
    return Result(**{**given, **fields})


def text_of(shown: Any) -> str:
    console = Console(file=StringIO(), width=200)
    console.print(shown)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@dataclass
class FakeSuite:
    """A suite of one row."""

    work: Callable[[Bench], Any]
    NAME: str = "fake"
    TITLE: str = "A fake suite"

    def run(self, bench: Bench) -> Any:
        return self.work(bench)


def test_the_spread_is_the_median_and_the_extremes() -> None:
    assert spread([5.0, 1.0, 3.0]) == (3.0, 1.0, 5.0)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 500), (0.99, 990), (0.999, 999), (1.0, 1000), (0.0, 1)])
def test_a_percentile_is_the_nearest_rank_whatever_the_order(share: float, expected: int) -> None:
    values = list(range(1, 1001))
    random.Random(1).shuffle(values)

    assert percentile(values, share) == expected


def test_the_percentile_of_a_single_value_is_that_value() -> None:
    assert percentiles([0.002]) == {"p50 ms": 2.0, "p99 ms": 2.0, "p99.9 ms": 2.0}


def test_the_ratio_is_that_of_the_pairs_so_that_drift_cancels() -> None:
    ours, peers = [200.0, 20.0, 100.0], [100.0, 10.0, 50.0]

    assert median_ratio(ours, peers) == 2.0


@pytest.mark.parametrize(("power", "expected"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (-1.0, -1.0)])
def test_the_growth_of_a_curve_is_its_exponent(power: float, expected: float) -> None:
    assert growth([(x, 7 * x**power) for x in (1, 10, 1_000)]) == pytest.approx(expected)


def test_the_growth_is_that_of_the_end_of_the_curve() -> None:
    assert growth([(1, 100), (10, 1), (100, 1), (1_000, 1)]) == pytest.approx(0)


@pytest.mark.parametrize("curve", [[], [(10.0, 1.0)], [(10.0, 1.0), (10.0, 2.0)], [(1.0, 0.0), (2.0, 3.0)]])
def test_a_single_point_has_no_growth(curve: list[tuple[float, float]]) -> None:
    assert growth(curve) is None


def test_rounds_alternate_and_the_warm_up_is_not_counted(tmp_path: Path) -> None:
    log: list[str] = []

    samples = interleave([contender("a", log=log), contender("b", log=log)], 2, tmp_path)

    assert log == ["b", "a", "a", "b", "b", "a"]
    assert [len(of_one) for of_one in samples] == [2, 2]


def test_a_round_leaves_no_files_behind(tmp_path: Path) -> None:
    interleave([contender()], 1, tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_wrong_result_is_no_sample() -> None:
    with pytest.raises(VerificationError, match="ours: found 9, expected 10"):
        Sample(operations=1, seconds=1, expected=10, found=9).verified("ours")


@pytest.mark.parametrize("fields", [{}, {"expected": 1}, {"found": 1}])
def test_a_result_that_nobody_checked_is_no_sample(fields: dict[str, int]) -> None:
    with pytest.raises(VerificationError, match="not checked"):
        Sample(operations=1, seconds=1, **fields).verified("ours")  # type: ignore[arg-type]


def test_a_wrong_warm_up_ends_the_measurement(tmp_path: Path) -> None:
    with pytest.raises(VerificationError):
        interleave([contender(found=9)], 0, tmp_path)


def test_a_row_compares_the_median_rates(tmp_path: Path) -> None:
    bench = Bench("s", tmp_path)

    bench.compare("row", contender(seconds=1), contender("peer", seconds=4), target=3)

    (row,) = bench.results
    assert (row.figure, row.peer_figure, row.ratio, row.rounds) == (10, 2.5, 4, 5)
    assert row.reached is True


def test_a_peer_that_fails_its_check_leaves_no_row(tmp_path: Path) -> None:
    bench = Bench("s", tmp_path, quick=True)

    with pytest.raises(VerificationError):
        bench.compare("row", contender(), contender("peer", found=9))

    assert bench.results == []


@pytest.mark.parametrize(
    ("fields", "reached", "score"),
    [
        ({}, None, None),
        ({"ratio": 4.0, "target": 2.0}, True, 2.0),
        ({"ratio": 1.0, "target": 2.0}, False, 0.5),
        ({"ratio": 4.0, "target": 2.0, "better": "lower"}, False, 0.5),
        ({"figure": 10.0, "target": 20.0, "better": "lower"}, True, 2.0),
    ],
)
def test_a_target_is_for_the_ratio_or_else_for_the_figure(
    fields: dict[str, Any], reached: bool | None, score: float | None
) -> None:
    assert (result(**fields).reached, result(**fields).score) == (reached, score)


@pytest.mark.parametrize(("quick", "total"), [(True, 1), (False, 6)])
def test_progress_counts_rounds_and_warm_ups_which_a_quick_run_has_not(quick: bool, total: int, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    bench = Bench("s", tmp_path, quick=quick, on_progress=lambda *now: seen.append(now))
    bench.expect(1)

    bench.measure(contender())

    assert seen == [("ours", done, total) for done in range(1, total + 1)]


def test_a_run_survives_its_json(tmp_path: Path) -> None:
    before = Run(SOMEWHERE, [result(peer="p", peer_figure=2.0, ratio=3.0, details={"lost": 0.0})], quick=True)
    (tmp_path / "run.json").write_bytes(before.to_json())

    assert Run.read(tmp_path / "run.json") == before


@pytest.mark.parametrize("content", ["", "[]", '{"results": 3}'])
def test_a_file_that_holds_no_run_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)

    with pytest.raises(ValueError, match=r"other\.json holds no benchmark run"):
        Run.read(path)


def test_the_environment_names_what_the_figures_depend_on(tmp_path: Path) -> None:
    here = environment(tmp_path)

    assert here.cores >= 1
    assert here.python.endswith(sys.version.split()[0])
    assert {"dgents", "sqlite", "anyio"} <= set(here.versions)
    assert here.file_system in str(here)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (0, "0"),
        (104_895, "104,895"),
        (123_456.7, "123,000"),
        (12.345, "12.3"),
        (0.01234, "0.0123"),
    ],
)
def test_numbers_show_three_digits_and_counts_in_full(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_a_table_leaves_out_the_columns_that_no_row_fills() -> None:
    shown = text_of(table("Title", [result()]))

    assert "1,230" in shown
    assert "-11% +5%" in shown
    assert "target" not in shown
    assert "peer" not in shown


def test_a_table_shows_ratio_target_and_details() -> None:
    row = result(peer="a lock", peer_figure=2.0, ratio=3.0, target=6.0, details={"lost": 7.0})

    words = text_of(table("Title", [row])).split()

    assert {"3x", "6x", "no", "lost", "7", "lock"} <= set(words)


def test_a_table_that_is_wider_than_the_terminal_is_printed_whole() -> None:
    row = result(peer="asyncio.Lock + deepcopy", note="graph.ainvoke(...) loses", details={"kept of them": 7.0})
    console = Console(file=StringIO(), width=30)

    print_whole(console, table("Title", [row]))

    assert isinstance(console.file, StringIO)
    words = set(console.file.getvalue().split())
    assert {"asyncio.Lock", "deepcopy", "graph.ainvoke(...)", "loses", "kept", "them"} <= words


@pytest.mark.parametrize(
    ("rounds", "better", "expected"),
    [
        ((1250, 1400, 1500), "higher", "noise"),
        ((1900, 2000, 2100), "higher", "better"),
        ((1900, 2000, 2100), "lower", "worse"),
        ((900, 1000, 1050), "lower", "better"),
    ],
)
def test_a_change_within_the_spread_is_noise(
    rounds: tuple[float, float, float], better: Literal["higher", "lower"], expected: str
) -> None:
    low, figure, high = rounds

    assert verdict(result(), result(low=low, figure=figure, high=high, better=better)) == expected


def test_single_rounds_have_no_spread_and_no_verdict() -> None:
    assert verdict(result(rounds=1), result(figure=5000.0)) == ""


def test_a_comparison_shows_the_change_of_each_row_and_which_are_new() -> None:
    old = Run(SOMEWHERE, [result(figure=1000.0)])
    new = Run(SOMEWHERE, [result(figure=1500.0), result(row="loads")])

    shown = text_of(changes(old, new))

    assert "+50%" in shown
    assert "new" in shown


def test_a_panel_of_curves_has_a_column_for_each_x_and_its_growth() -> None:
    curve = [result(panel="actors", x=x, figure=5.0 * x, row="memory") for x in (1.0, 100.0)]
    other = result(panel="tasks", row="alone")

    shown = [text_of(one) for one in tables("T", [*curve, other])]

    assert [text.splitlines()[0].strip() for text in shown] == ["T: actors, /s", "T: tasks"]
    assert shown[0].split()[3:6] == ["1", "100", "growth"]
    assert shown[0].split()[-4:] == ["memory", "5", "500", "x^+1.00"]


def test_a_quick_run_does_not_say_what_it_can_not_know() -> None:
    rows = [result(ratio=2.0, target=1.0, peer="p")]

    assert "target" in text_of(tables("T", rows)[0])
    assert "target" not in text_of(tables("T", rows, quick=True)[0])


def test_a_suite_whose_time_is_up_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dgents.benchmarks.run, "QUICK_SECONDS", 0.0)

    def work(bench: Bench) -> None:
        bench.row("counted", [1.0], "/s")
        bench.measure(contender())
        raise AssertionError("it went on")

    status, shown = run_fake(work)

    assert status == 0
    assert "counted" in shown
    assert "its time is up" in shown


def test_a_suite_that_fails_leaves_the_others_their_figures(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(bench: Bench) -> None:
        raise LookupError("no such thing")

    output = Console(file=StringIO(), width=120)
    good = FakeSuite(lambda bench: bench.row("counted", [1.0], "/s"), NAME="good")
    status = run_suites([FakeSuite(fail), good], True, None, None, None, console=output)

    assert status == 1
    assert isinstance(output.file, StringIO)
    assert "counted" in output.file.getvalue()
    assert "fake: no figures, because it failed: LookupError: no such thing" in capsys.readouterr().err


def test_curves_and_percentiles_are_drawn(tmp_path: Path) -> None:
    shares = {"p99": 20.0, "p99.9": 3_000.0}
    curve = [result(panel="actors", x=x, row=row) for x in (1.0, 10.0) for row in ("a", "b")]
    rows = [*curve, result(suite="t", panel="load", details=shares), result(suite="t", panel="save", details=shares)]

    paths = plot.draw(Run(SOMEWHERE, rows), {"s": "S", "t": "T"}, tmp_path)

    assert [path.name for path in paths] == ["s.png", "s.svg", "t.png", "t.svg"]
    assert "log scale" in (tmp_path / "s.svg").read_text()


def test_pictures_are_drawn_as_png_and_svg(tmp_path: Path) -> None:
    fates = {"asked": 4.0, "kept": 3.0, "refused": 1.0, "lost": 0.0}
    rows = [result(), result(suite="t", ratio=2.0, target=1.0, peer="p"), result(suite="u", details=fates)]

    paths = plot.draw(Run(SOMEWHERE, rows), {"s": "S", "t": "T", "u": "U", "empty": "E"}, tmp_path / "plots")

    assert [path.name for path in paths] == ["s.png", "s.svg", "t.png", "t.svg", "u.png", "u.svg"]
    assert all(path.stat().st_size > 1_000 for path in paths)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)

    with pytest.raises(ImportError, match=r"dgents\[bench\]"):
        plot.figure_class()


def run_fake(work: Callable[[Bench], Any], **options: Any) -> tuple[int, str]:
    output = StringIO()
    given = {"quick": True, "plot": None, "json": None, "compare": None, **options}
    status = run_suites([FakeSuite(work)], console=Console(file=output, width=120), **given)
    return status, output.getvalue()


def test_a_suite_prints_its_figures_and_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    status, output = run_fake(
        lambda bench: bench.compare("row", contender(), contender("peer", 4)), json=tmp_path / "run.json"
    )

    assert (status, "2.5" in output) == (0, True)
    assert json.loads((tmp_path / "run.json").read_text())["results"][0]["ratio"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_suite_whose_verification_fails_prints_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def work(bench: Bench) -> None:
        bench.compare("right", contender(seconds=0.0807), contender("peer"))
        bench.compare("wrong", contender(found=9), contender("peer"))

    status, output = run_fake(work, json=tmp_path / "run.json")

    assert (status, output.strip()) == (1, "")
    assert "fake: no figures" in capsys.readouterr().err
    assert Run.read(tmp_path / "run.json").results == []


def test_an_async_suite_is_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    class AsyncSuite(FakeSuite):
        async def run(self, bench: Bench) -> None:
            bench.row("awaited", [1.0], "/s")

    output = StringIO()
    suite: Sequence[Any] = [AsyncSuite(print)]
    status = run_suites(suite, True, None, None, None, console=Console(file=output, width=120))

    assert (status, "awaited" in output.getvalue()) == (0, True)


def test_an_unknown_suite_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="no suite 'nope'; there are: lost-updates"):
        run(["nope"])


def test_every_registered_suite_can_be_found_under_its_name() -> None:
    assert [suite.NAME for suite in suites.find()] == list(suites.MODULES)


def test_the_state_has_the_size_that_the_documents_say() -> None:
    state = profile()

    assert (len(state), len(json.dumps(state)), len(msgspec.msgpack.encode(state))) == (10, 615, 495)


@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_state_of_a_size_has_that_size(size_bytes: int) -> None:
    assert len(msgspec.msgpack.encode(sized(size_bytes))) == size_bytes


def test_an_acknowledged_increment_that_is_missing_fails_a_safe_pattern() -> None:
    tally = Tally()
    tally.acknowledged, tally.refused = 8, 2

    tally.sample(10, 8, 1.0, safe=True).verified("complete")
    tally.sample(10, 3, 1.0, safe=False).verified("known to lose")
    with pytest.raises(VerificationError):
        tally.sample(10, 7, 1.0, safe=True).verified("one lost")
