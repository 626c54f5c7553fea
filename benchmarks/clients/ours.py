"""dgents: `ref.update`, and the stale guard of `ref.save`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import dgents
from dgents.benchmarks.clients import Case
from dgents.testing import MakeClient, dgent_client


def volatile(directory: Path) -> MakeClient:
    return partial(dgent_client, dgents.VolatileAgent)


def sqlite(directory: Path) -> MakeClient:
    return partial(dgent_client, partial(dgents.SQLAgent, str(directory / "state.db")))


CASES = [
    Case("dgents, volatile", "ref.update; ref.save", volatile, safe=True, stale=True),
    Case("dgents, SQLite", "ref.update; ref.save", sqlite, safe=True, stale=True),
]
