"""The states that the benchmarks save and load."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

State: TypeAlias = dict[str, Any]

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)

_SUMMARY = (
    "Asked how the engine might compose music, then about loops whose bounds are not known beforehand. "
    "Prefers worked examples to definitions, and diagrams to both. "
    "Wants sources with every claim, and is glad to be told plainly when there are none that can be trusted."
)


def profile(visits: int = 0) -> State:
    """Return what an agent remembers of a user: 10 keys, 615 bytes as JSON, 495 as MessagePack."""
    return {
        "id": "user/42",
        "name": "Ada Lovelace",
        "email": "ada@example.org",
        "visits": visits,
        "score": 0.8734375,
        "active": True,
        "tags": ["mathematics", "engines", "poetry", "verses"],
        "preferences": {
            "language": "en",
            "theme": "dark",
            "timezone": "Europe/London",
            "font_size": 14,
            "digest": False,
        },
        "recent": [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8],
        "summary": _SUMMARY,
    }


class Badge(msgspec.Struct, frozen=True):
    """An immutable state: it is handed out as it is, and no copy is needed."""

    id: str = "user/42"
    name: str = "Ada Lovelace"
    visits: int = 0
    score: float = 0.8734375
    active: bool = True


def sized(size_bytes: int, visits: int = 0) -> State:
    """Return a conversation that takes ``size_bytes`` as MessagePack, in messages of about 100 bytes.

    Raises:
        ValueError: fewer than 64 bytes, which hold no conversation.
    """
    if size_bytes < 64:
        raise ValueError(f"a state of {size_bytes} bytes is too small: ask for 64 or more")
    state: State = {"visits": visits, "messages": [], "rest": ""}
    for number in range(max(0, size_bytes - 200) // 100):
        role = "assistant" if number % 2 else "user"
        state["messages"].append({"role": role, "at": 1_700_000_000 + number, "text": "x" * 64})
    state["rest"] = "x" * (size_bytes - _packed(state))
    state["rest"] = state["rest"][: len(state["rest"]) - (_packed(state) - size_bytes)]
    return state


def _packed(state: State) -> int:
    return len(msgspec.msgpack.encode(state))
