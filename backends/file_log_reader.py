"""Reading the entries of a log, and telling what a crash left of the last one from damage.

The last entry is *torn* if the file ends within it, or if a whole sector of it was never written (zeros), or if what
stands there is far from an entry: it was never acknowledged. An entry before others, or one that is nearly right, was
changed after it was written: that is damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

from dgents.backends.file_format import SECTOR, Shape, corrupt, has_unwritten_sector, nearly
from dgents.backends.file_log import (
    FRAME,
    FRAME_END,
    FRAME_MARK,
    LINE_PREFIX,
    LINE_START,
    SUMMED,
    Entry,
    LogHead,
    decode_line,
    decode_payload,
    kind_of,
)
from dgents.runtime.contract import Record
from dgents.runtime.errors import StateCorruptionError


class TornError(Exception):
    """The last entry was not written to its end; ``place`` is where it begins."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


def decode_entries(content: bytes, shape: Shape, path: str) -> Iterator[Record]:
    """Yield the versions in entries that stand for themselves.

    Raises:
        StateCorruptionError: one of them was changed.
    """
    try:
        for _, entry in LogReader(content, LogHead(kind_of(shape), 0, 0), path).entries(0):
            yield from entry.records
    except TornError as error:
        raise corrupt(path, error.place, "an earlier version in it is not whole") from error


class LogReader:
    """The entries of a log, or of the rest of one.

    Args:
        content: what the file holds from ``skipped`` on, a multiple of the sector size.
    """

    def __init__(self, content: bytes, head: LogHead, path: str, *, skipped: int = 0) -> None:
        assert skipped % SECTOR == 0
        self._content = content
        self._path = path
        self._skipped = skipped
        self._read = self._read_line if head.kind == "lines" else self._read_frame

    def entries(self, place: int) -> Iterator[tuple[int, Entry]]:
        """Yield each entry from ``place`` in the file on, and the place behind it.

        Raises:
            TornError: the last entry is incomplete.
            StateCorruptionError: an entry was changed.
        """
        at = place - self._skipped
        while at < len(self._content):
            at, entry = self._read(at)
            yield at + self._skipped, entry

    def _read_line(self, at: int) -> tuple[int, Entry]:
        end = self._content.find(b"\n", at)
        rest = self._content[at + LINE_PREFIX : end]  # without the last byte, where there is no end
        fits = self._content[at : at + LINE_PREFIX] == b'%s%08x", ' % (LINE_START, crc32(rest))
        if end < 0 or not fits:
            raise self._damaged(at, "the checksum of this entry does not fit") if fits else self._bad_line(at, end)
        try:
            entry = decode_line(b"{" + rest)
        except (ValueError, RecursionError) as error:
            raise self._damaged(at, str(error)) from error
        return end + 1, entry

    def _bad_line(self, at: int, end: int) -> Exception:
        """Return the error for a line that does not fit: torn if it is the last, and not just changed."""
        content = self._content
        if end >= 0:
            start = content[at : at + len(LINE_START)]
            unwritten = has_unwritten_sector(content, at, end) or not any(start)
            if self._line_follows(end + 1) or (nearly(start, LINE_START) and not unwritten):
                return self._damaged(at, "the checksum of this entry does not fit")
        return TornError(at + self._skipped)

    def _line_follows(self, at: int) -> bool:
        while (end := self._content.find(b"\n", at)) >= 0:
            checksum = crc32(self._content[at + LINE_PREFIX : end])
            if self._content[at : at + LINE_PREFIX] == b'%s%08x", ' % (LINE_START, checksum):
                return True
            at = end + 1
        return False

    def _read_frame(self, at: int) -> tuple[int, Entry]:
        content, body = self._content, at + FRAME.size
        if len(content) < body:
            raise TornError(at + self._skipped)
        mark, length, checksum, own = FRAME.unpack_from(content, at)
        if mark != FRAME_MARK or own != crc32(content[at : at + SUMMED.size]):
            raise self._torn_or_damaged(at, body)
        end = body + length + 1
        if end > len(content):
            raise TornError(at + self._skipped)
        payload = content[body : end - 1]
        if crc32(payload) != checksum or content[end - 1 : end] != FRAME_END:
            if end == len(content) and has_unwritten_sector(content, at, end):
                raise TornError(at + self._skipped)
            raise self._damaged(at, "the checksum of this entry does not fit")
        try:
            entry = decode_payload(payload, self._path)
        except (ValueError, RecursionError) as error:
            raise self._damaged(at, str(error)) from error
        return end, entry

    def _torn_or_damaged(self, at: int, body: int) -> Exception:
        """Return the error for what begins no frame: damage if it nearly does, or if a frame follows."""
        content = self._content
        if not has_unwritten_sector(content, at, body) and (
            _is_one_bit_off(content[at:body]) or _frame_follows(content, at + 1)
        ):
            return self._damaged(at, "an entry should begin here")
        return TornError(at + self._skipped)

    def _damaged(self, at: int, reason: str) -> StateCorruptionError:
        return corrupt(self._path, at + self._skipped, reason)


def _is_one_bit_off(frame: bytes) -> bool:
    value = int.from_bytes(frame, "big")
    for bit in range(8 * len(frame)):
        mended = (value ^ 1 << bit).to_bytes(len(frame), "big")
        if mended[0] == FRAME_MARK and crc32(mended[: SUMMED.size]) == int.from_bytes(mended[SUMMED.size :], "big"):
            return True
    return False


def _frame_follows(content: bytes, place: int) -> bool:
    while (place := content.find(bytes([FRAME_MARK]), place)) >= 0:
        summed = content[place : place + SUMMED.size]
        own = content[place + SUMMED.size : place + FRAME.size]
        if len(own) == 4 and crc32(summed) == int.from_bytes(own, "big"):
            return True
        place += 1
    return False
