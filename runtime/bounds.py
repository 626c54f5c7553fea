"""How large and how deep an encoded state may be, checked before any of it is decoded."""

from __future__ import annotations

import msgpack

from dgents.runtime.extensions import NestingError

_STACK = 1024  # the nesting at which msgpack's Unpacker.skip gives up
_UNSCANNED = 1024  # bytes; below, the size itself bounds what hostile data can do
_HEADERS = {*range(0x80, 0xA0), *range(0xDC, 0xE0)}  # of arrays and maps
_MARKED = {*range(0xC4, 0xCA), *range(0xD4, 0xD9)}  # of bytes and extensions
_UNINTERESTING = bytes(byte for byte in range(256) if byte not in _HEADERS | _MARKED)
_CONTAINERS = bytes(_HEADERS)


class Bounds:
    """The bounds of one codec: ``max_bytes``, and ``max_depth`` levels of containers (1 to 768).

    Raises:
        ValueError: a bound is out of range.
    """

    def __init__(self, max_bytes: int, max_depth: int) -> None:
        if not 1 <= max_depth <= 768 or max_bytes < 1:
            raise ValueError(f"max_depth={max_depth} must be 1 to 768, max_bytes={max_bytes} at least 1")
        self.max_bytes = max_bytes
        self.max_depth = max_depth
        self.unscanned = min(max_bytes, _UNSCANNED if max_depth >= 256 else max_depth)
        self._spine = b"\x91" * (_STACK - max_depth)

    def inspect(self, data: bytes) -> bool:
        """Check the depth of ``data``, just encoded; say whether it may hold bytes or extensions.

        One pass that counts single bytes rules out most; only what is left is scanned.

        Raises:
            NestingError: it is nested too deeply.
        """
        marks = data.translate(None, _UNINTERESTING)
        if len(marks) > self.max_depth:
            self.scan(data)
        return bool(marks.translate(None, _CONTAINERS))

    def allow(self, size: int, change: bytes, depth: int) -> bool:
        """Say whether a state of at most ``size`` bytes is sure to stay within, changed ``depth`` levels down."""
        if size > self.max_bytes:
            return False
        try:
            self.scan(change, depth)
        except NestingError:
            return False
        return True

    def scan(self, data: bytes, depth: int = 0) -> None:
        """Skip through ``data`` without building anything: every length in it is true, no nesting too deep.

        That takes a tenth of the time of decoding. ``skip`` gives up at a fixed nesting; a spine of arrays in
        front of the data leaves ``max_depth`` of it, less the ``depth`` at which it will stand.

        Raises:
            NestingError: it is nested too deeply.
            ValueError: it is no MessagePack.
        """
        unpacker = msgpack.Unpacker(read_size=_STACK, max_buffer_size=len(data) + _STACK + depth)
        unpacker.feed(self._spine + b"\x91" * depth)
        unpacker.feed(data)
        try:
            unpacker.skip()
        except msgpack.StackError as error:
            raise NestingError(f"nested more than {self.max_depth} levels deep") from error
        except msgpack.OutOfData as error:
            # The spine's arrays have one item each, so only the data itself can lack something.
            raise ValueError("the data was truncated") from error
        except msgpack.FormatError as error:
            raise ValueError("malformed header") from error
