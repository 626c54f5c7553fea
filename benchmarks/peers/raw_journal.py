"""The least that a durable write can cost: append, fdatasync."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from dgents.benchmarks.states import State

_HEADER = struct.Struct("<II")  # key, length
fdatasync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class RawJournal:
    """One file, appended to; no checksum, no index: loading reads all of it."""

    name = "write, fdatasync"

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        self._path = directory / "raw.journal"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        if state is not None:
            self.save_all((state, key) for key in range(keys))

    async def load(self, key: int = 0) -> State:
        found, offset, data = b"", 0, self._path.read_bytes()
        while offset < len(data):
            owner, length = _HEADER.unpack_from(data, offset)
            offset += _HEADER.size + length
            if owner == key:
                found = data[offset - length : offset]
        state: State = msgspec.msgpack.decode(found)
        return state

    async def save(self, state: State, key: int = 0) -> None:
        os.write(self._fd, framed(state, key))
        fdatasync(self._fd)

    async def increment(self, key: int = 0) -> None:
        state = await self.load(key)
        state["visits"] += 1
        await self.save(state, key)

    def save_all(self, states: Iterable[tuple[State, int]]) -> None:
        """Save (state, key) pairs with one fdatasync."""
        os.write(self._fd, b"".join(framed(state, key) for state, key in states))
        fdatasync(self._fd)

    async def close(self) -> None:
        os.close(self._fd)


def framed(state: State, key: int) -> bytes:
    """Return the record of a state."""
    data = msgspec.msgpack.encode(state)
    return _HEADER.pack(key, len(data)) + data
