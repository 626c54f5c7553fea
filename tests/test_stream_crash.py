"""What a stream acknowledged is there after its process was killed, under its number, once."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import dgents
from dgents import Runtime
from dgents.backends import files
from tests.disk import RecordingLayer
from tests.stream_kit import DURABLE, UserCreated, add, agent_maker

pytestmark = pytest.mark.anyio


def kill_after(loop: str, log: str, folder: Path, lines: int) -> dict[int, int]:
    """Run a child until it has acknowledged so many events, kill it, and return all it acknowledged."""
    command = [sys.executable, "-m", "tests.stream_child", loop, log, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        said = [child.stdout.readline() for _ in range(lines)]
        child.kill()
        said += child.stdout.readlines()
    whole = [line.split() for line in said if line.endswith("\n")]
    return {int(number): int(event) for number, event in whole}


async def check(log: str, folder: Path, acknowledged: dict[int, int]) -> None:
    async with Runtime() as rt:
        agent = agent_maker(log, folder)(fold=add, initial=0, events=[int], schema=int, chain=True)
        stream = await rt.spawn("numbers", agent)
        events = [event async for event in stream.events()]
        assert await stream.verify() == len(events) >= max(acknowledged)
        assert await stream.load() == sum(events)
    assert acknowledged.items() <= dict(enumerate(events, 1)).items()
    assert len(set(events)) == len(events)  # nothing twice
    pairs = {abs(event) for event in events if (abs(event) - 1) % 2 == 0}
    assert pairs <= set(events)  # what was appended together is there together
    assert {-event for event in pairs} <= set(events)


async def rounds(loop: str, log: str, folder: Path, count: int, seed: int) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    acknowledged: dict[int, int] = {}
    for _ in range(count):
        lines = chance.randrange(1, 400)
        acknowledged |= await anyio.to_thread.run_sync(kill_after, loop, log, folder, lines)
        await check(log, folder, acknowledged)


@pytest.mark.parametrize("log", DURABLE)
async def test_what_was_acknowledged_survives_sigkill(tmp_path: Path, log: str, anyio_backend: str) -> None:
    await rounds(anyio_backend, log, tmp_path, 2, seed=1)


@pytest.mark.torture
@pytest.mark.parametrize("log", DURABLE)
async def test_what_was_acknowledged_survives_many_sigkills(tmp_path: Path, log: str, anyio_backend: str) -> None:
    await rounds(anyio_backend, log, tmp_path, 100, int(os.environ.get("DGENTS_SEED") or random.randrange(2**32)))


class Failing(files.FileLayer):
    """Fails the next syncs, before or after they did their work."""

    def __init__(self, failures: int, *, after: bool) -> None:
        self.failures = failures
        self.after = after

    def fdatasync(self, fd: int) -> None:
        if self.after:
            super().fdatasync(fd)
        if self.failures > 0:
            self.failures -= 1
            raise OSError(5, "injected")
        super().fdatasync(fd)


@pytest.mark.parametrize("after", [True, False])
async def test_an_append_in_doubt_is_answered_with_the_truth(tmp_path: Path, after: bool) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", agent_maker("journal", tmp_path)(chain=True))
        await stream.append(UserCreated("u0", "x"))
        with files.use(Failing(1, after=after)):
            assert await stream.append(UserCreated("u1", "x")) == 2
        assert await stream.append(UserCreated("u2", "x")) == 3
        assert [event.user_id async for event in stream.events()] == ["u0", "u1", "u2"]
        assert await stream.verify() == 3
        assert (await stream.load()).changes == 3


async def test_an_append_that_fails_for_good_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", agent_maker("journal", tmp_path)(chain=True))
        await stream.append(UserCreated("u0", "x"))

        class Full(files.FileLayer):
            def write_some(self, fd: int, data: Any, offset: int | None) -> int:
                raise OSError(28, "injected")

        with files.use(Full()), pytest.raises(dgents.StorageError):
            await stream.append(UserCreated("u1", "x"))
    async with Runtime() as rt:
        stream = await rt.spawn("users", agent_maker("journal", tmp_path)(chain=True))
        assert await stream.append(UserCreated("u2", "x")) == 2
        assert set((await stream.load()).users) == {"u0", "u2"}


async def test_a_removed_lock_stops_the_owner(tmp_path: Path) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", agent_maker("journal", tmp_path)())
        await stream.append(UserCreated("u0", "x"))
        (tmp_path / "log" / "users" / "owner.lock").unlink()
        with pytest.raises(dgents.OwnershipLostError):
            await stream.append(UserCreated("u1", "x"))
        with pytest.raises(dgents.ActorStoppedError):
            await stream.load()


def survives_power_cuts(tmp_path: Path, *, signed: bool, deaf: str = "", limit: int = 6) -> bool:
    """Tell whether a chained stream keeps its word in each image of a power cut, and takes none for tampering."""
    options: Any = {"fold": add, "initial": 0, "events": [int], "schema": int, "chain": True, "snapshot_every": 3}
    options |= {"signing_key": bytes(32)} if signed else {}
    root = tmp_path / "root"
    root.mkdir()
    disk = RecordingLayer(root, deaf=deaf, limit=limit)

    async def work() -> None:
        for session in range(2):
            async with Runtime() as rt:
                stream = await rt.spawn("numbers", agent_maker("journal", root)(**options))
                for n in range(3):
                    disk.acknowledge(await stream.append(n))
                await stream.compact(before=2 + session)
                disk.acknowledge(await stream.append_all([1, 2]))

    async def check(folder: Path, acknowledged: tuple[int, ...]) -> None:
        async with Runtime() as rt:
            stream = await rt.spawn("numbers", agent_maker("journal", folder)(**options))
            await stream.verify()
            version = (await stream.snapshot()).version
            assert version >= max(acknowledged, default=0)
            assert await stream.append(7) == version + 1

    images = disk.power_cuts(lambda: anyio.run(work))
    assert len(images) > 100
    for n, image in enumerate(images):
        folder = image.materialise(tmp_path / str(n))
        try:
            anyio.run(check, folder, image.acknowledged)
        except (AssertionError, dgents.StateError, dgents.StorageError) as error:
            print(n, image.acknowledged, repr(error))
            return False
        shutil.rmtree(folder)
    return True


@pytest.mark.parametrize("signed", [True, False])
def test_no_power_cut_is_taken_for_tampering(tmp_path: Path, signed: bool) -> None:
    assert survives_power_cuts(tmp_path, signed=signed)


@pytest.mark.torture
@pytest.mark.parametrize("signed", [True, False])
def test_no_power_cut_of_many_is_taken_for_tampering(tmp_path: Path, signed: bool) -> None:
    assert survives_power_cuts(tmp_path, signed=signed, limit=20)


def test_that_test_fails_with_a_sync_taken_out(tmp_path: Path) -> None:
    assert not survives_power_cuts(tmp_path, signed=False, deaf="fdatasync")
