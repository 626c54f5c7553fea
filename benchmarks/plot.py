"""Results as pictures, PNG and SVG, that can be read without the text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from dgents.benchmarks.colours import BLACK, BLUE, GREY, ORANGE, RED
from dgents.benchmarks.plot_curves import draw_curves, draw_percentiles
from dgents.benchmarks.report import number
from dgents.benchmarks.result import Result, Run

_ON_WHITE = {
    "facecolor": "white",
    "edgecolor": "none",
    "pad": 1,
}  # a label stays readable across the target's line


def figure_class() -> Any:
    """Return matplotlib's Figure; it is imported on first use.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        from matplotlib.figure import Figure  # an optional dependency
    except ModuleNotFoundError as error:
        raise ImportError("plots need matplotlib, which is not installed; pip install 'dgents[bench]'") from error
    return Figure


def draw(run: Run, titles: dict[str, str], directory: Path) -> list[Path]:
    """Draw each suite into ``directory``, as PNG and as SVG, and return the files.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the directory can't be made or written to.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for suite, title in titles.items():
        results = [result for result in run.results if result.suite == suite and result.rounds]
        if not results:
            continue
        figure = _chart(results)
        figure.suptitle(title, fontweight="bold")
        where = f"{run.environment}{'; a quick run, not to be quoted' if run.quick else ''}"
        figure.supxlabel(fill(where, 150), fontsize=7, color=GREY)
        for suffix in ("png", "svg"):
            path = directory / f"{suite}.{suffix}"
            figure.savefig(path, dpi=110)
            paths.append(path)
    return paths


def _chart(results: Sequence[Result]) -> Any:
    """Show curves, or percentiles, or what became of each update, or how far targets were reached, or the figures."""
    if any(result.x is not None for result in results):
        return draw_curves(figure_class(), results)
    if all({"p99", "p99.9"} <= result.details.keys() for result in results):
        return draw_percentiles(figure_class(), results)
    figure = figure_class()(figsize=(11, 2.2 + 0.42 * len(results)), layout="constrained")
    if all({"asked", "kept", "refused", "lost"} <= result.details.keys() and not result.panel for result in results):
        _fates(figure.subplots(), results)
        return figure
    targeted = [result for result in results if result.score is not None]
    if targeted:
        _scores(figure.subplots(), targeted)
        return figure
    panels = list(dict.fromkeys((result.panel, result.unit) for result in results))
    heights = [sum((result.panel, result.unit) == panel for result in results) for panel in panels]
    grid = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (panel, unit) in zip(grid, panels, strict=True):
        _figures(axes, [result for result in results if (result.panel, result.unit) == (panel, unit)])
        axes.set_title(panel, fontsize=10, loc="left")
    return figure


def _fates(axes: Any, results: Sequence[Result]) -> None:
    """Stack what was kept, what was refused, and what was lost, in percent of what was asked for."""
    rows = [result.row for result in results]
    left = [0.0] * len(rows)
    parts = (("kept", "kept", BLUE), ("refused", "refused: its caller knows", ORANGE))
    for key, label, colour in (*parts, ("lost", "lost: nobody knows", RED)):
        shares = [100 * result.details[key] / result.details["asked"] for result in results]
        axes.barh(rows, shares, left=left, label=label, color=colour)
        left = [before + share for before, share in zip(left, shares, strict=True)]
    for position, result in enumerate(results):
        text = f"{_lost(result)}; {number(result.figure)}/s"
        axes.text(101, position, text, va="center", fontsize=8)
    axes.margins(y=0.01)
    axes.set_xlim(0, 140)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("% of the changes that were asked for")
    axes.invert_yaxis()
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _scores(axes: Any, results: Sequence[Result]) -> None:
    """Show how many times over each target was reached."""
    scores = [result.score or 0.0 for result in results]
    colours = [BLUE if result.reached else ORANGE for result in results]
    axes.barh([result.row for result in results], scores, color=colours)
    axes.axvline(1, color="black", linewidth=1)
    for position, (result, score) in enumerate(zip(results, scores, strict=True)):
        axes.text(score * 1.05, position, _against(result), va="center", fontsize=8, bbox=_ON_WHITE)
    axes.set_xscale("log")
    axes.margins(y=0.01)
    low, high = min(scores), max(scores)
    axes.set_xlim(min(low, 1) / 2, max(high, 1) * 12)
    axes.set_xlabel("reached / target (the line is the target, right of it is better; log scale)")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _figures(axes: Any, results: Sequence[Result]) -> None:
    """Show the medians, with whiskers from the least to the greatest round; others than dgents in grey."""
    figures = [result.figure for result in results]
    below = [result.figure - result.low for result in results]
    above = [result.high - result.figure for result in results]
    axes.barh([result.row for result in results], figures, xerr=[below, above], color=_colours(results), ecolor=BLACK)
    for position, result in enumerate(results):
        lost = f"; {_lost(result)}" if result.details.get("lost") else ""
        axes.text(result.high * 1.05, position, f"{number(result.figure)}{lost}", va="center", fontsize=8)
    low, high = min(figures), max(figures)
    if low > 0 and high / low > 50:
        axes.set_xscale("log")
        axes.set_xlim(low / 3, high * 5)
    else:
        axes.set_xlim(0, high * 1.2)
    axes.xaxis.set_major_formatter(lambda value, position: number(value))
    axes.margins(y=0.02)
    axes.set_xlabel(f"{results[0].unit} (median, min to max; {results[0].better} is better)")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _colours(results: Sequence[Result]) -> list[str]:
    """Return blue for dgents, red for what loses updates, grey for the rest; blue for all where dgents is alone."""
    alone = not any(result.row.startswith("dgents") for result in results)
    return [
        RED if result.details.get("lost") else BLUE if alone or result.row.startswith("dgents") else GREY
        for result in results
    ]


def _lost(result: Result) -> str:
    return f"{number(result.details['lost'])} of {number(result.details['asked'])} lost"


def _against(result: Result) -> str:
    if result.ratio is None:
        return f"{number(result.figure)} {result.unit}; target {number(result.target)}"
    return f"{number(result.ratio)}x {result.peer}; target {number(result.target)}x"
