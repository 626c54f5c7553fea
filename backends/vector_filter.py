"""Search among those that a predicate allows: best first, until ``k`` are found or every vector was looked
at.

The predicate is the user's Python and may be slow, so it is asked from the best candidate on, once for each
row at most, and no further than needed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dgents.backends.vector_ann import Ann
from dgents.backends.vector_flat import Found, all_keys
from dgents.backends.vector_input import Floats, Id, Metric
from dgents.backends.vector_rows import View

# An approximate index is asked for this share of all vectors at most; beyond it, comparing with all is
# faster.
_SHARE = 50


def allowed_nearest(
    view: View, ann: Ann | None, metric: Metric, queries: Floats, k: int, allowed: Callable[[Id], bool]
) -> list[list[tuple[int, float]]]:
    """Return for each query the ``k`` best ``(row, key)`` whose ids are allowed; all, if fewer are."""
    verdicts: dict[int, bool] = {}

    def admits(row: int) -> bool:
        verdict = verdicts.get(row)
        if verdict is None:
            verdict = verdicts[row] = bool(allowed(view.ids[row]))
        return verdict

    if ann is None:
        return [_among_all(view, metric, query, k, admits) for query in queries]
    return [_widening(view, ann, metric, query, k, admits) for query in queries]


def _widening(
    view: View, ann: Ann, metric: Metric, query: Floats, k: int, admits: Callable[[int], bool]
) -> list[tuple[int, float]]:
    """Ask the approximate index for more and more, then compare with all."""
    width = max(64, 8 * k)
    while width < view.length // _SHARE:
        found = ann.search(view, query[None], width)
        best = _first(Found(found.keys[0], found.rows[0]), k, admits)
        if len(best) == k:
            return best
        width *= 8
    return _among_all(view, metric, query, k, admits)


def _among_all(
    view: View, metric: Metric, query: Floats, k: int, admits: Callable[[int], bool]
) -> list[tuple[int, float]]:
    """Compare with every row, and sort only as many of them as the predicate makes necessary."""
    keys = all_keys(view, metric, query)
    live = int(np.count_nonzero(keys != -np.inf))
    width = max(64, 8 * k)
    while True:
        rows = np.arange(len(keys))
        if width < live:
            rows = np.argpartition(keys, len(keys) - width)[-width:]
        rows = rows[np.argsort(-keys[rows], kind="stable")]
        best = _first(Found(keys[rows], rows), k, admits)
        if len(best) == k or width >= live:
            return best
        width *= 8


def _first(found: Found, k: int, admits: Callable[[int], bool]) -> list[tuple[int, float]]:
    """Return the first ``k`` of one query's rows that the predicate admits."""
    best: list[tuple[int, float]] = []
    for row, key in zip(found.rows.tolist(), found.keys.tolist(), strict=True):
        if row >= 0 and key != -np.inf and admits(row):
            best.append((row, key))
            if len(best) == k:
                break
    return best
