"""Results as tables in a terminal, and the progress bar that is there until they are ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dgents.benchmarks.result import Result, Run

OnProgress: TypeAlias = Callable[[str, int, int], None]


def number(value: float | None) -> str:
    """Return a figure as it is read: counts in full, else three digits that count; "" for none."""
    if value is None:
        return ""
    if value == int(value):
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(title: str, results: Sequence[Result]) -> Table:
    """Return the rows of one suite; columns that no row fills are left out."""
    shown = _blank(title)
    shown.add_column("", overflow="fold", min_width=min(24, max(len(result.row) for result in results)))
    columns = [
        (heading, cells)
        for heading, cell in _columns(results).items()
        if any(cells := [cell(result) for result in results])
    ]
    for heading, _ in columns:
        shown.add_column(heading, justify="left" if heading == "peer" else "right", no_wrap=heading != "peer")
    for number_of_row, result in enumerate(results):
        shown.add_row(result.row, *(cells[number_of_row] or "-" for _, cells in columns))
    return shown


def _columns(results: Sequence[Result]) -> dict[str, Callable[[Result], str]]:
    """Return what to show under each heading; "" where a row has nothing to show."""
    units = {result.unit for result in results}
    figure = next(iter(units)) if len(units) == 1 else "median"
    columns: dict[str, Callable[[Result], str]] = {
        figure: lambda result: number(result.figure) + (f" {result.unit}" if len(units) > 1 else ""),
        "min max": extremes,
        "peer's": lambda result: number(result.peer_figure),
        "ratio": lambda result: _times(result.ratio),
        "target": _target,
        "reached": _reached,
    }
    for heading in dict.fromkeys(heading for result in results for heading in result.details):
        columns[heading] = _detail(heading)
    columns["peer"] = lambda result: result.peer or ""
    return columns


def _detail(heading: str) -> Callable[[Result], str]:
    return lambda result: number(result.details.get(heading))


def extremes(result: Result) -> str:
    """Return how far the rounds were from their median, in percent: "-3% +5%"; "" for a single round."""
    if result.rounds < 2 or not result.figure:
        return ""
    return f"{result.low / result.figure - 1:+.0%} {result.high / result.figure - 1:+.0%}"


def changes(old: Run, new: Run) -> Table:
    """Return how each row of ``new`` changed against the same row of ``old``.

    A row whose new median lies between the old rounds' extremes is called noise, not change. The ratios to
    the peer are shown too: they are the ones to trust between two machines or two days.
    """
    shown = _blank(f"Change since {old.environment.date}")
    shown.add_column("suite")
    shown.add_column("row", overflow="fold")
    for heading in ("before", "now", "change", "ratio before", "ratio now"):
        shown.add_column(heading, justify="right")
    shown.add_column("")
    before = {result.identity: result for result in old.results}
    for now in new.results:
        was = before.get(now.identity)
        if was is None:
            shown.add_row(now.suite, now.row, "", number(now.figure), "new", "", _times(now.ratio), "")
            continue
        shown.add_row(
            now.suite,
            now.row,
            f"{number(was.figure)} {was.unit}",
            f"{number(now.figure)} {now.unit}",
            f"{change(was, now):+.0%}",
            _times(was.ratio),
            _times(now.ratio),
            verdict(was, now),
        )
    return shown


def change(was: Result, now: Result) -> float:
    """Return by which share the figure changed: 0.5 is half as much again."""
    return now.figure / was.figure - 1 if was.figure else 0.0


def verdict(was: Result, now: Result) -> str:
    """Return "noise", "better" or "worse"."""
    if was.low <= now.figure <= was.high:
        return "noise"
    return "better" if (now.figure > was.figure) == (now.better == "higher") else "worse"


def show(console: Console, run: Run, titles: dict[str, str]) -> None:
    """Print a table for each suite, and where it was measured."""
    for suite, title in titles.items():
        results = [result for result in run.results if result.suite == suite]
        if results:
            console.print(table(title, results))
    if run.results:
        console.print(str(run.environment), style="dim", highlight=False)
    if run.quick and run.results:
        console.print("A quick run: too short for its figures to be quoted.", style="dim")


@contextmanager
def progress(console: Console) -> Iterator[OnProgress]:
    """Show a bar while the block runs; it is gone afterwards."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("warming up", total=None)

        def on_progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield on_progress


def _blank(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{number(ratio)}x"


def _target(result: Result) -> str:
    if result.target is None:
        return ""
    sign = "≥" if result.better == "higher" else "≤"
    return f"{sign} {number(result.target)}{'' if result.ratio is None else 'x'}"


def _reached(result: Result) -> str:
    return {True: "[green]yes[/green]", False: "[red]no[/red]", None: ""}[result.reached]
