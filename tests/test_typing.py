"""What a type checker makes of a program: the ref of an actor knows its methods and the type of its state."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

PROGRAM = """
from dataclasses import dataclass
from typing import Any

import dgents


@dataclass
class User:
    name: str


def fold(user: User, event: int) -> User:
    return user


async def main(rt: dgents.Runtime, team: dgents.Supervisor) -> None:
    users: list[dgents.Ref[User]] = [
        await rt.spawn("a", dgents.VolatileAgent(User("a"), schema=User)),
        await rt.spawn("b", dgents.PersistentAgent("b", User)),
        await team.spawn("c", dgents.SQLAgent("c", schema=User)),
        await rt.spawn("d", dgents.RedisAgent("redis://d", schema=User)),
        await rt.spawn("e", dgents.StreamAgent(fold, User("e"))),
        await rt.spawn("f", dgents.VectorAgent(3, schema=User)),
    ]
    user: User = await users[0].load()
    user = (await users[0].snapshot()).state
    database: dgents.SQLRef[Any] = await rt.spawn("g", dgents.SQLAgent("g"))
    found: list[User] = await (await rt.spawn("h", dgents.SQLAgent("h", schema=User))).query("SELECT state FROM states")
    cached = await rt.spawn("i", dgents.CachedAgent(dgents.VolatileAgent(), dgents.SQLAgent("i")))
    await cached.save({"any": "state"})
    stream: dgents.StreamRef[int] = await rt.spawn("j", dgents.StreamAgent(lambda total, event: total + 1, 0))
    await users[0].save("no user")  # E: expected "User"
    users[0].append(1)  # E: has no attribute "append"
    await rt.spawn("k", 5)  # E: incompatible type "int"
"""


def test_a_ref_knows_its_methods_and_the_type_of_its_state(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(program)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    expected = {
        number: line.split("# E: ")[1] for number, line in enumerate(PROGRAM.splitlines(), 1) if "# E: " in line
    }
    found = {int(line.split(":")[1]): line for line in done.stdout.splitlines() if ": error:" in line}
    assert found.keys() == expected.keys(), done.stdout + done.stderr
    for number, words in expected.items():
        assert words in found[number]
