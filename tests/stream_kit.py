"""What the tests of streams share: the events of users, a fold that changes its argument, every log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from dgents import StreamAgent


@dataclass
class UserCreated:
    user_id: str
    name: str


@dataclass
class UserRenamed:
    user_id: str
    new_name: str


class UserDeleted(msgspec.Struct, frozen=True):
    user_id: str


@dataclass
class UserState:
    users: dict[str, str] = field(default_factory=dict)
    changes: int = 0


EVENTS: list[type[Any]] = [UserCreated, UserRenamed, UserDeleted]


def apply_event(state: UserState, event: Any) -> UserState:
    """Change the state in place, also before it finds out that the event can't be."""
    state.changes += 1
    if isinstance(event, UserCreated):
        state.users[event.user_id] = event.name
    elif isinstance(event, UserRenamed):
        old = state.users.pop(event.user_id)
        state.users[event.user_id] = event.new_name
        if event.new_name == "forbidden":
            raise ValueError(f"{old} can't be called that")
    else:
        del state.users[event.user_id]
    return state


MakeAgent = Callable[..., StreamAgent[Any, UserState]]

LOGS = ("memory", "list", "journal", "sqlite")
DURABLE = ("journal", "sqlite")


def agent_maker(log: str, folder: Path) -> MakeAgent:
    """Return what makes agents of one log: each one of the same place."""
    place: Any = {
        "memory": None,
        "list": [],
        "journal": folder / "log",
        "sqlite": f"sqlite:///{folder / 'events.db'}",
    }[log]

    def make(**options: Any) -> StreamAgent[Any, UserState]:
        return StreamAgent(
            **{"fold": apply_event, "initial": UserState(), "event_log": place, "events": EVENTS, **options}
        )

    return make


def add(total: int, event: Any) -> int:
    """Fold numbers, or dicts that hold one."""
    return total + (event["n"] if isinstance(event, dict) else event)
