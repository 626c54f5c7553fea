"""What a benchmark found: one `Result` a row, and the `Run` that they belong to, as JSON and back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from dgents.benchmarks.environment import Environment


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One row.

    Attributes:
        figure: the median of the rounds, in ``unit``; ``low`` and ``high`` are the extremes.
        peer: what it is compared with, measured in the same run; ``peer_figure`` is its median.
        ratio: the median of the rounds' own ratios of ours to the peer's, not the ratio of the medians.
        target: what the ratio is to reach; what the figure is to reach where there is no peer.
        better: which way is good; with ``"lower"`` the target is not to be exceeded.
        panel: which table and picture of its suite it belongs to; with ``x``, what ``x`` counts.
        x: where on a curve it lies. The rows of one panel and name are a curve.
        details: further columns, by their heading.
        note: what a reader has to know about this row; why there is no figure, where ``rounds`` is 0.
    """

    suite: str
    row: str
    figure: float
    unit: str
    low: float
    high: float
    rounds: int
    peer: str | None = None
    peer_figure: float | None = None
    ratio: float | None = None
    target: float | None = None
    better: Literal["higher", "lower"] = "higher"
    panel: str = ""
    x: float | None = None
    details: dict[str, float] = {}
    note: str = ""

    @property
    def identity(self) -> tuple[str, str, str, float | None, str, str | None]:
        """What makes two results of different runs the same row."""
        return self.suite, self.panel, self.row, self.x, self.unit, self.peer

    @property
    def name(self) -> str:
        """What it is called where it stands alone: "SQLite; tasks: 1,000"."""
        where = self.panel if self.x is None else f"{self.panel}: {self.x:,.0f}"
        return f"{self.row}; {where}" if where else self.row

    @property
    def reached(self) -> bool | None:
        """Whether the target was reached; None if there is none."""
        if self.target is None:
            return None
        value = self.figure if self.ratio is None else self.ratio
        return value >= self.target if self.better == "higher" else value <= self.target

    @property
    def score(self) -> float | None:
        """How far the target was reached: 1 is just so, 2 is twice as good; None if there is no target."""
        if self.target is None:
            return None
        value = self.figure if self.ratio is None else self.ratio
        return value / self.target if self.better == "higher" else self.target / value


class Run(msgspec.Struct, frozen=True):
    """All results of one run, and where it took place. ``quick`` runs are too short to be quoted."""

    environment: Environment
    results: list[Result]
    quick: bool = False

    def to_json(self) -> bytes:
        """Return the run as JSON, indented for a reader."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read what `to_json` wrote.

        Raises:
            OSError: the file can't be read.
            ValueError: it holds no run; the message says which file and why.
        """
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ValueError(f"{path} holds no benchmark run: {error}") from error
