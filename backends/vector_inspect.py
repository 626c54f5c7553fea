"""Reading the states of a vector store without owning it, for people and for tools: without numpy and faiss."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from dgents.backends import files
from dgents.backends.journal_reader import read_journal
from dgents.backends.vector_change import unpack_record
from dgents.backends.vector_file import parse
from dgents.backends.vector_states import Id
from dgents.backends.vector_store import SNAPSHOT
from dgents.runtime.contract import Record
from dgents.runtime.errors import StateCorruptionError

_DIGEST_BYTES = 32
_ATTEMPTS = 5


def is_vectors(directory: Path) -> bool:
    """Say whether a directory holds a vector store."""
    return (directory / SNAPSHOT).exists()


def read_vectors(directory: Path) -> dict[Id, Record]:
    """Return the current state of each id; its version is that of the change that saved it, or of the snapshot.

    Takes no lock and writes nothing; also while an owner writes. The snapshot, its index and every change are checked
    against their checksums.

    Raises:
        StateCorruptionError: a file can't be trusted, or is missing.
        StorageError: a file can't be read.
    """
    path = directory / SNAPSHOT
    for attempt in range(_ATTEMPTS):
        with files.storage_errors(path, "read"):
            content = files.layer.read(path)
        try:
            return _read(directory, content)
        except StateCorruptionError:
            # The owner may have put a new snapshot in its place, and removed the changes before it.
            with files.storage_errors(path, "read"):
                if attempt == _ATTEMPTS - 1 or files.layer.read(path) == content:
                    raise
    raise AssertionError("the last attempt returns or raises")


def _read(directory: Path, content: bytes) -> dict[Id, Record]:
    found: dict[Id, Record] = {}
    try:
        head, blocks, index = parse(memoryview(content))
        if hashlib.sha256(index[:-_DIGEST_BYTES]).digest() != index[-_DIGEST_BYTES:]:
            raise ValueError("its index was changed since it was written: its digest differs")
        for ids, states in blocks:
            for id, state in zip(ids, states, strict=True):
                found[id] = Record(head.version, head.epoch, head.saved_at, state, head.schema)
    except (ValueError, msgspec.MsgspecError) as error:
        raise _damaged(directory, f"the snapshot does not add up: {error}") from error
    version = head.version
    for batch in read_journal(directory, version + 1):
        for number, record in enumerate(batch.records(), batch.first):
            if number > version:
                version += 1
                _apply(found, directory, version, number, record)
    return found


def _apply(found: dict[Id, Record], directory: Path, version: int, number: int, record: bytes) -> None:
    try:
        front, change = unpack_record(record)
        if not front.version == number == version:
            raise ValueError(f"change {number} says that it is {front.version}")
    except (ValueError, msgspec.MsgspecError) as error:
        raise _damaged(directory, f"change {version} is missing, or none: {error}") from error
    if change.states is None:
        for id in change.ids:
            found.pop(id, None)
        return
    for id, state in zip(change.ids, change.states, strict=True):
        found[id] = Record(version, front.epoch, front.saved_at, state, front.schema)


def _damaged(directory: Path, what: str) -> StateCorruptionError:
    return StateCorruptionError(
        f"the vector store {directory} is damaged: {what}",
        path=str(directory),
        hint="it was left as it is; restore a copy",
    )
