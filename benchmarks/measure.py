"""How a figure comes about: rounds, medians, percentiles, and no figure without a proof.

A **contender** does one round of work in a directory and an event loop of its own, and returns a `Sample`:
how long it took, and what it found against what it should have found. Rounds of ours and of the peer
alternate, so that the drift of a noisy machine meets both. The first round of each is a warm-up, not counted.
"""

from __future__ import annotations

import gc
import math
import shutil
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import anyio

Loop: TypeAlias = Literal["asyncio", "trio"]


class VerificationError(Exception):
    """The work was not done as it should have been, or nobody looked: there is no figure."""


class _Unchecked:
    def __repr__(self) -> str:
        return "unchecked"


_END = 3  # points
UNCHECKED: Final[Any] = _Unchecked()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one round did.

    Attributes:
        operations: how many operations took ``seconds`` altogether.
        expected, found: the result that the work must have, and the one that was read back.
        latencies: seconds each operation took, where that was recorded.
        details: further figures of this round, by their heading.
    """

    operations: int
    seconds: float
    expected: Any = UNCHECKED
    found: Any = UNCHECKED
    latencies: Sequence[float] = ()
    details: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds

    def verified(self, name: str) -> Sample:
        """Return this sample if the work was done.

        Raises:
            VerificationError: what was found is not what was expected, or was never looked at.
        """
        if self.expected is UNCHECKED or self.found is UNCHECKED:
            raise VerificationError(f"{name}: the result was not checked")
        if self.expected != self.found:
            raise VerificationError(f"{name}: found {_short(self.found)}, expected {_short(self.expected)}")
        return self


@dataclass(frozen=True)
class Contender:
    """One way of doing the work; ``round`` gets a fresh directory and runs in a fresh event loop."""

    name: str
    round: Callable[[Path], Awaitable[Sample]]
    loop: Loop = "asyncio"


class Spread(NamedTuple):
    """The middle and the extremes of several rounds."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return the median, the least and the greatest of ``values``, of which there is at least one."""
    return Spread(statistics.median(values), min(values), max(values))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the least of ``values`` that at least ``share`` (0 to 1) of them don't exceed (nearest rank)."""
    ordered = sorted(values)
    # Rounded first: 0.999 * 1000 is a hair above 999, and must not count as 1000.
    rank = -int(-round(share * len(ordered), 6) // 1)
    return ordered[max(rank, 1) - 1]


def percentiles(latencies: Sequence[float]) -> dict[str, float]:
    """Return p50, p99 and p99.9 of latencies in seconds, as columns in milliseconds."""
    shares = {"p50 ms": 0.5, "p99 ms": 0.99, "p99.9 ms": 0.999}
    return {heading: percentile(latencies, share) * 1e3 for heading, share in shares.items()}


def growth(curve: Sequence[tuple[float, float]]) -> float | None:
    """Return the exponent with which y grows with x at the end of a curve of (x, y): over its last three points.

    0: it doesn't grow; 1: in proportion; None: there are no two points above 0 to tell. Least squares on logarithms;
    the beginning of a curve is left out, where what doesn't grow hides what does.

    Source: the empirical order of growth, as in McGeoch, A Guide to Experimental Algorithmics (2012).
    """
    logs = [(math.log(x), math.log(y)) for x, y in sorted(curve)[-_END:] if x > 0 and y > 0]
    if len({x for x, _ in logs}) < 2:
        return None
    return statistics.linear_regression(*zip(*logs, strict=True)).slope


def median_ratio(ours: Sequence[float], peers: Sequence[float]) -> float:
    """Return the median of the rounds' own ratios: a slow minute of the machine slows both of a pair."""
    return statistics.median(mine / theirs for mine, theirs in zip(ours, peers, strict=True))


def run_round(contender: Contender, scratch: Path) -> Sample:
    """Run one round and prove its result.

    Raises:
        VerificationError: the round's result is wrong, or was not checked.
    """
    directory = Path(tempfile.mkdtemp(dir=scratch))
    gc.collect()  # what the last round left behind is not this one's cost,
    gc.freeze()  # nor is what other suites have imported, which each collection would go through again
    try:
        sample = anyio.run(contender.round, directory, backend=contender.loop)
    finally:
        gc.unfreeze()
        shutil.rmtree(directory)
    return sample.verified(contender.name)


def interleave(
    contenders: Sequence[Contender],
    rounds: int,
    scratch: Path,
    on_round: Callable[[Contender], None] = lambda contender: None,
    *,
    warm_up: bool = True,
) -> list[list[Sample]]:
    """Run ``rounds`` rounds of each contender, alternating, after one that warms up; return their samples.

    What counts and doesn't time needs no ``warm_up``.

    Every other round runs in reverse order, so that neither always has the caches of the other behind it.

    Raises:
        VerificationError: a round, even of the warm-up, did not do its work; no sample is returned.
    """
    samples: list[list[Sample]] = [[] for _ in contenders]
    for number in range(0 if warm_up else 1, rounds + 1):
        order = list(zip(contenders, samples, strict=True))
        for contender, kept in order if number % 2 else reversed(order):
            sample = run_round(contender, scratch)
            if number:
                kept.append(sample)
            on_round(contender)
    return samples


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
