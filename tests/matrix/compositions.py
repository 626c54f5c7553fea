"""What actors are made of: every leaf in every wrapping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dgents
from dgents.testing.lives.faults import Faults, FaultyAgent
from dgents.testing.lives.generate import Can
from dgents.testing.lives.operations import DEFAULT, fold
from dgents.testing.lives.script import Options
from tests.contract.agents import SUBJECTS

LEAVES = {subject.name: subject for subject in SUBJECTS}
STREAMS = ("memory", "directory", "sqlite", "postgres", "redis")


@dataclass(frozen=True)
class Composition:
    """An agent inside its wrappers: in a folder, or on the server of a URL, with its journal in the folder."""

    leaf: str
    wrapping: str
    folder: str
    url: str = ""

    @property
    def name(self) -> str:
        return f"{self.leaf}/{self.wrapping}"

    @property
    def can(self) -> Can:
        if self.leaf.startswith("stream-"):
            return Can(is_durable=self.leaf != "stream-memory", is_stream=True)
        able = LEAVES[self.leaf].can
        return Can(is_durable="durable" in able, is_kept="history" in able)

    def __call__(self, options: Options, faults: Faults) -> Any:
        if self.leaf.startswith("stream-"):
            return dgents.StreamAgent(fold, DEFAULT, event_log=self._event_log(), snapshot_every=5)
        return WRAPPINGS[self.wrapping](FaultyAgent(self._leaf(options), faults), options, self.folder)

    def _leaf(self, options: Options) -> Any:
        subject = LEAVES[self.leaf]
        place: Any = Path(self.folder) if subject.server is None else _At(self.url)
        if self.leaf in ("json", "json-gzip", "msgpack", "msgpack-zstd"):
            how: Any = {"format": self.leaf.split("-")[0], "compression": (*self.leaf.split("-"), None)[1]}
            return dgents.PersistentAgent(f"{self.folder}/states/", max_history=options.max_history, **how)
        return subject.make(place, None, **({"max_history": options.max_history} if options.max_history else {}))

    def _event_log(self) -> str | None:
        kind = self.leaf.removeprefix("stream-")
        logs = {"memory": None, "directory": f"{self.folder}/log", "sqlite": f"sqlite:///{self.folder}/events.db"}
        return logs.get(kind, self.url)


@dataclass(frozen=True)
class _At:
    url: str


def _behind(agent: Any, options: Options, journal: str | None = None, ttl: float | None = None) -> Any:
    flush = dgents.Flush(options.max_delay, options.max_pending, journal=journal)
    return dgents.CachedAgent(dgents.VolatileAgent(), agent, policy="write-behind", ttl=ttl, flush=flush)


def _through(agent: Any, ttl: float | None = None) -> Any:
    return dgents.CachedAgent(dgents.VolatileAgent(), agent, ttl=ttl)


def _within(agent: Any) -> Any:
    return dgents.EntropyConstrainedAgent(agent, 1.0, 100_000)


Wrapping = Callable[[Any, Options, str], Any]
WRAPPINGS: dict[str, Wrapping] = {
    "bare": lambda agent, options, folder: agent,
    "through": lambda agent, options, folder: _through(agent),
    "ttl": lambda agent, options, folder: _through(agent, options.ttl),
    "behind": lambda agent, options, folder: _behind(agent, options),
    "behind-journal": lambda agent, options, folder: _behind(agent, options, f"{folder}/journal"),
    "behind-ttl": lambda agent, options, folder: _behind(agent, options, ttl=options.ttl),
    "behind-ttl-journal": lambda agent, options, folder: _behind(agent, options, f"{folder}/journal", options.ttl),
    "budget": lambda agent, options, folder: dgents.EntropyConstrainedAgent(agent, 1.0, 100_000),
    "budget-behind": lambda agent, options, folder: dgents.EntropyConstrainedAgent(
        _behind(agent, options), 1.0, 100_000
    ),
    "nested": lambda agent, options, folder: _through(
        dgents.EntropyConstrainedAgent(_through(agent, options.ttl), 1.0)
    ),
}
_BEHIND = frozenset(name for name in WRAPPINGS if "behind" in name)

Kind = Literal["embedded", "server"]


def names(kind: Kind) -> list[tuple[str, str]]:
    """Return the leaf and the wrapping of each composition; on an embedded store, or on a server."""
    found = []
    for leaf, subject in LEAVES.items():
        if (subject.server is None) == (kind == "embedded"):
            for wrapping in WRAPPINGS:
                if wrapping in _BEHIND and ("shared" in subject.can or "durable" not in subject.can):
                    continue  # refused: others could write before the flush, or there is nothing to write to
                found.append((leaf, wrapping))
    streams = STREAMS[:3] if kind == "embedded" else STREAMS[3:]
    return found + [(f"stream-{log}", "bare") for log in streams]
