"""A second process for the tests of streams: ``python -m tests.stream_child LOOP LOG FOLDER``.

It appends numbers from several tasks, one by one and some at a time, and prints the number of each event that was
acknowledged with what was in it, until it is killed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anyio

from dgents import Runtime
from tests.stream_kit import add, agent_maker

TASKS = 8


async def main(log: str, folder: str) -> None:
    async with Runtime() as rt:
        agent = agent_maker(log, Path(folder))(
            fold=add, initial=0, events=[int], schema=int, chain=True, snapshot_every=50
        )
        stream = await rt.spawn("numbers", agent)
        begun = (await stream.snapshot()).version
        print("ready", flush=True)

        async def append(task: int) -> None:
            n = begun * TASKS + task + 1
            while True:
                if task % 2:
                    number = await stream.append(n, request_id=f"{task}.{n}")
                    print(f"{number} {n}", flush=True)
                else:
                    number = await stream.append_all([n, -n])
                    print(f"{number - 1} {n}\n{number} {-n}", flush=True)
                n += TASKS

        async with anyio.create_task_group() as tasks:
            for task in range(TASKS):
                tasks.start_soon(append, task)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[2:], backend=sys.argv[1])
