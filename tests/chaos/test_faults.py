"""Faults in the disk below a runtime: no false acknowledgement, a true outcome, and life goes on when it is over."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

import dgents
from dgents.backends import files
from tests.disk import FaultyLayer

pytestmark = pytest.mark.anyio


def agent(kind: str, folder: Path) -> Any:
    if kind == "journal":
        flush = dgents.Flush(max_delay=0.001, journal=folder / "journal")
        inner = dgents.PersistentAgent(folder / "state.json")
        return dgents.CachedAgent(dgents.VolatileAgent(), inner, policy="write-behind", flush=flush)
    return dgents.PersistentAgent(folder / f"state.{kind}", format=kind)


async def reopened(kind: str, folder: Path) -> list[int]:
    async with dgents.Runtime() as rt:
        state: list[int] = await (await rt.spawn("state", agent(kind, folder))).load(default=[])
        return state


@pytest.mark.parametrize("at", range(1, 7))
@pytest.mark.parametrize("operation", ["write_some", "fsync", "fdatasync", "replace", "fsync_directory"])
@pytest.mark.parametrize("kind", ["json", "msgpack", "journal"])
async def test_a_failing_disk_loses_nothing_that_was_acknowledged(
    kind: str, operation: str, at: int, tmp_path: Path
) -> None:
    acknowledged: list[int] = []
    outcomes: set[str] = set()
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("state", agent(kind, tmp_path))
        with files.use(FaultyLayer(operation, errno.EIO, at=at)):
            for number in range(8):
                try:
                    with anyio.fail_after(20):
                        await ref.update(lambda state, number=number: [*state, number], default=[])
                except dgents.StorageError as error:
                    outcomes.add(error.outcome)
                    continue
                acknowledged.append(number)
        with anyio.fail_after(20):  # the disk is well again
            await ref.update(lambda state: [*state, 99], default=[])
            assert (await ref.load())[-1] == 99
    state = await reopened(kind, tmp_path)
    assert [number for number in state if number != 99] == sorted(state)[: len(state) - 1]
    assert set(acknowledged) <= set(state)
    assert len(state) == len(set(state))
    assert outcomes <= {"rolled_back", "unknown"}


FULL = """
import resource, signal, sys, anyio, dgents
from pathlib import Path

async def main(kind, folder):
    made = {"json": dgents.PersistentAgent(folder / "s.json"), "sqlite": dgents.SQLAgent(str(folder / "s.db"))}[kind]
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("state", made)
        await ref.save("small")
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        try:
            await ref.save("x" * 600_000)
        except dgents.StorageError as error:
            assert error.outcome == "rolled_back", error.outcome
        else:
            raise AssertionError("there was no room, and no error")
        assert await ref.load() == "small"
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await ref.save("there is room again")

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
anyio.run(main, sys.argv[1], Path(sys.argv[2]), backend=sys.argv[3])
"""


@pytest.mark.parametrize("kind", ["json", "sqlite"])
async def test_a_full_disk_rolls_back_and_later_writes_succeed(kind: str, tmp_path: Path, anyio_backend: str) -> None:
    command = [sys.executable, "-c", FULL, kind, str(tmp_path), anyio_backend]
    done = await anyio.run_process(command, check=False)
    assert done.returncode == 0, done.stderr.decode()
    made = {"json": dgents.PersistentAgent(tmp_path / "s.json"), "sqlite": dgents.SQLAgent(str(tmp_path / "s.db"))}
    async with dgents.Runtime() as rt:
        assert await (await rt.spawn("state", made[kind])).load() == "there is room again"


MEMORY = """
import resource, sys, anyio, dgents

async def main():
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("state", dgents.VolatileAgent(b"small"))
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))
        try:
            await ref.update(lambda state: bytes(4 << 30))
        except MemoryError:
            pass
        else:
            raise AssertionError("there was memory enough")
        assert await ref.load() == b"small"
        assert await ref.update(lambda state: state + b"!") == b"small!"

anyio.run(main, backend=sys.argv[1])
"""


async def test_a_turn_without_memory_is_rolled_back_and_the_actor_lives(anyio_backend: str) -> None:
    done = await anyio.run_process([sys.executable, "-c", MEMORY, anyio_backend], check=False)
    assert done.returncode == 0, done.stderr.decode()
