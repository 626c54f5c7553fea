"""The head of a chain in a file of two slots: one is durable, the other one is written, and may be torn.

checksum u32  turn u64  length u16  head         little-endian; the CRC-32 covers what follows it
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from zlib import crc32

from dgents.backends import files

_SLOT = 512  # a sector
_SLOT_HEAD = struct.Struct("<IQH")


class HeadFile:
    """The newest head of one chain. Sync: call it in a worker thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._turn = 0
        self._slot = 0  # the one to write to; the other one is durable, or neither holds anything

    def open(self) -> bytes | None:
        """Return the newest intact head; None if there never was one, b"" if none is intact."""
        self.close()
        try:
            content = files.layer.read(self._path)
        except FileNotFoundError:
            return None
        found: list[tuple[int, bytes, int]] = []
        for number, start in enumerate((0, _SLOT)):
            slot = content[start : start + _SLOT]
            if len(slot) < _SLOT_HEAD.size:
                continue
            checksum, turn, length = _SLOT_HEAD.unpack_from(slot)
            head = slot[_SLOT_HEAD.size : _SLOT_HEAD.size + length]
            if crc32(slot[4 : _SLOT_HEAD.size + length]) == checksum and len(head) == length:
                found.append((turn, head, number))
        self._turn, head, newest = max(found, default=(0, b"", 1))
        self._slot = 1 - newest
        return head

    def write(self, head: bytes, sync: bool = False) -> None:
        """Write the head; without ``sync`` it may lag behind after a power cut. What it names is durable.

        Heads that are not synced go to the same slot, over and over: the other one stays as it is.
        """
        rest = _SLOT_HEAD.pack(0, self._turn + 1, len(head))[4:] + head
        slot = crc32(rest).to_bytes(4, "little") + rest
        assert len(slot) <= _SLOT
        self._turn += 1
        if self._fd is None:
            if not self._path.exists():
                files.write_atomically(self._path, slot.ljust(2 * _SLOT, b"\0"))
                self._slot = 1
            self._fd = files.layer.open(self._path, os.O_RDWR)
            files.layer.fdatasync(self._fd)  # the head that was found may be in the system's memory only
        files.layer.write(self._fd, slot, self._slot * _SLOT)
        if sync:
            files.layer.fdatasync(self._fd)
            self._slot = 1 - self._slot

    def close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                files.layer.close(fd)
