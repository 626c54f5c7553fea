"""A process of the demo that saves until it is killed, and says which saves were acknowledged.

Run as ``python -m dgents.victim sqlite|file FOLDER``. After an acknowledgement it prints the writer and its count.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import anyio

import dgents

WRITERS = 8


def agent(kind: str, folder: Path) -> Any:
    """Describe the actor whose state the victim writes."""
    return dgents.SQLAgent(str(folder / "victim.db")) if kind == "sqlite" else dgents.PersistentAgent(folder / "victim")


async def write_on(ref: dgents.Ref[dict[str, int]], writer: str) -> None:
    """Count up for ever."""
    count = 0

    def increment(state: dict[str, int]) -> dict[str, int]:
        return {**state, writer: state.get(writer, 0) + 1}

    while True:
        await ref.update(increment)  # returns once it is on the disk
        count += 1
        # One system call: whoever reads it reads it whole, also if this was the last thing we did.
        os.write(sys.stdout.fileno(), f"{writer} {count}\n".encode())


async def main(kind: str, folder: Path) -> None:
    """Let all writers loose on one state."""
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("victim", agent(kind, folder))
        await ref.save({})
        async with anyio.create_task_group() as writers:
            for number in range(WRITERS):
                writers.start_soon(write_on, ref, f"writer-{number}")


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], Path(sys.argv[2]))
