"""A process that increments a shared counter on a server, through the runtime.

Run as ``python -m tests.chaos.server_counting URL TIMES LOOP``.
"""

from __future__ import annotations

import sys
from typing import Any

import anyio

import dgents


def counter(url: str, **options: Any) -> Any:
    """Return the agent of the counter: in a table or in a key."""
    if url.startswith("redis:"):
        return dgents.RedisAgent(url, "counter", **options)
    return dgents.SQLAgent(url, key="counter", **options)


async def count(url: str, times: int) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("counter", counter(url))

        async def increment() -> None:
            for _ in range(times // 10):
                await ref.update(lambda n: n + 1, default=0)

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(increment)


if __name__ == "__main__":
    anyio.run(count, sys.argv[1], int(sys.argv[2]), backend=sys.argv[3])
