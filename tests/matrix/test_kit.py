"""The matrix bites: what breaks a promise is caught, by a short script; what keeps them passes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import Random

import pytest

import dgents
from dgents.testing import BrokenPromise, matrix
from dgents.testing.lives.deadline import situation
from dgents.testing.lives.generate import Can, Generator
from tests.matrix.broken_agents import Broken, Commit, forgets, never_answers, says_no_and_stores

pytestmark = pytest.mark.anyio


def broken(folder: Path, commit: Commit) -> Broken:
    return Broken(dgents.SQLAgent(str(folder / "state.db")), commit)


@pytest.mark.parametrize("commit", [forgets, says_no_and_stores])
async def test_a_store_that_says_what_is_not_so_is_caught_by_a_short_script(commit: Commit, tmp_path: Path) -> None:
    with pytest.raises(BrokenPromise) as caught:
        await matrix(partial(broken, tmp_path, commit), seed=1, faults=False, deadline=5)

    assert sum(len(life.steps) for life in caught.value.script.lives) <= 10
    assert "the shortest script that shows it (seed 1)" in str(caught.value)


async def test_a_store_that_never_answers_is_caught(tmp_path: Path) -> None:
    with pytest.raises(BrokenPromise, match=r"not answered within|not done within|could not be flushed"):
        await matrix(partial(broken, tmp_path, never_answers), seed=1, faults=False, deadline=0.4, operations=200)


async def test_an_agent_that_keeps_its_promises_passes(tmp_path: Path) -> None:
    lived = await matrix(partial(dgents.SQLAgent, str(tmp_path / "state.db")), operations=200)

    assert lived.operations >= 200
    assert lived.undecided == 0


async def test_an_agent_that_can_not_be_sent_to_another_process_is_not_killed(tmp_path: Path) -> None:
    lived = await matrix(lambda: dgents.SQLAgent(str(tmp_path / "state.db")), operations=50)

    assert lived.operations >= 50


async def test_a_state_in_memory_is_not_crashed() -> None:
    lived = await matrix(dgents.VolatileAgent, operations=200)

    assert not {"crash", "stop", "commit fails"} & lived.done.keys()


def test_a_seed_repeats_its_scripts() -> None:
    one, two = (Generator(Random(7), Can()) for _ in range(2))

    assert [one.script() for _ in range(20)] == [two.script() for _ in range(20)]


def test_everything_that_can_be_done_is_done_before_long() -> None:
    generator = Generator(Random(1), Can())
    done = {step.do for _ in range(300) for life in generator.script().lives for step in life.steps}

    assert {"update", "patch", "delete", "lease", "burst", "damage", "away", "passivate", "sibling crashes"} <= done


async def test_what_can_not_be_judged_is_counted_and_not_called_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dgents.testing.lives.explain._MOST_TRIES", 0)
    lived = await matrix(partial(dgents.SQLAgent, str(tmp_path / "state.db")), operations=100, seed=1)
    assert lived.undecided == lived.scripts > 0


async def test_who_waits_for_an_actor_to_which_nothing_has_happened_is_told_so(anyio_backend: str) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.VolatileAgent(0))
        assert situation(ref._cell, []).endswith("nothing has happened yet")
    assert situation(None, []).startswith("there is no such actor")
