"""Bringing up a checkpoint: the actors of a cut, from a file, under their own names or others.

The file names each actor's agent by its kind and its plain arguments. Nothing is imported or called that the file
names: kinds are those of this library, and a schema is looked up among the modules that the program has imported.
What can't be told from the file (functions, secrets, unknown schemas) is given by the caller: ``agents={name: agent}``.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from dgents.backends.file import PersistentAgent
from dgents.backends.files import storage_errors, write_atomically
from dgents.backends.sql import SQLAgent
from dgents.backends.volatile import VolatileAgent
from dgents.runtime.checkpoint import Cut, SavedActor, dump, parse, take_cut
from dgents.runtime.codec import Codec
from dgents.runtime.contract import Agent
from dgents.runtime.errors import StateSerializationError
from dgents.runtime.ref import Ref
from dgents.runtime.saved_message import load_message
from dgents.runtime.turns import MISSING

if TYPE_CHECKING:
    from dgents.supervisors.runtime import Runtime

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (VolatileAgent, PersistentAgent, SQLAgent)}
_ABSENT = object()
_PLAIN = (str, int, float, bool, type(None))


async def write_checkpoint(path: str | Path, refs: Sequence[Ref[Any]]) -> None:
    """Write one consistent cut of the actors to a file."""
    cut = await take_cut(refs)
    agents = {ref.name: ref._live().agent for ref in refs}
    for actor in cut.actors:
        actor.agent = _describe(agents[actor.name], actor)
    content = dump(cut)

    def write() -> None:
        with storage_errors(path, "write the checkpoint"):
            write_atomically(Path(path).absolute(), content)

    await anyio.to_thread.run_sync(write)


async def read_checkpoint(path: str | Path) -> Cut:
    """Read a checkpoint file.

    Raises:
        StateCorruptionError: it is none, or damaged.
        StorageError: it can't be read.
    """

    def read() -> bytes:
        with storage_errors(path, "read the checkpoint"):
            return Path(path).read_bytes()

    return parse(await anyio.to_thread.run_sync(read), str(path))


async def bring_up(
    runtime: Runtime,
    cut: Cut,
    agents: Mapping[str, Agent] | None,
    rename: Callable[[str], str],
) -> list[Ref[Any]]:
    """Spawn the actors of a cut, give them their states, and queue their messages again."""
    chosen = [(actor, (agents or {}).get(actor.name) or _rebuild(actor)) for actor in cut.actors]
    refs = []
    for actor, agent in chosen:
        ref = await runtime.spawn(rename(actor.name), agent)
        refs.append(ref)
        if actor.data is not None:
            state: Any = Codec[Any](ref._cell.codec.schema).decode(actor.data, actor.schema)
            if await ref.load(default=_ABSENT) != state:
                await ref.save(state)
    for ref, (actor, _) in zip(refs, chosen, strict=True):
        for message in actor.messages:
            ref.tell(load_message(ref._cell, message))
    return refs


def _describe(agent: Agent, actor: SavedActor) -> dict[str, Any] | None:
    """Return the agent as plain data, or None where that can't be done."""
    kind = type(agent).__name__
    if _KINDS.get(kind) is not type(agent):
        return None
    options: dict[str, Any] = {}
    for field in dataclasses.fields(agent):  # type: ignore[arg-type]
        value = getattr(agent, field.name)
        if field.name == "schema":
            options["schema"] = _class_name(value)
        elif value is MISSING or field.name == "initial":
            continue
        elif isinstance(value, Path):
            options[field.name] = str(value.absolute())
        elif isinstance(value, _PLAIN) and not (isinstance(value, str) and "@" in value):
            options[field.name] = value
        else:
            return None
    return {"kind": kind, "options": options}


def _class_name(schema: Any) -> str | None:
    return f"{schema.__module__}:{schema.__qualname__}" if isinstance(schema, type) else None


def _rebuild(actor: SavedActor) -> Agent:
    described = actor.agent
    if described is None or described.get("kind") not in _KINDS:
        raise StateSerializationError(
            f"the checkpoint can't tell what agent {actor.name!r} was made of",
            actor=actor.name,
            hint=f"pass agents={{{actor.name!r}: ...}}",
        )
    options = dict(described["options"])
    options["schema"] = _find_class(actor.name, options.get("schema"))
    agent: Agent = _KINDS[described["kind"]](**options)
    return agent


def _find_class(actor: str, name: str | None) -> Any:
    """Return a class among the modules that are imported; importing what a file names would run it."""
    if name is None:
        return None
    module, _, qualified = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualified.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type):
        return found
    raise StateSerializationError(
        f"the state of {actor!r} is a {qualified}, which this program has not imported",
        actor=actor,
        hint=f"import {module} first, or pass agents={{{actor!r}: ...}}",
    )
