"""The heads of a chain in a file of two slots: one is durable and stays, the other one is written, and may be torn.

checksum u32  version u64  length u16  head         little-endian; the CRC-32 covers what follows it
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
    """The newest heads of one chain. Sync: call it in a worker thread.

    Attributes:
        stays: the version in the slot that is not written to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._slot = 0  # the one to write to
        self.stays = 0

    def open(self) -> list[bytes] | None:
        """Return what is in the slots, b"" for a damaged one; None if there never was a head."""
        self.close()
        try:
            content = files.layer.read(self._path)
        except FileNotFoundError:
            return None
        slots = [_unpack(content[start : start + _SLOT]) for start in (0, _SLOT)]
        self.stays, newest = max((version, number) for number, (version, _) in enumerate(slots))
        self._slot = 1 - newest
        return [head for _, head in slots]

    def replace(self, version: int, head: bytes) -> None:
        """Put a head into both slots, all at once and durably."""
        self.close()
        files.write_atomically(self._path, 2 * _pack(version, head).ljust(_SLOT, b"\0"))
        self.stays, self._slot = version, 1

    def write(self, version: int, head: bytes, sync: bool) -> None:
        """Write the next head beside the one that stays; without ``sync`` it may be lost in a power cut.

        Heads that are not synced go to the same slot, over and over: the other one stays as it is.
        """
        if self._fd is None:
            fd = files.layer.open(self._path, os.O_RDWR)
            try:
                files.layer.fdatasync(fd)  # the head that was found may be in the system's memory only
            except OSError:
                files.layer.close(fd)
                raise
            self._fd = fd
        files.layer.write(self._fd, _pack(version, head), self._slot * _SLOT)
        if sync:
            files.layer.fdatasync(self._fd)
            self.stays, self._slot = version, 1 - self._slot

    def close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                files.layer.close(fd)


def _pack(version: int, head: bytes) -> bytes:
    rest = _SLOT_HEAD.pack(0, version, len(head))[4:] + head
    slot = crc32(rest).to_bytes(4, "little") + rest
    assert len(slot) <= _SLOT
    return slot


def _unpack(slot: bytes) -> tuple[int, bytes]:
    """Return the version and the head in a slot; (-1, b"") if it is damaged."""
    if len(slot) >= _SLOT_HEAD.size:
        checksum, version, length = _SLOT_HEAD.unpack_from(slot)
        end = _SLOT_HEAD.size + length
        if end <= len(slot) and crc32(slot[4:end]) == checksum:
            return version, slot[_SLOT_HEAD.size : end]
    return -1, b""
