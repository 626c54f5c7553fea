"""The programs that one writes first: seven lines of each kind of memory, as they were first thought of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

import dgents

pytestmark = pytest.mark.anyio


@dataclass
class UserCreated:
    user_id: str
    name: str


@dataclass
class UserRenamed:
    user_id: str
    new_name: str


@dataclass
class UserState:
    users: dict[str, str] = field(default_factory=dict)


def apply_event(state: UserState, event: UserCreated | UserRenamed) -> UserState:
    if isinstance(event, UserCreated):
        return replace(state, users={**state.users, event.user_id: event.name})
    return replace(state, users={**state.users, event.user_id: event.new_name})


async def test_an_audit_trail() -> None:
    async with dgents.Runtime() as rt:
        stream = await rt.spawn(
            "users", dgents.StreamAgent(event_log=[], fold=apply_event, initial=UserState(users={}))
        )
        await stream.append_event(UserCreated("u1", "Alice"))
        await stream.append_event(UserRenamed("u1", "Alicia"))

        current = await stream.load()
        assert current.users["u1"] == "Alicia"

        history = await stream.history()
        assert history[0].users["u1"] == "Alice"  # before the new name
        with pytest.raises(dgents.UnsupportedOperationError, match="append"):
            await stream.save(UserState())


@dataclass
class Article:
    text: str
    embedding: list[float]


async def test_a_semantic_memory(tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        memory = await rt.spawn("faq", dgents.VectorAgent(3, path=tmp_path / "faq", schema=Article))
        await memory.save(Article("reset your password on the login page", [0.9, 0.1, 0.0]))
        await memory.save(Article("we are closed on Sundays", [0.0, 0.2, 0.9]))

        relevant = await memory.search(np.array([1.0, 0.0, 0.0]), k=1)
        assert relevant[0].state.text == "reset your password on the login page"
        with pytest.raises(dgents.UnsupportedOperationError, match="search"):
            await memory.load()


async def test_what_makes_no_sense_for_vectors_says_what_to_do(tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        memory = await rt.spawn("v", dgents.VectorAgent(3, path=tmp_path / "v"))
        with pytest.raises(dgents.UnsupportedOperationError, match="remind"):
            await memory.remind("later", dgents.Delete(), every=60)
        behind = dgents.CachedAgent(dgents.VolatileAgent(), dgents.VectorAgent(3), policy="write-behind")
        with pytest.raises(dgents.UnsupportedOperationError, match="leave the cache out"):
            await rt.spawn("cached", behind)
