"""Lenses: a part of a state that is loaded, saved and updated like a whole one.

The laws hold: GetPut (saving what was loaded changes nothing), PutGet (what was saved is loaded), PutPut (the second
save wins). Source: Foster et al., "Combinators for bidirectional tree transformations", 2005.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dgents.runtime.arguments import check_function
from dgents.runtime.errors import StateNotFoundError
from dgents.runtime.patch import parse_path
from dgents.runtime.turns import MISSING

if TYPE_CHECKING:
    from dgents.runtime.ref import Ref

P = TypeVar("P")


class Lens(Generic[P]):
    """A part of the state of an actor. Every operation is one turn of the whole."""

    __slots__ = ("_path", "_ref", "path")

    def __init__(self, ref: Ref[Any], path: str) -> None:
        self._ref = ref
        self.path = path
        self._path = parse_path(path)

    def __repr__(self) -> str:
        return f"<Lens {self.path!r} of {self._ref.name!r}>"

    def at(self, path: str) -> Lens[Any]:
        """Return a lens on a part of this part."""
        parse_path(path)
        return Lens(self._ref, f"{self.path}.{path}")

    async def load(self, *, default: Any = MISSING) -> P:
        """Return the caller's own copy of the part.

        Raises:
            StateNotFoundError: there is no such part, and no default; it names the path.
        """
        cell = self._ref._live()
        try:
            data, _ = await cell.call(cell.part, self._path)
        except StateNotFoundError:
            if default is MISSING:
                raise
            return default  # type: ignore[no-any-return]
        self._saw(data)
        return cell.codec.at(self._path).decode(data)  # type: ignore[no-any-return]

    async def save(self, part: P) -> int:
        """Save the part and return the new version of the whole.

        Raises:
            StateNotFoundError: what leads to the part is missing.
            StaleStateError: the part has changed since this task loaded it.
        """
        cell = self._ref._live()
        data = cell.codec.at(self._path).encode(part)
        seen = self._ref._seen().get((cell.name, self._path))
        version: int = await cell.call(cell.put_part, self._path, data, seen)
        self._saw(data)
        return version

    async def update(self, fn: Callable[..., Any], *args: Any) -> P:
        """Replace the part by ``fn(part, *args)``, sync or async, in one turn of the whole; return the new part."""
        check_function(f"update of {self.path!r} in {self._ref.name!r}", fn)
        cell = self._ref._live()
        part, _ = await cell.call(cell.apply_part, self._path, fn, args)
        self._saw(cell.codec.at(self._path).encode(part))
        return part  # type: ignore[no-any-return]

    def _saw(self, data: bytes) -> None:
        self._ref._seen().note((self._ref.name, self._path), data)
