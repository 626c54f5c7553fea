"""What became of each increment: it is in the final count, it was refused, or it is lost."""

from __future__ import annotations

from time import perf_counter

import dgents
from dgents.benchmarks.measure import Sample
from dgents.benchmarks.peers import Operation


class Tally:
    """The answers that the callers got."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.refused = 0
        self.latencies: list[float] = []

    async def count(self, increment: Operation, each: int) -> None:
        """Increment ``each`` times, and note how long it took and whether it was refused."""
        for _ in range(each):
            started = perf_counter()
            try:
                await increment()
            except dgents.StaleStateError:
                self.refused += 1
            else:
                self.acknowledged += 1
            self.latencies.append(perf_counter() - started)

    def add(self, other: Tally) -> None:
        """Count what ``other`` counted too."""
        self.acknowledged += other.acknowledged
        self.refused += other.refused
        self.latencies += other.latencies

    def sample(self, asked: int, final: int, seconds: float, *, safe: bool = True) -> Sample:
        """Return the round's sample; it stands if all were answered and, of a safe pattern, none was lost."""
        lost = self.acknowledged - final
        return Sample(
            operations=self.acknowledged,
            seconds=seconds,
            latencies=self.latencies,
            expected={"answered": asked, "lost": 0 if safe else max(lost, 0)},
            found={"answered": self.acknowledged + self.refused, "lost": lost},
            details={"asked": asked, "kept": final, "refused": self.refused, "lost": lost},
        )
