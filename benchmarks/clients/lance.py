"""LanceDB: `merge_insert` by a key, its upsert.

Of several matches its reference says "the behavior is undefined":
https://lancedb.github.io/lancedb/python/python/#lancedb.merge.LanceMergeInsertBuilder
Concurrent upserts of one key that insert it twice: https://github.com/lance-format/lance/pull/6018
"""

from __future__ import annotations

import json
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lancedb

from dgents.benchmarks.clients import Case
from dgents.testing import Add, Client, MakeClient

# It warns of every process that others start from now on, which use nothing of it.
warnings.filterwarnings("ignore", message="lancedb fork support")


class Table:
    """One table with a row a key; the value is JSON."""

    def __init__(self, table: Any) -> None:
        self._table = table

    async def read(self, key: str) -> Any:
        rows = await self._table.query().where(f"key = '{key}'").to_list()
        return json.loads(rows[-1]["value"])

    async def write(self, key: str, value: Any) -> None:
        upsert = self._table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
        await upsert.execute([{"key": key, "value": json.dumps(value)}])

    async def update(self, key: str, change: Add) -> None:
        await self.write(key, change(await self.read(key)))


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Client]:
    database = await lancedb.connect_async(str(directory / "lance"))
    yield Table(await database.create_table("states", [{"key": "", "value": "null"}], exist_ok=True))


def table(directory: Path) -> MakeClient:
    return partial(opened, directory)


CASES = [Case("LanceDB", "query, merge_insert(key)", table, writers=10)]
