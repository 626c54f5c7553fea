"""With a schema as without one: what is accepted comes back of the same types, and nothing else is accepted."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import random
import subprocess
import sys
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import attrs
import msgspec
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgents.changes import changes
from dgents.runtime.codec import Codec
from dgents.runtime.describe import describe
from dgents.runtime.errors import StateError, StateSerializationError
from dgents.runtime.roundtrip import find_difference


class Word(enum.StrEnum):
    A = "a"


class Number(enum.IntEnum):
    ONE = 1


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Text(str):
    pass


class Whole(int):
    pass


class Real(float):
    pass


class Row(NamedTuple):
    a: int
    b: int


class Items(list[int]):
    pass


class Map(dict[str, int]):
    pass


class Day(dt.date):
    pass


CHANGED: list[tuple[Any, Any]] = [
    (str, Word.A),
    (str, Text("a")),
    (int, Number.ONE),
    (int, Whole(1)),
    (int, True),
    (int, 1.0),
    (bool, 1),
    (float, Real(1)),
    (float, True),
    (float, 2**53 + 1),
    (Decimal, 5),
    (Decimal, 1.5),
    (bytes, bytearray(b"x")),
    (bytes, memoryview(b"x")),
    (bytearray, b"x"),
    (complex, 1.0),
    (dt.date, Day(2024, 1, 1)),
    (dt.date, dt.datetime(2024, 1, 1)),
    (dt.datetime, dt.date(2024, 1, 1)),
    (uuid.UUID, str(uuid.UUID(int=1))),
    (dict[str, int], collections.Counter("ab")),
    (dict[str, int], collections.OrderedDict(a=1)),
    (dict[str, int], collections.defaultdict(int, a=1)),
    (dict[str, int], Map(a=1)),
    (dict[int, int], {True: 1}),
    (dict[int, int], {1.0: 1}),
    (dict[str, int], {Word.A: 1}),
    (dict[str, list[str]], {"a": [Text("b")]}),
    (list[int], Items([1])),
    (list[int], (1,)),
    (list[str], ["b", Word.A]),
    (tuple[int, int], Row(1, 2)),
    (tuple[int, ...], Row(1, 2)),
    (tuple[str, int], (Word.A, 1)),
    (Row, (1, 2)),
    (set[int], frozenset({1})),
    (frozenset[int], {1}),
    (set[str], {"b", Word.A}),
    (set[tuple[str, ...]], {(Word.A,)}),
    (frozenset[frozenset[int]], frozenset({frozenset({Number.ONE})})),
    (Word, "a"),
    (Number, 1),
    (Literal["a"], Word.A),
    (Literal["a"], "b"),
    (Literal[1], True),
    (int | str | None, Word.A),
    (list[int] | None, Items([1])),
    (dict[str, Any], collections.Counter("ab")),
    (Any, Word.A),
    (list, Items([1])),
    (object, collections.OrderedDict()),
]
MAKERS = {
    "dataclass": lambda hint: dataclasses.make_dataclass("Holder", [("x", hint)]),
    "defaulted": lambda hint: dataclasses.make_dataclass("Holder", [("x", hint), ("y", int, 0)]),
    "struct": lambda hint: msgspec.defstruct("Holder", [("x", hint)], omit_defaults=True),
    "attrs": lambda hint: attrs.make_class("Holder", {"x": attrs.field(type=hint)}),
    "named tuple": lambda hint: NamedTuple("Holder", [("x", hint)]),  # type: ignore[misc]
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    ("hint", "value"), CHANGED, ids=[f"{number}-{type(value).__name__}" for number, (_, value) in enumerate(CHANGED)]
)
def test_what_would_come_back_as_another_type_is_refused_with_its_path(hint: Any, value: Any, maker: str) -> None:
    holder: Any = MAKERS[maker](hint)
    for schema, state, path in [
        (hint, value, "$"),
        (holder, holder(value), "$.x"),
        (list[holder], [holder(value)], "$[0].x"),
        (dict[str, holder | None], {"k": holder(value), "none": None}, "$.k.x"),
    ]:
        with pytest.raises(StateSerializationError) as caught:
            Codec(schema).encode(state)
        assert caught.value.path is not None
        assert caught.value.path.startswith((path, path.replace(".x", "[0]")))  # a named tuple is stored as a row
        assert f"{caught.value.path}: " in str(caught.value)


@pytest.mark.parametrize("maker", MAKERS)
def test_an_int_in_a_float_comes_back_as_the_equal_float(maker: str) -> None:
    holder: Any = MAKERS[maker](float)
    codec: Codec[Any] = Codec(holder)
    assert codec.decode(codec.encode(holder(2**53))) == holder(float(2**53))


class Inner(msgspec.Struct, omit_defaults=True, frozen=True):
    a: int = 1
    b: frozenset[str] = frozenset()


class Extra(TypedDict):
    name: str
    age: NotRequired[int]


@attrs.define
class Private:
    _secret: int = attrs.field(default=0, eq=False)
    open: str = ""


@dataclasses.dataclass
class Everything:
    text: str
    number: int
    real: float
    when: dt.datetime
    price: Decimal
    raw: bytes
    word: Word
    right: Right
    choice: Literal["x", 1, None]
    row: Row
    extra: Extra
    private: Private
    either: int | list[str] | None
    z: complex
    names: set[str] = dataclasses.field(default_factory=set)
    pairs: frozenset[tuple[int, str]] = frozenset()
    inners: list[Inner] = dataclasses.field(default_factory=list)
    keyed: dict[int, dict[str, Inner]] = dataclasses.field(default_factory=dict)
    child: Everything | None = None
    unseen: list[int] = dataclasses.field(default_factory=list, compare=False)


INTS = st.integers(-(2**63), 2**64 - 1)
REALS = st.floats(allow_nan=True)
INNERS = st.builds(Inner, a=INTS, b=st.frozensets(st.text(max_size=3), max_size=3))
EXACT: dict[type, st.SearchStrategy[Any]] = {
    int: st.integers(),
    str: st.text(max_size=5) | st.just("a"),
    float: REALS,
    bytes: st.binary(max_size=5),
    Decimal: st.decimals(),
    complex: st.complex_numbers(),
}
WORDS = st.sets(st.just(Word.A) | st.text(max_size=2))
SUBTYPES = st.sampled_from([Word.A, Number.ONE, Text("a"), Whole(1), Real(1), True, 1.0, bytearray(b"x"), Right.READ])
EXTRAS = st.fixed_dictionaries({"name": st.text(max_size=3)}, optional={"age": INTS})
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "text": EXACT[str],
    "number": EXACT[int],
    "real": REALS,
    "when": st.datetimes(timezones=st.none() | st.timezones()),
    "price": EXACT[Decimal],
    "raw": EXACT[bytes],
    "word": st.just(Word.A),
    "right": st.sampled_from([Right.READ, Right.READ | Right.WRITE, Right(0)]),
    "choice": st.sampled_from(["x", 1, None]),
    "row": st.builds(Row, INTS, INTS),
    "extra": EXTRAS,
    "private": st.builds(Private, INTS, st.text(max_size=3)),
    "either": st.none() | EXACT[int] | st.lists(st.text(max_size=2), max_size=3),
    "z": EXACT[complex],
    "names": st.sets(st.text(max_size=3), max_size=5),
    "pairs": st.frozensets(st.tuples(INTS, st.text(max_size=3)), max_size=4),
    "inners": st.lists(INNERS, max_size=3),
    "keyed": st.dictionaries(INTS, st.dictionaries(st.text(max_size=2), INNERS, max_size=2), max_size=2),
    "unseen": st.lists(INTS, max_size=2),
}
STATES = st.builds(Everything, **FIELDS, child=st.none() | st.builds(Everything, **FIELDS))
EVERYTHING: Codec[Everything] = Codec(Everything)


@given(STATES)
@settings(max_examples=200, deadline=None)
def test_any_state_of_a_schema_comes_back_as_it_was_twice_and_as_its_parts(state: Everything) -> None:
    data = EVERYTHING.encode(state)
    once = EVERYTHING.decode(data)
    assert find_difference(state, once) is None
    assert EVERYTHING.encode(once) == data
    tree = EVERYTHING.to_tree(data)
    assert find_difference(state, EVERYTHING.decode(EVERYTHING.from_tree(tree))) is None
    for name in FIELDS:
        part = EVERYTHING.at((name,))
        value = part.decode(EVERYTHING.from_tree(tree[name]))
        assert find_difference(getattr(state, name), value) is None
        assert find_difference(value, part.decode(part.encode(value))) is None


@given(
    STATES,
    st.sampled_from(sorted(FIELDS)),
    SUBTYPES | st.one_of(*EXACT.values()) | st.sets(st.just(Word.A) | st.text(max_size=2)),
)
@settings(max_examples=400, deadline=None)
def test_any_value_in_any_field_comes_back_as_it_was_or_is_refused(state: Everything, name: str, value: Any) -> None:
    setattr(state, name, value)
    try:
        data = EVERYTHING.encode(state)
    except StateError:
        return
    assert find_difference(state, EVERYTHING.decode(data)) is None


class Bounded(msgspec.Struct):
    age: Annotated[int, msgspec.Meta(ge=0)]


@attrs.define
class Validated:
    age: int = attrs.field(validator=attrs.validators.ge(0))


@dataclasses.dataclass
class Changing:
    n: int
    hidden: int = dataclasses.field(default=0, compare=False)

    def __post_init__(self) -> None:
        self.hidden += 1


@dataclasses.dataclass
class Clamped:
    n: int

    @property  # type: ignore[no-redef]
    def n(self) -> int:
        return self.__dict__["n"]  # type: ignore[no-any-return]

    @n.setter
    def n(self, n: int) -> None:
        self.__dict__["n"] = n + 1


@pytest.mark.parametrize(
    ("schema", "make"),
    [
        (Bounded, lambda: Bounded(-1)),
        (Validated, lambda: _set(Validated(1), "age", -1)),
        (Changing, lambda: Changing(1)),
        (Clamped, lambda: Clamped(1)),
        (Extra, lambda: {"age": 1}),
        (tuple[int, str], lambda: (1, "x", 2)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_reading_would_refuse_or_change_is_not_stored(schema: Any, make: Any) -> None:
    with pytest.raises(StateSerializationError):
        Codec(schema).encode(make())


def _set(value: Any, name: str, part: Any) -> Any:
    object.__setattr__(value, name, part)
    return value


def test_a_field_that_equality_does_not_look_at_comes_back_too() -> None:
    codec: Codec[Any] = Codec(Private)
    assert codec.decode(codec.encode(Private(secret=5)))._secret == 5


def test_an_array_in_a_schema_comes_back_with_its_type() -> None:
    holder = dataclasses.make_dataclass("Holder", [("v", numpy.ndarray[Any, Any])])
    codec: Codec[Any] = Codec(holder)
    state = holder(numpy.arange(3, dtype=">i2"))
    assert find_difference(state, codec.decode(codec.encode(state))) is None


class Bag(NamedTuple):
    names: set[str]
    mixed: set[int | str | None]
    by_name: dict[str, frozenset[tuple[int, str]]]
    nested: set[frozenset[str]]
    reals: set[float]


def bags(seed: int) -> tuple[list[Any], list[Any]]:
    """Return equal states whose sets were filled in another order, with and without a schema."""

    def shuffled(items: list[Any]) -> list[Any]:
        random.Random(seed).shuffle(items)
        return items

    names = shuffled([f"name-{number * 7919 % 1009}" for number in range(60)])
    mixed: list[Any] = shuffled([*range(-5, 300, 7), *sorted(names)[:9], None])
    pairs = frozenset(shuffled([(number, str(number)) for number in range(40)]))
    nested = {frozenset(shuffled(["a", "b", str(number)])) for number in shuffled(list(range(20)))}
    bag = Bag(set(names), set(mixed), {"z": pairs, "a": pairs}, nested, {1.5, -0.0, float(seed * 0), 2.5e300})
    return [bag], [{**bag._asdict(), "dates": {dt.date(2024, 1, day) for day in shuffled(list(range(1, 29)))}}]


def test_equal_sets_are_equal_bytes_whatever_the_order_and_the_hashes() -> None:
    program = "\n".join(
        (
            "import sys, hashlib",
            "from tests.test_codec_exact import Bag, Codec, bags",
            "typed, untyped = bags(int(sys.argv[1]))",
            "data = [Codec(list[Bag]).encode(typed), Codec().encode(untyped)]",
            "print([hashlib.sha256(part).hexdigest() for part in data])",
        )
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program, str(seed)],
            check=True,
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in range(3)
    }
    assert len(seen) == 1


@pytest.mark.parametrize("schema", [None, dict[str, set[str]]], ids=["untyped", "typed"])
def test_the_order_of_a_dict_is_kept_beside_the_order_of_its_sets(schema: Any) -> None:
    codec: Codec[Any] = Codec(schema)
    assert list(codec.decode(codec.encode({"z": {"b", "a"}, "a": set()}))) == ["z", "a"]


def test_sets_that_were_stored_in_another_order_are_read() -> None:
    assert Codec(set[str]).decode(msgspec.msgpack.encode(["b", "a", "c"])) == {"a", "b", "c"}


@pytest.mark.parametrize("schema", [None, dict[str, set[str]]], ids=["untyped", "typed"])
def test_one_new_item_of_a_set_is_one_change_in_the_history(schema: Any) -> None:
    codec: Codec[Any] = Codec(schema)
    words = [f"word {number * 7919 % 1009}" for number in range(50)]
    before = describe(codec.encode({"seen": set(words)}))
    after = describe(codec.encode({"seen": {"new", *reversed(words)}}))
    assert [change.after for change in changes(before, after)] == ["new"]
