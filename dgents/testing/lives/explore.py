"""Scripts played and judged: does every answer, and all that is found afterwards, have an explanation?"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from secrets import token_hex

from msgspec.structs import replace

import dgents
from dgents.testing.lives.explain import Explanation, Found, Undecided
from dgents.testing.lives.operations import State
from dgents.testing.lives.process import play_and_kill
from dgents.testing.lives.record import Record, Recorder, Violation
from dgents.testing.lives.script import Life, Script
from dgents.testing.lives.stage import Make, Stage

_HERE = f"m{token_hex(4)}-"  # other processes may have used the same place
_numbers = count(1)


@dataclass
class Play:
    """One script on one state of its own."""

    make: Make
    script: Script
    deadline: float
    undecided: bool = False  # too many orders were possible; it was not played on
    _found: Found = field(default_factory=Found)
    _placed: dict[int, tuple[int, State]] = field(default_factory=dict)
    _not_done: list[Record] = field(default_factory=list)  # what may have happened, and has not
    _moment: int = 0

    async def run(self) -> None:
        """Play all lives, and look at what is left of each.

        Raises:
            Violation: a promise was broken.
        """
        self._name = f"{_HERE}{next(_numbers)}"
        try:
            for life in (*self.script.lives, Life(())):
                if life.ends == "kill":
                    await self._kill(life)
                else:
                    await self._live(life)
        except Undecided:  # what comes of it can't be judged either
            self.undecided = True

    async def _live(self, life: Life) -> None:
        recorder = Recorder(self._moment)
        stage = Stage(self.make, self._name, self.script.options, recorder, self.deadline)
        try:
            await stage.open()
            found = await stage.look()
            self._judge([], found)
            recorder.known = found.version
            await stage.play(life.steps)
            found = await stage.look()
            self._judge(_without_losses(recorder.records, stage.losses), found)
            _judge_watchers(stage, found)
            self._judge_tells(stage)
            if not stage.is_durable:
                self._found, self._placed = Found(), {}
        except BaseException as error:
            await stage.abandon()
            raise _broken(error) from error
        await stage.close()
        self._moment = recorder.moment

    async def _kill(self, life: Life) -> None:
        recorder, is_lossy = await play_and_kill(
            self.make, self._name, self.script.options, life, self._moment, self._found.version, self.deadline
        )
        self._moment = recorder.moment
        after = Recorder(self._moment)
        stage = Stage(self.make, self._name, self.script.options, after, self.deadline)
        try:
            await stage.open()
            lossy = _not_flushed(recorder.records) if is_lossy else frozenset()
            self._judge(recorder.records, await stage.look(), lossy)
        except BaseException as error:
            await stage.abandon()
            raise _broken(error) from error
        await stage.close()

    def _judge(self, records: list[Record], found: Found, lossy: frozenset[int] = frozenset()) -> None:
        self._compare_kept(found)
        records = [*(record for record in self._not_done if record.do == "remind"), *records]  # they may fall due yet
        explanation = Explanation(self._found, records, found, self._placed, lossy)
        if not explanation.ok:
            raise Violation("\n".join(["no order of the calls explains what was found", *self._report(records, found)]))
        self._found, self._not_done = found, explanation.open

    def _judge_tells(self, stage: Stage) -> None:
        """A message that nobody waits for is not dropped in silence."""
        dropped = [record for record in self._not_done if record.do == "tell" and record.why != "left"]
        told = sum(event.kind == "dead_letter" or event.details.get("lost", 0) for event in stage.events)
        if self._found.window >= self._found.version and len(dropped) > told:
            raise Violation(f"no event tells what became of {', '.join(map(str, dropped))}")

    def _compare_kept(self, found: Found) -> None:
        """What was kept before is kept still, unless the bound drops it."""
        oldest = found.version - found.window
        for version, state in self._found.kept.items():
            if oldest < version <= min(self._found.version, found.version) and found.kept.get(version) != state:
                raise Violation(f"version {version} was {state!r}, and is now {found.kept.get(version)!r}")

    def _report(self, records: list[Record], found: Found) -> list[str]:
        return [
            f"  before: version {self._found.version} {self._found.state!r}",
            *(f"  {record}" for record in records),
            f"  found: version {found.version} {found.state!r}",
            *(f"    kept {version}: {state!r}" for version, state in sorted(found.kept.items())),
        ]


def _broken(error: BaseException) -> BaseException:
    """Return what is raised: an error that meets us where nothing is wrong any more is a broken promise."""
    if isinstance(error, dgents.DgentError):
        return Violation(f"nothing is wrong any more, but there is a {type(error).__name__}: {error}")
    return error


def _judge_watchers(stage: Stage, found: Found) -> None:
    for seen in stage.seen_by_watchers if not stage.losses else ():  # a version that was lost is used again
        for version, state in seen:
            if found.kept.get(version, state) != state:
                raise Violation(f"a watcher saw {state!r} as version {version}, which is {found.kept[version]!r}")
        versions = [version for version, _ in seen]
        if versions != sorted(versions):
            raise Violation(f"a watcher saw versions out of order: {versions}")


def _without_losses(records: list[Record], losses: list[int]) -> list[Record]:
    """Return the records; what events have named as lost may be there, and who saw it may have seen it."""
    at_risk = frozenset[int]().union(*(_not_flushed(records, loss) for loss in losses))
    left = []
    for record in records:
        if record.start not in at_risk:
            left.append(record)
        elif record.fate == "must":
            left.append(replace(record, fate="may", saw=None))
        elif record.fate != "seen":
            left.append(record)
    return left


def _not_flushed(records: list[Record], loss: float = float("inf")) -> frozenset[int]:
    """Return the starts of those that had begun at a moment, and that no flush had seen end by then."""
    flushes = [record for record in records if record.do == "flush" and record.fate == "seen"]
    flushed = max((flush.start for flush in flushes if flush.end is not None and flush.end <= loss), default=0)
    return frozenset(
        record.start for record in records if record.start <= loss and (record.end is None or record.end > flushed)
    )
