"""Scripts made up at random: what callers do, and what happens to them meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from dgents.testing.lives.operations import AFTER
from dgents.testing.lives.script import Life, Options, Place, Script, Step

_BLIND = ("save", "delete")  # they leave no trace of what was before
_WITH_REQUEST = ("save", "update", "slow", "patch", "delete", "append")
_KILLS = 0.04  # of the lives
_MOST_STEPS = 30  # of a life
_MOST_SUSPENSIONS = 6
_LEAVES = 0.2  # of the callers
_TOGETHER = (0.2, 0.4, 0.8)  # of the steps; one of these for each script
_BURST = (2, 40)


@dataclass(frozen=True)
class Can:
    """What may be done to an actor.

    Attributes:
        is_durable: its state outlives its runtime, so that it may crash, be stopped and be killed.
        is_stream: it takes events.
        is_kept: earlier versions are kept: what was written at the same time can be told apart afterwards.
        dies: it can be played in a child, which is killed.
        faults: whether faults happen to it at all.
    """

    is_durable: bool = True
    is_stream: bool = False
    is_kept: bool = True
    dies: bool = True
    faults: bool = True


_WRITES = {
    "save": 3, "update": 6, "slow": 5, "patch": 4, "lens": 2, "lens save": 1, "transaction": 2, "lease": 1, "cas": 2,
    "delete": 1, "tell": 1, "remind": 1, "fails": 1, "undone": 1, "again": 4, "burst": 2,
}  # fmt: skip
_READS = {"load": 3, "ask": 1, "snapshot": 2, "history": 1, "version": 1, "part": 1, "flush": 1}
_EVENTS = {"append": 10, "again": 3, "burst": 2}
_READS_OF_STREAMS = {"load": 3, "snapshot": 2, "history": 1, "flush": 1}
_HAPPENINGS = {"pause": 2, "expire": 1, "watch": 1, "leave": 2}
_FAULTS = {
    "commit fails": 3, "answer is lost": 3, "commit is slow": 2, "open fails": 2, "read fails": 1, "away": 3,
    "damage": 1, "heal": 2, "crash": 1, "sibling crashes": 4, "passivate": 2, "stop": 1,
}  # fmt: skip


class Generator:
    """Makes up scripts for one kind of actor."""

    def __init__(self, random: Random, can: Can) -> None:
        self._random = random
        self._can = can
        writes, reads = (_EVENTS, _READS_OF_STREAMS) if can.is_stream else (_WRITES, _READS)
        chances = {**writes, **reads, **_HAPPENINGS, **(_FAULTS if can.is_durable and can.faults else {})}
        self._chances = chances

    def script(self) -> Script:
        """Return a script."""
        random = self._random
        places: Sequence[Place] = ("one_for_one", "one_for_all", "rest_for_one")
        options = Options(
            place=random.choice([*places, "virtual"] if self._can.is_durable else places),
            max_restarts=random.choice([0, 1, 3, 1000]),
            max_history=random.choice([3, 100, 100]) if self._can.is_kept else 0,
            max_delay=random.choice([0.0, 0.005, 1.0]),
            max_pending=random.choice([1, 3, 1000]),
            ttl=random.choice([0.005, 0.03]),
        )
        self._choose()
        self._number = 0
        self._asked: list[Step] = []  # with a request id
        lives = [self._life() for _ in range(random.choice([1, 2, 2, 3]) if self._can.is_durable else 1)]
        return Script(options, tuple(lives))

    def _choose(self) -> None:
        """Leave some kinds of steps out of a script, so that the others meet more often.

        Swarm testing (Groce, Zhang, Eide, Chen and Regehr, 2012).
        """
        random, chances = self._random, self._chances
        share = random.choice([0.4, 0.7, 1.0])
        self._names = [name for name in chances if random.random() < share]
        if not AFTER.keys() & self._names:  # nothing is written
            self._names = list(chances)
        self._weights = [chances[name] for name in self._names]
        self._together = random.choice(_TOGETHER)

    def _life(self) -> Life:
        steps: list[Step] = []
        for _ in range(self._random.randint(2, _MOST_STEPS)):
            step = self._step()
            if step is not None:
                steps.append(step)
        if self._can.is_durable and self._can.dies and steps and self._random.random() < _KILLS:
            return Life(tuple(steps), "kill", self._random.randrange(len(steps)))
        return Life(tuple(steps))

    def _step(self) -> Step | None:
        random = self._random
        name = random.choices(self._names, self._weights)[0]
        together = random.random() < self._together
        if name == "again":
            return self._again(together)
        if name not in AFTER and name not in ("burst", "fails", "undone", *_READS):
            amounts = {"pause": 3, "watch": random.randrange(2)}
            return Step(name, together=together, amount=amounts.get(name, random.choice([1, 1, 2, 5])))
        self._number += 1
        step = Step(
            name,
            self._number,
            together=together and (self._can.is_kept or name not in _BLIND),
            leaves=random.randint(1, _MOST_SUSPENSIONS) if random.random() < _LEAVES else 0,
            request=name in _WITH_REQUEST and random.random() < 0.3,
            amount=self._amount(name),
        )
        if name == "burst":
            step = Step(name, self._number, amount=random.randint(*_BURST), request=random.random() < 0.7)
            self._number += step.amount
            each = "append" if self._can.is_stream else "update"
            self._asked += [Step(each, n, request=True) for n in range(step.n, self._number) if step.request]
        elif step.request:
            self._asked.append(step)
        return step

    def _again(self, together: bool) -> Step | None:
        """Send a request again, most often one of the last."""
        if not self._asked:
            return None
        step = self._random.choice(self._asked[-self._random.choice([1, 5, 50]) :])
        return Step(step.do, step.n, together=together, request=True, amount=step.amount)

    def _amount(self, name: str) -> int:
        random = self._random
        if name == "cas":
            return random.choice([0, 0, 0, 1, -1])
        if name in ("slow", "transaction", "version"):
            return random.randint(1, 4)
        return 1 if name == "remind" else 0
