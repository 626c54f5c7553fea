"""A supervision tree: what shares a fate is restarted together, and the events say why.

Run it: python examples/supervised.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import anyio

import dgents


async def main(folder: Path) -> str:
    async with dgents.Runtime() as rt:
        team = await rt.supervisor("team", strategy="one_for_all", max_restarts=5, within=10.0)
        plan = await team.spawn("team/plan", dgents.SQLAgent(str(folder / "team.db")))
        notes = await team.spawn(
            "team/notes",
            dgents.CachedAgent(
                dgents.VolatileAgent([]),
                dgents.PersistentAgent(folder / "notes.json"),
                policy="write-behind",
                flush=dgents.Flush(max_delay=0.02, journal=folder / "journal"),
            ),
        )
        await plan.save({"goal": "ship"})
        await notes.update(lambda lines: [*lines, "started"])
        await notes.flush()
        return rt.tree()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(anyio.run(main, Path(folder)))
