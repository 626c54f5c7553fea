"""Results as pictures, PNG and SVG, that can be read without the text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from dgents.benchmarks.report import number
from dgents.benchmarks.result import Result, Run

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, RED, GREY = "#0072B2", "#E69F00", "#D55E00", "#999999"
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
        figure = figure_class()(figsize=(11, 2.2 + 0.42 * len(results)), layout="constrained")
        _chart(figure, results)
        figure.suptitle(title, fontweight="bold")
        where = f"{run.environment}{'; a quick run, not to be quoted' if run.quick else ''}"
        figure.supxlabel(fill(where, 150), fontsize=7, color=GREY)
        for suffix in ("png", "svg"):
            path = directory / f"{suite}.{suffix}"
            figure.savefig(path, dpi=150)
            paths.append(path)
    return paths


def _chart(figure: Any, results: Sequence[Result]) -> None:
    """Show what became of each update, or how far targets were reached, or the figures themselves."""
    if all({"final", "refused", "lost"} <= result.details.keys() for result in results):
        _fates(figure.subplots(), results)
        return
    targeted = [result for result in results if result.score is not None]
    if targeted:
        _scores(figure.subplots(), targeted)
        return
    units = list(dict.fromkeys(result.unit for result in results))
    for axes, unit in zip(figure.subplots(len(units), squeeze=False)[:, 0], units, strict=True):
        _figures(axes, [result for result in results if result.unit == unit], unit)


def _fates(axes: Any, results: Sequence[Result]) -> None:
    """Stack what is in the final count, what was refused, and what was lost, in percent of what was asked."""
    rows = [result.row for result in results]
    asked = sum(results[0].details[key] for key in ("final", "refused", "lost"))
    left = [0.0] * len(rows)
    parts = (("final", "in the final count", BLUE), ("refused", "refused: its caller knows", ORANGE))
    for key, label, colour in (*parts, ("lost", "lost: nobody knows", RED)):
        shares = [100 * result.details[key] / asked for result in results]
        axes.barh(rows, shares, left=left, label=label, color=colour)
        left = [before + share for before, share in zip(left, shares, strict=True)]
    for position, result in enumerate(results):
        text = f"{number(result.details['lost'])} lost, {number(result.figure)} updates/s"
        axes.text(101, position, text, va="center", fontsize=8)
    axes.set_xlim(0, 135)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(f"% of {number(asked)} increments")
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


def _figures(axes: Any, results: Sequence[Result], unit: str) -> None:
    """Show the medians, with whiskers from the least to the greatest round."""
    figures = [result.figure for result in results]
    below = [result.figure - result.low for result in results]
    above = [result.high - result.figure for result in results]
    axes.barh([result.row for result in results], figures, xerr=[below, above], color=BLUE, ecolor=GREY)
    for position, result in enumerate(results):
        axes.text(result.high * 1.05, position, number(result.figure), va="center", fontsize=8)
    if min(figures) > 0 and max(figures) / min(figures) > 50:
        axes.set_xscale("log")
    axes.set_xlabel(f"{unit} (median, min to max; {results[0].better} is better)")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _against(result: Result) -> str:
    if result.ratio is None:
        return f"{number(result.figure)} {result.unit}; target {number(result.target)}"
    return f"{number(result.ratio)}x {result.peer}; target {number(result.target)}x"
