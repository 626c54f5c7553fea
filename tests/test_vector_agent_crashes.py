"""A vector store after kills, faults and damage: what was acknowledged is there, or the error says what is not."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import dgents
from dgents.backends import files, vector_upkeep
from dgents.backends.files import FileLayer
from tests.disk import FaultyLayer
from tests.seeds import seeded
from tests.vector_child import OPERATIONS, D, killed, matches, model, operate, survives, vector

pytestmark = pytest.mark.anyio

STEPS = (
    "journal-written",
    "journal-synced",
    "journal-marked",
    "snapshot-written",
    "snapshot-synced",
    "snapshot-renamed",
    "snapshot-in-place",
    "segment-removed",
)


@pytest.mark.parametrize("step", STEPS)
async def test_what_was_acknowledged_survives_a_kill_at_each_step(
    step: str, tmp_path: Path, anyio_backend: str
) -> None:
    acknowledged = killed(tmp_path / "v", anyio_backend, step, "3")
    assert await survives(tmp_path / "v", acknowledged)


@pytest.mark.parametrize("index", ["flat", "hnsw"])
async def test_what_was_acknowledged_survives_a_kill_at_any_moment(
    tmp_path: Path, anyio_backend: str, index: str
) -> None:
    after = seeded().randrange(1, OPERATIONS)
    acknowledged = killed(tmp_path / "v", anyio_backend, after=after, index=index)
    assert acknowledged >= after
    assert await survives(tmp_path / "v", acknowledged, index)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("index", ["flat", "hnsw", "ivf"])
async def test_what_was_acknowledged_survives_a_hundred_kills(tmp_path: Path, anyio_backend: str, index: str) -> None:
    chance = seeded()
    for round in range(100):
        step = (chance.choice(STEPS), str(chance.randrange(1, 20))) if round % 2 else ()
        after = None if step else chance.randrange(1, OPERATIONS)
        acknowledged = killed(tmp_path / "v", anyio_backend, *step, after=after, index=index)
        assert await survives(tmp_path / "v", acknowledged, index), f"round {round}"
        shutil.rmtree(tmp_path / "v")


@pytest.fixture
def small_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_upkeep, "LEAST_CHANGES", 40)


async def fill(directory: Path, first: int, last: int) -> None:
    async with dgents.Runtime() as rt:
        ref: dgents.VectorRef[Any] = await rt.spawn("vectors", dgents.VectorAgent(D, path=directory))
        for n in range(first, last):
            await operate(ref, n)


@pytest.mark.usefixtures("small_snapshots")
async def test_a_store_that_is_opened_again_goes_on_where_it_was(tmp_path: Path) -> None:
    for first in range(0, 60, 20):
        await fill(tmp_path / "v", first, first + 20)
        assert await survives(tmp_path / "v", first + 20) is True
        async with dgents.Runtime() as rt:
            ref: dgents.VectorRef[Any] = await rt.spawn("vectors", dgents.VectorAgent(D, path=tmp_path / "v"))
            await ref.delete("after")


@pytest.mark.usefixtures("small_snapshots")
async def test_the_journal_is_kept_short_over_many_short_lives(tmp_path: Path) -> None:
    agent = dgents.VectorAgent[Any](D, path=tmp_path / "v")
    for life in range(9):
        async with dgents.Runtime() as rt:
            ref: dgents.VectorRef[Any] = await rt.spawn("vectors", agent)
            cell: Any = ref._cell
            while cell.upkeep._running:  # noqa: ASYNC110 (nothing tells the end of an upkeep)
                await anyio.sleep(0.001)
            assert [hit.state for hit in await ref.search(vector(0), 20)] == [life - 1] * 15 * (life > 0)
            await ref.save_many([life] * 15, ids=range(15), embeddings=[vector(life)] * 15)
    assert min(int(path.stem) for path in (tmp_path / "v").glob("*.journal")) > 6


async def test_a_generated_id_is_not_given_again_after_a_restart(tmp_path: Path) -> None:
    agent = dgents.VectorAgent[Any](D, path=tmp_path / "v")
    for expected in (1, 2, 3):
        async with dgents.Runtime() as rt:
            ref: dgents.VectorRef[Any] = await rt.spawn("vectors", agent)
            assert await ref.save_many([{}], embeddings=[[1] * D]) == [expected]
            await ref.delete(expected)


@pytest.mark.usefixtures("small_snapshots")
async def test_a_request_id_is_remembered_through_restarts_and_snapshots(tmp_path: Path) -> None:
    agent = dgents.VectorAgent[Any](D, path=tmp_path / "v")
    async with dgents.Runtime() as rt:
        ref: dgents.VectorRef[Any] = await rt.spawn("vectors", agent)
        assert await ref.save({}, id=1, embedding=[1] * D, request_id="r") == 1
        for n in range(60):
            await operate(ref, n)
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("vectors", agent)
        assert await ref.save({}, id="again", embedding=[1] * D, request_id="r") == 1
        assert await ref.get("again", default=None) is None


def images(directory: Path, copy: Path) -> Iterator[str]:
    """Flip a byte here and there, each time in a new copy of a store; yield the name of the damaged file."""
    chance = seeded()
    for path in sorted(directory.iterdir()):
        content = path.read_bytes()
        if path.suffix == ".lock":
            continue
        for offset in sorted({*range(40), *(chance.randrange(len(content)) for _ in range(25))} - {len(content)}):
            if offset >= len(content):
                continue
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(directory, copy)
            damaged = bytearray(content)
            damaged[offset] ^= 0x40
            (copy / path.name).write_bytes(damaged)
            yield path.name


@pytest.mark.usefixtures("small_snapshots")
async def test_a_flipped_byte_is_found_or_does_no_harm(tmp_path: Path) -> None:
    await fill(tmp_path / "v", 0, 30)
    refused = set()
    for name in images(tmp_path / "v", tmp_path / "copy"):
        before = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir() if path.suffix != ".lock"}
        async with dgents.Runtime() as rt:
            try:
                ref: dgents.VectorRef[Any] = await rt.spawn("v", dgents.VectorAgent(D, path=tmp_path / "copy"))
            except (dgents.StateCorruptionError, dgents.StorageError) as error:
                refused.add(name)
                named = str(tmp_path / "copy") in str(error)
                after = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
                assert named
                assert {name: after[name] for name in before} == before
            else:  # the mark behind the last batch, whose loss loses nothing
                assert name.endswith(".journal")
                assert await matches(ref, model(30))
    assert refused >= {"vectors.snapshot"}
    assert any(name.endswith(".journal") for name in refused)


@pytest.mark.parametrize("lost", ["vectors.snapshot", "*.journal"])
@pytest.mark.usefixtures("small_snapshots")
async def test_a_store_that_lacks_a_file_is_refused_and_left_as_it_is(tmp_path: Path, lost: str) -> None:
    await fill(tmp_path / "v", 0, 60)
    for path in (tmp_path / "v").glob(lost):
        path.unlink()
    names = sorted(path.name for path in (tmp_path / "v").iterdir())
    async with dgents.Runtime() as rt:
        with pytest.raises(dgents.StateCorruptionError, match="missing"):
            await rt.spawn("v", dgents.VectorAgent(D, path=tmp_path / "v"))
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == names


async def test_another_dimension_or_metric_is_refused_with_both(tmp_path: Path) -> None:
    await fill(tmp_path / "v", 0, 3)
    async with dgents.Runtime() as rt:
        for agent in (
            dgents.VectorAgent(3, path=tmp_path / "v"),
            dgents.VectorAgent(D, path=tmp_path / "v", metric="l2"),
        ):
            with pytest.raises(dgents.UnsupportedOperationError, match="dimension 8 and metric 'cosine'"):
                await rt.spawn("v", agent)


async def test_a_second_owner_is_refused(tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        await rt.spawn("a", dgents.VectorAgent(D, path=tmp_path / "v"))
        with pytest.raises(dgents.StateLockedError):
            await rt.spawn("b", dgents.VectorAgent(D, path=tmp_path / "v"))


@pytest.mark.parametrize("operation", ["write_some", "fdatasync"])
@pytest.mark.parametrize("at", [1, 3])
async def test_a_disk_that_fails_once_loses_nothing_and_doubles_nothing(
    tmp_path: Path, operation: str, at: int
) -> None:
    async with dgents.Runtime() as rt:
        supervisor = await rt.supervisor("s", backoff=dgents.Backoff(0, 0))
        ref: dgents.VectorRef[Any] = await supervisor.spawn("vectors", dgents.VectorAgent(D, path=tmp_path / "v"))
        with files.use(FaultyLayer(operation, errno.EIO, at=at)):
            for n in range(30):
                await operate(ref, n)
        assert await matches(ref, model(30))
        assert rt.stats()["vectors"].restarts == 1
    assert await survives(tmp_path / "v", 30)


async def test_a_disk_that_stays_broken_rolls_back_what_a_search_could_have_seen(tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        supervisor = await rt.supervisor("s", backoff=dgents.Backoff(0, 0))
        ref: dgents.VectorRef[Any] = await supervisor.spawn("vectors", dgents.VectorAgent(D, path=tmp_path / "v"))
        await ref.save({"n": 0}, id="kept", embedding=[1] * D)
        with files.use(FaultyLayer("write_some", errno.EIO, times=99)), pytest.raises(dgents.StorageError):
            await ref.save({"n": 1}, id="lost", embedding=[1] * D)
        assert [hit.id for hit in await ref.search([1] * D)] == ["kept"]


@pytest.mark.usefixtures("small_snapshots")
async def test_a_snapshot_that_cannot_be_written_is_told_and_costs_nothing(tmp_path: Path) -> None:
    class Full(FileLayer):
        def fsync(self, fd: int) -> None:
            raise OSError(errno.ENOSPC, "no space")

    events: list[Any] = []
    async with dgents.Runtime(on_event=events.append) as rt:
        ref: dgents.VectorRef[Any] = await rt.spawn("vectors", dgents.VectorAgent(D, path=tmp_path / "v"))
        with files.use(Full()):
            for n in range(40):
                await operate(ref, n)
        assert await matches(ref, model(40))
    assert any("no snapshot" in event.details["message"] for event in events if event.kind == "warning")
    assert await survives(tmp_path / "v", 40)
