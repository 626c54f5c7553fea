"""States as MessagePack bytes and back, every type as it was: nothing is stored that can't be loaded.

A codec works in one of three ways, chosen once from its schema:

* **untyped** (no schema): MessagePack, with extension types for what it lacks (`extensions`). Exact types
  only: a subclass of dict is refused, as it would come back as a dict.
* **typed**: msgspec, by the schema. msgspec does not validate what it encodes, so each state is looked at, type by
  type (`exact`), and where that does not tell enough, decoded again and compared. That costs as much as a load (0.8 of
  1.2 µs for a dataclass of four fields); then no state can be stored that can't be loaded, or would come back as
  another. A time in a zone, which msgspec would move to UTC, is stored as in the mixed way.
* **mixed**: a schema with places that say ``Any`` or ``list``, or with Pydantic models: packed as untyped,
  with the schema's own classes as maps, converted on the way back, compared type by type: ten times slower.

What is stored in one way is read in the others, so a schema may be tightened, or given up.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import msgspec

from dgents.runtime.bounds import Bounds
from dgents.runtime.errors import (
    StateCorruptionError,
    StateError,
    StateNotFoundError,
    StateSerializationError,
    StateTooLargeError,
)
from dgents.runtime.extensions import LocalClasses, NestingError, Tree, UnsupportedValueError
from dgents.runtime.migrations import Migration, Migrations
from dgents.runtime.roundtrip import check_parts, find_difference, find_fault
from dgents.runtime.shapes import SCALARS, children, field_names, immutable, part_hint
from dgents.runtime.typed import Converter

S = TypeVar("S")

_MAX_TREES = 100  # extensions inside one another: each takes several frames, of Python and of C
_SOME_KEY = "[...]"  # what msgspec says for the key of a dict
_MAX_PARTS = 1024  # paths may hold keys from users' data: the table of parts must not grow with them


class Codec(Generic[S]):
    """Encodes and decodes the states of one actor. Safe to use from several threads.

    Args:
        schema: the type of the state: a dataclass, Struct, attrs or Pydantic class, TypedDict, NamedTuple, a
            built-in, a union that msgspec can tell apart; None for any value made of built-in types.
        migrations: for each old schema version, what lifts a state (dicts, lists, ...) to the next.
        max_bytes: the largest encoded state, for `encode` and `decode`.
        max_depth: how deep containers may be nested, at most 768.
        local: the states never leave this process: where no schema says otherwise, instances of any class
            with fields are kept.
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
        self.schema = schema
        self.migrations = Migrations(migrations, actor)
        self.version = self.migrations.version
        self.bounds = Bounds(max_bytes, max_depth)
        self.local = local
        self.actor = actor
        untyped = schema is None or schema is Any or schema is object or isinstance(schema, TypeVar)
        self._converter = None if untyped else Converter(schema)
        self._typed = self._converter if self._converter and self._converter.exact else None
        self._classes = LocalClasses() if local else None
        self._set_tree()
        self.read = self._reader()
        self._parts: dict[tuple[str, ...], Codec[Any]] = {}

    def _set_tree(self) -> None:
        adapt = self._converter.adapt if self._converter else None
        self._tree = Tree(min(self.bounds.max_depth, _MAX_TREES), adapt, self._classes)

    def encode(self, state: S) -> bytes:
        """Return ``state`` as bytes that `decode` turns into an equal state of the same types.

        Raises:
            StateSerializationError: a part can't be stored; ``path`` names it.
            StateTooLargeError: the bytes are more than ``max_bytes``.
        """
        try:
            data = self._encode_tree(state) if self._typed is None else self._encode_typed(state, self._typed)
        except MemoryError:
            raise
        except Exception as error:
            raise self._refusal(state, error) from error
        if len(data) > self.bounds.max_bytes:
            raise self._too_large(len(data))
        return data

    def _encode_typed(self, state: S, typed: Converter) -> bytes:
        try:
            data: bytes = typed.encode(state)
            if len(data) > self.bounds.unscanned:
                self.bounds.scan(data)
            keeps = typed.keeps(state)
            if keeps and typed.is_faithful:
                return data
            stored = typed.decode(data)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            # An int beyond 64 bits, or a state that can't be stored: then the tree fails too, and says where.
            return self._encode_tree(state)
        try:
            if keeps and stored == state:
                return data
        except MemoryError:
            raise
        except Exception:  # the equality of an array, or of a user's class, may raise anything
            pass
        found = find_difference(state, stored)
        if found is None:
            return typed.encode_whole(state)
        if isinstance(found.part, datetime.datetime | datetime.time):
            return self._encode_tree(state)  # which keeps the zone, or says what it can't keep
        raise self._unstorable(found.path, found.reason)

    def _encode_tree(self, state: S) -> bytes:
        data = self._tree.pack(state)
        if self._converter is None and type(state) in SCALARS:
            return data
        if self.bounds.inspect(data):
            check_parts(state, self.bounds.max_depth)
        if self._converter is not None and (found := find_difference(state, self.decode(data))) is not None:
            raise self._unstorable(found.path, found.reason)
        return data

    def decode(self, data: bytes, version: int | None = None) -> S:
        """Return the state that ``data`` holds.

        Args:
            version: the schema version that the record names; None for the current one. An older state is
                lifted by each migration from there on, once, in order.

        Raises:
            StateCorruptionError: not MessagePack as dgents writes it, or nested too deeply.
            StateSerializationError: it does not fit the schema, or a newer schema wrote it.
            StateTooLargeError: more than ``max_bytes``.
        """
        if version is not None and version != self.version:
            return self._from_builtins(self.migrations.lift(self.to_tree(data), version))
        if self._typed is not None:
            self._check_bounds(data)
            try:
                state: S = self._typed.decode(data)
                return state
            except (ValueError, TypeError, OverflowError, RecursionError):
                pass  # written without this schema, or unreadable: the tree tells
        return self._from_builtins(self.to_tree(data))

    def _reader(self) -> Callable[[Any], S]:
        """Return the bare decoder, for bytes that this codec wrote, and that a checksum or memory vouches for.

        It raises what msgspec raises. `decode` reads more, bounds it, and explains.
        """
        if self._typed is not None:
            return self._typed.decode
        if self._converter is None:
            return self._tree.decode
        converter = self._converter
        return lambda data: converter.convert(self._tree.decode(data))

    def _from_builtins(self, tree: Any) -> S:
        if self._converter is None:
            state: S = tree
            return state
        try:
            state = self._converter.convert(tree)
        except (ValueError, TypeError, RecursionError) as error:
            raise self._mismatch(error) from error
        return state

    def is_immutable(self, state: S) -> bool:
        """Say whether ``state`` can't be changed, so that it may be handed out without a copy."""
        return type(state) in SCALARS or immutable(state)

    def to_tree(self, data: bytes) -> Any:
        """Return ``data`` as dicts, lists and scalars, whatever the schema; raises as `decode` does."""
        self._check_bounds(data)
        try:
            return self._tree.decode(data)
        except (NestingError, RecursionError) as error:
            raise self._too_deep() from error
        except ImportError as error:
            message = f"the state{self._of()} holds values of a library that is not installed: {error}"
            raise StateSerializationError(message, actor=self.actor) from error
        except (ValueError, TypeError, ArithmeticError, AttributeError) as error:
            raise self._corrupt(error) from error

    def complete(self, data: bytes, state: S) -> bytes:
        """Return ``data``, which was decoded as ``state``, with what that added: the defaults of fields it lacks.

        Then a part of the state is what it is in the whole, and stays so when the defaults become others.
        """
        if self._converter is None:
            return data
        try:
            written = self._tree.pack(state) if self._typed is None else self._typed.encode_whole(state)
            whole = data if written == data else self.encode(state)
        except MemoryError:
            raise
        except Exception:  # it can be read, and could not be written so: it stays as it is
            return data
        return data if whole == data else whole

    def from_tree(self, tree: Any) -> bytes:
        """Return as bytes what `to_tree` returned, or what became of it; raises as `encode` does."""
        return self._part((), None).encode(tree)

    def at(self, path: tuple[str, ...]) -> Codec[Any]:
        """Return the codec of a part of the state; untyped where the schema says nothing of it.

        Raises:
            StateNotFoundError: a state of this schema can't have such a part.
        """
        if not path:
            return self
        known = self._parts.get(path)
        if known is not None:
            return known
        hint = Any if self._converter is None else self.schema
        for depth, segment in enumerate(path):
            try:
                hint = part_hint(hint, segment)
            except KeyError:
                where = ".".join(path[: depth + 1])
                message = f"the state{self._of()} can't have a part {where!r}: its schema has no {segment!r} there"
                raise StateNotFoundError(message, actor=self.actor) from None
        return self._part(path, hint)

    def _part(self, path: tuple[str, ...], schema: Any) -> Codec[Any]:
        """Return the codec of this one's bounds and local classes that is kept under ``path``."""
        part = self._parts.get(path)
        if part is None:
            max_bytes, max_depth = self.bounds.max_bytes, self.bounds.max_depth
            part = Codec(schema, max_bytes=max_bytes, max_depth=max_depth, actor=self.actor)
            part.local, part._classes = self.local, self._classes
            part._set_tree()
            if len(self._parts) >= _MAX_PARTS:
                self._parts.clear()
            self._parts[path] = part
        return part

    def _check_bounds(self, data: bytes) -> None:
        if len(data) <= self.bounds.unscanned:
            return
        if len(data) > self.bounds.max_bytes:
            raise self._too_large(len(data))
        try:
            self.bounds.scan(data)
        except NestingError as error:
            raise self._too_deep() from error
        except ValueError as error:
            raise self._corrupt(error) from error

    def _refusal(self, state: S, error: Exception) -> StateError:
        """Return the error that says which part of ``state`` can't be stored, and why."""
        if isinstance(error, msgspec.ValidationError):
            error = self._mismatch(error)
        if isinstance(error, StateError):
            return self._located(state, error)
        culprit: Any = None
        reason, hint = str(error), None
        if isinstance(error, UnicodeEncodeError):
            culprit, reason = error.object, f"the text holds a lone surrogate at {error.start}"
        elif isinstance(error, UnsupportedValueError):
            culprit = error.value
        path, found = find_fault(state, culprit, self.bounds.max_depth, self._tree.room) or ("$", "")
        cls: Any = type(culprit)
        if self._converter is None and (field_names(cls) or isinstance(culprit, enum.Enum)):
            name = cls.__name__
            hint = f"give the agent schema={name}" if path == "$" else f"give the agent a schema with {name} there"
        return self._unstorable(path, found or reason, hint)

    def _unstorable(self, path: str, reason: str, hint: str | None = None) -> StateSerializationError:
        message = f"the state{self._of()} can't be stored: {path}: {reason}"
        return StateSerializationError(message, path=path, hint=hint, actor=self.actor)

    def _mismatch(self, error: Exception) -> StateSerializationError:
        """Return the error that names the field, what was expected, and what was found."""
        text, *places = str(error).split(" - at `")  # of Pydantic, and of msgspec around it
        path = "$"
        for place in reversed(places):
            part, _, inside = place.rstrip("`").rpartition("` in `")
            path += inside.removeprefix("$")
            text = f"{part} of it: {text}" if part else text
        text = text.replace("`", "").replace("Expected", "expected").replace(", got", ", found")
        return self._unfit(path, text)

    def _located(self, state: S, error: StateError) -> StateError:
        """Return ``error`` with its whole path: of a value in a dict, msgspec does not say under which key it is."""
        if not isinstance(error, StateSerializationError) or _SOME_KEY not in (error.path or ""):
            return error
        for step, part in children(state):
            if step.startswith(".<key "):
                continue
            try:
                self.at((step.strip(".[]'"),)).encode(part)
            except StateNotFoundError:
                continue
            except StateSerializationError as closer:
                if closer.path is not None and _SOME_KEY not in closer.path:
                    path = step + closer.path.removeprefix("$")
                    return self._unfit(f"${path}", closer.message.partition(f"{closer.path}: ")[2])
        return error

    def _unfit(self, path: str, text: str) -> StateSerializationError:
        message = f"the state{self._of()} does not fit its schema {_name(self.schema)}: {path}: {text}"
        return StateSerializationError(message, path=path, actor=self.actor)

    def _too_large(self, size: int) -> StateTooLargeError:
        message = f"the state{self._of()} is {size:,} bytes, more than the {self.bounds.max_bytes:,} allowed"
        return StateTooLargeError(message, size=size, limit=self.bounds.max_bytes, actor=self.actor)

    def _corrupt(self, error: Exception) -> StateCorruptionError:
        message = f"the state{self._of()} is damaged, or no state at all: {error}"
        return StateCorruptionError(message, actor=self.actor)

    def _too_deep(self) -> StateCorruptionError:
        message = f"the state{self._of()} is nested more than {self.bounds.max_depth} levels deep"
        return StateCorruptionError(message, actor=self.actor)

    def _of(self) -> str:
        return f" of {self.actor!r}" if self.actor else ""


def _name(schema: Any) -> str:
    return schema.__name__ if isinstance(schema, type) else str(schema)
