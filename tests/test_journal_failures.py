"""When the disk fails, the journal says so, refuses to go on, and finds its way back."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from dgents.backends import files
from dgents.backends.journal import Journal
from dgents.runtime.errors import StateCorruptionError, StorageError
from tests.disk import FaultyLayer, RecordingLayer, StutteringLayer, in_child
from tests.journal_kit import HEADER, MARK, RECORDS, SMALL, found, written


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """An open, empty journal."""
    opened = Journal(tmp_path / "journal")
    opened.open()
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("operation", "code", "outcome", "kept"),
    [
        ("write_some", errno.ENOSPC, "rolled_back", 1),
        ("write_some", errno.EIO, "rolled_back", 1),
        ("fdatasync", errno.EIO, "unknown", 2),
    ],
)
def test_after_a_failure_it_refuses_until_it_is_opened_again(
    journal: Journal, operation: str, code: int, outcome: str, kept: int
) -> None:
    journal.append([b"first"])
    with files.use(FaultyLayer(operation, code)), pytest.raises(StorageError) as caught:
        journal.append([b"second"])
    assert caught.value.outcome == outcome
    for use in (lambda: journal.append([b"x"]), journal.read, journal.roll, lambda: journal.trim(1)):
        with pytest.raises(StorageError, match=r"open\(\) it again"):
            use()
    journal.open()
    assert [record for _, record in journal.read()] == [b"first", b"second"][:kept]
    assert journal.append([b"on"]) == kept + 1


def test_a_batch_whose_sync_failed_is_written_once_more_before_it_counts(journal: Journal) -> None:
    with files.use(FaultyLayer("fdatasync", errno.EIO)), pytest.raises(StorageError):
        journal.append([b"doubtful"])
    with files.use(FaultyLayer("fsync", errno.EIO)), pytest.raises(StorageError, match="EIO"):
        journal.open()
    disk = RecordingLayer(journal.directory)
    (path,) = journal.directory.iterdir()
    disk.doubt(path, path.read_bytes()[:HEADER])
    with files.use(disk):
        journal.open()
    assert b"doubtful" in disk.durable(path)


@pytest.mark.parametrize("operation", ["open", "write_some", "fdatasync", "fsync", "replace", "fsync_directory"])
def test_a_new_segment_that_fails_loses_nothing(tmp_path: Path, operation: str) -> None:
    journal = Journal(tmp_path, segment_bytes=1)
    journal.open()
    journal.append([b"first"])
    with files.use(FaultyLayer(operation, errno.EIO)), pytest.raises(StorageError, match="append"):
        journal.append([b"second"])
    journal.close()
    assert found(tmp_path) == [b"first"]


def test_a_trim_that_fails_can_be_repeated(tmp_path: Path) -> None:
    written(tmp_path, segment_bytes=SMALL)
    journal = Journal(tmp_path)
    journal.open()
    with files.use(FaultyLayer("fsync_directory", errno.EIO)), pytest.raises(StorageError, match="trim"):
        journal.trim(6)
    journal.append([b"on"])
    journal.trim(6)
    assert [record for _, record in journal.read()] == [*RECORDS[5:], b"on"]
    journal.close()


def test_a_mark_that_can_not_be_written_is_no_failure(journal: Journal) -> None:
    with files.use(FaultyLayer("write_some", errno.ENOSPC, at=2)):
        journal.append([b"first"])
    journal.append([b"second"])
    assert [record for _, record in journal.read()] == [b"first", b"second"]


class HalfMarkLayer(files.FileLayer):
    """Has room for half a mark, once."""

    full = False

    def write_some(self, fd: int, data: bytes | memoryview, offset: int | None) -> int:
        if self.full:
            self.full = False
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.full = len(data) == MARK
        return super().write_some(fd, data[: MARK // 2] if self.full else data, offset)


def test_half_a_mark_does_no_harm_to_a_segment_that_is_left(journal: Journal) -> None:
    with files.use(HalfMarkLayer()):
        journal.append([b"first"])
    journal.roll()
    journal.append([b"second"])
    assert [record for _, record in journal.read()] == [b"first", b"second"]


def test_after_close_the_mark_is_durable(tmp_path: Path) -> None:
    disk = RecordingLayer(tmp_path)
    with files.use(disk):
        (path,) = written(tmp_path / "journal")
    assert disk.durable(path) == path.read_bytes()
    assert path.read_bytes()[-MARK:].startswith(b"DGB1")


def test_short_and_interrupted_writes_are_completed(tmp_path: Path) -> None:
    with files.use(StutteringLayer()):
        written(tmp_path, segment_bytes=SMALL)
    assert found(tmp_path) == RECORDS


def test_beyond_the_file_size_limit_nothing_is_lost_and_it_goes_on_when_there_is_room(tmp_path: Path) -> None:
    def work() -> None:
        journal = Journal(tmp_path)
        journal.open()
        journal.append([b"first"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        for _ in range(2):
            with pytest.raises(StorageError, match="EFBIG") as caught:
                journal.append([bytes(2000)])
            assert caught.value.outcome == "rolled_back"
            journal.open()
            assert list(journal.read()) == [(1, b"first")]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        journal.append([bytes(2000)])
        journal.close()

    assert in_child(work) == 0
    assert found(tmp_path) == [b"first", bytes(2000)]


def test_an_interrupt_in_a_write_makes_it_refuse_until_it_is_opened_again(journal: Journal) -> None:
    class Interrupted(files.FileLayer):
        def step(self, name: str) -> None:
            raise KeyboardInterrupt

    with files.use(Interrupted()), pytest.raises(KeyboardInterrupt):
        journal.append([b"first"])
    with pytest.raises(StorageError):
        journal.append([b"second"])
    journal.open()
    assert journal.append([b"second"]) == 2


@pytest.fixture(params=["removed", "replaced", "moved away", "cut", "folder moved away", "folder replaced"])
def away(request: pytest.FixtureRequest, journal: Journal) -> Journal:
    """A journal of three records whose last segment is not there any more."""
    for record in (b"first", b"second", b"third"):
        journal.append([record])
    (path,) = journal.directory.iterdir()
    copy = path.read_bytes()
    if request.param == "removed":
        path.unlink()
    elif request.param == "replaced":
        other = path.with_name("other")
        other.write_bytes(copy[: 2 * MARK])
        other.rename(path)
    elif request.param == "moved away":
        path.rename(journal.directory.with_name("elsewhere"))
    elif request.param == "cut":
        os.truncate(path, len(copy) - 2 * MARK)
    else:
        journal.directory.rename(journal.directory.with_name("elsewhere"))
        if request.param == "folder replaced":
            journal.directory.mkdir()
    return journal


def test_a_segment_that_is_not_in_place_any_more_takes_no_more_and_is_not_begun_anew(away: Journal) -> None:
    before = sorted(path.name for path in away.directory.parent.rglob("*"))
    with pytest.raises(StorageError, match="while open"):
        away.append([b"fourth"])
    with pytest.raises((StateCorruptionError, StorageError), match=r"while it was in use|ENOENT"):
        away.open()
    assert sorted(path.name for path in away.directory.parent.rglob("*")) == before


def test_a_segment_that_was_put_back_goes_on(journal: Journal) -> None:
    journal.append([b"first"])
    (path,) = journal.directory.iterdir()
    path.rename(journal.directory.with_name("elsewhere"))
    with pytest.raises(StorageError, match="while open"):
        journal.append([b"second"])
    with pytest.raises(StateCorruptionError):
        journal.open()
    journal.directory.with_name("elsewhere").rename(path)
    journal.open()
    assert journal.append([b"second"]) == 2


def test_a_segment_under_two_names_is_refused_under_both(tmp_path: Path) -> None:
    (path,) = written(tmp_path / "one")
    (tmp_path / "two").mkdir()
    os.link(path, tmp_path / "two" / path.name)
    content = path.read_bytes()
    for name in ("one", "two"):
        with pytest.raises(StorageError, match="hard links") as caught:
            Journal(tmp_path / name).open()
        assert not caught.value.retryable
    assert path.read_bytes() == content
    (tmp_path / "two" / path.name).unlink()
    assert found(tmp_path / "one") == RECORDS


def test_a_file_in_the_directorys_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal").touch()
    with pytest.raises(StorageError, match="ENOTDIR"):
        Journal(tmp_path / "journal").open()
