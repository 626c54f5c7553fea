"""What became of the changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What became of the changes of one workload: ``asked`` is the sum of the other four."""

    workload: str
    applied: int
    refused: int
    lost: int
    twice: int

    @property
    def asked(self) -> int:
        """How many changes there were."""
        return self.applied + self.refused + self.lost + self.twice

    @property
    def safe(self) -> bool:
        """Whether each change happened once, or its caller knows that it did not."""
        return self.lost == self.twice == 0

    def __str__(self) -> str:
        return (
            f"{self.workload}: {self.asked} asked, {self.applied} applied, {self.refused} refused, "
            f"{self.lost} lost, {self.twice} twice"
        )


@dataclass(frozen=True)
class Report:
    """The outcome of each workload, in their order; ``report["counter"]`` is one of them."""

    outcomes: tuple[Outcome, ...]

    def __getitem__(self, workload: str) -> Outcome:
        for outcome in self.outcomes:
            if outcome.workload == workload:
                return outcome
        raise KeyError(workload)

    @property
    def safe(self) -> bool:
        """Whether no workload lost a change or applied one twice."""
        return all(outcome.safe for outcome in self.outcomes)

    def check(self) -> None:
        """Fail if a change was lost or applied twice, or if a workload was refused altogether, which proves nothing.

        Raises:
            AssertionError: it says what became of every workload.
        """
        if not self.safe or any(outcome.applied == 0 for outcome in self.outcomes):
            raise AssertionError(f"concurrent writers:\n{self}")

    def __str__(self) -> str:
        return "\n".join(str(outcome) for outcome in self.outcomes)


def judge(workload: str, acknowledged: Sequence[Any], refused: Sequence[Any], found: Sequence[Any]) -> Outcome:
    """Compare what was acknowledged with what is there; a change that was refused and is there counts as applied."""
    times = Counter(found)
    return Outcome(
        workload,
        applied=sum(times[name] == 1 for name in (*acknowledged, *refused)),
        refused=sum(times[name] == 0 for name in refused),
        lost=sum(times[name] == 0 for name in acknowledged),
        twice=sum(times[name] > 1 for name in (*acknowledged, *refused)),
    )
