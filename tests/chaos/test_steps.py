"""Death and power cuts at every step that the runtime takes on the disk, for each store with a format of its own.

A story is some updates through the runtime, the first ones alone, the last ones together. It is told once for each
operation on the file system, and ends by SIGKILL right before it; and it is told once on a disk that knows what a power
cut could leave behind at each moment. Then the next runtime opens what is there: every update that was acknowledged is
in the state, and none is in it twice.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import dgents
from dgents.backends import files
from dgents.backends.files import FileLayer
from tests.disk import RecordingLayer, in_child
from tests.seeds import seeded

ALONE, TOGETHER = 6, 6
OPERATIONS = (
    "open",
    "write_some",
    "truncate",
    "fsync",
    "fdatasync",
    "replace",
    "unlink",
    "make_directory",
    "fsync_directory",
)


def append(state: list[int], number: int) -> list[int]:
    return [*state, number]


def agent(kind: str, folder: Path) -> Any:
    """Return the agent of a kind, in a folder of its own."""
    if kind in ("json", "msgpack"):
        return dgents.PersistentAgent(folder / "state", format=kind, max_history=3)
    if kind in ("gzip", "zstd"):
        return dgents.PersistentAgent(folder / "state", format="msgpack", compression=kind)
    if kind == "behind":
        flush = dgents.Flush(max_delay=0.0, max_pending=2, journal=folder / "journal")
        store = dgents.PersistentAgent(folder / "state")
        return dgents.CachedAgent(dgents.VolatileAgent(), store, policy="write-behind", flush=flush)
    if kind == "stream":
        return dgents.StreamAgent(append, [], event_log=folder / "log", snapshot_every=3, chain=True)
    return dgents.VectorAgent(2, path=folder / "vectors")


async def add(kind: str, ref: Any, number: int) -> None:
    if kind == "stream":
        await ref.append(number)
    elif kind == "vectors":
        await ref.save(number, id=number, embedding=[1.0, number])
    else:
        await ref.update(append, number, default=[])


async def tell(kind: str, folder: Path, acknowledge: Callable[[int], None]) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("state", agent(kind, folder))

        async def once(number: int) -> None:
            await add(kind, ref, number)
            acknowledge(number)

        for number in range(ALONE):
            await once(number)
        async with anyio.create_task_group() as tasks:
            for number in range(ALONE, ALONE + TOGETHER):
                tasks.start_soon(once, number)


async def kept(kind: str, folder: Path) -> list[int]:
    """Return the updates that the next runtime finds, and go on with one more."""
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("state", agent(kind, folder))
        await add(kind, ref, 99)
        if kind == "stream":
            assert await ref.verify() == len(await ref.load())
        if kind == "vectors":
            return sorted([hit.id for hit in await ref.search([1.0, 1.0], 100)])
        state: list[int] = await ref.load(default=[])
        return state


def check(kind: str, folder: Path, acknowledged: set[int]) -> None:
    found = anyio.run(kept, kind, folder)
    assert found[-1] == 99
    assert len(found) == len(set(found)), f"an update is there twice: {found}"
    assert acknowledged <= set(found), f"lost: {acknowledged - set(found)}"


class DyingLayer(FileLayer):
    """Kills this process right before the ``at``-th operation on the file system (from 1)."""

    def __init__(self, at: int) -> None:
        self.left = at
        for name in OPERATIONS:
            setattr(self, name, self._counted(getattr(self, name)))

    def _counted(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args)

        return counted


def die(kind: str, folder: Path, loop: str, at: int) -> tuple[int, set[int]]:
    """Tell the story in a child that dies at an operation; return how it ended, and what was acknowledged."""
    reader, writer = os.pipe()

    def story() -> None:
        with files.use(DyingLayer(at)):
            anyio.run(tell, kind, folder, lambda number: os.write(writer, bytes([number])), backend=loop)

    status = in_child(story)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        return status, set(told.read())


def deaths(kind: str, folder: Path, loop: str, every: int, first: int) -> int:
    """Die at every ``every``-th operation, until the story comes to its end; return how often that was."""
    count = 0
    at = first
    while True:
        place = folder / str(at)
        place.mkdir()
        status, acknowledged = die(kind, place, loop, at)
        check(kind, place, acknowledged)
        if status == 0:
            assert acknowledged == set(range(ALONE + TOGETHER))
            return count
        assert status == -signal.SIGKILL
        count += 1
        at += every


KINDS = ("json", "msgpack", "gzip", "zstd", "behind", "stream", "vectors")


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_acknowledged_survives_a_death_at_some_operations(kind: str, tmp_path: Path) -> None:
    first = seeded().randrange(1, 9)
    assert deaths(kind, tmp_path, "asyncio", 9, first) > 2


@pytest.mark.torture
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_acknowledged_survives_a_death_at_every_operation(kind: str, loop: str, tmp_path: Path) -> None:
    print(f"\n{kind} on {loop}: {deaths(kind, tmp_path, loop, 1, 1)} deaths, nothing lost, nothing twice")


def power_cuts(kind: str, folder: Path, most: int, *, deaf: str = "", limit: int = 8) -> int:
    """Check what power cuts leave of a story; return how many images there were."""
    chance = seeded()
    root = folder / "disk"
    root.mkdir()
    disk = RecordingLayer(root, deaf=deaf, limit=limit, seed=chance.randrange(2**30))
    images = disk.power_cuts(lambda: anyio.run(tell, kind, root, disk.acknowledge))
    chosen = images if len(images) <= most else chance.sample(images, most)
    for number, image in enumerate(chosen):
        check(kind, image.materialise(folder / f"image-{number}"), set(image.acknowledged))
    return len(chosen)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_acknowledged_survives_some_power_cuts(kind: str, tmp_path: Path) -> None:
    assert power_cuts(kind, tmp_path, 40) == 40


@pytest.mark.torture
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_acknowledged_survives_every_power_cut(kind: str, tmp_path: Path) -> None:
    print(f"\n{kind}: {power_cuts(kind, tmp_path, 10**9, limit=40)} images of power cuts, nothing lost, nothing twice")


@pytest.mark.parametrize("kind", ["json", "msgpack", "behind", "stream", "vectors"])
def test_the_power_cuts_find_out_a_store_that_does_not_sync(kind: str, tmp_path: Path) -> None:
    """The proof can fail: a disk on which syncs do nothing loses what was acknowledged."""
    found = False
    with contextlib.suppress(AssertionError, dgents.DgentError):
        power_cuts(kind, tmp_path, 300, deaf="fsync fdatasync")
        found = True
    assert not found, "a store that never syncs passed"
