"""What a suite gets to work with: it measures contenders and collects rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from time import monotonic
from typing import Literal, TypeAlias

from dgents.benchmarks.measure import Contender, Sample, interleave, median_ratio, spread
from dgents.benchmarks.result import Result

Figure: TypeAlias = Callable[[Sample], float]
Better: TypeAlias = Literal["higher", "lower"]

FULL_ROUNDS = 5
QUICK_ROUNDS = 1


def rate(sample: Sample) -> float:
    """The figure of most rows: operations a second."""
    return sample.rate


class OutOfTime(Exception):
    """The suite's seconds are up; what it has measured stands."""


class Bench:
    """One run of one suite.

    Attributes:
        quick: whether to be done in seconds; the figures are then no more than an indication.
        rounds: how many rounds each contender gets after its warm-up.
        seconds: how long the suite may go on measuring; without a bound if left out.
        scratch: a directory on the file system that is measured; it is removed afterwards.
        results: the rows so far.
    """

    def __init__(
        self,
        suite: str,
        scratch: Path,
        *,
        quick: bool = False,
        seconds: float = inf,
        on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> None:
        self.suite = suite
        self.scratch = scratch
        self.quick = quick
        self.rounds = QUICK_ROUNDS if quick else FULL_ROUNDS
        self.results: list[Result] = []
        self._deadline = monotonic() + seconds
        self._on_progress = on_progress
        self._done = 0
        self._total = 0

    def expect(self, contenders: int) -> None:
        """Say how many contenders are to come, for the progress bar."""
        self._total += contenders * (self.rounds + (not self.quick))

    def some(self, count: int, quick: int | None = None) -> int:
        """Return how many operations to do: ``count``, or in a quick run ``quick`` (a tenth if left out)."""
        if not self.quick:
            return count
        return quick if quick is not None else max(1, count // 10)

    def measure(self, *contenders: Contender, warm_up: bool = True) -> list[list[Sample]]:
        """Return the verified samples of each contender, round by round; a quick run doesn't warm up.

        Raises:
            VerificationError: one of them did not do its work.
            OutOfTime: the suite's seconds are up; nothing was measured.
        """
        if monotonic() > self._deadline:
            raise OutOfTime
        return interleave(contenders, self.rounds, self.scratch, self._advance, warm_up=warm_up and not self.quick)

    def compare(
        self,
        row: str,
        ours: Contender,
        peer: Contender,
        *,
        target: float | None = None,
        unit: str = "/s",
        better: Better = "higher",
        figure: Figure = rate,
        peer_figure: Figure | None = None,
    ) -> None:
        """Measure ours and the peer in turn, and add the row.

        Args:
            target: what the ratio is to reach.
            figure: what is compared, of each sample; ``peer_figure`` where the peer's is another one.

        Raises:
            VerificationError: one of the two did not do its work; there is no row then.
        """
        samples, peer_samples = self.measure(ours, peer)
        mine = [figure(sample) for sample in samples]
        theirs = [(peer_figure or figure)(sample) for sample in peer_samples]
        self.row(row, mine, unit, better, target, peer=peer.name, theirs=theirs)

    def row(
        self,
        row: str,
        figures: Sequence[float],
        unit: str,
        better: Better = "higher",
        target: float | None = None,
        *,
        peer: str | None = None,
        theirs: Sequence[float] | None = None,
        panel: str = "",
        x: float | None = None,
        details: dict[str, float] | None = None,
        note: str = "",
    ) -> None:
        """Add a row from the verified figures of each round, ours and the peer's; `Result` says what the rest means."""
        mine = spread(figures)
        result = Result(
            suite=self.suite,
            row=row,
            figure=mine.median,
            unit=unit,
            low=mine.low,
            high=mine.high,
            rounds=len(figures),
            peer=peer,
            peer_figure=spread(theirs).median if theirs else None,
            ratio=median_ratio(figures, theirs) if theirs else None,
            target=target,
            better=better,
            panel=panel,
            x=x,
            details=details or {},
            note=note,
        )
        self.results.append(result)

    def absent(self, row: str, unit: str, note: str) -> None:
        """Add a row that has no figure, and say why."""
        absent = Result(suite=self.suite, row=row, figure=0, unit=unit, low=0, high=0, rounds=0, note=note)
        self.results.append(absent)

    def _advance(self, contender: Contender) -> None:
        self._done += 1
        self._on_progress(contender.name, self._done, max(self._total, self._done))
