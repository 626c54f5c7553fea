"""What the tests of the SQLite backend have in common."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from dgents.backends.sql import SQLAgent
from dgents.backends.sqlite import SqliteBackend
from dgents.runtime.contract import Record, Request, Write
from dgents.runtime.errors import (
    DgentError,
)
from tests.resources import FakeResources


def make(path: str, resources: FakeResources, key: str = "k", **options: object) -> SqliteBackend:
    return SQLAgent(path, **options).backend(key, resources)


async def save(
    backend: SqliteBackend, base: int, *states: object, epoch: int = 1, requests: tuple[Request, ...] = ()
) -> DgentError | None:
    """Commit ``states`` as the versions after ``base``; None is a tombstone."""
    records = [
        Record(base + n, epoch, time.time(), None if state is None else msgspec.msgpack.encode(state))
        for n, state in enumerate(states, start=1)
    ]
    (answer,) = await backend.store.commit([Write(backend, base, records, list(requests))])
    return answer


def state(record: Record | None) -> object:
    return None if record is None or record.data is None else msgspec.msgpack.decode(record.data)


@contextmanager
def child(command: str, path: str, number: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Run a second process until the block ends."""
    arguments = [sys.executable, "-m", "tests.sqlite_child", command, path, str(number)]
    process = subprocess.Popen(arguments, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        try:
            yield process
        finally:
            process.kill()


def exists(path: str) -> bool:
    return os.path.lexists(path)


def content(path: str) -> bytes:
    return Path(path).read_bytes()


def write_file(path: str, data: bytes) -> None:
    Path(path).write_bytes(data)


def change(path: str, sql: str, *parameters: object) -> None:
    """Change a database behind everybody's back."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(sql, parameters)
    connection.close()
