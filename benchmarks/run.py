"""Run suites, show what they found, and keep it: what ``dgents bench`` does."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Sequence
from math import inf
from pathlib import Path
from time import monotonic

import anyio
from rich.console import Console

from dgents.benchmarks import plot as plots
from dgents.benchmarks.bench import Bench, OutOfTime
from dgents.benchmarks.environment import environment
from dgents.benchmarks.measure import VerificationError
from dgents.benchmarks.report import changes, print_whole, progress, show
from dgents.benchmarks.result import Result, Run
from dgents.benchmarks.suites import Suite, find

QUICK_SECONDS = 90.0  # for all suites of a quick run together; what is under way when they are up is finished


def run(
    suites: Sequence[str] = (),
    quick: bool = False,
    plot: Path | None = None,
    json: Path | None = None,
    compare: Path | None = None,
    *,
    console: Console | None = None,
) -> int:
    """Run suites and print their tables; return the exit status.

    What is written is written below the working directory: its file system is the one that is measured.

    Args:
        suites: names; none stands for all.
        quick: be done in seconds; not to be quoted.
        plot: a directory for PNG and SVG pictures.
        json: a file for the results.
        compare: the ``json`` of an earlier run, to show the change against it.

    Returns:
        0; or 1 if a suite failed, or a result of it could not be verified: stderr says which, and no figure of it is
        shown.

    Raises:
        ValueError: a suite's name is unknown, or ``compare`` holds no run.
        ImportError: ``plot`` is given and matplotlib is not installed.
        OSError: a file can't be read or written.
    """
    return run_suites(find(suites), quick, plot, json, compare, console=console or Console())


def run_suites(
    chosen: Sequence[Suite],
    quick: bool,
    plot: Path | None,
    json: Path | None,
    compare: Path | None,
    *,
    console: Console,
) -> int:
    """Do what `run` does, with the suites themselves."""
    # What can fail fails now, and not after minutes of measuring.
    before = None if compare is None else Run.read(compare)
    if plot is not None:
        plots.figure_class()
        plot.mkdir(parents=True, exist_ok=True)
    if json is not None:
        json.open("ab").close()
    results, failures = [], []
    with tempfile.TemporaryDirectory(prefix=".dgents-bench-", dir=Path.cwd()) as scratch:
        where = environment(Path(scratch))
        end = monotonic() + (QUICK_SECONDS if quick else inf)
        for left, suite in zip(range(len(chosen), 0, -1), chosen, strict=True):
            share = (end - monotonic()) / left  # what one suite leaves over is the others'
            try:
                results += measured(suite, Path(scratch), quick, console, share)
            except VerificationError as error:
                failures.append(f"{suite.NAME}: no figures, because a result could not be verified: {error}")
            except Exception as error:  # of a library that is compared, perhaps: the other suites have their figures
                failures.append(f"{suite.NAME}: no figures, because it failed: {type(error).__name__}: {error}")
    done = Run(where, results, quick)
    titles = {suite.NAME: suite.TITLE for suite in chosen}
    show(console, done, titles)
    if before is not None:
        print_whole(console, changes(before, done))
    if json is not None:
        json.write_bytes(done.to_json())
    if plot is not None:
        for path in plots.draw(done, titles, plot):
            console.print(str(path), highlight=False)
    for failure in failures:
        Console(stderr=True).print(failure, highlight=False, markup=False)
    return 1 if failures else 0


def measured(suite: Suite, scratch: Path, quick: bool, console: Console, seconds: float = inf) -> list[Result]:
    """Run one suite and return its rows: those that ``seconds`` were enough for.

    Raises:
        VerificationError: one of its results is wrong; then none of them counts.
    """
    with progress(console) as on_progress:
        bench = Bench(suite.NAME, scratch, quick=quick, seconds=seconds, on_progress=on_progress)
        try:
            if inspect.iscoroutinefunction(suite.run):
                anyio.run(suite.run, bench)
            else:
                suite.run(bench)
        except OutOfTime:
            console.print(f"{suite.NAME}: its time is up; a quick run leaves out the rest of its rows", style="dim")
    return bench.results
