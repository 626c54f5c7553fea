"""Files as gzip and zstd, with a checksum over every byte that those formats leave unchecked."""

from __future__ import annotations

import struct
import zlib
from types import ModuleType
from typing import Literal, TypeAlias

from dgents.runtime.errors import StateCorruptionError, UnsupportedOperationError

Compression: TypeAlias = Literal["gzip", "zstd"]

# gzip: no time, unknown system, and an extra field "dg" of 4 bytes. zstd: a skippable frame of 4 bytes.
HEADERS: dict[Compression, bytes] = {
    "gzip": b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x08\0dg\x04\0",
    "zstd": b"\x50\x2a\x4d\x18\x04\0\0\0",
}
_GZIP_HEADER = 10  # bytes, of what zlib writes
_CHECKSUM = struct.Struct("<I")


def check_available(compression: Compression | None) -> None:
    """Check that what ``compression`` needs is installed.

    Raises:
        UnsupportedOperationError: it is not.
    """
    if compression == "zstd":
        _zstandard()


def compress(content: bytes, compression: Compression) -> bytes:
    """Return ``content`` as a gzip or zstd file.

    Raises:
        UnsupportedOperationError: zstd's library is not installed.
    """
    if compression == "gzip":
        packer = zlib.compressobj(level=6, wbits=31)
        packed = (packer.compress(content) + packer.flush())[_GZIP_HEADER:]
    else:
        packed = _zstandard().ZstdCompressor().compress(content)
    return HEADERS[compression] + _CHECKSUM.pack(zlib.crc32(packed)) + packed


def decompress(content: bytes, path: str) -> tuple[bytes, Compression | None]:
    """Return what was compressed, and how; what was not comes back as it is.

    Raises:
        StateCorruptionError: a byte of it was changed.
        UnsupportedOperationError: zstd's library is not installed.
    """
    compression = next((name for name, header in HEADERS.items() if content.startswith(header)), None)
    if compression is None:
        return content, None
    header = HEADERS[compression]
    start = len(header) + _CHECKSUM.size
    packed = content[start:]
    if content[len(header) : start] != _CHECKSUM.pack(zlib.crc32(packed)):
        raise _damaged(path, start, "its checksum does not fit its content")
    try:
        if compression == "gzip":
            unpacker = zlib.decompressobj(wbits=-15)
            return unpacker.decompress(packed) + unpacker.flush(), compression
        zstandard = _zstandard()
    except zlib.error as error:
        raise _damaged(path, start, str(error)) from error
    try:
        return zstandard.ZstdDecompressor().decompress(packed), compression
    except zstandard.ZstdError as error:
        raise _damaged(path, start, str(error)) from error


def _damaged(path: str, offset: int, reason: str) -> StateCorruptionError:
    return StateCorruptionError(
        f"{path} is damaged at byte {offset}: {reason}",
        path=path,
        offset=offset,
        hint="it was left as it is; restore it from a backup",
    )


def _zstandard() -> ModuleType:
    try:
        import zstandard  # an optional dependency
    except ModuleNotFoundError as error:
        raise UnsupportedOperationError(
            "compression='zstd' needs a library that is not installed", hint="pip install 'dgents[zstd]'"
        ) from error
    return zstandard
