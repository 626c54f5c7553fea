"""States of every kind that a schema can describe."""

from __future__ import annotations

import datetime
import enum
import math
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import attrs
import msgspec
import numpy
import pydantic

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Profile:
    name: str
    visits: int = 0
    tags: set[str] = field(default_factory=set)
    friends: list[str] = field(default_factory=list)


@dataclass
class Span:
    first: int
    last: int
    names: dict[int, str]

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise ValueError("it ends before it begins")


@dataclass(frozen=True)
class Point:
    x: int
    y: int


@dataclass
class Team:
    lead: Profile
    members: dict[str, Profile]
    born: datetime.datetime
    budget: Decimal
    id: UUID
    colour: Colour
    photo: bytes
    place: tuple[int, float]


@dataclass
class Box(Generic[T]):
    content: T
    label: str


class Reading(msgspec.Struct):
    at: datetime.datetime
    values: list[float]


@attrs.define
class Account:
    owner: str
    balance: Decimal


class Settings(TypedDict):
    theme: str
    sizes: list[int]


class Pair(NamedTuple):
    left: int
    right: str


class Model(pydantic.BaseModel):
    name: str
    scores: dict[str, int] = {}


_WHEN = datetime.datetime(2024, 2, 29, 12, 30, 59, 123456, tzinfo=datetime.UTC)

# The states, by what they show, each with its schema.
STATES: dict[str, tuple[Any, Any]] = {
    "none": (None, None),
    "int": (None, 2**63),
    "float": (None, -0.1),
    "infinity": (None, math.inf),
    "text": (None, "snowman \N{SNOWMAN} and \0"),
    "bytes": (None, b"\x00\xff"),
    "containers": (None, {"list": [1, [2]], "map": {"x": None}, "tuple": (1, (2, "x")), "set": {1, 2}}),
    "integer keys": (None, {1: "one", 2: {3: "three"}}),
    "datetime": (None, [_WHEN, _WHEN.date(), _WHEN.replace(tzinfo=None), datetime.timedelta(days=-1, microseconds=7)]),
    "decimal": (None, {"price": Decimal("1.10"), "id": UUID(int=7)}),
    "dataclass": (Profile, Profile("Ada", 1, {"x"}, ["Bob"])),
    "nested": (
        Team,
        Team(
            Profile("Ada"), {"b": Profile("Bob", 2)}, _WHEN, Decimal("0.1"), UUID(int=3), Colour.BLUE, b"\0", (1, 0.5)
        ),
    ),
    "generic": (Box[Point], Box(Point(1, 2), "p")),
    "frozen": (Point, Point(3, 4)),
    "struct": (Reading, Reading(_WHEN, [0.5, -0.0])),
    "attrs": (Account, Account("Ada", Decimal("-12.50"))),
    "typed dict": (Settings, Settings(theme="dark", sizes=[1, 2])),
    "named tuple": (Pair, Pair(1, "r")),
    "enum": (Colour, Colour.RED),
    "pydantic": (Model, Model(name="m", scores={"x": 1})),
    "union": (int | str | None, "text"),
    "numpy": (None, {"matrix": numpy.arange(6, dtype=numpy.float32).reshape(2, 3)}),
}


def same(one: Any, other: Any) -> bool:
    """Say whether two states are equal, type by type."""
    if type(one) is not type(other):
        return False
    if isinstance(one, numpy.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
