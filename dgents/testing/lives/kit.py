"""The calls that play many scripts: for the agents of a user, and for the project's own."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random, SystemRandom
from typing import Any

import anyio

from dgents.testing.lives.explore import Play
from dgents.testing.lives.faults import Faults, FaultyAgent
from dgents.testing.lives.generate import Can, Generator
from dgents.testing.lives.record import Recorder, Violation
from dgents.testing.lives.script import Options, Script
from dgents.testing.lives.shrink import shrink
from dgents.testing.lives.stage import Make, Stage

DEADLINE = 10.0  # seconds for each call


@dataclass
class Lived:
    """What was played, and held.

    Attributes:
        seed: repeats it.
        scripts, operations: how many.
        done: how often each kind of step was taken.
        undecided: how many scripts could not be judged to their end, because too many orders were possible.
    """

    seed: int
    scripts: int = 0
    operations: int = 0
    undecided: int = 0
    done: Counter[str] = field(default_factory=Counter)

    def take(self, script: Script) -> None:
        """Count a script."""
        self.scripts += 1
        self.operations += script.calls
        self.done.update(step.do for life in script.lives for step in life.steps)

    def __str__(self) -> str:
        return f"{self.operations} operations in {self.scripts} scripts, seed {self.seed}"


class BrokenPromise(AssertionError):
    """An actor has lost, doubled, torn or kept waiting what it was told.

    Args:
        script: the shortest one found that shows it.
        why: what was found.
    """

    def __init__(self, why: str, script: Script, seed: int) -> None:
        lines = "\n".join(f"  {line}" for line in script.lines())
        super().__init__(f"{why}\n\nthe shortest script that shows it (seed {seed}):\n{lines}")
        self.why = why
        self.script = script
        self.seed = seed


class _Alone:
    """The agents of a user as scripts make them: the same each time, with faults before their stores."""

    def __init__(self, make_agent: Callable[[], Any]) -> None:
        self._make_agent = make_agent

    def __call__(self, options: Options, faults: Faults) -> FaultyAgent:
        return FaultyAgent(self._make_agent(), faults)


async def matrix(
    make_agent: Callable[[], Any],
    *,
    operations: int = 2000,
    seed: int | None = None,
    faults: bool = True,
    deadline: float = DEADLINE,
) -> Lived:
    """Put an agent through random lives, and hold everything that is seen against a plain model.

    Callers save, update, patch, delete and read at the same time, and leave in the middle; commits fail before and
    after they happened, openings and reads fail; the actor is crashed, passivated, stopped, reopened, and its process
    killed. What was acknowledged has to be there, once, in order, and in the history too; what was refused must not;
    every call has to be answered.

    Args:
        make_agent: returns the agent, whose states are dicts; called anew whenever the actor is spawned, under a name
            of its own for each script, which is its key: give no fixed one. If it can be pickled, some lives are
            played in a child, which is killed.
        operations: how many to try.
        seed: of an earlier run, to repeat it.
        faults: False: nothing fails, and nothing is killed.
        deadline: seconds in which each call is to be answered.

    Raises:
        BrokenPromise: an AssertionError with the shortest script that shows it.

    Example:
        >>> lived = await matrix(partial(dgents.SQLAgent, "state.db"))
        >>> print(lived)
        2004 operations in 153 scripts, seed 1234
    """
    make = _Alone(make_agent)
    can = await _abilities(make, deadline)
    dies = faults and can.is_durable and _can_be_sent(make)
    return await live([make], replace(can, dies=dies, faults=faults), operations, seed, deadline)


async def live(
    makes: Sequence[Make], can: Can, operations: int, seed: int | None = None, deadline: float = DEADLINE
) -> Lived:
    """Play scripts of so many operations: as many at a time as there are makers, which share no place.

    Raises:
        BrokenPromise: with the shortest script that shows it.
    """
    lived = Lived(seed if seed is not None else SystemRandom().randrange(2**32))
    generator = Generator(Random(lived.seed), can)
    broken: list[tuple[Make, Script, Violation]] = []

    async def play_on(make: Make, scope: anyio.CancelScope) -> None:
        while lived.operations < operations:
            script = generator.script()
            lived.take(script)
            play = Play(make, script, deadline)
            try:
                await play.run()
            except Violation as violation:
                broken.append((make, script, violation))
                scope.cancel()
            lived.undecided += play.undecided

    async with anyio.create_task_group() as group:
        for make in makes:
            group.start_soon(play_on, make, group.cancel_scope)
    if broken:
        raise await _shortest(*broken[0], lived.seed, deadline) from broken[0][2]
    return lived


async def _shortest(make: Make, script: Script, violation: Violation, seed: int, deadline: float) -> BrokenPromise:
    why = {script: str(violation)}
    hurried = min(deadline, 5.0)

    async def fails(candidate: Script) -> bool:
        for _ in range(2):  # threads do not run the same way twice
            try:
                await Play(make, candidate, hurried).run()
            except Violation as found:
                why[candidate] = str(found)
                return True
        return False

    shortest = await shrink(script, fails)
    return BrokenPromise(why[shortest], shortest, seed)


async def _abilities(make: Make, deadline: float) -> Can:
    """Look at one actor, to know what may be done to it."""
    stage = Stage(make, "abilities", Options(), Recorder(), deadline)
    await stage.open()
    try:
        await stage.look()
        return Can(is_durable=stage.is_durable, is_stream=stage.is_stream, is_kept=stage.window > 1)
    finally:
        await stage.close()


def _can_be_sent(make: Make) -> bool:
    try:
        pickle.dumps(make)
    except Exception:  # whatever the objects of a user raise
        return False
    return True
