"""The careful way to replace a file: temporary file, fsync, rename, fsync of the directory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import anyio.to_thread

from dgents.benchmarks.states import State


class RawFile:
    """One JSON file a state.

    Args:
        threads: write in worker threads, so that many keys are written at once; otherwise in the calling
            thread, which is faster for one after another.
    """

    def __init__(self, *, threads: bool = False) -> None:
        self.name = "file, fsync, rename, fsync" + (", threads" if threads else "")
        self._threads = threads

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        self._directory = directory
        self._directory_fd = os.open(directory, os.O_RDONLY)
        if state is not None:
            for key in range(keys):
                self._write(state, key)

    async def load(self, key: int = 0) -> State:
        state: State = json.loads(self._path(key).read_bytes())
        return state

    async def save(self, state: State, key: int = 0) -> None:
        if self._threads:
            await anyio.to_thread.run_sync(self._write, state, key)
        else:
            self._write(state, key)

    async def increment(self, key: int = 0) -> None:
        state = await self.load(key)
        state["visits"] += 1
        await self.save(state, key)

    async def close(self) -> None:
        os.close(self._directory_fd)

    def _write(self, state: State, key: int) -> None:
        path = self._path(key)
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(json.dumps(state).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        os.fsync(self._directory_fd)

    def _path(self, key: int) -> Path:
        return self._directory / f"{key}.json"
