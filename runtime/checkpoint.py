"""Checkpoints: the states of several actors, and what lies in their mailboxes, at one cut.

The cut is made while the turns of all its actors are held, taken in the order of their names so that two checkpoints
can't wait for each other. No message is in the middle of its turn then: each is either applied in a saved state, or a
queued `tell` that is saved with it (Chandy and Lamport, 1985, made easy by owners that can be held). Messages whose
senders wait are not part of it: their senders are not either.

A checkpoint is one file: ``dgents-checkpoint`` and a format version, then MessagePack with its SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import msgspec

from dgents.runtime.codec import Codec
from dgents.runtime.errors import StateCorruptionError, StateSerializationError
from dgents.runtime.saved_message import SavedMessage, save_message
from dgents.runtime.tell import Receipt
from dgents.runtime.transaction import Hold

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell
    from dgents.runtime.ref import Ref
    from dgents.runtime.turns import Form

_MAGIC = b"dgents-checkpoint\x001\n"


class SavedActor(msgspec.Struct):
    """One actor at the cut. ``data`` is its encoded state, None if nothing was saved."""

    name: str
    version: int
    schema: int
    data: bytes | None
    messages: list[SavedMessage]
    agent: dict[str, Any] | None = None


class Cut(msgspec.Struct):
    """The actors of a checkpoint."""

    actors: list[SavedActor]


async def take_cut(refs: Sequence[Ref[Any]]) -> Cut:
    """Hold all actors, and return their states and their queued messages.

    Raises:
        StateSerializationError: a queued `tell` is not data, an `Update` with a function, say; it names it.
    """
    cells = sorted((ref._live() for ref in refs), key=lambda cell: cell.name)
    async with AsyncExitStack() as held:
        holds = []
        for cell in cells:
            hold = Hold(cell)
            await hold.take()
            held.callback(hold.release)
            holds.append(hold)
        return Cut([_save(cell, hold) for cell, hold in zip(cells, holds, strict=True)])


def _save(cell: Cell, hold: Hold) -> SavedActor:
    form = hold.form
    data = None if form is None else _portable(cell, form)
    messages = [
        save_message(cell, envelope.message)
        for envelope in cell.mailbox.waiting()
        if isinstance(envelope.waiter, Receipt)
    ]
    return SavedActor(cell.name, cell.version, cell.codec.version, data, messages)


def _portable(cell: Cell, form: Form) -> bytes:
    """Return the encoded state as another process can read it: without the classes that only this one knows."""
    if form.data is not None and not getattr(cell.agent, "local", False):
        return form.data
    try:
        return Codec(cell.codec.schema).encode(form.decode(cell.codec))
    except StateSerializationError as error:
        raise cell.named(error) from None


def dump(cut: Cut) -> bytes:
    """Return the content of a checkpoint file."""
    body = msgspec.msgpack.encode(cut)
    return _MAGIC + hashlib.sha256(body).digest() + body


def parse(content: bytes, path: str) -> Cut:
    """Read the content of a checkpoint file.

    Raises:
        StateCorruptionError: it is none, or damaged.
    """
    if not content.startswith(_MAGIC):
        raise StateCorruptionError(f"{path} is no checkpoint of this version of dgents", path=path, offset=0)
    start = len(_MAGIC) + 32
    digest, body = content[len(_MAGIC) : start], content[start:]
    if hashlib.sha256(body).digest() != digest:
        raise StateCorruptionError(f"the checkpoint {path} is damaged: its digest differs", path=path, offset=start)
    try:
        return msgspec.msgpack.decode(body, type=Cut)
    except msgspec.DecodeError as error:
        raise StateCorruptionError(f"the checkpoint {path} can't be read: {error}", path=path) from error
