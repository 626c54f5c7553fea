"""What a codec promises: a state comes back as it was, or is refused with the place that can't be stored."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import math
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

import attrs
import msgpack
import msgspec
import numpy
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgents.runtime.codec import Codec
from dgents.runtime.errors import StateNotFoundError, StateSerializationError, StateTooLargeError
from dgents.runtime.roundtrip import find_difference

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Address:
    street: str
    zip: str | None = None


@dataclasses.dataclass
class Profile:
    name: str
    age: int = 0
    tags: list[str] = dataclasses.field(default_factory=list)
    home: Address | None = None
    born: dt.datetime | None = None


@dataclasses.dataclass
class Typed:
    when: dt.datetime
    day: dt.date
    at: dt.time
    lasting: dt.timedelta
    price: Decimal
    id: uuid.UUID
    color: Color
    ids: set[int]
    names: frozenset[str]
    raw: bytes
    pair: tuple[int, str]
    z: complex
    by_number: dict[int, Address]
    buffer: bytearray


TYPED = Typed(
    dt.datetime(2024, 5, 6, 7, 8, 9, 10),
    dt.date(2024, 5, 6),
    dt.time(7, 8, 9),
    dt.timedelta(days=-3, microseconds=5),
    Decimal("1.10"),
    uuid.UUID(int=7),
    Color.RED,
    {1, 2},
    frozenset({"a"}),
    b"\x00\xff",
    (1, "x"),
    complex(1, -2),
    {3: Address("Main")},
    bytearray(b"abc"),
)


@dataclasses.dataclass
class Mixed:
    name: str
    extra: dict[str, Any]
    home: Address | None = None
    color: Color = Color.RED


@dataclasses.dataclass
class Box(Generic[T]):
    value: T


@dataclasses.dataclass
class Node:
    child: Node | None = None


@dataclasses.dataclass
class Vector:
    v: numpy.ndarray[Any, numpy.dtype[numpy.float64]]


@dataclasses.dataclass(frozen=True)
class FrozenOfList:
    items: list[int]


@dataclasses.dataclass(frozen=True)
class FrozenOfInt:
    x: int
    of: tuple[str, ...] = ()


class Point(msgspec.Struct, frozen=True):
    x: int
    y: float = 0.0


class Tagged(msgspec.Struct, tag=True, rename="camel"):
    big_number: Any


class Row(msgspec.Struct, array_like=True):
    a: int
    b: str


class Pair(NamedTuple):
    a: int
    b: str


class Movie(TypedDict):
    title: str
    year: int


@attrs.define
class Attr:
    x: int
    y: list[str] = attrs.field(factory=list)


class Model(pydantic.BaseModel):
    name: str
    when: dt.datetime
    tags: set[str] = set()
    color: Color = Color.RED
    extra: Any = None


def same(codec: Codec[Any], state: Any) -> bool:
    return find_difference(state, codec.decode(codec.encode(state))) is None


SCHEMAS = [
    (int, 5),
    (Profile, Profile("Ada", 36, ["x"], Address("Main", "1"), dt.datetime(2024, 1, 1, tzinfo=dt.UTC))),
    (Typed, TYPED),
    (Mixed, Mixed("a", {"t": (1, {2}), "when": dt.datetime(2024, 1, 1), "n": [None, b"x"]}, Address("x"))),
    (Box[int], Box(3)),
    (Box, Box((1, "x"))),
    (Node, Node(Node(Node()))),
    (Point, Point(1, 2.5)),
    (Tagged, Tagged((1, 2))),
    (Row, Row(1, "x")),
    (Pair, Pair(1, "x")),
    (Movie, {"title": "M", "year": 1931}),
    (Attr, Attr(1, ["x"])),
    (Model, Model(name="m", when=dt.datetime(2024, 1, 1), tags={"x"}, color=Color.BLUE, extra=(1, 2))),
    (list[Model], [Model(name="m", when=dt.datetime(2024, 1, 1))]),
    (Vector, Vector(numpy.array([1.0, 2.0]))),
    (dict, {"a": (1, 2)}),
    (dict[str, int], {"a": 2**80}),
    (int | str | None, None),
    (Color, Color.BLUE),
    (list[Profile], [Profile("Ada")]),
    (dict[str, float], {"nan": math.nan, "inf": math.inf, "int": 3.0}),
]


@pytest.mark.parametrize(("schema", "state"), SCHEMAS, ids=lambda value: str(value)[:30])
def test_a_state_of_a_schema_comes_back_as_it_was(schema: Any, state: Any) -> None:
    assert same(Codec(schema), state)


UNTYPED = [
    (1, (2, [3, (4,)]), {5}, frozenset({(6, 7)})),
    [2**64, -(2**63) - 1, 2**4000, -(2**63), 2**64 - 1],
    {(1, 2): "tuple", 3: "int", 1.5: "float", None: "none", b"b": "bytes", dt.date(2024, 1, 1): "date"},
    [math.nan, math.inf, -0.0, Decimal("NaN"), Decimal("-0.00"), complex(math.nan, 1)],
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30))),
    dt.datetime(1901, 1, 1, microsecond=1, tzinfo=dt.UTC),
    [dt.time(1, 2, 3, tzinfo=dt.UTC), dt.timedelta.max, dt.timedelta.min, dt.date.min, dt.datetime.max],
    [numpy.arange(6).reshape(2, 3), numpy.array(["x", "yz"]), numpy.zeros((0, 3)), numpy.float32(1.5)],
    [numpy.datetime64("2024-01-01", "ns"), numpy.array(3), numpy.bool_(True), numpy.array([1, 2], ">i2")],
    [{(math.nan,)}, {1: {math.nan}}],
    "ĄąĘę Ŵŵ \x00",
]


@pytest.mark.parametrize("state", UNTYPED, ids=lambda value: ascii(value)[:30])
def test_an_untyped_state_comes_back_as_it_was(state: Any) -> None:
    assert same(Codec(), state)


def test_a_numpy_array_comes_back_writable() -> None:
    codec: Codec[Any] = Codec()
    codec.decode(codec.encode(numpy.zeros(3)))[0] = 1.0


@pytest.mark.parametrize(
    ("state", "path"),
    [
        ({"a": {"callback": print}}, "$.a.callback"),
        ({"users": [0, 1, 2, {"callback": len}]}, "$.users[3].callback"),
        ({"a b": ["\ud800"]}, "$['a b'][0]"),
        ([1, bytearray(b"x")], "$[1]"),
        ([1, (memoryview(b"x"),)], "$[1][0]"),
        ({"od": collections.OrderedDict(a=1)}, "$.od"),
        ([Level.LOW], "$[0]"),
        ([msgspec.UNSET], "$[0]"),
        (({"o": numpy.array([object()])},), "$[0].o"),
        (numpy.array([(1, 2)], dtype="i4,i4"), "$"),
        (Profile("Ada"), "$"),
    ],
    ids=lambda value: re.sub(r" at 0x\w*", "", ascii(value))[:30],
)
def test_what_can_not_be_stored_untyped_is_refused_with_its_path(state: Any, path: str) -> None:
    with pytest.raises(StateSerializationError) as caught:
        Codec(actor="a/1").encode(state)
    assert caught.value.path == path
    assert path in str(caught.value)
    assert "'a/1'" in str(caught.value)


def test_an_instance_without_a_schema_is_refused_with_the_schema_to_give() -> None:
    with pytest.raises(StateSerializationError, match="give the agent schema=Profile"):
        Codec().encode(Profile("Ada"))


@pytest.mark.parametrize(
    ("schema", "state", "path"),
    [
        (Profile, Profile("Ada", age="old"), "$.age"),  # type: ignore[arg-type]
        (Profile, Profile("Ada", tags=("x",)), "$.tags"),  # type: ignore[arg-type]
        (Profile, Profile("Ada", home=Address("x", 5)), "$.home.zip"),  # type: ignore[arg-type]
        (Profile, Profile("Ada", born="2024-01-01T00:00:00Z"), "$.born"),  # type: ignore[arg-type]
        (Profile, {"name": "Ada"}, "$"),
        (Mixed, Mixed("Ada", {"x": [Level.LOW]}), "$.extra.x[0]"),
        (Mixed, Mixed("Ada", {"x": Address("y")}), "$.extra.x"),
        (list[str], ["x", "\ud800"], "$[1]"),
        (Movie, {"title": "M", "year": 1931, "more": 1}, "$"),
        (int, "x", "$"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_state_that_does_not_fit_its_schema_is_not_stored(schema: Any, state: Any, path: str) -> None:
    with pytest.raises(StateSerializationError) as caught:
        Codec(schema).encode(state)
    assert caught.value.path == path


def test_a_subclass_with_more_fields_than_the_schema_is_not_cut_down() -> None:
    @dataclasses.dataclass
    class Admin(Profile):
        rights: str = "all"

    with pytest.raises(StateSerializationError, match="expected Profile, found Admin"):
        Codec(Profile).encode(Admin("Ada"))


def test_a_schema_that_can_not_be_stored_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="more than one dataclass"):
        Codec(Profile | Address)


class Tree(msgspec.Struct, frozen=True):
    x: int
    parts: Any = None

    def __post_init__(self) -> None:
        if self.x < 100:
            msgspec.structs.force_setattr(self, "x", self.x + 1)


@pytest.mark.parametrize(
    "state",
    [
        Profile("Ada", home=Address("Main")),
        {"who": [Tree(1, (Point(1), Pair(1, "x"), Color.RED, Level.LOW)), Attr(3)]},
        Model(name="m", when=dt.datetime(2024, 1, 1), extra=Profile("x")),
        FrozenOfList([1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_local_codec_without_a_schema_keeps_instances(state: Any) -> None:
    assert same(Codec(local=True), state)


def test_a_local_codec_refuses_what_has_no_fields() -> None:
    with pytest.raises(StateSerializationError) as caught:
        Codec(local=True).encode({"p": Profile("x", tags=[object()])})  # type: ignore[list-item]
    assert caught.value.path == "$.p.tags[0]"


def test_a_cycle_is_refused_with_its_path() -> None:
    state: dict[str, Any] = {"a": [1]}
    state["a"].append({"self": state})
    with pytest.raises(StateSerializationError, match="contains itself") as caught:
        Codec().encode(state)
    assert caught.value.path == "$.a[1].self"


def test_a_cycle_of_instances_is_refused() -> None:
    node = Node()
    node.child = Node(node)
    for codec in (Codec(Node), Codec(local=True)):
        with pytest.raises(StateSerializationError, match="contains itself") as caught:
            codec.encode(node)
        assert caught.value.path == "$.child.child"


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"a": x}, lambda x: (x,), lambda x: Node(x)])
@pytest.mark.parametrize("depth", [257, 400, 5000])
def test_a_state_too_deep_is_refused_with_a_path(wrap: Any, depth: int) -> None:
    state = None
    for _ in range(depth):
        state = wrap(state)
    with pytest.raises(StateSerializationError) as caught:
        Codec(Node if isinstance(state, Node) else None).encode(state)
    assert len(caught.value.path) > 100


def test_nesting_counts_through_tuples_and_lists_alike() -> None:
    state: Any = None
    for _ in range(20):
        state = ([[[[[[[[[[[[state]]]]]]]]]]]],)
    with pytest.raises(StateSerializationError, match="more than 256 levels"):
        Codec().encode(state)


def test_a_packed_extension_in_a_state_is_refused() -> None:
    with pytest.raises(StateSerializationError) as caught:
        Codec().encode({"x": msgpack.ExtType(99, b"")})
    assert caught.value.path == "$.x"


def test_threads_may_share_a_codec() -> None:
    codec: Codec[Any] = Codec(local=True)
    states = [{"a": (number, FrozenOfInt(number), {number})} for number in range(500)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda state: codec.decode(codec.encode(state)), states)) == states


def test_a_state_just_deep_enough_is_kept() -> None:
    state: Any = None
    for _ in range(256):
        state = [state]
    assert Codec().decode(Codec().encode(state)) == state


def test_a_state_too_large_is_refused_with_both_sizes() -> None:
    with pytest.raises(StateTooLargeError) as caught:
        Codec(max_bytes=100).encode("x" * 200)
    assert (caught.value.size, caught.value.limit) == (202, 100)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        *[(value, True) for value in (1, True, None, "x", b"x", 1.5, Decimal(1), Color.RED, Level.LOW)],
        (FrozenOfInt(1), True),
        (Point(1), True),
        (Pair(1, "x"), True),
        ((1, ("x", frozenset({2}))), True),
        ((1, []), False),
        (FrozenOfList([]), False),
        (Address("x"), False),
        (bytearray(), False),
        ([], False),
        (object(), False),
    ],
    ids=lambda value: re.sub(r" at 0x\w*", "", str(value))[:30],
)
def test_only_what_can_not_change_is_immutable(state: Any, expected: bool) -> None:
    assert Codec().is_immutable(state) is expected


def test_a_part_has_the_codec_of_its_hint() -> None:
    codec: Codec[Any] = Codec(dict[str, Profile])
    part = codec.at(("ada", "home"))
    assert part.decode(part.encode(Address("x"))) == Address("x")
    with pytest.raises(StateSerializationError):
        codec.at(("ada", "age")).encode("old")
    assert codec.at(("ada", "tags", "0")).schema is str
    assert codec.at(("ada",)) is codec.at(("ada",))


def test_a_part_that_the_schema_can_not_have_is_not_found() -> None:
    with pytest.raises(StateNotFoundError, match=r"home\.town"):
        Codec(Profile).at(("home", "town"))


def test_a_part_of_an_untyped_place_is_untyped() -> None:
    part = Codec(Mixed).at(("extra", "anything", "0"))
    assert same(part, (1, {2}))


@pytest.mark.parametrize(("schema", "state"), SCHEMAS, ids=lambda value: str(value)[:30])
def test_a_tree_stored_again_is_the_same_state(schema: Any, state: Any) -> None:
    codec: Codec[Any] = Codec(schema)
    data = codec.from_tree(codec.to_tree(codec.encode(state)))
    assert find_difference(state, codec.decode(data)) is None


def test_a_state_stored_without_a_schema_is_read_with_one() -> None:
    data = Codec().encode({"name": "Ada", "born": dt.datetime(2024, 1, 1), "tags": ["x"]})
    assert Codec(Profile).decode(data) == Profile("Ada", tags=["x"], born=dt.datetime(2024, 1, 1))


KEYS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
SCALARS = (
    KEYS
    | st.text()
    | st.decimals(allow_nan=False)
    | st.complex_numbers()
    | st.uuids()
    | st.datetimes(timezones=st.none() | st.just(dt.UTC))
    | st.dates()
    | st.times()
    | st.timedeltas()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS | st.tuples(KEYS, KEYS), inner, max_size=4)
        | st.frozensets(KEYS, max_size=4)
        | st.sets(st.tuples(KEYS), max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES)
@settings(max_examples=300, deadline=None)
def test_any_value_of_built_in_types_comes_back_as_it_was(value: Any) -> None:
    assert same(Codec(), value)


@given(VALUES)
@settings(max_examples=150, deadline=None)
def test_any_value_in_an_untyped_place_of_a_schema_comes_back_as_it_was(value: Any) -> None:
    assert same(Codec(Mixed), Mixed("x", {"value": value}))


JUNK = st.sampled_from([print, bytearray(b"x"), "\udfff", object(), Level.LOW, collections.Counter("a")])


@given(st.recursive(JUNK, lambda inner: st.lists(inner, min_size=1) | st.tuples(SCALARS, inner), max_leaves=5))
@settings(max_examples=100, deadline=None)
def test_a_value_that_holds_junk_is_refused_with_the_path_of_junk(value: Any) -> None:
    with pytest.raises(StateSerializationError) as caught:
        Codec().encode(value)
    found = value
    for index in caught.value.path[2:-1].split("][") if caught.value.path != "$" else []:
        found = found[int(index)]
    assert not isinstance(found, list | tuple)
