"""States as MessagePack bytes and back, every type as it was: nothing is stored that can't be loaded.

A codec works in one of three ways, chosen once from its schema:

* **untyped** (no schema): MessagePack, with extension types for what it lacks (`extensions`); exact types only.
* **typed**: msgspec, by the schema. msgspec does not validate what it encodes, so each encoded state is decoded
  again and compared: that costs as much as a load, and makes a state that can't be loaded impossible to store.
* **mixed**: a schema with places that say ``Any`` or ``list``, or with Pydantic models: packed as untyped, with the
  schema's own classes as maps, and converted on the way back. Slower, and compared type by type.

What is stored by one way is read by the others, so a schema may be tightened, or given up.
"""

from __future__ import annotations

import threading
import typing
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import msgpack
import msgspec

from dgents.runtime.errors import (
    StateCorruptionError,
    StateNotFoundError,
    StateSerializationError,
    StateTooLargeError,
)
from dgents.runtime.extensions import LocalClasses, NestingError, Tree
from dgents.runtime.roundtrip import find_difference, find_fault, holds_buffer
from dgents.runtime.shapes import field_names, immutable, is_exact, part_hint
from dgents.runtime.typed import Converter

S = TypeVar("S")
Migration = Callable[[Any], Any]

_SCANNED_ABOVE = 1024  # bytes; below, msgspec's own recursion guard and the size bound what hostile data can do
_STACK = 1024  # the nesting at which msgpack.Unpacker.skip gives up
_MAX_TREES = 100  # levels of extensions inside extensions: each takes several frames of Python and of C
_NOT_CONTAINERS = bytes(
    byte
    for byte in range(256)
    if not (0x80 <= byte <= 0x9F or 0xC7 <= byte <= 0xC9 or 0xD4 <= byte <= 0xD8 or 0xDC <= byte <= 0xDF)
)


class Codec(Generic[S]):
    """Encodes and decodes the states of one actor. Safe to use from several threads.

    Args:
        schema: the type of the state: a dataclass, Struct, attrs or Pydantic class, TypedDict, NamedTuple, a built-in
            or a union of them; None for any value made of built-in types.
        migrations: for each old schema version, the function that lifts a state (dicts, lists, ...) to the next.
        max_bytes: the largest encoded state, for `encode` and `decode`.
        max_depth: how deep containers may be nested, at most 768.
        local: the states never leave this process: without a schema, instances of any class with fields are kept.
        actor: the name of the actor, for error messages.

    Raises:
        TypeError: the schema is not one that can be stored.
        ValueError: the migrations have a gap, or a bound is out of range.
    """

    def __init__(
        self,
        schema: Any = None,
        *,
        migrations: Mapping[int, Migration] | None = None,
        max_bytes: int = 64 * 2**20,
        max_depth: int = 256,
        local: bool = False,
        actor: str | None = None,
    ) -> None:
        if not 1 <= max_depth <= 768 or max_bytes < 1:
            raise ValueError(f"max_depth={max_depth} must be 1 to 768, max_bytes={max_bytes} at least 1")
        self.schema = schema
        self.migrations = _checked(migrations or {})
        self.version = 1 + max(self.migrations, default=0)
        self.max_bytes = max_bytes
        self.max_depth = max_depth
        self.local = local
        self.actor = actor
        self._converter = None if schema is None or schema is Any or schema is object else Converter(schema)
        adapt = self._converter.adapt if self._converter else None
        self._tree = Tree(min(max_depth, _MAX_TREES), adapt, LocalClasses() if local else None)
        self._typed = self._converter is not None and is_exact(schema)
        self._spine = b"\x91" * (_STACK - max_depth)
        self._scanned_above = _SCANNED_ABOVE if max_depth >= 256 else max_depth
        self._parts: dict[tuple[str, ...], Codec[Any]] = {}
        self._lock = threading.Lock()

    def encode(self, state: S) -> bytes:
        """Return ``state`` as bytes that `decode` turns into an equal state of the same types.

        Raises:
            StateSerializationError: a part can't be stored; ``path`` names it.
            StateTooLargeError: the bytes are more than ``max_bytes``.
        """
        try:
            data = self._encode_typed(state) if self._typed else self._encode_tree(state)
        except MemoryError:
            raise
        except Exception as error:
            raise self._refusal(state, error) from error
        if len(data) > self.max_bytes:
            raise self._too_large(len(data))
        return data

    def _encode_typed(self, state: S) -> bytes:
        assert self._converter is not None
        try:
            data = self._converter.encode(state)
            if len(data) > self._scanned_above:
                self._scan(data)
            stored = self._converter.decode(data)
            if stored == state:
                return data
        except (ValueError, TypeError, OverflowError, RecursionError):
            # An int beyond 64 bits, arrays whose equality is no bool, or really a state that can't be stored.
            return self._encode_tree(state)
        if (difference := find_difference(state, stored)) is not None:
            raise _DifferenceError(difference)
        return data

    def _encode_tree(self, state: S) -> bytes:
        data = self._tree.pack(state)
        # 0xc4 to 0xc6 begin bytes, which a bytearray would be taken for.
        if (b"\xc4" in data or b"\xc5" in data or b"\xc6" in data) and holds_buffer(state):
            raise TypeError("a bytearray or memoryview would come back as bytes")
        if len(data) > self.max_depth and len(data.translate(None, _NOT_CONTAINERS)) > self.max_depth:
            self._scan(data)
        if self._converter is not None:
            stored = self._converter.convert(self._tree.decode(data))
            if (difference := find_difference(state, stored)) is not None:
                raise _DifferenceError(difference)
        return data

    def decode(self, data: bytes, version: int | None = None) -> S:
        """Return the state that ``data`` holds.

        Args:
            version: the schema version that the record names; None for the current one. An older state is lifted
                by each migration from there on, once, in order.

        Raises:
            StateCorruptionError: not MessagePack as dgents writes it, or nested too deeply.
            StateSerializationError: it does not fit the schema, or a newer schema wrote it.
            StateTooLargeError: more than ``max_bytes``.
        """
        if version is not None and version != self.version:
            return self._migrate(self.to_tree(data), version)
        if self._typed:
            assert self._converter is not None
            self._check_bounds(data)
            try:
                state: S = self._converter.decode(data)
                return state
            except (ValueError, TypeError, OverflowError, RecursionError):
                pass  # written without this schema, or unreadable: the tree tells
        return self._from_builtins(self.to_tree(data))

    def _from_builtins(self, tree: Any) -> S:
        if self._converter is None:
            state: S = tree
            return state
        try:
            state = self._converter.convert(tree)
        except (ValueError, TypeError, RecursionError) as error:
            raise self._mismatch(error) from error
        return state

    def _migrate(self, tree: Any, version: int) -> S:
        if version > self.version:
            raise StateSerializationError(
                f"the state{self._of()} was written under schema version {version}; "
                f"this program knows versions up to {self.version}",
                actor=self.actor,
                hint="run the newer program, or give the agent its migrations",
            )
        for step in range(version, self.version):
            if step not in self.migrations:
                raise StateSerializationError(
                    f"no migration lifts the state{self._of()} from schema version {step} to {step + 1}",
                    actor=self.actor,
                    hint=f"give the agent migrations={{{step}: fn, ...}}",
                )
            try:
                tree = self.migrations[step](tree)
            except Exception as error:
                raise StateSerializationError(
                    f"the migration of the state{self._of()} from schema version {step} failed: {error!r}",
                    actor=self.actor,
                ) from error
        return self._from_builtins(tree)

    def is_immutable(self, state: S) -> bool:
        """Say whether ``state`` can't be changed, so that it may be handed out without a copy."""
        return immutable(state)

    def to_tree(self, data: bytes) -> Any:
        """Return ``data`` as dicts, lists and scalars, whatever the schema; raises as `decode` does."""
        self._check_bounds(data)
        try:
            return self._tree.decode(data)
        except msgspec.DecodeError as error:
            raise StateCorruptionError(f"the state{self._of()} is not MessagePack: {error}", actor=self.actor) from error
        except (NestingError, RecursionError) as error:
            raise self._too_deep() from error
        except (ValueError, TypeError, OverflowError, ArithmeticError) as error:
            message = f"the state{self._of()} holds a malformed value: {error}"
            raise StateCorruptionError(message, actor=self.actor) from error

    def from_tree(self, tree: Any) -> bytes:
        """Return as bytes what `to_tree` returned, or what became of it; raises as `encode` does."""
        data: bytes = self._bare.encode(tree)
        return data

    @property
    def _bare(self) -> Codec[Any]:
        """A codec with this one's bounds and classes, and no schema."""
        with self._lock:
            bare = self._parts.get(())
            if bare is None:
                bare = Codec(None, max_bytes=self.max_bytes, max_depth=self.max_depth, actor=self.actor)
                bare._tree = Tree(min(self.max_depth, _MAX_TREES), None, self._tree.classes)
                self._parts[()] = bare
        return bare

    def at(self, path: tuple[str, ...]) -> Codec[Any]:
        """Return the codec of a part of the state; one without a schema where the schema says nothing of the part.

        Raises:
            StateNotFoundError: a state of this schema can't have such a part.
        """
        if not path:
            return self
        found = self._parts.get(path)
        if found is not None:
            return found
        hint = Any if self._converter is None else self.schema
        for depth, segment in enumerate(path):
            try:
                hint = part_hint(hint, segment)
            except KeyError:
                where = ".".join(path[: depth + 1])
                message = f"the state{self._of()} can't have a part {where!r}: its schema has no {segment!r} there"
                raise StateNotFoundError(message, actor=self.actor) from None
        part: Codec[Any] = Codec(
            None if isinstance(hint, typing.TypeVar) else hint,
            max_bytes=self.max_bytes,
            max_depth=self.max_depth,
            actor=self.actor,
        )
        part.local = self.local
        part._tree = Tree(self._tree.room, part._tree.adapt, self._tree.classes)
        with self._lock:
            # Paths may hold keys from users' data: the table is emptied before it grows without bound.
            if len(self._parts) >= 1024:
                self._parts.clear()
            return self._parts.setdefault(path, part)

    def _check_bounds(self, data: bytes) -> None:
        """Bound what decoding ``data`` can take, before any of it is decoded."""
        if len(data) > self.max_bytes:
            raise self._too_large(len(data))
        if len(data) > self._scanned_above:
            try:
                self._scan(data)
            except NestingError as error:
                raise self._too_deep() from error
            except ValueError as error:
                message = f"the state{self._of()} is not MessagePack: {error}"
                raise StateCorruptionError(message, actor=self.actor) from error

    def _scan(self, data: bytes) -> None:
        """Skip through ``data`` without building anything: every length is true, no nesting beyond the bound.

        ``skip`` gives up at a nesting of 1,024; a spine of arrays in front leaves ``max_depth`` of them.
        """
        unpacker = msgpack.Unpacker(read_size=4096, max_buffer_size=len(data) + _STACK)
        unpacker.feed(self._spine)
        unpacker.feed(data)
        try:
            unpacker.skip()
        except msgpack.StackError as error:
            raise NestingError("nested too deeply") from error
        except msgpack.OutOfData as error:
            raise ValueError("the data was truncated") from error
        except msgpack.FormatError as error:
            raise ValueError("malformed") from error

    def _refusal(self, state: S, error: Exception) -> StateSerializationError:
        """Return the error that says which part of ``state`` can't be stored, and why."""
        if isinstance(error, StateSerializationError):
            return error
        reason, hint = str(error), None
        culprit = getattr(error, "object", getattr(error, "value", None))
        if isinstance(error, _DifferenceError):
            path, _, reason = reason.partition(": ")
        elif isinstance(error, msgspec.ValidationError):
            return self._mismatch(error)
        else:
            path, found = find_fault(state, culprit, self.max_depth) or ("$", "")
            if isinstance(error, UnicodeEncodeError):
                reason = f"the text holds a lone surrogate at {error.start}"
            reason = found or reason
        if culprit is not None and self._converter is None and field_names(type(culprit)) is not None:
            hint = f"give the agent schema={type(culprit).__name__ if path == '$' else type(state).__name__}"
        message = f"the state{self._of()} can't be stored: {path}: {reason}"
        return StateSerializationError(message, path=path, hint=hint, actor=self.actor)

    def _mismatch(self, error: Exception) -> StateSerializationError:
        """Return the error that names the field, what was expected, and what was found."""
        text, _, place = str(error).partition(" - at `")
        path = place.rstrip("`") or "$"
        text = text.replace("`", "").replace("Expected", "expected").replace(", got", ", found")
        message = f"the state{self._of()} does not fit its schema {_name(self.schema)}: {path}: {text}"
        return StateSerializationError(message, path=path, actor=self.actor)

    def _too_large(self, size: int) -> StateTooLargeError:
        message = f"the state{self._of()} is {size:,} bytes, more than the {self.max_bytes:,} allowed"
        return StateTooLargeError(message, size=size, limit=self.max_bytes, actor=self.actor)

    def _too_deep(self) -> StateCorruptionError:
        message = f"the state{self._of()} is nested more than {self.max_depth} levels deep"
        return StateCorruptionError(message, actor=self.actor)

    def _of(self) -> str:
        return f" of {self.actor!r}" if self.actor else ""


class _DifferenceError(TypeError):
    """What would be loaded is not what was to be stored; the message begins with the path."""


def _checked(migrations: Mapping[int, Migration]) -> dict[int, Migration]:
    steps = sorted(migrations)
    if steps and steps != list(range(steps[0], steps[-1] + 1)) or (steps and steps[0] < 1):
        raise ValueError(f"migrations lift the schema versions {steps}; they must follow one another, from 1 or later")
    return dict(migrations)


def _name(schema: Any) -> str:
    return schema.__name__ if isinstance(schema, type) else str(schema)
