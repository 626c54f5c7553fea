"""A process that increments a shared counter through the runtime.

Run as ``python -m tests.chaos.counting_process PATH TIMES LOOP``.
"""

from __future__ import annotations

import sys

import anyio

import dgents


async def count(path: str, times: int) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("counter", dgents.SQLAgent(path, ownership="shared"))

        async def increment() -> None:
            await ref.update(lambda n: n + 1, default=0)

        for _ in range(times // 10):
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(increment)


if __name__ == "__main__":
    anyio.run(count, sys.argv[1], int(sys.argv[2]), backend=sys.argv[3])
