"""Results as tables in a terminal, and the progress bar that is there until they are ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dgents.benchmarks.measure import growth
from dgents.benchmarks.result import Result, Run

OnProgress: TypeAlias = Callable[[str, int, int], None]
Cell: TypeAlias = Callable[[Result], str]


def number(value: float | None) -> str:
    """Return a figure as it is read: counts in full, else three digits that count; "" for none."""
    if value is None:
        return ""
    if value == int(value):
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def tables(title: str, results: Sequence[Result], *, quick: bool = False) -> list[Table]:
    """Return the tables of one suite: one a panel, or one altogether; curves have a column for each x."""
    found = []
    for panel in dict.fromkeys(result.panel for result in results):
        rows = [result for result in results if result.panel == panel]
        heading = f"{title}: {panel}" if panel else title
        for unit in dict.fromkeys(result.unit for result in rows if result.x is not None):
            found.append(curves(f"{heading}, {unit}", [result for result in rows if result.unit == unit]))
        alone = [result for result in rows if result.x is None]
        if alone:
            found.append(table(heading, alone, quick=quick))
    return found


def table(title: str, results: Sequence[Result], *, quick: bool = False) -> Table:
    """Return the rows of one panel; a quick run is too short to say whether a target is reached."""
    columns = _columns(results)
    if quick:
        del columns["target"], columns["reached"]
    return _filled(title, [result.row for result in results], results, columns)


def curves(title: str, results: Sequence[Result]) -> Table:
    """Return a row for each curve, a column for each x, and how fast the figure grows with x."""
    shown = _table(title)
    places = sorted({result.x for result in results if result.x is not None})
    for place in places:
        shown.add_column(number(place), justify="right")
    shown.add_column("growth", justify="right")
    for row, points in by_row(results).items():
        figures = {x: number(y) for x, y in points}
        exponent = growth(points)
        cells = [figures.get(place, "-") for place in places]
        shown.add_row(row, *cells, "-" if exponent is None else f"x^{exponent:+.2f}")
    return shown


def by_row(results: Sequence[Result]) -> dict[str, list[tuple[float, float]]]:
    """Return the points of each curve, by the row's name."""
    found: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        if result.x is not None:
            found.setdefault(result.row, []).append((result.x, result.figure))
    return found


def _columns(results: Sequence[Result]) -> dict[str, Cell]:
    """Return what to show under each heading; "" where a row has nothing to show."""
    units = {result.unit for result in results}
    figure = next(iter(units)) if len(units) == 1 else "median"
    columns: dict[str, Cell] = {
        figure: lambda result: (
            number(result.figure) + (f" {result.unit}" if len(units) > 1 else "") if result.rounds else ""
        ),
        "min max": extremes,
        "peer's": lambda result: number(result.peer_figure),
        "ratio": lambda result: _times(result.ratio),
        "target": _target,
        "reached": _reached,
    }
    for heading in dict.fromkeys(heading for result in results for heading in result.details):
        columns[heading] = _detail(heading)
    columns["peer"] = lambda result: result.peer or ""
    columns["note"] = lambda result: escape(result.note)
    return columns


def _detail(heading: str) -> Cell:
    return lambda result: number(result.details.get(heading))


def extremes(result: Result) -> str:
    """Return how far the rounds were from their median, in percent: "-3% +5%"; "" for a single round."""
    if result.rounds < 2 or not result.figure:
        return ""
    return f"{result.low / result.figure - 1:+.0%} {result.high / result.figure - 1:+.0%}"


def changes(old: Run, new: Run) -> Table:
    """Return how each row of ``new`` changed against the same row of ``old``.

    The ratios to the peer are shown too: they are the ones to trust between two machines or two days.
    """
    before = {result.identity: result for result in old.results}

    def if_known(cell: Callable[[Result, Result], str]) -> Cell:
        return lambda now: cell(before[now.identity], now) if now.identity in before else ""

    columns: dict[str, Cell] = {
        "before": if_known(lambda was, now: number(was.figure)),
        "now": lambda now: f"{number(now.figure)} {now.unit}",
        "change": lambda now: f"{change(before[now.identity], now):+.0%}" if now.identity in before else "new",
        "": if_known(verdict),
        "ratio before": if_known(lambda was, now: _times(was.ratio)),
        "ratio now": lambda now: _times(now.ratio),
    }
    names = [result.name for result in new.results]
    return _filled(f"Change since {old.environment.date}", names, new.results, columns)


def change(was: Result, now: Result) -> float:
    """Return by which share the figure changed: 0.5 is half as much again."""
    return now.figure / was.figure - 1 if was.figure else 0.0


def verdict(was: Result, now: Result) -> str:
    """Return "noise" where the rounds of both runs overlap, else "better" or "worse"; "" for single rounds."""
    if was.rounds < 2 or now.rounds < 2:
        return ""
    if was.low <= now.high and now.low <= was.high:
        return "noise"
    return "better" if (now.figure > was.figure) == (now.better == "higher") else "worse"


def show(console: Console, run: Run, titles: dict[str, str]) -> None:
    """Print a table for each suite, and where it was measured."""
    for suite, title in titles.items():
        results = [result for result in run.results if result.suite == suite]
        for one in tables(title, results, quick=run.quick):
            print_whole(console, one)
    if run.results:
        console.print(str(run.environment), style="dim", highlight=False)
        if {"peers", "writers", "limits"} & {result.suite for result in run.results} and run.environment.peers:
            peers = ", ".join(f"{name} {version}" for name, version in run.environment.peers.items())
            console.print(f"peers: {peers}", style="dim", highlight=False)
    if run.quick and run.results:
        console.print("A quick run: too short for its figures to be quoted.", style="dim")


def print_whole(console: Console, shown: Table) -> None:
    """Print a table with all of its columns, if need be beyond the width of the terminal: nothing is cut off."""
    needed = Measurement.get(console, console.options.update_width(1000), shown).minimum
    if needed > console.width:
        shown.width = needed
    console.print(shown, crop=False)


@contextmanager
def progress(console: Console) -> Iterator[OnProgress]:
    """Show a bar while the block runs; it is gone afterwards."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("warming up", total=None)

        def on_progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield on_progress


def _filled(title: str, rows: Sequence[str], results: Sequence[Result], columns: dict[str, Cell]) -> Table:
    """Return a table of ``results``, which are called ``rows``.

    Columns that no row fills are left out, and cells without content get "-".
    """
    shown = _table(title)
    filled = []
    for heading, cell in columns.items():
        cells = [cell(result) for result in results]
        if any(cells):
            filled.append(cells)
            if heading in ("peer", "note"):  # these may be folded between words
                longest = max(len(word) for cell in cells for word in cell.split())
                shown.add_column(heading, justify="left", min_width=longest)
            else:
                shown.add_column(heading, justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        shown.add_row(row, *(cells[number] or "-" for cells in filled))
    return shown


def _table(title: str) -> Table:
    shown = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=0)
    shown.add_column("", overflow="fold", min_width=18)
    return shown


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{number(ratio)}x"


def _target(result: Result) -> str:
    if result.target is None:
        return ""
    sign = "≥" if result.better == "higher" else "≤"
    return f"{sign} {number(result.target)}{'' if result.ratio is None else 'x'}"


def _reached(result: Result) -> str:
    return {True: "[green]yes[/green]", False: "[red]no[/red]", None: ""}[result.reached]
