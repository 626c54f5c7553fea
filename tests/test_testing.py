"""The kit for concurrent writers tells a client that keeps its word from one that does not."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

import dgents
from dgents.testing import IN_PROCESS, WORKLOADS, Add, MakeClient, Outcome, concurrent_writers, dgent_client
from tests.writer_clients import (
    AnsweringLate,
    Failing,
    Locked,
    Repeating,
    Unlocked,
    UnlockedFiles,
    opened,
    sqlite_agent,
)

pytestmark = pytest.mark.anyio
CHANGES = 20 * 5


def dgents_on(kind: str, folder: Path) -> MakeClient:
    """Return what opens dgents with this kind of agent."""
    agents = {
        "volatile": dgents.VolatileAgent,
        "file": partial(dgents.PersistentAgent, f"{folder}/states/"),
        "SQLite": partial(sqlite_agent, str(folder / "state.db")),
        "SQLite, shared": partial(sqlite_agent, str(folder / "shared.db"), "shared"),
    }
    return partial(dgent_client, agents[kind])


async def test_a_locked_client_passes() -> None:
    report = await concurrent_writers(partial(opened, Locked), workloads=IN_PROCESS)

    report.check()
    assert report["appends"] == Outcome("appends", applied=CHANGES, refused=0, lost=0, twice=0)
    assert report["stale"] == Outcome("stale", applied=1, refused=19, lost=0, twice=0)


async def test_an_unlocked_client_is_caught_with_numbers() -> None:
    report = await concurrent_writers(partial(opened, Unlocked), workloads=IN_PROCESS)

    assert report["counter"].lost == CHANGES - report["counter"].applied
    assert report["counter"].lost >= CHANGES * 9 // 10
    assert min(report["appends"].lost, report["bank"].lost) > 0
    assert report["stale"] == Outcome("stale", applied=1, refused=0, lost=19, twice=0)


async def test_a_failed_check_says_what_became_of_each_workload() -> None:
    report = await concurrent_writers(partial(opened, Unlocked), workloads=["stale"])

    with pytest.raises(AssertionError, match="stale: 20 asked, 1 applied, 0 refused, 19 lost, 0 twice"):
        report.check()


async def test_what_is_applied_twice_is_caught() -> None:
    report = await concurrent_writers(partial(opened, Repeating), workloads=["appends", "counter", "bank"])

    assert [outcome.twice for outcome in report.outcomes] == [CHANGES, CHANGES, 2 * CHANGES]


async def test_a_client_that_refuses_everything_is_safe_and_proves_nothing() -> None:
    report = await concurrent_writers(partial(opened, Failing), workloads=["appends", "counter"])

    assert report.safe
    assert [outcome.refused for outcome in report.outcomes] == [CHANGES, CHANGES]
    with pytest.raises(AssertionError):
        report.check()


async def test_a_change_that_failed_and_is_there_counts_as_applied() -> None:
    report = await concurrent_writers(partial(opened, AnsweringLate), workloads=["appends", "counter"])

    assert [outcome.applied for outcome in report.outcomes] == [CHANGES, CHANGES]


async def test_two_processes_that_share_files_without_a_lock_are_caught(tmp_path: Path) -> None:
    client = partial(opened, partial(UnlockedFiles, tmp_path))
    report = await concurrent_writers(client, workloads=["processes"])

    assert report["processes"].asked == CHANGES
    assert report["processes"].lost > 0


@pytest.mark.parametrize("kind", ["volatile", "file", "SQLite", "SQLite, shared"])
async def test_dgents_passes(kind: str, tmp_path: Path) -> None:
    report = await concurrent_writers(dgents_on(kind, tmp_path), workloads=IN_PROCESS)

    report.check()
    assert report["counter"].applied == CHANGES
    assert report["stale"].refused == 19


@pytest.mark.parametrize("kind", ["file", "SQLite"])
async def test_of_two_processes_an_exclusive_owner_refuses_the_second(kind: str, tmp_path: Path) -> None:
    report = await concurrent_writers(dgents_on(kind, tmp_path), workloads=["processes"])

    report.check()


async def test_two_processes_share_a_state_without_loss(tmp_path: Path) -> None:
    report = await concurrent_writers(dgents_on("SQLite, shared", tmp_path), workloads=["processes"])

    assert report["processes"] == Outcome("processes", applied=CHANGES, refused=0, lost=0, twice=0)


async def test_an_unknown_workload_is_named() -> None:
    with pytest.raises(ValueError, match=f"there is no workload 'chess'; there are: {', '.join(WORKLOADS)}"):
        await concurrent_writers(partial(opened, Locked), workloads=["chess"])


def test_a_change_is_a_function_and_data() -> None:
    assert (Add(1)(2), Add(["b"])(["a"])) == (3, ["a", "b"])
