"""Models of Pydantic come back with every field, or are refused with the path of what would be lost."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import pydantic
import pytest
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PrivateAttr, RootModel, SecretStr

import dgents
from dgents.runtime.codec import Codec
from dgents.runtime.errors import StateSerializationError
from dgents.runtime.roundtrip import find_difference

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"


class Private(BaseModel):
    name: str
    _hits: int = PrivateAttr(default=0)


class Computed(BaseModel):
    n: int

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return self.n * 2


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    n: int


class Renamed(BaseModel):
    n: int = Field(alias="theN")


class TwoNames(BaseModel):
    n: int = Field(0, validation_alias="in_n", serialization_alias="out_n")


class Choices(BaseModel):
    n: int = Field(validation_alias=AliasChoices("one", "other"))


class Nested(BaseModel):
    two: TwoNames
    many: list[Choices] = []


class Excluded(BaseModel):
    n: int = Field(0, exclude=True)


class Serialized(BaseModel):
    n: int
    color: Color = Color.RED

    @pydantic.field_serializer("n")
    def as_text(self, n: int) -> str:
        return f"<{n}>"


class WholeSerialized(BaseModel):
    n: int

    @pydantic.model_serializer
    def as_text(self) -> str:
        return "n"


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    pair: tuple[int, str]
    tags: frozenset[str] = frozenset()


class Root(RootModel[list[TwoNames]]):
    pass


class Generic_(BaseModel, Generic[T]):
    value: T
    more: list[T] = []


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    lives: int = 1


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


class Owner(BaseModel):
    pet: Pet
    more: dict[str, Pet] = {}


@dataclasses.dataclass
class Home:
    pet: Pet
    at: dt.datetime | None = None


def with_private(hits: int) -> Private:
    made = Private(name="x")
    made._hits = hits
    return made


KEPT: list[tuple[Any, Any]] = [
    (Private, Private(name="x")),
    (Computed, Computed(n=2)),
    (Open, Open(n=1, more=(1, {2}), when=dt.datetime(2024, 1, 1))),  # type: ignore[call-arg]
    (Renamed, Renamed(theN=1)),
    (TwoNames, TwoNames(in_n=3)),  # type: ignore[call-arg]
    (Choices, Choices(other=3)),  # type: ignore[call-arg]
    (Nested, Nested(two=TwoNames(in_n=3), many=[Choices(one=1)])),  # type: ignore[call-arg]
    (dict[str, Nested], {"a": Nested(two=TwoNames(in_n=3))}),  # type: ignore[call-arg]
    (Excluded, Excluded(n=3)),
    (Serialized, Serialized(n=3)),
    (WholeSerialized, WholeSerialized(n=3)),
    (Strict, Strict(pair=(1, "x"), tags=frozenset({"a"}))),
    (Root, Root([TwoNames(in_n=3)])),  # type: ignore[call-arg]
    (Generic_[Cat], Generic_[Cat](value=Cat(), more=[Cat(lives=2)])),
    (Cat | Dog, Dog(lives=3)),
    (Pet, Dog()),
    (list[Pet], [Dog(), Cat()]),
    (dict[str, Pet | None], {"a": Dog(), "b": None}),
    (Owner, Owner(pet=Dog(), more={"x": Cat()})),
    (Home, Home(Dog(), dt.datetime(2024, 1, 1, tzinfo=dt.UTC))),
]


@pytest.mark.parametrize(("schema", "state"), KEPT, ids=lambda value: str(value)[:30])
def test_a_model_comes_back_with_every_field(schema: Any, state: Any) -> None:
    codec: Codec[Any] = Codec(schema)
    once = codec.decode(codec.encode(state))
    assert find_difference(state, once) is None
    assert codec.encode(once) == codec.encode(state)
    tree = codec.to_tree(codec.encode(state))
    assert find_difference(state, codec.decode(codec.from_tree(tree))) is None


class Handle(BaseModel):
    secret: SecretStr


class Changing(BaseModel):
    n: int

    @pydantic.field_validator("n")
    def more(cls, n: int) -> int:
        return n + 1


class StrictColor(BaseModel):
    model_config = ConfigDict(strict=True)
    color: Color


class Big(Cat):
    weight: int = 9


REFUSED: list[tuple[Any, Any, str, str]] = [
    (Private, with_private(5), "$._hits", "5 would come back as 0"),
    (list[Private], [Private(name="x"), with_private(5)], "$[1]._hits", "5 would come back as 0"),
    (Handle, Handle(secret=SecretStr("hunter2")), "$.secret", "SecretStr can't be stored"),
    (Changing, Changing(n=1), "$.n", "2 would come back as 3"),
    (StrictColor, StrictColor(color=Color.RED), "$.color", "instance of Color"),
    (Owner, Owner.model_construct(pet=Big(), more={}), "$.pet", "Big can't be stored"),
    (dict[str, Cat], {"a": Cat.model_construct(lives="x")}, "$.a.lives", "valid integer"),
    (dict[str, Owner], {"a": Owner.model_construct(pet=Cat.model_construct(kind="cow"))}, "$.a.pet", "'kind'"),
    (list[Pet], [Dog(), Cat.model_construct(kind="cow")], "$[1]", "'kind'"),
    (Generic_[Cat], Generic_(value=Cat()), "$", "Generic_ can't be stored"),
]


@pytest.mark.parametrize(("schema", "state", "path", "words"), REFUSED, ids=lambda value: str(value)[:30])
def test_a_model_that_would_change_is_refused_with_its_path(schema: Any, state: Any, path: str, words: str) -> None:
    with pytest.raises(StateSerializationError, match=words) as caught:
        Codec(schema).encode(state)
    assert caught.value.path == path
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_is_read_by_the_alias_under_which_it_was_stored() -> None:
    assert Codec(Renamed).decode(Codec().encode({"theN": 3})).n == 3
    assert Codec(TwoNames).decode(Codec().encode({"in_n": 3})).n == 3


@pytest.mark.anyio
async def test_a_part_of_a_model_is_reached_where_it_is(anyio_backend: str, tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        nested = await rt.spawn("nested", dgents.SQLAgent(str(tmp_path / "s.db"), schema=Nested))
        await nested.save(Nested(two=TwoNames(in_n=3)))  # type: ignore[call-arg]
        await nested.patch({"two.n": 4})
        assert (await nested.load()).two.n == await nested.at("two.n").load() == 4
        pets: Any = await rt.spawn("pets", dgents.SQLAgent(str(tmp_path / "s.db"), schema=list[Pet]))
        await pets.save([Cat(), Dog()])
        await pets.at("0").save(Dog(lives=2))
        assert await pets.load() == [Dog(lives=2), Dog()]
        root = await rt.spawn("root", dgents.SQLAgent(str(tmp_path / "s.db"), schema=Root))
        await root.save(Root([TwoNames(in_n=3)]))  # type: ignore[call-arg]
        assert await root.at("0.n").load() == 3
        extra: Any = await rt.spawn("extra", dgents.SQLAgent(str(tmp_path / "s.db"), schema=Open))
        await extra.save(Open(n=1, more=1))  # type: ignore[call-arg]
        await extra.at("more").save((1, 2))
        assert (await extra.load()).more == (1, 2)
