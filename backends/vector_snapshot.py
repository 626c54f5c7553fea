"""A vector index as bytes: written beside searches and writes, read only after its digest was checked.

Layout, all numbers little-endian:

| bytes | content |
|---|---|
| 8 | ``dgentsV1`` |
| frame | the header, JSON: generation, dimension, metric, index, rows, covered, made_for |
| two frames a block | its ids, a JSON list (null: a dead row); its vectors, float32 |
| frame | the faiss index as faiss serialises it; empty if there is none |
| 32 | SHA-256 of all before |

A frame is its length (8 bytes) and its content. The digest finds what a disk or a copy did to the file; it is
no signature. Who must fear a forger keeps the digest elsewhere and hands it to `read`: faiss trusts what it
reads, and a crafted index overflows its heap. Where another faiss can't read the index, the vectors are read
all the same.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import faiss
import msgspec
import numpy as np

from dgents.backends.vector_ann import Ann
from dgents.backends.vector_input import Floats, Id
from dgents.backends.vector_rows import Slice, View
from dgents.runtime.errors import StateCorruptionError

MAGIC = b"dgentsV1"
_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = 32
_CHUNK = 4 << 20


class Header(msgspec.Struct, frozen=True):
    """What a snapshot is of. ``generation`` is its owner's number for the state of things that it holds."""

    generation: int
    dimension: int
    metric: str
    index: str
    rows: int
    covered: int
    made_for: int


class Content(NamedTuple):
    """What `read` found: blocks of ids (None: dead) and vectors, and the faiss index if it's usable."""

    header: Header
    blocks: Iterator[tuple[list[Id | None], Floats]]
    built: Any


class Snapshot:
    """An iterable of the bytes of one moment. Close it, or leave its ``with`` block: until then holes aren't
    filled.

    Attributes:
        digest: SHA-256 of everything before it, once all was iterated; the last bytes are the same.
    """

    def __init__(self, header: Header, view: View, ann: Ann | None, close: Callable[[], None]) -> None:
        self.header = header
        self.digest = b""
        self._view = view
        self._ann = ann
        self._close: Callable[[], None] | None = close

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the moment; again does nothing."""
        close, self._close = self._close, None
        if close is not None:
            close()

    def ids(self) -> Iterator[Id]:
        """Yield the ids of the moment."""
        for part in self._view.slices():
            yield from (id for id in self._ids(part) if id is not None)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        """Yield the snapshot in chunks of a few megabytes; memory stays low but for the faiss index."""
        digest = hashlib.sha256()
        for chunk in self._chunks():
            digest.update(chunk)
            yield chunk
        self.digest = digest.digest()
        yield self.digest

    def _chunks(self) -> Iterator[bytes | memoryview]:
        yield MAGIC
        yield from _frame(msgspec.json.encode(self.header))
        for part in self._view.slices():
            yield from _frame(json.dumps(self._ids(part)).encode())
            yield from _frame(np.ascontiguousarray(part.vectors, "<f4"))
        yield from _frame(faiss.serialize_index(self._ann.index) if self._ann else b"")

    def _ids(self, part: Slice) -> list[Id | None]:
        ids: list[Id | None] = list(self._view.ids[part.first : part.first + len(part.vectors)])
        if part.alive is not None:
            for dead in np.flatnonzero(~part.alive).tolist():
                ids[dead] = None
        return ids


def read(data: bytes | memoryview, digest: bytes | None = None) -> Content:
    """Check a snapshot and return what it holds; the blocks are views of ``data``.

    Args:
        digest: what `Snapshot.digest` was, if the caller kept it.

    Raises:
        StateCorruptionError: it is no snapshot, or not as it was written; faiss has not seen it.
    """
    data = memoryview(data).cast("B")
    if bytes(data[: len(MAGIC)]) != MAGIC or len(data) < len(MAGIC) + _DIGEST_BYTES:
        raise StateCorruptionError("this is no snapshot of a vector index, or it was cut short", offset=0)
    found, written = hashlib.sha256(data[:-_DIGEST_BYTES]).digest(), bytes(data[-_DIGEST_BYTES:])
    if not hmac.compare_digest(found, written) or (digest is not None and not hmac.compare_digest(found, digest)):
        raise StateCorruptionError(
            "the snapshot of a vector index was changed since it was written: its digest differs",
            hint="restore an earlier one, or build the index anew from the states",
        )
    try:
        return _parse(data[:-_DIGEST_BYTES])
    except (ValueError, TypeError, struct.error, msgspec.MsgspecError) as error:
        raise StateCorruptionError(f"the snapshot of a vector index does not add up: {error}") from error


def _parse(data: memoryview) -> Content:
    frames = list(_frames(data))
    header = msgspec.json.decode(frames[0], type=Header)
    pairs = list(zip(frames[1:-1:2], frames[2:-1:2], strict=True))
    count = sum(len(vectors) for _, vectors in pairs) // (4 * header.dimension)
    if count != header.rows or not 0 <= header.covered <= header.rows:
        raise ValueError(f"{count} rows, {header.rows} announced, {header.covered} covered")
    blocks = ((json.loads(bytes(ids)), _matrix(vectors, header.dimension)) for ids, vectors in pairs)
    return Content(header, blocks, _faiss_index(frames[-1], header))


def _matrix(data: memoryview, dimension: int) -> Floats:
    return np.frombuffer(data, "<f4").reshape(-1, dimension).astype(np.float32, copy=False)


def _faiss_index(data: memoryview, header: Header) -> Any:
    """Return the index, or None if there is none, or if this faiss can't read it: it will be built anew."""
    if not len(data):
        return None
    try:
        index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    except RuntimeError:
        return None
    fits = index.ntotal == header.covered and index.d == header.dimension
    return index if fits else None


def _frame(content: Any) -> Iterator[bytes | memoryview]:
    bytes_of = memoryview(content).cast("B") if len(content) else memoryview(b"")
    yield _LENGTH.pack(len(bytes_of))
    for start in range(0, len(bytes_of), _CHUNK):
        yield bytes_of[start : start + _CHUNK]


def _frames(data: memoryview) -> Iterator[memoryview]:
    at = len(MAGIC)
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if length > len(data) - at:
            raise ValueError(f"the frame at byte {at} is longer than the file")
        yield data[at : at + length]
        at += length
