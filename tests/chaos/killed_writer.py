"""A process that writes through the runtime, tells each acknowledgement, and is killed.

Run as ``python -m tests.chaos.killed_writer KIND FOLDER LOOP``. Each line on its output is the id of an update that was
acknowledged; the line ``ready`` comes before the first.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio

import dgents

TASKS = 8


def make_agent(kind: str, folder: Path) -> Any:
    """Return the agent of a kind; each keeps a list of ids."""
    if kind in ("json", "msgpack"):
        return dgents.PersistentAgent(folder / f"state.{kind}", format=kind)
    if kind in ("sqlite", "shared"):
        return dgents.SQLAgent(
            str(folder / "state.db"), ownership="shared" if kind == "shared" else "exclusive", max_history=10
        )
    journal = folder / "journal" if kind == "journal" else None
    flush = dgents.Flush(max_delay=0.005, journal=journal) if journal else None
    policy = "write-behind" if journal else "write-through"
    return dgents.CachedAgent(
        dgents.VolatileAgent(), dgents.SQLAgent(str(folder / "state.db")), policy=policy, flush=flush
    )


KINDS = ("json", "msgpack", "sqlite", "shared", "write-through", "journal")


async def write(kind: str, folder: Path) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("state", make_agent(kind, folder))
        os.write(1, b"ready\n")

        async def append() -> None:
            while True:
                mine = uuid4().hex
                await ref.update(lambda ids, mine=mine: [*ids, mine], default=[])
                os.write(1, f"{mine}\n".encode())  # at once: nothing is held back in a buffer

        async with anyio.create_task_group() as tasks:
            for _ in range(TASKS):
                tasks.start_soon(append)


if __name__ == "__main__":
    anyio.run(write, sys.argv[1], Path(sys.argv[2]), backend=sys.argv[3])
