"""Several processes on one state: a shared one loses nothing, an exclusive one has a single owner."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dgents
from tests.chaos.killed_writer import make_agent


def start(module: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"tests.chaos.{module}", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def increments(path: Path, processes: int, times: int, loop: str) -> Any:
    running = [start("counting_process", path, times, loop) for _ in range(processes)]
    assert [process.wait(timeout=100) for process in running] == [0] * processes
    for process in running:
        process.communicate()
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("counter", dgents.SQLAgent(str(path), ownership="shared"))
        return (await ref.snapshot()).state, (await ref.snapshot()).version


@pytest.mark.anyio
@pytest.mark.parametrize("processes", [2, 4])
async def test_processes_that_share_a_state_lose_no_update(processes: int, tmp_path: Path, anyio_backend: str) -> None:
    assert await increments(tmp_path / "a.db", processes, 100, anyio_backend) == (100 * processes, 100 * processes)


@pytest.mark.anyio
@pytest.mark.torture
async def test_eight_processes_that_share_a_state_lose_no_update(tmp_path: Path, anyio_backend: str) -> None:
    assert await increments(tmp_path / "a.db", 8, 1000, anyio_backend) == (8000, 8000)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["json", "msgpack", "sqlite", "journal"])
async def test_a_second_owner_is_refused_and_told_who_the_first_is(
    kind: str, tmp_path: Path, anyio_backend: str
) -> None:
    owner = start("killed_writer", kind, tmp_path, anyio_backend)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    try:
        async with dgents.Runtime() as rt:
            with pytest.raises(dgents.StateLockedError) as refused:
                await rt.spawn("state", make_agent(kind, tmp_path))
        assert refused.value.pid == owner.pid
    finally:
        owner.kill()
        owner.communicate()
    async with dgents.Runtime() as rt:  # its death has released the lock
        ref = await rt.spawn("state", make_agent(kind, tmp_path))
        await ref.update(lambda ids: [*ids, "after"], default=[])
