"""Scripts that were found to break a promise, each as short as it could be made: what must hold is their name."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgents.testing.lives.explore import Play
from dgents.testing.lives.script import Life, Options, Script, Step
from tests.matrix.compositions import Composition

pytestmark = pytest.mark.anyio

DEADLINE = 10.0
SLOW_FLUSH = Options(max_restarts=1, max_delay=1.0)


async def play(folder: Path, leaf: str, wrapping: str, options: Options, *steps: Step) -> None:
    for number in range(5):  # threads do not run the same way twice
        place = folder / str(number)
        place.mkdir()
        await Play(Composition(leaf, wrapping, str(place)), Script(options, (Life(steps),)), DEADLINE).run()


@pytest.mark.parametrize("leaf", ["json-gzip", "msgpack", "sqlite"])
async def test_what_a_journal_was_asked_about_is_in_the_history(leaf: str, tmp_path: Path) -> None:
    steps = Step("answer is lost", amount=1), Step("update", 1, request=True, together=True), Step("slow", 2, amount=1)
    await play(tmp_path, leaf, "behind-journal", SLOW_FLUSH, *steps)


@pytest.mark.parametrize("leaf", ["json", "msgpack", "sqlite"])
async def test_a_history_is_whole_while_the_store_of_a_cache_is_opened_again(leaf: str, tmp_path: Path) -> None:
    steps = Step("update", 1), Step("answer is lost", amount=1), Step("update", 2), Step("expire"), Step("history")
    await play(tmp_path, leaf, "behind-ttl", Options(max_restarts=0, max_delay=0.0, max_pending=3), *steps)


@pytest.mark.parametrize("leaf", ["json", "sqlite", "sqlite-shared"])
async def test_who_is_spawned_while_its_supervisor_is_given_up_leaves_its_state_free(leaf: str, tmp_path: Path) -> None:
    faults = Step("open fails", amount=1), Step("away", amount=5)
    calls = Step("cas", 4, together=True), Step("lens", 5), Step("slow", 6, amount=1), Step("sibling crashes", amount=1)
    await play(tmp_path, leaf, "bare", Options("one_for_all", max_restarts=0), *faults, *calls)


async def test_who_watches_hears_of_what_a_restart_finds_stored(tmp_path: Path) -> None:
    steps = Step("watch"), Step("answer is lost", amount=1), Step("update", 8, request=True)
    await play(tmp_path, "json", "bare", Options("virtual"), *steps)
