"""The file of a state, byte for byte: docs/file-format.md. Pure functions; no file is touched here.

JSON: one document, whose first line names the format and the checksum of all that follows:

    {"dgents-state": 1, "checksum": "0a1b2c3d",
    "key": "user/7", "version": 7, "epoch": 2, "saved_at": "2026-11-23T04:50:00.123456789Z", "schema": 1,
    "log": {"end": 3150, "count": 7, "last": 5, "continues": false},
    "requests": [],
    "state": {
      "name": "Ada"
    },
    "earlier": [
    {"checksum": "0a1b2c3d", "versions": [{"version": 6, …}]}],
    "end": "dgents-state"}

MessagePack: 8 bytes of magic, format (u16), CRC-32 of format and body (u32), body.

Compressed: either of them, as a gzip or zstd file whose own header carries the CRC-32 of the rest, so that
`zcat` and `zstdcat` read it.
"""

from __future__ import annotations

import re
import struct
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias
from zlib import crc32

import msgspec

from dgents.backends.compression import HEADERS, Compression, compress, decompress
from dgents.backends.tagged_json import from_json, to_json
from dgents.runtime.contract import Record, Request
from dgents.runtime.errors import StateCorruptionError, StorageError

Format: TypeAlias = Literal["json", "msgpack"]

FORMAT_VERSION = 1
SECTOR = 512
_FEW_BITS = 4
_FIRST_LINE = re.compile(rb'\{"dgents-state": ([0-9]{1,5}), "checksum": "([0-9a-f]{8})",\n')
_LAST_LINE = b',\n"end": "dgents-state"}\n'
_MAGIC = b"\x89dgs\r\n\x1a\n"
_PREFIX = struct.Struct(">8sHI")


class LogMark(msgspec.Struct, frozen=True):
    """How much of the log belongs to a main file.

    Attributes:
        end: the logical offset behind its last entry; see `file_log`.
        count: how many versions the log holds up to there.
        last: the newest of these versions.
        continues: whether what follows there in the log was acknowledged, and leads on from this file.
    """

    end: int = 0
    count: int = 0
    last: int = 0
    continues: bool = False


class MainFile(msgspec.Struct, array_like=True):
    """What the file of a state holds.

    Attributes:
        key: the name of the actor that wrote it.
        earlier: versions before ``record`` that have not moved to the log yet, as they will stand there.
    """

    key: str
    record: Record
    log: LogMark
    requests: list[Request]
    earlier: list[bytes] = []


class Shape(msgspec.Struct, frozen=True):
    """How a file is written."""

    format: Format
    compression: Compression | None

    @property
    def lines(self) -> bool:
        """Whether its log is made of lines of JSON."""
        return self.format == "json" and self.compression is None


class _Document(msgspec.Struct):
    """The members of the JSON document that follow its first line."""

    key: str
    version: int
    epoch: int
    saved_at: str
    schema: int
    log: LogMark
    requests: list[Request]
    state: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    earlier: list[msgspec.Raw] = []


_encode_body = msgspec.msgpack.Encoder().encode
_decode_body = msgspec.msgpack.Decoder(MainFile).decode
_decode_document = msgspec.json.Decoder(_Document).decode
_decode_bytes = msgspec.json.Decoder(bytes).decode


def encode_main(main: MainFile, shape: Shape) -> bytes:
    """Return the content of the file that holds ``main``."""
    content = _encode_json(main, shape.lines) if shape.format == "json" else _encode_msgpack(main)
    return compress(content, shape.compression) if shape.compression else content


def decode_main(content: bytes, path: str) -> tuple[MainFile, Shape]:
    """Return what the file at ``path`` holds, and how it is written.

    Raises:
        StateCorruptionError: it was changed, or is no file of a state.
        StorageError: a newer dgents wrote it.
    """
    content, compression = decompress(content, path)
    if content.startswith(_MAGIC):
        return _decode_msgpack(content, path), Shape("msgpack", compression)
    shape = Shape("json", compression)
    return _decode_json(content, path, shape.lines), shape


def _encode_json(main: MainFile, lines: bool) -> bytes:
    record = main.record
    state = b""
    if record.data is not None:
        state = b',\n"state": ' + msgspec.json.format(to_json(record.data), indent=2)
    if main.earlier:
        entries = b",\n".join(
            [entry.removesuffix(b"\n") if lines else msgspec.json.encode(entry) for entry in main.earlier]
        )
        state += b',\n"earlier": [\n%s]' % entries
    head = (
        f'"key": {_to_text(main.key)}, "version": {record.version}, "epoch": {record.epoch}, '
        f'"saved_at": "{to_iso(record.saved_at)}", "schema": {record.schema},\n'
        f'"log": {_to_text(main.log)},\n"requests": {_to_text(main.requests)}'
    )
    rest = head.encode() + state + _LAST_LINE
    checksum = crc32(rest, crc32(b"%d" % FORMAT_VERSION))
    return b'{"dgents-state": %d, "checksum": "%08x",\n%s' % (FORMAT_VERSION, checksum, rest)


def _to_text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _decode_json(content: bytes, path: str, lines: bool) -> MainFile:
    first = _FIRST_LINE.match(content)
    if first is None:
        raise corrupt(path, 0, "it does not begin as the file of a state does")
    rest = content[first.end() :]
    if crc32(rest, crc32(first[1])) != int(first[2], 16):
        raise corrupt(path, first.end(), "its checksum does not fit its content")
    check_version(int(first[1]), path)
    try:
        document = _decode_document(b"{" + rest)
        state = document.state
        data = None if isinstance(state, msgspec.UnsetType) else from_json(state)
        saved_at = from_iso(document.saved_at)
        earlier = [bytes(raw) + b"\n" if lines else _decode_bytes(raw) for raw in document.earlier]
    except (ValueError, RecursionError) as error:
        raise corrupt(path, first.end(), str(error)) from error
    record = Record(document.version, document.epoch, saved_at, data, document.schema)
    return MainFile(document.key, record, document.log, document.requests, earlier)


def _encode_msgpack(main: MainFile) -> bytes:
    body = _encode_body(main)
    checksum = crc32(body, crc32(FORMAT_VERSION.to_bytes(2, "big")))
    return _PREFIX.pack(_MAGIC, FORMAT_VERSION, checksum) + body


def _decode_msgpack(content: bytes, path: str) -> MainFile:
    if len(content) < _PREFIX.size:
        raise corrupt(path, len(content), "it ends in its header")
    _, version, checksum = _PREFIX.unpack_from(content)
    body = content[_PREFIX.size :]
    if crc32(body, crc32(version.to_bytes(2, "big"))) != checksum:
        raise corrupt(path, _PREFIX.size, "its checksum does not fit its content")
    check_version(version, path)
    try:
        main: MainFile = _decode_body(body)
    except (ValueError, RecursionError) as error:
        raise corrupt(path, _PREFIX.size, str(error)) from error
    return main


def begins_as_state(content: bytes) -> bool:
    """Say whether a file begins as that of a state does, or did before a few bits of it changed."""
    beginnings = (_MAGIC, b'{"dgents-state": ', *HEADERS.values())
    return content[:8] == bytes(8) or any(nearly(content[: len(one)], one) for one in beginnings)


def is_torn(content: bytes) -> bool:
    """Say whether a JSON file was not written to its end before a power cut, as against: changed later.

    It lacks its last line, or begins with zeros, or has a sector of them, for JSON has none. A last line that
    differs in a few bits only was changed.
    """
    last = content[-len(_LAST_LINE) :]
    if len(last) < len(_LAST_LINE) or has_unwritten_sector(content, 0, len(content)):
        return True
    return not any(content[:8]) or not nearly(last, _LAST_LINE)


def has_unwritten_sector(content: bytes, start: int, end: int) -> bool:
    """Say whether a sector, as far as it is between ``start`` and ``end`` and beyond, is all zeros."""
    while start < end:
        sector_end = min((start // SECTOR + 1) * SECTOR, len(content))
        if not any(content[start:sector_end]):
            return True
        start = sector_end
    return False


def nearly(content: bytes, expected: bytes) -> bool:
    """Say whether ``content`` is ``expected`` but for a few bits."""
    different = int.from_bytes(content, "big") ^ int.from_bytes(expected, "big")
    return len(content) == len(expected) and different.bit_count() <= _FEW_BITS


def to_iso(seconds: float) -> str:
    """Return a time as text of a length that gives back the same float."""
    whole = int(seconds // 1)
    nanoseconds = min(round((seconds - whole) * 1e9), 999_999_999)
    return f"{datetime.fromtimestamp(whole, UTC).replace(tzinfo=None).isoformat()}.{nanoseconds:09d}Z"


def from_iso(text: str) -> float:
    """Return the time that `to_iso` wrote."""
    whole = datetime.fromisoformat(text[:19]).replace(tzinfo=UTC).timestamp()
    return whole + int(text[20:29]) / 1e9


def check_version(version: int, path: str) -> None:
    """Refuse what a newer dgents wrote."""
    if version > FORMAT_VERSION:
        raise StorageError(
            f"{path} is written in file format {version}; this dgents reads formats up to {FORMAT_VERSION}",
            retryable=False,
            outcome="not_started",
            hint="use the dgents that wrote it, or a newer one",
        )


def corrupt(path: str, offset: int, reason: str, **fields: Any) -> StateCorruptionError:
    """Return the error for a file that can't be trusted, and is left as it is."""
    hint = fields.pop("hint", "it was left as it is; restore it from a backup")
    return StateCorruptionError(
        f"{path} is damaged at byte {offset}: {reason}", path=path, offset=offset, hint=hint, **fields
    )
