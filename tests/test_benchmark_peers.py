"""The peers do what they are compared for, and the suites' rounds prove it, of peers and of dgents alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from dgents.benchmarks.idle import idle
from dgents.benchmarks.loops import run_tasks
from dgents.benchmarks.lost_updates import Pattern, increment_round, patterns
from dgents.benchmarks.measure import Loop, VerificationError
from dgents.benchmarks.ours import Dgent, MakeAgent, file, sqlite, volatile
from dgents.benchmarks.peers import Peer
from dgents.benchmarks.peers.lock import Lock
from dgents.benchmarks.peers.queue_actor import QueueActor
from dgents.benchmarks.peers.raw_file import RawFile
from dgents.benchmarks.peers.raw_journal import RawJournal
from dgents.benchmarks.peers.raw_sqlite import RawSqlite
from dgents.benchmarks.peers.unlocked import Unlocked
from dgents.benchmarks.rounds import durable_increments, increments, loads, saves
from dgents.benchmarks.states import profile

MakePeer = Callable[[], Peer]

IN_MEMORY: dict[str, MakePeer] = {
    "unlocked": Unlocked,
    "lock": Lock,
    "lock, copies": lambda: Lock(copies=True),
    "lock, awaits": lambda: Lock(awaits=True),
    "queue": QueueActor,
    "volatile": lambda: Dgent("volatile", volatile()),
    "volatile, awaits": lambda: Dgent("volatile", volatile(), awaits=True),
}
DURABLE: dict[str, MakePeer] = {
    "sqlite3": RawSqlite,
    "file": RawFile,
    "file, threads": lambda: RawFile(threads=True),
    "journal": RawJournal,
    "dgents on SQLite": lambda: Dgent("SQLite", sqlite()),
    "dgents on files": lambda: Dgent("file", file()),
}
PEERS = {**IN_MEMORY, **DURABLE}


@pytest.mark.parametrize("name", PEERS)
def test_what_is_saved_and_incremented_is_loaded(name: str, tmp_path: Path) -> None:
    async def use(peer: Peer) -> int:
        await peer.setup(tmp_path, profile())
        try:
            await peer.save(profile(visits=5))
            await peer.increment()
            return int((await peer.load())["visits"])
        finally:
            await peer.close()

    assert anyio.run(use, PEERS[name]()) == 6


@pytest.mark.parametrize("name", IN_MEMORY)
def test_a_round_of_loads_is_verified(name: str, tmp_path: Path) -> None:
    sample = anyio.run(loads(IN_MEMORY[name], 3, profile()), tmp_path)

    assert sample.verified(name).operations == 3


@pytest.mark.parametrize("tasks", [1, 4])
@pytest.mark.parametrize("name", DURABLE)
def test_a_round_of_saves_is_verified_after_opening_it_again(name: str, tasks: int, tmp_path: Path) -> None:
    sample = anyio.run(saves(DURABLE[name], 8, tasks=tasks), tmp_path)

    assert sample.verified(name).found == [8 // tasks] * tasks
    assert len(sample.latencies) == 8


@pytest.mark.parametrize("keys", [1, 3])
@pytest.mark.parametrize("name", ["lock", "queue", "volatile"])
def test_a_round_of_increments_counts_every_one(name: str, keys: int, tmp_path: Path) -> None:
    sample = anyio.run(increments(IN_MEMORY[name], 6, 2, keys=keys), tmp_path)

    assert sample.verified(name).found == [12 // keys] * keys


@pytest.mark.parametrize("keys", [1, 3])
@pytest.mark.parametrize("agent", [sqlite(), file()], ids=["SQLite", "file"])
def test_a_durable_round_counts_every_increment_and_version(agent: MakeAgent, keys: int, tmp_path: Path) -> None:
    round = durable_increments(lambda: Dgent("dgents", agent), 6, 2, keys=keys)

    assert anyio.run(round, tmp_path).verified("dgents").found == ([12 // keys] * keys, 1 + 12 // keys)


def test_a_durable_round_that_kept_too_few_versions_is_no_sample(tmp_path: Path) -> None:
    sample = anyio.run(durable_increments(lambda: Dgent("dgents", sqlite(3)), 6, 2), tmp_path)

    with pytest.raises(VerificationError, match=r"found \(\[12\], 3\)"):
        sample.verified("dgents")


def test_a_round_of_increments_finds_lost_updates(tmp_path: Path) -> None:
    sample = anyio.run(increments(Unlocked, 6, 2), tmp_path)

    with pytest.raises(VerificationError, match=r"found \[2\], expected \[12\]"):
        sample.verified("unlocked")


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_the_rounds_of_ours_run_on_both_loops(loop: Loop, tmp_path: Path) -> None:
    round = increments(IN_MEMORY["volatile, awaits"], 5, 2)

    assert anyio.run(round, tmp_path, backend=loop).verified("volatile").found == [10]


@pytest.mark.parametrize("pattern", patterns(), ids=lambda pattern: pattern.name)
def test_every_increment_is_counted_refused_or_known_to_be_lost(pattern: Pattern, tmp_path: Path) -> None:
    counts = anyio.run(increment_round(pattern, 10, 2), tmp_path).verified(pattern.name).details

    assert counts["kept"] + counts["refused"] + counts["lost"] == 20
    assert (counts["lost"] > 0) == (not pattern.safe)
    assert (counts["refused"] > 0) == pattern.naive


def test_idle_actors_answer_and_none_is_a_task() -> None:
    found: Any = anyio.run(idle, 50)

    assert (found.answers, found.tasks) == (50, 0)


@pytest.mark.anyio
async def test_the_first_error_of_a_task_comes_out_by_itself() -> None:
    async def work(number: int) -> None:
        raise LookupError(number)

    with pytest.raises(LookupError):
        await run_tasks(work, 2)
