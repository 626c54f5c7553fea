"""Patches of a state that is written behind: the journal has the changes, the store gets every version."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import anyio
import pytest

import dgents
from dgents.runtime.errors import StorageError
from tests.caches import behind
from tests.calls import calls

pytestmark = pytest.mark.anyio


def changes(folder: Path, **options: Any) -> dgents.CachedAgent:
    """Describe a state of which the journal has the changes."""
    agent = dgents.PersistentAgent(folder / "a", **{"format": "msgpack", **options})
    return behind(agent, journal=folder / "j", max_pending=1_000_000)


async def reopened(folder: Path, **options: Any) -> tuple[Any, list[Any]]:
    """Return what a next process would find if this one died now: the state and the history."""
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", changes(copy, **options))
        found = await ref.load(default=None), await ref.history()
    async with dgents.Runtime() as rt:  # and that which has no journal any more
        ref = await rt.spawn("a", dgents.PersistentAgent(copy / "a", **{"format": "msgpack", **options}))
        assert (await ref.load(default=None), await ref.history()) == found
    return found


SEQUENCES = {
    "a change": ["save", "patch"],
    "changes": ["save", "patch", "patch", "patch"],
    "changes of what is stored": ["save", "flush", "patch", "patch"],
    "a change after a deletion": ["save", "patch", "delete", "save", "patch"],
    "changes, then a deletion": ["save", "patch", "patch", "delete"],
    "more changes than are kept": ["save", "flush", *["patch"] * 12],
    "more of both": ["save", *["patch"] * 12, "save", *["patch"] * 12],
    "flushed between": ["save", "patch", "flush", *["patch"] * 7, "flush", *["patch"] * 7],
}


@pytest.mark.parametrize("max_history", [0, 1, 5, 100])
@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("sequence", SEQUENCES)
async def test_changes_survive_in_a_journal(sequence: str, at_once: bool, max_history: int, tmp_path: Path) -> None:
    folder, state, states = tmp_path / "states", None, []
    async with dgents.Runtime() as rt, calls() as run:
        ref = await rt.spawn("a", changes(folder, max_history=max_history))
        under_way = []
        for number, operation in enumerate(SEQUENCES[sequence]):
            match operation:
                case "save":
                    state = {"n": number, "saved": number}
                    call = run(ref.save, state)
                case "patch":
                    state = {**(state or {}), "n": number}
                    call = run(ref.patch, {"n": number})
                case "delete":
                    state, call = None, run(ref.delete)
                case _:
                    call = run(ref.flush)
            states += [state] if state is not None and operation in ("save", "patch") else []
            under_way.append(call)
            if not at_once or operation == "flush":
                for each in under_way:
                    await each.result()
                under_way = []
            else:
                await anyio.lowlevel.checkpoint()
        for each in under_way:
            await each.result()
        found, history = await reopened(folder, max_history=max_history)
        assert found == state
        kept = states[len(states) - len(history) :]
        assert history == kept
        assert len(history) >= min(len(states), max_history) or "delete" in SEQUENCES[sequence]


async def test_journaled_changes_are_whole_for_a_store_that_takes_none(tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", changes(tmp_path / "states"))
        await ref.save({"n": 0})
        for n in (1, 2):
            await ref.patch({"n": n})
        expected = [{"n": 0}, {"n": 1}, {"n": 2}]
        assert await reopened(tmp_path / "states", format="json") == ({"n": 2}, expected)


async def test_a_journaled_change_to_a_version_that_the_store_lost_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", changes(folder))
        await ref.save({"n": 0})
        await ref.flush()
        await ref.save({"n": 1})
        await ref.flush()
        journal = folder / "j"
        await rt.stop("a")
        ref = await rt.spawn("a", changes(folder))
        await ref.patch({"n": 2})
        shutil.copytree(folder, tmp_path / "copy")
    for file in (tmp_path / "copy").glob("a*"):
        file.unlink()
    async with dgents.Runtime() as rt:
        with pytest.raises(StorageError, match="changes to version 2 of 'a', but its store has gone back") as refused:
            await rt.spawn("a", changes(tmp_path / "copy"))
        assert (refused.value.outcome, refused.value.retryable) == ("not_started", False)
    assert journal.exists()


async def test_a_change_is_journaled_as_one(tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", changes(tmp_path))
        await ref.save({"n": 0, "large": "x" * 100_000})
        await ref.flush()
        before = sum(path.stat().st_size for path in (tmp_path / "j").iterdir())
        for n in range(10):
            await ref.patch({"n": n})
        assert sum(path.stat().st_size for path in (tmp_path / "j").iterdir()) < before + 10_000


@pytest.mark.parametrize("max_history", [0, 1, 3, 100])
async def test_patched_versions_are_in_the_history_without_a_journal(
    anyio_backend: str, max_history: int, tmp_path: Path
) -> None:
    file = dgents.PersistentAgent(tmp_path / "a", format="msgpack", max_history=max_history)
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", behind(file))
        await ref.save({"n": 0})
        for n in range(1, 6):
            await ref.patch({"n": n})
        history = await ref.history()
    assert history == [{"n": n} for n in range(6)][-max(max_history, 1) :]
    async with dgents.Runtime() as rt:
        assert await (await rt.spawn("a", file)).history() == history
