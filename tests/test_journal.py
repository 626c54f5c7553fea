"""The journal: what it does, what it refuses."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dgents.backends.journal import Journal
from dgents.runtime.errors import StateTooLargeError, StorageError
from tests.journal_kit import BATCHES, HEADER, MARK, RECORDS, SMALL, found, snapshot, written

DOCUMENT = Path(__file__).parent.parent / "docs" / "journal.md"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """An open, empty journal."""
    opened = Journal(tmp_path / "journal")
    opened.open()
    yield opened
    opened.close()


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
