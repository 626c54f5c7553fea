"""What a Redis server promises about a write, and whether that is what the agent asked for.

| durability | a write is acknowledged when | how |
|---|---|---|
| `memory` | the server has it | |
| `aof` | it is in the server's append-only file, on disk | `WAITAOF` (Redis 7.2), or `appendfsync always` |
| `replicas:N` | N replicas have it too | `WAIT` |

`WAIT` and `WAITAOF` travel in the pipeline of the write itself and speak for everything that the server
executed before them on that connection. Where the server can't promise what was asked, a warning says so at
the start.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_FORMS = "'memory', 'aof' or 'replicas:N'"


@dataclass(frozen=True)
class Durability:
    """What an agent asks of each of its writes: ``replicas`` is 0 unless they are asked for."""

    name: str
    replicas: int = 0

    @classmethod
    def parse(cls, text: str) -> Durability:
        """Read ``memory``, ``aof`` or ``replicas:N``.

        Raises:
            ValueError: it is none of them.
        """
        if text in ("memory", "aof"):
            return cls(text)
        found = re.fullmatch(r"replicas:([1-9]\d{0,3})", text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f"durability is {_FORMS}, not {text!r}")
        return cls("replicas", int(found.group(1)))


@dataclass(frozen=True)
class ServerFacts:
    """What a server said about itself when it was asked; None where it would not say."""

    version: tuple[int, int] = (0, 0)
    appendonly: bool | None = None
    appendfsync: str | None = None
    snapshots: bool | None = None
    maxmemory: int = 0
    eviction: str = "noeviction"
    replicas: int = 0
    may_publish: bool = True

    @classmethod
    def read(cls, replies: list[Any]) -> ServerFacts:
        """Read the replies to `ASK`."""
        info = _lines(replies[0])
        fsync, save = (_setting(reply) for reply in replies[1:3])
        major, _, minor = info.get("redis_version", "0.0").partition(".")
        aof = info.get("aof_enabled")
        return cls(
            version=(_number(major), _number(minor.partition(".")[0])),
            appendonly=None if aof is None else aof == "1",
            appendfsync=fsync,
            snapshots=None if save is None else bool(save),
            maxmemory=_number(info.get("maxmemory", "0")),
            eviction=info.get("maxmemory_policy", "noeviction"),
            replicas=_number(info.get("connected_slaves", "0")),
            may_publish=not isinstance(replies[3], Exception),
        )


# What `ServerFacts.read` wants to know. The channel is one that nobody listens to.
ASK: tuple[tuple[str, ...], ...] = (
    ("INFO",),
    ("CONFIG", "GET", "appendfsync"),
    ("CONFIG", "GET", "save"),
    ("PUBLISH", "dgents:{}", ""),
)


def confirmation(durability: Durability, facts: ServerFacts, timeout: float) -> list[tuple[Any, ...]]:
    """Return the commands that follow each write in its pipeline; ``timeout`` is in seconds."""
    milliseconds = max(1, int(timeout * 1000))
    if durability.replicas:
        return [("WAIT", durability.replicas, milliseconds)]
    if durability.name == "aof" and facts.appendonly and facts.version >= (7, 2):
        return [("WAITAOF", 1, 0, milliseconds)]
    return []


def shortfall(durability: Durability, replies: list[Any]) -> str | None:
    """Return what the replies to `confirmation` lack, or None if they confirm the writes."""
    if not replies:
        return None
    reply = replies[0]
    if isinstance(reply, Exception):
        return f"the server could not confirm it ({reply})"
    if durability.replicas:
        return None if reply >= durability.replicas else f"{reply} of {durability.replicas} replicas have it"
    return None if reply[0] >= 1 else "it is not in the append-only file yet"


def warnings(durability: Durability, facts: ServerFacts, *, ttl: bool) -> Iterator[tuple[str, str]]:
    """Yield (reason, text) for each thing that the server will not do although it is relied on."""
    if facts.maxmemory and (facts.eviction.startswith("allkeys") or (ttl and facts.eviction != "noeviction")):
        yield (
            "eviction",
            f"it evicts states when its memory is full (maxmemory-policy {facts.eviction}): set noeviction",
        )
    if durability.name == "aof":
        yield from _aof_warnings(facts)
    if facts.replicas < durability.replicas:
        yield (
            "replicas",
            f"it has {facts.replicas} replicas, {durability.replicas} were asked for: writes will fail",
        )
    if not facts.may_publish:
        yield "publish", "this user may not PUBLISH: other processes will not see changes until they load"


def _aof_warnings(facts: ServerFacts) -> Iterator[tuple[str, str]]:
    if facts.appendonly is None:
        yield "persistence", "it does not say whether it has an append-only file (INFO is refused)"
    elif not facts.appendonly and facts.snapshots is False:
        yield "persistence", "it persists nothing (appendonly no, no snapshots): a restart loses every state"
    elif not facts.appendonly:
        yield (
            "persistence",
            "it has no append-only file (appendonly no): a crash loses the writes since its snapshot",
        )
    elif facts.version < (7, 2) and facts.appendfsync != "always":
        policy = facts.appendfsync or "unknown"
        yield (
            "persistence",
            f"its append-only file is not synced with each write (appendfsync {policy}): "
            "a crash can lose the last second; set appendfsync always, or use Redis 7.2",
        )


def _lines(reply: Any) -> dict[str, str]:
    if isinstance(reply, dict):  # a cluster client has parsed it already
        return {str(name): str(value) for name, value in reply.items()}
    if isinstance(reply, bytes):
        reply = reply.decode("utf-8", "replace")
    if not isinstance(reply, str):
        return {}
    pairs = (line.partition(":") for line in reply.splitlines())
    return {name: value.strip() for name, colon, value in pairs if colon}


def _number(text: str) -> int:
    """Return a number that a server says of itself; 0 for what is none: not every server is one of Redis itself."""
    return int(text) if text.isdecimal() else 0


def _setting(reply: Any) -> str | None:
    if isinstance(reply, dict):
        values = list(reply.values())
    elif isinstance(reply, list) and len(reply) == 2:
        values = reply[1:]
    else:
        return None
    if not values:
        return None
    return values[0].decode() if isinstance(values[0], bytes) else str(values[0])
