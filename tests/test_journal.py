"""The journal: what was acknowledged is there, what is torn is cut, what is damaged is refused and left alone."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import resource
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest

from dgents.backends import files
from dgents.backends.journal import Journal
from dgents.runtime.errors import DgentError, StateCorruptionError, StateTooLargeError, StorageError
from tests.disk import FaultyLayer, HastyLayer, KillingLayer, RecordingLayer, StutteringLayer, in_child

BATCHES = [[b"one"], [b"two", b"", b"four"], [b"five" * 5], [b"six", b"seven"]]
RECORDS = [record for batch in BATCHES for record in batch]
MARK = 32
HEADER = 32
SMALL = 110
DOCUMENT = Path(__file__).parent.parent / "docs" / "journal.md"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """An open, empty journal."""
    opened = Journal(tmp_path / "journal")
    opened.open()
    yield opened
    opened.close()


@pytest.fixture
def hasty() -> Iterator[None]:
    """A disk that skips every sync, for the tests that open a journal a thousand times."""
    with files.use(HastyLayer()):
        yield


def written(directory: Path, *, segment_bytes: int = 2**20) -> list[Path]:
    """Write BATCHES, close, and return the segments' paths."""
    journal = Journal(directory, segment_bytes=segment_bytes)
    journal.open()
    for batch in BATCHES:
        journal.append(batch)
    journal.close()
    return sorted(directory.iterdir())


def found(directory: Path) -> list[bytes]:
    """Open the journal and return its records, having checked that it takes another one."""
    journal = Journal(directory)
    journal.open()
    try:
        records = list(journal.read())
        assert [number for number, _ in records] == list(range(journal.first, journal.next))
        journal.append([b"another"])
        assert [record for _, record in journal.read()] == [*(record for _, record in records), b"another"]
        return [record for _, record in records]
    finally:
        journal.close()


def snapshot(directory: Path) -> dict[str, bytes]:
    """Return every file's bytes."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# What it does


def test_records_come_back_in_order_with_consecutive_numbers(journal: Journal) -> None:
    assert (journal.first, journal.next) == (1, 1)
    assert [journal.append(batch) for batch in BATCHES] == [1, 2, 5, 6]
    assert list(journal.read()) == list(enumerate(RECORDS, start=1))
    assert (journal.first, journal.next) == (1, 8)


def test_an_empty_batch_writes_nothing(journal: Journal) -> None:
    before = snapshot(journal.directory)
    assert journal.append([]) == 1
    assert snapshot(journal.directory) == before


@pytest.mark.parametrize("segment_bytes", [1, SMALL, 2**20])
@pytest.mark.parametrize("start", range(10))
def test_reading_starts_at_any_number(tmp_path: Path, segment_bytes: int, start: int) -> None:
    written(tmp_path, segment_bytes=segment_bytes)
    journal = Journal(tmp_path)
    journal.open()
    assert list(journal.read(start)) == [(n, r) for n, r in enumerate(RECORDS, start=1) if n >= start]
    journal.close()


def test_a_reader_sees_what_was_there_when_it_began(journal: Journal) -> None:
    journal.append([b"before"])
    reader = journal.read()
    journal.append([b"after"])
    journal.roll()
    journal.append([b"later"])
    assert [record for _, record in reader] == [b"before"]


def test_segments_are_named_by_their_first_record_and_bounded(tmp_path: Path) -> None:
    paths = written(tmp_path, segment_bytes=SMALL)
    assert [int(path.stem) for path in paths] == [1, 2, 5, 6]
    assert all(path.stat().st_size <= SMALL + MARK for path in paths)
    assert found(tmp_path) == RECORDS


def test_trim_removes_only_segments_whose_records_are_all_older(tmp_path: Path) -> None:
    written(tmp_path, segment_bytes=SMALL)
    journal = Journal(tmp_path)
    journal.open()
    for before, first in [(0, 1), (1, 1), (4, 2), (5, 5), (99, 6)]:
        journal.trim(before)
        assert journal.first == first
        assert next(journal.read())[0] == first
    journal.close()
    assert found(tmp_path) == RECORDS[5:]


def test_roll_and_trim_let_go_of_everything_and_the_numbers_go_on(tmp_path: Path) -> None:
    written(tmp_path)
    journal = Journal(tmp_path)
    journal.open()
    journal.roll()
    journal.roll()
    journal.trim(journal.next)
    journal.close()
    journal.open()
    assert (journal.first, journal.next, journal.size) == (8, 8, HEADER)
    assert list(journal.read()) == []
    assert journal.append([b"on"]) == 8
    journal.close()
    assert found(tmp_path) == [b"on"]


def test_the_size_is_that_of_the_files_but_for_the_last_mark(tmp_path: Path) -> None:
    paths = written(tmp_path, segment_bytes=SMALL)
    journal = Journal(tmp_path)
    journal.open()
    assert journal.size == sum(path.stat().st_size for path in paths) - MARK
    journal.close()


def test_a_record_that_is_too_large_is_refused_and_nothing_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_record_bytes=10)
    journal.open()
    with pytest.raises(StateTooLargeError) as caught:
        journal.append([b"ok", bytes(11)])
    assert (caught.value.size, caught.value.limit) == (11, 10)
    journal.append([bytes(10)])
    assert list(journal.read()) == [(1, bytes(10))]
    journal.close()


def test_large_and_many_records_come_back(tmp_path: Path) -> None:
    large = [os.urandom(3_000_000), b"", os.urandom(1_500_000)]
    many = [struct.pack("<I", n) for n in range(20_000)]
    journal = Journal(tmp_path)
    journal.open()
    for batch in (large, many, large):
        journal.append(batch)
    assert [record for _, record in journal.read()] == large + many + large
    assert [number for number, _ in journal.read(20_001)] == [*range(20_001, 20_007)]
    journal.close()


@pytest.mark.parametrize("arguments", [{"segment_bytes": 0}, {"max_record_bytes": 0}, {"max_record_bytes": 2**32}])
def test_impossible_sizes_are_refused(tmp_path: Path, arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Journal(tmp_path, **arguments)


def test_a_journal_that_is_not_open_says_so(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for use in (lambda: journal.append([b"x"]), journal.read, journal.roll, lambda: journal.trim(1)):
        with pytest.raises(StorageError, match="not open"):
            use()
    journal.close()


def test_files_and_folders_are_for_their_user_alone(tmp_path: Path) -> None:
    paths = written(tmp_path / "deep" / "journal", segment_bytes=SMALL)
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "deep", paths[0].parent)} == {0o700}


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    written(tmp_path, segment_bytes=SMALL)
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        journal = Journal(tmp_path, segment_bytes=SMALL)
        journal.open()
        journal.open()
        next(journal.read())
        journal.append(RECORDS)
        journal.close()
    assert len(os.listdir("/dev/fd")) == before


def test_the_reader_in_the_documentation_reads_a_journal(tmp_path: Path) -> None:
    (path,) = written(tmp_path)
    code = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, Callable[[bytes], Iterator[tuple[int, bytes]]]] = {}
    exec(code[1], names)
    assert list(names["records"](path.read_bytes())) == list(enumerate(RECORDS, start=1))


# Torn tails


@pytest.mark.usefixtures("hasty")
def test_a_cut_at_every_byte_of_an_unmarked_batch_leaves_the_batches_before(tmp_path: Path) -> None:
    (path,) = written(tmp_path / "whole")
    whole = path.read_bytes()[:-MARK]
    last = whole.rindex(b"DGB1")
    for size in range(last, len(whole)):
        directory = tmp_path / str(size)
        directory.mkdir()
        (directory / path.name).write_bytes(whole[:size])
        assert found(directory) == RECORDS[:5], size
    assert len(whole) - last == 48


@pytest.mark.usefixtures("hasty")
def test_a_cut_at_every_byte_leaves_whole_batches(tmp_path: Path) -> None:
    (path,) = written(tmp_path / "whole")
    whole = path.read_bytes()
    prefixes = [[record for batch in BATCHES[:n] for record in batch] for n in range(len(BATCHES) + 1)]
    for size in range(HEADER, len(whole)):
        directory = tmp_path / str(size)
        directory.mkdir()
        (directory / path.name).write_bytes(whole[:size])
        assert found(directory) in prefixes, size


@pytest.mark.parametrize("garbage", [b"\0" * 5000, b"DGB1" * 99, os.urandom(3000), b"\xff"])
@pytest.mark.parametrize("marked", [True, False])
def test_garbage_at_the_tail_is_cut_and_counted(tmp_path: Path, garbage: bytes, marked: bool) -> None:
    (path,) = written(tmp_path)
    whole = path.read_bytes()[: None if marked else -MARK]
    path.write_bytes(whole + garbage)
    journal = Journal(tmp_path)
    journal.open()
    assert journal.cut_bytes == len(garbage)
    journal.close()
    assert len(path.read_bytes()) == len(whole) + (0 if marked else MARK)
    assert found(tmp_path) == RECORDS


def test_a_torn_record_that_holds_a_journal_is_not_taken_for_one(tmp_path: Path) -> None:
    (other,) = written(tmp_path / "other")
    (path,) = written(tmp_path / "journal")
    journal = Journal(path.parent)
    journal.open()
    journal.append([path.read_bytes(), other.read_bytes() * 3, bytes(100)])
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: -MARK - 50])
    assert found(path.parent) == RECORDS


@pytest.mark.parametrize("name", ["00000000000000000009.journal.tmp", "00000000000000000001.journal.tmp"])
def test_a_stale_temp_segment_is_removed(tmp_path: Path, name: str) -> None:
    written(tmp_path)
    (tmp_path / name).write_bytes(b"garbage")
    (tmp_path / "notes.tmp").write_bytes(b"another's")
    assert found(tmp_path) == RECORDS
    assert not (tmp_path / name).exists()
    assert (tmp_path / "notes.tmp").exists()


# Damage


def survives_flip(path: Path) -> bool:
    """Open and read: either all records are there, or it is corruption and the segment is as it was."""
    journal = Journal(path.parent)
    before = path.read_bytes()
    try:
        journal.open()
        records = [record for _, record in journal.read()]
        return records == RECORDS
    except StateCorruptionError as error:
        return error.path == str(path) and error.offset is not None and path.read_bytes() == before
    finally:
        journal.close()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("segment_bytes", [2**20, SMALL])
def test_no_flipped_byte_loses_an_acknowledged_record_in_silence(tmp_path: Path, segment_bytes: int) -> None:
    paths = written(tmp_path, segment_bytes=segment_bytes)
    for path in paths:
        whole = path.read_bytes()
        for at in range(len(whole)):
            for bits in (0x01, 0x80, 0xFF):
                path.write_bytes(whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :])
                assert survives_flip(path), (path.name, at, bits)
        path.write_bytes(whole)


@pytest.mark.parametrize("size", [*range(2**20 - 42, 2**20 - 30), 5 * 2**19])
def test_what_follows_a_large_damaged_batch_is_found_wherever_it_starts(journal: Journal, size: int) -> None:
    journal.append([bytes(size)])
    journal.append([b"acknowledged"])
    journal.close()
    (path,) = journal.directory.iterdir()
    with path.open("r+b") as file:
        file.seek(HEADER + 24)
        file.write(b"\xff")
    with pytest.raises(StateCorruptionError) as caught:
        journal.open()
    assert caught.value.offset == HEADER


def test_a_flip_in_the_last_acknowledged_batch_is_found_by_the_mark(tmp_path: Path) -> None:
    (path,) = written(tmp_path)
    whole = bytearray(path.read_bytes())
    whole[-MARK - 1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(StateCorruptionError) as caught:
        Journal(tmp_path).open()
    assert caught.value.offset == len(whole) - MARK - 48
    assert caught.value.path == str(path)
    assert path.read_bytes() == whole


def test_a_flip_in_the_last_batch_without_its_mark_is_taken_for_a_torn_write(tmp_path: Path) -> None:
    (path,) = written(tmp_path)
    whole = bytearray(path.read_bytes()[:-MARK])
    whole[-1] ^= 1
    path.write_bytes(whole)
    assert found(tmp_path) == RECORDS[:5]


def test_a_flip_in_the_mark_costs_nothing(tmp_path: Path) -> None:
    (path,) = written(tmp_path)
    whole = bytearray(path.read_bytes())
    whole[-MARK + 5] ^= 1
    path.write_bytes(whole)
    assert found(tmp_path) == RECORDS


@pytest.mark.parametrize("missing", [1, 2])
def test_a_missing_segment_in_the_middle_is_corruption(tmp_path: Path, missing: int) -> None:
    paths = written(tmp_path, segment_bytes=SMALL)
    paths[missing].unlink()
    journal = Journal(tmp_path)
    journal.open()
    with pytest.raises(StateCorruptionError, match="are missing"):
        list(journal.read())
    assert list(journal.read(6)) == list(enumerate(RECORDS, start=1))[5:]
    journal.close()


def test_a_segment_under_another_name_is_refused(tmp_path: Path) -> None:
    (path,) = written(tmp_path)
    path.rename(tmp_path / "00000000000000000007.journal")
    with pytest.raises(StateCorruptionError, match="not the one of this file"):
        Journal(tmp_path).open()


def test_a_newer_format_is_refused_with_both_versions(tmp_path: Path) -> None:
    (path,) = written(tmp_path)
    whole = path.read_bytes()
    head = whole[:8] + struct.pack("<I", 2) + whole[12:28]
    path.write_bytes(head + struct.pack("<I", zlib.crc32(head)) + whole[32:])
    before = path.read_bytes()
    with pytest.raises(StorageError, match="format 2, this version of dgents reads 1") as caught:
        Journal(tmp_path).open()
    assert not caught.value.retryable
    assert path.read_bytes() == before


def test_a_batch_whose_lengths_do_not_add_up_is_corruption(tmp_path: Path) -> None:
    (path,) = written(tmp_path)
    whole = path.read_bytes()
    salt = struct.unpack_from("<I", whole, 12)[0]
    body = struct.pack("<I", 0xFFFFFFFF) + b"x"
    head = struct.pack("<QIIQ", 8, 1, zlib.crc32(body), len(body))
    crafted = b"DGB1" + struct.pack("<I", zlib.crc32(head, salt)) + head + body
    mark = struct.pack("<QIIQ", 9, 0, 0, 0)
    path.write_bytes(whole[:-MARK] + crafted + b"DGB1" + struct.pack("<I", zlib.crc32(mark, salt)) + mark)
    with pytest.raises(StateCorruptionError):
        Journal(tmp_path).open()


def test_a_symlink_in_a_segments_place_is_refused(tmp_path: Path) -> None:
    (path,) = written(tmp_path / "journal")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="symlink"):
        Journal(path.parent).open()


# Crashes


STEPS = ["journal-written", "journal-synced", "journal-marked", "temp-written", "temp-synced", "renamed"]
STEPS += ["directory-synced", "segment-removed"]


def work_through(
    directory: Path, acknowledge: Callable[[list[bytes]], object], batches: list[list[bytes]] = BATCHES
) -> None:
    """Write the batches over several segments and acknowledge each; then trim what the first two are in."""
    journal = Journal(directory, segment_bytes=SMALL)
    journal.open()
    for batch in batches:
        journal.append(batch)
        acknowledge(batch)
    journal.trim(1 + sum(len(batch) for batch in batches[:2]))
    journal.close()


def holds(directory: Path, promised: list[bytes], batches: list[list[bytes]] = BATCHES) -> bool:
    """Tell whether what is in the journal are whole batches, at least the ``promised`` records."""
    journal = Journal(directory)
    with files.use(HastyLayer()):
        try:
            journal.open()
            records = list(journal.read())
        except DgentError:
            return False
        finally:
            journal.close()
    ends = [sum(len(batch) for batch in batches[:n]) + 1 for n in range(len(batches) + 1)]
    every = [record for batch in batches for record in batch]
    return (
        records == list(enumerate(every, start=1))[journal.first - 1 : journal.next - 1]
        and journal.next in ends
        and journal.next > len(promised)
        and (journal.first == 1 or (journal.first in ends[:3] and len(promised) == len(every)))
    )


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


# Failures


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


def test_a_segment_that_was_removed_while_open_takes_no_more(journal: Journal) -> None:
    journal.append([b"first"])
    next(journal.directory.iterdir()).unlink()
    with pytest.raises(StorageError, match="removed while open"):
        journal.append([b"second"])


def test_a_file_in_the_directorys_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal").touch()
    with pytest.raises(StorageError, match="ENOTDIR"):
        Journal(tmp_path / "journal").open()
