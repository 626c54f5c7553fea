"""Several agents work on one shared blackboard: each adds what it finds, nobody overwrites anybody.

Run it: python examples/blackboard.py
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import anyio

import dgents


@dataclass
class Blackboard:
    """What the agents share."""

    question: str
    findings: list[str] = field(default_factory=list)
    done: set[str] = field(default_factory=set)


async def research(name: str, board: dgents.Ref[Blackboard]) -> None:
    """Read the question, think, and add a finding; another agent may have written meanwhile."""
    question = (await board.load()).question
    await anyio.sleep(0.01)  # thinking

    def add(state: Blackboard) -> Blackboard:
        state.findings.append(f"{name} on {question!r}")
        state.done.add(name)
        return state

    await board.update(add)


async def main(folder: Path) -> Blackboard:
    async with dgents.Runtime() as rt:
        agent = dgents.SQLAgent(str(folder / "board.db"), schema=Blackboard)
        board: dgents.Ref[Blackboard] = await rt.spawn("board", agent)
        await board.save(Blackboard("why is the sky blue?"))

        async with anyio.create_task_group() as agents:
            for number in range(20):
                agents.start_soon(research, f"agent-{number}", board)

        result = await board.load()
    assert len(result.findings) == len(result.done) == 20, "an update was lost"
    return result


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        board = anyio.run(main, Path(folder))
    print(f"{len(board.findings)} findings from {len(board.done)} agents; the last: {board.findings[-1]}")
