"""A synchronous program: the same refs, without await, also from several threads.

Run it: python examples/synchronous.py
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dgents


def main(folder: Path) -> int:
    with dgents.open_sync() as rt:
        counter = rt.spawn("counter", dgents.PersistentAgent(folder / "counter.json"))
        counter.save(0)

        with ThreadPoolExecutor(8) as threads:
            for _ in range(200):
                threads.submit(counter.update, lambda n: n + 1)

        with counter.transaction() as tx:
            tx.state = tx.state * 10

        total: int = counter.load()
    assert total == 2000, total
    return total


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(f"200 increments from 8 threads, times 10: {main(Path(folder))}")
