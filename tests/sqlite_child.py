"""A second process for the tests of SQLite: ``python -m tests.sqlite_child COMMAND PATH [NUMBER]``.

own: own the state ``k``, save NUMBER versions, print ``ready``, and keep it until killed.
count: own the state ``k`` and save version after version, printing each one once it is acknowledged.
add: add NUMBER to the shared counter ``k``, one at a time, and print how often another writer was first.
"""

from __future__ import annotations

import sys
import time

import anyio

from dgents.backends.sql import SQLAgent
from dgents.backends.sqlite import SqliteBackend
from dgents.runtime.contract import Record, Write
from dgents.runtime.errors import StateLockedError, VersionConflictError
from tests.resources import fake_resources


async def own(path: str, number: int) -> None:
    async with fake_resources() as resources:
        backend = SQLAgent(path).backend("k", resources)
        try:
            opened = await backend.open()
        except StateLockedError as error:
            print("locked", error.pid, flush=True)
            return
        base = opened.record.version if opened.record else 0
        for version in range(base + 1, base + number + 1):
            record = Record(version, opened.epoch, time.time(), str(version).encode())
            assert await backend.store.commit([Write(backend, version - 1, [record], [])]) == [None]
        print("ready", opened.epoch, flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)
        await backend.close()


async def count(path: str, _: int) -> None:
    async with fake_resources() as resources:
        backend = SQLAgent(path, max_history=5).backend("k", resources)
        opened = await backend.open()
        version = opened.record.version if opened.record else 0
        while True:
            record = Record(version + 1, opened.epoch, time.time(), str(version + 1).encode())
            assert await backend.store.commit([Write(backend, version, [record], [])]) == [None]
            version += 1
            print(version, flush=True)


async def add(path: str, number: int) -> None:
    conflicts = 0
    async with fake_resources() as resources:
        backend = SQLAgent(path, ownership="shared").backend("k", resources)
        await backend.open()
        for _ in range(number):
            while not await add_one(backend):
                conflicts += 1
        await backend.close()
    print("added", conflicts, flush=True)


async def add_one(backend: SqliteBackend) -> bool:
    found = await backend.read()
    base = found.version if found else 0
    count = int(found.data) + 1 if found else 1
    record = Record(base + 1, 1, time.time(), str(count).encode())
    (answer,) = await backend.store.commit([Write(backend, base, [record], [])])
    assert answer is None or isinstance(answer, VersionConflictError)
    return answer is None


if __name__ == "__main__":
    command, path, *rest = sys.argv[1:]
    anyio.run({"own": own, "count": count, "add": add}[command], path, int(rest[0]) if rest else 0)
