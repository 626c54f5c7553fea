"""What the journal acknowledged is there after a kill, after a power cut, after both."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from pathlib import Path

import msgpack
import pytest

from dgents.backends import files
from dgents.backends.journal import Journal
from tests.disk import KillingLayer, RecordingLayer, in_child
from tests.journal_kit import BATCHES, MARK, RECORDS, SMALL, holds, work_through, written

STEPS = ["journal-written", "journal-synced", "journal-marked", "temp-written", "temp-synced", "renamed"]
STEPS += ["directory-synced", "segment-removed"]


@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_each_step_loses_nothing_acknowledged(tmp_path: Path, step: str, at: int) -> None:
    log = tmp_path / "acknowledged"
    log.touch()

    def work() -> None:
        with files.use(KillingLayer(step, at=at)), log.open("ab", buffering=0) as file:
            work_through(tmp_path / "journal", lambda batch: file.write(msgpack.packb(batch)))

    killed = in_child(work)
    assert killed == -9 or (killed == 0 and step == "segment-removed" and at > 2)
    unpacker = msgpack.Unpacker()
    unpacker.feed(log.read_bytes())
    assert holds(tmp_path / "journal", [record for batch in unpacker for record in batch])


def survives_power_cuts(
    tmp_path: Path, *, deaf: str = "", limit: int = 25, seed: int = 0, batches: list[list[bytes]] = BATCHES
) -> bool:
    """Tell whether the journal keeps its word in each image of a power cut while it is written to."""
    root = tmp_path / "root"
    root.mkdir()
    disk = RecordingLayer(root, deaf=deaf, limit=limit, seed=seed)
    images = disk.power_cuts(lambda: work_through(root / "journal", disk.acknowledged.extend, batches))
    assert len(images) > 50
    return all(
        holds(image.materialise(tmp_path / str(n)) / "journal", list(image.acknowledged), batches)
        for n, image in enumerate(images)
    )


def test_no_power_cut_loses_anything_acknowledged(tmp_path: Path) -> None:
    assert survives_power_cuts(tmp_path)


@pytest.mark.torture
def test_no_power_cut_in_random_work_loses_anything_acknowledged(tmp_path: Path) -> None:
    seed = int(os.environ.get("DGENTS_SEED") or random.randrange(2**32))
    print(f"DGENTS_SEED={seed}")
    chance = random.Random(seed)
    for turn in range(20):
        sizes = [[chance.choice([0, 1, 5, 40, 700]) for _ in range(chance.randint(1, 4))] for _ in range(12)]
        batches = [[chance.randbytes(size) for size in batch] for batch in sizes]
        directory = tmp_path / str(turn)
        directory.mkdir()
        assert survives_power_cuts(directory, limit=60, seed=chance.randrange(2**32), batches=batches), turn
        shutil.rmtree(directory)


@pytest.mark.parametrize("deaf", ["fdatasync", "fsync", "fsync_directory"])
def test_the_power_cut_test_fails_with_a_sync_taken_out(tmp_path: Path, deaf: str) -> None:
    assert not survives_power_cuts(tmp_path, deaf=deaf)


def unsynced(root: Path) -> Path:
    """Leave a journal behind whose last batch is whole but was never synced, and return its directory."""
    (path,) = written(root / "journal")
    path.write_bytes(path.read_bytes()[:-MARK])
    return path.parent


def survives_power_cuts_of_opening(tmp_path: Path, deaf: str) -> bool:
    """Tell whether records that a reopened journal has shown are there after any later power cut."""
    root = tmp_path / "root"
    directory = unsynced(root)
    disk = RecordingLayer(root, deaf=deaf)
    (path,) = directory.iterdir()
    disk.doubt(path, path.read_bytes()[:-48])

    def work() -> None:
        journal = Journal(directory)
        journal.open()
        disk.acknowledged.extend(record for _, record in journal.read())
        journal.close()

    images = disk.power_cuts(work)
    return all(
        holds(image.materialise(tmp_path / str(n)) / "journal", list(image.acknowledged))
        for n, image in enumerate(images)
    )


def test_what_a_reopened_journal_shows_survives_a_power_cut(tmp_path: Path) -> None:
    assert survives_power_cuts_of_opening(tmp_path, "")


def test_that_test_fails_without_the_sync_at_open(tmp_path: Path) -> None:
    assert not survives_power_cuts_of_opening(tmp_path, "fsync fdatasync")


class Death(BaseException):
    """Stands for the end of a process."""


class DyingLayer(RecordingLayer):
    """A disk under a process that ends at the step ``last``: nothing it does after that has any effect."""

    last = ""
    dead = False

    def step(self, name: str) -> None:
        if name == self.last and not self.dead:
            self.dead = True
            raise Death

    def unlink(self, path: Path) -> None:
        if self.dead:
            raise Death
        super().unlink(path)


@pytest.mark.parametrize("step", STEPS)
def test_a_process_death_and_then_a_power_cut_lose_nothing_acknowledged(tmp_path: Path, step: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    disk = DyingLayer(root, limit=5)

    def work() -> None:
        disk.last = step
        with contextlib.suppress(Death):
            work_through(root / "journal", disk.acknowledged.extend)
        disk.end_of_process()
        disk.last, disk.dead = "", False
        journal = Journal(root / "journal", segment_bytes=SMALL)
        journal.open()
        disk.acknowledged[:] = RECORDS[: journal.next - 1]
        for batch in BATCHES:
            if batch[-1] not in disk.acknowledged:
                journal.append(batch)
                disk.acknowledged += batch
        journal.close()

    images = disk.power_cuts(work)
    assert disk.acknowledged == RECORDS
    assert all(
        holds(image.materialise(tmp_path / str(n)) / "journal", list(image.acknowledged))
        for n, image in enumerate(images)
    )
