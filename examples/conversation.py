"""A conversation memory: one virtual actor a user, in memory only while the user talks, on disk always.

Run it: python examples/conversation.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import anyio
import msgspec

import dgents


class Turn(msgspec.Struct, frozen=True):
    """One line of a conversation."""

    speaker: str
    text: str


class Memory(msgspec.Struct):
    """What the assistant remembers of one user."""

    turns: list[Turn] = []


def reply(text: str, memory: Memory) -> tuple[str, Memory]:
    """Answer, given what was said before: pure logic, to be given a memory."""
    said_before = sum(turn.speaker == "user" for turn in memory.turns)
    answer = f"you said {text!r}, and {said_before} things before"
    return answer, Memory([*memory.turns, Turn("user", text), Turn("assistant", answer)])


async def talk(rt: dgents.Runtime, user: str, lines: list[str]) -> list[str]:
    assistant = dgents.Symbiont(reply, rt.ref(f"user/{user}"), default=Memory())
    return [await assistant(line) for line in lines]


async def main(folder: Path) -> list[str]:
    def memory_of(user: str) -> dgents.PersistentAgent[Memory]:
        return dgents.PersistentAgent(f"{folder}/", schema=Memory)

    answers: list[str] = []
    for _ in range(2):  # the second runtime finds what the first one stored
        async with dgents.Runtime() as rt:
            rt.register("user", memory_of, idle_timeout=60, max_active=1000)
            async with anyio.create_task_group() as users:
                for user in ("ada", "grace", "barbara"):
                    users.start_soon(talk, rt, user, ["hello", "it is me"])
            answers += await talk(rt, "ada", ["do you remember?"])
    assert answers[-1].endswith("and 5 things before"), answers
    return answers


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(*anyio.run(main, Path(folder)), sep="\n")
