"""What msgspec does not look at when it writes, settled once for a schema, and then asked of each state.

msgspec writes whatever it is given: a Counter as a map, a StrEnum as a text, a time in some zone as UTC; what it reads
back is another type, or is refused. It writes the items of a set in the order of their hashes, which is another in
each process, and leaves out what `omit_defaults`, a leading underscore or a default that only the class has lets it.
So a `Plan` knows

* for each place of a schema, which types come back from there as they were, and which of those need a second look
  (`keeps`),
* what is to be written in another form so that all of it is written, and always alike (`lower`), and whether that has
  to be done with each state (`lowers`),
* whether that is enough to know that a state comes back as it was (`is_faithful`): not where reading runs code of the
  class, or looks at more than types.
"""

from __future__ import annotations

import datetime
import enum
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import msgspec

from dgents.runtime.extensions import in_order
from dgents.runtime.instances import (
    as_stored,
    changes_itself,
    compares_all,
    getter,
    getter_of_dict,
    has_class_defaults,
    hides,
)
from dgents.runtime.shapes import SCALARS, UNIONS, field_hints, unwrap
from dgents.runtime.times import is_plain

Check: TypeAlias = Callable[[Any], bool]
Lower: TypeAlias = Callable[[Any], Any]

_EXACT = 2**53  # up to here each int has a float that is equal to it
_MAX_KNOWN = 256  # combinations of types that a class remembers as good: a field of many unions has many


class Plan:
    """What `keeps` and `lower` do for the states of one schema, of which `shapes.is_exact` is true.

    Args:
        schema: the type of the states.
        pack: returns the bytes of anything in such a state.
    """

    def __init__(self, schema: Any, pack: Callable[[Any], bytes]) -> None:
        self._pack = pack
        self._fields: dict[Any, _Fields] = {}
        self.lowers = False
        self.is_faithful = True
        place = self._place(schema)
        self.keeps: Check = place.keeps
        self.lower: Lower = place.lower

    def _place(self, hint: Any) -> _Place:
        """Return what may be at a place that ``hint`` describes."""
        if _is_constrained(hint):
            self.is_faithful = False
        hint = unwrap(hint)
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        cls = origin or hint
        if origin in UNIONS:
            return _any_of([self._place(part) for part in arguments])
        if origin is typing.Literal:
            known = {(type(value), value) for value in arguments}
            return _Place(*map(type, arguments), check=lambda value: (type(value), value) in known)
        if hint is None:
            return _Place(type(None))
        if cls is list:
            return self._items(list, self._place(arguments[0]))
        if cls is set or cls is frozenset:
            return self._set(cls, self._place(arguments[0]))
        if cls is tuple:
            return self._tuple(arguments)
        if cls is dict:
            return self._map(*map(self._place, arguments))
        if hint is float:  # an int may stand for a float, as for type checkers; the float that comes back is equal
            return _Place(float, int, checks={int: _is_float})
        if hint is datetime.datetime or hint is datetime.time:
            return _Place(hint, check=is_plain)
        if cls.__module__ == "numpy":
            self.is_faithful = False
        if hint in SCALARS or issubclass(cls, enum.Enum) or (fields := field_hints(hint)) is None:
            return _Place(cls)
        if typing.is_typeddict(cls):
            return self._typed_dict(fields, cls.__required_keys__)
        return self._instance(hint, cls, fields)

    def _items(self, cls: type, place: _Place) -> _Place:
        lower = (lambda items: cls(place.lower_all(items))) if place.lowers else None
        return _Place(cls, check=place.all_check(), lower=lower)

    def _set(self, cls: type, place: _Place) -> _Place:
        self.lowers = True
        return _Place(
            cls, check=place.all_check(), lower=lambda items: tuple(in_order(place.lower_all(items), self._pack))
        )

    def _tuple(self, arguments: tuple[Any, ...]) -> _Place:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return self._items(tuple, self._place(arguments[0]))
        places = [self._place(part) for part in arguments]

        def check(items: Any) -> bool:
            return len(items) == len(places) and all(place.keeps(item) for place, item in zip(places, items))  # noqa: B905

        def lower(items: Any) -> Any:
            return tuple(place.lower(item) for place, item in zip(places, items, strict=True))

        return _Place(tuple, check=check, lower=lower if any(place.lowers for place in places) else None)

    def _map(self, keys: _Place, values: _Place) -> _Place:
        keep_keys, keep_values = keys.all_check(), values.all_check()

        def check(state: Any) -> bool:
            return keep_keys(state) and keep_values(state.values())

        def lower(state: Any) -> Any:
            return {keys.lower(key): values.lower(part) for key, part in state.items()}

        return _Place(dict, check=check, lower=lower if keys.lowers or values.lowers else None)

    def _typed_dict(self, fields: Mapping[str, Any], required: frozenset[str]) -> _Place:
        places = {name: self._place(hint) for name, hint in fields.items()}

        def check(state: Any) -> bool:
            if not required <= state.keys() <= places.keys():
                return False
            return all(type(key) is str and places[key].keeps(part) for key, part in state.items())

        def lower(state: Any) -> Any:
            return {key: places[key].lower(part) for key, part in state.items()}

        return _Place(dict, check=check, lower=lower if any(place.lowers for place in places.values()) else None)

    def _instance(self, hint: Any, cls: Any, hints: Mapping[str, Any]) -> _Place:
        known = self._fields.get(hint)
        if known is not None:  # a class that holds itself; whether it has to be lowered is not known yet
            return _Place(cls, check=known.keep, lower=known.lower)
        fields = self._fields[hint] = _Fields(cls)
        fields.places = [self._place(part) for part in hints.values()]
        lowers = fields.hides or fields.may_lack or any(place.lowers for place in fields.places)
        self.lowers |= fields.hides
        self.is_faithful &= not fields.changes
        return _Place(cls, check=fields.keep, lower=fields.lower if lowers else None)


class _Place:
    """The types that may be at one place, with what is to be done about their values."""

    __slots__ = ("checks", "kinds", "lowers")

    def __init__(
        self,
        *kinds: type,
        check: Check | None = None,
        lower: Lower | None = None,
        checks: Mapping[type, Check] | None = None,
    ) -> None:
        self.kinds = frozenset(kinds)
        self.checks = dict(checks or {}) if check is None else dict.fromkeys(kinds, check)
        self.lowers = {} if lower is None else dict.fromkeys(kinds, lower)

    def keeps(self, value: Any) -> bool:
        """Say whether ``value`` comes back from here as it was, if what comes back is equal to it."""
        kind = type(value)
        if kind not in self.kinds:
            return False
        check = self.checks.get(kind)
        return check is None or check(value)

    def all_check(self) -> Check:
        """Return what says whether all of a collection of values come back from here; it is asked of large ones."""
        if self.checks:
            return self._keep_all
        kinds = self.kinds
        return lambda values: kinds.issuperset(map(type, values))

    def _keep_all(self, values: Collection[Any]) -> bool:
        kinds = set(map(type, values))
        if not kinds <= self.kinds:
            return False
        if kinds.isdisjoint(self.checks):
            return True
        return all(map(self.keeps if len(kinds) > 1 else self.checks[kinds.pop()], values))

    def lower(self, value: Any) -> Any:
        """Return ``value`` as msgspec is to write it."""
        lower = self.lowers.get(type(value))
        return value if lower is None else lower(value)

    def lower_all(self, values: Collection[Any]) -> Collection[Any]:
        return [self.lower(value) for value in values] if self.lowers else values


def _any_of(places: list[_Place]) -> _Place:
    """Return the place that a union describes."""
    union = _Place()
    union.kinds = frozenset().union(*(place.kinds for place in places))
    for place in places:
        union.checks.update(place.checks)
        union.lowers.update(place.lowers)
    return union


class _Fields:
    """The instances of one class, whose parts are at places of their own."""

    __slots__ = ("_get", "_known", "_stored", "_usable", "changes", "hides", "may_lack", "places")

    def __init__(self, cls: Any) -> None:
        self._get = getter(cls)
        self.may_lack = has_class_defaults(cls)
        self._stored = getter_of_dict(cls) if self.may_lack else self._get
        self._known: dict[tuple[type, ...], list[tuple[int, Check]]] = {}
        self.changes = changes_itself(cls)
        self._usable = not self.changes or compares_all(cls)
        self.hides = hides(cls)
        self.places: list[_Place] = []

    def keep(self, value: Any) -> bool:
        try:
            parts = self._stored(value)
        except KeyError:  # it was read from where a field was missing, and has the default from its class
            return False
        kinds = tuple(map(type, parts))
        checks = self._known.get(kinds)
        if checks is None:
            checks = self._learn(kinds)
            if checks is None:
                return False
        for index, check in checks:  # noqa: SIM110 (twice as fast as all() for the few parts of an instance)
            if not check(parts[index]):
                return False
        return True

    def _learn(self, kinds: tuple[type, ...]) -> list[tuple[int, Check]] | None:
        """Return what is still to be checked of an instance whose parts are of ``kinds``; None if these are wrong."""
        if not self._usable or not all(kind in place.kinds for kind, place in zip(kinds, self.places, strict=True)):
            return None
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        checks = [(index, self.places[index].checks.get(kind)) for index, kind in enumerate(kinds)]
        known = self._known[kinds] = [(index, check) for index, check in checks if check is not None]
        return known

    def lower(self, value: Any) -> Any:
        parts = [place.lower(part) for place, part in zip(self.places, self._get(value), strict=True)]
        return as_stored(value, parts)


def _is_constrained(hint: Any) -> bool:
    """Say whether something in ``Annotated`` bounds the values that its type may have."""
    while hasattr(hint, "__metadata__"):
        if any(isinstance(item, msgspec.Meta) for item in hint.__metadata__):
            return True
        hint = hint.__origin__
    return False


def _is_float(number: int) -> bool:
    return -_EXACT <= number <= _EXACT
