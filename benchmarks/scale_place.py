"""A place on the curves of the suite ``scale``, and rounds in a process of their own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import msgspec

from dgents.benchmarks.measure import Sample
from dgents.benchmarks.rounds import Round


@dataclass(frozen=True, kw_only=True)
class Place:
    """What is measured where there are ``x`` of what the panel counts.

    Attributes:
        round: does the work; the details of its sample are the figures, each under the name of its curve.
        curves: the unit of each curve. What a round has no figure for has no point here.
        rounds: how many rounds at most.
        warm_up: whether one round more goes before them; what begins in a new process gains nothing by it.
    """

    panel: str
    x: int
    round: Round
    curves: dict[str, str]
    rounds: int = 5
    warm_up: bool = True


def rounds_for(x: int) -> int:
    """Return how many rounds are worth their time where there are ``x`` of something."""
    return 5 if x < 100_000 else 3 if x < 1_000_000 else 1


def in_process(module: str, *arguments: object) -> Round:
    """Return a round that runs ``python -m module ARGUMENTS``, which answers as `answer` does."""

    async def round(directory: Path) -> Sample:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        process = await anyio.run_process(command, stderr=None)
        return msgspec.json.decode(process.stdout, type=Sample)

    return round


def answer(work: Callable[[], Awaitable[Sample]]) -> None:
    """Do the work in an event loop of its own, and write the sample to stdout: the other end of `in_process`."""

    async def found() -> Sample:
        return await work()

    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(found())))
