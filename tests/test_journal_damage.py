"""The journal's tail is cut where it is torn; where it is damaged it is refused and left alone."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dgents.backends import files
from dgents.backends.journal import Journal
from dgents.runtime.errors import StateCorruptionError, StorageError
from tests.disk import HastyLayer
from tests.journal_kit import BATCHES, HEADER, MARK, RECORDS, SMALL, found, written


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
