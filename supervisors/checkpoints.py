"""Bringing up a checkpoint: the actors of a cut, from a file, under their own names or others.

The file names each actor's agent by its kind and its plain arguments. Nothing is imported or called that the file
names: kinds are those of this library, and a schema is looked up among the modules that the program has imported.
What can't be told from the file (functions, secrets, unknown schemas) is given by the caller: ``agents={name: agent}``.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from dgents.backends.file import PersistentAgent
from dgents.backends.files import storage_errors, write_atomically
from dgents.backends.sql import SQLAgent
from dgents.backends.volatile import VolatileAgent
from dgents.runtime.arguments import check_path
from dgents.runtime.checkpoint import Cut, SavedActor, dump, parse, take_cut
from dgents.runtime.codec import Codec
from dgents.runtime.contract import Agent
from dgents.runtime.errors import StateSerializationError
from dgents.runtime.mailbox import Envelope
from dgents.runtime.ref import Ref, blind
from dgents.runtime.saved_message import SavedMessage, load_message
from dgents.runtime.tell import Receipt
from dgents.runtime.turns import MISSING

if TYPE_CHECKING:
    from dgents.supervisors.runtime import Runtime

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (VolatileAgent, PersistentAgent, SQLAgent)}
_ABSENT = object()
_PLAIN = (str, int, float, bool, type(None))


async def write_checkpoint(path: str | Path, refs: Sequence[Ref[Any]]) -> None:
    """Write one consistent cut of the actors to a file."""
    file = check_path("path", path)
    if not isinstance(refs, Iterable):
        raise TypeError(f"checkpoint: {refs!r} is no list of refs")
    for ref in refs:
        if not isinstance(ref, Ref):
            raise TypeError(f"checkpoint: {ref!r} is no ref; give what spawn or rt.get(name) returns")
    cut = await take_cut(refs)
    agents = {ref.name: ref._live().agent for ref in refs}
    for actor in cut.actors:
        actor.agent = _describe(agents[actor.name], actor)
    content = dump(cut)

    def write() -> None:
        with storage_errors(path, "write the checkpoint"):
            write_atomically(Path(file).absolute(), content)

    await anyio.to_thread.run_sync(write)


async def read_checkpoint(path: str | Path) -> Cut:
    """Read a checkpoint file.

    Raises:
        StateCorruptionError: it is none, or damaged.
        StorageError: it can't be read.
    """

    file = check_path("path", path)

    def read() -> bytes:
        with storage_errors(path, "read the checkpoint"):
            return Path(file).read_bytes()

    return parse(await anyio.to_thread.run_sync(read), str(path))


async def bring_up(
    runtime: Runtime,
    cut: Cut,
    agents: Mapping[str, Agent] | None,
    rename: Callable[[str], str],
) -> list[Ref[Any]]:
    """Spawn the actors of a cut, give them their states, and queue their messages again.

    If that fails, none of them stays. Until all are there, and all that the file holds of them could be read, no store
    is changed; when all have their states, nothing can fail any more.
    """
    given: Mapping[str, Any] = agents or {}
    chosen = [(actor, given.get(actor.name) or _rebuild(actor)) for actor in cut.actors]
    refs: list[Ref[Any]] = []
    try:
        for actor, agent in chosen:
            refs.append(await runtime.spawn(rename(actor.name), agent))
        pairs = list(zip(refs, cut.actors, strict=True))
        states = [(ref, _state(ref, actor)) for ref, actor in pairs if actor.data is not None]
        messages = [(ref._live(), _envelope(ref, message)) for ref, actor in pairs for message in actor.messages]
        for ref, state in states:
            if await ref.load(default=_ABSENT) != state:
                await ref.update(lambda _, state=state: state, default=state)
    except BaseException:
        with anyio.CancelScope(shield=True):
            for ref in reversed(refs):
                await runtime.stop(ref)
        raise
    for cell, envelope in messages:
        cell.post(envelope)
    return refs


def _state(ref: Ref[Any], actor: SavedActor) -> Any:
    assert actor.data is not None
    return Codec[Any](ref._cell.codec.schema).decode(actor.data, actor.schema)


def _envelope(ref: Ref[Any], saved: SavedMessage) -> Envelope:
    """Return a message as it lay in its mailbox: there was room for it, so it is not refused now."""
    cell = ref._live()
    message = load_message(cell, saved)
    turn, args, alone = message.turn(blind(cell), cell)
    return Envelope(turn, args, Receipt(cell, message), message, alone=alone)


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


def _rebuild(actor: SavedActor) -> Any:
    described = actor.agent
    if described is None or described.get("kind") not in _KINDS:
        raise StateSerializationError(
            f"the checkpoint can't tell what agent {actor.name!r} was made of",
            actor=actor.name,
            hint=f"pass agents={{{actor.name!r}: ...}}",
        )
    options = dict(described["options"])
    options["schema"] = _find_class(actor.name, options.get("schema"))
    return _KINDS[described["kind"]](**options)


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
