"""Pictures of suites that have panels: a curve for each row, or its percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dgents.benchmarks.colours import GREY, WHEEL
from dgents.benchmarks.measure import growth
from dgents.benchmarks.report import by_row, number
from dgents.benchmarks.result import Result

_COLUMNS = 2
_MARKS = "osD^vPX*<>"
_LEAST = 10  # a panel shows at least so much above and below its middle, so that what hardly grows looks flat
_STEEP = 0.15  # a growth beyond this is written beside the curve


def draw_curves(figure_class: Any, results: Sequence[Result]) -> Any:
    """Return a figure with a panel for each panel and unit, and in it a curve for each row; both axes logarithmic."""
    panels = list(dict.fromkeys((result.panel, result.unit) for result in results if result.x is not None))
    names = list(dict.fromkeys(result.row for result in results if result.x is not None))
    style = {name: (WHEEL[n % len(WHEEL)], _MARKS[n % len(_MARKS)]) for n, name in enumerate(names)}
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = figure_class(figsize=(6.5 * columns, 1 + 4.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (panel, unit) in zip(grid, panels, strict=False):
        _curves(axes, [result for result in results if (result.panel, result.unit) == (panel, unit)], style)
        axes.set_xlabel(f"{panel} (log scale)")
        axes.set_ylabel(f"{unit} (log scale)")
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def _curves(axes: Any, results: Sequence[Result], style: dict[str, tuple[str, str]]) -> None:
    rows = by_row(results)
    for row in sorted(rows, key=lambda row: -rows[row][-1][1]):  # the legend in the order of the curves' ends
        points = sorted(rows[row])
        found = {result.x: result for result in results if result.row == row}
        errors = [
            [y - found[x].low for x, y in points],
            [found[x].high - y for x, y in points],
        ]
        colour, mark = style[row]
        exponent = growth(points)
        label = row if exponent is None or abs(exponent) < _STEEP else f"{row}   (x^{exponent:+.2f})"
        across, up = zip(*points, strict=True)
        axes.errorbar(across, up, yerr=errors, label=label, color=colour, marker=mark, markersize=5, linewidth=1.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(alpha=0.25)
    places = sorted({result.x for result in results if result.x is not None})
    axes.set_xticks(places, [_short(place) for place in places])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    middle = (low * high) ** 0.5
    axes.set_ylim(min(low, middle / _LEAST), max(high, middle * _LEAST))
    axes.yaxis.set_major_formatter(lambda value, position: _short(value))
    axes.set_title(f"{results[0].better} is better", fontsize=8, color=GREY, loc="right")
    axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)


def draw_percentiles(figure_class: Any, results: Sequence[Result]) -> Any:
    """Return a figure with a panel for each panel: each row's p50, p99 and p99.9 on one line, logarithmic."""
    panels = list(dict.fromkeys(result.panel for result in results))
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    most = max(sum(result.panel == panel for result in results) for panel in panels)
    figure = figure_class(figsize=(6.5 * columns, 1.2 + rows * (1.2 + 0.28 * most)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        _percentiles(axes, [result for result in results if result.panel == panel])
        axes.set_title(panel, fontsize=10, loc="left")
    for axes in grid[len(panels) :]:
        axes.remove()
    grid[0].legend(ncols=3, fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return figure


def _percentiles(axes: Any, results: Sequence[Result]) -> None:
    rows = [result.row for result in results]
    low, high = [result.figure for result in results], [result.details["p99.9"] for result in results]
    axes.hlines(rows, low, high, color=GREY, linewidth=1, zorder=1)
    for share, mark, colour in zip(("p50", "p99", "p99.9"), "osD", WHEEL, strict=False):
        shown = [result.details.get(share, result.figure) for result in results]
        axes.scatter(shown, rows, marker=mark, color=colour, label=share, s=28)
    for row, value in zip(rows, low, strict=True):
        axes.annotate(
            _time(value), (value, row), xytext=(-6, 0), textcoords="offset points", fontsize=7, ha="right", va="center"
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, position: _time(value))
    axes.tick_params(labelbottom=True)
    axes.set_xlabel("log scale; left is better")
    axes.margins(x=0.15)
    axes.grid(axis="x", alpha=0.25)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _time(microseconds: float) -> str:
    """Return a time in the unit that keeps it short: "35 µs", "1.2 ms", "4 s"."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{number(microseconds / size)} {unit}"
    return f"{number(microseconds)} µs"


def _short(value: float) -> str:
    """Return a figure for an axis: "10k", "1M"."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{number(value / size)}{unit}"
    return number(value)
